package resolver

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	background = 14                     // lookups at once that nobody waits for: two queries each leave some of inFlight to callers
	pause      = 250 * time.Millisecond // between two looks at what is due, so that thousands of leases do not wake us one by one
)

// Run refreshes names ahead of their TTL, ends leases and grants that are over, watches hosts and
// resolv.conf, and retries commits that failed. It returns when the context ends and every lookup has;
// Acquire looks nothing up after that.
func (r *Resolver) Run(ctx context.Context) {
	defer r.end()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-r.kick:
		}
		timer.Reset(r.tick())
	}
}

func (r *Resolver) end() {
	r.mu.Lock()
	r.die() // under the lock: no flight starts between this and the wait
	r.mu.Unlock()
	r.flights.Wait()
}

// poke has Run look again.
func (r *Resolver) poke() {
	select {
	case r.kick <- struct{}{}:
	default:
	}
}

// tick does what is due and says how long there is nothing to do.
func (r *Resolver) tick() time.Duration {
	r.reread()
	now := r.cfg.Now()
	r.mu.Lock()
	r.expireLocked(now)
	r.launchDueLocked(now)
	dirty := len(r.table.dirty) > 0 && !now.Before(r.retry)
	r.mu.Unlock()
	if dirty {
		r.flush() // an error sets the time to try again
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return clamp(r.nextLocked(now).Sub(r.cfg.Now()), pause, recheck)
}

// expireLocked ends leases and grants.
func (r *Resolver) expireLocked(now time.Time) {
	for i, g := range r.gens {
		if g.expires && !now.Before(g.expiry) {
			next := newGeneration(g.serial, g.policy, now)
			ended := differing(g, next)
			next.changed = slices.Concat(g.changed, ended)
			r.gens[i] = next
			r.restateLocked(ended, now)
		}
	}
	r.table.expire(now)
}

// launchDueLocked starts lookups that are due, of names that somebody uses or root's programs might.
func (r *Resolver) launchDueLocked(now time.Time) {
	for r.busy < background {
		n, ok := r.table.refresh.first()
		if !ok || n.at.After(now) {
			return
		}
		r.table.refresh.remove(n)
		first := n.until.IsZero() && n.failure == nil
		if len(n.claims) > 0 && (n.root || first || now.Sub(n.used) < recent) {
			r.launchLocked(n, true)
		}
	}
}

// nextLocked is when the next tick has something to do.
func (r *Resolver) nextLocked(now time.Time) time.Time {
	next := now.Add(recheck)
	if at, ok := r.table.nextExpiry(); ok {
		next = earlier(next, at)
	}
	if n, ok := r.table.refresh.first(); ok && r.busy < background {
		next = earlier(next, n.at)
	}
	for _, g := range r.gens {
		if g.expires {
			next = earlier(next, g.expiry)
		}
	}
	if len(r.table.dirty) > 0 {
		next = earlier(next, r.retry)
	}
	return next
}

// reread looks at the system and draws the consequences.
func (r *Resolver) reread() {
	now := r.cfg.Now()
	c, err := r.sys.check(now, false, nil)
	if err != nil || len(c.hosts) == 0 && !c.servers && !c.local {
		return // an error leaves the servers in use as they are, and the next look tries again
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.heedLocked(c, now)
}

func (r *Resolver) heedLocked(c change, now time.Time) {
	for _, host := range c.hosts {
		if n := r.table.names[host]; n != nil && !n.literal.IsValid() {
			n.answer, n.until, n.failure, n.blocked = nil, time.Time{}, nil, time.Time{}
			r.table.refresh.put(n, now)
		}
	}
	if !c.servers && !c.local {
		return
	}
	for _, n := range r.table.names {
		if c.servers && n.fails > 0 {
			n.blocked = time.Time{}
			r.table.refresh.put(n, now)
		}
		if c.local {
			r.table.reclaim(n, n.claims, now)
		}
	}
}

// Prewarm looks up the exact names that are not known yet, many at once. It waits for those that the policy
// requires, where it requires any, else for all, or until the context ends; what is left then is Run's. Its
// error names the required ones that have no address.
func (r *Resolver) Prewarm(ctx context.Context) error {
	required, rest := r.cold()
	r.warm(ctx, required)
	if len(required) > 0 {
		go r.warm(ctx, rest)
		return r.missing()
	}
	r.warm(ctx, rest)
	return r.missing()
}

// cold lists the names to look up: the required ones, and the others, root's first.
func (r *Resolver) cold() (required, rest []*name) {
	now := r.cfg.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	for host, l := range r.latestLocked().names {
		n := r.table.names[host]
		switch {
		case n == nil || n.literal.IsValid() || now.Before(n.until) || now.Before(n.blocked):
		case l.required:
			required = append(required, n)
		default:
			rest = append(rest, n)
		}
	}
	slices.SortFunc(rest, func(a, b *name) int { return b.rank() - a.rank() })
	return required, rest
}

// warm looks names up, as many at once as lookups that nobody waits for may be.
func (r *Resolver) warm(ctx context.Context, names []*name) {
	next := make(chan *name)
	var workers sync.WaitGroup
	for range min(background, len(names)) {
		workers.Go(func() {
			for n := range next {
				r.warmOne(ctx, n)
			}
		})
	}
	for _, n := range names {
		if ctx.Err() == nil {
			next <- n
		}
	}
	close(next)
	workers.Wait()
}

func (r *Resolver) warmOne(ctx context.Context, n *name) {
	r.mu.Lock()
	f := r.launchLocked(n, true)
	r.mu.Unlock()
	if f == nil {
		return
	}
	select {
	case <-f.done:
	case <-ctx.Done():
	}
}

// missing names the required hosts that have no address.
func (r *Resolver) missing() error {
	var errs []error
	r.mu.Lock()
	defer r.mu.Unlock()
	for host, l := range r.latestLocked().names {
		n := r.table.names[host]
		if !l.required || n == nil || n.literal.IsValid() || len(n.answer) > 0 {
			continue
		}
		failure := n.failure
		if failure == nil {
			failure = fail(host, ErrTimeout, "")
		}
		errs = append(errs, fmt.Errorf("required host %w", failure))
	}
	slices.SortFunc(errs, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	return errors.Join(errs...)
}
