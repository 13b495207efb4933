package resolver

import (
	"net/netip"
	"slices"
)

// element is one endpoint of the kernel's egress set, shared by every name that resolves to it.
type element struct {
	at      netip.AddrPort
	holders int  // leases that want it
	present bool // the kernel acknowledged it, and no removal is under way
	maybe   bool // the kernel may hold it: an addition was sent, and no removal acknowledged since
	dirty   bool // listed in ledger.dirty
}

// ledger is what the kernel should hold and what it is known to hold. What to send follows from comparing the
// two, so that nothing is lost by a failed commit: it stays to be sent.
type ledger struct {
	elements map[netip.AddrPort]*element
	dirty    []*element
	wanted   int // elements with holders
}

// batch is what one commit sends.
type batch struct{ add, del []*element }

func (b batch) empty() bool { return len(b.add)+len(b.del) == 0 }

func (b batch) endpoints() (add, del []netip.AddrPort) {
	list := func(from []*element) []netip.AddrPort {
		to := make([]netip.AddrPort, len(from))
		for i, e := range from {
			to[i] = e.at
		}
		return to
	}
	return list(b.add), list(b.del)
}

// hold counts one more holder of an endpoint.
func (g *ledger) hold(at netip.AddrPort) *element {
	e := g.elements[at]
	if e == nil {
		e = &element{at: at}
		g.elements[at] = e
	}
	e.holders++
	if e.holders == 1 {
		g.wanted++
		g.mark(e)
	}
	return e
}

// drop counts one holder less.
func (g *ledger) drop(e *element) {
	e.holders--
	if e.holders == 0 {
		g.wanted--
		g.mark(e)
	}
}

func (g *ledger) mark(e *element) {
	if !e.dirty {
		e.dirty = true
		g.dirty = append(g.dirty, e)
	}
}

// take gives what is to be sent. From here on an element about to be removed does not count as present:
// whoever wants it again meanwhile has to commit, behind this one.
func (g *ledger) take() (b batch) {
	for _, e := range g.dirty {
		e.dirty = false
		switch {
		case e.holders > 0 && !e.present:
			e.maybe = true
			b.add = append(b.add, e)
		case e.holders == 0 && e.maybe:
			e.present = false
			b.del = append(b.del, e)
		default:
			g.forget(e)
		}
	}
	g.dirty = nil
	return b
}

// settle records the outcome of a batch. After an error nothing is known of its elements, so all are to be
// sent again.
func (g *ledger) settle(b batch, err error) {
	for _, e := range b.add {
		e.present = err == nil
	}
	for _, e := range b.del {
		e.maybe = err != nil
	}
	for _, list := range [][]*element{b.add, b.del} {
		for _, e := range list {
			if err != nil {
				g.mark(e)
			}
			g.forget(e)
		}
	}
}

// forget drops an element that nobody wants and the kernel does not have. Another of the same endpoint may
// have taken its place.
func (g *ledger) forget(e *element) {
	if e.holders == 0 && !e.maybe && g.elements[e.at] == e {
		delete(g.elements, e.at)
	}
}

// there says that the kernel has an endpoint.
func (g *ledger) there(at netip.AddrPort) bool {
	e := g.elements[at]
	return e != nil && e.present
}

// held lists what the kernel acknowledged.
func (g *ledger) held() []netip.AddrPort {
	var list []netip.AddrPort
	for at, e := range g.elements {
		if e.present {
			list = append(list, at)
		}
	}
	slices.SortFunc(list, netip.AddrPort.Compare)
	return list
}
