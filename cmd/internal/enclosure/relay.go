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
	resized chan os.Signal

	mu     sync.Mutex // guards the following
	before *term.State
	closed bool
}

// NewRelay relays between this process's terminal and the one that master is the other side of.
func NewRelay(master *os.File) (*Relay, error) {
	r := &Relay{master: master, in: -1, drained: make(chan struct{}), resized: make(chan os.Signal, 1)}
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
	signal.Notify(r.resized, unix.SIGWINCH)
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
	for range r.resized {
		r.fit()
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
		if !foreground(r.in) {
			r.Pause()
			time.Sleep(backgroundPoll)
			continue
		}
		if !r.raw() {
			return
		}
		fds := []unix.PollFd{{Fd: int32(r.in), Events: unix.POLLIN}, {Fd: int32(r.woken.Fd()), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, -1); err != nil {
			continue // EINTR
		}
		if fds[1].Revents != 0 {
			_, _ = r.woken.Read(buf)
			continue
		}
		n, err := unix.Read(r.in, buf)
		if err == unix.EINTR || err == unix.EAGAIN {
			continue
		}
		if err == nil && n > 0 {
			_, err = r.master.Write(buf[:n])
		}
		if err != nil || n == 0 {
			r.master.Close()
			return
		}
	}
}

// foreground reports whether the terminal is this process's to read.
func foreground(fd int) bool {
	group, err := unix.IoctlGetInt(fd, unix.TIOCGPGRP)
	return err != nil || group == unix.Getpgrp() // an error: not our controlling terminal, so nobody else's turn
}

// raw leaves all keys to the agent's terminal. It reports false when the relay has ended.
func (r *Relay) raw() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return false
	}
	if r.before == nil {
		r.before, _ = term.MakeRaw(r.in)
		r.fit()
	}
	return true
}

// Pause gives the user's terminal back as it was; the next look at it takes it again.
func (r *Relay) Pause() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.before != nil && foreground(r.in) {
		_ = term.Restore(r.in, r.before)
	}
	r.before = nil
}

// Resume has the pump look at the terminal again.
func (r *Relay) Resume() { _, _ = r.wake.Write([]byte{0}) }

// Close passes on what the agent wrote last, for a second at most, and gives the terminal back.
func (r *Relay) Close() {
	select {
	case <-r.drained:
	case <-time.After(time.Second):
	}
	r.Pause()
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	signal.Stop(r.resized)
	r.Resume()
	r.master.Close()
}
