package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"syscall"
	"time"
)

// upstream is where requests go, from the policy alone. Connections are shared
// by requests of one agent under one rule and by no others: where enforcement
// tells two things apart, so does the pool.
type upstream struct {
	agent, rule, host string
	port              uint16
	tls               bool
}

// authority is the Host field: without the port that the scheme implies.
func (u upstream) authority() string {
	host := u.host
	if a, err := netip.ParseAddr(host); err == nil && a.Is6() {
		host = "[" + host + "]"
	}
	if u.tls && u.port == 443 || !u.tls && u.port == 80 {
		return host
	}
	return host + ":" + strconv.Itoa(int(u.port))
}

func (u upstream) hostPort() string {
	return net.JoinHostPort(u.host, strconv.Itoa(int(u.port)))
}

// wire is a TCP connection to an upstream: what lies under TLS. It holds the
// pins of its addresses until it closes.
type wire struct {
	net.Conn
	addr   netip.AddrPort
	raw    syscall.RawConn
	wrote  int64 // bytes handed to the kernel; the writer's own
	sealed bool  // TLS lies over it

	once    sync.Once
	release func()
}

// Write counts what the kernel took: a request of which nothing left may be sent again.
func (w *wire) Write(p []byte) (int, error) {
	n, err := w.Conn.Write(p)
	w.wrote += int64(n)
	return n, err
}

// Read reads from the connection. Under TLS an end is said by an alert; that of the
// TCP connection alone is a truncation (RFC 9112 9.8), which crypto/tls lets pass.
func (w *wire) Read(p []byte) (int, error) {
	n, err := w.Conn.Read(p)
	if err == io.EOF && w.sealed {
		err = errTruncated
	}
	return n, err
}

// Close closes the connection and gives its pins back, once.
func (w *wire) Close() error {
	err := w.Conn.Close()
	w.once.Do(w.release)
	return err
}

// abort closes with RST. The pins are given back on another goroutine: who aborts
// holds locks, and giving back is a message to another process.
func (w *wire) abort() {
	reset(w.Conn)
	w.once.Do(func() { go w.release() })
}

// dialTCP asks for the upstream's addresses and connects to one of them.
func (s *Server) dialTCP(ctx context.Context, up upstream) (*wire, error) {
	pinned, err := s.opt.Resolver.Resolve(ctx, up.agent, up.rule, up.host, up.port)
	if err != nil {
		return nil, err
	}
	s.stats.pins.Add(1)
	release := func() {
		s.stats.pins.Add(-1)
		if pinned.Release != nil {
			pinned.Release()
		}
	}
	nc, addr, err := s.connectAny(ctx, order(pinned.Addrs), up.port)
	if err != nil {
		release()
		return nil, err
	}
	nc = direct(nc)
	w := &wire{Conn: nc, addr: addr, release: release}
	if sc, ok := nc.(syscall.Conn); ok {
		w.raw, _ = sc.SyscallConn()
	}
	return w, nil
}

// order puts the families in turns, IPv6 first (RFC 8305 4).
func order(addrs []netip.Addr) []netip.Addr {
	var six, four []netip.Addr
	for _, a := range addrs {
		if a.Unmap().Is6() {
			six = append(six, a)
		} else {
			four = append(four, a)
		}
	}
	out := make([]netip.Addr, 0, len(addrs))
	for len(six)+len(four) > 0 {
		if len(six) > 0 {
			out, six = append(out, six[0]), six[1:]
		}
		if len(four) > 0 {
			out, four = append(out, four[0]), four[1:]
		}
	}
	return out
}

var errNoAddress = &Failure{Kind: "internal", Msg: "the name has no address"}

// stagger is how long an attempt is alone before the next begins (RFC 8305 5).
const stagger = 250 * time.Millisecond

type attempt struct {
	nc   net.Conn
	addr netip.AddrPort
	err  error
}

// connectAny connects to the first address that answers: the next attempt begins
// when the last failed or is 250 ms old. The error is the first address's.
func (s *Server) connectAny(ctx context.Context, addrs []netip.Addr, port uint16) (net.Conn, netip.AddrPort, error) {
	switch len(addrs) {
	case 0:
		return nil, netip.AddrPort{}, errNoAddress
	case 1:
		a := s.connectOne(ctx, netip.AddrPortFrom(addrs[0], port))
		return a.nc, a.addr, a.err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	results := make(chan attempt)
	start := func(a netip.Addr) {
		go func() { results <- s.connectOne(ctx, netip.AddrPortFrom(a, port)) }()
	}
	start(addrs[0])
	won, first, running := attempt{}, error(nil), 1
	timer := time.NewTimer(stagger)
	defer timer.Stop()
	for next := 1; running > 0; {
		select {
		case r := <-results:
			running--
			if won, first = settle(won, r, first); won.nc != nil {
				cancel() // the others fail now; each is waited for and closed
				next = len(addrs)
			}
		case <-timer.C:
		}
		if next < len(addrs) && ctx.Err() == nil {
			start(addrs[next])
			next, running = next+1, running+1
			timer.Reset(stagger)
		}
	}
	if won.nc != nil {
		return won.nc, won.addr, nil
	}
	return nil, netip.AddrPort{}, first
}

// settle takes a result in: the first connection wins, later ones are closed.
func settle(won, r attempt, first error) (attempt, error) {
	switch {
	case r.err != nil && first == nil:
		first = r.err
	case r.err == nil && won.nc == nil:
		won = r
	case r.err == nil:
		_ = r.nc.Close()
	}
	return won, first
}

func (s *Server) connectOne(ctx context.Context, to netip.AddrPort) attempt {
	ctx, cancel := context.WithTimeout(ctx, s.opt.Timeouts.Dial)
	defer cancel()
	if s.opt.Dial != nil {
		nc, err := s.opt.Dial(ctx, to)
		return attempt{nc, to, err}
	}
	var d net.Dialer
	nc, err := d.DialTCP(ctx, "tcp", netip.AddrPort{}, to)
	if err != nil {
		return attempt{err: err}
	}
	return attempt{nc, to, nil}
}

var errTruncated = errors.New("proxy: the connection ended without a closing alert")

var errNotHTTP1 = errors.New("proxy: the upstream speaks HTTP/2 only")

// dialTLS connects and shakes hands, offering one protocol. The certificate is
// verified against the name in the policy.
func (s *Server) dialTLS(ctx context.Context, up upstream, protocol string) (*tls.Conn, *wire, error) {
	w, err := s.dialTCP(ctx, up)
	if err != nil {
		return nil, nil, err
	}
	conf := s.tls.Clone()
	conf.ServerName, conf.NextProtos = up.host, []string{protocol}
	ctx, cancel := context.WithTimeout(ctx, s.opt.Timeouts.Dial)
	defer cancel()
	w.sealed = true
	tc := tls.Client(w, conf)
	if err := tc.HandshakeContext(ctx); err != nil {
		w.abort()
		if protocol == protoHTTP1 && refusedProtocol(err) {
			return nil, nil, errNotHTTP1
		}
		return nil, nil, &handshakeError{err}
	}
	if got := tc.ConnectionState().NegotiatedProtocol; got != protocol && (got != "" || protocol != protoHTTP1) {
		w.abort()
		return nil, nil, &handshakeError{errNotHTTP1}
	}
	return tc, w, nil
}

// dialHTTP1 opens a TLS connection for HTTP/1.1, or finds that the upstream speaks
// HTTP/2 only: it refuses the protocol, or it ignores it (Go's servers do) and
// then takes h2. One that ignores both knows no ALPN and speaks HTTP/1.1. The
// second question is asked once.
func (s *Server) dialHTTP1(ctx context.Context, up upstream) (*tls.Conn, *wire, error) {
	tc, w, err := s.dialTLS(ctx, up, protoHTTP1)
	if err != nil {
		if errors.Is(err, errNotHTTP1) {
			s.h2only.Store(up.authority(), true)
		}
		return nil, nil, err
	}
	if tc.ConnectionState().NegotiatedProtocol == protoHTTP1 {
		return tc, w, nil
	}
	if _, known := s.h2only.Load(up.authority()); known {
		return tc, w, nil
	}
	_, second, err := s.dialTLS(ctx, up, protoHTTP2)
	s.h2only.Store(up.authority(), err == nil)
	if err != nil {
		return tc, w, nil
	}
	second.abort()
	w.abort()
	return nil, nil, errNotHTTP1
}

const (
	protoHTTP1 = "http/1.1"
	protoHTTP2 = "h2"
)

// handshakeError says that an error came from the TLS handshake.
type handshakeError struct{ err error }

func (e *handshakeError) Error() string { return "tls handshake: " + e.err.Error() }
func (e *handshakeError) Unwrap() error { return e.err }

// refusedProtocol recognises the alert no_application_protocol. crypto/tls keeps
// its type to itself; the text is the library's, not the peer's.
func refusedProtocol(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "remote error" && op.Err.Error() == "tls: no application protocol"
}
