package resolver

import (
	"context"
	"net/netip"
	"slices"
	"time"

	"exitgate/policy"
)

// staleWait is the time for a fresh answer before a stale one is used (RFC 8767 section 5).
const staleWait = 1800 * time.Millisecond

// Acquire gives the addresses that may be dialled for a host and port, in the order to try, each pinned in
// the kernel until Release. rule is the policy entry that they are for: special-purpose ones are those that
// this entry lists. It returns after the kernel acknowledged them. Errors are *Error. The host is put
// into normal form first; the policy is asked before anything else is.
func (r *Resolver) Acquire(ctx context.Context, rule, host string, port uint16) ([]netip.Addr, error) {
	var patience <-chan time.Time // ends when a stale answer will do
	stale := false
	for {
		addrs, ready, w, err := r.try(rule, host, port, stale)
		switch {
		case err != nil:
			return nil, err
		case ready:
			return addrs, nil
		case w == nil:
			return r.confirm(host, port, addrs)
		}
		if w.stale && patience == nil {
			timer := time.NewTimer(staleWait)
			defer timer.Stop()
			patience = timer.C
		}
		select {
		case <-w.flight.done:
		case <-patience:
			stale = true
		case <-ctx.Done():
			return nil, fail("", ErrTimeout, "the caller stopped waiting for a DNS answer")
		}
	}
}

// pending is a lookup to wait for; stale says that an old answer could be used instead.
type pending struct {
	flight *flight
	stale  bool
}

// try pins what is known of a name. ready: the kernel has it all. Otherwise the addresses still need a
// commit, or there is a lookup to wait for.
func (r *Resolver) try(rule, host string, port uint16, stale bool) (addrs []netip.Addr, ready bool, w *pending, err error) {
	now := r.cfg.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	n, err := r.entryLocked(host, port, now)
	if err != nil {
		return nil, false, nil, err
	}
	n.used = now
	usable, failure, old := n.usable(now, stale)
	if failure != nil {
		return nil, false, nil, failure
	}
	if usable == nil {
		f := r.launchLocked(n, false)
		if f == nil {
			return nil, false, nil, fail(n.host, ErrTimeout, "the resolver has ended")
		}
		return nil, false, &pending{f, old}, nil
	}
	usable, special := r.passLocked(n, usable, rule, port, now)
	if len(usable) == 0 {
		return nil, false, nil, fail(n.host, ErrAddress, noAddress(special))
	}
	addrs, ready = r.table.pin(n, port, usable, now)
	if len(addrs) == 0 {
		return nil, false, nil, fail(n.host, ErrLimit, "too many addresses are in use")
	}
	return addrs, ready, nil, nil
}

// entryLocked asks the policy for a host and finds its name.
func (r *Resolver) entryLocked(host string, port uint16, now time.Time) (*name, error) {
	n := r.table.names[host]
	if n == nil {
		h, err := policy.ParseHost(host)
		if err != nil || h.Wildcard {
			return nil, fail("", ErrNotAllowed, "the host is not a name or an address in a usual form")
		}
		host = h.String()
		n = r.table.names[host]
	}
	grant, ok := r.allowedLocked(host, port, now)
	if !ok {
		return nil, fail(host, ErrNotAllowed, "")
	}
	if n == nil || !n.claimed(port) {
		if n = r.admitLocked(host, port, grant, now); n == nil {
			return nil, fail(host, ErrLimit, "too many names of "+grant.Rule+" are in use")
		}
	}
	if n.element != nil {
		r.table.regroup(n, n.group)
	}
	return n, nil
}

// admitLocked adds a host and port that a wildcard allows.
func (r *Resolver) admitLocked(host string, port uint16, grant policy.Grant, now time.Time) *name {
	group := grant.Rule
	if n := r.table.names[host]; n != nil {
		group = n.group
	}
	n := r.table.open(host, group, now)
	if n != nil {
		n.asked = append(n.asked, port)
		r.table.adhoc[n] = struct{}{}
		r.adoptLocked(n, r.standingLocked(host, n.asked, now), now)
	}
	return n
}

// usable gives what may be dialled now, or why nothing may be; neither means that a lookup must be waited
// for. old: a stale answer is there, and is given when stale ones are asked for, or when it is too early for
// another lookup.
func (n *name) usable(now time.Time, stale bool) (addrs []netip.Addr, failure error, old bool) {
	if n.literal.IsValid() {
		return []netip.Addr{n.literal}, nil, false
	}
	if now.Before(n.until) {
		return n.answer, nil, false
	}
	old = len(n.answer) > 0 && now.Before(n.until.Add(staleFor))
	early := now.Before(n.blocked)
	switch {
	case old && (early || stale):
		return n.answer, nil, true
	case early && n.failure != nil:
		return nil, n.failure, false
	}
	return nil, nil, old
}

// passLocked leaves the addresses that the rule's entry admits in a policy in force, and says of which kinds the others are:
// another entry of the same name may admit more.
func (r *Resolver) passLocked(n *name, addrs []netip.Addr, rule string, port uint16, now time.Time) (passed []netip.Addr, special []string) {
	if n.literal.IsValid() {
		return addrs, nil
	}
	var ranges []netip.Prefix
	for _, g := range r.gens {
		if g.policy != nil {
			ranges = slices.Concat(ranges, g.policy.Ranges(rule, n.host, port, now))
		}
	}
	refused := func(a netip.Addr) bool {
		why, refused := r.sys.special(a, ranges)
		if refused && !slices.Contains(special, why) {
			special = append(special, why)
		}
		return refused
	}
	if !slices.ContainsFunc(addrs, refused) {
		return addrs, nil
	}
	return slices.DeleteFunc(slices.Clone(addrs), refused), special
}

// confirm commits pinned addresses and gives those that the kernel now has; the others are released.
func (r *Resolver) confirm(host string, port uint16, addrs []netip.Addr) ([]netip.Addr, error) {
	err := r.flush()
	r.mu.Lock()
	defer r.mu.Unlock()
	n := r.nameLocked(host)
	now := r.cfg.Now()
	if n == nil {
		return nil, fail("", ErrNotAllowed, "") // a reload took the name away
	}
	if err != nil {
		r.table.unpin(n, port, addrs, now)
		return nil, fail(n.host, ErrCommit, "the kernel refused the addresses: "+err.Error())
	}
	there := make([]netip.Addr, 0, len(addrs))
	var gone []netip.Addr
	for _, a := range addrs {
		if r.table.there(netip.AddrPortFrom(a, port)) {
			there = append(there, a)
		} else {
			gone = append(gone, a)
		}
	}
	r.table.unpin(n, port, gone, now)
	if len(there) == 0 {
		// A reload came between: what was allowed when we asked is not now.
		return nil, fail(n.host, ErrNotAllowed, "")
	}
	return there, nil
}

// nameLocked finds a name by any spelling of its host.
func (r *Resolver) nameLocked(host string) *name {
	if n := r.table.names[host]; n != nil {
		return n
	}
	h, err := policy.ParseHost(host)
	if err != nil {
		return nil
	}
	return r.table.names[h.String()]
}

// Release ends the use of addresses that Acquire gave for a host and port, once each. A grace follows in
// which they can be had again without the kernel. Releasing what is not pinned does nothing.
func (r *Resolver) Release(host string, port uint16, addrs []netip.Addr) {
	now := r.cfg.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	if n := r.nameLocked(host); n != nil {
		r.table.unpin(n, port, addrs, now)
	}
}

// ReleaseAll ends every pin: whoever held them died. A Release that comes late would take pins that were made
// since.
func (r *Resolver) ReleaseAll() {
	now := r.cfg.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.table.releaseAll(now)
}
