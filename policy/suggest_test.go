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
		{Event{Event: "request", Decision: "deny", Rule: "route/anthropic", Method: "DELETE", Host: "api.anthropic.com", Port: 443, Path: "/v1/files\nroot: [x]"}, 1},
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
	got := Suggest(denied)
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
	reordered := Suggest([]Denied{{Event{Event: "connect", Decision: "deny", Host: "pypi.org", Port: 443, Exe: "/tmp/\u202egnp\x1b[2J"}, 1}})
	if want := "  - host: pypi.org # once, by /tmp/?gnp?[2J\n"; !strings.HasSuffix(reordered, want) {
		t.Errorf("a program's name changes how the line is shown: %q", reordered)
	}
	if got := Suggest(nil); got != "" {
		t.Errorf("nothing denied, and it suggests %q", got)
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
		text := Suggest(denied)
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
