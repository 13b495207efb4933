package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/cgi"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"exitgate/integration/rig"
)

const (
	githubHost  = "github.com"
	githubToken = "ghp_FAKEclientsFAKEclientsFAKEclients0123"
	githubBasic = "Basic eC1hY2Nlc3MtdG9rZW46Z2hwX0ZBS0VjbGllbnRzRkFLRWNsaWVudHNGQUtFY2xpZW50czAxMjM=" // x-access-token and the token
)

// githubPrivate is the preset's advice for private repositories; here it may push as well.
const githubPrivate = `version: 1
presets: [github]
credentials:
  - name: github
    from: file:/run/secrets/github
    header: Authorization
    format: "basic:x-access-token"
routes:
  - name: github
    path: /github
    upstream: https://github.com
    credential: github
    allow:
      - GET /**/info/refs
      - POST /**/git-upload-pack
      - POST /**/git-receive-pack
    env:
      - GIT_CONFIG_COUNT=1
      - GIT_CONFIG_KEY_0=url.{url}/.insteadOf
      - GIT_CONFIG_VALUE_0=https://github.com/
`

const cloneScript = `git clone -q https://github.com/acme/demo.git; grep "from the repository" demo/README`

// A change of 3 MB that does not compress: git sends it in chunks.
const pushScript = cloneScript + `; cd demo; git config user.email a@example.com; git config user.name a; head -c 3000000 /dev/urandom >big; git add big; git commit -qm big; `

func git() client {
	return client{
		name: "git", title: "git", program: "git --version", presets: "`github`",
		needs: "nothing for public repositories; for private ones a route `github` with a credential of `format: \"basic:x-access-token\"`. A push is refused",
		modes: func(map[string]string) []mode {
			m := mode{policy: "version: 1\npresets: [github]\n", strict: true, judge: func(*scene) error { return nil }}
			m.stand = func(s *scene) error { return s.serveGit("") }
			private, clone, push, refused, tunnel, open := m, m, m, m, m, m
			clone.name, clone.argv = "clone", shell(cloneScript)
			refused.name, refused.argv, refused.denied = "push, which the preset refuses", shell(pushScript+`git push -q && exit 1; echo refused`), []string{"GET /github/acme/demo.git/info/refs"}
			private.policy, private.secrets = githubPrivate, map[string]string{"github": githubToken}
			private.stand = func(s *scene) error { return s.serveGit(githubBasic) }
			private.judge = func(s *scene) error { return s.sent(githubHost, "Authorization", githubBasic) }
			private.name, private.argv = "clone, private", shell(cloneScript)
			push = private
			push.name, push.argv = "push of 3 MB, private", shell(pushScript+`git push -q; git ls-remote origin`)
			push.judge = func(s *scene) error {
				if !strings.Contains(fmt.Sprint(s.upstreams[githubHost].Seen()), "git-receive-pack") {
					return errors.New("no push arrived")
				}
				return s.sent(githubHost, "Authorization", githubBasic)
			}
			tunnel.name, tunnel.policy, tunnel.argv = "clone by CONNECT", "version: 1\negress:\n  - host: github.com\n", shell(cloneScript)
			open.name, open.open, open.strict, open.wants, open.argv = "no fence", true, false, []string{githubHost}, shell(cloneScript)
			return []mode{clone, private, push, refused, tunnel, open}
		},
	}
}

// serveGit stands for github.com with one repository, which wants this Authorization.
func (s *scene) serveGit(authorization string) error {
	root, err := os.MkdirTemp("", "git")
	if err != nil {
		return err
	}
	s.cleanup = append(s.cleanup, func() error { return os.RemoveAll(root) })
	script := `git init -q --bare acme/demo.git; cd acme/demo.git; git config http.receivepack true
blob=$(echo from the repository | git hash-object -w --stdin); tree=$(printf '100644 blob %s\tREADME\n' $blob | git mktree)
git update-ref refs/heads/main $(git -c user.name=a -c user.email=a@example.com commit-tree -m first $tree); git symbolic-ref HEAD refs/heads/main`
	cmd := exec.Command("/bin/sh", "-ec", script)
	cmd.Dir = root
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("make a repository: %w: %s", err, out)
	}
	libexec, err := exec.Command("git", "--exec-path").Output()
	if err != nil {
		return err
	}
	backend := &cgi.Handler{
		Path: filepath.Join(strings.TrimSpace(string(libexec)), "git-http-backend"),
		Env:  []string{"GIT_PROJECT_ROOT=" + root, "GIT_HTTP_EXPORT_ALL=1", "REMOTE_USER=agent"},
	}
	return s.serve(githubHost, rig.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != authorization {
			w.Header().Set("WWW-Authenticate", "Basic")
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		// CGI knows no chunks.
		body, _ := io.ReadAll(r.Body)
		r.Body, r.ContentLength, r.TransferEncoding = io.NopCloser(bytes.NewReader(body)), int64(len(body)), nil
		r.Header.Set("Content-Length", strconv.Itoa(len(body)))
		backend.ServeHTTP(w, r)
	})})
}
