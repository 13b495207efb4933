package integration

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"exitgate/integration/prober"
	"exitgate/integration/rig"
	"exitgate/integration/rig/rigtest"
)

const (
	secret   = "sk-ant-api03-FAKE-integration-0123456789abcdef"
	listener = "127.0.0.1:8080"
	patience = 20 * time.Second // for what should happen at once, on a busy machine
)

// basic is the policy most tests start from: one route with a credential, two hosts.
const basic = `version: 1
credentials:
  - name: api
    from: file:/run/secrets/api
    header: Authorization
routes:
  - name: api
    path: /
    upstream: https://api.example.com
    credential: api
    allow:
      - POST /v1/messages
      - GET /**
    env:
      - API_URL={url}
      - API_TOKEN={dummy}
egress:
  - host: files.example.com
  - host: mirror.example.com
`

// gate is a box in which exitgate runs, with what a test asks of it. Failures end the test.
type gate struct {
	*rig.Box
	t testing.TB
	w *rig.World
}

func world(t testing.TB) *rig.World {
	t.Helper()
	return rigtest.World(t)
}

// upstream starts a stand-in of that name.
func upstream(t testing.TB, w *rig.World, name string, s rig.Server) *rig.Upstream {
	t.Helper()
	return rigtest.HTTPS(t, w, name, s)
}

// start starts exitgate with a policy and without waiting for anything.
func start(t testing.TB, w *rig.World, policy string, change ...func(*rig.Config)) *gate {
	t.Helper()
	cfg := rig.Config{World: w, Binary: binary, Policy: policy, Files: map[string]rig.File{"/run/secrets/api": {Data: secret + "\n", Mode: 0o400}}}
	for _, c := range change {
		c(&cfg)
	}
	return &gate{rigtest.Start(t, cfg), t, w}
}

// up starts exitgate and waits until its agent, a prober, runs.
func up(t testing.TB, w *rig.World, policy string, change ...func(*rig.Config)) *gate {
	t.Helper()
	g := start(t, w, policy, change...)
	if err := g.Agent().Ready(patience); err != nil {
		t.Fatal(err)
	}
	return g
}

// do runs a probe as the agent.
func (g *gate) do(p prober.Probe) prober.Result { return g.Agent().Do(p) }

// as runs a probe as another uid.
func (g *gate) as(uid uint32, p prober.Probe) prober.Result {
	g.t.Helper()
	r, err := g.Probe(uid, p)
	if err != nil {
		g.t.Fatal(err)
	}
	return r
}

// exitgate runs a command of the binary in the box as root.
func (g *gate) exitgate(args ...string) rig.Output {
	g.t.Helper()
	out, err := g.Exitgate(args...)
	if err != nil {
		g.t.Fatal(err)
	}
	return out
}

// status is the decoded `status --json`.
func (g *gate) status() status {
	g.t.Helper()
	var s status
	out := g.exitgate("status", "--json")
	if err := json.Unmarshal([]byte(out.Stdout), &s); err != nil {
		g.t.Fatalf("status: %v (exit %d, %q, %q)", err, out.Code, out.Stdout, out.Stderr)
	}
	return s
}

// status is the part of `status --json` that the tests read.
type status struct {
	State      string
	Generation uint64
	Digest     string
	Reload     struct {
		OK     bool
		Errors []string
	} `json:"last_reload"`
	Hosts []struct {
		Host      string
		Addresses []struct {
			Address string
			Pins    int
		}
		Degraded bool
	}
	Proxy struct {
		PID      int
		Restarts int
	}
	Drift struct{ Repairs int }
}

func (s status) addresses(host string) (all []string) {
	for _, h := range s.Hosts {
		if h.Host == host {
			for _, a := range h.Addresses {
				all = append(all, a.Address)
			}
		}
	}
	return all
}

// reload replaces the policy and has it read; it returns what `exitgate reload` said.
func (g *gate) reload(policy string) rig.Output {
	g.t.Helper()
	if err := g.SetPolicy(policy); err != nil {
		g.t.Fatal(err)
	}
	return g.exitgate("reload")
}

// get is a GET by the agent's listener, as a probe. path may be any request target.
func get(path string, header ...string) prober.Probe {
	return prober.Probe{Op: "http", Address: listener, Data: head("GET", path, listener, header...)}
}

func head(method, target, host string, header ...string) []byte {
	return []byte(fmt.Sprintf("%s %s HTTP/1.1\r\nHost: %s\r\n%s\r\n", method, target, host, strings.Join(append(header, ""), "\r\n")))
}

// tunnel is a GET / through CONNECT host:443, TLS to host inside.
func tunnel(host string) prober.Probe {
	return prober.Probe{Op: "http", Address: listener, Tunnel: host + ":443", ServerName: host, Data: head("GET", "/reflect", host)}
}

// busy keeps requests going through a tunnel until it breaks.
func busy(host string, limit time.Duration) prober.Probe {
	p := tunnel(host)
	p.Op, p.Every, p.Timeout = "hold", 2*time.Millisecond, limit
	return p
}

func at(a netip.Addr, port uint16) string { return netip.AddrPortFrom(a, port).String() }

// refusal is the body of a refusal.
func refusal(t testing.TB, r prober.Result) string {
	t.Helper()
	var e struct {
		Type  string
		Error struct{ Type, Message string }
	}
	if err := json.Unmarshal(r.Data, &e); err != nil || e.Type != "error" || e.Error.Type == "" {
		t.Errorf("a refusal is not of the documented shape: %s: %q (%v)", r, r.Data, err)
	}
	return e.Error.Message
}

// eventually waits until f holds.
func eventually(t testing.TB, what string, f func() bool) {
	t.Helper()
	if !rig.Eventually(patience, f) {
		t.Errorf("not within %s: %s", patience, what)
	}
}

// event is one audit line.
type event struct {
	Time, Event, Agent, Exe, Method, Host, Path, Rule, Decision, Reason, Upstream, ID string
	UID, PID, Port, Status                                                            int
	BytesIn                                                                           int64 `json:"bytes_in"`
	BytesOut                                                                          int64 `json:"bytes_out"`
	Generation                                                                        uint64
	raw                                                                               map[string]any
}

// audit is every audit line on standard error so far that has this event.
func (g *gate) audit(kind string) (all []event) {
	for _, line := range g.Stderr.Lines() {
		var e event
		if json.Unmarshal([]byte(line), &e) == nil && e.Event == kind && json.Unmarshal([]byte(line), &e.raw) == nil {
			all = append(all, e)
		}
	}
	return all
}

// leaks fails the test where a packet left the box for a place that allow does not accept; the world's DNS server is accepted as a
// resolver always. Call it last.
func (g *gate) leaks(allow ...netip.AddrPort) {
	g.t.Helper()
	time.Sleep(20 * time.Millisecond) // what was sent last has to arrive
	bad := g.Capture().Except(func(f rig.Flow) bool {
		to := netip.AddrPortFrom(f.Dst, f.Port)
		if f.Port == 53 && (f.Dst == g.w.DNS.Addr4 || f.Dst == g.w.DNS.Addr6) {
			return true
		}
		for _, a := range allow {
			if a == to {
				return true
			}
		}
		return false
	})
	if len(bad) > 0 {
		g.t.Errorf("left the box: %s", strings.Join(bad, ", "))
	}
	if lost, err := g.Capture().Lost(); err != nil || lost > 0 {
		g.t.Errorf("the capture lost %d packets (%v)", lost, err)
	}
}

// places are the addresses of upstreams, for leaks.
func places(us ...*rig.Upstream) (all []netip.AddrPort) {
	for _, u := range us {
		all = append(all, netip.AddrPortFrom(u.Addr4, u.Port), netip.AddrPortFrom(u.Addr6, u.Port))
	}
	return all
}
