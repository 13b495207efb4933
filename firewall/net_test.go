package firewall

import (
	"encoding/binary"
	"net/netip"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"exitgate/netns/netnstest"
)

// The network of the traffic tests: a fenced box and the world beyond its cable.
const (
	boxIP4, boxIP6         = "10.9.0.2", "fd09::2"
	allowedIP4, allowedIP6 = "10.9.0.10", "fd09::10"
	otherIP4, otherIP6     = "10.9.0.66", "fd09::66"
	resolverIP4            = "10.9.0.53"
	listenerAddr4          = "127.0.0.1:8080"
	listenerAddr6          = "[::1]:8080"
)

// fence is a fenced box, the world, and what is needed to try it.
type fence struct {
	t          testing.TB
	box, world *netnstest.Namespace
	kernel     *Netlink
	writer     *Writer
	agent      *prober // uid 1000
	root       *prober
	far        *prober // in the world
	tap        *tap
}

// newFence builds the network, installs the record with contents, and starts
// one prober on each side.
func newFence(t testing.TB, c Contents) *fence {
	t.Helper()
	f := &fence{t: t, box: netnstest.New(t), world: netnstest.New(t)}
	for _, ns := range []*netnstest.Namespace{f.box, f.world} {
		ns.Sysctl("net.ipv6.conf.default.dad_transmits", "0") // a link-local address at once: routers and group reports need it
	}
	netnstest.Veth(
		netnstest.End{In: f.box, Name: "eth0", Addrs: []string{boxIP4 + "/24", boxIP6 + "/64"}},
		netnstest.End{In: f.world, Name: "eth0", Addrs: []string{
			"10.9.0.1/24", allowedIP4 + "/24", otherIP4 + "/24", resolverIP4 + "/24",
			"fd09::1/64", allowedIP6 + "/64", otherIP6 + "/64"}})
	f.box.Route("default", "10.9.0.1")
	f.box.Route("default", "fd09::1")
	f.box.Sysctl("net.ipv4.ping_group_range", "0 2147483647") // as Docker has it
	f.box.Sysctl("net.ipv4.ip_unprivileged_port_start", "0")
	requireNft(t)
	nft(t, f.box, dockerTable, "-f", "-")
	f.kernel = openKernel(t, f.box, true)
	f.writer = installed(t, f.kernel, c)
	f.agent, f.root, f.far = newProber(t, f.box, 1000), newProber(t, f.box, 0), newProber(t, f.world, 0)
	f.tap = newTap(t, f.world)
	return f
}

// usual is what a box with one agent and one allowed host has.
func usual() Contents {
	return Contents{
		Listeners: []Listener{{1000, netip.MustParseAddrPort(listenerAddr4)}, {1000, netip.MustParseAddrPort(listenerAddr6)}},
		Egress: []Endpoint{
			{unix.IPPROTO_TCP, netip.MustParseAddr(allowedIP4), 443},
			{unix.IPPROTO_TCP, netip.MustParseAddr(allowedIP6), 443},
		},
		Resolvers: dnsEndpoints(netip.MustParseAddrPort(resolverIP4 + ":53")),
	}
}

func (f *fence) update(add, del Contents) {
	f.t.Helper()
	if err := f.writer.Update(add, del); err != nil {
		f.t.Fatal(err)
	}
}

// weaken installs a changed copy of the record, for positive controls: what the
// record stops must pass when the rule that stops it is gone.
func (f *fence) weaken(change func(*Ruleset)) {
	f.t.Helper()
	rs := record.clone()
	change(rs)
	if err := f.kernel.Commit(Batch{Install: rs}); err != nil {
		f.t.Fatal(err)
	}
}

// restore installs the record again.
func (f *fence) restore() {
	f.t.Helper()
	if err := f.kernel.Commit(Batch{Install: record}); err != nil {
		f.t.Fatal(err)
	}
}

// drop removes the rules of a chain that read like this, and fails if there is none.
func (f *fence) dropRule(rs *Ruleset, chain, text string) {
	f.t.Helper()
	c := rs.chain(chain)
	for i, r := range c.Rules {
		if r.String() == text {
			c.Rules = append(c.Rules[:i:i], c.Rules[i+1:]...)
			return
		}
	}
	f.t.Fatalf("chain %s has no rule %q", chain, text)
}

// accept takes the connection that a prober's socket made; earlier ones may
// wait before it.
func (f *fence) accept(server *prober, listener int, client *prober, fd int) int {
	f.t.Helper()
	from := client.must(call{Op: "local", FD: fd}).Addr
	for {
		a := server.must(call{Op: "accept", FD: listener})
		if netip.MustParseAddrPort(a.Addr).Port() == netip.MustParseAddrPort(from).Port() {
			return a.FD
		}
		server.do(call{Op: "close", FD: a.FD})
	}
}

func (f *fence) counter(name string) uint64 {
	f.t.Helper()
	c, err := f.writer.Counters()
	if err != nil {
		f.t.Fatal(err)
	}
	return c[name].Packets
}

// tap counts the packets that arrive in the world from the box: everything but
// ARP, and neighbour discovery, which are counted apart.
type tap struct {
	fd    int
	done  sync.WaitGroup
	mu    sync.Mutex
	seen  []arrival
	quiet chan struct{}
}

// arrival is one packet that came out of the box.
type arrival struct {
	proto    uint8
	dst      netip.Addr
	port     uint16
	icmpType uint8
	body     []byte // of the transport header and on
}

func newTap(t testing.TB, ns *netnstest.Namespace) *tap {
	t.Helper()
	fd := netnstest.In(ns, func() (int, error) {
		return unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, int(binary.NativeEndian.Uint16([]byte{0, unix.ETH_P_ALL})))
	})
	tv := unix.NsecToTimeval(int64(20 * time.Millisecond))
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv); err != nil {
		t.Fatal(err)
	}
	unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20)
	p := &tap{fd: fd, quiet: make(chan struct{})}
	p.done.Go(p.read)
	t.Cleanup(func() {
		close(p.quiet)
		p.done.Wait()
		unix.Close(fd)
	})
	return p
}

func (p *tap) read() {
	buf := make([]byte, 64<<10)
	for {
		n, from, err := unix.Recvfrom(p.fd, buf, 0)
		select {
		case <-p.quiet:
			return
		default:
		}
		sll, ok := from.(*unix.SockaddrLinklayer)
		if err != nil || !ok || sll.Pkttype == unix.PACKET_OUTGOING {
			continue
		}
		if a, ok := parseArrival(buf[:n]); ok {
			p.mu.Lock()
			p.seen = append(p.seen, a)
			p.mu.Unlock()
		}
	}
}

func parseArrival(b []byte) (arrival, bool) {
	var a arrival
	switch {
	case len(b) >= 20 && b[0]>>4 == 4:
		a.proto, a.dst = b[9], netip.AddrFrom4([4]byte(b[16:20]))
		a.body = b[int(b[0]&15)*4:]
	case len(b) >= 40 && b[0]>>4 == 6:
		a.proto, a.dst = b[6], netip.AddrFrom16([16]byte(b[24:40]))
		a.body = b[40:]
		if a.proto == 0 && len(a.body) >= 8 { // hop-by-hop options, before MLD
			a.proto, a.body = a.body[0], a.body[8*(int(a.body[1])+1):]
		}
	default:
		return a, false
	}
	a.body = append([]byte(nil), a.body...)
	if len(a.body) >= 4 {
		a.port, a.icmpType = binary.BigEndian.Uint16(a.body[2:]), a.body[0]
	}
	return a, true
}

// isDiscovery is IPv6 neighbour discovery, which a host must be able to do.
func (a arrival) isDiscovery() bool {
	return a.proto == unix.IPPROTO_ICMPV6 && a.icmpType >= 133 && a.icmpType <= 136
}

// reset forgets what came so far.
func (p *tap) reset() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.seen = nil
}

// arrived is what came since reset, less neighbour discovery, after a moment for
// what is still on its way: the cable hands packets on in softirq, at once.
func (p *tap) arrived() []arrival {
	time.Sleep(20 * time.Millisecond)
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []arrival
	for _, a := range p.seen {
		if !a.isDiscovery() {
			out = append(out, a)
		}
	}
	return out
}

// to counts arrivals for an address.
func to(as []arrival, addr string) int {
	n := 0
	for _, a := range as {
		if a.dst == netip.MustParseAddr(addr) {
			n++
		}
	}
	return n
}
