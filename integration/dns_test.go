package integration

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"exitgate/integration/prober"
	"exitgate/integration/rig"

	"github.com/miekg/dns"
)

// TestLyingDNS: a name whose answer leads to a special-purpose address, or that speaks of other names, opens nothing.
func TestLyingDNS(t *testing.T) {
	t.Parallel()
	w := world(t)
	victim := upstream(t, w, "victim.example.net", rig.Server{})
	good := upstream(t, w, "good.example.com", rig.Server{})
	lies := map[string][]string{
		"loopback":  {"loopback.lies.example.com. 60 IN A 127.0.0.1"},
		"metadata":  {"metadata.lies.example.com. 60 IN A 169.254.169.254"},
		"mapped":    {"mapped.lies.example.com. 60 IN AAAA ::ffff:10.0.0.1"},
		"nat64":     {"nat64.lies.example.com. 60 IN AAAA 64:ff9b::a00:1"},
		"six2four":  {"six2four.lies.example.com. 60 IN AAAA 2002:a00:1::1"},
		"private":   {"private.lies.example.com. 60 IN A 192.168.1.1"},
		"unique":    {"unique.lies.example.com. 60 IN AAAA fd00:ec2::254"},
		"own":       {"own.lies.example.com. 60 IN A 0.0.0.0"},
		"multicast": {"multicast.lies.example.com. 60 IN A 224.0.0.1"},
		"owner":     {"somebody.else.example.com. 60 IN A " + victim.Addr4.String()},
		"chaos":     {"chaos.lies.example.com. 60 CH A 1"},
		"loop":      {"loop.lies.example.com. 60 IN CNAME loop2.lies.example.com.", "loop2.lies.example.com. 60 IN CNAME loop.lies.example.com."},
	}
	policy := "version: 1\negress:\n  - host: good.example.com\n"
	for name, records := range lies {
		host := name + ".lies.example.com"
		if name == "chaos" {
			a := victim.Addr4.AsSlice()
			w.DNS.SetAnswer(host, func(q dns.Question, m *dns.Msg) bool {
				m.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: q.Name, Rrtype: dns.TypeA, Class: dns.ClassCHAOS, Ttl: 60}, A: a}}
				return true
			})
		} else if err := w.DNS.SetRecords(host, records...); err != nil {
			t.Fatal(err)
		}
		policy += "  - host: " + host + "\n"
	}
	if err := w.DNS.SetRecords("chain.example.com", "chain.example.com. 60 IN CNAME middle.example.org.", "middle.example.org. 60 IN CNAME good.example.com.",
		"good.example.com. 60 IN A "+good.Addr4.String()); err != nil {
		t.Fatal(err)
	}
	g := up(t, w, policy+"  - host: chain.example.com\n")
	for _, host := range []string{"good.example.com", "chain.example.com"} {
		if r := g.do(tunnel(host)); r.Status != 200 {
			t.Fatalf("control: %s: %s %s", host, r, r.Data)
		}
	}
	for name := range lies {
		host := name + ".lies.example.com"
		r := g.do(tunnel(host))
		if r.OK() || r.Status != 502 && r.Status != 504 && r.Status != 403 {
			t.Errorf("%s: %s", host, r)
		}
		if w.DNS.Count(host) == 0 {
			t.Errorf("%s was never looked up: the case proves nothing", host)
		}
	}
	if n := len(victim.Seen()); n != 0 {
		t.Errorf("%d requests reached the victim", n)
	}
	eventually(t, "new addresses and refused ones in the audit", func() bool {
		told := map[string]bool{}
		for _, e := range g.audit("pin") {
			told[e.Decision+" "+e.Host] = true
		}
		return told["allow good.example.com"] && told["deny metadata.lies.example.com"]
	})
	g.leaks(places(good)...)
}

// TestAddressesOfAPolicyMayBePrivate is the control of the one above: what the entry lists is allowed.
func TestAddressesOfAPolicyMayBePrivate(t *testing.T) {
	t.Parallel()
	w := world(t)
	private := netip.AddrFrom4([4]byte{10, byte(w.Number() >> 8), byte(w.Number()), 1})
	if err := w.Own(private); err != nil {
		t.Fatal(err)
	}
	upstream(t, w, "inside.example.com", rig.Server{Addr4: private})
	g := up(t, w, "version: 1\negress:\n  - host: inside.example.com\n    addresses: [10.0.0.0/8]\n")
	if r := g.do(tunnel("inside.example.com")); r.Status != 200 {
		t.Errorf("listed: %s %s", r, r.Data)
	}
	if out := g.reload("version: 1\negress:\n  - host: inside.example.com\n    addresses: [172.16.0.0/12]\n"); out.Code != 0 {
		t.Fatalf("reload: %q", out.Stderr)
	}
	if r := g.do(tunnel("inside.example.com")); r.OK() {
		t.Errorf("not listed any more: %s", r)
	}
}

// TestAddressesAreTheEntrys: what one entry lists for a name is nothing that another of the same name and port gets.
func TestAddressesAreTheEntrys(t *testing.T) {
	t.Parallel()
	w := world(t)
	private := netip.AddrFrom4([4]byte{10, byte(w.Number() >> 8), byte(w.Number()), 2})
	if err := w.Own(private); err != nil {
		t.Fatal(err)
	}
	upstream(t, w, "inside.example.com", rig.Server{Addr4: private})
	g := up(t, w, `version: 1
routes:
  - {name: without, path: /without, upstream: "https://inside.example.com", allow: [GET /**]}
  - {name: with, path: /with, upstream: "https://inside.example.com", allow: [GET /**], addresses: [10.0.0.0/8]}
egress:
  - {host: "*.example.com", addresses: [10.0.0.0/9]}
`)
	for range 2 { // also when the other entries have it pinned
		if r := g.do(get("/without/reflect")); r.Status != 502 {
			t.Errorf("by an entry that does not list it: %s %s", r, r.Data)
		}
		if r := g.do(tunnel("inside.example.com")); r.Status != 200 {
			t.Errorf("control: by one that does, through a tunnel: %s %s", r, r.Data)
		}
	}
	if r := g.do(get("/with/reflect")); r.Status != 200 {
		t.Errorf("control: by one that does: %s %s", r, r.Data)
	}
}

// TestResolverDeadAtStart: the agent starts, since no name is required; names work once the resolver does.
func TestResolverDeadAtStart(t *testing.T) {
	t.Parallel()
	w := world(t)
	upstream(t, w, "files.example.com", rig.Server{})
	w.DNS.Down(true)
	g := up(t, w, basic)
	if r := g.as(1000, prober.Probe{Op: "tcp", Address: at(w.DNS.Addr4, 53)}); r.Errno != "ECONNREFUSED" {
		t.Errorf("meanwhile the fence: %s", r)
	}
	p := tunnel("files.example.com")
	p.Timeout = time.Minute
	begin := time.Now()
	if r := g.do(p); r.Status != 502 && r.Status != 504 {
		t.Errorf("a name that does not resolve: %s %s", r, r.Data)
	} else if took := time.Since(begin); took > 15*time.Second {
		t.Errorf("said after %s; the resolver gives up after 8 s", took)
	}
	w.DNS.Down(false)
	eventually(t, "the name works once the resolver does", func() bool { return g.do(tunnel("files.example.com")).Status == 200 })
}

// TestResolverDeadLater: what is known stays usable for a while.
func TestResolverDeadLater(t *testing.T) {
	t.Parallel()
	w := world(t)
	upstream(t, w, "files.example.com", rig.Server{TTL: time.Second})
	upstream(t, w, "mirror.example.com", rig.Server{})
	g := up(t, w, basic)
	if r := g.do(tunnel("files.example.com")); r.Status != 200 {
		t.Fatalf("control: %s", r)
	}
	w.DNS.Down(true)
	time.Sleep(6 * time.Second) // the answer cache's least time is 5 s
	if r := g.do(tunnel("files.example.com")); r.Status != 200 {
		t.Errorf("a known name while the resolver is dead: %s %s", r, r.Data)
	}
}

// TestRequiredName: an agent whose required name does not resolve is not started.
func TestRequiredName(t *testing.T) {
	t.Parallel()
	w := world(t)
	policy := "version: 1\negress:\n  - host: needed.example.com\n    required: true\n"
	g := start(t, w, policy)
	code, err := g.Wait(patience)
	if err != nil || code != 125 {
		t.Fatalf("exit %d, %v", code, err)
	}
	if msg := g.Stderr.String(); !strings.Contains(msg, "needed.example.com") {
		t.Errorf("it does not say which name: %q", msg)
	}
	upstream(t, w, "needed.example.com", rig.Server{})
	if r := up(t, w, policy).do(tunnel("needed.example.com")); r.Status != 200 {
		t.Errorf("control: with the name: %s", r)
	}
}

// TestRequiredNameComesLate: an agent waits for its required name, whatever was said of it before.
func TestRequiredNameComesLate(t *testing.T) {
	t.Parallel()
	const policy = "version: 1\negress:\n  - host: needed.example.com\n    required: true\n"
	for what, before := range map[string]func(*rig.World){
		"does not exist":           func(*rig.World) {},
		"a server refused or fail": func(w *rig.World) { w.DNS.SetCode("needed.example.com", dns.RcodeServerFailure) },
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			w := world(t)
			before(w)
			g := start(t, w, policy)
			if _, err := g.Stderr.WaitText("the agent waits for what is required", patience); err != nil {
				t.Fatal(err)
			}
			if log := g.Stderr.String(); !strings.Contains(log, what) {
				t.Errorf("why: %s", log)
			}
			upstream(t, w, "needed.example.com", rig.Server{})
			if err := g.Agent().Ready(patience); err != nil {
				t.Fatal(err)
			}
			if r := g.do(tunnel("needed.example.com")); r.Status != 200 {
				t.Errorf("%s %s", r, r.Data)
			}
		})
	}
}

// TestRecordChanges: after TTL and grace an address that DNS no longer names is closed for the proxy and for root, the new one works,
// and a connection to the old one lives on. The kernel lease is 30 s for any shorter TTL, and 60 s of grace.
func TestRecordChanges(t *testing.T) {
	t.Parallel()
	w := world(t)
	server := func(name string) *rig.Upstream {
		return upstream(t, w, name, rig.Server{H1: true, TTL: 5 * time.Second})
	}
	held, used, debian := server("files.example.com"), server("mirror.example.com"), server("deb.example.org")
	held2, used2, debian2 := server("f.example.net"), server("m.example.net"), server("d.example.net")
	g := up(t, w, basic+"root:\n  - host: deb.example.org\n    ports: [443]\n")
	root := func(u *rig.Upstream, a netip.Addr) prober.Result {
		return g.as(0, prober.Probe{Op: "tcp", Address: at(a, u.Port)})
	}
	flow := g.Agent().Start(busy("files.example.com", 150*time.Second))
	if r := <-flow; !r.OK() {
		t.Fatalf("the flow does not come up: %s", r)
	}
	eventually(t, "the flow works", func() bool { return len(held.Seen()) > 3 })
	if r := g.do(tunnel("mirror.example.com")); r.Status != 200 {
		t.Fatalf("control: %s", r)
	}
	for what, u := range map[string]*rig.Upstream{"root's host": debian, "a host that the proxy has used": used} {
		eventually(t, "root reaches "+what, func() bool { return root(u, u.Addr4).OK() && root(u, u.Addr6).OK() })
	}

	for name, u := range map[string]*rig.Upstream{"files.example.com": held2, "mirror.example.com": used2, "deb.example.org": debian2} {
		w.DNS.Set(name, 5*time.Second, u.Addr4, u.Addr6)
	}
	changed := time.Now()
	for name, u := range map[string]*rig.Upstream{"files.example.com": held2, "mirror.example.com": used2} {
		eventually(t, name+" is at its new address", func() bool { return g.do(tunnel(name)).Status == 200 && len(u.Seen()) > 0 })
	}
	eventually(t, "root reaches its host's new address", func() bool { return root(debian2, debian2.Addr4).OK() && root(debian2, debian2.Addr6).OK() })
	time.Sleep(time.Until(changed.Add(105 * time.Second)))

	for what, u := range map[string]*rig.Upstream{"root's host": debian, "a host that the proxy has used": used} {
		for _, a := range []netip.Addr{u.Addr4, u.Addr6} {
			if r := root(u, a); r.Errno != "ECONNREFUSED" {
				t.Errorf("%s, old address %s after TTL and grace: %s", what, a, r)
			}
		}
		if got := fmt.Sprint(g.status().addresses(u.Name)); strings.Contains(got, u.Addr4.String()) {
			t.Errorf("%s: status still has the old address: %s", u.Name, got)
		}
	}
	for _, name := range []string{"files.example.com", "mirror.example.com"} {
		if r := g.do(tunnel(name)); r.Status != 200 {
			t.Errorf("%s now: %s %s", name, r, r.Data)
		}
	}
	seen := len(held.Seen())
	eventually(t, "the live connection to the old address goes on", func() bool { return len(held.Seen()) > seen })
	select {
	case r := <-flow:
		t.Errorf("the live connection to the old address ended: %s", r)
	default:
	}
}
