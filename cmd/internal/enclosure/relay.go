package enclosure

import (
	"io"
	"os"
	"os/signal"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

// backgroundPoll is how often a relay in the background looks whether a shell has brought it to the foreground, which
// nothing announces.
const backgroundPoll = 200 * time.Millisecond

// Relay joins the user's terminal and the agent's: keys go in raw, so that the agent's terminal makes the signals of
// them, output comes out, and the window's size follows.
type Relay struct {
	master  *os.File
	in, out int      // of the user's terminal; in is -1 where standard input is none
	wake    *os.File // written to make the pump look again
	woken   *os.File
	drained chan struct{}
	signals chan os.Signal

	mu       sync.Mutex  // guards the following
	before   *term.State // of the user's terminal; nil while it is not raw
	standing standing
}

// NewRelay relays between this process's terminal and the one that master is the other side of.
func NewRelay(master *os.File) (*Relay, error) {
	r := &Relay{master: master, in: -1, drained: make(chan struct{}), signals: make(chan os.Signal, 8)}
	for _, fd := range []int{0, 2, 1} {
		if isTerminal(fd) {
			r.out = fd
		}
	}
	if isTerminal(0) {
		r.in = 0
	}
	var err error
	r.woken, r.wake, err = os.Pipe()
	return r, err
}

// Start begins.
func (r *Relay) Start() {
	signal.Notify(r.signals, unix.SIGWINCH, unix.SIGCONT)
	r.fit()
	go r.follow()
	go func() {
		defer close(r.drained)
		_, _ = io.Copy(writer(r.out), r.master) // until nobody has the agent's terminal open any more
	}()
	if r.in >= 0 {
		go r.pump()
	}
}

// writer writes to a descriptor that is not ours to close or to change.
type writer int

// Write writes all of b, also where the terminal is non-blocking.
func (w writer) Write(b []byte) (n int, err error) {
	for n < len(b) {
		m, err := unix.Write(int(w), b[n:])
		switch err {
		case nil:
			n += m
		case unix.EINTR:
		case unix.EAGAIN:
			_, _ = unix.Poll([]unix.PollFd{{Fd: int32(w), Events: unix.POLLOUT}}, -1)
		default:
			return n, err
		}
	}
	return n, nil
}

func (r *Relay) follow() {
	for sig := range r.signals {
		r.fit()
		if sig == unix.SIGCONT {
			r.Resume()
		}
	}
}

// fit gives the agent's terminal the size of the user's.
func (r *Relay) fit() {
	size, err := unix.IoctlGetWinsize(r.out, unix.TIOCGWINSZ)
	if err != nil {
		return
	}
	conn, err := r.master.SyscallConn()
	if err != nil {
		return
	}
	_ = conn.Control(func(fd uintptr) { _ = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, size) })
}

// pump passes keys on. When the user's terminal is gone the agent's hangs up.
func (r *Relay) pump() {
	buf := make([]byte, 4096)
	for {
		switch r.take() {
		case over:
			return
		case paused:
			_, _ = r.woken.Read(buf)
			continue
		case background:
			time.Sleep(backgroundPoll)
			continue
		}
		fds := []unix.PollFd{{Fd: int32(r.in), Events: unix.POLLIN}, {Fd: int32(r.woken.Fd()), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, -1); err != nil {
			continue // EINTR
		}
		if fds[1].Revents != 0 {
			_, _ = r.woken.Read(buf)
			continue
		}
		if !r.pass(buf) {
			r.master.Close()
			return
		}
	}
}

// pass moves what was typed, and reports false when the user's terminal or the agent's is gone.
func (r *Relay) pass(buf []byte) bool {
	n, err := unix.Read(r.in, buf)
	if err == unix.EINTR || err == unix.EAGAIN {
		return true
	}
	if err == nil && n > 0 {
		_, err = r.master.Write(buf[:n])
	}
	return err == nil && n > 0
}

// foreground reports whether the terminal is this process's to read.
func foreground(fd int) bool {
	group, err := unix.IoctlGetInt(fd, unix.TIOCGPGRP)
	return err != nil || group == unix.Getpgrp() // an error: not our controlling terminal, so nobody else's turn
}

// How the relay stands to the user's terminal.
type standing int

const (
	ours       standing = iota // raw: all keys are the agent's terminal's
	background                 // somebody else's turn
	paused                     // ours, as it was before, until Resume
	over
)

// take makes the terminal raw where it is ours to take.
func (r *Relay) take() standing {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.standing != ours:
		return r.standing
	case !foreground(r.in):
		r.before = nil // a shell has set the terminal up for itself
		return background
	case r.before == nil:
		r.before, _ = term.MakeRaw(r.in)
		r.fit()
	}
	return ours
}

// give gives the terminal back as it was.
func (r *Relay) give(s standing) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.before != nil && foreground(r.in) {
		_ = term.Restore(r.in, r.before)
	}
	r.before, r.standing = nil, s
}

// Pause gives the terminal back until Resume or SIGCONT: this process is about to stop.
func (r *Relay) Pause() { r.give(paused) }

// Resume takes the terminal again, as soon as it is this process's turn. A SIGCONT does the same.
func (r *Relay) Resume() {
	r.mu.Lock()
	if r.standing == paused {
		r.standing = ours
	}
	r.mu.Unlock()
	_, _ = r.wake.Write([]byte{0})
}

// Close passes on what the agent wrote last, for a second at most, and gives the terminal back.
func (r *Relay) Close() {
	select {
	case <-r.drained:
	case <-time.After(time.Second):
	}
	r.give(over)
	_, _ = r.wake.Write([]byte{0})
	signal.Stop(r.signals)
	r.master.Close()
}
