package resolver

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"exitgate/policy"

	"github.com/miekg/dns"
)

func hosts(names ...string) string {
	text := "egress:\n"
	for _, n := range names {
		text += "  - host: " + n + "\n"
	}
	return text
}

func TestReloadHasTwoPhases(t *testing.T) {
	s := serve(t, zone("old.example.com. 60 IN A 8.0.0.1", "both.example.com. 60 IN A 8.0.0.2", "new.example.com. 60 IN A 8.0.0.3"))
	g := newRig(t)
	g.apply(t, load(t, hosts("old.example.com", "both.example.com"), s.addr))
	g.get(t, "old.example.com", 443)
	g.get(t, "both.example.com", 443)
	g.refuse(t, "new.example.com", 443, ErrNotAllowed)

	remove, err := g.SetPolicy(load(t, hosts("both.example.com", "new.example.com", "9.9.9.9"), s.addr))
	if err != nil {
		t.Fatal(err)
	}
	if got, want := g.kernel.list(), []string{"8.0.0.1:443", "8.0.0.2:443", "9.9.9.9:443"}; !slices.Equal(got, want) {
		t.Errorf("after the additions: %v, want %v", got, want)
	}
	g.get(t, "old.example.com", 443)
	g.get(t, "new.example.com", 443)
	if err := remove(); err != nil {
		t.Fatal(err)
	}
	if got, want := g.kernel.list(), []string{"8.0.0.2:443", "8.0.0.3:443", "9.9.9.9:443"}; !slices.Equal(got, want) {
		t.Errorf("after the removals: %v, want %v", got, want)
	}
	g.refuse(t, "old.example.com", 443, ErrNotAllowed)
	// The proxy ends the connections it had there.
	g.Release("old.example.com", 443, addrs("8.0.0.1"))
	g.Release("old.example.com", 443, addrs("8.0.0.1"))
	if g.table.names["old.example.com"] != nil {
		t.Error("a name that nothing uses is kept")
	}
	if err := remove(); err != nil {
		t.Errorf("removing twice: %v", err)
	}
}

func TestFailedAdditionsKeepTheOldPolicy(t *testing.T) {
	s := serve(t, zone("old.example.com. 60 IN A 8.0.0.1"))
	g := newRig(t)
	old := load(t, hosts("old.example.com"), s.addr)
	g.apply(t, old)
	g.get(t, "old.example.com", 443)
	for _, late := range []bool{false, true} {
		g.kernel.late = late
		g.kernel.broken(errors.New("netlink: file exists"))
		if remove, err := g.SetPolicy(load(t, hosts("9.9.9.9"), s.addr)); err == nil || remove != nil {
			t.Fatalf("error %v", err)
		}
		g.kernel.broken(nil)
		g.get(t, "old.example.com", 443)
		g.refuse(t, "9.9.9.9", 443, ErrNotAllowed)
		g.clock.add(commitRetry)
		g.tick()
		if got := g.kernel.list(); !slices.Equal(got, []string{"8.0.0.1:443"}) {
			t.Errorf("kernel %v", got)
		}
	}
}

func TestFailedRemovalsAreTriedAgain(t *testing.T) {
	g := newRig(t)
	g.apply(t, load(t, hosts("9.9.9.9", "9.9.9.8")))
	remove, err := g.SetPolicy(load(t, hosts("9.9.9.8")))
	if err != nil {
		t.Fatal(err)
	}
	g.kernel.broken(errors.New("netlink: no buffer space"))
	if err := remove(); err == nil {
		t.Error("no error")
	}
	g.refuse(t, "9.9.9.9", 443, ErrNotAllowed)
	g.kernel.broken(nil)
	g.tick()
	if !g.kernel.has("9.9.9.9:443") {
		t.Error("tried again at once: the pause is not kept")
	}
	g.clock.add(commitRetry)
	g.tick()
	if got := g.kernel.list(); !slices.Equal(got, []string{"9.9.9.8:443"}) {
		t.Errorf("kernel %v", got)
	}
}

func TestReloadsThatOvertakeEachOther(t *testing.T) {
	g := newRig(t)
	policies := []string{"9.9.9.1", "9.9.9.2", "9.9.9.3"}
	var removes []func() error
	for _, host := range policies {
		remove, err := g.SetPolicy(load(t, hosts(host)))
		if err != nil {
			t.Fatal(err)
		}
		removes = append(removes, remove)
	}
	if got := g.kernel.list(); len(got) != 3 {
		t.Errorf("kernel %v", got)
	}
	if err := errors.Join(removes[2](), removes[1](), removes[0]()); err != nil {
		t.Error(err)
	}
	if got := g.kernel.list(); !slices.Equal(got, []string{"9.9.9.3:443"}) {
		t.Errorf("kernel %v", got)
	}
	p := load(t, hosts("9.9.9.4"))
	g.apply(t, p)
	g.apply(t, p) // the same again
	g.apply(t, nil)
	if got := g.kernel.list(); len(got) != 0 {
		t.Errorf("locked down, the kernel holds %v", got)
	}
	g.refuse(t, "9.9.9.4", 443, ErrNotAllowed)
}

// TestExceptionAddedByReload: the last answer was robbed of what the new policy lists, so the name is looked
// up again.
func TestExceptionAddedByReload(t *testing.T) {
	s := serve(t, zone("db.example.com. 60 IN A 10.0.0.1", "db.example.com. 60 IN A 8.0.0.1"))
	g := newRig(t)
	g.apply(t, load(t, hosts("db.example.com"), s.addr))
	sameAddrs(t, g.get(t, "db.example.com", 443), "8.0.0.1")
	g.apply(t, load(t, hosts("db.example.com\n    addresses: [10.0.0.0/8]"), s.addr))
	sameAddrs(t, g.get(t, "db.example.com", 443), "10.0.0.1", "8.0.0.1")
	g.apply(t, load(t, hosts("db.example.com"), s.addr))
	if got := g.kernel.list(); !slices.Equal(got, []string{"8.0.0.1:443"}) {
		t.Errorf("kernel %v", got)
	}
	sameAddrs(t, g.get(t, "db.example.com", 443), "8.0.0.1")
}

func TestPortAddedByReloadNeedsNoLookup(t *testing.T) {
	s := serve(t, zone("api.example.com. 60 IN A 8.0.0.1"))
	g := newRig(t)
	g.apply(t, load(t, hosts("api.example.com"), s.addr))
	g.get(t, "api.example.com", 443)
	g.apply(t, load(t, hosts("api.example.com\n    ports: [443, 8443]"), s.addr))
	if !g.kernel.has("8.0.0.1:8443") {
		t.Errorf("kernel %v", g.kernel.list())
	}
	before := g.kernel.count()
	g.get(t, "api.example.com", 8443)
	if len(s.queries()) != 1 || g.kernel.count() != before {
		t.Errorf("asked %v, %d commits more", s.queries(), g.kernel.count()-before)
	}
}

// TestGrantEndsOnTime, live connections and all.
func TestGrantEndsOnTime(t *testing.T) {
	s := serve(t, zone("api.example.com. 60 IN A 8.0.0.1"))
	g := newRig(t)
	end := g.clock.now().Add(10 * time.Minute)
	g.apply(t, load(t, hosts("api.example.com\n    expires: "+end.Format(time.RFC3339), "9.9.9.9"), s.addr))
	g.get(t, "api.example.com", 443)
	g.clock.add(10*time.Minute - time.Second)
	if wait := g.tick(); wait > time.Second {
		t.Errorf("looks again after %s", wait)
	}
	if !g.kernel.has("8.0.0.1:443") {
		t.Fatal("ended early")
	}
	g.clock.add(time.Second)
	g.refuse(t, "api.example.com", 443, ErrNotAllowed)
	g.tick()
	if got := g.kernel.list(); !slices.Equal(got, []string{"9.9.9.9:443"}) {
		t.Errorf("kernel %v", got)
	}
}

// TestGrantEndsBetweenThePhases: what the new policy lists until now and the old one for longer goes with the
// old one.
func TestGrantEndsBetweenThePhases(t *testing.T) {
	g := newRig(t)
	soon := "\n    expires: " + g.clock.now().Add(time.Minute).Format(time.RFC3339)
	g.apply(t, load(t, hosts("9.9.9.1", "9.9.9.2")))
	remove, err := g.SetPolicy(load(t, hosts("9.9.9.1"+soon, "9.9.9.2")))
	if err != nil {
		t.Fatal(err)
	}
	g.clock.add(time.Minute)
	g.tick()
	if got := g.kernel.list(); !slices.Equal(got, []string{"9.9.9.1:443", "9.9.9.2:443"}) {
		t.Errorf("kernel %v", got)
	}
	if err := remove(); err != nil {
		t.Fatal(err)
	}
	if got := g.kernel.list(); !slices.Equal(got, []string{"9.9.9.2:443"}) {
		t.Errorf("kernel %v", got)
	}
}

func TestPrewarm(t *testing.T) {
	var records, names []string
	for i := range 300 {
		names = append(names, fmt.Sprintf("n%d.example.com", i))
		records = append(records, fmt.Sprintf("n%d.example.com. 60 IN A 8.0.%d.%d", i, i/250, i%250))
	}
	s := serve(t, zone(records...))
	g := newRig(t)
	text := hosts(names...) + "  - host: needed.example.com\n    required: true\n  - host: unneeded.example.com\n  - host: 9.9.9.9\n    required: true\n"
	g.apply(t, load(t, text, s.addr))
	err := g.Prewarm(t.Context())
	if err == nil || !strings.Contains(err.Error(), "needed.example.com: the name does not exist") || strings.Contains(err.Error(), "unneeded") {
		t.Errorf("error %v", err)
	}
	eventually(t, "the others", func() bool { return len(g.kernel.list()) == 301 })
	eventually(t, "the last answer", func() bool { return g.quiet() && len(s.queries()) == 302 })
	s.set(zone(append(records, "needed.example.com. 60 IN A 8.1.0.1")...))
	g.clock.add(30 * time.Second)
	asked := len(s.queries())
	if err := g.Prewarm(t.Context()); err != nil {
		t.Errorf("error %v", err)
	}
	eventually(t, "two queries for two names that were missing", func() bool { return g.quiet() && len(s.queries())-asked == 2 })
	if err := g.Prewarm(t.Context()); err != nil || len(s.queries())-asked != 2 {
		t.Errorf("%v, asked again for what is known: %v", err, s.queries()[asked:])
	}
}

// TestPrewarmWaitsForWhatIsRequired, and for nothing else: a dead name keeps no agent from starting.
func TestPrewarmWaitsForWhatIsRequired(t *testing.T) {
	answer := zone("needed.example.com. 60 IN A 8.0.0.1")
	s := serve(t, func(w dns.ResponseWriter, q *dns.Msg) {
		if strings.HasPrefix(q.Question[0].Name, "needed") {
			answer(w, q)
		}
	})
	g := newRig(t)
	g.apply(t, load(t, hosts("dead.example.com", "needed.example.com\n    required: true"), s.addr))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	start := time.Now()
	if err := g.Prewarm(ctx); err != nil || time.Since(start) > queryTimeout {
		t.Errorf("%v after %s", err, time.Since(start))
	}
	if !g.kernel.has("8.0.0.1:443") {
		t.Errorf("kernel %v", g.kernel.list())
	}
	eventually(t, "the other is asked for too", func() bool { return len(s.queries()) > 1 })
}

// TestExceptionOfAnotherPort: what a route's entry lists for its port is not for the ports of egress.
func TestExceptionOfAnotherPort(t *testing.T) {
	s := serve(t, zone("db.example.com. 60 IN A 10.0.0.1", "db.example.com. 60 IN A 8.0.0.1"))
	g := newRig(t)
	g.apply(t, load(t, hosts("db.example.com\n    ports: [8443]")+`
routes:
  - name: db
    path: /
    upstream: https://db.example.com
    addresses: [10.0.0.0/8]
    allow: [GET /**]
`, s.addr))
	sameAddrs(t, g.get(t, "db.example.com", 443), "10.0.0.1", "8.0.0.1")
	sameAddrs(t, g.get(t, "db.example.com", 8443), "8.0.0.1")
	if got := g.kernel.list(); !slices.Equal(got, []string{"10.0.0.1:443", "8.0.0.1:443", "8.0.0.1:8443"}) {
		t.Errorf("kernel %v", got)
	}
}

// TestRevokedWhileItIsLookedUp: the answer comes to a name that nobody may use any more.
func TestRevokedWhileItIsLookedUp(t *testing.T) {
	release := make(chan struct{})
	answer := zone("api.example.com. 60 IN A 8.0.0.1")
	s := serve(t, func(w dns.ResponseWriter, q *dns.Msg) { <-release; answer(w, q) })
	g := newRig(t)
	g.apply(t, load(t, hosts("api.example.com"), s.addr))
	done := make(chan error)
	go func() { _, err := g.Acquire(t.Context(), "", "api.example.com", 443); done <- err }()
	eventually(t, "a query", func() bool { return len(s.queries()) == 1 })
	g.apply(t, load(t, "", s.addr))
	close(release)
	if err := <-done; !errors.Is(err, ErrNotAllowed) {
		t.Errorf("error %v", err)
	}
	if len(g.kernel.list())+len(g.told())+len(g.table.names) != 0 {
		t.Errorf("kernel %v, events %v", g.kernel.list(), g.told())
	}
}

// TestEntryBecomesAWildcard: a connection that was allowed by an entry of its own, and is by a wildcard now, stays in the kernel;
// so it does the other way round.
func TestEntryBecomesAWildcard(t *testing.T) {
	s := serve(t, zone("api.example.com. 60 IN A 8.0.0.1"))
	exact, wild := load(t, "egress: [{host: api.example.com}]", s.addr), load(t, "egress: [{host: \"*.example.com\"}]", s.addr)
	for _, order := range [][]*policy.Policy{{exact, wild, exact}, {wild, exact, wild}} {
		g := newRig(t)
		g.apply(t, order[0])
		got := g.get(t, "api.example.com", 443)
		for n, p := range order[1:] {
			commits := g.kernel.count()
			g.apply(t, p)
			if !g.kernel.has("8.0.0.1:443") || g.kernel.count() != commits {
				t.Errorf("reload %d: %v after %d commits", n+1, g.kernel.list(), g.kernel.count()-commits)
			}
		}
		g.apply(t, load(t, "egress: [{host: other.example.net}]", s.addr))
		if g.kernel.has("8.0.0.1:443") {
			t.Error("control: a revoked address is still in the kernel")
		}
		g.Release("api.example.com", 443, got)
	}
}
