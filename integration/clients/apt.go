package main

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"

	"exitgate/integration/rig"
)

const (
	debHost      = "deb.debian.org"
	securityHost = "security.debian.org"
)

func apt() client {
	return client{
		name: "apt", title: "apt", program: "apt-get --version", presets: "`debian`",
		needs: "to be run by root, with `APT::Sandbox::User \"root\";` in its configuration: by default it downloads as the user `_apt`, which the fence refuses like any other",
		modes: func(map[string]string) []mode {
			m := mode{
				policy: "version: 1\npresets: [debian]\n", root: true, stand: aptStand,
				files: map[string]rig.File{
					"/var/cache/apt/archives/partial/.keep": {},
					"/var/lib/dpkg/status":                  {},
					"/var/lib/dpkg/info/format":             {Data: "1\n"},
					"/var/lib/dpkg/updates/.keep":           {},
					"/etc/apt/sources.list":                 {Data: "deb [trusted=yes] http://deb.debian.org/debian stable main\ndeb [trusted=yes] https://security.debian.org/debian-security stable main\n"},
					"/etc/apt/apt.conf.d/10exitgate":        {Data: "APT::Sandbox::User \"root\";\n"},
				},
				argv: shell(`apt-get -q update 2>&1; apt-get -q install -y exitgate-note 2>&1; cat /var/lib/note`),
			}
			m.judge = func(s *scene) error { return s.said("a note from the archive") }
			update, sandbox := m, m
			update.name = "update and install, as root"
			sandbox.name = "as root by its user _apt, which is refused"
			sandbox.files = map[string]rig.File{"/etc/apt/sources.list": m.files["/etc/apt/sources.list"], "/var/lib/dpkg/status": {}}
			sandbox.argv = shell(`apt-get -q -o Acquire::Retries=0 update 2>&1`)
			sandbox.denied = []string{debHost, securityHost}
			sandbox.judge = func(s *scene) error { return s.said("Temporary failure resolving") }
			return []mode{update, sandbox}
		},
	}
}

// ar is an archive in the format of .deb files.
func ar(files ...file) []byte {
	var b bytes.Buffer
	b.WriteString("!<arch>\n")
	for _, f := range files {
		fmt.Fprintf(&b, "%-16s%-12d%-6d%-6d%-8s%-10d`\n%s", f.name, 0, 0, 0, "100644", len(f.data), f.data)
		if len(f.data)%2 == 1 {
			b.WriteByte('\n')
		}
	}
	return b.Bytes()
}

// aptStand is an archive with one package, and the one of security updates with none.
func aptStand(s *scene) error {
	const fields = "Package: exitgate-note\nVersion: 1.0\nArchitecture: all\nMaintainer: A <a@example.com>\nDescription: a note\n"
	deb := ar(file{"debian-binary", "2.0\n"}, file{"control.tar.gz", string(tarball(file{"./control", fields}))},
		file{"data.tar.gz", string(tarball(file{"./var/lib/note", "a note from the archive\n"}))})
	packages := fmt.Sprintf("%sFilename: pool/exitgate-note.deb\nSize: %d\nSHA256: %x\n", fields, len(deb), sha256.Sum256(deb))
	archive := func(packages string) http.Handler {
		release := fmt.Sprintf("Origin: rig\nSuite: stable\nCodename: stable\nArchitectures: all amd64 arm64\nComponents: main\nDate: Thu, 01 Jan 2026 00:00:00 UTC\nSHA256:\n %x %d main/binary-all/Packages\n %x %d main/binary-amd64/Packages\n %x %d main/binary-arm64/Packages\n",
			sha256.Sum256([]byte(packages)), len(packages), sha256.Sum256(nil), 0, sha256.Sum256(nil), 0)
		mux := http.NewServeMux()
		mux.HandleFunc("/{archive}/dists/stable/Release", func(w http.ResponseWriter, r *http.Request) { w.Write([]byte(release)) })
		mux.HandleFunc("/{archive}/dists/stable/main/{arch}/Packages", func(w http.ResponseWriter, r *http.Request) {
			if r.PathValue("arch") == "binary-all" {
				w.Write([]byte(packages))
			}
		})
		mux.HandleFunc("/{archive}/pool/exitgate-note.deb", func(w http.ResponseWriter, r *http.Request) { w.Write(deb) })
		return mux
	}
	return errors.Join(s.serve(debHost, rig.Server{Plain: true, Handler: archive(packages)}), s.serve(securityHost, rig.Server{Handler: archive("")}))
}
