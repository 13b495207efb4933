package integration

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"exitgate/integration/prober"
	"exitgate/integration/rig"

	"golang.org/x/sys/unix"
)

// way is one way out of the box that asks nobody.
type way struct {
	name  string
	probe prober.Probe
	errno []string // what a refusal may look like
	late  bool     // the kernel reports success and the answer never comes
}

var (
	refused = []string{"ECONNREFUSED"}
	// hardened is what the agent's own hardening says where the kernel has it (Landlock, seccomp), before a packet is made.
	hardened = []string{"EACCES", "EPERM", "EAFNOSUPPORT", "EPROTONOSUPPORT"}
	// EPERM where netfilter drops in the output path, EACCES and EHOSTUNREACH where the ICMP error it made is reported first.
	prohibited = []string{"EPERM", "EACCES", "EHOSTUNREACH"}
)

// elsewhere is a place on the internet that no policy names, and that answers in every way.
type elsewhere struct {
	*rig.Upstream
	v4, v6 netip.Addr
}

func somewhereElse(t testing.TB, w *rig.World) elsewhere {
	t.Helper()
	up := upstream(t, w, "elsewhere.example.net", rig.Server{})
	for _, a := range []netip.Addr{up.Addr4, up.Addr6} {
		for _, port := range []uint16{53, 443} {
			if _, err := w.EchoUDP(netip.AddrPortFrom(a, port)); err != nil {
				t.Fatal(err)
			}
		}
	}
	return elsewhere{up, up.Addr4, up.Addr6}
}

// ways lists what an agent might try. Each works in a box without a fence, which TestNothingLeavesDirectly shows first.
func ways(w *rig.World, e elsewhere, allowed *rig.Upstream) []way {
	short := 500 * time.Millisecond
	dns := []byte("\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x04leak\x08attacker\x07example\x00\x00\x01\x00\x01")
	tcp := func(to string) prober.Probe { return prober.Probe{Op: "tcp", Address: to, Timeout: 5 * time.Second} }
	udp := func(to string) prober.Probe {
		return prober.Probe{Op: "udp", Address: to, Data: dns, Read: 512, Timeout: short}
	}
	sock := func(domain, kind, proto int, to string, data string, read int) prober.Probe {
		return prober.Probe{Op: "socket", Domain: domain, Type: kind, Protocol: proto, Address: to, Data: []byte(data), Read: read, Timeout: short}
	}
	mapped := netip.AddrFrom16(e.v4.As16())
	return []way{
		{name: "tcp4", probe: tcp(at(e.v4, 443)), errno: refused},
		{name: "tcp6", probe: tcp(at(e.v6, 443)), errno: refused},
		{name: "tcp4 by a v6 socket", probe: sock(unix.AF_INET6, unix.SOCK_STREAM, 0, at(mapped, 443), "", 0), errno: refused},
		{name: "mptcp4", probe: sock(unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_MPTCP, at(e.v4, 443), "", 0), errno: refused},
		{name: "mptcp6", probe: sock(unix.AF_INET6, unix.SOCK_STREAM, unix.IPPROTO_MPTCP, at(e.v6, 443), "", 0), errno: refused},
		{name: "an allowed host's v4 address", probe: tcp(at(allowed.Addr4, 443)), errno: refused},
		{name: "an allowed host's v6 address", probe: tcp(at(allowed.Addr6, 443)), errno: refused},
		{name: "udp4 443", probe: udp(at(e.v4, 443)), errno: prohibited},
		{name: "udp6 443", probe: udp(at(e.v6, 443)), errno: prohibited},
		{name: "udp4 unconnected", probe: sock(unix.AF_INET, unix.SOCK_DGRAM, 0, at(e.v4, 443), "data", 16), errno: prohibited},
		{name: "udp6 unconnected", probe: sock(unix.AF_INET6, unix.SOCK_DGRAM, 0, at(e.v6, 443), "data", 16), errno: prohibited},
		{name: "dns4 elsewhere", probe: udp(at(e.v4, 53)), errno: prohibited},
		{name: "dns6 elsewhere", probe: udp(at(e.v6, 53)), errno: prohibited},
		{name: "dns to the box's resolver", probe: udp(at(w.DNS.Addr4, 53)), errno: prohibited},
		{name: "dns to the box's resolver, v6", probe: udp(at(w.DNS.Addr6, 53)), errno: prohibited},
		{name: "dns over tcp", probe: tcp(at(w.DNS.Addr4, 53)), errno: refused},
		{name: "dns over tcp, v6", probe: tcp(at(w.DNS.Addr6, 53)), errno: refused},
		{name: "ping4", probe: sock(unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_ICMP, at(e.v4, 0), "\x08\x00\x00\x00\x00\x01\x00\x01tunnel", 64), errno: prohibited, late: true},
		{name: "ping6", probe: sock(unix.AF_INET6, unix.SOCK_DGRAM, unix.IPPROTO_ICMPV6, at(e.v6, 0), "\x80\x00\x00\x00\x00\x01\x00\x01tunnel", 64), errno: prohibited, late: true},
		{name: "root's service on 127.0.0.1", probe: tcp("127.0.0.1:9999"), errno: refused},
		{name: "root's service on ::1", probe: tcp("[::1]:9999"), errno: refused},
		{name: "root's service on 127.0.0.2", probe: tcp("127.0.0.2:9998"), errno: refused},
		{name: "another uid's service", probe: tcp("127.0.0.1:9997"), errno: refused},
	}
}

// services are listeners of root and of another uid on the box's loopback.
func services(t testing.TB, b *rig.Box) {
	t.Helper()
	for _, s := range []struct {
		uid uint32
		at  string
	}{{0, "127.0.0.1:9999"}, {0, "[::1]:9999"}, {0, "127.0.0.2:9998"}, {1001, "127.0.0.1:9997"}} {
		go b.Probe(s.uid, prober.Probe{Op: "listen", Address: s.at, Timeout: time.Minute})
		eventually(t, s.at+" listens", func() bool { return listens(b, netip.MustParseAddrPort(s.at)) })
	}
}

// listens reads the kernel's table of listeners, since connecting might be refused by the fence.
func listens(b *rig.Box, a netip.AddrPort) bool {
	file := "/proc/net/tcp"
	if a.Addr().Is6() {
		file = "/proc/net/tcp6"
	}
	r, err := b.Probe(0, prober.Probe{Op: "read", Address: file})
	return err == nil && strings.Contains(string(r.Data), fmt.Sprintf(":%04X ", a.Port()))
}

// bare is a box without a fence, in which a prober is PID 1.
func bare(t testing.TB, w *rig.World) *rig.Box {
	t.Helper()
	b, err := rig.Start(rig.Config{World: w, Plain: true, Serve: true, Args: []string{rig.ProberPath, "serve"}})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestNothingLeavesDirectly(t *testing.T) {
	t.Parallel()
	w := world(t)
	e := somewhereElse(t, w)
	api := upstream(t, w, "api.example.com", rig.Server{})
	all := ways(w, e, api)

	open := bare(t, w)
	services(t, open)
	for _, way := range all {
		r, err := open.Probe(1000, way.probe)
		if err != nil || !r.OK() {
			t.Fatalf("control: %s does not work even without a fence: %s %v", way.name, r, err)
		}
	}
	asked := w.DNS.Count("leak.attacker.example")
	open.Close()

	g := up(t, w, basic)
	services(t, g.Box)
	// Pin the allowed host's addresses: what the proxy may reach now, the agent still may not.
	if r := g.do(get("/reflect")); r.Status != 200 {
		t.Fatalf("control: the route does not work: %s %s", r, r.Data)
	}
	seen := len(api.Seen())
	for _, uid := range []uint32{1000, 1001, 65534} {
		for _, way := range all {
			if uid == 1001 && way.name == "another uid's service" {
				continue // its own
			}
			way.check(t, fmt.Sprint("uid ", uid), g.as(uid, way.probe))
		}
	}
	for _, way := range all {
		way.check(t, "the agent", g.do(way.probe), hardened...)
	}
	if n := w.DNS.Count("leak.attacker.example") - asked; n != 0 {
		t.Errorf("%d DNS questions of the agent arrived", n)
	}
	if len(api.Seen()) != seen || len(e.Seen()) != 0 {
		t.Error("requests arrived")
	}
	g.leaks(places(api)...)
}

func (w way) check(t *testing.T, who string, r prober.Result, also ...string) {
	t.Helper()
	switch {
	case r.OK():
		t.Errorf("%s: %s WORKS: %s %q", who, w.name, r, r.Data)
	case w.late && r.Errno == "ETIMEDOUT":
	case !slices.Contains(append(also, w.errno...), r.Errno):
		t.Errorf("%s: %s: %s, want one of %v", who, w.name, r, w.errno)
	case r.Elapsed > 900*time.Millisecond: // a refusal by timeout or retransmission takes a second at least; a busy machine part of one
		t.Errorf("%s: %s took %s", who, w.name, r.Elapsed)
	}
}

// TestOnlyTheAgentReachesItsListener: the listener tells callers apart by uid, so no other uid may get there, by no address.
func TestOnlyTheAgentReachesItsListener(t *testing.T) {
	t.Parallel()
	w := world(t)
	upstream(t, w, "api.example.com", rig.Server{})
	g := up(t, w, basic)
	if r := g.as(1000, get("/reflect")); r.Status != 200 {
		t.Errorf("control: uid 1000 from elsewhere in the box: %s", r)
	}
	for _, uid := range []uint32{0, 1001, 65534} {
		if r := g.as(uid, get("/reflect")); r.Errno != "ECONNREFUSED" {
			t.Errorf("uid %d: %s %q", uid, r, r.Data)
		}
	}
	for _, other := range []string{"127.0.0.2:8080", "[::1]:8080", "[::ffff:127.0.0.2]:8080", at(g.Wire.Box4(), 8080), at(g.Wire.Box6(), 8080)} {
		if r := g.do(prober.Probe{Op: "tcp", Address: other}); r.Errno != "ECONNREFUSED" {
			t.Errorf("by %s: %s", other, r)
		}
	}
}

// TestRootReachesItsHostsOnly: root's own programs reach the root list's addresses, and nothing else.
func TestRootReachesItsHostsOnly(t *testing.T) {
	t.Parallel()
	w := world(t)
	e := somewhereElse(t, w)
	deb := upstream(t, w, "deb.example.org", rig.Server{})
	api := upstream(t, w, "api.example.com", rig.Server{})
	g := up(t, w, basic+"root:\n  - host: deb.example.org\n    ports: [443]\n")
	services(t, g.Box)
	eventually(t, "deb.example.org is resolved", func() bool { return len(g.status().addresses("deb.example.org")) == 2 })
	for _, a := range []netip.Addr{deb.Addr4, deb.Addr6} {
		if r := g.as(0, prober.Probe{Op: "tcp", Address: at(a, 443)}); !r.OK() {
			t.Errorf("root to its host at %s: %s", a, r)
		}
		if r := g.as(0, prober.Probe{Op: "tcp", Address: at(a, 80)}); r.Errno != "ECONNREFUSED" || w.Capture().To(a, 80) != 0 {
			t.Errorf("root to another port of its host: %s", r)
		}
		if r := g.as(1000, prober.Probe{Op: "tcp", Address: at(a, 443)}); r.Errno != "ECONNREFUSED" {
			t.Errorf("uid 1000 to root's host: %s", r)
		}
	}
	for _, way := range ways(w, e, api) {
		switch {
		case strings.HasPrefix(way.name, "dns to the box's resolver"), strings.HasPrefix(way.name, "dns over tcp"):
			continue // root resolves for itself
		case strings.HasPrefix(way.name, "an allowed host"):
			continue // root reaches what the proxy has pinned
		}
		way.check(t, "root", g.as(0, way.probe))
	}
	if r := g.as(0, prober.Probe{Op: "tcp", Address: at(w.DNS.Addr4, 53)}); !r.OK() {
		t.Errorf("root to the resolver: %s", r)
	}
	g.leaks(places(deb, api)...)
}

// TestInbound: from outside only published ports of the agent answer, and nothing else is even heard.
func TestInbound(t *testing.T) {
	t.Parallel()
	w := world(t)
	open := bare(t, w)
	if heard := datagrams(t, open, open.Agent()); heard != 1 {
		t.Fatalf("control: %d datagrams heard without a fence", heard)
	}
	g := up(t, w, "version: 1\nagents:\n  - name: agent\n    publish: [3000]\n")
	for _, port := range []string{"3000", "3001"} {
		ready := g.Agent().Start(prober.Probe{Op: "listen", Address: "0.0.0.0:" + port, Timeout: time.Minute})
		if r := <-ready; !r.OK() {
			t.Fatalf("listen on %s: %s", port, r)
		}
	}
	dial := func(port uint16) prober.Result {
		return prober.Run(prober.Probe{Op: "tcp", Address: at(g.Wire.Box4(), port), Read: 5, Timeout: 700 * time.Millisecond}, func(prober.Result) {})
	}
	if r := dial(3000); !r.OK() || string(r.Data) != "hello" {
		t.Errorf("published: %s %q", r, r.Data)
	}
	if r := dial(3001); r.OK() {
		t.Errorf("not published: %s %q", r, r.Data)
	}
	if r := dial(8080); r.OK() {
		t.Errorf("the proxy's listener, from outside: %s", r)
	}
	if heard := datagrams(t, g.Box, g.Agent()); heard != 0 {
		t.Errorf("the agent heard %d datagrams from outside", heard)
	}
}

// datagrams sends one to a UDP socket of the agent from outside, and says how many it heard.
func datagrams(t *testing.T, b *rig.Box, a *rig.Agent) int {
	t.Helper()
	heard := a.Start(prober.Probe{Op: "listen", Network: "udp", Address: "0.0.0.0:4000", Timeout: 700 * time.Millisecond})
	if r := <-heard; !r.OK() {
		t.Fatalf("listen: %s", r)
	}
	r := prober.Run(prober.Probe{Op: "udp", Address: at(b.Wire.Box4(), 4000), Data: []byte("order")}, func(prober.Result) {})
	if !r.OK() {
		t.Fatalf("send: %s", r)
	}
	return last(heard).Count
}
