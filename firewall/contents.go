package firewall

import (
	"cmp"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"exitgate/policy"
)

// Endpoint is what a pinned connection goes to: an address, a protocol
// (unix.IPPROTO_TCP or unix.IPPROTO_UDP) and a port.
type Endpoint struct {
	Proto uint8
	Addr  netip.Addr
	Port  uint16
}

// Listener is an agent's uid and the one address of the proxy it may reach.
type Listener struct {
	UID  uint32
	Addr netip.AddrPort
}

// Contents is what every mutable set of the table holds. The ports and the uids
// of Listeners fill two more sets, which are derived and never given.
type Contents struct {
	Listeners    []Listener
	Egress       []Endpoint // where root's sockets may go
	Resolvers    []Endpoint // DNS servers, for all of root but the proxy; never dockerDNS, which the rules know
	Published    []uint16   // inbound TCP ports, never a listener's
	OwnLoopback  []uint32   // uids that may reach their own TCP listeners on loopback; the conntrack mark is the uid
	RootLoopback []uint16   // loopback TCP ports that root may reach
}

// dockerDNS is Docker's embedded resolver. The ruleset admits root to it by
// conntrack's original port, since its port is rewritten before the rules see it.
var dockerDNS = netip.AddrFrom4([4]byte{127, 0, 0, 11})

// resetMark is the conntrack mark of a refused loopback flow (deny_synack in
// the ruleset), so no uid's own mark.
const resetMark = 0x6167dead

// Compile is what the sets hold for a policy, with the resolvers in use and the
// endpoints pinned now. A nil policy is lockdown: nothing at all. It is pure.
func Compile(p *policy.Policy, resolvers []netip.AddrPort, pinned []Endpoint) Contents {
	var c Contents
	if p == nil {
		return c
	}
	c.Egress = slices.Clone(pinned)
	for _, r := range resolvers {
		c.Resolvers = append(c.Resolvers, dnsEndpoints(r)...)
	}
	for _, a := range p.Agents {
		c.Listeners = append(c.Listeners, Listener{UID: a.UID, Addr: a.Listen})
		c.Published = append(c.Published, a.Publish...)
		if a.Loopback == policy.LoopbackOwn && a.UID != 0 && a.UID != resetMark {
			c.OwnLoopback = append(c.OwnLoopback, a.UID)
		}
	}
	c.Published = append(c.Published, p.RootInbound...)
	c.Published = slices.DeleteFunc(c.Published, func(port uint16) bool {
		return slices.ContainsFunc(c.Listeners, func(l Listener) bool { return l.Addr.Port() == port })
	})
	c.RootLoopback = slices.Clone(p.RootLoopback)
	return c.Normalize()
}

// dnsEndpoints are what must be open for one DNS server to be asked.
func dnsEndpoints(server netip.AddrPort) []Endpoint {
	addr, port := server.Addr().Unmap(), server.Port()
	if addr == dockerDNS && port == 53 {
		return nil // admitted by its original port, which no set is keyed by
	}
	return []Endpoint{{unix.IPPROTO_TCP, addr, port}, {unix.IPPROTO_UDP, addr, port}}
}

// Normalize is c in canonical form: addresses unmapped and without zone,
// everything sorted, no duplicates, nothing that the kernel could not hold.
func (c Contents) Normalize() Contents {
	return Contents{
		Listeners:    normal(c.Listeners, normalListener, compareListeners),
		Egress:       normal(c.Egress, normalEndpoint, compareEndpoints),
		Resolvers:    normal(c.Resolvers, normalEndpoint, compareEndpoints),
		Published:    normal(c.Published, nonZero[uint16], cmp.Compare[uint16]),
		OwnLoopback:  normal(c.OwnLoopback, nonZero[uint32], cmp.Compare[uint32]),
		RootLoopback: normal(c.RootLoopback, nonZero[uint16], cmp.Compare[uint16]),
	}
}

// normal maps each member to its canonical form, drops those without one, and
// sorts the rest; nil when nothing is left.
func normal[T comparable](in []T, canonical func(T) (T, bool), compare func(a, b T) int) []T {
	var out []T
	for _, v := range in {
		if v, ok := canonical(v); ok {
			out = append(out, v)
		}
	}
	slices.SortFunc(out, compare)
	return slices.Compact(out)
}

func nonZero[T uint16 | uint32](v T) (T, bool) { return v, v != 0 }

func normalAddr(a netip.Addr) (netip.Addr, bool) { return a.Unmap().WithZone(""), a.IsValid() }

func normalListener(l Listener) (Listener, bool) {
	a, ok := normalAddr(l.Addr.Addr())
	return Listener{UID: l.UID, Addr: netip.AddrPortFrom(a, l.Addr.Port())}, ok && l.Addr.Port() != 0
}

func normalEndpoint(e Endpoint) (Endpoint, bool) {
	a, ok := normalAddr(e.Addr)
	return Endpoint{Proto: e.Proto, Addr: a, Port: e.Port}, ok && e.Port != 0
}

func compareListeners(a, b Listener) int {
	return cmp.Or(cmp.Compare(a.UID, b.UID), a.Addr.Compare(b.Addr))
}

func compareEndpoints(a, b Endpoint) int {
	return cmp.Or(a.Addr.Compare(b.Addr), cmp.Compare(a.Proto, b.Proto), cmp.Compare(a.Port, b.Port))
}

// Diff is what must be added to c and deleted from it to make it want.
func (c Contents) Diff(want Contents) (add, del Contents) {
	c, want = c.Normalize(), want.Normalize()
	return want.without(c), c.without(want)
}

// without is what c holds and other does not.
func (c Contents) without(other Contents) Contents {
	return Contents{
		Listeners:    minus(c.Listeners, other.Listeners),
		Egress:       minus(c.Egress, other.Egress),
		Resolvers:    minus(c.Resolvers, other.Resolvers),
		Published:    minus(c.Published, other.Published),
		OwnLoopback:  minus(c.OwnLoopback, other.OwnLoopback),
		RootLoopback: minus(c.RootLoopback, other.RootLoopback),
	}
}

func minus[T comparable](a, b []T) []T {
	if len(a) == 0 {
		return nil
	}
	in := make(map[T]struct{}, len(b))
	for _, v := range b {
		in[v] = struct{}{}
	}
	var out []T
	for _, v := range a {
		if _, ok := in[v]; !ok {
			out = append(out, v)
		}
	}
	return out
}

// Empty says whether c holds nothing.
func (c Contents) Empty() bool { return c.Len() == 0 }

// Len is the number of members over all fields.
func (c Contents) Len() int {
	return len(c.Listeners) + len(c.Egress) + len(c.Resolvers) + len(c.Published) + len(c.OwnLoopback) + len(c.RootLoopback)
}
