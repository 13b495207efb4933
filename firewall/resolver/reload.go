package resolver

import (
	"fmt"
	"net/netip"
	"slices"

	"exitgate/policy"
)

// SetPolicy takes a policy into force beside the one before; nil allows nothing. When it returns, Acquire
// answers for either, and the kernel has every address of the new one that is known without a lookup; names
// that have none yet are looked up by Run. commitRemovals then takes the older ones out of force and from the
// kernel. Its error says that the kernel refused; the older policies are out of force all the same, and Run
// tries again. On an error of SetPolicy nothing has changed.
func (r *Resolver) SetPolicy(p *policy.Policy) (commitRemovals func() error, err error) {
	r.reload.Lock()
	defer r.reload.Unlock()
	now := r.cfg.Now()
	before := r.sys.facts().override
	c, err := r.sys.check(now, true, overrideOf(p))
	if err != nil {
		return nil, fmt.Errorf("open the DNS servers: %w", err)
	}
	r.serial++
	g := newGeneration(r.serial, p, now)
	r.mu.Lock()
	r.heedLocked(c, now)
	g.changed = differing(r.latestLocked(), g)
	r.gens = append(slices.Clip(r.gens), g)
	r.restateLocked(g.changed, now)
	r.mu.Unlock()
	if err := r.flush(); err != nil {
		r.withdraw(before)
		return nil, fmt.Errorf("commit the addresses of the new policy: %w", err)
	}
	r.poke()
	return func() error { return r.retire(g.serial) }, nil
}

func overrideOf(p *policy.Policy) []netip.AddrPort {
	if p == nil {
		return nil
	}
	return p.DNS.Servers
}

// latestLocked is the newest policy in force.
func (r *Resolver) latestLocked() *generation {
	if len(r.gens) == 0 {
		return &generation{}
	}
	return r.gens[len(r.gens)-1]
}

// withdraw takes the newest policy back, because its additions failed. What the kernel may hold of it is
// removed now or by Run.
func (r *Resolver) withdraw(override []netip.AddrPort) {
	now := r.cfg.Now()
	r.sys.check(now, true, override) // these servers were open before
	r.mu.Lock()
	g := r.latestLocked()
	r.gens = slices.Clone(r.gens[:len(r.gens)-1])
	r.restateLocked(g.changed, now)
	r.mu.Unlock()
	r.flush()
}

// retire takes the policies before one out of force.
func (r *Resolver) retire(serial int) error {
	r.reload.Lock()
	defer r.reload.Unlock()
	r.mu.Lock()
	i := slices.IndexFunc(r.gens, func(x *generation) bool { return x.serial == serial })
	if i > 0 {
		var changed []string
		for _, g := range r.gens[1 : i+1] {
			changed = append(changed, g.changed...)
		}
		r.gens = slices.Clone(r.gens[i:])
		r.restateLocked(changed, r.cfg.Now())
	}
	r.mu.Unlock()
	return r.flush()
}
