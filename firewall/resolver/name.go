package resolver

import (
	"container/list"
	"net/netip"
	"slices"
	"time"
)

// name is one host: what it may be used for, what it resolved to, and how its lookups go.
type name struct {
	slot   // of its next refresh
	host   string
	claims []claim // nil: no policy in force lists it

	asked   []uint16      // ports that Acquire was asked for and no exact entry lists: a wildcard allows them
	group   string        // the wildcard's rule; "" for a name that an entry lists
	element *list.Element // in its group
	literal netip.Addr    // the name is this address
	root    bool

	leases []*lease
	pins   int
	used   time.Time // by Acquire

	answer  []netip.Addr // of the last lookup that went well, admitted by some claim
	until   time.Time    // the answer is fresh before
	failure *Error       // of the last lookup, nil if it went well
	blocked time.Time    // no other lookup before
	fails   int          // in a row
	refused []netip.Addr // special-purpose addresses reported already
	flight  *flight
}

func (n *name) place() *slot { return &n.slot }

func (n *name) rank() int {
	if n.root {
		return 1
	}
	return 0
}

func (n *name) lease(a netip.Addr) *lease {
	for _, l := range n.leases {
		if l.addr == a {
			return l
		}
	}
	return nil
}

// oldest is the unpinned lease that ends first.
func (n *name) oldest() (found *lease) {
	for _, l := range n.leases {
		if l.pins == 0 && (found == nil || l.until.Before(found.until)) {
			found = l
		}
	}
	return found
}

// claimed says that a claim covers a port.
func (n *name) claimed(port uint16) bool {
	return slices.ContainsFunc(n.claims, func(c claim) bool { return c.port == port && !c.root })
}

// ask counts the ports on which connections use a name as asked for: where its own entry goes, a wildcard may allow them.
func (t *table) ask(n *name) {
	for _, l := range n.leases {
		for _, h := range l.holds {
			if h.pins > 0 && !slices.Contains(n.asked, h.port) {
				n.asked = append(n.asked, h.port)
				t.adhoc[n] = struct{}{}
			}
		}
	}
}

// idle says that nothing would miss the name.
func (n *name) idle() bool { return n.pins == 0 && n.flight == nil }

// open gives the name for a host, new if need be. group is the wildcard that allows it, "" if an entry lists
// it. It is nil when the wildcard has too many names in use.
func (t *table) open(host, group string, now time.Time) *name {
	n := t.names[host]
	if n == nil {
		if group != "" && !t.makeRoom(group, now) {
			return nil
		}
		n = &name{host: host}
		t.names[host] = n
	}
	t.regroup(n, group)
	return n
}

// regroup files a name under the wildcard that allows it, as the latest used.
func (t *table) regroup(n *name, group string) {
	if n.group == group {
		if n.element != nil {
			t.groups[group].MoveToFront(n.element)
		}
		return
	}
	if n.element != nil {
		t.groups[n.group].Remove(n.element)
		n.element = nil
	}
	n.group = group
	if group == "" {
		return
	}
	if t.groups[group] == nil {
		t.groups[group] = list.New()
	}
	n.element = t.groups[group].PushFront(n)
}

// makeRoom drops the name of a wildcard that was unused for longest, if the wildcard is full.
func (t *table) makeRoom(group string, now time.Time) bool {
	names := t.groups[group]
	if names == nil || names.Len() < maxWild {
		return true
	}
	for e := names.Back(); e != nil; e = e.Prev() {
		if n := e.Value.(*name); n.idle() {
			t.reclaim(n, nil, now)
			return true
		}
	}
	return false
}

// reclaim gives a name other claims. It drops a name that has none and that nothing uses.
func (t *table) reclaim(n *name, claims []claim, now time.Time) {
	n.claims = claims
	for _, l := range slices.Clone(n.leases) {
		t.fit(l, now)
	}
	t.bury(n)
}

// bury forgets a name without claims once nothing uses it.
func (t *table) bury(n *name) {
	if len(n.claims) > 0 || !n.idle() || len(n.leases) > 0 || t.names[n.host] != n {
		return
	}
	t.regroup(n, "")
	t.refresh.remove(n)
	delete(t.adhoc, n)
	delete(t.names, n.host)
}

// rerank moves a name's leases to where root's are evicted from, or away from there.
func (t *table) rerank(n *name, root bool) {
	if n.root == root {
		return
	}
	for _, l := range n.leases {
		if l.pos > 0 {
			t.expiry[n.rank()].remove(l)
			t.expiry[1-n.rank()].put(l, l.until)
		}
	}
	n.root = root
}
