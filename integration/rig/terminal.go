package rig

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/creack/pty"
)

// Terminal is a person at the box's terminal.
type Terminal struct {
	master *os.File

	mu   sync.Mutex // guards following
	got  bytes.Buffer
	more chan struct{}
	seen int // what Expect has consumed
}

// NewTerminal is a person at the terminal whose other end this is.
func NewTerminal(master *os.File) *Terminal {
	t := &Terminal{master: master, more: make(chan struct{})}
	go t.read()
	return t
}

func (t *Terminal) read() {
	buf := make([]byte, 4096)
	for {
		n, err := t.master.Read(buf)
		t.mu.Lock()
		t.got.Write(buf[:n])
		close(t.more)
		t.more = make(chan struct{})
		t.mu.Unlock()
		if err != nil {
			return // EIO when the last holder of the slave has gone
		}
	}
}

// Type sends keys as they are; "\x03" is Ctrl-C, "\x1a" Ctrl-Z.
func (t *Terminal) Type(keys string) error {
	_, err := t.master.WriteString(keys)
	return err
}

// Expect waits for text on the screen after what earlier calls consumed.
func (t *Terminal) Expect(text string, limit time.Duration) error {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	for {
		t.mu.Lock()
		rest := string(t.got.Bytes()[t.seen:])
		at := strings.Index(rest, text)
		if at >= 0 {
			t.seen += at + len(text)
			t.mu.Unlock()
			return nil
		}
		more := t.more
		t.mu.Unlock()
		select {
		case <-more:
		case <-timer.C:
			return fmt.Errorf("the terminal does not show %q; since the last match it shows %q", text, rest)
		}
	}
}

// Screen is all output so far.
func (t *Terminal) Screen() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.got.String()
}

// Resize changes the window, which sends WINCH to the foreground.
func (t *Terminal) Resize(rows, cols uint16) error {
	return pty.Setsize(t.master, &pty.Winsize{Rows: rows, Cols: cols})
}

// HangUp closes the terminal, as when a window is closed.
func (t *Terminal) HangUp() error { return t.master.Close() }

func (t *Terminal) close() { t.master.Close() }
