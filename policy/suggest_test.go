package policy

import (
	"strings"
	"testing"
	"time"
)

func TestSuggest(t *testing.T) {
	denied := []Denied{
		{Event{Event: "connect", Decision: "deny", Host: "pypi.org", Port: 443, Exe: "/usr/bin/pip"}, 3},
		{Event{Event: "denied_lookup", Decision: "deny", Host: "pypi.org", Port: 53, Exe: "/usr/bin/curl"}, 2},
		{Event{Event: "connect", Decision: "deny", Host: "git.example.com", Port: 8443, Exe: "unknown"}, 1},
		{Event{Event: "request", Decision: "deny", Rule: "default", Method: "GET", Host: "deb.example.org", Port: 80, Path: "/x"}, 2},
		{Event{Event: "connect", Decision: "deny", Host: "statsig.anthropic.com", Port: 443, Exe: "/opt/claude"}, 14},
		{Event{Event: "request", Decision: "deny", Rule: "route/anthropic", Method: "DELETE", Host: "api.anthropic.com", Port: 443, Path: "/claude/v1/files\nroot: [x]", Reason: "DELETE /v1/files\nroot: [x] is not in route \"anthropic\""}, 1},
		{Event{Event: "denied_packet", Decision: "deny", Agent: "claude", Proto: "udp", Address: "2001:db8::1", Port: 443}, 4},
		{Event{Event: "denied_packet", Decision: "deny", Agent: "claude", Proto: "tcp", Address: "127.0.0.1", Port: 22}, 1},
		{Event{Event: "denied_packet", Decision: "deny", Proto: "icmpv6", Address: "ff02::16"}, 7},
		{Event{Event: "request", Decision: "allow", Host: "never.example.com"}, 9},
	}
	want := `version: 1
egress:
  - host: pypi.org # 5 times, by /usr/bin/curl, /usr/bin/pip
  - {host: deb.example.org, ports: [80], methods: [GET]} # 2 times
  - {host: git.example.com, ports: [8443]} # once
# known telemetry: host: statsig.anthropic.com # 14 times, by /opt/claude
# udp to [2001:db8::1]:443 went past the proxy: set HTTPS_PROXY for that program, or name the host it wants # 4 times
# route "anthropic": add to its ` + "`allow`" + `: DELETE /v1/files?root: [x] # once
# tcp to 127.0.0.1:22: only the listener is reachable there; ` + "`loopback: own`" + ` in the agent opens the ports of its own programs # once
`
	got := Suggest(denied, nil)
	if got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
	p, err := Load("suggested.yaml", []byte(got))
	if err != nil {
		t.Fatalf("a suggestion is no policy: %v", err)
	}
	for _, r := range []Request{
		{Road: RoadConnect, Host: "pypi.org", Port: 443},
		{Road: RoadConnect, Host: "git.example.com", Port: 8443},
		{Road: RoadForward, Host: "deb.example.org", Port: 80, Method: "GET", Path: "/x"},
	} {
		r.Now = time.Unix(1, 0)
		if d := p.Decide(r); !d.Allow {
			t.Errorf("what was suggested is still denied: %s", d.Message())
		}
	}
	if d := p.Decide(Request{Road: RoadConnect, Host: "statsig.anthropic.com", Port: 443}); d.Allow {
		t.Error("telemetry was allowed")
	}
	reordered := Suggest([]Denied{{Event{Event: "connect", Decision: "deny", Host: "pypi.org", Port: 443, Exe: "/tmp/\u202egnp\x1b[2J"}, 1}}, nil)
	if want := "  - host: pypi.org # once, by /tmp/?gnp?[2J\n"; !strings.HasSuffix(reordered, want) {
		t.Errorf("a program's name changes how the line is shown: %q", reordered)
	}
	for _, c := range []struct {
		denied []Denied
		want   string
	}{
		{[]Denied{{Event{Event: "connect", Decision: "deny", Host: "2001:db8::2", Port: 443}, 1}}, "egress:\n  - host: \"2001:db8::2\" # once\n"},
		{[]Denied{{Event{Event: "connect", Decision: "deny", Host: "a b", Port: 443, Reason: "no name"}, 1}}, "# no name # once\n"},
		{[]Denied{{Event{Event: "limit", Decision: "deny", Host: "a.example", Status: 429}, 1}}, ""},
		{[]Denied{{Event{Event: "connect", Decision: "deny", Rule: "egress/a.example", Host: "a.example", Port: 8443, Reason: "port 8443 is not in it"}, 1}}, "# port 8443 is not in it # once\n"},
		{[]Denied{{Event{Event: "denied_packet", Decision: "deny", Agent: "a", Proto: "icmp", Address: "192.0.2.1", Exe: "/bin/a"}, 1},
			{Event{Event: "denied_packet", Decision: "deny", Agent: "a", Proto: "icmp", Address: "192.0.2.1", Exe: "/bin/b"}, 1},
			{Event{Event: "denied_packet", Decision: "deny", Agent: "a", Proto: "icmp", Address: "192.0.2.1", Exe: "/bin/c\xff"}, 1},
			{Event{Event: "denied_packet", Decision: "deny", Agent: "a", Proto: "icmp", Address: "192.0.2.1", Exe: "/bin/d"}, 1}},
			"# icmp to 192.0.2.1 went past the proxy: set HTTPS_PROXY for that program, or name the host it wants # 4 times, by /bin/a, /bin/b, /bin/c?, others\n"},
	} {
		if got := strings.TrimPrefix(Suggest(c.denied, nil), "version: 1\n"); got != c.want {
			t.Errorf("got:\n%s\nwant:\n%s", got, c.want)
		}
	}
	if got := Suggest(nil, nil); got != "" {
		t.Errorf("nothing denied, and it suggests %q", got)
	}
}

// With the policy in force, what its entries decide is told with their lines, what it allows by now is left out, and
// an address of the machine itself is no line to copy.
func TestSuggestFor(t *testing.T) {
	p, err := Load("p.yaml", []byte(`version: 1
agents:
  - {name: a, uid: 1000}
  - {name: b, uid: 1001, listen: "127.0.0.1:8081"}
routes:
  - name: api
    path: /api
    upstream: https://api.example.com
    allow: [GET /v1]
  - {name: old, path: /old, upstream: "https://old.example.com", allow: [GET /], expires: 2020-01-01T00:00:00Z}
egress:
  - host: npm.example.com
  - {host: plain.example.com, ports: [80], methods: [GET]}
  - {host: gone.example.com, expires: 2020-01-01T00:00:00Z}
  - {host: theirs.example.com, agents: [b]}
  - host: since.example.com
`))
	if err != nil {
		t.Fatal(err)
	}
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	ask := func(r Request) Denied {
		r.Now, r.Agent = now, "a"
		d := p.Decide(r)
		if d.Allow {
			t.Fatalf("control: %v is allowed", r)
		}
		e := Event{Time: now, Event: "request", Agent: "a", Decision: "deny", Rule: d.Rule, Reason: d.Reason, Method: r.Method, Host: r.Host, Port: r.Port, Path: r.Path}
		if r.Road == RoadConnect {
			e.Event = "connect"
		}
		if d.Route != nil {
			e.Host, e.Port = d.Route.Upstream.Host, d.Route.Upstream.Port
		}
		return Denied{e, 1}
	}
	connect := func(host string, port uint16) Denied {
		return ask(Request{Road: RoadConnect, Method: "CONNECT", Host: host, Port: port})
	}
	since := connect("elsewhere.example.com", 443)
	since.Event.Host, since.Event.Reason = "since.example.com", "since.example.com:443 is not in egress"
	hello := Event{Time: now, Event: "connect", Agent: "a", Decision: "deny", Rule: "egress/npm.example.com", Method: "CONNECT", Host: "npm.example.com", Port: 443, Reason: "the ClientHello names another host"}
	got := Suggest([]Denied{
		connect("new.example.com", 443), connect("npm.example.com", 8443), connect("gone.example.com", 443), connect("theirs.example.com", 443),
		connect("api.example.com", 443), connect("169.254.169.254", 80), connect("127.0.0.1", 22), since, {hello, 1},
		ask(Request{Road: RoadForward, Method: "POST", Host: "plain.example.com", Port: 80, Path: "/"}),
		ask(Request{Road: RoadRoute, Method: "DELETE", Path: "/api/v1/files"}),
		ask(Request{Road: RoadRoute, Method: "GET", Path: "/old/"}),
		ask(Request{Road: RoadRoute, Method: "GET", Path: "/v1"}),
		{Event{Time: now, Event: "denied_lookup", Agent: "a", Decision: "deny", Host: "npm.example.com", Port: 53}, 1},
	}, p)
	want := "version: 1\negress:\n  - host: new.example.com # once\n" +
		"# the machine itself: {host: 127.0.0.1, ports: [22]} # once\n" +
		"# where a cloud hands out the machine's own credentials: {host: 169.254.169.254, ports: [80]} # once\n" +
		"# DELETE /v1/files is not in route \"api\" (p.yaml:6); to allow it add `- DELETE /v1/files` # once\n" +
		"# GET /v1 has no route; routes of this agent are at /api /old # once\n" +
		"# POST over plain http is not in egress plain.example.com (p.yaml:13); to allow it add POST to its `methods` # once\n" +
		"# api.example.com:443 is not in egress (p.yaml:6); it is reached as http://127.0.0.1:8080/api, by route \"api\" # once\n" +
		"# egress gone.example.com expired at 2020-01-01T00:00:00Z (p.yaml:14); to allow it write a later `expires` # once\n" +
		"# npm.example.com was looked up past the proxy, which reaches it: set HTTPS_PROXY for that program # once\n" +
		"# port 8443 of npm.example.com is not in egress npm.example.com (p.yaml:12); to allow it add 8443 to its `ports` # once\n" +
		"# route \"old\" expired at 2020-01-01T00:00:00Z (p.yaml:10); to allow it write a later `expires` # once\n" +
		"# the ClientHello names another host # once\n" +
		"# theirs.example.com:443 is in egress theirs.example.com for other agents (p.yaml:15); to allow it add a to its `agents` # once\n"
	if got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
	if _, err := Load("suggested.yaml", []byte(got)); err != nil {
		t.Error(err)
	}
}

// Whatever an agent asks for, the suggestion is a policy, and no wider than the names that were asked for.
func FuzzSuggest(f *testing.F) {
	f.Add("pypi.org", "/usr/bin/pip", "GET", "/x", uint16(443))
	f.Add("*.example.com", "a\nb", "GET: [", "# x\r\n- y", uint16(0))
	f.Fuzz(func(t *testing.T, host, exe, method, path string, port uint16) {
		var denied []Denied
		for _, kind := range []string{"connect", "request", "denied_lookup", "denied_packet"} {
			denied = append(denied, Denied{Event{Event: kind, Decision: "deny", Host: host, Exe: exe, Method: method, Path: path, Port: port, Proto: "tcp", Address: host}, 1})
		}
		text := Suggest(denied, nil)
		p, err := Load("suggested.yaml", []byte(text))
		if err != nil {
			t.Fatalf("%v\n%s", err, text)
		}
		for _, e := range p.Egress {
			if e.Host.Wildcard || !strings.EqualFold(strings.TrimSuffix(host, "."), e.Host.String()) && len(p.Egress) > 1 {
				t.Errorf("suggested %s for %q", e.Host, host)
			}
		}
	})
}
