package resolver

import (
	"net/netip"
	"slices"
	"time"

	"exitgate/policy"
)

// generation is one policy in force, with the names it lists. During a reload there are two.
type generation struct {
	serial  int
	policy  *policy.Policy // nil: nothing is allowed
	names   map[string]*listing
	expiry  time.Time // when some grant ends
	expires bool
	changed []string // names of which the generation before said something else
}

// listing is what a policy's entries say of one exact name.
type listing struct {
	claims   []claim
	literal  netip.Addr
	root     bool
	required bool
}

func newGeneration(serial int, p *policy.Policy, now time.Time) *generation {
	g := &generation{serial: serial, policy: p}
	if p == nil {
		return g
	}
	names := p.Names(now)
	g.names = make(map[string]*listing, len(names))
	slab, claims := slabs(names)
	for i, n := range names {
		l := g.names[n.Host]
		if l == nil {
			l = &slab[i]
			l.claims, claims = claims[:0:len(n.Ports)], claims[len(n.Ports):]
			g.names[n.Host] = l
		}
		l.literal = n.Literal
		l.root = l.root || n.Root
		l.required = l.required || n.Required
		for _, port := range n.Ports {
			l.claims = appendClaim(l.claims, claim{port, n.Root, rangesOf(p, n, port, now)})
		}
	}
	g.expiry, g.expires = p.NextExpiry(now)
	return g
}

// slabs hold what the names of a policy need: two allocations, not twenty thousand.
func slabs(names []policy.Name) ([]listing, []claim) {
	ports := 0
	for _, n := range names {
		ports += len(n.Ports)
	}
	return make([]listing, len(names)), make([]claim, ports)
}

// differing lists the names of which two generations say different things.
func differing(old, next *generation) (hosts []string) {
	common := 0
	for host, l := range next.names {
		known := old.names[host]
		if known != nil {
			common++
		}
		if known == nil || !known.equal(l) {
			hosts = append(hosts, host)
		}
	}
	if common == len(old.names) {
		return hosts
	}
	for host := range old.names {
		if next.names[host] == nil {
			hosts = append(hosts, host)
		}
	}
	return hosts
}

func (l *listing) equal(m *listing) bool {
	return l.literal == m.literal && l.root == m.root && slices.EqualFunc(l.claims, m.claims, claim.equal)
}

// rangesOf are the special-purpose ranges a name may resolve to on one port. The list of names joins those of
// all its ports; the one answer that counts for the proxy is Resolvable's.
func rangesOf(p *policy.Policy, n policy.Name, port uint16, now time.Time) []netip.Prefix {
	if n.Root || n.Literal.IsValid() || len(n.Addresses) == 0 {
		return n.Addresses
	}
	grant, _ := p.Resolvable(n.Host, port, now)
	return grant.Addresses
}

func appendClaim(list []claim, c claim) []claim {
	if slices.ContainsFunc(list, c.equal) {
		return list
	}
	return append(list, c)
}

// allows asks the policy.
func (g *generation) allows(host string, port uint16, now time.Time) (policy.Grant, bool) {
	if g.policy == nil {
		return policy.Grant{}, false
	}
	return g.policy.Resolvable(host, port, now)
}

// allowedLocked asks the policies in force, the newest first. An address that either admits is admitted.
func (r *Resolver) allowedLocked(host string, port uint16, now time.Time) (grant policy.Grant, ok bool) {
	for _, g := range slices.Backward(r.gens) {
		one, yes := g.allows(host, port, now)
		switch {
		case yes && !ok:
			grant, ok = one, true
		case yes:
			grant.Addresses = slices.Concat(grant.Addresses, one.Addresses)
		}
	}
	return grant, ok
}

// standing is what the policies in force say of a name.
type standing struct {
	listing
	listed bool   // by an entry of its own
	group  string // else the wildcard that allows it
}

func (r *Resolver) standingLocked(host string, asked []uint16, now time.Time) (s standing) {
	for _, g := range slices.Backward(r.gens) {
		if l := g.names[host]; l != nil {
			s.add(l)
		}
	}
	for _, port := range asked {
		grant, ok := r.allowedLocked(host, port, now)
		if !ok {
			continue
		}
		s.claims = appendClaim(slices.Clip(s.claims), claim{port, false, grant.Addresses})
		if !s.listed {
			s.group, s.literal = grant.Rule, grant.Literal
		}
	}
	return s
}

func (s *standing) add(l *listing) {
	if !s.listed {
		s.listing, s.listed = *l, true
		return
	}
	s.root = s.root || l.root
	s.claims = slices.Clip(s.claims)
	for _, c := range l.claims {
		s.claims = appendClaim(s.claims, c)
	}
}

// restateLocked brings names in line with the policies in force: those of which the policies changed what
// they say, and those that wildcards allow.
func (r *Resolver) restateLocked(hosts []string, now time.Time) {
	for _, host := range hosts {
		n := r.table.names[host]
		if n == nil {
			n = r.table.open(host, "", now)
		}
		r.table.ask(n)
		r.adoptLocked(n, r.standingLocked(host, n.asked, now), now)
		r.table.bury(n)
	}
	for n := range r.table.adhoc {
		r.adoptLocked(n, r.standingLocked(n.host, n.asked, now), now)
	}
	r.table.trim(now)
}

// adoptLocked gives a name its standing. The leases it has cover a port that is new to it, so that needs no
// lookup.
func (r *Resolver) adoptLocked(n *name, s standing, now time.Time) {
	t := r.table
	t.rerank(n, s.root)
	t.regroup(n, s.group)
	n.literal = s.literal
	if slices.EqualFunc(n.claims, s.claims, claim.equal) {
		return
	}
	old := n.claims
	t.reclaim(n, s.claims, now)
	switch {
	case len(s.claims) == 0:
	case n.literal.IsValid():
		t.grant(n, n.literal, forever, now)
	case wider(old, s.claims):
		// The last answer may have been robbed of addresses that would pass now.
		n.until, n.blocked, n.refused = earlier(n.until, now), time.Time{}, nil
		t.refresh.put(n, now)
	case len(old) == 0 || s.root:
		t.refresh.put(n, now)
	}
}

// forever is the lease of an address that is written in the policy.
var forever = time.Unix(1<<40, 0)

func wider(old, claims []claim) bool {
	return slices.ContainsFunc(claims, func(c claim) bool {
		return len(c.addresses) > 0 && !slices.ContainsFunc(old, c.equal)
	})
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}
