package firewall

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Drift is a change of our table that was not ours, and what became of it.
type Drift struct {
	What     []string      // one line a difference, in the table's words
	Repaired bool          // the table is as it should be again
	Err      error         // why not
	Took     time.Duration // from the notice to the kernel's acknowledgement
}

// watchable is a kernel that tells of changes by others.
type watchable interface {
	// wait returns true when another process changed our table, false after
	// the time or when the context ends.
	wait(context.Context, time.Duration) (bool, error)
	// moved says whether others changed any table since it was last asked.
	moved() (bool, error)
}

// errNotWatchable: the kernel given to NewWriter gives no notices.
var errNotWatchable = errors.New("watch the table: this kernel gives no notice of changes")

// retryPause is how soon a repair that failed is tried again. The fence may be
// open meanwhile.
const retryPause = 200 * time.Millisecond

// Watch repairs what others change in our table, and reports it, until ctx ends;
// then it returns nil. Notices come by multicast; as a backstop the kernel's
// generation is looked at every so often, and the whole table read when it moved
// without us. Call it after Install; report must not block.
func (w *Writer) Watch(ctx context.Context, every time.Duration, report func(Drift)) error {
	k, ok := w.kernel.(watchable)
	if !ok {
		return errNotWatchable
	}
	touched := false // notices wait since the connection was opened
	for {
		failed := false
		for _, d := range w.check(k, touched) {
			report(d)
			failed = failed || !d.Repaired
		}
		pause := every
		if failed {
			pause = min(every, retryPause)
		}
		var err error
		touched, err = k.wait(ctx, pause)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			return err
		}
		touched = touched || failed
	}
}

// check looks for drift where there is a reason to, and repairs it.
func (w *Writer) check(k watchable, touched bool) []Drift {
	start := time.Now()
	w.mu.Lock()
	defer w.mu.Unlock()
	moved, err := k.moved()
	if err == nil && (touched || moved) && w.rules != nil {
		var d difference
		if d, err = w.resync(); !d.none() {
			w.found, err = append(w.found, Drift{What: d.lines, Repaired: err == nil, Err: err, Took: d.mended.Sub(start)}), nil
		}
	}
	found := w.found
	w.found = nil
	if err != nil {
		found = append(found, Drift{What: []string{"the table cannot be read"}, Err: err, Took: time.Since(start)})
	}
	return found
}

// resync reads the table back and mends what is not as it should be, in one
// batch; again if somebody changes it at the same time, but not for ever. It
// returns what was different.
func (w *Writer) resync() (difference, error) {
	got, err := w.kernel.Dump()
	if err != nil {
		return difference{}, err
	}
	d := compare(w.want, w.have, got)
	all := d
	for tries := 0; !d.none(); tries++ {
		if tries == 3 {
			return all, errOtherwise(d)
		}
		err := w.kernel.Commit(d.batch(w.rules))
		all.mended = time.Now()
		if err != nil {
			return all, err
		}
		if d, err = w.readBack(w.rules); err != nil {
			return all, err
		}
		all.lines = append(all.lines, d.lines...)
	}
	return all, nil
}

func errOtherwise(d difference) error {
	return fmt.Errorf("the kernel took the ruleset but holds another: %s", d.lines[0])
}
