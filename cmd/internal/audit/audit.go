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
// Not done here: no event is made up but that one, no line is sent over a network, no time is waited in Write.
package audit

import (
	"io"

	"exitgate/policy"
)

// Options are the outside world.
type Options struct {
	Sink   string                           // "stderr", "file:PATH" or "none"
	Stderr io.Writer                        // for Sink "stderr"; nil: os.Stderr
	Root   string                           // PATH is below it; "" is /
	Scrub  func(line []byte) []byte         // applied to each line before anybody sees it; nil: none
	Log    func(format string, args ...any) // told once when lines stop being written, and once when they are again; nil: silent
	Queue  int                              // events that may wait; 0: 8192
	Size   int64                            // bytes after which a file is rotated; 0: 16 MiB
	Keep   int                              // rotated files kept as PATH.1 (latest) to PATH.Keep; 0: 3
}

// Log is the writer. All methods may be called from any goroutine.
type Log struct{}

// Open opens the sink. A file must be in a directory that only root can change; it is created with mode 0600.
func Open(o Options) (*Log, error) { return &Log{}, nil }

// Write queues an event. It never waits: when the queue is full the event is lost, and counted.
func (l *Log) Write(e policy.Event) {}

// Subscription is one who watches.
type Subscription struct{ C <-chan []byte } // complete lines, not to be changed; closed by Close of either side

// Close ends the subscription.
func (s *Subscription) Close() {}

// Subscribe delivers every line from now on, scrubbed. One who reads slower than lines come loses some, and gets a
// line with event "lost" that says how many.
func (l *Log) Subscribe(buffer int) *Subscription { return nil }

// Stats counts lines since Open.
type Stats struct{ Written, Lost uint64 }

// Stats returns the counts.
func (l *Log) Stats() Stats { return Stats{} }

// Denial is one thing that was denied, however often.
type Denial struct {
	Event policy.Event // the latest
	Count int
}

// Denials returns the denials remembered, oldest first.
func (l *Log) Denials() []Denial { return nil }

// Close writes what is queued, waiting at most two seconds for a sink that is stuck, and ends every subscription.
func (l *Log) Close() error { return nil }
