package integration

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"exitgate/integration/prober"
	"exitgate/integration/rig"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// two is a policy of two agents, each with a host of its own.
const two = `version: 1
agents:
  - name: first
    listen: 127.0.0.1:8080
    socket: /run/exitgate/first.sock
  - name: second
    uid: 1001
    listen: 127.0.0.1:8081
credentials:
  - name: api
    from: file:/run/secrets/api
routes:
  - name: api
    path: /
    upstream: https://api.example.com
    credential: api
    allow: [GET /**]
    agents: [first]
egress:
  - host: files.example.com
    agents: [first]
  - host: mirror.example.com
    agents: [second]
`

// TestAgentsAreApart: whose listener it is decides what is allowed, and nobody gets at another's.
func TestAgentsAreApart(t *testing.T) {
	t.Parallel()
	w := world(t)
	for _, name := range []string{"api.example.com", "files.example.com", "mirror.example.com"} {
		upstream(t, w, name, rig.Server{})
	}
	g := up(t, w, two)
	by := func(port string, p prober.Probe) prober.Probe {
		p.Address = "127.0.0.1:" + port
		p.Data = []byte(strings.ReplaceAll(string(p.Data), listener, p.Address))
		return p
	}
	for _, c := range []struct {
		who  string
		uid  uint32
		p    prober.Probe
		want int
	}{
		{"first, its route", 1000, by("8080", get("/reflect")), 200},
		{"first, its host", 1000, by("8080", tunnel("files.example.com")), 200},
		{"first, the other's host", 1000, by("8080", tunnel("mirror.example.com")), 403},
		{"first, the other's listener", 1000, by("8081", tunnel("mirror.example.com")), 0},
		{"second, its host", 1001, by("8081", tunnel("mirror.example.com")), 200},
		{"second, the other's host", 1001, by("8081", tunnel("files.example.com")), 403},
		{"second, the other's route", 1001, by("8081", get("/reflect")), 403},
		{"second, the other's listener", 1001, by("8080", get("/reflect")), 0},
		{"root, a listener", 0, by("8080", get("/reflect")), 0},
	} {
		r := g.as(c.uid, c.p)
		if r.Status != c.want || c.want == 0 && r.Errno != "ECONNREFUSED" {
			t.Errorf("%s: %s %s, want %d", c.who, r, r.Data, c.want)
		}
	}
	socket := get("/by-socket")
	socket.Address = "/run/exitgate/first.sock"
	if r := g.do(socket); r.Status != 200 {
		t.Errorf("first, by its socket: %s %s", r, r.Data)
	}
	for _, uid := range []uint32{0, 1001, 65534} {
		if r := g.as(uid, socket); r.Status == 200 {
			t.Errorf("uid %d by the first's socket: %s", uid, r)
		}
	}
	g.byTheSocket()
	out := g.exitgate("exec", "--agent", "second", "--", "/bin/sh", "-c", "id -u; env")
	if out.Code != 0 || !strings.HasPrefix(out.Stdout, "1001\n") || !strings.Contains(out.Stdout, "HTTPS_PROXY=http://127.0.0.1:8081") {
		t.Errorf("exec as the second: exit %d, %q %q", out.Code, out.Stdout, out.Stderr)
	}
}

// TestSocketOfAnotherAgent: a reload that gives an agent what another listens on is refused, and takes nothing from that one.
func TestSocketOfAnotherAgent(t *testing.T) {
	t.Parallel()
	w := world(t)
	upstream(t, w, "api.example.com", rig.Server{})
	g := up(t, w, two)
	socket := get("/by-socket")
	socket.Address = "/run/exitgate/first.sock"
	const line = "    socket: /run/exitgate/first.sock\n"
	without := strings.Replace(two, line, "", 1)
	for what, policy := range map[string]string{
		"socket": strings.Replace(without, "    uid: 1001\n", "    uid: 1001\n"+line, 1),
		"port":   strings.NewReplacer("8080", "8081", "8081", "8080").Replace(two),
	} {
		if out := g.reload(policy); out.Code != 1 || !strings.Contains(out.Stderr, "listens there") {
			t.Errorf("the other's %s: exit %d, %q", what, out.Code, out.Stderr)
		}
		if r := g.do(socket); r.Status != 200 {
			t.Errorf("first, by its socket: %s %s", r, r.Data)
		}
	}
	for _, policy := range []string{without, strings.Replace(without, "    uid: 1001\n", "    uid: 1001\n"+line, 1)} {
		if out := g.reload(policy); out.Code != 0 {
			t.Fatalf("one step after the other: %q", out.Stderr)
		}
	}
	if r := g.as(1001, socket); r.Status != 403 {
		t.Errorf("second, by its socket now: %s %s", r, r.Data)
	}
}

// byTheSocket: the audit says who was at the socket, the agent with its program and strangers by their uid. 1001 is an agent elsewhere.
func (g *gate) byTheSocket() {
	g.t.Helper()
	who := map[int]string{}
	eventually(g.t, "a line for each at the socket", func() bool {
		for _, e := range g.audit("request") {
			if e.Path == "/by-socket" || e.UID == 0 || e.UID == 65534 {
				who[e.UID] = fmt.Sprintf("%s %s %v", e.Decision, filepath.Base(e.Exe), e.PID > 1)
			}
		}
		return len(who) == 3
	})
	want := map[int]string{1000: "allow prober true", 0: "deny unknown true", 65534: "deny unknown true"}
	if diff := cmp.Diff(want, who); diff != "" {
		g.t.Errorf("who was at the socket (-want +got):\n%s", diff)
	}
}

// TestRunAsAnotherAgent: --agent chooses who the command runs as.
func TestRunAsAnotherAgent(t *testing.T) {
	t.Parallel()
	g := start(t, world(t), two, running("run", "--agent", "second", "--", "/usr/bin/id", "-u"))
	if code := g.code(); code != 0 || strings.TrimSpace(g.Stdout.String()) != "1001" {
		t.Errorf("exit %d, %q", code, g.Stdout)
	}
}

// TestOwnLoopback: with `loopback: own` an agent talks to its own servers and to nobody else's.
func TestOwnLoopback(t *testing.T) {
	t.Parallel()
	w := world(t)
	for mode, want := range map[string]bool{"own": true, "deny": false} {
		g := up(t, w, "version: 1\nagents:\n  - name: agent\n    loopback: "+mode+"\n")
		services(t, g.Box)
		for _, own := range []string{"127.0.0.1:5000", "[::1]:5000"} {
			if r := <-g.Agent().Start(prober.Probe{Op: "listen", Address: own, Timeout: time.Minute}); !r.OK() {
				t.Fatalf("listen at %s: %s", own, r)
			}
			r := g.do(prober.Probe{Op: "tcp", Address: own, Read: 5, Timeout: 5 * time.Second})
			if r.OK() != want {
				t.Errorf("%s: own server at %s: %s", mode, own, r)
			}
			if r := g.as(1001, prober.Probe{Op: "tcp", Address: own, Read: 5, Timeout: 5 * time.Second}); r.OK() {
				t.Errorf("%s: another uid at the agent's server %s: %s", mode, own, r)
			}
		}
		for _, other := range []string{"127.0.0.1:9999", "[::1]:9999", "127.0.0.2:9998", "127.0.0.1:9997"} {
			if r := g.do(prober.Probe{Op: "tcp", Address: other, Read: 5, Timeout: 5 * time.Second}); r.OK() {
				t.Errorf("%s: somebody else's server at %s: %s", mode, other, r)
			}
		}
		if r := g.as(1000, prober.Probe{Op: "udp", Address: "127.0.0.1:5000", Data: []byte("x")}); r.OK() {
			t.Errorf("%s: UDP on loopback: %s", mode, r)
		}
	}
}

// TestRootLoopback: the ports that policy names, for health checks.
func TestRootLoopback(t *testing.T) {
	t.Parallel()
	w := world(t)
	g := up(t, w, "version: 1\nroot_loopback: [9999]\n")
	services(t, g.Box)
	if r := g.as(0, prober.Probe{Op: "tcp", Address: "127.0.0.1:9999", Read: 5}); !r.OK() {
		t.Errorf("listed: %s", r)
	}
	if r := g.as(0, prober.Probe{Op: "tcp", Address: "127.0.0.2:9998", Read: 5}); r.Errno != "ECONNREFUSED" {
		t.Errorf("not listed: %s", r)
	}
	if r := g.as(1000, prober.Probe{Op: "tcp", Address: "127.0.0.1:9999", Read: 5}); r.Errno != "ECONNREFUSED" {
		t.Errorf("the agent: %s", r)
	}
}

// TestGrantsExpire: at its time a grant ends, live flows included, and nothing has to be reloaded.
func TestGrantsExpire(t *testing.T) {
	t.Parallel()
	w := world(t)
	files := upstream(t, w, "files.example.com", rig.Server{H1: true})
	end := time.Now().Add(6 * time.Second).UTC().Truncate(time.Second)
	g := up(t, w, strings.Replace(basic, "  - host: files.example.com\n", "  - host: files.example.com\n    expires: "+end.Format(time.RFC3339)+"\n", 1))
	flow := g.Agent().Start(busy("files.example.com", time.Minute))
	eventually(t, "the flow works", func() bool { return len(files.Seen()) > 3 })
	r := last(flow)
	if r.OK() || r.At.Before(end) || r.At.After(end.Add(10*time.Second)) {
		t.Errorf("ended %s after its time: %s", r.At.Sub(end), r)
	}
	if r := g.do(tunnel("files.example.com")); r.Status != 403 {
		t.Errorf("afterwards: %s", r)
	}
}

// TestRefusalsAreFast holds for whatever the agent might wait for.
func TestRefusalsAreFast(t *testing.T) {
	t.Parallel()
	w := world(t)
	e := somewhereElse(t, w)
	g := up(t, w, nothing)
	for what, p := range map[string]prober.Probe{
		"connect": {Op: "tcp", Address: at(e.v4, 443)}, "connect, v6": {Op: "tcp", Address: at(e.v6, 443)},
		"datagram": {Op: "udp", Address: at(e.v4, 443), Data: []byte("x")}, "CONNECT": tunnel("elsewhere.example.net"), "route": get("/"),
		"mptcp": {Op: "socket", Domain: unix.AF_INET, Type: unix.SOCK_STREAM, Protocol: unix.IPPROTO_MPTCP, Address: at(e.v4, 443)},
	} {
		r := g.do(p)
		if r.Elapsed > time.Second || r.OK() && r.Status != 403 {
			t.Errorf("%s: %s", what, r)
		}
	}
}
