package firewall

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// owner is who a process of the model's box is.
type owner struct{ uid, gid uint32 }

var (
	root        = owner{0, 0}
	modelOwners = []owner{root, root, {0, ProxyGID}, {1000, 1000}, {1000, 1000}, {1001, 1001}, {65534, 65534}}
)

// service is one TCP listener of the model's box, and whose it is.
type service struct {
	owner
	addr string
}

var modelServices = []service{
	{root, listenerAddr4}, {root, listenerAddr6}, {root, "127.0.0.1:8081"}, {root, "127.0.0.1:22"}, {root, "127.0.0.1:5432"}, {root, "[::1]:5432"},
	{owner{1000, 1000}, "127.0.0.1:3000"}, {owner{1000, 1000}, "[::1]:3000"}, {owner{1000, 1000}, "127.0.0.2:3000"}, {owner{1001, 1001}, "127.0.0.1:3001"}, {owner{1001, 1001}, "[::1]:3001"},
	{owner{65534, 65534}, "127.0.0.1:6000"}, {root, boxIP4 + ":8080"}, {root, "127.0.0.11:40053"},
}

var modelPorts = []uint16{22, 53, 80, 443, 3000, 3001, 5432, 6000, 8080, 8081}

// TestModel sends random flows for real and asks Evaluate: they must agree on
// every one. The sets change between rounds.
func TestModel(t *testing.T) {
	t.Parallel()
	rounds, flows := 20, 500
	if testing.Short() {
		rounds = 2
	}
	seed := rand.Uint64()
	rnd := rand.New(rand.NewPCG(seed, 0))
	f := newFence(t, Contents{})
	// So few that flows follow one another by the same ports, over what the flow before left in conntrack.
	f.box.Sysctl("net.ipv4.ip_local_port_range", "50001 50400")
	probers := map[owner]*prober{root: f.root, {1000, 1000}: f.agent}
	for _, o := range modelOwners {
		if probers[o] == nil {
			probers[o] = newProberOf(t, f.box, o)
		}
	}
	for _, s := range modelServices {
		probers[s.owner].serve(s.addr)
	}
	for _, port := range modelPorts {
		f.far.serve(fmt.Sprintf("0.0.0.0:%d", port))
		for _, ip := range []string{allowedIP6, otherIP6} {
			f.far.serve(fmt.Sprintf("[%s]:%d", ip, port))
			f.far.socket("udp6", fmt.Sprintf("[%s]:%d", ip, port))
		}
		f.far.socket("udp4", fmt.Sprintf("0.0.0.0:%d", port))
	}
	allowed, disagreed := 0, 0
	round := func(complain func(string, ...any)) {
		c := randomContents(rnd)
		if err := f.writer.Sync(c); err != nil {
			t.Fatal(err)
		}
		ev := newEvaluator(record, c)
		for range flows {
			fl := randomFlow(rnd)
			want, got := fl.expect(ev), probers[fl.owner].try(fl.net, fl.addr.String())
			if want == "" {
				allowed++
			}
			if got.Err != want {
				disagreed++
				complain("%+v %s %s: %q, the model says %q (seed %d, sets %+v)", fl.owner, fl.net, fl.addr, got.Err, want, seed, c)
			}
		}
	}
	for range rounds {
		round(t.Errorf)
	}
	if n := rounds * flows; allowed < n/50 || allowed > n*49/50 {
		t.Errorf("%d of %d flows were allowed: too one-sided to prove anything", allowed, n)
	}
	f.weaken(func(rs *Ruleset) {
		f.dropRule(rs, "out_net", "meta skuid 0 ip daddr . meta l4proto . th dport @egress4 accept")
	})
	before := disagreed
	for i := 0; i < 10 && disagreed == before; i++ {
		round(func(string, ...any) {})
	}
	if disagreed == before {
		t.Error("a rule less made no flow fare otherwise: the test proves nothing")
	}
}

func (p *prober) serve(addr string) {
	p.t.Helper()
	network := "tcp4"
	if strings.HasPrefix(addr, "[") {
		network = "tcp6"
	}
	p.must(call{Op: "serve", Net: network, Addr: addr})
}

// flow is one random thing to try.
type flow struct {
	owner
	net  string
	addr netip.AddrPort
}

func pick[T any](rnd *rand.Rand, from ...T) T { return from[rnd.IntN(len(from))] }

func randomFlow(rnd *rand.Rand) flow {
	ip := netip.MustParseAddr(pick(rnd, allowedIP4, otherIP4, resolverIP4, allowedIP6, otherIP6, "127.0.0.1", "127.0.0.1", "127.0.0.1",
		"::1", "::1", "127.0.0.2", "127.0.0.11", boxIP4))
	fl := flow{owner: pick(rnd, modelOwners...), addr: netip.AddrPortFrom(ip, pick(rnd, modelPorts...))}
	switch fl.net = pick(rnd, "tcp", "tcp", "tcp", "udp", "udp", "ping"); {
	case fl.net == "ping" && ip.Is6():
		fl.net = "udp6" // an ICMPv6 echo socket tells nothing
	case ip.Is6():
		fl.net += "6"
	default:
		fl.net += "4"
	}
	return fl
}

// randomContents fills the sets with some of what the flows aim at.
func randomContents(rnd *rand.Rand) Contents {
	var c Contents
	some := func(add func()) {
		if rnd.IntN(2) == 0 {
			add()
		}
	}
	for _, l := range []Listener{{1000, netip.MustParseAddrPort(listenerAddr4)}, {1000, netip.MustParseAddrPort(listenerAddr6)}, {1001, netip.MustParseAddrPort("127.0.0.1:8081")}} {
		some(func() { c.Listeners = append(c.Listeners, l) })
	}
	for _, ip := range []string{allowedIP4, otherIP4, allowedIP6, otherIP6, "127.0.0.1", "::1"} {
		for range rnd.IntN(8) {
			c.Egress = append(c.Egress, Endpoint{pick[uint8](rnd, unix.IPPROTO_TCP, unix.IPPROTO_UDP), netip.MustParseAddr(ip), pick(rnd, modelPorts...)})
		}
	}
	for _, ip := range []string{resolverIP4, allowedIP6, "127.0.0.1"} {
		some(func() {
			c.Resolvers = append(c.Resolvers, dnsEndpoints(netip.AddrPortFrom(netip.MustParseAddr(ip), pick(rnd, 53, pick(rnd, modelPorts...))))...)
		})
	}
	for _, uid := range []uint32{1000, 1001} {
		some(func() { c.OwnLoopback = append(c.OwnLoopback, uid) })
	}
	for range rnd.IntN(3) {
		c.RootLoopback = append(c.RootLoopback, pick(rnd, modelPorts...))
	}
	return c
}

// expect is the errno the model foretells.
func (fl flow) expect(ev *evaluator) string {
	p := Packet{Owned: true, UID: fl.uid, GID: fl.gid, Dst: fl.addr, Loopback: fl.addr.Addr().IsLoopback() || fl.addr.Addr().String() == boxIP4, HopLimit: 64}
	p.Src = netip.AddrPortFrom(fl.addr.Addr(), 50000)
	switch fl.net[:3] {
	case "tcp":
		p.Proto, p.TCPFlags = unix.IPPROTO_TCP, TCPSyn
	case "udp":
		p.Proto = unix.IPPROTO_UDP
	default:
		p.Proto, p.Dst = unix.IPPROTO_ICMP, netip.AddrPortFrom(p.Dst.Addr(), 0)
	}
	// Docker's table rewrites the port before the rules see it.
	if fl.addr.Addr() == dockerDNS && fl.addr.Port() == 53 && p.Proto != unix.IPPROTO_ICMP {
		p.OriginalPort, p.Dst = 53, netip.AddrPortFrom(dockerDNS, 40053)
	}
	v := ev.run(p)
	if !v.Allowed() {
		if p.Proto == unix.IPPROTO_TCP {
			return "ECONNREFUSED"
		}
		return "EPERM"
	}
	if p.Proto != unix.IPPROTO_TCP || !p.Loopback {
		return ""
	}
	// The SYN arrived. Somebody must listen, and be let answer.
	for _, s := range modelServices {
		if s.addr == p.Dst.String() {
			synAck := Packet{Owned: true, UID: s.uid, GID: s.gid, Proto: unix.IPPROTO_TCP, Src: p.Dst, Dst: p.Src, Loopback: true,
				Reply: true, State: ConnEstablished, TCPFlags: TCPSyn | TCPAck, Mark: v.Mark}
			if ev.run(synAck).Allowed() {
				return ""
			}
		}
	}
	return "ECONNREFUSED"
}
