package policy

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const decidePolicy = `version: 1
agents:
  - {name: claude, uid: 1000, listen: "127.0.0.1:8080"}
  - {name: other, uid: 1001, listen: "[::1]:8081", loopback: own}
credentials:
  - {name: key, from: "file:/run/secrets/key"}
routes:
  - name: anthropic
    path: /
    upstream: https://api.anthropic.com
    credential: key
    allow:
      - POST /v1/messages
      - GET /v1/models
      - GET /v1/models/*
      - HEAD /
    agents: [claude]
  - name: github
    path: /github
    upstream: https://github.com
    allow:
      - GET /**/info/refs?service=git-upload-pack
      - POST /**/git-upload-pack
  - name: old
    path: /github/old
    upstream: https://old.example
    allow: [GET /**]
    expires: 2026-01-01T00:00:00Z
egress:
  - host: registry.npmjs.org
  - host: deb.example
    ports: [80, 443]
    methods: [GET, HEAD]
  - host: soon.example
    expires: 2026-01-01T00:00:00Z
  - host: "*.soon.example"
  - host: x.soon.example
    expires: 2025-12-31T23:59:59Z
  - host: mine.example
    agents: [other]
  - host: "*.mine.example"
    agents: [claude]
  - host: nobody.example
    agents: []
  - host: closed.example
    ports: []
`

var (
	before = time.Date(2025, 12, 31, 23, 59, 59, 999, time.UTC)
	after  = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
)

// TestDecide asserts the verdict and the whole message, which holds the reason,
// the place and the mend.
func TestDecide(t *testing.T) {
	p := mustLoad(t, decidePolicy)
	for _, c := range []struct {
		r       Request
		rule    string
		message string // of a denial; of what is allowed, the reason and place
	}{
		// routes
		{Request{Method: "POST", Path: "/v1/messages", Query: "beta=true"}, "+route/anthropic", "allowed by POST /v1/messages (policy.yaml:13)"},
		{Request{Method: "GET", Path: "/v1/models/claude"}, "+route/anthropic", "allowed by GET /v1/models/* (policy.yaml:15)"},
		{Request{Method: "HEAD", Path: "/"}, "+route/anthropic", "allowed by HEAD / (policy.yaml:16)"},
		{Request{Method: "DELETE", Path: "/v1/files"}, "route/anthropic", "exitgate: DELETE /v1/files is not in route \"anthropic\" (policy.yaml:8); to allow it add `- DELETE /v1/files`"},
		{Request{Method: "GET", Path: "/v1/messages"}, "route/anthropic", "exitgate: GET /v1/messages is not in route \"anthropic\" (policy.yaml:8); to allow it add `- GET /v1/messages`"},
		{Request{Method: "get", Path: "/v1/models"}, "route/anthropic", "exitgate: get /v1/models is not in route \"anthropic\" (policy.yaml:8)"},
		{Request{Method: "TRACE", Path: "/v1/models"}, "route/anthropic", "exitgate: TRACE /v1/models is not in route \"anthropic\" (policy.yaml:8)"},
		{Request{Method: "GET", Path: "/a*b"}, "route/anthropic", "exitgate: GET /a*b is not in route \"anthropic\" (policy.yaml:8); to allow it add `- GET /a%2Ab`"},
		{Request{Method: "GET", Path: "/v1/../v1/models"}, "default", "exitgate: path /v1/../v1/models has a dot segment (policy.yaml); write it plainly"},
		{Request{Method: "GET", Path: "/v1%2fmodels"}, "default", "exitgate: path /v1%2fmodels has an encoded slash (policy.yaml); write it plainly"},
		{Request{Method: "GET", Path: "/a\x1b[2Jb"}, "default", "exitgate: path /a%1B[2Jb has a raw space, control or non-ASCII byte (policy.yaml); write it plainly"},
		{Request{Method: "GET", Path: "/v1/models", Query: "a=1\nb"}, "default", "exitgate: the query of /v1/models has a raw space, # or control byte (policy.yaml); write it escaped"},
		{Request{Method: "GET", Path: "/v1/models", Query: "a=1 b"}, "default", "exitgate: the query of /v1/models has a raw space, # or control byte (policy.yaml); write it escaped"},
		{Request{Method: "G\x9bT", Path: "/v1/models"}, "route/anthropic", "exitgate: G%9BT /v1/models is not in route \"anthropic\" (policy.yaml:8)"},
		{Request{Method: "G\x7fT", Path: "/v1/models"}, "route/anthropic", "exitgate: G%7FT /v1/models is not in route \"anthropic\" (policy.yaml:8)"},
		{Request{Method: "G T", Path: "/v1/models"}, "route/anthropic", "exitgate: G%20T /v1/models is not in route \"anthropic\" (policy.yaml:8)"},
		{Request{Method: "DELETE", Path: "/" + strings.Repeat("a", 200)}, "route/anthropic", "exitgate: DELETE /" + strings.Repeat("a", 199) + "... is not in route \"anthropic\" (policy.yaml:8); to allow it add `- DELETE /" + strings.Repeat("a", 199) + "...`"},
		{Request{Method: "GET", Path: "/v1/models", Query: "a=1#b"}, "default", "exitgate: the query of /v1/models has a raw space, # or control byte (policy.yaml); write it escaped"},
		{Request{Method: "GET", Path: "/v1/models", Query: "a=b;c=d&%zz&é"}, "+route/anthropic", "allowed by GET /v1/models (policy.yaml:14)"},
		{Request{Method: "GET", Path: ""}, "default", "exitgate: path  does not start with a slash (policy.yaml); write it plainly"},
		{Request{Method: "GET", Path: "/github/a/b/info/refs", Query: "service=git-upload-pack"}, "+route/github", "allowed by GET /**/info/refs?service=git-upload-pack (policy.yaml:22)"},
		{Request{Method: "GET", Path: "/github/a/b/info/refs", Query: "service=git-receive-pack"}, "route/github", "exitgate: GET /a/b/info/refs is in route \"github\" under a condition, and its query has service with another value than service=git-upload-pack (policy.yaml:22)"},
		{Request{Method: "GET", Path: "/github/a/b/info/refs", Query: "service=%67it-receive-pack"}, "route/github", "exitgate: GET /a/b/info/refs is in route \"github\" under a condition, and its query has service with another value than service=git-upload-pack (policy.yaml:22)"},
		{Request{Method: "GET", Path: "/github/a/b/info/refs"}, "route/github", "exitgate: GET /a/b/info/refs is in route \"github\" under a condition, and its query has no service=git-upload-pack (policy.yaml:22)"},
		{Request{Method: "POST", Path: "/github/a/b/git-receive-pack"}, "route/github", "exitgate: POST /a/b/git-receive-pack is not in route \"github\" (policy.yaml:18); to allow it add `- POST /a/b/git-receive-pack`"},
		{Request{Method: "POST", Path: "/github/a/b/git-%75pload-pack"}, "+route/github", "allowed by POST /**/git-upload-pack (policy.yaml:23)"},
		{Request{Method: "POST", Path: "/githubx/git-upload-pack"}, "route/anthropic", "exitgate: POST /githubx/git-upload-pack is not in route \"anthropic\" (policy.yaml:8); to allow it add `- POST /githubx/git-upload-pack`"},
		{Request{Method: "GET", Path: "/github/old/x", Now: before}, "+route/old", "allowed by GET /** (policy.yaml:27)"},
		{Request{Method: "GET", Path: "/github/old/x", Now: after}, "route/old", "exitgate: route \"old\" expired at 2026-01-01T00:00:00Z (policy.yaml:24); to allow it write a later `expires`"},
		{Request{Agent: "other", Method: "POST", Path: "/v1/messages"}, "default", "exitgate: POST /v1/messages has no route (policy.yaml); routes of this agent are at /github /github/old"},
		{Request{Agent: "nobody", Method: "POST", Path: "/v1/messages"}, "default", "exitgate: agent nobody is not in the policy (policy.yaml)"},
		// tunnels
		{Request{Road: RoadConnect, Host: "registry.npmjs.org", Port: 443}, "+egress/registry.npmjs.org", "allowed by egress/registry.npmjs.org (policy.yaml:30)"},
		{Request{Road: RoadConnect, Host: "REGISTRY.npmjs.org.", Port: 443}, "+egress/registry.npmjs.org", "allowed by egress/registry.npmjs.org (policy.yaml:30)"},
		{Request{Road: RoadConnect, Host: "registry.npmjs.org", Port: 80}, "egress/registry.npmjs.org", "exitgate: port 80 of registry.npmjs.org is not in egress registry.npmjs.org (policy.yaml:30); to allow it add 80 to its `ports`"},
		{Request{Road: RoadConnect, Host: "evil.example", Port: 443}, "default", "exitgate: evil.example:443 is not in egress (policy.yaml); to allow it add `- host: evil.example`"},
		{Request{Road: RoadConnect, Host: "EVIL.example", Port: 8443}, "default", "exitgate: evil.example:8443 is not in egress (policy.yaml); to allow it add `- {host: evil.example, ports: [8443]}`"},
		{Request{Road: RoadConnect, Method: "GET", Host: "evil.example", Port: 8443}, "default", "exitgate: evil.example:8443 is not in egress (policy.yaml); to allow it add `- {host: evil.example, ports: [8443]}`"},
		{Request{Road: RoadConnect, Host: strings.Repeat("a.", 125) + "soon.example", Port: 443}, "default", "exitgate: host \"" + strings.Repeat("a.", 40) + "\"... has 262 bytes (policy.yaml); a name has at most 253"},
		{Request{Road: RoadConnect, Host: "api.anthropic.com", Port: 8443}, "default", "exitgate: api.anthropic.com:8443 is not in egress (policy.yaml); to allow it add `- {host: api.anthropic.com, ports: [8443]}`"},
		{Request{Road: RoadConnect, Host: "2001:db8::1", Port: 443}, "default", "exitgate: [2001:db8::1]:443 is not in egress (policy.yaml); to allow it add `- host: \"2001:db8::1\"`"},
		{Request{Road: RoadConnect, Host: "169.254.169.254", Port: 80}, "default", "exitgate: 169.254.169.254:80 is not in egress (policy.yaml); it is where a cloud hands out the machine's own credentials; to allow it all the same, add `- {host: 169.254.169.254, ports: [80]}`"},
		{Request{Road: RoadConnect, Host: "127.0.0.1", Port: 22}, "default", "exitgate: 127.0.0.1:22 is not in egress (policy.yaml); it is the machine itself: the agent's own programs are reached without the proxy, given `loopback: own`; to let it reach root's, add `- {host: 127.0.0.1, ports: [22]}`"},
		{Request{Road: RoadConnect, Host: "127.1", Port: 443}, "default", "exitgate: host \"127.1\" is an address in an unusual form (policy.yaml); write 127.0.0.1"},
		{Request{Road: RoadConnect, Host: "*.soon.example", Port: 443}, "default", "exitgate: host *.soon.example is a wildcard (policy.yaml); ask for one name"},
		{Request{Road: RoadConnect, Host: "api.anthropic.com", Port: 443}, "default", "exitgate: api.anthropic.com:443 is not in egress (policy.yaml:8); it is reached as http://127.0.0.1:8080, by route \"anthropic\""},
		{Request{Road: RoadConnect, Host: "github.com", Port: 443}, "default", "exitgate: github.com:443 is not in egress (policy.yaml:18); it is reached as http://127.0.0.1:8080/github, by route \"github\""},
		{Request{Agent: "other", Road: RoadConnect, Host: "api.anthropic.com", Port: 443}, "default", "exitgate: api.anthropic.com:443 is not in egress (policy.yaml); to allow it add `- host: api.anthropic.com`"},
		{Request{Road: RoadConnect, Host: "soon.example", Port: 443, Now: before}, "+egress/soon.example", "allowed by egress/soon.example (policy.yaml:34)"},
		{Request{Road: RoadConnect, Host: "soon.example", Port: 443, Now: after}, "egress/soon.example", "exitgate: egress soon.example expired at 2026-01-01T00:00:00Z (policy.yaml:34); to allow it write a later `expires`"},
		{Request{Road: RoadConnect, Host: "x.soon.example", Port: 443, Now: after}, "egress/x.soon.example", "exitgate: egress x.soon.example expired at 2025-12-31T23:59:59Z (policy.yaml:37); to allow it write a later `expires`"},
		{Request{Road: RoadConnect, Host: "y.soon.example", Port: 443, Now: after}, "+egress/*.soon.example", "allowed by egress/*.soon.example (policy.yaml:36)"},
		{Request{Road: RoadConnect, Host: "mine.example", Port: 443}, "default", "exitgate: mine.example:443 is in egress mine.example for other agents (policy.yaml:39); to allow it add claude to its `agents`"},
		{Request{Agent: "other", Road: RoadConnect, Host: "mine.example", Port: 443}, "+egress/mine.example", "allowed by egress/mine.example (policy.yaml:39)"},
		{Request{Agent: "other", Road: RoadConnect, Host: "a.mine.example", Port: 443}, "default", "exitgate: a.mine.example:443 is in egress *.mine.example for other agents (policy.yaml:41); to allow it add other to its `agents`"},
		{Request{Road: RoadConnect, Host: "nobody.example", Port: 443}, "default", "exitgate: nobody.example:443 is in egress nobody.example for other agents (policy.yaml:43); to allow it add claude to its `agents`"},
		{Request{Road: RoadConnect, Host: "closed.example", Port: 443}, "egress/closed.example", "exitgate: port 443 of closed.example is not in egress closed.example (policy.yaml:45); to allow it add 443 to its `ports`"},
		// plain http
		{Request{Road: RoadForward, Method: "GET", Host: "deb.example", Port: 80, Path: "/x"}, "+egress/deb.example", "allowed by egress/deb.example (policy.yaml:31)"},
		{Request{Road: RoadForward, Method: "PUT", Host: "deb.example", Port: 80, Path: "/x"}, "egress/deb.example", "exitgate: PUT over plain http is not in egress deb.example (policy.yaml:31); to allow it add PUT to its `methods`"},
		{Request{Road: RoadForward, Method: "GET", Host: "registry.npmjs.org", Port: 443}, "egress/registry.npmjs.org", "exitgate: GET over plain http is not in egress registry.npmjs.org (policy.yaml:30); to allow it add GET to its `methods`"},
		{Request{Road: RoadForward, Method: "GET", Host: "evil.example", Port: 80}, "default", "exitgate: evil.example:80 is not in egress (policy.yaml); to allow it add `- {host: evil.example, ports: [80], methods: [GET]}`"},
		// packets
		{Request{Road: RoadPacket, Method: "tcp", Host: "127.0.0.1", Port: 8080}, "+listener", "it is the agent's listener (policy.yaml:3)"},
		{Request{Road: RoadPacket, Method: "udp", Host: "127.0.0.1", Port: 8080}, "default", "exitgate: udp to 127.0.0.1:8080: the agent reaches its listener 127.0.0.1:8080 only (policy.yaml); hosts are reached by name through the proxy: add them to `egress:`"},
		{Request{Road: RoadPacket, Method: "tcp", Host: "::1", Port: 8081}, "default", "exitgate: tcp to [::1]:8081: the agent reaches its listener 127.0.0.1:8080 only (policy.yaml); hosts are reached by name through the proxy: add them to `egress:`"},
		{Request{Agent: "other", Road: RoadPacket, Method: "tcp", Host: "::1", Port: 8081}, "+listener", "it is the agent's listener (policy.yaml:4)"},
		{Request{Road: RoadPacket, Method: "tcp", Host: "127.0.0.1", Port: 3000}, "default", "exitgate: tcp to 127.0.0.1:3000: the agent reaches its listener 127.0.0.1:8080 only (policy.yaml:3); to allow its own programs' ports write `loopback: own` in the agent"},
		{Request{Road: RoadPacket, Method: "udp", Host: "127.0.0.1", Port: 3000}, "default", "exitgate: udp to 127.0.0.1:3000: the agent reaches its listener 127.0.0.1:8080 only (policy.yaml); hosts are reached by name through the proxy: add them to `egress:`"},
		{Request{Agent: "other", Road: RoadPacket, Method: "tcp", Host: "127.0.0.1", Port: 3000}, "+loopback", "loopback: own, where a program of the agent's own uid listens (policy.yaml:4)"},
		{Request{Agent: "other", Road: RoadPacket, Method: "udp", Host: "127.0.0.1", Port: 3000}, "default", "exitgate: udp to 127.0.0.1:3000: the agent reaches its listener [::1]:8081 only (policy.yaml); hosts are reached by name through the proxy: add them to `egress:`"},
		{Request{Agent: "other", Road: RoadPacket, Method: "tcp", Host: "127.0.0.1", Port: 1023}, "default", "exitgate: tcp to 127.0.0.1:1023: the agent reaches its listener [::1]:8081 only (policy.yaml:4); to allow its own programs' ports write `loopback: own` in the agent"},
		{Request{Agent: "other", Road: RoadPacket, Method: "tcp", Host: "127.0.0.1", Port: 8080}, "default", "exitgate: tcp to 127.0.0.1:8080: the agent reaches its listener [::1]:8081 only (policy.yaml); hosts are reached by name through the proxy: add them to `egress:`"},
		{Request{Road: RoadPacket, Method: "udp", Host: "1.1.1.1", Port: 53}, "default", "exitgate: udp to 1.1.1.1:53: the agent reaches its listener 127.0.0.1:8080 only (policy.yaml); hosts are reached by name through the proxy: add them to `egress:`"},
		{Request{Road: RoadPacket, Method: "tcp", Host: "example.com", Port: 53}, "default", "exitgate: packet to example.com: not an address (policy.yaml); an agent sends packets by address; ask about the host without `packet`"},
	} {
		if c.r.Now.IsZero() {
			c.r.Now = before
		}
		d := p.Decide(c.r)
		want, allow := strings.CutPrefix(c.rule, "+")
		got := d.Message()
		if d.Allow {
			got = d.Reason + " (" + d.At.String() + ")"
		}
		if d.Allow != allow || d.Rule != want || got != c.message {
			t.Errorf("%+v\n got %v %s: %s\nwant %v %s: %s", c.r, d.Allow, d.Rule, got, allow, want, c.message)
		}
	}
}

func TestDecideRest(t *testing.T) {
	p := mustLoad(t, "version: 1\nroutes:\n  - {name: a, path: /, upstream: \"https://a.example\", allow: [GET /**]}\n  - {name: b, path: /b, upstream: \"https://b.example\", allow: [GET /**]}\n  - {name: c, path: /b/c, upstream: \"https://c.example\", allow: [GET /**]}\n")
	got := map[string]string{}
	for _, path := range []string{"/", "/x", "/x/", "/b", "/b/", "/b/x", "/bx", "/b/c", "/b/c/", "/b/cx", "/b/c/d/e", "/b/x/c", "/%62/x"} {
		d := p.Decide(Request{Method: "GET", Path: path})
		got[path] = d.Route.Name + " " + d.Rest
	}
	want := map[string]string{"/": "a /", "/x": "a /x", "/x/": "a /x/", "/b": "b /", "/b/": "b /", "/b/x": "b /x", "/bx": "a /bx", "/b/c": "c /", "/b/c/": "c /",
		"/b/cx": "b /cx", "/b/c/d/e": "c /d/e", "/b/x/c": "b /x/c", "/%62/x": "a /%62/x"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// TestDecideAgents: of two routes with one path each agent has its own, and who has none is told so. A literal pattern with a
// condition says which, as one with wildcards does.
func TestDecideAgents(t *testing.T) {
	p := mustLoad(t, `version: 1
agents: [{name: a, uid: 1000}, {name: b, uid: 1001, listen: "127.0.0.1:8081"}, {name: c, uid: 1002, listen: "127.0.0.1:8082"}]
routes:
  - {name: ra, path: /, upstream: "https://a.example", allow: ["GET /x?k=1"], agents: [a], env: [MODE=fast]}
  - {name: rb, path: /, upstream: "https://b.example", allow: [GET /x], agents: [b], env: [MODE=slow]}
`)
	for _, c := range []struct{ agent, query, want string }{
		{"a", "k=1", "allowed by GET /x?k=1"}, {"b", "", "allowed by GET /x"},
		{"a", "", "GET /x is in route \"ra\" under a condition, and its query has no k=1"},
		{"c", "", "GET /x has no route; to allow it add a route to `routes:`"},
	} {
		d := p.Decide(Request{Agent: c.agent, Method: "GET", Path: "/x", Query: c.query})
		got := d.Reason
		if d.Mend != "" {
			got += "; " + d.Mend
		}
		if got != c.want || d.Allow != strings.HasPrefix(c.want, "allowed") {
			t.Errorf("%+v: %v, %s", c, d.Allow, got)
		}
	}
}

func TestDecidePreset(t *testing.T) {
	p := mustLoad(t, "version: 1\npresets: [claude-code, npm]\n")
	d := p.Decide(Request{Method: "DELETE", Path: "/v1/files"})
	want := "exitgate: DELETE /v1/files is not in route \"anthropic\" (preset claude-code:15); to allow it add `- DELETE /v1/files` to a route \"anthropic\" of your own, which replaces the preset's (`exitgate presets claude-code` prints it)"
	if d.Message() != want {
		t.Errorf("got  %s\nwant %s", d.Message(), want)
	}
	d = p.Decide(Request{Road: RoadConnect, Host: "registry.npmjs.org", Port: 8443})
	if !strings.HasSuffix(d.Message(), "to allow it add 8443 to its `ports` to a host \"registry.npmjs.org\" of your own, which replaces the preset's (`exitgate presets npm` prints it)") {
		t.Error(d.Message())
	}
}

// TestMendAllows: what a denial says to add does allow the request.
func TestMendAllows(t *testing.T) {
	p := mustLoad(t, decidePolicy)
	for _, r := range []Request{
		{Method: "DELETE", Path: "/v1/files/a*b/%C3%A9"},
		{Method: "GET", Path: "/v1/models/"},
		{Road: RoadConnect, Host: "evil.example", Port: 443},
		{Road: RoadConnect, Host: "evil.example", Port: 22},
		{Road: RoadConnect, Host: "2001:db8::1", Port: 22},
		{Road: RoadForward, Method: "PUT", Host: "evil.example", Port: 8080},
	} {
		r.Now = before
		d := p.Decide(r)
		_, line, ok := strings.Cut(d.Mend, "`")
		line, _, _ = strings.Cut(line, "`")
		if d.Allow || !ok {
			t.Fatalf("%+v: %+v", r, d)
		}
		text := strings.Replace(decidePolicy, "egress:\n", "egress:\n  "+line+"\n", 1)
		if r.Road == RoadRoute {
			text = strings.Replace(decidePolicy, "allow:\n", "allow:\n      "+line+"\n", 1)
		}
		if d := mustLoad(t, text).Decide(r); !d.Allow {
			t.Errorf("%+v: after adding %q: %s", r, line, d.Message())
		}
	}
}

// TestDecideAllocates nothing where it allows: it is asked for each request.
func TestDecideAllocates(t *testing.T) {
	p := mustLoad(t, decidePolicy)
	for _, r := range []Request{
		{Method: "POST", Path: "/v1/messages", Query: "beta=true"},
		{Method: "GET", Path: "/v1/models/%41"},
		{Method: "GET", Path: "/github/a/b/info/refs", Query: "a=1&service=git-upload-pack"},
		{Road: RoadConnect, Host: "registry.npmjs.org", Port: 443},
		{Road: RoadConnect, Host: "a.b.soon.example", Port: 443},
		{Road: RoadForward, Method: "GET", Host: "deb.example", Port: 80},
	} {
		r.Agent, r.Now = "claude", before
		if d := p.Decide(r); !d.Allow {
			t.Fatal(d.Message())
		}
		if n := testing.AllocsPerRun(100, func() { p.Decide(r) }); n != 0 {
			t.Errorf("%+v: %v allocations", r, n)
		}
	}
}
