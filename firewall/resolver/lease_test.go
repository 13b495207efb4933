package resolver

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"
)

// bench is a table with a clock and a kernel, driven by hand.
type bench struct {
	*table
	now    time.Time
	kernel map[netip.AddrPort]bool
}

func newBench() *bench {
	return &bench{table: newTable(Special), now: newClock().at, kernel: map[netip.AddrPort]bool{}}
}

// name makes a name with a claim on each port.
func (b *bench) name(host string, ports ...uint16) *name {
	n := b.open(host, "", b.now)
	var claims []claim
	for _, p := range ports {
		claims = append(claims, claim{port: p})
	}
	b.reclaim(n, claims, b.now)
	return n
}

// answer gives a name an answer as learn does.
func (b *bench) answer(n *name, ttl time.Duration, addrs ...netip.Addr) lesson {
	return b.learn(n, outcome{addrs: addrs, ttl: ttl, result: ResultOK}, 0.5, b.now)
}

// flush commits, and fails the test if the batch holds anything that was not needed.
func (b *bench) flush(t testing.TB) (added, deleted int) {
	t.Helper()
	batch := b.take()
	add, del := batch.endpoints()
	for _, e := range add {
		if b.kernel[e] {
			t.Errorf("%v is added twice", e)
		}
		b.kernel[e] = true
	}
	for _, e := range del {
		if !b.kernel[e] {
			t.Errorf("%v is deleted, and was not there", e)
		}
		delete(b.kernel, e)
	}
	b.settle(batch, nil)
	if again := b.take(); !again.empty() {
		t.Errorf("nothing changed, and the next batch is %v", again)
	}
	return len(add), len(del)
}

func (b *bench) pass(d time.Duration) { b.now = b.now.Add(d); b.expire(b.now) }

func (b *bench) holds(t testing.TB, want ...string) {
	t.Helper()
	b.flush(t)
	var got []string
	for e := range b.kernel {
		got = append(got, e.String())
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Fatalf("the kernel holds %v, want %v", got, want)
	}
}

func nth(i int) netip.Addr { return netip.AddrFrom4([4]byte{8, byte(i >> 16), byte(i >> 8), byte(i)}) }

func TestLeaseOutlivesTTLByItsGrace(t *testing.T) {
	for _, tt := range []struct{ ttl, lease time.Duration }{
		{0, 90 * time.Second}, {10 * time.Second, 90 * time.Second}, {100 * time.Second, 160 * time.Second},
		{300 * time.Second, 360 * time.Second}, {24 * time.Hour, 360 * time.Second},
	} {
		b := newBench()
		b.answer(b.name("a.test", 443), tt.ttl, nth(1))
		b.holds(t, "8.0.0.1:443")
		b.pass(tt.lease - time.Second)
		b.holds(t, "8.0.0.1:443")
		b.pass(time.Second)
		b.holds(t)
		if b.leases != 0 || len(b.elements) != 0 {
			t.Errorf("left over: %d leases, %v", b.leases, b.elements)
		}
	}
}

func TestRotationAccumulatesWithinTheLease(t *testing.T) {
	b := newBench()
	n := b.name("a.test", 443)
	b.answer(n, 60*time.Second, nth(1))
	b.pass(60 * time.Second)
	b.answer(n, 60*time.Second, nth(2))
	b.holds(t, "8.0.0.1:443", "8.0.0.2:443")
	if !slices.Equal(n.answer, []netip.Addr{nth(2)}) {
		t.Errorf("to be dialled: %v", n.answer)
	}
	b.pass(60 * time.Second)
	b.holds(t, "8.0.0.2:443")
}

func TestPinOutlivesTheLease(t *testing.T) {
	b := newBench()
	n := b.name("a.test", 80, 443)
	b.answer(n, 60*time.Second, nth(1))
	b.pin(n, 443, []netip.Addr{nth(1)}, b.now)
	b.pin(n, 443, []netip.Addr{nth(1)}, b.now)
	b.holds(t, "8.0.0.1:443", "8.0.0.1:80")
	b.pass(time.Hour)
	b.holds(t, "8.0.0.1:443") // the pin is of one port
	b.unpin(n, 443, []netip.Addr{nth(1)}, b.now)
	b.pass(time.Hour)
	b.holds(t, "8.0.0.1:443") // another connection
	b.unpin(n, 443, []netip.Addr{nth(1)}, b.now)
	b.pass(reconnect - time.Second)
	b.holds(t, "8.0.0.1:443", "8.0.0.1:80")
	b.pass(time.Second)
	b.holds(t)
}

func TestSharedAddressIsHeldByEachName(t *testing.T) {
	b := newBench()
	one, two := b.name("a.test", 443), b.name("b.test", 443, 80)
	b.answer(one, 60*time.Second, nth(1))
	b.answer(two, 200*time.Second, nth(1))
	b.holds(t, "8.0.0.1:443", "8.0.0.1:80")
	b.reclaim(two, []claim{{port: 80}}, b.now)
	b.holds(t, "8.0.0.1:443", "8.0.0.1:80")
	b.reclaim(one, nil, b.now)
	b.holds(t, "8.0.0.1:80")
	if b.names["a.test"] != nil {
		t.Error("a name that nothing uses is kept")
	}
}

func TestRevokedNameLosesItsPins(t *testing.T) {
	b := newBench()
	n := b.name("a.test", 443)
	b.answer(n, 60*time.Second, nth(1))
	b.pin(n, 443, n.answer, b.now)
	b.reclaim(n, nil, b.now)
	b.holds(t)
	if b.names["a.test"] == nil {
		t.Fatal("the pins are forgotten")
	}
	b.unpin(n, 443, []netip.Addr{nth(1)}, b.now)
	b.holds(t)
	if len(b.names) > 0 || b.leases > 0 {
		t.Errorf("left over: %v, %d leases", b.names, b.leases)
	}
}

func TestNoSuchNameDropsWhatIsNotPinned(t *testing.T) {
	b := newBench()
	n := b.name("a.test", 443)
	b.answer(n, 60*time.Second, nth(1), nth(2))
	b.pin(n, 443, []netip.Addr{nth(1)}, b.now)
	b.learn(n, outcome{err: ErrNotFound, ttl: 20 * time.Second}, 0.5, b.now)
	b.holds(t, "8.0.0.1:443")
	b.unpin(n, 443, []netip.Addr{nth(1)}, b.now)
	b.holds(t) // no grace: the name is gone
}

// TestUnpinOfWhatIsNotPinned takes nothing from others.
func TestUnpinOfWhatIsNotPinned(t *testing.T) {
	b := newBench()
	n := b.name("a.test", 443)
	b.answer(n, 60*time.Second, nth(1))
	b.pin(n, 443, n.answer, b.now)
	b.unpin(n, 80, n.answer, b.now)
	b.unpin(n, 443, []netip.Addr{nth(2)}, b.now)
	if n.pins != 1 {
		t.Errorf("%d pins", n.pins)
	}
	b.unpin(n, 443, n.answer, b.now)
	b.unpin(n, 443, n.answer, b.now)
	if n.pins != 0 || n.leases[0].pins != 0 {
		t.Errorf("%d pins", n.pins)
	}
}

// TestRotationOfManyAddresses: 100 answers of 8 addresses each. The name's cap holds, and nothing that is
// pinned is evicted.
func TestRotationOfManyAddresses(t *testing.T) {
	b := newBench()
	n := b.name("a.test", 443)
	var pinned []netip.Addr
	for i := range 100 {
		var eight []netip.Addr
		for j := range 8 {
			eight = append(eight, nth(1+8*i+j))
		}
		b.answer(n, 60*time.Second, eight...)
		if i%2 == 0 {
			b.pin(n, 443, eight[:1], b.now)
			pinned = append(pinned, eight[0])
		}
		b.now = b.now.Add(time.Millisecond)
		b.flush(t)
		if len(n.leases) > maxAddrs || len(b.kernel) > maxAddrs {
			t.Fatalf("answer %d: %d leases, %d elements", i, len(n.leases), len(b.kernel))
		}
		for _, a := range append(pinned, eight...) {
			if !b.kernel[netip.AddrPortFrom(a, 443)] {
				t.Fatalf("answer %d: %v is missing", i, a)
			}
		}
	}
	if len(n.leases) != maxAddrs {
		t.Errorf("%d leases, want the cap in use", len(n.leases))
	}
}

func TestCapOnTheWholeEvictsTheOldest(t *testing.T) {
	b := newBench()
	root := b.name("root.test", 443)
	b.rerank(root, true)
	b.answer(root, 0, nth(1<<23))
	kept := b.name("pinned.test", 443)
	b.answer(kept, 0, nth(1<<22))
	b.pin(kept, 443, kept.answer, b.now)
	written := b.written("8.0.128.1")
	b.flush(t)
	const each = 64
	for i := range maxElements/each + 20 {
		var list []netip.Addr
		for j := range each {
			list = append(list, nth(1+each*i+j))
		}
		b.answer(b.name(fmt.Sprintf("n%d.test", i), 443), time.Minute, list...)
		b.now = b.now.Add(time.Millisecond)
		b.flush(t)
		if len(b.kernel) > maxElements+1 { // what the policy writes does not count
			t.Fatalf("%d elements", len(b.kernel))
		}
	}
	for _, a := range append(append(root.answer, kept.answer...), written.literal) {
		if !b.kernel[netip.AddrPortFrom(a, 443)] {
			t.Errorf("%v was evicted", a)
		}
	}
	if b.kernel[netip.AddrPortFrom(nth(1), 443)] || !b.kernel[netip.AddrPortFrom(nth(each*(maxElements/each+20)), 443)] {
		t.Error("not the oldest went")
	}
	// What was evicted comes back when it is asked for.
	first := b.names["n0.test"]
	if got, ready := b.pin(first, 443, first.answer, b.now); len(got) != each || ready {
		t.Errorf("%d addresses, ready %v", len(got), ready)
	}
	b.flush(t)
	if !b.kernel[netip.AddrPortFrom(nth(1), 443)] || len(b.kernel) != maxElements+1 {
		t.Errorf("%d elements", len(b.kernel))
	}
}

// written is an address that an entry of the policy is.
func (b *bench) written(addr string) *name {
	n := b.name(addr, 443)
	n.literal = netip.MustParseAddr(addr)
	b.grant(n, n.literal, forever, b.now)
	return n
}

func TestPinsAloneFillTheWhole(t *testing.T) {
	b := newBench()
	b.written("9.9.9.9")
	for i := range maxElements / maxAddrs {
		var list []netip.Addr
		for j := range maxAddrs {
			list = append(list, nth(1+maxAddrs*i+j))
		}
		n := b.name(fmt.Sprintf("n%d.test", i), 443)
		b.answer(n, time.Minute, list...)
		if got, _ := b.pin(n, 443, list, b.now); len(got) != maxAddrs {
			t.Fatalf("%d pinned", len(got))
		}
	}
	n := b.name("late.test", 443)
	b.answer(n, time.Minute, nth(1<<22))
	if got, ready := b.pin(n, 443, []netip.Addr{nth(1 << 22)}, b.now); len(got) > 0 || ready || n.pins != 0 {
		t.Errorf("pinned %v, ready %v, %d pins", got, ready, n.pins)
	}
	b.flush(t)
	if b.over() || !b.kernel[endpoint("9.9.9.9:443")] {
		t.Errorf("over the cap: %v; what the policy writes is there: %v", b.over(), b.kernel[endpoint("9.9.9.9:443")])
	}
}

func TestWildcardHasABoundedNumberOfNames(t *testing.T) {
	b := newBench()
	name := func(i int) *name {
		n := b.open(fmt.Sprintf("n%d.w.test", i), "egress/*.w.test", b.now)
		if n != nil && len(n.claims) == 0 {
			b.reclaim(n, []claim{{port: 443}}, b.now)
			b.answer(n, time.Minute, nth(1+i))
		}
		return n
	}
	b.pin(name(0), 443, []netip.Addr{nth(1)}, b.now)
	for i := range 3 * maxWild {
		name(i)
		name(1) // used all the time
	}
	if len(b.names) != maxWild || b.groups["egress/*.w.test"].Len() != maxWild {
		t.Errorf("%d names", len(b.names))
	}
	if b.names["n0.w.test"] == nil || b.names["n1.w.test"] == nil || b.names["n2.w.test"] != nil {
		t.Error("the wrong names went")
	}
	b.flush(t)
	if len(b.kernel) != maxWild {
		t.Errorf("%d elements", len(b.kernel))
	}
	for _, n := range b.names {
		b.pin(n, 443, n.answer, b.now)
	}
	if name(5000) != nil {
		t.Error("a name more, with all in use")
	}
}

func TestReleaseAllEndsEveryPin(t *testing.T) {
	b := newBench()
	for i := range 10 {
		n := b.name(fmt.Sprintf("n%d.test", i), 80, 443)
		b.answer(n, time.Minute, nth(1), nth(100+i))
		b.pin(n, 443, n.answer, b.now)
		b.pin(n, 80, n.answer, b.now)
		b.pin(n, 80, n.answer, b.now)
	}
	b.pass(time.Hour)
	b.releaseAll(b.now)
	b.flush(t)
	if len(b.kernel) != 22 {
		t.Errorf("%d elements in the grace", len(b.kernel))
	}
	b.pass(reconnect)
	b.holds(t)
	if b.leases != 0 {
		t.Errorf("%d leases", b.leases)
	}
}

// TestFailedCommits: whatever is lost, the next commit that works makes the kernel right, and what is not
// acknowledged is never taken for present.
func TestFailedCommits(t *testing.T) {
	for _, applied := range []bool{false, true} { // a lost acknowledgement looks like a failure
		b := newBench()
		n := b.name("a.test", 443)
		fail := func() {
			batch := b.take()
			if applied {
				for _, e := range batch.add {
					b.kernel[e.at] = true
				}
				for _, e := range batch.del {
					delete(b.kernel, e.at)
				}
			}
			b.settle(batch, errors.New("no"))
		}
		settle := func(want ...string) {
			t.Helper()
			batch := b.take()
			for _, e := range batch.add {
				b.kernel[e.at] = true
			}
			for _, e := range batch.del {
				delete(b.kernel, e.at)
			}
			b.settle(batch, nil)
			b.holds(t, want...)
		}
		b.answer(n, time.Minute, nth(1))
		fail()
		if b.there(endpoint("8.0.0.1:443")) {
			t.Error("taken for present after a failure")
		}
		fail()
		settle("8.0.0.1:443")
		b.learn(n, outcome{err: ErrNotFound}, 0.5, b.now)
		fail()
		b.answer(n, time.Minute, nth(1)) // wanted again after a removal that failed
		if b.there(endpoint("8.0.0.1:443")) {
			t.Error("taken for present after a removal that may have worked")
		}
		settle("8.0.0.1:443")
		b.answer(n, time.Minute, nth(2))
		fail()
		b.learn(n, outcome{err: ErrNotFound}, 0.5, b.now)
		settle()
		if len(b.elements) != 0 {
			t.Errorf("left over: %v", b.elements)
		}
	}
}

// TestRemovalUnderWay: an endpoint wanted again while its removal is with the kernel does not count as
// present, and comes back.
func TestRemovalUnderWay(t *testing.T) {
	b := newBench()
	n := b.name("a.test", 443)
	b.answer(n, time.Minute, nth(1))
	b.flush(t)
	b.learn(n, outcome{err: ErrNotFound}, 0.5, b.now)
	removal := b.take()
	b.answer(n, time.Minute, nth(1))
	if _, ready := b.pin(n, 443, n.answer, b.now); ready {
		t.Error("ready while the removal is under way")
	}
	delete(b.kernel, endpoint("8.0.0.1:443"))
	b.settle(removal, nil)
	b.holds(t, "8.0.0.1:443")
}

// TestElementThatTookAnothersPlace: the record of a removal must not forget a newer one of the same endpoint.
func TestElementThatTookAnothersPlace(t *testing.T) {
	b := newBench()
	at := endpoint("8.0.0.1:443")
	first := b.hold(at)
	b.flush(t)
	b.drop(first)
	removal := b.take()
	b.drop(b.hold(at)) // wanted for a moment while the removal is under way
	delete(b.kernel, at)
	b.settle(removal, nil)
	second := b.hold(at)
	if first == second {
		t.Fatal("control: the same record")
	}
	b.flush(t)
	if !b.kernel[at] || !b.there(at) || b.elements[at] != second {
		t.Errorf("kernel %v, known %v", b.kernel[at], b.there(at))
	}
}

func TestFailureKeepsTheLastAnswerForAnHour(t *testing.T) {
	b := newBench()
	n := b.name("a.test", 443)
	b.answer(n, time.Minute, nth(1))
	start := b.now
	var waits []time.Duration
	for b.now.Sub(start) < time.Minute+staleFor+10*time.Minute {
		b.learn(n, outcome{err: ErrTimeout, ttl: 0}, 0.5, b.now)
		waits = append(waits, n.blocked.Sub(b.now))
		age := b.now.Sub(start)
		got, failure, old := n.usable(b.now, false)
		if fresh := age < time.Minute; fresh && (len(got) == 0 || old) {
			t.Fatalf("at %s: %v %v %v", age, got, failure, old)
		} else if stale := age < time.Minute+staleFor; !fresh && stale && (len(got) == 0 || !old) {
			t.Fatalf("at %s: %v %v %v", age, got, failure, old)
		} else if !fresh && !stale && (len(got) > 0 || failure == nil) {
			t.Fatalf("at %s: %v %v %v", age, got, failure, old)
		}
		b.expire(b.now)
		b.flush(t)
		if held := b.kernel[endpoint("8.0.0.1:443")]; held != (age < time.Minute+staleFor) {
			t.Fatalf("at %s: in the kernel %v", age, held)
		}
		b.pass(n.blocked.Sub(b.now))
	}
	b.holds(t)
	want := []time.Duration{1, 2, 4, 8, 16, 30, 30}
	for i, w := range want {
		if waits[i] != w*time.Second {
			t.Errorf("backoff %d is %s, want %ds", i, waits[i], w)
		}
	}
}

func TestNegativeCacheIsClamped(t *testing.T) {
	for _, tt := range []struct{ ttl, want time.Duration }{{0, 5 * time.Second}, {20 * time.Second, 20 * time.Second}, {time.Hour, time.Minute}} {
		b := newBench()
		n := b.name("a.test", 443)
		b.learn(n, outcome{err: ErrNotFound, ttl: tt.ttl}, 0.5, b.now)
		if got := n.blocked.Sub(b.now); got != tt.want {
			t.Errorf("TTL %s: kept %s, want %s", tt.ttl, got, tt.want)
		}
	}
}

func TestAnswerCacheIsClampedAndRefreshedAhead(t *testing.T) {
	for _, tt := range []struct{ ttl, cached, due time.Duration }{
		{0, 5 * time.Second, 5 * time.Second}, {10 * time.Second, 10 * time.Second, 7500 * time.Millisecond},
		{100 * time.Second, 100 * time.Second, 75 * time.Second}, {24 * time.Hour, 300 * time.Second, 225 * time.Second},
	} {
		b := newBench()
		n := b.name("a.test", 443)
		b.answer(n, tt.ttl, nth(1))
		if got := n.until.Sub(b.now); got != tt.cached {
			t.Errorf("TTL %s: cached %s, want %s", tt.ttl, got, tt.cached)
		}
		if got := n.at.Sub(b.now); got != tt.due {
			t.Errorf("TTL %s: due after %s, want %s", tt.ttl, got, tt.due)
		}
	}
	b := newBench()
	n := b.open("db", "", b.now)
	b.reclaim(n, []claim{{443, false, []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}}}, b.now)
	b.answer(n, 600*time.Second, netip.MustParseAddr("10.0.0.1"))
	if got := n.until.Sub(b.now); got != time.Minute {
		t.Errorf("a container's address is cached for %s", got)
	}
	b.flush(t)
	b.pass(2*time.Minute + time.Second)
	b.holds(t)
}

func TestOnlyAdmittedAddressesAreHeld(t *testing.T) {
	b := newBench()
	n := b.open("a.test", "", b.now)
	ten := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
	b.reclaim(n, []claim{{443, false, nil}, {8443, false, ten}}, b.now)
	l := b.answer(n, time.Minute, addrs("8.0.0.1", "10.0.0.1", "::ffff:10.0.0.2", "192.168.0.1", "::ffff:169.254.169.254")...)
	b.holds(t, "8.0.0.1:443", "8.0.0.1:8443", "10.0.0.1:8443", "10.0.0.2:8443")
	if len(l.refused) != 2 || !l.mixed || l.refused[1].addr != netip.MustParseAddr("169.254.169.254") {
		t.Errorf("refused %v", l.refused)
	}
	if l := b.answer(n, time.Minute, addrs("8.0.0.1", "192.168.0.1")...); len(l.refused) != 0 {
		t.Errorf("reported again: %v", l.refused)
	}
	b.answer(n, time.Minute, addrs("192.168.0.1")...)
	b.holds(t)
	if n.failure == nil || n.failure.Kind != KindAddress {
		t.Errorf("failure %v", n.failure)
	}
}

func TestQueueKeepsOrder(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	var q queue[*name]
	start := time.Unix(0, 0)
	var all []*name
	for i := range 200 {
		n := &name{host: fmt.Sprint(i)}
		all = append(all, n)
		q.put(n, start.Add(time.Duration(r.IntN(1000))))
	}
	for range 500 {
		n := all[r.IntN(len(all))]
		if r.IntN(3) == 0 {
			q.remove(n)
		} else {
			q.put(n, start.Add(time.Duration(r.IntN(1000))))
		}
	}
	last, count := start, len(q.items)
	for {
		n, ok := q.first()
		if !ok {
			break
		}
		if n.at.Before(last) || n.pos != 1 {
			t.Fatalf("%v after %v", n.at, last)
		}
		last = n.at
		q.remove(n)
		q.remove(n)
		count--
	}
	if count != 0 {
		t.Errorf("%d items lost", count)
	}
}
