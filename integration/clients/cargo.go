package main

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"os/exec"
	"strings"

	"exitgate/integration/rig"
)

const (
	indexHost  = "index.crates.io"
	cratesHost = "static.crates.io"
)

func cargo() client {
	return client{
		name: "cargo", title: "cargo", program: "cargo --version", optional: true, presets: "`cargo`", needs: "nothing",
		modes: func(map[string]string) []mode {
			root, err := exec.Command("rustc", "--print", "sysroot").Output()
			m := mode{
				policy: "version: 1\npresets: [cargo]\n", strict: true, place: map[string]string{"/opt/rust": strings.TrimSpace(string(root))},
				env:   []string{"RUSTC=/opt/rust/bin/rustc"},
				stand: func(s *scene) error { return errors.Join(err, cargoStand(s)) },
				files: map[string]rig.File{
					agentHome + "/c/Cargo.toml": {Data: "[package]\nname = \"c\"\nversion = \"0.1.0\"\n\n[dependencies]\nexitgate-note = \"1.0.0\"\n"},
					agentHome + "/c/src/lib.rs": {},
				},
				argv:  shell(`cp -r c w; cd w; /opt/rust/bin/cargo fetch; cat ~/.cargo/registry/src/*/exitgate-note-1.0.0/src/lib.rs`),
				judge: func(s *scene) error { return s.said("a note from the index") },
			}
			connect, open := m, m
			connect.name = "fetch by CONNECT"
			open.name, open.open, open.strict, open.wants = "no fence", true, false, []string{indexHost, cratesHost}
			return []mode{connect, open}
		},
	}
}

// cargoStand is the sparse index and the host of the crates, with one crate.
func cargoStand(s *scene) error {
	crate := tarball(
		file{"exitgate-note-1.0.0/Cargo.toml", "[package]\nname = \"exitgate-note\"\nversion = \"1.0.0\"\n"},
		file{"exitgate-note-1.0.0/src/lib.rs", "// a note from the index\n"},
	)
	entry := fmt.Sprintf(`{"name":"exitgate-note","vers":"1.0.0","deps":[],"cksum":"%x","features":{},"yanked":false}`+"\n", sha256.Sum256(crate))
	return errors.Join(
		s.serve(indexHost, rig.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			switch r.URL.Path {
			case "/config.json":
				reply(w, `{"dl":"https://static.crates.io/crates","api":"https://crates.io"}`)
			case "/ex/it/exitgate-note":
				reply(w, entry)
			default:
				http.NotFound(w, r)
			}
		})}),
		s.serve(cratesHost, rig.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.Write(crate) })}))
}
