package firewall

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Fake is a kernel in memory, held to the real one's behaviour by the same
// cases. A batch is applied to a copy, which takes the state's place only when
// every part succeeded.
type Fake struct {
	mu      sync.Mutex
	state   State
	commits int
	faults  map[int]fault
	foreign chan struct{} // holds one notice of a foreign change
}

type fault struct {
	err     error
	applied bool
}

// NewFake is a kernel without a table.
func NewFake() *Fake {
	return &Fake{faults: make(map[int]fault), foreign: make(chan struct{}, 1)}
}

// FailCommit makes the nth commit from now (1: the next) fail with err and
// change nothing; with applied it takes effect all the same, as when the
// kernel's acknowledgement is lost.
func (f *Fake) FailCommit(n int, err error, applied bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.faults[f.commits+n] = fault{err, applied}
}

// Commits is the number of commits asked for.
func (f *Fake) Commits() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.commits
}

// Meddle changes the state as a foreign process would, and gives notice of it.
func (f *Fake) Meddle(change func(*State)) {
	f.mu.Lock()
	change(&f.state)
	f.mu.Unlock()
	select {
	case f.foreign <- struct{}{}:
	default:
	}
}

// Dump is the state now.
func (f *Fake) Dump() (State, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.state.clone(), nil
}

// Commit applies a batch, all or nothing.
func (f *Fake) Commit(b Batch) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.commits++
	failure, failing := f.faults[f.commits]
	if failing && !failure.applied {
		return failure.err
	}
	next := f.state.clone()
	if err := next.apply(b); err != nil {
		return err
	}
	f.state = next
	return failure.err
}

// apply changes s as the kernel would. On error s is half changed.
func (s *State) apply(b Batch) error {
	if b.Install != nil {
		s.Present, s.Flags = true, nil
		if s.Counters == nil {
			s.Counters = make(map[string]Counter)
		}
		for _, o := range b.Remove {
			if err := s.remove(o); err != nil {
				return err
			}
		}
		if err := s.install(b.Install); err != nil {
			return err
		}
	}
	if len(b.del)+len(b.add) == 0 {
		return nil
	}
	return s.change(b.del, b.add)
}

func (s *State) remove(o Object) error {
	n := len(s.Chains) + len(s.Sets) + len(s.Counters)
	switch o.Kind {
	case "chain":
		s.Chains = slices.DeleteFunc(s.Chains, func(c ChainState) bool { return c.Name == o.Name })
	case "set":
		s.Sets = slices.DeleteFunc(s.Sets, func(set SetState) bool { return set.Name == o.Name })
		s.elements = slices.DeleteFunc(s.elements, func(e element) bool { return record.Sets[e.set].Name == o.Name })
	case "counter":
		delete(s.Counters, o.Name)
	}
	if n == len(s.Chains)+len(s.Sets)+len(s.Counters) {
		return fmt.Errorf("remove %s %s: %w", o.Kind, o.Name, unix.ENOENT)
	}
	return nil
}

// install adds what is missing and writes all rules anew.
func (s *State) install(rs *Ruleset) error {
	want := rs.state()
	for name := range want.Counters {
		if _, ok := s.Counters[name]; !ok {
			s.Counters[name] = Counter{}
		}
	}
	for _, w := range want.Sets {
		i := slices.IndexFunc(s.Sets, func(set SetState) bool { return set.Name == w.Name })
		if i >= 0 && s.Sets[i] != w {
			return fmt.Errorf("set %s: %w", w.Name, ErrForeign)
		}
		if i < 0 {
			s.Sets = append(s.Sets, w)
		}
	}
	for i := range s.Chains {
		s.Chains[i].Rules, s.Chains[i].Digest = 0, "-"
	}
	for _, w := range want.Chains {
		w.Digest = rs.chain(w.Name).digest()
		i := slices.IndexFunc(s.Chains, func(c ChainState) bool { return c.Name == w.Name })
		switch {
		case i < 0:
			s.Chains = append(s.Chains, w)
		case s.Chains[i].Hook != w.Hook || s.Chains[i].Type != w.Type || s.Chains[i].Priority != w.Priority:
			return fmt.Errorf("chain %s: %w", w.Name, ErrForeign)
		default:
			s.Chains[i] = w
		}
	}
	return nil
}

// digest stands in for that of the kernel's expressions.
func (c *Chain) digest() string {
	h := sha256.New()
	for _, r := range c.Rules {
		fmt.Fprintln(h, r)
	}
	return hex.EncodeToString(h.Sum(nil)[:8])
}

// change deletes and adds elements. Deleting an absent one fails, adding one
// that is there does nothing, and a set has room for its size.
func (s *State) change(del, add []element) error {
	if !s.Present {
		return fmt.Errorf("change elements: %w", unix.ENOENT)
	}
	count := make(map[uint8]uint32)
	have := make(map[element]struct{}, len(s.elements))
	for _, e := range s.elements {
		have[e] = struct{}{}
		count[e.set]++
	}
	for _, e := range del {
		if _, ok := have[e]; !ok {
			return fmt.Errorf("delete %s from %s: %w", e, record.Sets[e.set].Name, unix.ENOENT)
		}
		delete(have, e)
		count[e.set]--
	}
	for _, e := range add {
		if _, ok := have[e]; ok {
			continue
		}
		have[e] = struct{}{}
		if count[e.set]++; count[e.set] > record.Sets[e.set].Size {
			return fmt.Errorf("set %s: %w", record.Sets[e.set].Name, ErrSetFull)
		}
	}
	s.elements = slices.Collect(maps.Keys(have))
	return nil
}

// Counters is the counters' values, as last meddled with.
func (f *Fake) Counters() (map[string]Counter, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return maps.Clone(f.state.Counters), nil
}

// String is the state as sorted text; see ParseFake.
func (f *Fake) String() string {
	s, _ := f.Dump()
	return s.String()
}

// ParseFake is a kernel holding what String wrote.
func ParseFake(text string) (*Fake, error) {
	s, err := ParseState(strings.TrimSpace(text))
	if err != nil {
		return nil, err
	}
	f := NewFake()
	f.state = s
	return f, nil
}

func (f *Fake) wait(ctx context.Context, d time.Duration) (bool, error) {
	select {
	case <-f.foreign:
		return true, nil
	case <-time.After(d):
	case <-ctx.Done():
	}
	return false, nil
}

func (f *Fake) moved() (bool, error) { return false, nil }
