package firewall

import (
	"fmt"
	"io"
	"slices"
	"sync"
)

// Writer is the one hand that changes the table. Its methods may be called from
// any goroutine; changes that wait for each other go to the kernel together.
type Writer struct {
	mu     sync.Mutex // held over every use of the kernel; guards what follows
	kernel Kernel
	rules  *Ruleset // as installed; nil before Install
	have   members  // what the kernel holds
	want   State    // the structure last read back, digests included
	found  []Drift  // met while writing, for Watch to report

	queueMu sync.Mutex
	queue   []*request // waiting for whoever holds mu next
}

// request is one caller's change.
type request struct {
	add, del []element
	done     bool
	err      error
}

// NewWriter is a writer that has installed nothing yet.
func NewWriter(k Kernel) *Writer { return &Writer{kernel: k, have: newMembers(nil)} }

// Close closes the kernel's connection. The table stays, and goes on refusing.
func (w *Writer) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.rules = nil
	if c, ok := w.kernel.(io.Closer); ok {
		return c.Close()
	}
	return nil
}

// Install puts the table in place with these contents, in one batch, and reads
// it back. Over an earlier table of ours it writes the rules anew and leaves
// elements that stay alone: there is no moment at which the fence is open. It
// refuses a table of the same name that is not ours.
func (w *Writer) Install(c Contents) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	got, err := w.kernel.Dump()
	if err != nil {
		return err
	}
	if err := got.adoptable(record.state()); err != nil {
		return err
	}
	w.rules, w.have = nil, newMembers(c.elements())
	return w.install(record, got)
}

// EnableDenyLog puts the deny log's statements before the refusals, as a
// transaction of its own: a kernel without NFLOG refuses it, and the table stays
// as it was. OpenDenyLog reads what they tell.
func (w *Writer) EnableDenyLog() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.rules == nil {
		return ErrNotInstalled
	}
	got := w.want
	got.elements = w.have.list()
	if err := w.install(withDenyLog(record), got); err != nil {
		if _, rerr := w.resync(); rerr != nil {
			return fmt.Errorf("deny log: %w; and on reading back: %w", err, rerr)
		}
		return fmt.Errorf("deny log: %w", err)
	}
	return nil
}

// install writes rs over what the kernel holds, and reads it back.
func (w *Writer) install(rs *Ruleset, got State) error {
	d := compare(rs.state(), w.have, got)
	d.structure = true
	if err := w.kernel.Commit(d.batch(rs)); err != nil {
		return err
	}
	d, err := w.readBack(rs)
	if err == nil && !d.none() {
		err = errOtherwise(d)
	}
	return err
}

// readBack compares the kernel with what was sent, element by element. Where
// they agree it learns the digests by which drift is told later.
func (w *Writer) readBack(rs *Ruleset) (difference, error) {
	got, err := w.kernel.Dump()
	if err != nil {
		return difference{}, err
	}
	d := compare(rs.state(), w.have, got)
	if d.none() {
		got.elements = nil
		w.rules, w.want = rs, got
	}
	return d, nil
}

// adoptable says whether a table may be taken over: there is none, it is empty,
// or its base chains are where ours would be and its sets are of our types.
func (s State) adoptable(want State) error {
	if !s.Present || len(s.Chains)+len(s.Sets) == 0 {
		return nil
	}
	for _, c := range want.Chains {
		if c.Hook != "" && !slices.ContainsFunc(s.Chains, func(g ChainState) bool { return g.Name == c.Name }) {
			return fmt.Errorf("%w (it has no chain %s)", ErrForeign, c.Name)
		}
	}
	for _, o := range compare(want, newMembers(nil), s).remove {
		if want.has(o) {
			return fmt.Errorf("%w (its %s %s is another)", ErrForeign, o.Kind, o.Name)
		}
	}
	return nil
}

// has says whether s has a chain or set of that name.
func (s State) has(o Object) bool {
	return o.Kind == "chain" && slices.ContainsFunc(s.Chains, func(c ChainState) bool { return c.Name == o.Name }) ||
		o.Kind == "set" && slices.ContainsFunc(s.Sets, func(set SetState) bool { return set.Name == o.Name })
}

// Update deletes and adds members, and returns when the kernel has them. Adding
// what is there, or deleting what is not, does nothing; what is in both is
// added. Its cost is that of the change, not of the sets.
func (w *Writer) Update(add, del Contents) error {
	r := &request{add: add.base(), del: del.base()}
	w.queueMu.Lock()
	w.queue = append(w.queue, r)
	w.queueMu.Unlock()

	w.mu.Lock()
	defer w.mu.Unlock()
	// Whoever held mu before may have served this request with its own.
	if !r.done {
		w.serve()
	}
	return r.err
}

// serve commits everything that waits, as one batch. When that is refused each
// request is tried alone, so that only the one at fault fails.
func (w *Writer) serve() {
	w.queueMu.Lock()
	queue := w.queue
	w.queue = nil
	w.queueMu.Unlock()

	err := w.apply(queue)
	for _, r := range queue {
		r.done, r.err = true, err
		if err != nil && len(queue) > 1 {
			r.err = w.apply([]*request{r})
		}
	}
}

// apply commits what a list of requests changes together.
func (w *Writer) apply(rs []*request) error {
	if w.rules == nil {
		return ErrNotInstalled
	}
	add, del := w.have.plan(rs)
	if len(add)+len(del) == 0 {
		return nil
	}
	if err := w.have.room(add, del); err != nil {
		return err
	}
	return w.commit(add, del)
}

// commit changes elements. After an error the kernel may hold the old elements,
// the new ones or, after a batch in parts, something between: it is read back
// and led to the new ones, and where that fails too, to the old ones.
func (w *Writer) commit(add, del []element) error {
	err := w.kernel.Commit(Batch{add: add, del: del})
	w.have.change(add, del)
	if err == nil || w.recover() == nil {
		return nil
	}
	w.have.change(del, add)
	if rerr := w.recover(); rerr != nil {
		return fmt.Errorf("%w; and on reading back: %w", err, rerr)
	}
	return err
}

// recover is resync after an error of ours. Elements may then differ by our own
// doing; anything more is drift, and kept for Watch to report.
func (w *Writer) recover() error {
	d, err := w.resync()
	if d.structure {
		w.found = append(w.found, Drift{What: d.lines, Repaired: err == nil, Err: err})
	}
	return err
}

// Sync makes the sets hold exactly want, in one batch.
func (w *Writer) Sync(want Contents) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	target := newMembers(want.elements())
	r := &request{add: want.base()}
	for _, e := range w.have.list() {
		if !target.has(e) && !e.isDerived() {
			r.del = append(r.del, e)
		}
	}
	return w.apply([]*request{r})
}

// Contents is what the sets hold, as far as this writer knows.
func (w *Writer) Contents() Contents {
	w.mu.Lock()
	defer w.mu.Unlock()
	return contentsOf(w.have.list())
}

// Counters reads the named counters: CounterAgent, CounterRoot, CounterInbound.
func (w *Writer) Counters() (map[string]Counter, error) { return w.kernel.Counters() }
