package proxy

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// Server is the proxy. Its methods may be called at any time from any goroutine.
type Server struct {
	opt    Options
	snap   atomic.Pointer[snapshot]
	closed atomic.Bool // Shutdown was called
	runs   string      // prefix of this process's request ids
	ids    atomic.Uint64
	tls    tls.Config // of upstream connections; cloned per connection with a name
	h2only sync.Map   // by authority: whether the upstream speaks HTTP/2 only; see dialHTTP1

	confMu sync.Mutex // serialises Configure; guards the one below
	known  [][]byte   // every secret since start, the latest last

	mu        sync.Mutex // guards the fields below
	agents    map[string]*agentState
	listeners map[net.Listener]struct{}

	conns    registry
	sweeping atomic.Bool
	stats    counters
}

// agentState is what belongs to an agent whatever the generation.
type agentState struct {
	name     string
	limit    *limiter
	open     atomic.Int64 // connections
	over     atomic.Int64 // connections above the limit that are being told so
	bytesIn  atomic.Uint64
	bytesOut atomic.Uint64
}

// New returns a Server that answers 503 until it is configured.
func New(o Options) *Server {
	o.Timeouts.fill()
	if o.Log == nil {
		o.Log = func(string, ...any) {}
	}
	s := &Server{
		opt:       o,
		agents:    map[string]*agentState{},
		listeners: map[net.Listener]struct{}{},
		tls: tls.Config{
			MinVersion:         tls.VersionTLS12,
			RootCAs:            o.RootCAs,
			ClientSessionCache: tls.NewLRUClientSessionCache(256),
			// Small first records help a browser draw early. Here they would cost a
			// write call for every 1.4 KiB of a prompt.
			DynamicRecordSizingDisabled: true,
		},
	}
	var run [4]byte
	_, _ = rand.Read(run[:])
	s.runs = hex.EncodeToString(run[:]) + "-"
	return s
}

// now is the policy's clock; durations are measured on the monotonic one.
func (s *Server) now() time.Time {
	if s.opt.Now != nil {
		return s.opt.Now()
	}
	return time.Now()
}

// id names a request, in its audit line and in a refusal.
func (s *Server) id() string {
	return s.runs + strconv.FormatUint(s.ids.Add(1), 36)
}

// agentNamed returns the lasting state of an agent.
func (s *Server) agentNamed(name string) *agentState {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.agents[name]
	if a == nil {
		a = &agentState{name: name, limit: newLimiter()}
		s.agents[name] = a
	}
	return a
}

// Serve accepts agent's connections from l, which is TCP or unix, until l
// closes; it returns nil then. Whoever connects to l is agent: on TCP the kernel
// rule says so, on a unix socket the peer's uid is compared.
func (s *Server) Serve(agent string, l net.Listener) error {
	if !s.listen(l) {
		return l.Close()
	}
	defer s.unlisten(l)
	a := s.agentNamed(agent)
	var pause time.Duration
	for {
		nc, err := l.Accept()
		if err == nil {
			pause = 0
			s.accept(a, nc)
			continue
		}
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if !acceptAgain(err) {
			return err
		}
		// Out of descriptors or memory: what is open goes on, and closing it makes room.
		pause = min(max(2*pause, 5*time.Millisecond), time.Second)
		time.Sleep(pause)
	}
}

// acceptAgain reports whether accept may succeed later (accept(2), ERRORS).
func acceptAgain(err error) bool {
	for _, e := range []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.ECONNABORTED, syscall.EINTR, syscall.EPERM, syscall.EPROTO} {
		if errors.Is(err, e) {
			return true
		}
	}
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout()
}

func (s *Server) listen(l net.Listener) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed.Load() {
		return false
	}
	s.listeners[l] = struct{}{}
	return true
}

func (s *Server) unlisten(l net.Listener) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.listeners, l)
}

// Shutdown closes the listeners and the idle connections, waits for requests
// and tunnels under way until ctx ends, then resets them; it returns ctx's error
// if it had to.
func (s *Server) Shutdown(ctx context.Context) error {
	s.mu.Lock()
	s.closed.Store(true)
	for l := range s.listeners {
		_ = l.Close()
	}
	s.mu.Unlock()
	err := s.drain(ctx)
	if n := s.snap.Load(); n != nil {
		n.pool.retire()
	}
	return err
}

// drain waits for the connections to end. Idle ones are closed at each look: a
// request that arrives in between is answered and its connection closed.
func (s *Server) drain(ctx context.Context) error {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		open := s.conns.list(nil)
		for _, c := range open {
			c.closeIdle()
		}
		if len(open) == 0 {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			for _, c := range open {
				c.end(cutShutdown)
			}
			s.conns.wait()
			return ctx.Err()
		}
	}
}
