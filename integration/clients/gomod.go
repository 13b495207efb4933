package main

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"strings"

	"exitgate/integration/rig"

	"golang.org/x/mod/sumdb"
	"golang.org/x/mod/sumdb/dirhash"
	"golang.org/x/mod/sumdb/note"
)

const (
	goHost  = "proxy.golang.org"
	sumHost = "sum.golang.org"
)

const goPrivate = `version: 1
credentials:
  - name: modules
    from: file:/run/secrets/modules
routes:
  - name: modules
    path: /modules
    upstream: https://proxy.golang.org
    credential: modules
    allow: [GET /**]
    env: ["GOPROXY={url}", "GONOSUMDB=*"]
`

func goModules() client {
	return client{
		name: "go", title: "go", program: "go version", presets: "`go`",
		needs: "nothing; for a proxy that wants a token a route with it, and in its env `GOPROXY={url}` and GONOSUMDB for what sum.golang.org does not know",
		modes: func(map[string]string) []mode {
			key, check, err := note.GenerateKey(rand.Reader, sumHost)
			root, err2 := exec.Command("go", "env", "GOROOT").Output()
			m := mode{
				policy: "version: 1\npresets: [go]\n", strict: true, place: map[string]string{"/opt/go": strings.TrimSpace(string(root))},
				env:   []string{"GOROOT=/opt/go", "GOTOOLCHAIN=local", "GOFLAGS=-mod=mod", "GOSUMDB=" + check, "GOPROXY=https://" + goHost},
				stand: func(s *scene) error { return errors.Join(err, err2, goStand(s, key)) },
				files: map[string]rig.File{agentHome + "/m/go.mod": {Data: "module example.org/m\n\ngo 1.20\n", UID: 1000, GID: 1000}},
				argv:  shell(`cp -r m w; cd w; /opt/go/bin/go get example.org/note@v1.0.0; cat go.mod go.sum; cat ~/go/pkg/mod/example.org/note@v1.0.0/note.go`),
			}
			m.judge = func(s *scene) error { return s.said("a note from the mirror") }
			connect, route, open := m, m, m
			connect.name = "get by CONNECT, with the checksum database"
			connect.judge = func(s *scene) error {
				return errors.Join(s.said("a note from the mirror"), s.sent(sumHost, "Authorization", ""))
			}
			route.name, route.policy, route.secrets = "get by a route with a token", goPrivate, map[string]string{"modules": plainToken}
			route.env = route.env[:3]
			route.judge = func(s *scene) error {
				return errors.Join(s.said("a note from the mirror"), s.sent(goHost, "Authorization", "Bearer "+plainToken))
			}
			open.name, open.open, open.strict, open.wants = "no fence", true, false, []string{goHost, sumHost}
			return []mode{connect, route, open}
		},
	}
}

// goStand is a module mirror and a checksum database with one module.
func goStand(s *scene, key string) error {
	const dir, mod, code = "example.org/note@v1.0.0/", "module example.org/note\n", "package note // a note from the mirror\n"
	sums := func(string, string) ([]byte, error) { return goSums(dir, mod, code) }
	mirror := map[string]string{
		"/example.org/note/@v/list":        "v1.0.0\n",
		"/example.org/note/@v/v1.0.0.info": `{"Version":"v1.0.0","Time":"2020-01-01T00:00:00Z"}`,
		"/example.org/note/@v/v1.0.0.mod":  mod,
		"/example.org/note/@v/v1.0.0.zip":  string(zipped(file{dir + "go.mod", mod}, file{dir + "note.go", code})),
	}
	return errors.Join(
		s.serve(sumHost, rig.Server{Handler: sumdb.NewServer(sumdb.NewTestServer(key, sums))}),
		s.serve(goHost, rig.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if text, ok := mirror[r.URL.Path]; ok {
				io.WriteString(w, text)
				return
			}
			http.NotFound(w, r)
		})}))
}

// goSums is the module's two lines of go.sum.
func goSums(dir, mod, code string) ([]byte, error) {
	hash := func(files map[string]string) (string, error) {
		var names []string
		for n := range files {
			names = append(names, n)
		}
		return dirhash.Hash1(names, func(n string) (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(files[n])), nil })
	}
	all, err1 := hash(map[string]string{dir + "go.mod": mod, dir + "note.go": code})
	own, err2 := hash(map[string]string{"go.mod": mod})
	return fmt.Appendf(nil, "example.org/note v1.0.0 %s\nexample.org/note v1.0.0/go.mod %s\n", all, own), errors.Join(err1, err2)
}
