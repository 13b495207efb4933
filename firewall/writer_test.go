package firewall

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"exitgate/netns/netnstest"
)

func installed(t testing.TB, k Kernel, c Contents) *Writer {
	t.Helper()
	w := NewWriter(k)
	if err := w.Install(c); err != nil {
		t.Fatal(err)
	}
	return w
}

// After a failed commit nobody knows what the kernel holds. The writer has to
// find out, and end with all of the change or, returning the error, with none.
func TestWriterFaults(t *testing.T) {
	start := fullContents()
	add, del := manyPorts(5), Contents{Egress: start.Egress[:2]}
	done := contentsOf(func() []element {
		m := newMembers(start.elements())
		m.change(m.plan([]*request{{add: add.base(), del: del.base()}}))
		return m.list()
	}())
	for _, tc := range []struct {
		name   string
		faults []fault // of the commits after Install
		fails  bool
		want   Contents
	}{
		{"refused once", []fault{{unix.EIO, false}}, false, done},
		{"acknowledgement lost", []fault{{unix.ENOBUFS, true}}, false, done},
		{"refused twice", []fault{{unix.EIO, false}, {unix.EIO, false}}, true, start},
		{"refused, then acknowledgement lost", []fault{{unix.EIO, false}, {unix.ENOBUFS, true}}, true, start},
		{"acknowledgement lost, and gone wrong", []fault{{unix.ENOBUFS, true}, {unix.EIO, false}}, false, done},
	} {
		t.Run(tc.name, func(t *testing.T) {
			k := NewFake()
			w := installed(t, k, start)
			for i, f := range tc.faults {
				k.FailCommit(i+1, f.err, f.applied)
			}
			err := w.Update(add, del)
			if (err != nil) != tc.fails {
				t.Errorf("error %v, want one: %v", err, tc.fails)
			}
			s, _ := k.Dump()
			if d := cmp.Diff(tc.want, s.Contents(), exact); d != "" {
				t.Errorf("kernel (-want +got):\n%s", d)
			}
			if d := cmp.Diff(tc.want, w.Contents(), exact); d != "" {
				t.Errorf("writer (-want +got):\n%s", d)
			}
			// The writer's knowledge is right again: the next change works.
			if err := w.Sync(somePorts); err != nil {
				t.Fatal(err)
			}
			if s, _ := k.Dump(); !cmp.Equal(s.Contents(), somePorts, exact) {
				t.Errorf("after the fault Sync left %+v", s.Contents())
			}
		})
	}
}

func TestInstallFaults(t *testing.T) {
	for _, applied := range []bool{false, true} {
		k := NewFake()
		k.FailCommit(1, unix.EIO, applied)
		w := NewWriter(k)
		if err := w.Install(fullContents()); !errors.Is(err, unix.EIO) {
			t.Errorf("error %v, want EIO", err)
		}
		if err := w.Update(somePorts, Contents{}); !errors.Is(err, ErrNotInstalled) {
			t.Errorf("Update after a failed Install: %v", err)
		}
		if err := w.Install(somePorts); err != nil {
			t.Errorf("second Install: %v", err)
		}
		if s, _ := k.Dump(); !cmp.Equal(s.Contents(), somePorts, exact) {
			t.Errorf("after the second Install: %+v", s.Contents())
		}
	}
}

// lossy is a kernel that takes an Install but holds something else.
type lossy struct{ *Fake }

func (l lossy) Commit(b Batch) error {
	if err := l.Fake.Commit(b); err != nil {
		return err
	}
	l.Meddle(func(s *State) { s.elements = s.elements[:len(s.elements)-1] })
	return nil
}

func TestInstallReadsBack(t *testing.T) {
	err := NewWriter(lossy{NewFake()}).Install(fullContents())
	if err == nil || !strings.Contains(err.Error(), "holds another") {
		t.Errorf("error %v; an element was lost", err)
	}
}

// gated holds up commits until told, so that callers queue up behind one.
type gated struct {
	*Fake
	enter, leave chan struct{}
}

func (g gated) Commit(b Batch) error {
	g.enter <- struct{}{}
	<-g.leave
	return g.Fake.Commit(b)
}

// queued waits until n requests wait for the writer.
func queued(t *testing.T, w *Writer, n int) {
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		w.queueMu.Lock()
		got := len(w.queue)
		w.queueMu.Unlock()
		if got == n {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d requests wait, want %d", got, n)
		}
	}
}

func TestUpdatesCoalesce(t *testing.T) {
	k := NewFake()
	w := installed(t, k, Contents{})
	g := gated{k, make(chan struct{}), make(chan struct{})}
	w.kernel = g
	before := k.Commits()

	const n = 20
	var all sync.WaitGroup
	update := func(port uint16) {
		all.Go(func() {
			if err := w.Update(Contents{Published: []uint16{port}}, Contents{}); err != nil {
				t.Error(err)
			}
		})
	}
	update(1)
	<-g.enter // the first is with the kernel
	for i := range n {
		update(uint16(i + 2))
	}
	queued(t, w, n)
	g.leave <- struct{}{}
	<-g.enter
	g.leave <- struct{}{}
	all.Wait()
	if got := k.Commits() - before; got != 2 {
		t.Errorf("%d updates took %d commits, want 2", n+1, got)
	}
	if got := len(w.Contents().Published); got != n+1 {
		t.Errorf("%d ports are there, want %d", got, n+1)
	}
}

// One caller's fault is not the others': a refused batch is tried one by one.
func TestCoalescedFaultIsOneCallers(t *testing.T) {
	k := NewFake()
	w := installed(t, k, manyPorts(60))
	g := gated{k, make(chan struct{}), make(chan struct{})}
	w.kernel = g

	results := make(chan error, 3)
	go func() { results <- w.Update(Contents{RootLoopback: []uint16{1}}, Contents{}) }()
	<-g.enter
	go func() { results <- w.Update(Contents{Published: manyPorts(70).Published}, Contents{}) }() // more than fit
	queued(t, w, 1)
	go func() { results <- w.Update(Contents{RootLoopback: []uint16{2}}, Contents{}) }()
	queued(t, w, 2)
	g.leave <- struct{}{}
	<-g.enter
	g.leave <- struct{}{}
	var failed []error
	for range 3 {
		if err := <-results; err != nil {
			failed = append(failed, err)
		}
	}
	if len(failed) != 1 || !errors.Is(failed[0], ErrSetFull) {
		t.Errorf("errors %v; want one ErrSetFull", failed)
	}
	if d := cmp.Diff([]uint16{1, 2}, w.Contents().RootLoopback); d != "" {
		t.Errorf("the others' ports (-want +got):\n%s", d)
	}
}

func TestConcurrentUpdates(t *testing.T) {
	onBoth(t, func(t *testing.T, b bench) {
		w := installed(t, b.Kernel, Contents{})
		var all sync.WaitGroup
		for g := range 8 {
			all.Go(func() {
				for i := range 50 {
					mine := Contents{Egress: []Endpoint{{unix.IPPROTO_TCP, testAddr(g, i), 443}}}
					if err := w.Update(mine, Contents{}); err != nil {
						t.Error(err)
					}
					if i%2 == 1 {
						if err := w.Update(Contents{}, mine); err != nil {
							t.Error(err)
						}
					}
				}
			})
		}
		all.Wait()
		s, err := b.Dump()
		if err != nil {
			t.Fatal(err)
		}
		if len(s.Contents().Egress) != 8*25 || !cmp.Equal(s.Contents(), w.Contents(), exact) {
			t.Errorf("the kernel holds %d endpoints, the writer %d, want %d", len(s.Contents().Egress), len(w.Contents().Egress), 8*25)
		}
	})
}

// driftCases are changes by another process, in nft's words and the fake's, and
// what the report of their repair says.
var driftCases = []struct {
	name, nft string
	fake      func(*State)
	says      string
}{
	{"flush ruleset", "flush ruleset", func(s *State) { *s = State{} }, "table deleted"},
	{"deleted table", "delete table inet exitgate", func(s *State) { *s = State{} }, "table deleted"},
	{"dormant table", "add table inet exitgate { flags dormant; }", func(s *State) { s.Flags = []string{"dormant"} }, "table made dormant"},
	{"added rule", "insert rule inet exitgate output accept", func(s *State) { s.Chains[2].Rules++; s.Chains[2].Digest = "x" }, "chain output: 3 rules instead of 2"},
	{"flushed chain", "flush chain inet exitgate deny_agent", func(s *State) { c := s.chain("deny_agent"); c.Rules, c.Digest = 0, "-" }, "chain deny_agent: 0 rules instead of"},
	{"swapped rule", "flush chain inet exitgate forward\nadd rule inet exitgate forward accept", func(s *State) { s.chain("forward").Digest = "x" }, "chain forward: rules changed"},
	{"changed policy", "add chain inet exitgate output { policy accept; }", func(s *State) { s.chain("output").Policy = Accept }, "chain output: policy accept"},
	{"added base chain", "add chain inet exitgate early { type filter hook output priority -300; policy accept; }\nadd rule inet exitgate early accept",
		func(s *State) { s.Chains = append(s.Chains, ChainState{Name: "early", Digest: "x"}) }, "chain early added"},
	{"added nat chain", "add chain inet exitgate nat { type nat hook output priority -100; }\nadd rule inet exitgate nat ip daddr 192.0.2.10 dnat ip to 192.0.2.99",
		func(s *State) { s.Chains = append(s.Chains, ChainState{Name: "nat", Digest: "x"}) }, "chain nat added"},
	{"replaced base chain", "flush chain inet exitgate output\ndelete chain inet exitgate output\nadd chain inet exitgate output",
		func(s *State) { *s.chain("output") = ChainState{Name: "output", Digest: "-"} }, "chain output replaced"},
	{"added set", "add set inet exitgate more { type ipv4_addr; }\nadd rule inet exitgate output ip daddr @more accept",
		func(s *State) { s.Sets = append(s.Sets, SetState{Name: "more", Kind: "set"}) }, "set more added"},
	{"added map to a chain", "add chain inet exitgate ways\nadd map inet exitgate way { type inet_service : verdict; elements = { 1 : goto ways }; }",
		func(s *State) { s.Chains = append(s.Chains, ChainState{Name: "ways", Digest: "-"}) }, "chain ways added"},
	{"replaced set", "flush chain inet exitgate input\nflush chain inet exitgate out_net\ndelete set inet exitgate published\nadd set inet exitgate published { type inet_service; size 9999; }",
		func(s *State) { s.Sets[6].Size = 9999 }, "set published replaced: set size 9999 type inet_service"},
	{"added counter", "add counter inet exitgate other", func(s *State) { s.Counters["other"] = Counter{} }, "counter other added"},
	{"removed element", "delete element inet exitgate published { 443 }",
		func(s *State) {
			s.elements = slices.DeleteFunc(s.elements, func(e element) bool { return e == newElement(setPublished, big(443)) })
		}, "set published: 443 removed"},
	{"added element", "add element inet exitgate egress4 { 203.0.113.9 . tcp . 443 }",
		func(s *State) {
			e, _ := parseElement(setEgress4, "203.0.113.9 . tcp . 443")
			s.elements = append(s.elements, e)
		}, "set egress4: 203.0.113.9 . tcp . 443 added"},
	{"flushed set", "flush set inet exitgate egress4", func(s *State) {
		s.elements = slices.DeleteFunc(s.elements, func(e element) bool { return e.set == setIndex[setEgress4] })
	}, "set egress4: 2 elements removed"},
	{"changed mark", "delete element inet exitgate loopback_mark { 1000 : 1000 }\nadd element inet exitgate loopback_mark { 1000 : 70000 }", func(s *State) {
		i := slices.Index(s.elements, newMarkElement(1000, 1000))
		s.elements[i] = newMarkElement(1000, 70000)
	}, "set loopback_mark: 1000 : 0x000003e8 removed"},
}

func (s *State) chain(name string) *ChainState {
	return &s.Chains[slices.IndexFunc(s.Chains, func(c ChainState) bool { return c.Name == name })]
}

// watch runs Watch for the length of a test.
func watch(t *testing.T, w *Writer, every time.Duration) <-chan Drift {
	reports := make(chan Drift, 64)
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- w.Watch(ctx, every, func(d Drift) { reports <- d }) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Errorf("Watch: %v", err)
		}
	})
	return reports
}

func nextDrift(t *testing.T, reports <-chan Drift) Drift {
	t.Helper()
	select {
	case d := <-reports:
		return d
	case <-time.After(20 * time.Second):
		t.Fatal("no drift was reported")
		return Drift{}
	}
}

func TestDriftIsRepaired(t *testing.T) {
	t.Run("plain", func(t *testing.T) { onBoth(t, func(t *testing.T, b bench) { repairs(t, b, false) }) })
	t.Run("deny log", func(t *testing.T) { onBoth(t, func(t *testing.T, b bench) { repairs(t, b, true) }) })
}

func repairs(t *testing.T, b bench, log bool) {
	w := installed(t, b.Kernel, fullContents())
	if log {
		if err := w.EnableDenyLog(); err != nil {
			t.Fatal(err)
		}
	}
	reports := watch(t, w, time.Hour) // by notice alone
	want := b.text(t)
	for _, tc := range driftCases {
		t.Run(tc.name, func(t *testing.T) {
			b.meddle(t, tc.nft, tc.fake)
			d := nextDrift(t, reports)
			if !d.Repaired || d.Err != nil {
				t.Errorf("not repaired: %v", d.Err)
			}
			if text := strings.Join(d.What, "; "); !strings.Contains(text, tc.says) {
				t.Errorf("reported as %q, want %q", text, tc.says)
			}
			if d := cmp.Diff(want, b.text(t)); d != "" {
				t.Errorf("after the repair (-want +got):\n%s", d)
			}
		})
	}
	if len(reports) > 0 {
		t.Errorf("drift without a change: %q", (<-reports).What)
	}
}

// Without notices the generation tells.
func TestDriftByGeneration(t *testing.T) {
	requireNft(t)
	ns := netnstest.New(t)
	k := openKernel(t, ns, true)
	if err := k.events.LeaveGroup(groupNftables); err != nil {
		t.Fatal(err)
	}
	w := installed(t, k, fullContents())
	reports := watch(t, w, 20*time.Millisecond)
	nft(t, ns, "", "insert", "rule", "inet", TableName, "output", "accept")
	if d := nextDrift(t, reports); !d.Repaired {
		t.Errorf("not repaired: %v", d.Err)
	}
}

// What happened between Install and Watch is found when Watch starts.
func TestDriftBeforeWatch(t *testing.T) {
	onBoth(t, func(t *testing.T, b bench) {
		w := installed(t, b.Kernel, fullContents())
		b.meddle(t, "flush ruleset", func(s *State) { *s = State{} })
		if d := nextDrift(t, watch(t, w, time.Hour)); !d.Repaired {
			t.Errorf("not repaired: %v", d.Err)
		}
	})
}

// Our own commits are no drift, nor is what others do in tables of their own.
func TestNoDrift(t *testing.T) {
	requireNft(t)
	ns := netnstest.New(t)
	k := openKernel(t, ns, true)
	w := installed(t, k, fullContents())
	reports := watch(t, w, 10*time.Millisecond)
	nft(t, ns, dockerTable, "-f", "-")
	for i := range 300 {
		c := Contents{Egress: []Endpoint{{unix.IPPROTO_TCP, testAddr(1, i), 443}}}
		if err := errors.Join(w.Update(c, Contents{}), w.Update(Contents{}, c)); err != nil {
			t.Fatal(err)
		}
	}
	nft(t, ns, "", "add", "rule", "ip", "docker-dns", "dns-dnat", "counter")
	foreign := nft(t, ns, "", "list", "table", "ip", "docker-dns")
	// The positive control, and a proof that Watch has seen all of the above.
	nft(t, ns, "", "delete", "table", "inet", TableName)
	d := nextDrift(t, reports)
	if d := cmp.Diff([]string{"table deleted"}, d.What); d != "" {
		t.Errorf("first drift (-want +got):\n%s", d)
	}
	if d := cmp.Diff(foreign, nft(t, ns, "", "list", "table", "ip", "docker-dns")); d != "" {
		t.Errorf("the foreign table was touched:\n%s", d)
	}
}

func TestDriftThatCannotBeRepaired(t *testing.T) {
	k := NewFake()
	w := installed(t, k, fullContents())
	reports := watch(t, w, time.Millisecond)
	k.FailCommit(1, unix.EIO, false)
	k.FailCommit(2, unix.EIO, false)
	k.Meddle(func(s *State) { *s = State{} })
	for i, repaired := range []bool{false, false, true} {
		d := nextDrift(t, reports)
		if d.Repaired != repaired || (d.Err == nil) != repaired {
			t.Errorf("report %d: repaired %v (%v), want %v", i, d.Repaired, d.Err, repaired)
		}
	}
	if s, _ := k.Dump(); !cmp.Equal(s.Contents(), fullContents(), exact) {
		t.Error("the last repair left other contents")
	}
}

// An Update that meets drift mends it, succeeds, and leaves the report to Watch.
func TestUpdateMeetsDrift(t *testing.T) {
	onBoth(t, func(t *testing.T, b bench) {
		w := installed(t, b.Kernel, fullContents())
		b.meddle(t, "flush ruleset", func(s *State) { *s = State{} })
		if err := w.Update(manyPorts(3), Contents{}); err != nil {
			t.Fatal(err)
		}
		s, err := b.Dump()
		if err != nil {
			t.Fatal(err)
		}
		if !cmp.Equal(s.Contents(), w.Contents(), exact) || len(s.Contents().Published) != 5 {
			t.Errorf("after the update the kernel holds %+v", s.Contents())
		}
		if d := nextDrift(t, watch(t, w, time.Hour)); !slices.Contains(d.What, "table deleted") {
			t.Errorf("reported %q", d.What)
		}
	})
}

// With the owner flag others cannot change the table at all, nor remove it; and
// it outlives its owner, to be taken over by the next.
func TestOwnedTable(t *testing.T) {
	requireNft(t)
	ns := netnstest.New(t)
	k := openKernel(t, ns, false)
	w := installed(t, k, fullContents())
	s, err := k.Dump()
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(s.Flags, "owner") || !slices.Contains(s.Flags, "persist") {
		cannot(t, "a kernel before 6.9 has no tables with owner and persist")
	}
	want := dumpText(t, k)
	for _, tc := range driftCases {
		if out, err := tryNft(ns, tc.nft, "-f", "-"); err == nil && tc.nft != "flush ruleset" {
			t.Errorf("%s: succeeded on an owned table: %s", tc.name, out)
		}
	}
	if d := cmp.Diff(want, dumpText(t, k)); d != "" {
		t.Errorf("an owned table was changed:\n%s", d)
	}
	if err := NewWriter(openKernel(t, ns, false)).Install(Contents{}); !errors.Is(err, ErrOwned) {
		t.Errorf("a second owner's Install: %v, want ErrOwned", err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	next := openKernel(t, ns, false)
	if d := cmp.Diff(want, dumpText(t, next)); d != "" {
		t.Errorf("the table did not outlive its owner as it was:\n%s", d)
	}
	installed(t, next, somePorts)
	if s, _ := next.Dump(); !slices.Contains(s.Flags, "owner") || !cmp.Equal(s.Contents(), somePorts, exact) {
		t.Errorf("taken over with flags %q and %+v", s.Flags, s.Contents())
	}
}

// A table that nft made from our text can be taken over too; it stays without owner.
func TestInstallOverText(t *testing.T) {
	requireNft(t)
	ns := netnstest.New(t)
	nft(t, ns, Render(somePorts), "-f", "-")
	k := openKernel(t, ns, false)
	installed(t, k, fullContents())
	if s, _ := k.Dump(); len(s.Flags) != 0 || !cmp.Equal(s.Contents(), fullContents(), exact) {
		t.Errorf("taken over with flags %q and %+v", s.Flags, s.Contents())
	}
}
