package main

import (
	"bytes"
	"io"
	"sync"
	"time"
)

const (
	logLines = 1024            // that wait for whoever reads the log
	logEnd   = 2 * time.Second // that the end of the gate waits for him
)

// logWriter has whoever logs not wait: standard error may be a pipe that is full and that nobody reads, and who has something to
// say may be about to start the proxy again, or to pass a signal on. Lines that find no room are lost, and counted.
type logWriter struct {
	to      io.Writer
	lost    func(n int) // tells of lines that were lost, in the log's own form
	lines   chan []byte
	written chan struct{} // closed when the last line is

	mu      sync.Mutex // guards the following
	missing int        // lost, and not told of
	closed  bool
}

func newLogWriter(to io.Writer, lost func(n int)) *logWriter {
	w := &logWriter{to: to, lost: lost, lines: make(chan []byte, logLines), written: make(chan struct{})}
	go w.drain()
	return w
}

// Write takes one line.
func (w *logWriter) Write(line []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return len(line), nil
	}
	select {
	case w.lines <- bytes.Clone(line):
	default:
		w.missing++
	}
	return len(line), nil
}

func (w *logWriter) drain() {
	defer close(w.written)
	for line := range w.lines {
		_, _ = w.to.Write(line) // nobody is left to be told where that fails
		w.mu.Lock()
		missing := w.missing
		w.missing = 0
		w.mu.Unlock()
		if missing > 0 {
			w.lost(missing)
		}
	}
}

// Close returns when every line is written, or has waited long enough.
func (w *logWriter) Close() error {
	w.mu.Lock()
	if !w.closed {
		w.closed = true
		close(w.lines)
	}
	w.mu.Unlock()
	select {
	case <-w.written:
	case <-time.After(logEnd):
	}
	return nil
}
