package resolver

import (
	"context"

	"exitgate/policy"
)

// flight is a lookup under way, for which several callers may wait.
type flight struct {
	done       chan struct{}
	background bool
}

// launchLocked starts the lookup of a name, or joins the one under way; nil: Run has ended.
func (r *Resolver) launchLocked(n *name, background bool) *flight {
	if n.flight != nil || r.life.Err() != nil {
		return n.flight
	}
	f := &flight{done: make(chan struct{}), background: background}
	n.flight = f
	r.table.refresh.remove(n)
	if background {
		r.busy++
	}
	r.flights.Go(func() { r.fly(n, f) })
	return f
}

func (r *Resolver) fly(n *name, f *flight) {
	r.reread()
	out := r.resolve(r.life, n.host)
	events := r.land(n, f, out)
	if f.background {
		r.flush() // nobody waits who would; an error stays to be retried by Run
	}
	close(f.done)
	r.poke()
	for _, e := range events {
		r.cfg.Observe(e)
	}
}

// resolve asks the hosts file, then DNS.
func (r *Resolver) resolve(ctx context.Context, host string) outcome {
	f := r.sys.facts()
	if addrs, ok := f.hosts[host]; ok {
		return outcome{addrs: addrs, ttl: privateCap, result: ResultHosts}
	}
	return r.look(ctx, f.servers(), host, f.six)
}

// land takes an outcome into the table, unless nobody may use the name any more.
func (r *Resolver) land(n *name, f *flight, out outcome) []policy.Event {
	now, chance := r.cfg.Now(), r.cfg.Rand()
	r.mu.Lock()
	defer r.mu.Unlock()
	n.flight = nil
	if f.background {
		r.busy--
	}
	if len(n.claims) == 0 {
		r.table.bury(n)
		return nil
	}
	l := r.table.learn(n, out, chance, now)
	if out.err == nil && n.failure != nil {
		out.result = ResultAddress
	}
	r.cfg.Count(out.result)
	return r.news.tell(n, l, now)
}
