package resolver

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// dial is a stand-in for DNS inside a synctest bubble, where sockets do not count as waiting.
type dial struct {
	mu     sync.Mutex
	answer func(host string) outcome
	delay  time.Duration
	asked  map[string][]time.Time
	now    int // lookups that wait
	most   int
}

func (d *dial) look(ctx context.Context, _ []netip.AddrPort, host string, _ bool) outcome {
	d.mu.Lock()
	d.asked[host] = append(d.asked[host], time.Now())
	answer, delay := d.answer, d.delay
	if delay > 0 {
		d.now++
		d.most = max(d.most, d.now)
		defer func() { d.mu.Lock(); d.now--; d.mu.Unlock() }()
	}
	d.mu.Unlock()
	select {
	case <-time.After(delay):
		return answer(host)
	case <-ctx.Done():
		return outcome{err: ErrTimeout, result: ResultTimeout}
	}
}

func (d *dial) set(delay time.Duration, answer func(string) outcome) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.delay, d.answer = delay, answer
}

func (d *dial) times(host string) []time.Time {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.asked[host])
}

func found(ttl time.Duration, list ...string) func(string) outcome {
	return func(string) outcome { return outcome{addrs: addrs(list...), ttl: ttl, result: ResultOK} }
}

// bubble runs a test with a resolver whose clock is synctest's, Run at work.
func bubble(t *testing.T, text string, test func(t *testing.T, g *rig, d *dial)) {
	t.Helper()
	p := load(t, text)
	synctest.Test(t, func(t *testing.T) {
		d := &dial{asked: map[string][]time.Time{}, answer: found(time.Minute, "8.0.0.1")}
		g := newRig(t, func(c *Config) { c.Now = time.Now })
		g.look = d.look
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { g.Run(ctx); close(done) }()
		defer func() { cancel(); <-done }()
		g.apply(t, p)
		test(t, g, d)
	})
}

func TestRootNamesAreRefreshedAlways(t *testing.T) {
	bubble(t, "root:\n  - host: deb.debian.org\n    ports: [80, 443]\negress:\n  - host: api.example.com\n", func(t *testing.T, g *rig, d *dial) {
		synctest.Wait()
		if !g.kernel.has("8.0.0.1:80") || !g.kernel.has("8.0.0.1:443") {
			t.Errorf("kernel %v", g.kernel.list())
		}
		time.Sleep(time.Hour)
		asked := d.times("deb.debian.org")
		if len(asked) < 60 || len(asked) > 90 {
			t.Errorf("asked %d times in an hour with a TTL of a minute", len(asked))
		}
		for i := 1; i < len(asked); i++ {
			if gap := asked[i].Sub(asked[i-1]); gap < 42*time.Second || gap > 49*time.Second {
				t.Errorf("%s between two lookups", gap)
			}
		}
		// The other one was looked up once, for the first to use it; nobody did.
		if got := len(d.times("api.example.com")); got != 1 {
			t.Errorf("the unused name was asked for %d times", got)
		}
		if got := g.kernel.list(); !slices.Equal(got, []string{"8.0.0.1:443", "8.0.0.1:80"}) {
			t.Errorf("kernel %v", got)
		}
	})
}

func TestUsedNamesAreKeptFreshForAWhile(t *testing.T) {
	bubble(t, hosts("api.example.com"), func(t *testing.T, g *rig, d *dial) {
		g.get(t, "api.example.com", 443)
		g.Release("api.example.com", 443, addrs("8.0.0.1"))
		time.Sleep(8 * time.Minute)
		before := len(d.times("api.example.com"))
		commits := g.kernel.count()
		g.get(t, "api.example.com", 443)
		if len(d.times("api.example.com")) != before || g.kernel.count() != commits {
			t.Error("a name in use was not ready")
		}
		g.Release("api.example.com", 443, addrs("8.0.0.1"))
		time.Sleep(30 * time.Minute)
		before = len(d.times("api.example.com"))
		time.Sleep(time.Hour)
		if got := len(d.times("api.example.com")); got != before {
			t.Errorf("asked %d times more, unused", got-before)
		}
		if got := g.kernel.list(); len(got) > 0 {
			t.Errorf("kernel %v", got)
		}
		g.get(t, "api.example.com", 443)
	})
}

// TestStaleAnswerWhileServersAreDead: callers wait a little for a fresh answer, then get the old one, for an
// hour.
func TestStaleAnswerWhileServersAreDead(t *testing.T) {
	bubble(t, "root:\n  - host: deb.debian.org\n    ports: [443]\n"+hosts("api.example.com"), func(t *testing.T, g *rig, d *dial) {
		g.Release("api.example.com", 443, g.get(t, "api.example.com", 443))
		synctest.Wait()
		d.set(totalTimeout, func(string) outcome { return outcome{err: ErrTimeout, result: ResultTimeout} })
		time.Sleep(30 * time.Minute) // nobody uses it, so its lease ends; root's is kept
		if !g.kernel.has("8.0.0.1:443") {
			t.Error("root's address is gone")
		}
		time.Sleep(time.Minute)
		start := time.Now()
		got := g.get(t, "api.example.com", 443)
		if wait := time.Since(start); len(got) != 1 || wait > staleWait {
			t.Errorf("%v after %s", got, wait)
		}
		i := slices.IndexFunc(g.Status(), func(h HostStatus) bool { return h.Host == "deb.debian.org" })
		if st := g.Status()[i]; !st.Degraded || st.LastError == "" {
			t.Errorf("status %+v", st)
		}
		g.Release("api.example.com", 443, got)
		time.Sleep(40 * time.Minute)
		g.refuse(t, "api.example.com", 443, ErrTimeout)
		time.Sleep(5 * time.Minute)
		if got := g.kernel.list(); len(got) > 0 {
			t.Errorf("kernel %v", got)
		}
		d.set(0, found(time.Minute, "8.0.0.2"))
		time.Sleep(backoffCap + backoffCap/4)
		sameAddrs(t, g.get(t, "api.example.com", 443), "8.0.0.2")
		if st := g.Status()[i]; st.Degraded {
			t.Errorf("status %+v", st)
		}
	})
}

func TestFreshAnswerIsPreferredToAStaleOne(t *testing.T) {
	bubble(t, hosts("api.example.com"), func(t *testing.T, g *rig, d *dial) {
		g.Release("api.example.com", 443, g.get(t, "api.example.com", 443))
		time.Sleep(20 * time.Minute)
		d.set(time.Second, found(time.Minute, "8.0.0.2"))
		start := time.Now()
		sameAddrs(t, g.get(t, "api.example.com", 443), "8.0.0.2")
		if wait := time.Since(start); wait != time.Second {
			t.Errorf("after %s", wait)
		}
	})
}

func TestBackgroundLookupsAreBounded(t *testing.T) {
	text := "root:\n"
	for i := range 100 {
		text += fmt.Sprintf("  - host: n%d.example.com\n", i)
	}
	bubble(t, text, func(t *testing.T, g *rig, d *dial) {
		synctest.Wait()
		d.set(time.Second, found(time.Minute, "8.0.0.1"))
		time.Sleep(time.Minute)
		d.mu.Lock()
		defer d.mu.Unlock()
		if d.most != background {
			t.Errorf("%d lookups at once, of 100 that were due; want %d", d.most, background)
		}
	})
}

func TestRunEndsWithItsLookups(t *testing.T) {
	bubble(t, hosts("api.example.com"), func(t *testing.T, g *rig, d *dial) {
		synctest.Wait()
		time.Sleep(20 * time.Minute)
		d.set(time.Hour, found(time.Minute, "8.0.0.1"))
		got := make(chan error)
		go func() {
			_, err := g.Acquire(t.Context(), "", "api.example.com", 443)
			got <- err
		}()
		synctest.Wait()
		g.end()
		<-got // a stale answer, or none; but an end
		time.Sleep(2 * time.Hour)
		g.refuse(t, "api.example.com", 443, ErrTimeout)
	})
}

func TestHostsFileChangeReachesRootNames(t *testing.T) {
	bubble(t, "root:\n  - host: deb.debian.org\n", func(t *testing.T, g *rig, d *dial) {
		synctest.Wait()
		write(t, g.cfg.Root, "etc/hosts", "8.0.0.5 deb.debian.org\n")
		time.Sleep(recheck + pause)
		synctest.Wait()
		if !g.kernel.has("8.0.0.5:443") {
			t.Errorf("kernel %v", g.kernel.list())
		}
	})
}

// TestEverythingAtOnce: callers, reloads, expiry and a kernel that fails now and then. What Acquire gives is
// in the kernel when it gives it, unless a reload took it away; in the end the kernel holds what the state
// says.
func TestEverythingAtOnce(t *testing.T) {
	names := []string{"a.example.com", "b.example.com", "c.example.com", "x.wild.example.com", "y.wild.example.com"}
	policies := []string{hosts(names[:3]...) + "  - host: '*.wild.example.com'\n", hosts(names[0], names[1]), hosts(names[0], "9.9.9.9") + "  - host: '*.wild.example.com'\n"}
	g := newRig(t)
	g.look = func(_ context.Context, _ []netip.AddrPort, host string, _ bool) outcome {
		if rand.IntN(8) == 0 {
			return outcome{err: []error{ErrNotFound, ErrServer}[rand.IntN(2)], result: ResultServer}
		}
		return outcome{addrs: []netip.Addr{nth(1 + rand.IntN(20)), nth(1 + rand.IntN(20))}, ttl: time.Duration(rand.IntN(100)) * time.Second, result: ResultOK}
	}
	commit := g.kernel.commit
	g.cfg.Commit = func(add, del []netip.AddrPort) error {
		if rand.IntN(10) == 0 {
			return errors.New("now and then")
		}
		return commit(add, del)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var all sync.WaitGroup
	all.Go(func() { g.Run(ctx) })
	var ended sync.WaitGroup
	for range 6 {
		all.Go(func() {
			for range 300 {
				host := names[rand.IntN(len(names))]
				got, err := g.Acquire(ctx, "", host, 443)
				if (err == nil) != (len(got) > 0) {
					t.Errorf("%s: %v, %v", host, got, err)
				}
				if host == names[0] { // allowed by every policy, so nothing takes it away
					for _, a := range got {
						if !g.kernel.has(netip.AddrPortFrom(a, 443).String()) {
							t.Errorf("%v is pinned, and not in the kernel", a)
						}
					}
				}
				g.Release(host, 443, got)
				g.clock.add(time.Duration(rand.IntN(3)) * time.Second)
			}
		})
	}
	ended.Go(func() {
		for i := range 60 {
			if remove, err := g.SetPolicy(load(t, policies[i%len(policies)])); err == nil {
				remove() // fails now and then, and is tried again
			}
			g.Status()
			g.tick()
		}
	})
	ended.Wait()
	cancel()
	all.Wait()
	g.cfg.Commit = commit
	if err := g.flush(); err != nil {
		t.Fatal(err)
	}
	if got, want := g.kernel.list(), strings.Fields(words(g.table.held())); !slices.Equal(got, slices.Sorted(slices.Values(want))) {
		t.Errorf("kernel %v, state %v", got, want)
	}
	for _, n := range g.table.names {
		if n.pins != 0 {
			t.Errorf("%s: %d pins left", n.host, n.pins)
		}
	}
}
