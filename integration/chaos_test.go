package integration

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"exitgate/integration/prober"
	"exitgate/integration/rig"
)

// kill sends KILL to a process of the box by the pid it has there.
func (g *gate) kill(pid int) {
	g.t.Helper()
	if r := g.as(0, prober.Probe{Op: "shell", Data: []byte(fmt.Sprintf("kill -KILL %d", pid))}); r.Status != 0 {
		g.t.Fatalf("kill %d: %s %s", pid, r, r.Data)
	}
}

// flood tries addresses as a uid that was not hardened (as `docker exec -u` gives it), for which the fence alone stands; the outcomes
// come when it is over.
func (g *gate) flood(uid uint32, network string, whole time.Duration, addrs ...string) <-chan map[string]int {
	tally := make(chan map[string]int, 1)
	go func() {
		defer close(tally)
		r, err := g.Probe(uid, prober.Probe{Op: "flood", Network: network, Addresses: addrs, Timeout: whole})
		if err != nil {
			g.t.Errorf("flood as uid %d: %v", uid, err)
		}
		tally <- r.Tally
	}()
	return tally
}

// TestProxyKilledUnderLoad: a connecting agent waits instead of being refused, can never take the port, and the fence stays closed.
func TestProxyKilledUnderLoad(t *testing.T) {
	t.Parallel()
	w := world(t)
	api := upstream(t, w, "api.example.com", rig.Server{})
	e := somewhereElse(t, w)
	g := up(t, w, basic)
	const rounds, pause = 3, 700 * time.Millisecond
	whole := rounds*pause + 2*time.Second
	connects := g.Agent().Start(prober.Probe{Op: "flood", Addresses: []string{listener}, Timeout: whole})
	squats := g.Agent().Start(prober.Probe{Op: "flood", Network: "listen", Addresses: []string{listener, "0.0.0.0:8080"}, Timeout: whole})
	escapes := g.flood(1000, "tcp", whole, at(e.v4, 443), at(e.v6, 443))
	for range rounds {
		pid := g.status().Proxy.PID
		g.kill(pid)
		eventually(t, "another proxy runs", func() bool { now := g.status().Proxy.PID; return now != 0 && now != pid })
		p := get("/reflect")
		p.Timeout = patience
		if r := g.do(p); r.Status != 200 {
			t.Errorf("a request after the kill: %s %s", r, r.Data)
		}
		time.Sleep(pause)
	}
	tally := last(connects).Tally
	if tally[listener+" ok"] == 0 || tally[listener+" ECONNREFUSED"] != 0 {
		t.Errorf("connects to the listener: %v", tally)
	}
	for outcome, n := range last(squats).Tally {
		if !strings.HasSuffix(outcome, " EADDRINUSE") {
			t.Errorf("the agent's attempts at the port: %q %d times", outcome, n)
		}
	}
	for outcome, n := range <-escapes {
		if !strings.HasSuffix(outcome, " ECONNREFUSED") {
			t.Errorf("direct connects: %q %d times", outcome, n)
		}
	}
	if s := g.status(); s.Proxy.Restarts != rounds || s.State != "ready" {
		t.Errorf("status: %+v", s)
	}
	g.leaks(places(api)...)
}

// nft runs the nft program in the box as root, as somebody with `docker exec` might.
func (g *gate) nft(args ...string) rig.Output {
	g.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	out, err := g.Run(ctx, rig.Command{Args: append([]string{"nft"}, args...)})
	if err != nil {
		g.t.Fatalf("nft %q: %v", args, err)
	}
	return out
}

// TestForeignChanges: what somebody else does to the table is refused by the kernel (where it has tables with an owner, Linux 6.9), or
// undone and reported; somebody else's table is left alone.
func TestForeignChanges(t *testing.T) {
	t.Parallel()
	w := world(t)
	api := upstream(t, w, "api.example.com", rig.Server{})
	e := somewhereElse(t, w)
	g := up(t, w, basic)
	if r := g.do(get("/reflect")); r.Status != 200 {
		t.Fatalf("control: %s %s", r, r.Data)
	}
	listing := func() string { return sorted(g.nft("list", "table", "inet", "exitgate").Stdout) }
	was := listing()
	if !strings.Contains(was, "hook output") && !strings.Contains(was, "output hook") {
		t.Fatalf("control: no ruleset: %s", was)
	}
	undone := 0
	for _, change := range []string{
		"flush ruleset", "delete table inet exitgate", "flush chain inet exitgate output", "flush table inet exitgate",
		"insert rule inet exitgate output accept", "add element inet exitgate egress4 { " + e.v4.String() + " . tcp . 443 }",
		"chain inet exitgate output { policy accept; }", "add table inet exitgate { flags dormant; }",
	} {
		out := g.nft(change)
		if out.Code != 0 && !strings.Contains(out.Stderr, "not permitted") {
			t.Errorf("%q: %s", change, out.Stderr)
		}
		eventually(t, "the table is what it was, after "+change, func() bool { return listing() == was })
		for uid, who := range map[uint32]string{1000: "uid 1000", 0: "root"} {
			if r := g.as(uid, prober.Probe{Op: "tcp", Address: at(e.v4, 443)}); r.Errno != "ECONNREFUSED" {
				t.Errorf("after %q, %s: %s", change, who, r)
			}
		}
		if r := g.do(get("/reflect")); r.Status != 200 {
			t.Errorf("after %q the route: %s %s", change, r, r.Data)
		}
		if n := g.status().Drift.Repairs; n > undone {
			undone = n
			if len(g.audit("drift")) < n {
				t.Errorf("%d repairs, %d audit lines", n, len(g.audit("drift")))
			}
		}
	}
	t.Logf("%d changes had to be undone", undone)
	if out := g.nft("table ip foreign { chain nat { type nat hook output priority -100; policy accept; }; }"); out.Code != 0 {
		t.Fatal(out.Stderr)
	}
	if out := g.reload(without("files.example.com")); out.Code != 0 {
		t.Errorf("reload beside a foreign table: exit %d, %q", out.Code, out.Stderr)
	}
	if out := g.nft("list", "tables"); !strings.Contains(out.Stdout, "table ip foreign") {
		t.Errorf("the foreign table is gone: %s", out.Stdout)
	}
	g.leaks(places(api)...)
}

// sorted is a listing without its counters' values and the order of a set's elements.
func sorted(listing string) string {
	var lines []string
	for line := range strings.Lines(listing) {
		if f := strings.Fields(line); len(f) > 0 && f[0] != "packets" {
			slices.Sort(f)
			lines = append(lines, strings.Join(f, " "))
		}
	}
	return strings.Join(lines, "\n")
}

// hosts is egress and root entries of that many names, all on one server.
func hosts(w *rig.World, up *rig.Upstream, section, prefix string, n int) string {
	text := section + ":\n"
	for i := range n {
		name := fmt.Sprintf("%s%d.example.com", prefix, i)
		w.DNS.Set(name, 300*time.Second, up.Addr4, up.Addr6)
		text += "  - host: " + name + "\n    ports: [443]\n"
	}
	return text
}

// TestReloadHammer reloads as fast as it goes for ten seconds while the agent and root send as fast as they can: nothing forbidden leaves,
// nothing allowed is dropped.
func TestReloadHammer(t *testing.T) {
	w := world(t)
	api := upstream(t, w, "api.example.com", rig.Server{})
	deb := upstream(t, w, "deb.example.org", rig.Server{})
	many := upstream(t, w, "many.example.net", rig.Server{})
	e := somewhereElse(t, w)
	base := basic + "root:\n  - host: deb.example.org\n    ports: [443]\n"
	variant := []string{base + strings.TrimPrefix(hosts(w, many, "root", "a", 100), "root:\n"), base + strings.TrimPrefix(hosts(w, many, "root", "b", 100), "root:\n")}
	g := up(t, w, base)
	allowed := []string{at(deb.Addr4, 443), at(deb.Addr6, 443)}
	eventually(t, "root's host is resolved", func() bool { return g.as(0, prober.Probe{Op: "tcp", Address: allowed[1]}).OK() })

	const whole = 10 * time.Second
	forbidden := []string{at(e.v4, 443), at(e.v6, 443), allowed[0], at(w.DNS.Addr4, 53)}
	floods := []struct {
		who    string
		tally  <-chan map[string]int
		expect []string
	}{
		{"uid 1000", g.flood(1000, "tcp", whole, forbidden...), refused},
		{"uid 1000 by udp", g.flood(1000, "udp", whole, at(e.v4, 53), at(e.v6, 443), at(w.DNS.Addr4, 53)), prohibited},
		{"root to its host", g.flood(0, "tcp", whole, allowed...), []string{"ok"}},
		{"root to elsewhere", g.flood(0, "tcp", whole, forbidden[:2]...), refused},
	}
	reloads := 0
	for until := time.Now().Add(whole - time.Second); time.Now().Before(until); reloads++ {
		if out := g.reload(variant[reloads%2]); out.Code != 0 {
			t.Errorf("reload: exit %d, %q", out.Code, out.Stderr)
			break
		}
		if r := g.do(get("/reflect")); r.Status != 200 {
			t.Errorf("a request during reloads: %s %s", r, r.Data)
		}
	}
	attempts := map[string]int{}
	for _, f := range floods {
		for outcome, n := range <-f.tally {
			attempts[f.who] += n
			if _, errno, _ := strings.Cut(outcome, " "); !slices.Contains(f.expect, errno) {
				t.Errorf("%s: %s %d times", f.who, outcome, n)
			}
		}
	}
	t.Logf("%d reloads, attempts: %v", reloads, attempts)
	for _, f := range floods {
		if reloads < 5 || attempts[f.who] < 1000 {
			t.Errorf("too little happened for this to prove anything: %s %d attempts", f.who, attempts[f.who])
		}
	}
	g.leaks(places(api, deb, many)...)
}

// TestRestartOverAnExistingTable: in a pod the namespace outlives the container.
func TestRestartOverAnExistingTable(t *testing.T) {
	t.Parallel()
	w := world(t)
	api := upstream(t, w, "api.example.com", rig.Server{})
	e := somewhereElse(t, w)
	// A shell is PID 1; the gate under it dies by KILL and is started again in the same namespaces.
	g := start(t, w, basic, func(c *rig.Config) {
		c.Plain = true
		c.Args = []string{"/bin/sh", "-c", "/rig/exitgate run & echo $! > /run/first; wait; echo gone; while ! [ -e /run/again ]; do sleep 0.02; done; /rig/exitgate run"}
	})
	ready := func() {
		t.Helper()
		eventually(t, "the gate answers", func() bool { return g.exitgate("status").Code == 0 })
		if r := g.as(1000, get("/reflect")); r.Status != 200 {
			t.Errorf("the route: %s %s", r, r.Data)
		}
	}
	ready()
	g.as(0, prober.Probe{Op: "shell", Data: []byte("kill -KILL $(cat /run/first)")})
	if _, err := g.Stdout.WaitText("gone", patience); err != nil {
		t.Fatal(err)
	}
	if r := g.as(1000, prober.Probe{Op: "tcp", Address: at(e.v4, 443)}); r.Errno != "ECONNREFUSED" {
		t.Errorf("between the two: %s", r)
	}
	if err := g.Write("/run/again", rig.File{}); err != nil {
		t.Fatal(err)
	}
	ready()
	list := g.nft("list", "chain", "inet", "exitgate", "output").Stdout
	if n := strings.Count(list, "goto out_net"); n != 1 {
		t.Errorf("the rules are there %d times:\n%s", n, list)
	}
	g.leaks(places(api)...)
}

// slowly reads a connection to its end and says how many bytes came. It takes its time, with little room to receive into, so that the
// sender's close comes while much of what was sent still waits in the sender's kernel.
func slowly(got chan<- int) rig.Fault {
	return func(c net.Conn) {
		if t, ok := c.(*tls.Conn); ok {
			t.NetConn().(*net.TCPConn).SetReadBuffer(4 << 10)
		} else {
			c.(*net.TCPConn).SetReadBuffer(4 << 10)
		}
		total, buf := 0, make([]byte, 4<<10)
		for {
			n, err := c.Read(buf)
			if total += n; err != nil {
				break
			}
			time.Sleep(time.Millisecond)
		}
		got <- total
	}
}

// TestOrphanData: what was handed to the kernel before close() is delivered, though its packets have no owner any more. The proxy keeps
// its connections until the other side has all; root's other programs just exit.
func TestOrphanData(t *testing.T) {
	t.Parallel()
	w := world(t)
	const size = 400 << 10
	data := []byte(strings.Repeat("x", size))
	got := make(chan int, 1)
	arrived := func(what string) {
		t.Helper()
		select {
		case n := <-got:
			if n != size {
				t.Errorf("%s: %d of %d bytes arrived", what, n, size)
			}
		case <-time.After(patience):
			t.Errorf("%s: the end never arrived", what)
		}
	}
	v4, v6, err := w.Faulty("files.example.com", 0, false, slowly(got))
	if err != nil {
		t.Fatal(err)
	}
	deb4, deb6, err := w.Faulty("deb.example.org", 80, true, slowly(got))
	if err != nil {
		t.Fatal(err)
	}
	for _, only := range []netip.Addr{v4, v6} {
		w.DNS.Set("files.example.com", 300*time.Second, only)
		g := up(t, w, basic+"root:\n  - host: deb.example.org\n    ports: [80]\n")
		p := tunnel("files.example.com")
		p.Op, p.Data = "send", data
		if r := g.do(p); !r.OK() || r.Count != size {
			t.Fatalf("%s, %d sent", r, r.Count)
		}
		arrived("the agent's, by " + only.String())
		to := deb4
		if only == v6 {
			to = deb6
		}
		eventually(t, "root's host is resolved", func() bool { return len(g.status().addresses("deb.example.org")) == 2 })
		if r := g.as(0, prober.Probe{Op: "send", Address: at(to, 80), Data: data}); !r.OK() {
			t.Fatalf("root: %s", r)
		}
		arrived("root's, to " + to.String())
	}
}

// TestManyConnections: PID 1 takes changes to the table also when the proxy and it have a thousand connections.
func TestManyConnections(t *testing.T) {
	t.Parallel()
	w := world(t)
	upstream(t, w, "api.example.com", rig.Server{})
	g := up(t, w, strings.Replace(basic, "credentials:", "agents:\n  - name: agent\n    limits:\n      connections: 2000\ncredentials:", 1))
	var flows []<-chan prober.Result
	for range 1100 {
		flows = append(flows, g.Agent().Start(prober.Probe{Op: "hold", Address: listener, Every: 30 * time.Second, Timeout: 40 * time.Second}))
	}
	for _, f := range flows {
		if r := <-f; !r.OK() {
			t.Fatalf("a connection: %s", r)
		}
	}
	for i := range 3 {
		if out := g.reload(basic + fmt.Sprintf("  - host: h%d.example.com\n", i)); out.Code != 0 {
			t.Errorf("reload: exit %d, %q", out.Code, out.Stderr)
		}
	}
	if g.status().State != "ready" {
		t.Errorf("status: %+v", g.status())
	}
}
