package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha512"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"strings"

	"exitgate/integration/rig"
)

const npmHost = "registry.npmjs.org"

const npmPrivate = `version: 1
credentials:
  - name: npm
    from: file:/run/secrets/npm
routes:
  - name: npm
    path: /npm
    upstream: https://registry.npmjs.org
    credential: npm
    allow: [GET /**, POST /-/npm/v1/security/**]
    env: ["npm_config_registry={url}/"]
`

// node is the one of the npm registry: Debian's may be too old for what is newest.
var node = pkg{name: "node-linux-{arch}", version: "22.23.3", as: "node"}

func npm() client {
	return client{
		name: "npm", title: "npm", presets: "`npm`",
		packages: []pkg{node, {name: "npm", version: "12.2.0", as: "npm"}},
		needs:    "nothing; for a registry that wants a token a route with it, and `npm_config_registry={url}/` in its env",
		modes: func(files map[string]string) []mode {
			m := mode{
				policy: "version: 1\npresets: [npm]\n", stand: npmStand, strict: true,
				place: map[string]string{"/opt/node": files["node"], "/opt/npm": files["npm"]},
				argv:  shell(`/opt/node/bin/node /opt/npm/bin/npm-cli.js install --no-fund exitgate-note; cat node_modules/exitgate-note/note`),
			}
			m.judge = func(s *scene) error { return s.said("a note from the registry") }
			connect, route, open := m, m, m
			connect.name = "install by CONNECT"
			route.name, route.policy, route.secrets = "install by a route with a token", npmPrivate, map[string]string{"npm": plainToken}
			route.judge = func(s *scene) error {
				if err := s.said("a note from the registry"); err != nil {
					return err
				}
				return s.sent(npmHost, "Authorization", "Bearer "+plainToken)
			}
			open.name, open.open, open.strict, open.wants = "no fence", true, false, []string{npmHost}
			return []mode{connect, route, open}
		},
	}
}

// said checks the program's output.
func (s *scene) said(text string) error {
	if !strings.Contains(s.out, text) {
		return fmt.Errorf("it did not say %q: %s", text, tail(s.out, 1000))
	}
	return nil
}

// file is a member of an archive.
type file struct{ name, data string }

// tarball is a gzip-compressed archive of files.
func tarball(files ...file) []byte {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	w := tar.NewWriter(z)
	for _, f := range files {
		w.WriteHeader(&tar.Header{Name: f.name, Mode: 0o644, Size: int64(len(f.data)), Typeflag: tar.TypeReg})
		io.WriteString(w, f.data)
	}
	w.Close()
	z.Close()
	return b.Bytes()
}

// npmStand is a registry with one package.
func npmStand(s *scene) error {
	archive := tarball(file{"package/package.json", `{"name":"exitgate-note","version":"1.0.0"}`}, file{"package/note", "a note from the registry\n"})
	sum := sha512.Sum512(archive)
	document := fmt.Sprintf(`{"name":"exitgate-note","dist-tags":{"latest":"1.0.0"},"versions":{"1.0.0":{"name":"exitgate-note","version":"1.0.0","dist":{"tarball":"https://registry.npmjs.org/exitgate-note/-/exitgate-note-1.0.0.tgz","integrity":"sha512-%s"}}}}`,
		base64.StdEncoding.EncodeToString(sum[:]))
	return s.serve(npmHost, rig.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/exitgate-note":
			reply(w, document)
		case "/exitgate-note/-/exitgate-note-1.0.0.tgz":
			w.Header().Set("Content-Type", "application/octet-stream")
			w.Write(archive)
		case "/-/npm/v1/security/advisories/bulk":
			reply(w, "{}")
		default:
			http.NotFound(w, r)
		}
	})})
}
