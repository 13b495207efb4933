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
}

// listing is what a policy's entries say of one exact name.
type listing struct {
	claims   []claim
	literal  netip.Addr
	root     bool
	required bool
}

func newGeneration(serial int, p *policy.Policy, now time.Time) *generation {
	g := &generation{serial: serial, policy: p, names: map[string]*listing{}}
	if p == nil {
		return g
	}
	for _, n := range p.Names(now) {
		l := g.names[n.Host]
		if l == nil {
			l = &listing{}
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

// rangesOf are the special-purpose ranges a name may resolve to on one port. The list of names joins those of all its ports; the one answer that
// counts for the proxy is Resolvable's.
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

// restateLocked brings every name in line with the policies in force.
func (r *Resolver) restateLocked(now time.Time) {
	for _, g := range r.gens {
		for host := range g.names {
			if r.table.names[host] == nil {
				r.table.open(host, "", now)
			}
		}
	}
	for host, n := range r.table.names {
		r.adoptLocked(n, r.standingLocked(host, n.asked, now), now)
	}
	r.table.trim(now)
}

// adoptLocked gives a name its standing. What it resolved to lately is granted anew, so that a port or a policy added to a known name needs no lookup.
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
	if len(s.claims) == 0 {
		return
	}
	if n.literal.IsValid() {
		t.grant(n, n.literal, forever, now)
		return
	}
	if wider(old, s.claims) {
		// The last answer may have been robbed of addresses that would pass now.
		n.until, n.blocked, n.refused = earlier(n.until, now), time.Time{}, nil
	}
	if now.Before(n.until) {
		t.absorb(n, n.answer, n.until.Add(leaseGrace), now)
	}
	if len(old) == 0 || s.root || wider(old, s.claims) {
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
