package policy

import (
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Grant is what allows a host and port to be resolved and dialled.
type Grant struct {
	Rule string
	At   Position
	// Addresses are the special-purpose ranges the name may resolve to: those of
	// every grant that allows it, of which Ranges has each one's. For a literal,
	// the address itself.
	Addresses []netip.Prefix
	Literal   netip.Addr // valid: the host is this address, nothing is looked up
}

// Resolvable says whether the proxy may have a host resolved and its addresses
// opened at a port, for whichever agent: by a route's upstream or by egress.
// The proxy has asked Decide for the one agent before; this bounds what a proxy
// that does not can reach.
func (p *Policy) Resolvable(host string, port uint16, now time.Time) (Grant, bool) {
	if !wellFormed(host) {
		h, err := ParseHost(host)
		if err != nil || h.Wildcard {
			return Grant{}, false
		}
		host = h.Name
	}
	g, found := Grant{}, false
	add := func(rule string, at Position, ranges []netip.Prefix) {
		if !found {
			g, found = Grant{Rule: rule, At: at, Addresses: ranges}, true
			return
		}
		g.Addresses = union(g.Addresses, ranges)
	}
	for _, e := range p.index.upstream[host] {
		if e.agents != 0 && e.Upstream.Port == port && !expired(e.Expires, now) {
			add(e.rule, e.At, e.Addresses)
		}
	}
	var last *egressEntry
	for i := range p.Agents {
		e := p.index.egress(host, 1<<i)
		if e == nil || e == last {
			continue
		}
		last = e
		if contains(e.Ports, port) && !expired(e.Expires, now) {
			add(e.rule, e.At, e.Addresses)
		}
	}
	if found {
		g.Literal, g.Addresses = literalOf(host, g.Addresses)
	}
	return g, found
}

// Ranges are the special-purpose ranges that one entry, by its rule, lets a host
// resolve to at a port.
func (p *Policy) Ranges(rule, host string, port uint16, now time.Time) []netip.Prefix {
	for _, e := range p.index.upstream[host] {
		if e.rule == rule && e.Upstream.Port == port && !expired(e.Expires, now) {
			return e.Addresses
		}
	}
	e := p.index.exact[host]
	for rest := host; e == nil || e.rule != rule; {
		_, parent, ok := strings.Cut(rest, ".")
		if !ok {
			return nil
		}
		e, rest = p.index.wildcard[parent], parent
	}
	if !contains(e.Ports, port) || expired(e.Expires, now) {
		return nil
	}
	return e.Addresses
}

// literalOf is the address a host is, and as ranges the address itself: written
// in the policy, it is allowed whatever its class.
func literalOf(host string, ranges []netip.Prefix) (netip.Addr, []netip.Prefix) {
	if !strings.Contains(host, ":") && !numeric(lastLabel(host)) {
		return netip.Addr{}, ranges
	}
	addr, err := netip.ParseAddr(host)
	if err != nil {
		return netip.Addr{}, ranges
	}
	return addr, []netip.Prefix{netip.PrefixFrom(addr, addr.BitLen())}
}

// union never changes its arguments: they belong to the policy.
func union[T comparable](a, b []T) []T {
	for _, v := range b {
		if !slices.Contains(a, v) {
			a = append(slices.Clip(a), v)
		}
	}
	return a
}

// Name is one exact host that may be resolved before anybody asks for it.
type Name struct {
	Host      string
	Ports     []uint16 // ascending
	Root      bool     // for root's own programs, by `root:`; kept open always
	Required  bool
	Addresses []netip.Prefix
	Literal   netip.Addr
}

// Names are the exact hosts that grants name now: routes' upstreams and egress
// joined by host, and root's by themselves. Wildcards have no names to resolve.
// Sorted by host, the proxy's before root's.
func (p *Policy) Names(now time.Time) []Name {
	all := make([]Name, 0, len(p.Egress)+len(p.Routes)+len(p.Root))
	where := make(map[string]int, cap(all))
	add := func(host string, ports []uint16, required bool, ranges []netip.Prefix) {
		i, ok := where[host]
		if !ok {
			i = len(all)
			where[host] = i
			all = append(all, Name{Host: host})
		}
		n := &all[i]
		n.Ports, n.Addresses = union(n.Ports, ports), union(n.Addresses, ranges)
		n.Required = n.Required || required
	}
	for i := range p.Routes {
		if r := &p.Routes[i]; p.index.mask(r.Agents) != 0 && !expired(r.Expires, now) {
			add(r.Upstream.Host, []uint16{r.Upstream.Port}, false, r.Addresses)
		}
	}
	for i := range p.Egress {
		if e := &p.Egress[i]; !e.Host.Wildcard && p.index.mask(e.Agents) != 0 && len(e.Ports) > 0 && !expired(e.Expires, now) {
			add(e.Host.Name, e.Ports, e.Required, e.Addresses)
		}
	}
	for i := range p.Root {
		if h := &p.Root[i]; len(h.Ports) > 0 && !expired(h.Expires, now) {
			all = append(all, Name{Host: h.Host.Name, Ports: h.Ports, Root: true, Required: h.Required, Addresses: h.Addresses})
		}
	}
	for i := range all {
		all[i].Literal, all[i].Addresses = literalOf(all[i].Host, all[i].Addresses)
		if !slices.IsSorted(all[i].Ports) {
			all[i].Ports = slices.Sorted(slices.Values(all[i].Ports))
		}
	}
	slices.SortStableFunc(all, func(a, b Name) int { return strings.Compare(a.Host, b.Host) })
	return all
}

// NextExpiry is the first instant after now at which a grant ends.
func (p *Policy) NextExpiry(now time.Time) (time.Time, bool) {
	var next time.Time
	p.eachExpiry(func(at time.Time, _ string, _ Position) {
		if at.After(now) && (next.IsZero() || at.Before(next)) {
			next = at
		}
	})
	return next, !next.IsZero()
}

// Expired are the grants that have ended, as warnings: they allow nothing and
// can be removed.
func (p *Policy) Expired(now time.Time) []*Error {
	var all Errors
	p.eachExpiry(func(at time.Time, rule string, where Position) {
		if expired(at, now) {
			all = append(all, &Error{where, rule + " expired at " + at.Format(time.RFC3339), "remove it, or write a later `expires`"})
		}
	})
	return all.sorted()
}

func (p *Policy) eachExpiry(visit func(at time.Time, rule string, where Position)) {
	see := func(at time.Time, rule string, where Position) {
		if !at.IsZero() {
			visit(at, rule, where)
		}
	}
	for i := range p.Routes {
		see(p.Routes[i].Expires, "route "+p.Routes[i].Name, p.Routes[i].At)
	}
	for i := range p.Egress {
		see(p.Egress[i].Expires, "egress "+p.Egress[i].Host.String(), p.Egress[i].At)
	}
	for i := range p.Root {
		see(p.Root[i].Expires, "root "+p.Root[i].Host.String(), p.Root[i].At)
	}
}
