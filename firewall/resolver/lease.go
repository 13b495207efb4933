package resolver

import (
	"container/list"
	"net/netip"
	"slices"
	"time"
)

const (
	leaseFloor = 30 * time.Second  // a TTL counts as at least this
	leaseGrace = 60 * time.Second  // after the TTL, for programs that looked the name up themselves
	leaseCap   = 360 * time.Second // an address outlives the policy and the answer by no more
	reconnect  = 60 * time.Second  // after the last pin

	maxAddrs    = 128             // leases of one name
	maxElements = 16384           // endpoints in all, a quarter of the kernel's set
	maxLeases   = 4 * maxElements // leases in all: many names may share an address, so elements alone do not bound memory
	maxWild     = 256             // live names of one wildcard
)

// claim is one port on which the policies in force let a name be reached.
type claim struct {
	port      uint16
	root      bool           // for root-owned programs, which resolve for themselves
	addresses []netip.Prefix // special-purpose ranges it may resolve to
}

func (c claim) equal(d claim) bool {
	return c.port == d.port && c.root == d.root && slices.Equal(c.addresses, d.addresses)
}

// lease is one address of one name: in the kernel until its time is over, on a pinned port until the pin ends
// too.
type lease struct {
	slot  // when it ends; queued while it has something to lose by that
	name  *name
	addr  netip.Addr
	until time.Time
	gone  bool // the name does not exist any more: no grace after the last pin
	holds []hold
	pins  int // over all holds
}

// hold is a lease on one port. elem is set while the kernel should have it.
type hold struct {
	port uint16
	pins int
	elem *element
}

func (l *lease) place() *slot { return &l.slot }

func (l *lease) hold(port uint16) *hold {
	for i := range l.holds {
		if l.holds[i].port == port {
			return &l.holds[i]
		}
	}
	return nil
}

// table is the state machine of names, leases and pins: pure, its clock is a parameter. An endpoint is wanted
// while some name whose claims admit it holds it by a lease that has not ended or by a pin. The ledger turns
// that into commits.
type table struct {
	ledger
	special func(netip.Addr, []netip.Prefix) (why string, refused bool)
	names   map[string]*name
	adhoc   map[*name]struct{}    // names with ports that no entry of theirs lists
	groups  map[string]*list.List // names of a wildcard, the latest used first
	expiry  [2]queue[*lease]      // [1]: of root's names. A root-owned program cannot ask for what was evicted, so theirs go last
	leases  int
	refresh queue[*name] // by the time of the next lookup
	fixed   int          // holds of addresses written in the policy, which no cap evicts
}

func newTable(special func(netip.Addr, []netip.Prefix) (string, bool)) *table {
	return &table{
		ledger:  ledger{elements: map[netip.AddrPort]*element{}},
		special: special,
		names:   map[string]*name{},
		adhoc:   map[*name]struct{}{},
		groups:  map[string]*list.List{},
	}
}

// admits says whether some claim of the name lets it stand for an address, on one port or (0) on any.
func (t *table) admits(n *name, port uint16, a netip.Addr) bool {
	for _, c := range n.claims {
		if port != 0 && c.port != port {
			continue
		}
		if n.literal.IsValid() {
			return a == n.literal
		}
		if _, refused := t.special(a, c.addresses); !refused {
			return true
		}
	}
	return false
}

// fit brings what a lease holds in line with claims, pins and time, and drops the lease when it holds nothing.
func (t *table) fit(l *lease, now time.Time) {
	n := l.name
	live := now.Before(l.until)
	if live {
		for _, c := range n.claims {
			if l.hold(c.port) == nil {
				l.holds = append(l.holds, hold{port: c.port})
			}
		}
	}
	kept := l.holds[:0]
	for _, h := range l.holds {
		want := (live || h.pins > 0) && t.admits(n, h.port, l.addr)
		t.turn(l, &h, want)
		if want || h.pins > 0 {
			kept = append(kept, h)
		}
	}
	clear(l.holds[len(kept):])
	l.holds = kept
	switch {
	case len(l.holds) == 0:
		t.end(l)
	case live && !n.literal.IsValid():
		t.expiry[n.rank()].put(l, l.until)
	}
}

func (t *table) turn(l *lease, h *hold, want bool) {
	if want == (h.elem != nil) {
		return
	}
	step := -1
	if want {
		step = 1
		h.elem = t.ledger.hold(netip.AddrPortFrom(l.addr, h.port))
	} else {
		t.drop(h.elem)
		h.elem = nil
	}
	if l.name.literal.IsValid() {
		t.fixed += step
	}
}

// end forgets a lease that holds nothing.
func (t *table) end(l *lease) {
	n := l.name
	t.expiry[n.rank()].remove(l)
	if i := slices.Index(n.leases, l); i >= 0 {
		n.leases = slices.Delete(n.leases, i, i+1)
		t.leases--
	}
}

// grant gives a name an address until a time, or longer if it had longer; fresh says that it did not have the
// address before.
func (t *table) grant(n *name, a netip.Addr, until, now time.Time) (l *lease, fresh bool) {
	l = n.lease(a)
	if l == nil {
		l = &lease{name: n, addr: a}
		n.leases = append(n.leases, l)
		t.leases++
		fresh = true
	}
	if until.After(l.until) {
		l.until = until
	}
	l.gone = false
	t.fit(l, now)
	return l, fresh
}

// absorb adds an answer to what a name holds, and gives the addresses that are new.
func (t *table) absorb(n *name, addrs []netip.Addr, until, now time.Time) (fresh []netip.Addr) {
	for _, a := range addrs {
		if _, isNew := t.grant(n, a, until, now); isNew {
			fresh = append(fresh, a)
		}
	}
	for len(n.leases) > maxAddrs {
		if !t.evict(n.oldest(), now) {
			break
		}
	}
	t.trim(now)
	return fresh
}

// evict ends a lease early; pinned ports of it stay.
func (t *table) evict(l *lease, now time.Time) bool {
	if l == nil {
		return false
	}
	l.until = now
	t.expiry[l.name.rank()].remove(l)
	t.fit(l, now)
	return true
}

// over says that a cap on the whole is exceeded.
func (t *table) over() bool { return t.wanted-t.fixed > maxElements || t.leases > maxLeases }

// trim evicts, the oldest first, until the whole fits. It is true if it does.
func (t *table) trim(now time.Time) bool {
	for t.over() {
		l, ok := t.expiry[0].first()
		if !ok {
			l, ok = t.expiry[1].first()
		}
		if !ok {
			return false
		}
		t.evict(l, now)
	}
	return true
}

// expire ends the leases whose time is over.
func (t *table) expire(now time.Time) {
	for i := range t.expiry {
		for {
			l, ok := t.expiry[i].first()
			if !ok || l.at.After(now) {
				break
			}
			t.evict(l, now)
			t.bury(l.name)
		}
	}
}

// nextExpiry is when expire has something to do again.
func (t *table) nextExpiry() (at time.Time, ok bool) {
	for i := range t.expiry {
		if l, queued := t.expiry[i].first(); queued && (!ok || l.at.Before(at)) {
			at, ok = l.at, true
		}
	}
	return at, ok
}

// pin counts a use of each address on a port and gives those that the claims admit; ready says that the
// kernel has them all.
func (t *table) pin(n *name, port uint16, addrs []netip.Addr, now time.Time) (pinned []netip.Addr, ready bool) {
	pinned, ready = make([]netip.Addr, 0, len(addrs)), true
	for _, a := range addrs {
		h := t.pinOne(n, port, a, now)
		if h == nil {
			continue
		}
		pinned = append(pinned, a)
		ready = ready && h.elem.present
	}
	if !ready && !t.trim(now) {
		t.unpin(n, port, pinned, now)
		t.trim(now)
		return nil, false
	}
	return pinned, ready
}

func (t *table) pinOne(n *name, port uint16, a netip.Addr, now time.Time) *hold {
	l := n.lease(a)
	var h *hold
	if l != nil {
		h = l.hold(port)
	}
	if h == nil || h.elem == nil {
		if !t.admits(n, port, a) {
			return nil
		}
		l, _ = t.grant(n, a, now.Add(reconnect), now)
		h = l.hold(port)
	}
	h.pins++
	l.pins++
	n.pins++
	return h
}

// unpin ends one use of each address on a port. What was not pinned is passed over, so that an end told twice
// takes nothing from others.
func (t *table) unpin(n *name, port uint16, addrs []netip.Addr, now time.Time) {
	for _, a := range addrs {
		l := n.lease(a)
		if l == nil {
			continue
		}
		if h := l.hold(port); h != nil && h.pins > 0 {
			t.release(l, h, 1, now)
		}
	}
	t.bury(n)
}

func (t *table) release(l *lease, h *hold, count int, now time.Time) {
	h.pins -= count
	l.pins -= count
	l.name.pins -= count
	if h.pins > 0 {
		return
	}
	if after := now.Add(reconnect); !l.gone && after.After(l.until) {
		l.until = after
	}
	t.fit(l, now)
}

// releaseAll ends every pin.
func (t *table) releaseAll(now time.Time) {
	for _, n := range t.names {
		for _, l := range slices.Clone(n.leases) {
			for l.pins > 0 {
				i := slices.IndexFunc(l.holds, func(h hold) bool { return h.pins > 0 })
				t.release(l, &l.holds[i], l.holds[i].pins, now)
			}
		}
		t.bury(n)
	}
}

// vanish ends a name's leases because the name does not exist any more; its pins stay.
func (t *table) vanish(n *name, now time.Time) {
	for _, l := range slices.Clone(n.leases) {
		l.gone = true
		t.evict(l, now)
	}
}
