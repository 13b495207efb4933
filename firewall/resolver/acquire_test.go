package resolver

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
)

const example = `
egress:
  - host: api.example.com
    ports: [443, 8443]
  - host: "*.wild.example.com"
  - host: db.internal.example.com
    addresses: [10.0.0.0/8]
  - host: 203.0.113.9
`

func TestAcquireGivesWhatTheKernelAcknowledged(t *testing.T) {
	s := serve(t, zone("api.example.com. 60 IN CNAME edge.cdn.test.", "edge.cdn.test. 30 IN A 8.0.0.1", "edge.cdn.test. 30 IN A 8.0.0.2"))
	g := newRig(t)
	g.apply(t, load(t, example, s.addr))
	sameAddrs(t, g.get(t, "api.example.com", 443), "8.0.0.1", "8.0.0.2")
	queries, commits := len(s.queries()), g.kernel.count()
	for _, spelling := range []string{"api.example.com", "API.Example.COM", "api.example.com."} {
		sameAddrs(t, g.get(t, spelling, 443), "8.0.0.1", "8.0.0.2")
	}
	sameAddrs(t, g.get(t, "api.example.com", 8443), "8.0.0.1", "8.0.0.2")
	if len(s.queries()) != queries || g.kernel.count() != commits {
		t.Errorf("what is known was asked for again: %v, %d commits", s.queries(), g.kernel.count())
	}
	st := g.Status()
	i := slices.IndexFunc(st, func(h HostStatus) bool { return h.Host == "api.example.com" })
	want := HostStatus{Host: "api.example.com", Ports: []uint16{443, 8443}, Addrs: []AddrStatus{
		{netip.MustParseAddr("8.0.0.1"), 90 * time.Second, 5}, {netip.MustParseAddr("8.0.0.2"), 90 * time.Second, 5},
	}}
	if fmt.Sprint(st[i]) != fmt.Sprint(want) {
		t.Errorf("status %+v, want %+v", st[i], want)
	}
}

// TestRefusedNamesCauseNoPacket: the policy is asked before DNS is.
func TestRefusedNamesCauseNoPacket(t *testing.T) {
	s := serve(t, zone("api.example.com. 60 IN A 8.0.0.1"))
	g := newRig(t)
	g.refuse(t, "api.example.com", 443, ErrNotAllowed) // before any policy
	g.apply(t, load(t, example, s.addr))
	for _, host := range []string{
		"secret-data.evil.example", "example.com", "xapi.example.com", "api.example.com.evil.example", "wild.example.com", "*.wild.example.com",
		"8.0.0.1", "127.1", "0x7f.1", "2130706433", "0177.0.0.1", "::1", "[::1]", "::ffff:7f00:1", "203.0.113.09", "203.0.29193", "localhost",
		"", ".", "..", "a..wild.example.com", "api.example.com:443", "user@api.example.com", "api.example.com\x00.evil", "api_x.wild.example.com",
		strings.Repeat("a", 64) + ".wild.example.com", strings.Repeat("abcdefgh.", 30) + "wild.example.com", "a%2eb.wild.example.com",
	} {
		if e := g.refuse(t, host, 443, ErrNotAllowed); e.Kind != KindDenied {
			t.Errorf("%q: kind %q", host, e.Kind)
		}
	}
	g.refuse(t, "api.example.com", 80, ErrNotAllowed)
	g.refuse(t, "a.wild.example.com", 8443, ErrNotAllowed)
	if got := s.queries(); len(got) > 0 {
		t.Errorf("refused names were looked up: %v", got)
	}
	sameAddrs(t, g.get(t, "api.example.com", 443), "8.0.0.1") // control: the server is there to be asked
	if len(s.queries()) != 1 {
		t.Errorf("control: %v", s.queries())
	}
	if n := len(g.table.names); n != 3 {
		t.Errorf("%d names are kept", n)
	}
}

func TestWildcardNames(t *testing.T) {
	s := serve(t, zone("a.wild.example.com. 60 IN A 8.0.0.1", "b.a.wild.example.com. 60 IN A 8.0.0.2"))
	g := newRig(t)
	g.apply(t, load(t, example, s.addr))
	sameAddrs(t, g.get(t, "a.wild.example.com", 443), "8.0.0.1")
	sameAddrs(t, g.get(t, "B.a.wild.example.com", 443), "8.0.0.2")
	g.apply(t, load(t, "egress:\n  - host: a.wild.example.com", s.addr))
	sameAddrs(t, g.get(t, "a.wild.example.com", 443), "8.0.0.1")
	g.refuse(t, "b.a.wild.example.com", 443, ErrNotAllowed)
	if got := g.kernel.list(); !slices.Equal(got, []string{"8.0.0.1:443"}) {
		t.Errorf("kernel %v", got)
	}
}

// TestWildcardBesideARootEntry: root's entry lists the name, for another port and other programs.
func TestWildcardBesideARootEntry(t *testing.T) {
	s := serve(t, zone("a.wild.example.com. 60 IN A 8.0.0.1"))
	g := newRig(t)
	root := "root:\n  - host: a.wild.example.com\n    ports: [80]\n"
	g.apply(t, load(t, example+root, s.addr))
	sameAddrs(t, g.get(t, "a.wild.example.com", 443), "8.0.0.1")
	g.refuse(t, "a.wild.example.com", 80, ErrNotAllowed)
	g.apply(t, load(t, root, s.addr))
	g.refuse(t, "a.wild.example.com", 443, ErrNotAllowed)
	if got := g.kernel.list(); !slices.Equal(got, []string{"8.0.0.1:80"}) {
		t.Errorf("kernel %v", got)
	}
}

// TestWildcardKeepsTheNamesInUse: the latest used stay, by use and not by age.
func TestWildcardKeepsTheNamesInUse(t *testing.T) {
	g := newRig(t)
	g.look = instant
	g.apply(t, load(t, example))
	for i := range 3 * maxWild {
		for _, host := range []string{"kept.wild.example.com", fmt.Sprintf("n%d.wild.example.com", i)} {
			g.Release(host, 443, g.get(t, host, 443))
		}
	}
	if g.counted(ResultOK) != 1+3*maxWild {
		t.Errorf("%d lookups", g.counted(ResultOK))
	}
}

func TestLiteralIsAllowedAsWritten(t *testing.T) {
	s := serve(t, zone())
	g := newRig(t)
	g.apply(t, load(t, example, s.addr))
	if !g.kernel.has("203.0.113.9:443") {
		t.Error("not in the kernel from the start")
	}
	sameAddrs(t, g.get(t, "203.0.113.9", 443), "203.0.113.9")
	g.clock.add(24 * time.Hour)
	g.tick()
	sameAddrs(t, g.get(t, "203.0.113.9", 443), "203.0.113.9")
	g.Release("203.0.113.9", 443, addrs("203.0.113.9"))
	g.clock.add(24 * time.Hour)
	g.tick()
	g.flights.Wait()
	if !g.kernel.has("203.0.113.9:443") || strings.Contains(strings.Join(s.queries(), " "), "203.") {
		t.Errorf("kernel %v, queries %v", g.kernel.list(), s.queries())
	}
	g.apply(t, load(t, ""))
	if g.kernel.has("203.0.113.9:443") {
		t.Error("still in the kernel")
	}
}

func TestRebinding(t *testing.T) {
	s := serve(t, zone("api.example.com. 60 IN A 8.0.0.1", "api.example.com. 60 IN A 127.0.0.1", "api.example.com. 60 IN A 169.254.169.254",
		"a.wild.example.com. 60 IN A 10.0.0.1", "db.internal.example.com. 60 IN A 10.0.0.1", "db.internal.example.com. 60 IN A 192.168.0.1",
		"b.wild.example.com. 60 IN AAAA ::ffff:10.0.0.1", "b.wild.example.com. 60 IN AAAA 64:ff9b::a00:1", "b.wild.example.com. 60 IN A 172.30.0.1"))
	own := addrs("8.0.0.77")
	g := newRig(t, func(c *Config) { c.Local = func() []netip.Addr { return own }; c.IPv6 = func() bool { return true } })
	g.apply(t, load(t, example, s.addr))
	sameAddrs(t, g.get(t, "api.example.com", 443), "8.0.0.1")
	sameAddrs(t, g.get(t, "db.internal.example.com", 443), "10.0.0.1")
	for _, host := range []string{"a.wild.example.com", "b.wild.example.com"} {
		if e := g.refuse(t, host, 443, ErrAddress); e.Kind != KindAddress {
			t.Errorf("kind %q", e.Kind)
		} else if !strings.HasPrefix(e.Msg, "every address it resolves to is special-purpose: ") || !strings.Contains(e.Msg, "private (10.0.0.0/8)") {
			t.Errorf("which range it is of is not told: %s", e.Msg)
		}
	}
	for _, e := range g.kernel.list() {
		if e != "8.0.0.1:443" && e != "8.0.0.1:8443" && e != "10.0.0.1:443" && e != "203.0.113.9:443" {
			t.Errorf("the kernel holds %s", e)
		}
	}
	var reasons []string
	for _, e := range g.told() {
		if e.Event != "pin" || e.Host == "" || e.Time != g.clock.now() {
			t.Errorf("event %+v", e)
		}
		reasons = append(reasons, e.Decision+" "+e.Address+" "+e.Reason)
	}
	for _, want := range []string{
		"deny 127.0.0.1 rebinding: loopback (127.0.0.0/8)", "deny 169.254.169.254 rebinding: link-local (169.254.0.0/16)", "allow 8.0.0.1 ttl 1m0s",
		"deny 10.0.0.1 special-purpose: private (10.0.0.0/8)", "deny 64:ff9b::a00:1 special-purpose: NAT64 of private (10.0.0.0/8)",
		"deny 192.168.0.1 rebinding: private (192.168.0.0/16)", "allow 10.0.0.1 ttl 1m0s",
	} {
		if !slices.Contains(reasons, want) {
			t.Errorf("no event %q in %q", want, reasons)
		}
	}
	if g.counted(ResultAddress) != 2 || g.counted(ResultOK) != 2 {
		t.Errorf("counts %v", g.counts)
	}
}

// TestOwnAddressesAreRefused, also once they become ours.
func TestOwnAddressesAreRefused(t *testing.T) {
	s := serve(t, zone("api.example.com. 60 IN A 8.0.0.1", "api.example.com. 60 IN A 8.0.0.77"))
	own := addrs("8.0.0.77")
	g := newRig(t, func(c *Config) { c.Local = func() []netip.Addr { return own } })
	g.apply(t, load(t, example, s.addr))
	sameAddrs(t, g.get(t, "api.example.com", 443), "8.0.0.1")
	if got := g.told()[0]; got.Decision != "deny" || !strings.Contains(got.Reason, "this machine") {
		t.Errorf("event %+v", got)
	}
	own = addrs("8.0.0.1")
	g.clock.add(recheck)
	g.tick()
	g.refuse(t, "api.example.com", 443, ErrAddress)
	if g.kernel.has("8.0.0.1:443") {
		t.Error("still in the kernel")
	}
	g.apply(t, load(t, "egress:\n  - host: api.example.com\n    addresses: [8.0.0.1/32]", s.addr))
	sameAddrs(t, g.get(t, "api.example.com", 443), "8.0.0.1", "8.0.0.77")
}

// TestGrantOfAnotherPortIsNoException: the addresses one port's entry lists are not for another's.
func TestGrantOfAnotherPortIsNoException(t *testing.T) {
	s := serve(t, zone("db.example.com. 60 IN A 10.0.0.1"))
	g := newRig(t)
	g.apply(t, load(t, `
egress:
  - host: db.example.com
    ports: [443]
root:
  - host: db.example.com
    ports: [5432, 443]
    addresses: [10.0.0.0/8]
`, s.addr))
	g.refuse(t, "db.example.com", 5432, ErrNotAllowed)
	g.refuse(t, "db.example.com", 443, ErrAddress)
	eventually(t, "root's commit", func() bool { g.tick(); return g.kernel.has("10.0.0.1:5432") })
}

func TestNamesThatDoNotExist(t *testing.T) {
	s := serve(t, zone())
	g := newRig(t)
	g.apply(t, load(t, example, s.addr))
	for range 3 {
		if e := g.refuse(t, "api.example.com", 443, ErrNotFound); e.Kind != KindNotFound || e.Host != "api.example.com" {
			t.Errorf("%+v", e)
		}
	}
	if got := s.queries(); len(got) != 1 {
		t.Errorf("asked %v", got)
	}
	g.clock.add(20 * time.Second)
	s.set(zone("api.example.com. 60 IN A 8.0.0.1"))
	sameAddrs(t, g.get(t, "api.example.com", 443), "8.0.0.1")
	// It vanishes: nobody dials it from then on, and a connection in use goes on.
	s.set(zone())
	g.clock.add(61 * time.Second)
	g.refuse(t, "api.example.com", 443, ErrNotFound)
	g.tick()
	if got := g.kernel.list(); !slices.Equal(got, []string{"203.0.113.9:443", "8.0.0.1:443"}) {
		t.Errorf("kernel %v", got)
	}
	g.Release("api.example.com", 443, addrs("8.0.0.1"))
	g.tick()
	if g.kernel.has("8.0.0.1:443") {
		t.Error("still in the kernel")
	}
}

func TestNoServerAnswers(t *testing.T) {
	s := serve(t, rcode(dns.RcodeServerFailure))
	g := newRig(t)
	g.apply(t, load(t, example, s.addr))
	e := g.refuse(t, "api.example.com", 443, ErrServer)
	if e.Kind != KindInternal || g.counted(ResultServer) != 1 {
		t.Errorf("%+v, %v", e, g.counts)
	}
	asked := len(s.queries())
	g.refuse(t, "api.example.com", 443, ErrServer)
	if len(s.queries()) != asked {
		t.Error("asked again at once")
	}
	g.clock.add(2 * time.Second)
	s.set(zone("api.example.com. 60 IN A 8.0.0.1"))
	sameAddrs(t, g.get(t, "api.example.com", 443), "8.0.0.1")
}

// TestOtherServersAreTriedAtOnce: a failure of the servers before is no reason to wait.
func TestOtherServersAreTriedAtOnce(t *testing.T) {
	good := serve(t, zone("api.example.com. 60 IN A 8.0.0.1"))
	bad := serve(t, rcode(dns.RcodeServerFailure))
	g := newRig(t)
	g.apply(t, load(t, example, bad.addr))
	for range 6 {
		g.refuse(t, "api.example.com", 443, ErrServer)
		g.clock.add(backoffCap)
	}
	g.refuse(t, "api.example.com", 443, ErrServer)
	g.apply(t, load(t, example, good.addr))
	sameAddrs(t, g.get(t, "api.example.com", 443), "8.0.0.1")
}

func TestCallerThatStopsWaiting(t *testing.T) {
	s := serve(t, nil)
	g := newRig(t)
	g.apply(t, load(t, example, s.addr))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { _, err := g.Acquire(ctx, "", "api.example.com", 443); done <- err }()
	eventually(t, "a query", func() bool { return len(s.queries()) == 1 })
	cancel()
	if err := <-done; !errors.Is(err, ErrTimeout) {
		t.Errorf("error %v", err)
	}
}

func TestManyCallersMakeOneLookup(t *testing.T) {
	release := make(chan struct{})
	answer := zone("api.example.com. 60 IN A 8.0.0.1")
	s := serve(t, func(w dns.ResponseWriter, q *dns.Msg) { <-release; answer(w, q) })
	g := newRig(t)
	g.apply(t, load(t, example, s.addr))
	var callers sync.WaitGroup
	for range 100 {
		callers.Go(func() { g.get(t, "api.example.com", 443) })
	}
	eventually(t, "a query", func() bool { return len(s.queries()) > 0 })
	close(release)
	callers.Wait()
	if got := s.queries(); len(got) != 1 {
		t.Errorf("asked %v", got)
	}
	if got := g.table.names["api.example.com"].pins; got != 100 {
		t.Errorf("%d pins", got)
	}
}

// TestCommitsAreCoalesced: callers that come while a commit is under way share the next one.
func TestCommitsAreCoalesced(t *testing.T) {
	s := serve(t, func(w dns.ResponseWriter, q *dns.Msg) {
		w.WriteMsg(answerOf(q, fmt.Sprintf("%s 60 IN A 8.0.0.%d", q.Question[0].Name, 1+q.Question[0].Name[1]-'0')))
	})
	g := newRig(t)
	g.apply(t, load(t, example, s.addr))
	before, gate := g.kernel.count(), make(chan struct{})
	g.kernel.mu.Lock()
	g.kernel.gate = gate
	g.kernel.mu.Unlock()
	var callers sync.WaitGroup
	for i := range 10 {
		callers.Go(func() {
			g.get(t, fmt.Sprintf("n%d.wild.example.com", i), 443)
			g.Release(fmt.Sprintf("n%d.wild.example.com", i), 443, addrs(fmt.Sprintf("8.0.0.%d", 1+i)))
		})
	}
	eventually(t, "ten answers", func() bool { return g.counted(ResultOK) == 10 })
	eventually(t, "ten pins", func() bool {
		g.Resolver.mu.Lock()
		defer g.Resolver.mu.Unlock()
		pins := 0
		for _, n := range g.table.names {
			pins += n.pins
		}
		return pins == 10
	})
	close(gate)
	callers.Wait()
	if got := g.kernel.count() - before; got > 2 {
		t.Errorf("%d commits for ten callers at once", got)
	}
}

func TestFailedCommitFailsTheDial(t *testing.T) {
	s := serve(t, zone("api.example.com. 60 IN A 8.0.0.1"))
	g := newRig(t)
	g.apply(t, load(t, example, s.addr))
	for _, late := range []bool{false, true} {
		g.kernel.late = late
		g.kernel.broken(errors.New("netlink: no buffer space"))
		e := g.refuse(t, "api.example.com", 443, ErrCommit)
		if e.Kind != KindInternal || g.table.names["api.example.com"].pins != 0 {
			t.Errorf("%+v, %d pins", e, g.table.names["api.example.com"].pins)
		}
		g.refuse(t, "api.example.com", 443, ErrCommit)
		if len(g.Elements()) != 1 {
			t.Errorf("counts as acknowledged: %v", g.Elements())
		}
	}
	g.kernel.broken(nil)
	g.clock.add(commitRetry)
	g.tick()
	if !g.kernel.has("8.0.0.1:443") {
		t.Error("not tried again")
	}
	before := g.kernel.count()
	sameAddrs(t, g.get(t, "api.example.com", 443), "8.0.0.1")
	if g.kernel.count() != before {
		t.Error("committed again")
	}
}

func TestHostsFileComesFirst(t *testing.T) {
	s := serve(t, zone("api.example.com. 60 IN A 8.0.0.1"))
	g := newRig(t, func(c *Config) {
		write(t, c.Root, "etc/hosts", "8.0.0.9 api.example.com\n10.0.0.5 db.internal.example.com\n127.0.0.1 a.wild.example.com\n")
	})
	g.apply(t, load(t, example, s.addr))
	sameAddrs(t, g.get(t, "api.example.com", 443), "8.0.0.9")
	sameAddrs(t, g.get(t, "db.internal.example.com", 443), "10.0.0.5")
	g.refuse(t, "a.wild.example.com", 443, ErrAddress)
	if len(s.queries()) > 0 {
		t.Errorf("asked %v", s.queries())
	}
	write(t, g.cfg.Root, "etc/hosts", "8.0.0.10 api.example.com\n")
	g.clock.add(recheck)
	g.reread()
	sameAddrs(t, g.get(t, "api.example.com", 443), "8.0.0.10")
	write(t, g.cfg.Root, "etc/hosts", "")
	g.clock.add(recheck)
	g.reread()
	sameAddrs(t, g.get(t, "api.example.com", 443), "8.0.0.1")
	if g.counted(ResultHosts) != 3 || g.counted(ResultAddress) != 1 || g.counted(ResultOK) != 1 {
		t.Errorf("counts %v", g.counts)
	}
}

// TestRecordChanges is the life of an address that DNS takes away: a connection on it lives on; lease and
// grace over, nobody new gets it.
func TestRecordChanges(t *testing.T) {
	s := serve(t, zone("api.example.com. 60 IN A 8.0.0.1"))
	g := newRig(t)
	g.apply(t, load(t, example, s.addr))
	live := g.get(t, "api.example.com", 443)
	s.set(zone("api.example.com. 60 IN A 8.0.0.2"))
	g.clock.add(61 * time.Second)
	sameAddrs(t, g.get(t, "api.example.com", 443), "8.0.0.2")
	g.clock.add(2 * time.Hour)
	g.tick()
	if !g.kernel.has("8.0.0.1:443") || g.kernel.has("8.0.0.1:8443") {
		t.Errorf("kernel %v", g.kernel.list())
	}
	g.Release("api.example.com", 443, live)
	g.clock.add(reconnect)
	g.tick()
	if g.kernel.has("8.0.0.1:443") || !g.kernel.has("8.0.0.2:443") {
		t.Errorf("kernel %v", g.kernel.list())
	}
}

// A lie ends when the liar does: what it said of its own TTL, and the time that negative answers are kept, would keep work waiting.
func TestLieIsForgottenSoon(t *testing.T) {
	s := serve(t, zone("api.example.com. 3600 IN A 127.0.0.1"))
	g := newRig(t)
	g.apply(t, load(t, example, s.addr))
	g.refuse(t, "api.example.com", 443, ErrAddress)
	s.set(zone("api.example.com. 60 IN A 8.0.0.1"))
	g.refuse(t, "api.example.com", 443, ErrAddress) // no query per request
	g.clock.add(refusedFor)
	sameAddrs(t, g.get(t, "api.example.com", 443), "8.0.0.1")
}

func TestEventsAreBounded(t *testing.T) {
	g := newRig(t)
	n := &name{host: "a.test"}
	var many lesson
	for i := range 100 {
		many.fresh = append(many.fresh, nth(i))
	}
	now, total := g.clock.now(), 0
	for range 100 {
		events := g.news.tell(n, many, now)
		if len(events) > newsEach {
			t.Fatalf("%d events of one lookup", len(events))
		}
		total += len(events)
	}
	if total != newsBurst {
		t.Errorf("%d events at once", total)
	}
	events := g.news.tell(n, many, now.Add(time.Second))
	// 10,000 less the 64 shown, less the 3 times 84 that those mentioned.
	if len(events) != newsRate || !strings.Contains(events[0].Reason, "; 9684 earlier events of this kind not shown") {
		t.Errorf("%d events after a second, the first %q", len(events), events[0].Reason)
	}
}

// TestAddressesAreTheEntrys: what one entry lists for a name is nothing that another of the same name and port gets, though
// the name holds it.
func TestAddressesAreTheEntrys(t *testing.T) {
	g := newRig(t)
	s := serve(t, zone("api.example.com. 60 IN A 10.0.0.1", "api.example.com. 60 IN A 8.0.0.1"))
	g.apply(t, load(t, `routes:
  - {name: with, path: /a, upstream: "https://api.example.com", allow: [GET /], addresses: [10.0.0.0/8]}
  - {name: without, path: /b, upstream: "https://api.example.com", allow: [GET /]}
egress: [{host: "*.example.com", addresses: [10.0.0.0/9]}]
`, s.addr))
	for range 2 {
		for rule, want := range map[string][]string{"route/with": {"10.0.0.1", "8.0.0.1"}, "route/without": {"8.0.0.1"}, "egress/*.example.com": {"10.0.0.1", "8.0.0.1"}, "": {"8.0.0.1"}} {
			got, err := g.Acquire(t.Context(), rule, "api.example.com", 443)
			if err != nil {
				t.Fatal(err)
			}
			slices.SortFunc(got, func(a, b netip.Addr) int { return b.Compare(a) })
			sameAddrs(t, got, want...)
			g.Release("api.example.com", 443, got)
		}
	}
	// A reload takes the range away from one entry alone.
	g.apply(t, load(t, `routes: [{name: with, path: /a, upstream: "https://api.example.com", allow: [GET /]}]
egress: [{host: "*.example.com", addresses: [10.0.0.0/9]}]
`, s.addr))
	got, err := g.Acquire(t.Context(), "route/with", "api.example.com", 443)
	if err != nil {
		t.Fatal(err)
	}
	sameAddrs(t, got, "8.0.0.1")
}
