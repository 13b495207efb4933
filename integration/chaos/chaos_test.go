package chaos

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"exitgate/integration/prober"
	"exitgate/integration/rig"

	"golang.org/x/sys/unix"
)

// TestChaos goes through the faults, one after the other, on one gate.
func TestChaos(t *testing.T) {
	s := newStage(t)
	s.control()
	l := s.load()
	time.Sleep(time.Second)
	l.take()
	l.end()
	before := s.warm()
	l = s.load()
	tw := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "FAULT\tLASTED\tWENT THROUGH\tFAILED\tAGAIN AFTER\tATTEMPTS IN VAIN")
	tried := 0
	for _, f := range faults() {
		if f.only && !*long || !strings.Contains(f.name, *one) {
			continue
		}
		fmt.Fprintln(tw, s.suffer(l, f))
		tried++
	}
	l.end()
	if tried == 0 {
		t.Errorf("no fault has a name that contains %q", *one)
	}
	if testing.Verbose() {
		tw.Flush()
	}
	after := s.settled(before)
	t.Logf("before: %s", before)
	t.Logf("after:  %s", after)
	s.leaks()
}

// suffer lets a fault come and go, and returns its line of the table.
func (s *stage) suffer(l *load, f fault) string {
	s.t.Helper()
	if *long && f.long != 0 {
		f.lasts = f.long
	}
	l.take()
	began := time.Now()
	end := f.begin(s)
	if rest := f.lasts - time.Since(began); rest > 0 {
		time.Sleep(rest)
	}
	end()
	ended := time.Now()
	during := l.take()
	again, ok := l.recovered(ended)
	after := l.take()
	switch {
	case !ok:
		s.t.Errorf("%s: no request went through within %s of its end: %v", f.name, patience, after.bad)
	case f.unfelt && during.failed() > 0:
		s.t.Errorf("%s: %d of %d requests failed: %v", f.name, during.failed(), during.failed()+during.good, during.bad)
	}
	for _, t := range []tally{during, after} {
		if len(t.escapes) > 0 {
			s.t.Errorf("%s: not refused: %v", f.name, t.escapes)
		}
	}
	if _, err := s.Wait(0); err != rig.ErrRunning {
		s.t.Fatalf("%s: PID 1 has ended: %v", f.name, err)
	}
	return fmt.Sprintf("%s\t%s\t%d\t%d %v\t%s\t%d", f.name, ended.Sub(began).Round(10*time.Millisecond), during.good, during.failed(), during.bad, again.Round(time.Millisecond), during.attempts)
}

// control shows that the attacker's attempts leave a box without a fence.
func (s *stage) control() {
	s.t.Helper()
	b, err := rig.Start(rig.Config{World: s.w, Plain: true, Serve: true, Args: []string{rig.ProberPath, "serve"}})
	s.must(err)
	defer b.Close()
	s.must(b.Agent().Ready(patience))
	to := []string{fmt.Sprintf("%s:443", s.v4), fmt.Sprintf("[%s]:443", s.v6)}
	b.Agent().Do(prober.Probe{Op: "flood", Network: "udp", Addresses: to, Timeout: 50 * time.Millisecond})
	for until := time.Now().Add(patience); b.Capture().To(s.v4, 443) == 0 || b.Capture().To(s.v6, 443) == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(until) {
			s.t.Fatal("control: nothing arrived without a fence")
		}
	}
}

// warm is what the gate has in hand after its first work, with idle connections in its pools.
func (s *stage) warm() (l level) {
	s.t.Helper()
	told := func() bool {
		got, err := s.level()
		l = got
		return err == nil && got.proxyGoroutines > 0 && got.zombies == 0
	}
	if !rig.Eventually(patience, told) {
		s.t.Fatal("the gate never told what it has in hand")
	}
	time.Sleep(3 * time.Second) // the proxy's own figures come with its sign of life, every 2 s
	if !rig.Eventually(patience, told) {
		s.t.Fatal("the gate tells no more what it has in hand")
	}
	return l
}

// settled waits until the gate has in hand what it had before, and returns the last level seen. Memory may have grown by what a Go heap keeps.
func (s *stage) settled(before level) (got level) {
	s.t.Helper()
	var err error
	var why []string
	wait := patience
	if *long {
		wait = 6 * time.Minute // Go collects without being asked every two, and gives back slowly
	}
	for until := time.Now().Add(wait); time.Now().Before(until); time.Sleep(200 * time.Millisecond) {
		if got, err = s.level(); err != nil {
			continue
		}
		if why = got.above(before); len(why) == 0 {
			return got
		}
	}
	s.t.Errorf("left over: %s (%v)\nbefore: %s\nafter:  %s", strings.Join(why, ", "), err, before, got)
	return got
}

// above says what is more than before. Pools, and addresses that a policy named for a while, may keep a few descriptors and goroutines.
func (l level) above(before level) (why []string) {
	some, memory := 6, 32<<10 // KiB: what a Go heap keeps of a load for a while
	if *long {
		memory = 8 << 10
	}
	for _, x := range []struct {
		name      string
		now, then int
		more      int
	}{{"descriptors", l.files, before.files, some}, {"the proxy's descriptors", l.proxyFiles, before.proxyFiles, some}, {"goroutines", l.goroutines, before.goroutines, some},
		{"the proxy's goroutines", l.proxyGoroutines, before.proxyGoroutines, some}, {"zombies", l.zombies, 0, 0}, {"memory", l.rss, before.rss, memory}, {"the proxy's memory", l.proxyRSS, before.proxyRSS, memory}} {
		if x.now > x.then+x.more {
			why = append(why, fmt.Sprintf("%s %d, were %d", x.name, x.now, x.then))
		}
	}
	return why
}

// leaks asks the far side.
func (s *stage) leaks() {
	s.t.Helper()
	time.Sleep(50 * time.Millisecond)
	all := 0
	for _, n := range s.Capture().Flows() {
		all += n
	}
	bad := s.Capture().Except(func(f rig.Flow) bool {
		if f.Port == 53 {
			return f.Dst == s.w.DNS.Addr4 || f.Dst.String() == "45.254.254.254" // the second: resolv.conf said so
		}
		return f.Proto == unix.IPPROTO_TCP && f.Port == 443 && slices.Contains(s.places(), f.Dst.String())
	})
	if len(bad) > 0 || all == 0 {
		s.t.Errorf("left the box, of %d packets: %v", all, bad)
	}
	if lost, err := s.Capture().Lost(); err != nil || lost > 0 {
		s.t.Errorf("the capture lost %d packets (%v)", lost, err)
	}
	s.t.Logf("%d packets left the box, all to places that the policy names", all)
}

func (s *stage) places() (all []string) {
	for _, u := range []*rig.Upstream{s.api, s.files} {
		all = append(all, u.Addr4.String(), u.Addr6.String())
	}
	return all
}
