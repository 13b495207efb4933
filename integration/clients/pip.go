package main

import (
	"archive/zip"
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"

	"exitgate/integration/rig"
)

const (
	pypiHost  = "pypi.org"
	filesHost = "files.pythonhosted.org"
	corpHost  = "pypi.corp.example"
)

const pipPrivate = `version: 1
credentials:
  - name: index
    from: file:/run/secrets/index
    header: Authorization
    format: "basic:reader"
routes:
  - name: index
    path: /pypi
    upstream: https://pypi.corp.example
    credential: index
    allow: [GET /simple/**, GET /files/**]
    env: ["PIP_INDEX_URL={url}/simple"]
`

func pip() client {
	return client{
		name: "pip", title: "pip", program: "/usr/bin/pip3 --version", presets: "`pypi`",
		needs: "nothing; for an index that wants a password a route with it, and `PIP_INDEX_URL={url}/simple` in its env",
		modes: func(map[string]string) []mode {
			m := mode{policy: "version: 1\npresets: [pypi]\n", strict: true, stand: pipStand,
				argv: shell(`/usr/bin/python3 -m pip install --disable-pip-version-check --no-cache-dir -q --target site exitgate-note; /usr/bin/python3 -c 'import sys; sys.path.insert(0, "site"); import exitgate_note'`)}
			m.judge = func(s *scene) error { return s.said("a note from the index") }
			connect, route, open := m, m, m
			connect.name = "install by CONNECT"
			route.name, route.policy, route.secrets = "install by a route with a password", pipPrivate, map[string]string{"index": plainToken}
			route.judge = func(s *scene) error {
				want := "Basic " + base64.StdEncoding.EncodeToString([]byte("reader:"+plainToken))
				return errors.Join(s.said("a note from the index"), s.sent(corpHost, "Authorization", want))
			}
			open.name, open.open, open.strict, open.wants = "no fence", true, false, []string{pypiHost, filesHost}
			return []mode{connect, route, open}
		},
	}
}

const wheelName = "exitgate_note-1.0-py3-none-any.whl"

// zipped is a zip archive of files.
func zipped(files ...file) []byte {
	var b bytes.Buffer
	w := zip.NewWriter(&b)
	for _, f := range files {
		if m, err := w.Create(f.name); err == nil {
			io.WriteString(m, f.data)
		}
	}
	w.Close()
	return b.Bytes()
}

// pipStand is the public index, whose files lie on another host, and a private one, which has its own.
func pipStand(s *scene) error {
	const info = "exitgate_note-1.0.dist-info/"
	wheel := zipped(
		file{"exitgate_note.py", "print('a note from the index')\n"},
		file{info + "METADATA", "Metadata-Version: 2.1\nName: exitgate-note\nVersion: 1.0\n"},
		file{info + "WHEEL", "Wheel-Version: 1.0\nGenerator: rig\nRoot-Is-Purelib: true\nTag: py3-none-any\n"},
		file{info + "RECORD", "exitgate_note.py,,\n" + info + "METADATA,,\n" + info + "WHEEL,,\n" + info + "RECORD,,\n"},
	)
	index := func(files string) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			switch r.URL.Path {
			case "/simple/exitgate-note/":
				w.Header().Set("Content-Type", "text/html")
				fmt.Fprintf(w, `<!DOCTYPE html><html><body><a href="%s/files/%s">%s</a></body></html>`, files, wheelName, wheelName)
			case "/files/" + wheelName:
				w.Write(wheel)
			default:
				http.NotFound(w, r)
			}
		})
	}
	return errors.Join(s.serve(pypiHost, rig.Server{Handler: index("https://" + filesHost)}),
		s.serve(filesHost, rig.Server{Handler: index("")}), s.serve(corpHost, rig.Server{Handler: index("../..")}))
}
