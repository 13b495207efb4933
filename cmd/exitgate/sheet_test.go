package main

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"exitgate/cmd/internal/engine"
)

func TestWrap(t *testing.T) {
	for _, c := range []struct {
		text string
		want []string
	}{
		{"", []string{""}}, {"short", []string{"short"}}, {"  set in", []string{"  set in"}},
		{"one two three four", []string{"one two", "  three", "  four"}},
		{"averylongwordthatfitsnowhere x", []string{"averylongwordthatfitsnowhere", "  x"}},
	} {
		if got := wrap(c.text, 9); !slices.Equal(got, c.want) {
			t.Errorf("%q: %q, want %q", c.text, got, c.want)
		}
	}
}

// TestStatusFits: every field of the status is there, in 80 columns, with no colour where no terminal is.
func TestStatusFits(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	s := engine.Status{
		State: "degraded", Why: []string{"the last reload failed: policy.yaml:3: something that is rather long to say, so that it does not fit"}, Mode: "init",
		Started: now.Add(-90 * time.Minute), Policy: "/etc/exitgate/policy.yaml", Generation: 7, Digest: "sha256:0123456789abcdef",
		Reload:      &engine.ReloadResult{Time: now.Add(-time.Minute), Cause: "SIGHUP", OK: true, Widens: []string{"egress new.example.com added", "b", "c"}, Narrows: []string{"egress old.example.com removed", "e", "f", "g", "h"}},
		Agents:      []engine.AgentStatus{{Name: "claude", UID: 1000, Listen: "127.0.0.1:8080", Socket: "/run/exitgate/claude.sock", Connections: 3, BytesIn: 2048, BytesOut: 3 << 20}},
		Routes:      []engine.RouteStatus{{Name: "api", Path: "/", Upstream: "https://api.example.com", Credential: "key", Expires: "2027-01-01T00:00:00Z"}},
		Credentials: []engine.CredentialStatus{{Name: "key", Source: "file:/run/secrets/key", State: "ok", Age: 61}, {Name: "other", Source: "exec:get-it", State: "broken", Why: "exit code 1"}},
		Hosts: []engine.HostStatus{{Host: "api.example.com", Addresses: []engine.AddressStatus{{Address: "192.0.2.1", Lease: 300, Pins: 2}, {Address: "2001:db8:1111:2222:3333:4444:5555:6666", Lease: 9}}},
			{Host: "deb.example.com", Root: true, LastError: "the name does not exist (NXDOMAIN)"}},
		Resolvers: []string{"192.0.2.53:53"}, Sets: map[string]int{"egress": 4, "resolvers": 2, "published": 0}, Denied: map[string]uint64{"agent_denied": 33, "root_denied": 2, "inbound_denied": 1},
		Proxy: engine.ProxyStatus{PID: 15, Restarts: 2, LastEnd: "killed by SIGKILL"}, Drift: engine.DriftStatus{Repairs: 3, What: "a rule was added"},
		Hardening: []string{"Landlock cannot limit TCP connects by port; Linux 6.7 can"}, Warnings: []string{"Landlock cannot limit TCP connects by port; Linux 6.7 can", "policy.yaml:9: a warning"},
	}
	var out bytes.Buffer
	env := &environment{stdout: &out, now: func() time.Time { return now }}
	env.printStatus(s)
	for line := range strings.Lines(out.String()) {
		if n := len([]rune(strings.TrimRight(line, "\n"))); n > columns {
			t.Errorf("%d columns: %s", n, line)
		}
	}
	text := strings.Join(strings.Fields(out.String()), " ")
	for _, want := range []string{"DEGRADED generation 7, init mode, up 1h30m0s", "the last reload failed: policy.yaml:3", "sha256:0123456789ab", "1m0s ago by SIGHUP: 3 changes widened, 5 narrowed",
		"+ egress new.example.com added", "- egress old.example.com removed", "and 2 more", "pid 15, 2 restarts, the last one ended: killed by SIGKILL",
		"claude: uid 1000 at http://127.0.0.1:8080 and /run/exitgate/claude.sock, 3 connections, 2.0 KiB in, 3.0 MiB out", "api: / -> https://api.example.com with key, until 2027-01-01T00:00:00Z",
		"key: ok from file:/run/secrets/key, read 1m1s ago", "other: broken from exec:get-it: exit code 1", "api.example.com 192.0.2.1 5m0s left 2 in use", "2001:db8:1111:2222:3333:4444:5555:6666 9s left",
		"deb.example.com (root) no address yet", "the name does not exist (NXDOMAIN)", "resolvers 192.0.2.53:53", "packets: agent 33, root 2, inbound 1", "sets egress 4, resolvers 2",
		"3 foreign changes undone, 0 not: a rule was added", "hardening Landlock cannot limit", "warnings policy.yaml:9: a warning"} {
		if !strings.Contains(text, want) {
			t.Errorf("the status lacks %q:\n%s", want, out.String())
		}
	}
	if strings.Contains(out.String(), "\x1b") {
		t.Error("there is colour where no terminal is")
	}
}

func TestFilter(t *testing.T) {
	line := &auditLine{Event: "connect", Agent: "claude", Decision: "deny", Host: "a.b.example.com", Rule: "egress/*.example.com"}
	packet := &auditLine{Event: "denied_packet", Address: "192.0.2.1", Decision: "deny"}
	for _, c := range []struct {
		f            filter
		line, packet bool
	}{
		{filter{}, true, true}, {filter{denied: true}, true, true}, {filter{agent: "claude"}, true, false}, {filter{event: "request"}, false, false},
		{filter{host: "*.example.com"}, true, false}, {filter{host: "*b*com"}, true, false}, {filter{host: "example.com"}, false, false}, {filter{host: "192.0.2.*"}, false, true},
		{filter{rule: "egress/*"}, true, false}, {filter{agent: "claude", event: "connect", host: "*", rule: "*", denied: true}, true, false}, {filter{host: "*x"}, false, false},
	} {
		if got := [2]bool{c.f.takes(line), c.f.takes(packet)}; got != [2]bool{c.line, c.packet} {
			t.Errorf("%+v takes %v", c.f, got)
		}
	}
	if (filter{denied: true}).takes(&auditLine{Decision: "allow"}) {
		t.Error("what was allowed is shown as denied")
	}
	if got := fmt.Sprint(auditLine{Time: "2026-01-02T03:04:05.000000Z", Event: "denied_lookup", Decision: "deny", Host: "h.example", Count: 13}); got != "03:04:05 deny  denied_lookup h.example (13 more times)" {
		t.Errorf("%q", got)
	}
	if got := fmt.Sprint(auditLine{Event: "connect", Decision: "deny", Host: "h.example", Exe: "/tmp/\u202egnp\x1b[2J", PID: 7}); !strings.HasSuffix(got, "(/tmp/\ufffdgnp\ufffd[2J, pid 7)") {
		t.Errorf("a program's name changes how the line is shown: %q", got)
	}
}
