package resolver

import (
	"net/netip"
	"slices"
	"strings"
	"time"
)

const (
	cacheFloor    = 5 * time.Second // TTL 0 must not mean a query per request
	cacheCap      = 300 * time.Second
	privateCap    = 60 * time.Second // addresses of containers and pods change hands at once, whatever the TTL says (Docker: 600 s)
	negativeFloor = 5 * time.Second
	negativeCap   = 60 * time.Second
	refusedFor    = time.Second // an answer of refused addresses is a lie or a mistake, and its TTL no measure of how long it lasts
	backoffCap    = 30 * time.Second
	recent        = 10 * time.Minute // how long a name is kept fresh after its last use
	staleFor      = time.Hour        // past its TTL an answer is better than none, but clouds hand addresses on within hours (RFC 8767 says days)
)

func clamp(d, low, high time.Duration) time.Duration { return max(low, min(d, high)) }

// noAddress names ranges, which are ours, and no address, which is the DNS server's.
func noAddress(ranges []string) string {
	return "every address it resolves to is special-purpose: " + strings.Join(ranges, ", ") + "; to allow one, list it under the entry's `addresses`"
}

// lesson is what an outcome changed.
type lesson struct {
	ttl     time.Duration // as cached
	fresh   []netip.Addr  // new to the name
	refused []refusal     // not reported before
	mixed   bool          // some addresses were admitted beside the refused
}

type refusal struct {
	addr netip.Addr
	why  string
}

// learn takes the outcome of a lookup into a name, its leases and the time of the next lookup. chance is in
// [0,1).
func (t *table) learn(n *name, out outcome, chance float64, now time.Time) (l lesson) {
	private := false
	if out.err == nil {
		out, l.refused, private = t.sift(n, out)
		l.mixed = out.err == nil
	}
	switch out.err {
	case nil:
		l.ttl, l.fresh = t.succeed(n, out, private, now)
		// Ahead of the end, and not all names that were looked up together at once again.
		ahead := time.Duration(float64(l.ttl) * (0.8 - 0.1*chance))
		t.refresh.put(n, now.Add(max(ahead, cacheFloor)))
	case ErrNotFound, ErrAddress:
		wait := clamp(out.ttl, negativeFloor, negativeCap)
		t.refresh.put(n, now.Add(wait))
		if out.err == ErrAddress {
			wait = refusedFor
		}
		n.answer, n.until, n.fails = nil, time.Time{}, 0
		n.failure, n.blocked = fail(n.host, out.err, out.msg), now.Add(wait)
		t.vanish(n, now)
	default:
		t.excuse(n, out, chance, now)
		t.refresh.put(n, n.blocked)
	}
	return l
}

// sift drops the addresses that no claim admits. It gives those that were not reported before, and says
// whether some that pass are special-purpose.
func (t *table) sift(n *name, out outcome) (_ outcome, fresh []refusal, private bool) {
	var passed, refused []netip.Addr
	var ranges []string
	for _, a := range out.addrs {
		a = a.Unmap()
		why, special := t.special(a, nil)
		if t.admits(n, 0, a) {
			passed = append(passed, a)
			private = private || special
			continue
		}
		refused = append(refused, a)
		if !slices.Contains(ranges, why) {
			ranges = append(ranges, why)
		}
		if !slices.Contains(n.refused, a) {
			fresh = append(fresh, refusal{a, why})
		}
	}
	n.refused = refused
	out.addrs = passed
	if len(passed) == 0 {
		out.err, out.msg = ErrAddress, noAddress(ranges)
	}
	return out, fresh, private
}

func (t *table) succeed(n *name, out outcome, private bool, now time.Time) (ttl time.Duration, fresh []netip.Addr) {
	ttl = min(out.ttl, cacheCap)
	if private {
		ttl = min(ttl, privateCap)
	}
	end := now.Add(min(max(out.ttl, leaseFloor)+leaseGrace, leaseCap))
	if private {
		end = now.Add(max(ttl, leaseFloor) + leaseGrace)
	}
	ttl = max(ttl, cacheFloor)
	n.answer, n.until = out.addrs, now.Add(ttl)
	n.failure, n.blocked, n.fails = nil, time.Time{}, 0
	return ttl, t.absorb(n, n.answer, end, now)
}

// excuse is for failures that say nothing of the name: the last answer stays in use for a while, and so do
// its leases.
func (t *table) excuse(n *name, out outcome, chance float64, now time.Time) {
	backoff := min(time.Second<<min(n.fails, 8), backoffCap)
	n.fails++
	n.failure = fail(n.host, out.err, out.msg)
	n.blocked = now.Add(time.Duration(float64(backoff) * (0.8 + 0.4*chance)))
	if limit := n.until.Add(staleFor); len(n.answer) > 0 && now.Before(limit) {
		t.absorb(n, n.answer, earlier(now.Add(backoffCap+leaseGrace), limit), now)
	}
}
