package integration

import (
	"encoding/json"
	"net/http"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"exitgate/integration/rig"
)

// helpers is a policy of two credentials from programs and one from a file.
const helpers = `version: 1
credentials:
  - {name: timed, from: "exec:/etc/timed", refresh: 16s}
  - {name: asked, from: "exec:/etc/asked"}
  - {name: api, from: "file:/run/secrets/api"}
routes:
  - {name: timed, path: /timed, upstream: "https://api.example.com/timed", credential: timed, allow: [GET /**]}
  - {name: asked, path: /asked, upstream: "https://api.example.com/asked", credential: asked, allow: [GET /**]}
  - {name: file, path: /file, upstream: "https://api.example.com/file", credential: api, allow: [GET /**]}
`

// helper prints its name and how often it ran, which it notes with the time, and says the same to standard error.
func helper(name string) rig.File {
	return rig.File{Mode: 0o700, Data: "#!/bin/sh\ndate +%s%N >> /run/" + name + "\nv=FAKE-" + name + "-0123456789-$(wc -l < /run/" + name + ")\necho $v >&2\necho $v\n"}
}

// runs are the times at which a helper ran.
func (g *gate) runs(name string) (at []time.Time) {
	for _, line := range strings.Fields(string(g.read("/run/" + name))) {
		n, err := strconv.ParseInt(line, 10, 64)
		if err != nil {
			g.t.Fatal(err)
		}
		at = append(at, time.Unix(0, n))
	}
	return at
}

// credential is what status says of one.
func (g *gate) credential(name string) (state, why string) {
	var s struct {
		Credentials []struct{ Name, State, Why string }
	}
	if err := json.Unmarshal([]byte(g.exitgate("status", "--json").Stdout), &s); err != nil {
		g.t.Fatal(err)
	}
	for _, c := range s.Credentials {
		if c.Name == name {
			return c.State, c.Why
		}
	}
	return "", ""
}

// TestHelpers: a program is run again at three quarters of its time and on a 401, once for however many of those; what has no value is
// refused and told of, and nothing goes out without it.
func TestHelpers(t *testing.T) {
	t.Parallel()
	w := world(t)
	api := upstream(t, w, "api.example.com", rig.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/asked") && r.Header.Get("Authorization") != "Bearer FAKE-asked-0123456789-2" {
			w.WriteHeader(http.StatusUnauthorized)
		}
	})})
	g := up(t, w, helpers, func(c *rig.Config) {
		c.Files["/etc/timed"], c.Files["/etc/asked"] = helper("timed"), helper("asked")
	})
	ask := func(route string) int { return g.do(get("/" + route + "/x")).Status }
	if got := ask("asked"); got != 401 {
		t.Errorf("the first value: status %d, want the upstream's 401", got)
	}
	g.storm(ask)
	g.atThreeQuarters(api, ask)
	g.withoutValue(api, ask)
	if said := g.Stderr.String(); strings.Contains(said, "0123456789") {
		t.Error("what a helper said is in the log")
	}
}

// storm has 401s come until the helper's second value is in use. The helper ran once for all of them.
func (g *gate) storm(ask func(string) int) {
	g.t.Helper()
	refused := 0
	eventually(g.t, "a 401 brings another value", func() bool {
		code := ask("asked")
		if code == 401 {
			refused++
		}
		return code == 200
	})
	if n := len(g.runs("asked")); n != 2 {
		g.t.Errorf("the helper ran %d times for %d refusals, want once at start and once more", n, refused)
	}
}

// atThreeQuarters waits for the second run of the one with a time. No request is refused in between.
func (g *gate) atThreeQuarters(api *rig.Upstream, ask func(string) int) {
	g.t.Helper()
	eventually(g.t, "the other helper runs again", func() bool {
		if code := ask("timed"); code != 200 {
			g.t.Errorf("in the meantime: status %d", code)
		}
		seen := api.Seen()
		return seen[len(seen)-1].Header.Get("Authorization") == "Bearer FAKE-timed-0123456789-2"
	})
	at := g.runs("timed")
	if len(at) < 2 {
		g.t.Fatalf("it ran %d times", len(at))
	}
	if after := at[1].Sub(at[0]); after < 11*time.Second || after >= 16*time.Second {
		g.t.Errorf("it ran again after %s of 16 s", after)
	}
}

// withoutValue takes a file away, and spoils a helper.
func (g *gate) withoutValue(api *rig.Upstream, ask func(string) int) {
	g.t.Helper()
	if state, _ := g.credential("api"); state != "ok" || ask("file") != 200 {
		g.t.Errorf("control: the file is %s", state)
	}
	if err := os.Remove(g.Path("/run/secrets/api")); err != nil {
		g.t.Fatal(err)
	}
	eventually(g.t, "a route without its file is refused", func() bool { return ask("file") == 503 })
	before := len(api.Seen())
	r := g.do(get("/file/x"))
	if told := refusal(g.t, r); !strings.Contains(told, "/run/secrets/api does not exist") || len(api.Seen()) != before {
		g.t.Errorf("%s %q, %d requests arrived", r, told, len(api.Seen())-before)
	}
	if state, why := g.credential("api"); state != "broken" || !strings.Contains(why, "does not exist") || g.status().State != "degraded" {
		g.t.Errorf("status of the file: %s, %s", state, why)
	}
	if got := ask("timed"); got != 200 {
		g.t.Errorf("a route with another credential: status %d", got)
	}
	if err := g.Write("/run/secrets/api", rig.File{Data: secret, Mode: 0o400}); err != nil {
		g.t.Fatal(err)
	}
	eventually(g.t, "put back, it is used", func() bool { return ask("file") == 200 })
	for _, s := range api.Seen() {
		if !strings.HasPrefix(s.Header.Get("Authorization"), "Bearer ") {
			g.t.Errorf("%s arrived without a credential", s.URI)
		}
	}
}

// TestWarningsAtStart: what a policy may say but rarely means stands in the log from the start, a credential from the environment
// first of all, and what is new in the log of a reload. `log.level` lets warnings through, unless it is error.
func TestWarningsAtStart(t *testing.T) {
	t.Parallel()
	policy := strings.Replace(basic, "file:/run/secrets/api", "env:API_SECRET", 1)
	warned := regexp.MustCompile(`(?m)^{.*"level":"WARN","msg":"[^"]*:3:5: credential api is read from the variable API_SECRET: .*; use file:, fd: or exec:"}$`)
	for level, want := range map[string]struct{ warnings, notes bool }{"info": {true, true}, "warn": {true, false}, "error": {false, false}} {
		t.Run(level, func(t *testing.T) {
			t.Parallel()
			g := up(t, world(t), policy, env("API_SECRET="+secret, "EXITGATE_LOG_LEVEL="+level))
			if got := warned.FindAllString(g.Stderr.String(), -1); (len(got) == 1) != want.warnings {
				t.Errorf("of the credential: %q, in\n%s", got, g.Stderr.String())
			}
			if out := g.reload(policy + "  - host: new.example.com\n  - host: gone.example.com\n    expires: 2020-01-01T00:00:00Z\n"); out.Code != 0 {
				t.Fatalf("reload: %s", out.Stderr)
			}
			if out := g.reload("nonsense: 1\n"); out.Code != 1 {
				t.Fatalf("control: a bad reload: %d", out.Code)
			}
			for what, there := range map[string]bool{
				`"level":"WARN","msg":"/etc/exitgate/policy.yaml:[0-9]+:5: egress gone.example.com expired at `: want.warnings,
				`"level":"WARN","msg":"reload .*the policy in force stays`:                                      want.warnings,
				`"level":"INFO","msg":"reload: . egress new.example.com`:                                        want.notes,
			} {
				said := func() bool { return regexp.MustCompile(what).MatchString(g.Stderr.String()) }
				if there && !rig.Eventually(patience, said) || !there && said() {
					t.Errorf("%s: want %v, in\n%s", what, there, g.Stderr)
				}
			}
			log := g.Stderr.String()
			if n := len(warned.FindAllString(log, -1)); n > 1 {
				t.Errorf("%d times, by a reload that did not bring it", n)
			}
		})
	}
}
