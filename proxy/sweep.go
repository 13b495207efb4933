package proxy

import (
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// sweepEvery is how often the open connections are looked at. One look finds
// the agents that left, the ones that stall, the grants that ended, and upstream
// connections that nobody needs any more, without a timer or a second goroutine per
// connection.
const sweepEvery = 250 * time.Millisecond

// sight is what the sweep saw of a connection last time.
type sight struct {
	mark   uint64
	read   int64
	since  time.Time // of this mark
	moved  time.Time // of this number of bytes read
	leaves int       // looks in a row at which the peer's side was closed
}

// wakeSweep starts the sweep unless it runs.
func (s *Server) wakeSweep() {
	if !s.sweeping.Load() && s.sweeping.CompareAndSwap(false, true) {
		go s.sweep()
	}
}

// sweep runs as long as there is something to look at.
func (s *Server) sweep() {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	var open []*conn
	var grants expiry
	for now := range tick.C {
		if n := s.snap.Load(); n != nil && grants.passed(n, s.now()) {
			s.rejudge(n)
		}
		clear(open)
		open = s.conns.list(open[:0])
		for _, c := range open {
			c.look(now)
		}
		idle := 0
		if n := s.snap.Load(); n != nil {
			idle = n.pool.reap(now)
		}
		if len(open) > 0 || idle > 0 {
			continue
		}
		s.sweeping.Store(false)
		// What came between the look and the store saw a sweep that was ending.
		if !s.busy() || !s.sweeping.CompareAndSwap(false, true) {
			return
		}
	}
}

// expiry is when the next grant of a generation ends. The clock decides, which may be
// set, and not a timer, which stands still while the machine sleeps.
type expiry struct {
	of *snapshot
	at time.Time // zero: none ends
}

// passed reports whether one has ended since the last look, or since n began.
func (e *expiry) passed(n *snapshot, now time.Time) bool {
	if e.of != n {
		e.of, e.at = n, n.expiry
	}
	if e.at.IsZero() || now.Before(e.at) {
		return false
	}
	e.at, _ = n.policy.NextExpiry(now)
	return true
}

// rejudge cuts the flows that n does not grant any more, if n is still in force.
func (s *Server) rejudge(n *snapshot) {
	s.confMu.Lock()
	defer s.confMu.Unlock()
	if s.snap.Load() == n {
		s.recheck(n)
	}
}

func (s *Server) busy() bool {
	if len(s.conns.list(nil)) > 0 {
		return true
	}
	n := s.snap.Load()
	return n != nil && n.pool.idleCount() > 0
}

// look compares the connection with what the last look saw, and ends what took
// too long or has lost its agent.
func (c *conn) look(now time.Time) {
	mark, read := c.mark.Load(), c.in.read.Load()
	v := &c.seen
	if v.mark != mark || v.since.IsZero() {
		*v = sight{mark: mark, read: read, since: now, moved: now}
	}
	if v.read != read {
		v.read, v.moved = read, now
	}
	limits := &c.srv.opt.Timeouts
	switch mark & 0xff {
	case stageIdle:
		c.expire(now.Sub(v.since) > limits.Idle)
	case stageHead:
		c.expire(now.Sub(v.since) > limits.Head)
	case stageBody:
		c.expire(now.Sub(v.moved) > limits.Body)
	case stageWait:
		if now.Sub(v.since) > limits.FirstByte {
			c.end(cutStalled)
		}
		c.expire(c.uploading.Load() && now.Sub(v.moved) > limits.Body)
		c.lookForAgent()
	case stageStream:
		c.expire(c.uploading.Load() && now.Sub(v.moved) > limits.Body)
		c.lookForAgent()
	}
}

// expire wakes the connection's read with a timeout. If the connection moves on
// in this very moment it ends all the same: it had used up its time.
func (c *conn) expire(late bool) {
	if late {
		_ = c.nc.SetReadDeadline(time.Unix(1, 0))
	}
}

// lookForAgent cuts a request whose agent has closed its connection. One that
// closed only its sending side looks the same, so it gets two looks to be
// answered; a reset is final.
func (c *conn) lookForAgent() {
	switch c.peer() {
	case peerReset:
		c.end(cutGone)
	case peerClosed:
		if c.seen.leaves++; c.seen.leaves >= 2 {
			c.end(cutGone)
		}
	default:
		c.seen.leaves = 0
	}
}

type peerState int

const (
	peerOpen peerState = iota
	peerClosed
	peerReset
)

// peer asks the kernel, without reading, whether the other side is still there.
func (c *conn) peer() (state peerState) {
	if c.raw == nil {
		return peerOpen
	}
	if c.raw.Control(func(fd uintptr) { state = pollPeer(fd) }) != nil {
		return peerReset
	}
	return state
}

func pollPeer(fd uintptr) peerState {
	seen, err := look(fd, unix.POLLRDHUP)
	if err != nil {
		return peerOpen
	}
	switch {
	case seen&(unix.POLLERR|unix.POLLNVAL) != 0:
		return peerReset
	case seen&(unix.POLLHUP|unix.POLLRDHUP) != 0:
		return peerClosed
	}
	return peerOpen
}

// probe asks whether a connection has something to be read. It is made once for a
// connection, so that asking costs no memory.
type probe struct {
	raw syscall.RawConn // nil: it cannot be asked
	ask func(fd uintptr)
	yes bool
}

func newProbe(raw syscall.RawConn) *probe {
	p := &probe{raw: raw}
	p.ask = func(fd uintptr) {
		seen, err := look(fd, unix.POLLIN|unix.POLLRDHUP)
		p.yes = err == nil && seen != 0
	}
	return p
}

// readable reports whether there are bytes, an end or an error. One goroutine may
// ask at a time.
func (p *probe) readable() bool {
	if p.raw == nil {
		return false
	}
	p.yes = false
	return p.raw.Control(p.ask) != nil || p.yes
}
