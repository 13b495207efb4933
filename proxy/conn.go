package proxy

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"exitgate/proxy/internal/head"
)

// The stages of an agent's connection, for the sweep's time limits.
const (
	stageIdle   = iota // between requests
	stageHead          // a request head has begun
	stageBody          // its body is read before anything is sent
	stageWait          // an upstream is being dialled or has not answered yet
	stageStream        // the answer is on its way
	stageTunnel        // bytes go both ways; a half-closed side is no sign of leaving
	stageEnd           // the connection is on its way out
)

// conn is an agent's connection. Its goroutine reads requests and answers them
// one after the other, upstream calls included.
type conn struct {
	srv   *Server
	agent *agentState
	nc    net.Conn
	raw   syscall.RawConn // nil where nc is no socket
	info  Conn
	in    source
	br    *bufio.Reader

	mark      atomic.Uint64 // stage in the low byte, a count of changes above it
	uploading atomic.Bool   // a body is being sent while the answer is awaited
	seen      sight         // the sweep's own

	ask *probe   // made when first needed
	x   exchange // of the request that is served

	mu   sync.Mutex // guards flow.up, flow.cancel, flow.on, flow.cut, and the closing of nc
	flow flow
	done bool // guarded by mu: nc is closed
}

// Head limits. A head larger than the reader is collected in memory of its own by
// head.Read, so a thousand open streams do not pay for the largest.
const (
	readerSize = 4 << 10
	maxHead    = 64 << 10
	maxFields  = 256
)

var readers = sync.Pool{New: func() any { return bufio.NewReaderSize(nil, readerSize) }}

// source is the connection as its reader sees it, counted.
type source struct {
	nc   net.Conn
	read atomic.Int64 // bytes; the sweep looks whether a body makes progress
}

// Read reads from the connection.
func (s *source) Read(p []byte) (int, error) {
	n, err := s.nc.Read(p)
	s.read.Add(int64(n))
	return n, err
}

// accept starts a connection's goroutine.
func (s *Server) accept(a *agentState, nc net.Conn) {
	nc = direct(nc)
	c := &conn{srv: s, agent: a, nc: nc, info: Conn{Local: addrPort(nc.LocalAddr()), Remote: addrPort(nc.RemoteAddr())}}
	c.in.nc = nc
	if sc, ok := nc.(syscall.Conn); ok {
		c.raw, _ = sc.SyscallConn()
	}
	if !s.conns.add(c) {
		_ = nc.Close()
		return
	}
	s.wakeSweep()
	go c.serve()
}

func addrPort(a net.Addr) netip.AddrPort {
	if t, ok := a.(*net.TCPAddr); ok {
		ap := t.AddrPort()
		return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
	}
	return netip.AddrPort{}
}

// serve is the connection's goroutine.
func (c *conn) serve() {
	defer c.finish()
	c.br = readers.Get().(*bufio.Reader)
	c.br.Reset(&c.in)
	if !c.admit() {
		return
	}
	defer c.agent.open.Add(-1)
	if c.srv.opt.Opened != nil {
		c.srv.opt.Opened(c.agent.name, c.info)
	}
	for c.next() {
	}
}

// next serves one request and reports whether another may follow.
func (c *conn) next() (again bool) {
	c.stage(stageIdle)
	req, err := c.readHead()
	if err != nil {
		c.badHead(err)
		return false
	}
	c.begin(req)
	defer func() {
		if v := recover(); v != nil {
			c.panicked()
			again = false
		}
	}()
	again = c.handle(req)
	c.over()
	return again && !c.srv.closed.Load()
}

// finish closes the connection and forgets it.
func (c *conn) finish() {
	if v := recover(); v != nil {
		c.srv.panicked()
	}
	c.close()
	if c.br != nil {
		c.putReader()
	}
	c.srv.conns.remove(c)
}

func (c *conn) putReader() {
	c.br.Reset(nil)
	readers.Put(c.br)
	c.br = nil
}

// close closes nc once.
func (c *conn) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.done {
		c.done = true
		_ = c.nc.Close()
	}
}

// resetLocked closes nc so that the agent gets ECONNRESET, not a clean end.
// Callers hold mu.
func (c *conn) resetLocked() {
	if c.done {
		return
	}
	c.done = true
	reset(c.nc)
}

// reset closes nc with RST. A unix socket has none; its peer gets EPIPE and EOF.
func reset(nc net.Conn) {
	if t, ok := nc.(interface{ SetLinger(int) error }); ok {
		_ = t.SetLinger(0)
	}
	_ = nc.Close()
}

// stage notes what the connection is doing now.
func (c *conn) stage(s uint64) {
	c.mark.Store((c.mark.Load()>>8+1)<<8 | s)
}

// readHead waits for a request head and reads it.
func (c *conn) readHead() (*http.Request, error) {
	if _, err := c.br.Peek(1); err != nil {
		return nil, io.EOF
	}
	c.stage(stageHead)
	return head.Read(c.br, head.Limits{Line: maxHead, Header: maxHead, Fields: maxFields})
}

// badHead answers a head that was refused. A peer that left or stalled gets no
// more than a short word.
func (c *conn) badHead(err error) {
	var refused *head.Error
	switch {
	case errors.As(err, &refused):
		c.turnAway(&refusal{status: refused.Status, reason: refused.Reason, close: true})
	case errors.Is(err, os.ErrDeadlineExceeded):
		c.turnAway(&refusal{status: http.StatusRequestTimeout, reason: "the request head did not arrive in time", close: true})
	}
}

// turnAway refuses what never became a request and lets the agent read why.
func (c *conn) turnAway(r *refusal) {
	c.begin(&http.Request{})
	c.refuse(r, nil)
	c.over()
	c.linger()
}

// lingerBytes and lingerTime bound how much of an unwanted body is read so that
// the answer is not lost to the RST that closing over unread bytes causes.
const (
	lingerBytes = 64 << 20
	lingerTime  = 5 * time.Second
)

// linger ends the connection after an answer that came before the request's end.
func (c *conn) linger() {
	c.stage(stageEnd)
	half, ok := c.nc.(interface{ CloseWrite() error })
	if !ok || half.CloseWrite() != nil {
		return
	}
	_ = c.nc.SetReadDeadline(time.Now().Add(lingerTime))
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	for left := int64(lingerBytes); left > 0; {
		n, err := c.nc.Read(*buf)
		left -= int64(n)
		if err != nil {
			return
		}
	}
}

// panicked ends a request whose handler failed: refused if nothing was said yet.
// Neither the panic's value nor a stack with arguments is written anywhere: they
// may hold a peer's bytes.
func (c *conn) panicked() {
	c.srv.panicked()
	c.dropUpstream()
	_, _ = c.x.settle()
	if !c.flow.answered {
		c.refuse(&refusal{status: http.StatusInternalServerError, reason: "an internal fault; the request was not completed", close: true}, nil)
	}
	c.over()
}

func (s *Server) panicked() {
	s.stats.panics.Add(1)
	s.opt.Log("recovered from a fault in a handler at %s", callers())
}

// callers names the functions below a recover, innermost first.
func callers() string {
	var pcs [24]uintptr
	frames := runtime.CallersFrames(pcs[:runtime.Callers(3, pcs[:])])
	var b strings.Builder
	for {
		f, more := frames.Next()
		b.WriteString(f.Function)
		if !more {
			return b.String()
		}
		b.WriteString(" < ")
	}
}
