// Package audit writes the one log of decisions.
//
//	log, err := audit.Open(audit.Options{Sink: "file:/run/exitgate/audit.jsonl", Scrub: scrub})
//	log.Write(event)               // never waits
//	sub := log.Subscribe(256)      // every line from now on, for those who watch
//	log.Denials()                  // the latest denials, the same ones counted together
//	log.Close()                    // writes what is queued
//
// A line that cannot be written, be it that the queue is full, the disk is, or nobody reads stderr, is counted, and
// the exact count is a line of its own (event "lost") as soon as lines can be written again.
//
// Not done here: no event is made up but that one, no line is sent over a network, nothing is waited for in Write.
package audit

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"exitgate/policy"
)

// Options are the outside world.
type Options struct {
	Sink   string                   // "stderr", "file:PATH" or "none"
	Stderr io.Writer                // for Sink "stderr"; nil: os.Stderr
	Root   string                   // PATH is below it; "" is /
	Scrub  func(line []byte) []byte // applied to each line before anybody sees it, and to the strings of Denials; nil: none
	Each   func(policy.Event)       // gets every event in its order, on one goroutine; not scrubbed; nil: none
	Log    func(string, ...any)     // told once when lines stop being written, and once when they are again; nil: silent
	Now    func() time.Time         // stamps "lost" lines; nil: time.Now
	Queue  int                      // events that may wait; 0: 8192
	Size   int64                    // bytes after which a file is rotated; 0: 16 MiB
	Keep   int                      // rotated files kept, PATH.1 the latest; 0: 3
}

// backlog bounds the lines that wait for a sink that is slow, in bytes.
const backlog = 4 << 20

// closing bounds how long Close waits for a sink that is stuck.
const closing = 2 * time.Second

// sink takes whole lines. The count is of bytes that are safely there; the rest is offered again.
type sink interface {
	write(lines []byte) (int, error)
	close() error
}

// Log is the writer. All methods may be called from any goroutine.
//
// Events pass two goroutines: the pump makes lines of them and hands those to whoever watches; the drain writes them
// to the sink. A sink that is stuck therefore delays nobody who watches.
type Log struct {
	o      Options
	sink   sink // nil for "none"
	events chan struct{}
	lines  chan struct{}
	end    chan struct{} // closed by Close
	pumped chan struct{} // closed when the pump has ended
	ended  chan struct{} // closed when the drain has ended

	mu      sync.Mutex // guards the following
	closed  bool
	pending []policy.Event
	queued  uint64     // events that were ever pending
	made    uint64     // those of them that lines were made of
	settled *sync.Cond // made has changed, or closed
	out     []byte     // lines waiting for the sink
	lost    uint64     // lines that the sink has not been told of yet
	stats   Stats
	subs    map[*Subscription]struct{}
	denials denials
}

// Stats counts events since Open by what became of their lines.
type Stats struct{ Written, Lost uint64 }

// Open opens the sink. A file must be in a directory that only root can change; it is created with mode 0600.
func Open(o Options) (*Log, error) {
	setDefaults(&o)
	l := &Log{
		o: o, subs: make(map[*Subscription]struct{}),
		events: make(chan struct{}, 1), lines: make(chan struct{}, 1),
		end: make(chan struct{}), pumped: make(chan struct{}), ended: make(chan struct{}),
	}
	l.settled = sync.NewCond(&l.mu)
	switch path, isFile := strings.CutPrefix(o.Sink, "file:"); {
	case isFile:
		f, err := openFile(o, path)
		if err != nil {
			return nil, err
		}
		l.sink = f
	case o.Sink == "stderr":
		l.sink = stream{o.Stderr}
	case o.Sink != "none":
		return nil, fmt.Errorf("audit %q is not known; write stderr, file:PATH or none", o.Sink)
	}
	go l.pump()
	go l.drain()
	return l, nil
}

func setDefaults(o *Options) {
	if o.Stderr == nil {
		o.Stderr = os.Stderr
	}
	if o.Scrub == nil {
		o.Scrub = func(b []byte) []byte { return b }
	}
	if o.Each == nil {
		o.Each = func(policy.Event) {}
	}
	if o.Log == nil {
		o.Log = func(string, ...any) {}
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Queue == 0 {
		o.Queue = 8192
	}
	if o.Size == 0 {
		o.Size = 16 << 20
	}
	if o.Keep == 0 {
		o.Keep = 3
	}
}

// Write queues an event. It never waits: when the queue is full, or after Close, the event is lost, and counted.
func (l *Log) Write(e policy.Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed || len(l.pending) >= l.o.Queue {
		l.loseLocked(1)
		for s := range l.subs {
			s.lost++
		}
		wake(l.lines)
		return
	}
	l.pending = append(l.pending, e)
	l.queued++
	wake(l.events)
}

// Settle returns when everybody inside has seen the events so far: Denials, Each and those who watch; the sink may
// lag.
func (l *Log) Settle() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for upTo := l.queued; l.made < upTo; {
		l.settled.Wait()
	}
}

func (l *Log) loseLocked(n uint64) {
	l.lost += n
	l.stats.Lost += n
}

// wake leaves one token: whoever takes it looks at everything there is.
func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// pump makes lines of events until Close, and then of those that are left.
func (l *Log) pump() {
	defer close(l.pumped)
	var spare []policy.Event
	var line []byte
	for open := true; open; {
		select {
		case <-l.events:
		case <-l.end:
			open = false
		}
		l.mu.Lock()
		batch := l.pending
		l.pending = spare[:0]
		l.mu.Unlock()
		for i := range batch {
			line = batch[i].Append(line[:0])
			l.deliver(&batch[i], l.o.Scrub(line))
			l.o.Each(batch[i])
		}
		l.mu.Lock()
		l.made += uint64(len(batch))
		l.settled.Broadcast()
		l.mu.Unlock()
		clear(batch) // or their strings would live until they are overwritten
		spare = batch
	}
	l.endSubscriptions()
}

// deliver hands a line to those who watch and to the drain. The line is overwritten by the next.
func (l *Log) deliver(e *policy.Event, line []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if denied(e) {
		l.denials.add(e, l.o.Scrub)
	}
	if len(l.subs) > 0 {
		kept := bytes.Clone(line)
		for s := range l.subs {
			s.offerLocked(kept, l.o.Now)
		}
	}
	switch {
	case l.sink == nil:
	case len(l.out)+len(line) > backlog:
		l.loseLocked(1)
	default:
		l.out = append(l.out, line...)
		wake(l.lines)
	}
}

// drain writes lines until the pump has ended and nothing is left.
func (l *Log) drain() {
	defer close(l.ended)
	if l.sink == nil {
		<-l.pumped
		return
	}
	defer l.sink.close()
	var spare []byte
	for open := true; open; {
		select {
		case <-l.lines:
		case <-l.pumped:
			open = false
		}
		chunk, told := l.take(spare)
		l.put(chunk, told)
		if spare = chunk[:0]; cap(spare) > 256<<10 {
			spare = nil // a burst is no reason to keep that much for ever
		}
	}
}

// take returns the lines that wait and, at their end, a line that tells how many were lost after them.
func (l *Log) take(spare []byte) (chunk []byte, told uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	chunk, told = l.out, l.lost
	l.out, l.lost = spare, 0
	if told > 0 {
		chunk = lostLine(chunk, told, l.o.Now())
	}
	return chunk, told
}

func lostLine(b []byte, n uint64, at time.Time) []byte {
	e := policy.Event{Time: at, Event: "lost", Reason: fmt.Sprintf("%d audit lines could not be written", n)}
	return e.Append(b)
}

// retry is how long the drain waits after a write that failed.
const retry = time.Second

// put writes a chunk, however long that takes. It gives up only when the log is closed and the sink still fails.
func (l *Log) put(chunk []byte, told uint64) {
	failing := false
	for rest := chunk; len(rest) > 0; {
		n, err := l.sink.write(rest)
		rest = rest[n:]
		switch {
		case err == nil:
			continue
		case !failing:
			failing = true
			l.o.Log("audit: %v; up to %d MiB of lines wait, the rest is counted", err, backlog>>20)
		}
		select {
		case <-time.After(retry):
		case <-l.end:
			l.count(chunk, rest, told)
			return
		}
	}
	l.count(chunk, nil, told)
	if failing {
		l.o.Log("audit: lines are being written again")
	}
}

// count takes note of what became of a chunk. The line about lost lines, its last when told is not 0, is no event.
func (l *Log) count(chunk, rest []byte, told uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	all, left := uint64(bytes.Count(chunk, newline)), uint64(bytes.Count(rest, newline))
	if told > 0 {
		all--
		if left > 0 {
			left--
			l.lost += told
		}
	}
	l.stats.Written += all - left
	l.loseLocked(left)
}

var newline = []byte("\n")

// Stats returns the counts.
func (l *Log) Stats() Stats {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.stats
}

// Close writes what is queued, waiting at most two seconds for a sink that is stuck, and ends every subscription. The
// error says how many lines did not make it.
func (l *Log) Close() error {
	l.mu.Lock()
	again := l.closed
	l.closed = true
	l.mu.Unlock()
	if again {
		return nil
	}
	close(l.end)
	select {
	case <-l.ended:
	case <-time.After(closing):
		return fmt.Errorf("audit: %s is stuck; its last lines were not written", l.o.Sink)
	}
	if lost := l.Stats().Lost; lost > 0 {
		return fmt.Errorf("audit: %d lines could not be written to %s", lost, l.o.Sink)
	}
	return nil
}

// stream is standard error.
type stream struct{ w io.Writer }

func (s stream) write(lines []byte) (int, error) { return s.w.Write(lines) }
func (s stream) close() error                    { return nil }
