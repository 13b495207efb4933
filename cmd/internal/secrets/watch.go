package secrets

import (
	"context"
	"slices"
	"sync"
	"time"
)

// Watch follows the credentials in use until ctx ends. Files are looked at rather than subscribed to: a look finds a
// rename, a swapped link in the middle of the path and a changed mode alike, on every file system.
func (s *Store) Watch(ctx context.Context) {
	done := make(chan fetched)
	var helpers sync.WaitGroup
	defer helpers.Wait()
	timer := time.NewTimer(s.o.Every)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case f := <-done:
			s.fetched(f)
		case <-s.wake:
		case <-timer.C:
		}
		unsettled := s.look()
		for _, e := range s.overdue() {
			helpers.Go(func() {
				f := fetched{e, s.fetch(ctx, e)}
				select {
				case done <- f:
				case <-ctx.Done():
				}
			})
		}
		timer.Reset(s.pause(unsettled))
	}
}

// fetched is what a helper's run came to.
type fetched struct {
	entry *entry
	outcome
}

// pause is shorter while a file is changing, so that its new content is read soon after it holds still.
func (s *Store) pause(unsettled bool) time.Duration {
	if unsettled {
		return s.o.Every / 5
	}
	return s.o.Every
}

// look reads again what changed since it was read. A file must look the same twice first: one that is written in
// place is empty, then half there, before it is whole; one that is replaced may be missing for a moment.
func (s *Store) look() (unsettled bool) {
	s.mu.Lock()
	entries := slices.Clone(s.entries)
	s.mu.Unlock()
	for _, e := range entries {
		if e.cred.From.Scheme != "file" {
			continue
		}
		print := fingerprint(s.o.Root, e.cred.From.Value)
		s.mu.Lock()
		changed, still := print != e.print, print == e.seen
		e.seen = print
		s.mu.Unlock()
		switch {
		case changed && still:
			s.reread(e)
		case changed:
			unsettled = true
		}
	}
	return unsettled
}

func (s *Store) reread(e *entry) {
	value, print, problem := readFile(s.o.Root, e.cred.From.Value, e.cred.Preset, e.who)
	s.mu.Lock()
	e.print = print
	s.mu.Unlock()
	s.replace(e, outcome{value, problem})
}

// replace puts an outcome in the place of what an entry held, and tells of it when that made a difference.
func (s *Store) replace(e *entry, out outcome) {
	s.mu.Lock()
	before := e.secret
	s.settle(e, out)
	after := e.secret
	same := before.Broken == after.Broken && before.Value.Equal(after.Value)
	if !same && !before.Value.IsZero() {
		s.retireValueLocked(before.Value)
	}
	inUse := slices.ContainsFunc(s.entries, func(u *entry) bool { return u.held == e.held })
	all := secretsOf(s.entries)
	line := e.complaint().Error()
	s.mu.Unlock()
	if same || !inUse {
		return
	}
	switch {
	case after.Broken != "":
		s.o.Log("%s", line)
	case before.Broken != "":
		s.o.Note("credential %q is there again", e.cred.Name)
	default:
		s.o.Note("credential %q changed", e.cred.Name)
	}
	s.o.Changed(all)
}

// overdue marks and returns the entries whose helper is to be started now, and gives up values that are too old.
func (s *Store) overdue() []*entry {
	now := s.o.Now()
	var run, old []*entry
	s.mu.Lock()
	for _, e := range s.entries {
		if passed(e.end, now) && !e.secret.Value.IsZero() {
			old = append(old, e)
		}
		if !e.running && (passed(e.due, now) || e.asked) {
			e.running, e.ran = true, now
			run = append(run, e)
		}
	}
	s.mu.Unlock()
	for _, e := range old {
		s.replace(e, outcome{problem: &problem{"helper gave no new value in time", "run it by hand as root to see why"}})
	}
	return run
}

func passed(t, now time.Time) bool { return !t.IsZero() && !now.Before(t) }

// fetched takes a helper's run over. One that failed leaves a value in use that is still good, unless the upstream
// refused that value.
func (s *Store) fetched(f fetched) {
	s.mu.Lock()
	e, now := f.entry, s.o.Now()
	good := !e.secret.Value.IsZero() && now.Before(e.end) && !e.asked
	e.running, e.asked = false, false
	s.schedule(e, f.problem == nil)
	end := e.end
	s.mu.Unlock()
	if f.problem != nil && good {
		s.o.Log("credential %q: %s; the value in use is good until %s", e.cred.Name, f.problem.what, end.Format(time.RFC3339))
		return
	}
	s.replace(e, f.outcome)
}

// Refresh asks for a credential to be fetched again, as after a 401. It does not wait. Calls while a fetch is under
// way, or within 10 s after one was started, add nothing: a burst of 401s is one fetch. The first fetch, of the start or of
// a reload, is none of those: its value may have been stale where the helper had it from, and is refused by the first request.
func (s *Store) Refresh(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.o.Now()
	for _, e := range s.entries {
		if e.cred.Name != name || e.running || now.Sub(e.ran) < helperPause {
			continue
		}
		e.asked = e.cred.From.Scheme == "exec"
		s.nudge()
	}
}

// nudge makes Watch look now; one waiting nudge is enough.
func (s *Store) nudge() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}
