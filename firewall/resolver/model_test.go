package resolver

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"
)

// entry is one name as the model sees it: the promise of the table in its plainest form.
type entry struct {
	ports  []uint16
	leases map[netip.Addr]time.Time
	gone   map[netip.Addr]bool
	pins   map[netip.AddrPort]int
}

func (e *entry) extend(a netip.Addr, until time.Time) {
	if until.After(e.leases[a]) {
		e.leases[a] = until
	}
	e.gone[a] = false
}

// holds says whether the name wants an endpoint.
func (e *entry) holds(at netip.AddrPort, now time.Time) bool {
	return slices.Contains(e.ports, at.Port()) && (now.Before(e.leases[at.Addr()]) || e.pins[at] > 0)
}

// walk drives a table and its model by the same random steps.
type walk struct {
	t *testing.T
	r *rand.Rand
	*bench
	model map[string]*entry
}

func newWalk(t *testing.T, seed uint64) *walk {
	w := &walk{t: t, r: rand.New(rand.NewPCG(seed, 7)), bench: newBench(), model: map[string]*entry{}}
	for _, h := range []string{"a.test", "b.test", "c.test"} {
		w.model[h] = &entry{[]uint16{443}, map[netip.Addr]time.Time{}, map[netip.Addr]bool{}, map[netip.AddrPort]int{}}
		w.name(h, 443)
	}
	return w
}

// step does one thing to one name; some steps do not apply to some names.
func (w *walk) step(host string) {
	n, e := w.names[host], w.model[host]
	at := netip.AddrPortFrom(nth(1+w.r.IntN(5)), []uint16{80, 443}[w.r.IntN(2)])
	switch what := w.r.IntN(10); {
	case what < 2 && n != nil && len(n.claims) > 0:
		w.resolve(n, e, at.Addr())
	case what < 4 && n != nil && slices.Contains(e.ports, at.Port()):
		w.connect(n, e, at)
	case what < 6:
		w.disconnect(n, e, at)
	case what == 6:
		e.ports = [][]uint16{nil, {443}, {80, 443}, {80}}[w.r.IntN(4)]
		w.name(host, e.ports...)
	case what == 7:
		w.pass(time.Duration(w.r.IntN(90)) * time.Second)
	case what == 8 && n != nil:
		w.vanish(n, w.now)
		for a := range e.leases {
			e.leases[a], e.gone[a] = w.now, true
		}
	case what == 9 && n != nil:
		w.rerank(n, !n.root)
	}
}

func (w *walk) resolve(n *name, e *entry, a netip.Addr) {
	ttl := time.Duration(w.r.IntN(200)) * time.Second
	w.answer(n, ttl, a, nth(9))
	for _, x := range []netip.Addr{a, nth(9)} {
		e.extend(x, w.now.Add(min(max(ttl, leaseFloor)+leaseGrace, leaseCap)))
	}
}

func (w *walk) connect(n *name, e *entry, at netip.AddrPort) {
	if got, _ := w.pin(n, at.Port(), []netip.Addr{at.Addr()}, w.now); len(got) != 1 {
		w.t.Fatalf("pin of %v: %v", at, got)
	}
	if !e.holds(at, w.now) {
		e.extend(at.Addr(), w.now.Add(reconnect))
	}
	e.pins[at]++
}

func (w *walk) disconnect(n *name, e *entry, at netip.AddrPort) {
	if n == nil {
		if e.pins[at] > 0 {
			w.t.Fatalf("the pins of %v are forgotten", at)
		}
		return
	}
	w.unpin(n, at.Port(), []netip.Addr{at.Addr()}, w.now)
	if e.pins[at] == 0 {
		return
	}
	e.pins[at]--
	if e.pins[at] == 0 && !e.gone[at.Addr()] {
		e.extend(at.Addr(), w.now.Add(reconnect))
	}
}

// tidy forgets leases that hold nothing, as the table does: their time is over.
func (w *walk) tidy() {
	for host, e := range w.model {
		for a := range e.leases {
			if n := w.names[host]; n == nil || n.lease(a) == nil {
				delete(e.leases, a)
				delete(e.gone, a)
			}
		}
	}
}

// compare commits, and holds the kernel against the model. It gives how many endpoints there are.
func (w *walk) compare() int {
	w.flush(w.t)
	for i := range 10 {
		for _, port := range []uint16{80, 443} {
			at, want := netip.AddrPortFrom(nth(i), port), false
			for _, e := range w.model {
				want = want || e.holds(at, w.now)
			}
			if want != w.kernel[at] {
				w.t.Fatalf("%v: in the kernel %v, want %v", at, w.kernel[at], want)
			}
		}
	}
	return len(w.kernel)
}

func TestTableAgainstAModel(t *testing.T) {
	most, empty := 0, 0
	for seed := range uint64(40) {
		w := newWalk(t, seed)
		for range 400 {
			w.step([]string{"a.test", "b.test", "c.test"}[w.r.IntN(3)])
			w.tidy()
			if w.r.IntN(3) > 0 {
				continue
			}
			count := w.compare()
			most = max(most, count)
			if count == 0 {
				empty++
			}
		}
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
	if most < 8 || empty < 10 {
		t.Errorf("control: at most %d endpoints, %d times none", most, empty)
	}
}
