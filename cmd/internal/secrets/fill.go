package secrets

import (
	"context"
	"time"
)

// fill reads an entry for the first time.
func (s *Store) fill(e *entry) {
	var out outcome
	switch from := e.cred.From; from.Scheme {
	case "file":
		out.value, e.print, out.problem = readFile(s.o.Root, from.Value, e.cred.Preset, e.who)
		e.seen = e.print
	case "fd":
		out = s.descriptor(from.Value)
	case "env":
		out.value, out.problem = readEnv(from.Value, s.o.Environ())
	case "exec":
		if s.inherit(e) {
			return
		}
		out = s.fetch(context.Background(), e)
		s.schedule(e, out.problem == nil)
	default:
		out.problem = &problem{"there is no source " + from.Scheme + ":", "write file:PATH, fd:N, exec:COMMAND or env:NAME"}
	}
	s.settle(e, out)
}

// descriptor reads an inherited descriptor the first time that it is asked for.
func (s *Store) descriptor(number string) outcome {
	s.mu.Lock()
	defer s.mu.Unlock()
	out, ok := s.fds[number]
	if !ok {
		out.value, out.problem = readFD(number, s.o.Inherited, helperTimeout)
		s.fds[number] = out
	}
	return out
}

// fetch checks the helper, whose file may have changed since, and runs it.
func (s *Store) fetch(ctx context.Context, e *entry) (out outcome) {
	argv, p := helper(s.o.Root, e.cred.From.Value, e.who)
	if p != nil {
		return outcome{problem: p}
	}
	out.value, out.problem = s.runHelper(ctx, argv, e.env)
	return out
}

// inherit shares what the same helper gave for the policy in use.
func (s *Store) inherit(e *entry) bool {
	if _, p := helper(s.o.Root, e.cred.From.Value, e.who); p != nil {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, old := range s.entries {
		if old.cred.From == e.cred.From && old.cred.Refresh == e.cred.Refresh && old.secret.Broken == "" {
			e.held = old.held
			return true
		}
	}
	return false
}

// settle takes an outcome over. The caller holds the lock, or the entry is not in use yet.
func (s *Store) settle(e *entry, out outcome) {
	if out.problem == nil {
		if p := unfit(&e.cred, out.value.Reveal()); p != nil {
			out.problem = &problem{e.source() + " " + p.what, p.mend}
		}
	}
	if out.problem != nil {
		e.secret, e.mend, e.read = Secret{Broken: out.problem.what}, out.problem.mend, time.Time{}
	} else {
		e.secret, e.mend, e.read = Secret{Value: out.value}, "", s.o.Now()
	}
}

// Times of a helper. Three quarters leave room for several attempts before a value is too old.
const (
	helperPause = 10 * time.Second // between two starts, whoever asks
	helperSlow  = time.Minute      // between two starts when it failed again and again
)

// schedule sets when a helper is to run next.
func (s *Store) schedule(e *entry, worked bool) {
	now := s.o.Now()
	if worked {
		e.failures, e.due, e.end = 0, time.Time{}, time.Time{}
		if every := e.cred.Refresh; every > 0 {
			e.due, e.end = now.Add(every/4*3), now.Add(every)
		}
		return
	}
	e.due = now.Add(min(helperPause<<min(e.failures, 3), helperSlow))
	e.failures++
}
