package policy

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const diffBase = `version: 1
agents:
  - {name: a, uid: 1000, publish: [3000], limits: {connections: 10, requests_per_minute: 60}}
  - {name: b, uid: 1001, listen: "127.0.0.1:8081", socket: /run/b.sock, loopback: own}
credentials:
  - {name: key, from: "exec:/bin/token --secret x"}
  - {name: spare, from: "fd:3"}
routes:
  - {name: r, path: /r, upstream: "https://r.example", credential: key, allow: [GET /a, GET /b], expires: 2030-01-01T00:00:00Z, agents: [a]}
egress:
  - {host: pypi.org}
  - {host: h.example, ports: [443, 80], methods: [GET], addresses: [10.0.0.0/8], agents: [a]}
  - {host: "*.w.example"}
root:
  - {host: deb.example, ports: [80]}
root_loopback: [9100]
`

// TestDiff edits a policy in one place; what widens is marked +.
func TestDiff(t *testing.T) {
	for _, c := range []struct {
		old, new string
		want     []string
	}{
		{"# none", "# none", nil},
		{"egress:\n", "egress:\n  - {host: files.example}\n", []string{"+ egress files.example:443 added"}},
		{"  - {host: pypi.org}\n", "", []string{"- egress pypi.org:443 removed"}},
		{"egress:\n", "egress:\n  - {host: x.w.example, ports: []}\n", []string{"+ egress x.w.example (no port) added"}},
		{"ports: [443, 80]", "ports: [443, 8443]", []string{"+ egress h.example: port 8443 added", "- egress h.example: port 80 removed"}},
		{"methods: [GET]", "methods: [GET, PUT]", []string{"+ egress h.example: method PUT added"}},
		{"methods: [GET], ", "", []string{"- egress h.example: method GET removed"}},
		{"addresses: [10.0.0.0/8]", "addresses: [10.0.0.0/8, 192.168.0.0/16]", []string{"+ egress h.example: addresses 192.168.0.0/16 added"}},
		{"addresses: [10.0.0.0/8], agents: [a]", "addresses: [10.0.0.0/8]", []string{"+ egress h.example for agent b added"}},
		{"addresses: [10.0.0.0/8], agents: [a]", "addresses: [10.0.0.0/8], agents: [b]", []string{"+ egress h.example for agent b added", "- egress h.example for agent a removed"}},
		{"addresses: [10.0.0.0/8], agents: [a]", "addresses: [10.0.0.0/8], agents: [a], required: true", []string{"- egress h.example: required true instead of false"}},
		{"{host: pypi.org}", "{host: pypi.org, expires: 2030-01-01T00:00:00Z}", []string{"- egress pypi.org ends 2030-01-01T00:00:00Z instead of never"}},
		{"expires: 2030-01-01T00:00:00Z", "expires: 2031-01-01T00:00:00Z", []string{"+ route r ends 2031-01-01T00:00:00Z instead of 2030-01-01T00:00:00Z"}},
		{"expires: 2030-01-01T00:00:00Z", "expires: 2029-01-01T00:00:00Z", []string{"- route r ends 2029-01-01T00:00:00Z instead of 2030-01-01T00:00:00Z"}},
		{"expires: 2030-01-01T00:00:00Z, ", "", []string{"+ route r ends never instead of 2030-01-01T00:00:00Z"}},
		{"GET /a, GET /b", "GET /a, PUT /b", []string{"+ route r: pattern PUT /b added", "- route r: pattern GET /b removed"}},
		{"agents: [a]}\negress", "agents: [b]}\negress", []string{"+ route r for agent b added", "- route r for agent a removed"}},
		{"allow: [GET /a", "addresses: [10.0.0.0/8], allow: [GET /a", []string{"+ route r: addresses 10.0.0.0/8 added"}},
		{"--secret x\"}", "--secret x\", refresh: 60s}", []string{"- credential key: refresh 1m0s instead of 0s"}},
		{"credentials:\n", "credentials:\n  - {name: k, from: \"fd:4\"}\n", []string{"- credential k (fd:4) added"}},
		{"upstream: \"https://r.example\"", "upstream: \"https://s.example\"", []string{"+ route r: upstream https://s.example instead of https://r.example"}},
		{"path: /r", "path: /s", []string{"+ route r: path /s instead of /r"}},
		{"--secret x\"}", "--secret x\", kind: anthropic}", []string{"+ credential key: kind anthropic instead of header", "- credential key: header Authorization removed", "- credential key: format Bearer {} removed"}},
		{"credential: key, ", "credential: spare, ", []string{"+ route r: credential spare instead of key"}},
		{", socket: /run/b.sock", ", socket: /run/c.sock", []string{"+ agent b: socket /run/c.sock instead of /run/b.sock"}},
		{"credential: key, ", "", []string{"- route r: credential key removed"}},
		{"allow: [GET /a", "headers: [{add: \"x-team: a\"}], allow: [GET /a", []string{"+ route r: header X-Team: a added"}},
		{"allow: [GET /a", "env: [\"A={url}\"], allow: [GET /a", []string{"- route r: environment changed"}},
		{"exec:/bin/token --secret x", "file:/run/secrets/key", []string{"+ credential key: read from file:/run/secrets/key instead of exec:/bin/token ..."}},
		{"exec:/bin/token --secret x\"", "exec:/bin/token --secret x\", header: x-api-key", []string{"+ credential key: header X-Api-Key instead of Authorization", "+ credential key: format {} instead of Bearer {}"}},
		{"uid: 1000", "uid: 1002", []string{"+ agent a: uid 1002 instead of 1000"}},
		{"uid: 1000", "uid: 1000, gid: 5", []string{"+ agent a: gid 5 instead of the uid's own"}},
		{"uid: 1000", "uid: 1000, listen: \"127.0.0.1:9000\"", []string{"+ agent a: listener 127.0.0.1:9000 instead of 127.0.0.1:8080"}},
		{"uid: 1000", "uid: 1000, loopback: own", []string{"+ agent a: loopback own instead of deny"}},
		{", loopback: own", "", []string{"- agent b: loopback deny instead of own"}},
		{", socket: /run/b.sock", "", []string{"- agent b: socket /run/b.sock removed"}},
		{"publish: [3000]", "publish: [3001]", []string{"+ agent a: published port 3001 added", "- agent a: published port 3000 removed"}},
		{"connections: 10", "connections: 11", []string{"+ agent a: connections 11 instead of 10"}},
		{"connections: 10", "connections: 9", []string{"- agent a: connections 9 instead of 10"}},
		{"requests_per_minute: 60", "requests_per_minute: 0", []string{"+ agent a: requests per minute unlimited instead of 60"}},
		{"requests_per_minute: 60", "upload_bytes_per_hour: 5", []string{"+ agent a: requests per minute unlimited instead of 60", "- agent a: upload bytes per hour 5 instead of unlimited"}},
		{"agents:\n", "agents:\n  - {name: c, uid: 1003, listen: \"127.0.0.1:8083\"}\n", []string{"+ the first agent, which runs by default, is c instead of a", "+ agent c (uid 1003, listener 127.0.0.1:8083) added"}},
		{"  - {name: b, uid: 1001, listen: \"127.0.0.1:8081\", socket: /run/b.sock, loopback: own}\n", "", []string{"- agent b (uid 1001, listener 127.0.0.1:8081) removed"}},
		{"{host: deb.example, ports: [80]}", "{host: deb.example}", []string{"+ root deb.example: port 443 added", "- root deb.example: port 80 removed"}},
		{"root:\n", "root:\n  - {host: x.example}\n", []string{"+ root x.example:443 added"}},
		{"root_loopback: [9100]", "root_inbound: [9100]", []string{"+ root_inbound port 9100 added", "- root_loopback port 9100 removed"}},
		{"root_loopback", "dns: {servers: [10.0.0.53]}\nroot_loopback", []string{"+ dns servers 10.0.0.53:53 instead of those of the system"}},
	} {
		old, edited := mustLoad(t, diffBase), strings.Replace(diffBase, c.old, c.new, 1)
		if edited == diffBase && c.want != nil {
			t.Fatalf("%q is not in the policy", c.old)
		}
		var got []string
		for _, ch := range Diff(old, mustLoad(t, edited)) {
			got = append(got, string("-+"[btoi(ch.Widens)])+" "+ch.Text)
			if ch.At.File == "" {
				t.Errorf("%s: no place", ch.Text)
			}
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%q -> %q (-want +got):\n%s", c.old, c.new, diff)
		}
	}
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

func TestDiffNil(t *testing.T) {
	p := mustLoad(t, diffBase)
	if len(Diff(nil, nil)) != 0 || len(Diff(p, p)) != 0 {
		t.Error("changes where there are none")
	}
	for _, c := range Diff(nil, p) {
		if !c.Widens && !strings.HasPrefix(c.Text, "credential") {
			t.Errorf("from nothing: %s", c.Text)
		}
	}
	for _, c := range Diff(p, nil) {
		if c.Widens {
			t.Errorf("to nothing: %s", c.Text)
		}
	}
	if len(Diff(nil, p)) < 8 || len(Diff(p, nil)) < 8 {
		t.Error("entries are missing")
	}
}

// TestDiffShadows: removing a narrow grant that covered a wide one widens.
func TestDiffShadows(t *testing.T) {
	for _, c := range []struct{ old, new string }{
		{"egress: [{host: \"*.a.example\"}, {host: x.a.example, ports: [80]}]\n", "egress: [{host: \"*.a.example\"}]\n"},
		{"egress: [{host: \"*.a.example\"}, {host: \"*.x.a.example\", ports: [80]}]\n", "egress: [{host: \"*.a.example\"}]\n"},
		{"egress: [{host: \"*.a.example\"}, {host: x.a.example, ports: [80]}]\n", "egress: [{host: \"*.a.example\"}, {host: x.a.example, ports: [80], agents: []}]\n"},
		{"routes: [{name: r, path: /, upstream: \"https://r.example\", allow: [GET /**]}, {name: s, path: /s, upstream: \"https://s.example\"}]\n", "routes: [{name: r, path: /, upstream: \"https://r.example\", allow: [GET /**]}]\n"},
		{"routes: [{name: r, path: /, upstream: \"https://r.example\", allow: [GET /**]}, {name: s, path: /s, upstream: \"https://s.example\"}]\n", "routes: [{name: r, path: /, upstream: \"https://r.example\", allow: [GET /**]}, {name: s, path: /s, upstream: \"https://s.example\", agents: []}]\n"},
	} {
		changes := Diff(mustLoad(t, "version: 1\n"+c.old), mustLoad(t, "version: 1\n"+c.new))
		if len(changes) == 0 || !changes[0].Widens {
			t.Errorf("%s-> %s: %v", c.old, c.new, changes)
		}
	}
}

// TestDiffTellsTruth draws pairs of small policies that overlap in every way,
// and asks all of a small world of requests: where one is allowed newly, Diff
// must have said that something widens. The same pairs hold Resolvable to the
// union of what Decide allows.
func TestDiffTellsTruth(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	widened := 0
	for range 1000 {
		oldText, newText := randomPolicy(rng), randomPolicy(rng)
		if rng.IntN(2) == 0 { // a small change is the usual one
			lines := strings.SplitAfter(oldText, "\n")
			cut := 1 + rng.IntN(len(lines)-1)
			if strings.HasPrefix(lines[cut], "  - {") {
				newText = strings.Join(append(lines[:cut:cut], lines[cut+1:]...), "")
			}
		}
		old, err1 := Load("old", []byte(oldText))
		new, err2 := Load("new", []byte(newText))
		if err1 != nil || err2 != nil {
			continue
		}
		told := false
		for _, c := range Diff(old, new) {
			told = told || c.Widens
		}
		world(func(r Request) {
			if new.Decide(r).Allow && !old.Decide(r).Allow {
				widened++
				if !told {
					t.Fatalf("%+v is allowed newly and Diff does not say so: %v\nold:\n%s\nnew:\n%s", r, Diff(old, new), oldText, newText)
				}
			}
		})
		checkResolvable(t, new)
	}
	if widened < 1000 {
		t.Errorf("only %d requests widened: the world is too small", widened)
	}
}

func randomPolicy(rng *rand.Rand) string {
	var b strings.Builder
	b.WriteString("version: 1\nagents:\n  - {name: a, uid: 1000}\n")
	if rng.IntN(2) == 0 {
		b.WriteString("  - {name: b, uid: 1001, listen: \"127.0.0.1:8081\"}\n")
	}
	pick := func(of ...string) string { return of[rng.IntN(len(of))] }
	common := func() string {
		return pick("", "", ", agents: [a]", ", agents: []", ", agents: [b]") + pick("", "", ", expires: 2026-01-01T00:00:00Z")
	}
	b.WriteString("routes:\n")
	for _, path := range []string{"/", "/x", "/x/y"} {
		if rng.IntN(3) > 0 {
			fmt.Fprintf(&b, "  - {name: %s, path: %s, upstream: \"https://%s.w.example\", allow: [%s]%s}\n", pick("r1", "r2", "r3"), path, pick("p", "q"),
				pick("GET /**", "GET /y", "GET /z, GET /x/*", "\"GET /**?k=1\""), common())
		}
	}
	b.WriteString("egress:\n")
	for _, host := range []string{"\"*.w.example\"", "\"*.p.w.example\"", "p.w.example", "q.w.example", "o.p.w.example"} {
		if rng.IntN(2) > 0 {
			fmt.Fprintf(&b, "  - {host: %s, ports: [%s]%s%s}\n", host, pick("443", "443", "80", "80, 443", ""), pick("", ", methods: [GET]"), common())
		}
	}
	return b.String()
}

// world visits every request of a small universe.
func world(visit func(Request)) {
	for _, agent := range []string{"a", "b"} {
		for _, now := range []time.Time{before, after} {
			for _, path := range []string{"/", "/y", "/z", "/x", "/x/y", "/x/z", "/x/y/z", "/x/x/q", "/w"} {
				for _, query := range []string{"", "k=1"} {
					visit(Request{Agent: agent, Method: "GET", Path: path, Query: query, Now: now})
				}
			}
			for _, host := range []string{"w.example", "p.w.example", "q.w.example", "o.p.w.example", "z.p.w.example", "z.w.example"} {
				for _, port := range []uint16{80, 443} {
					visit(Request{Agent: agent, Road: RoadConnect, Host: host, Port: port, Now: now})
					visit(Request{Agent: agent, Road: RoadForward, Method: "GET", Host: host, Port: port, Now: now})
				}
			}
		}
	}
}

// checkResolvable: what may be resolved is what some agent may ask for, or a
// route's upstream; and every exact name of it is in Names.
func checkResolvable(t *testing.T, p *Policy) {
	t.Helper()
	type ask struct {
		host string
		port uint16
		now  time.Time
	}
	want := map[ask]bool{}
	world(func(r Request) {
		if p.Agent(r.Agent) == nil {
			return
		}
		d := p.Decide(r)
		if r.Road == RoadConnect {
			want[ask{r.Host, r.Port, r.Now}] = want[ask{r.Host, r.Port, r.Now}] || d.Allow
		}
	})
	for k := range want {
		for i := range p.Routes {
			r := &p.Routes[i]
			if r.Upstream.Host == k.host && r.Upstream.Port == k.port && (r.Agents == nil || len(r.Agents) > 0) && !expired(r.Expires, k.now) {
				want[k] = true
			}
		}
	}
	for k, allowed := range want {
		g, ok := p.Resolvable(k.host, k.port, k.now)
		if ok != allowed {
			t.Fatalf("%v: resolvable %v (%s), allowed %v\n%s", k, ok, g.Rule, allowed, p.Canonical())
		}
	}
}

// TestBodyBytes: the limit is read, is part of the normal form and of what a change widens.
func TestBodyBytes(t *testing.T) {
	of := func(limits string) *Policy {
		p, err := Load("policy.yaml", []byte("version: 1\nagents: [{name: a, limits: {"+limits+"}}]\n"))
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	none, some, more := of("connections: 5"), of("connections: 5, body_bytes: 1000"), of("connections: 5, body_bytes: 2000")
	if none.Agents[0].Limits.BodyBytes != 0 || some.Agents[0].Limits.BodyBytes != 1000 {
		t.Errorf("read: %+v, %+v", none.Agents[0].Limits, some.Agents[0].Limits)
	}
	if none.Digest() == some.Digest() || some.Digest() == more.Digest() || of("connections: 5, body_bytes: 0").Digest() != none.Digest() {
		t.Error("the digest does not tell them apart, or no limit from none")
	}
	for name, pair := range map[string][2]*Policy{"more": {some, more}, "none": {some, none}} {
		if text := fmt.Sprint(Diff(pair[0], pair[1])); !strings.Contains(text, "body bytes") {
			t.Errorf("to %s: the diff says %s", name, text)
		}
	}
}
