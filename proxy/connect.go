package proxy

import (
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"exitgate/policy"
	"exitgate/proxy/internal/hello"
)

// tunnel is a CONNECT that was allowed.
type tunnel struct {
	c      *conn
	up     upstream
	wire   *wire
	limits policy.Limits
	sent   atomic.Int64 // to the upstream
	got    atomic.Int64 // from it
}

// connectTunnel serves a CONNECT. The upstream is connected before the agent hears
// 200: what fails is still said in words. After it the first bytes decide: they
// must be a ClientHello for the name that was asked for.
func (c *conn) connectTunnel(req *http.Request) (again bool) {
	t, refused := c.openTunnel(req)
	for refused == newer {
		t, refused = c.openTunnel(req)
	}
	if refused != nil {
		return c.refuse(refused, req)
	}
	c.stage(stageTunnel)
	c.srv.stats.tunnels.Add(1)
	defer c.srv.stats.tunnels.Add(-1)
	c.flow.answered, c.flow.event.Status = true, http.StatusOK
	if _, err := c.nc.Write([]byte("HTTP/1.1 200 Connection Established\r\n\r\n")); err == nil {
		t.run()
	}
	c.flow.event.BytesOut, c.flow.event.BytesIn = t.sent.Load(), t.got.Load()
	c.detach()
	_ = t.wire.Close()
	return false
}

func (c *conn) openTunnel(req *http.Request) (*tunnel, *refusal) {
	f := &c.flow
	host, port, refused := destination(req.RequestURI, 0)
	if refused != nil {
		return nil, refused
	}
	f.event.Host, f.event.Port = host, port
	d, refused := c.rule(policy.Request{Agent: c.agent.name, Road: policy.RoadConnect, Method: http.MethodConnect, Host: host, Port: port})
	if refused != nil {
		return nil, refused
	}
	t := &tunnel{c: c, up: upstream{agent: c.agent.name, rule: d.Rule, host: host, port: port, tls: true}, limits: f.snap.limits(c.agent.name)}
	if refused := c.agent.limit.bytes(f.event.Time, t.limits, 0); refused != nil {
		return nil, refused
	}
	c.stage(stageWait)
	ctx, cancel, err := c.dialling()
	if err == nil {
		defer cancel()
		t.wire, err = c.srv.dialTCP(ctx, t.up)
	}
	if err == nil {
		err = c.attach(t.wire, t.wire.addr.Addr())
	}
	if err != nil {
		return nil, failed(err, t.up)
	}
	f.event.Upstream = t.wire.addr.String()
	return t, nil
}

// tlsPort is the port on which nothing but TLS is let through. On another, which a
// policy has to name, other protocols may be spoken; TLS is held to its name there
// too.
const tlsPort = 443

// run carries bytes both ways until both sides have ended.
func (t *tunnel) run() {
	serverFirst := t.up.port != tlsPort
	down := make(chan struct{})
	if serverFirst {
		go t.download(down) // the server may be the one to begin: SSH, SMTP
	}
	first, why, err := t.greeting()
	if why != "" {
		t.refuse(why)
		if serverFirst {
			<-down
		}
		return
	}
	if !serverFirst {
		go t.download(down)
	}
	t.upload(first, err)
	<-down
}

// greeting reads the agent's first bytes and says what is wrong with them, if
// anything is. Where the server may begin they have all the time there is: they are
// looked at whenever they come.
func (t *tunnel) greeting() (first []byte, why string, err error) {
	br := t.c.br
	if t.up.port != tlsPort {
		b, err := br.Peek(1)
		if err != nil || b[0] != recordHandshake {
			return t.buffered(), "", noEOF(err)
		}
	}
	_ = t.c.nc.SetReadDeadline(time.Now().Add(t.c.srv.opt.Timeouts.Head))
	raw, name, err := hello.ServerName(br)
	if why := t.judge(name, err); why != "" {
		return nil, why, nil
	}
	_ = t.c.nc.SetReadDeadline(time.Time{})
	return append(raw, t.buffered()...), "", nil
}

const recordHandshake = 22 // TLS record type, RFC 8446 5.1

// buffered takes what the reader has read ahead.
func (t *tunnel) buffered() []byte {
	b, _ := t.c.br.Peek(t.c.br.Buffered())
	b = append([]byte(nil), b...)
	_, _ = t.c.br.Discard(len(b))
	return b
}

// judge compares the ClientHello's server name with the name of the CONNECT. An
// address has no server name (RFC 6066 3), so there must be none.
func (t *tunnel) judge(name string, err error) string {
	host, perr := policy.ParseHost(t.up.host)
	literal := perr == nil && host.Addr.IsValid()
	switch {
	case errors.Is(err, hello.ErrNoSNI) && literal:
		return ""
	case errors.Is(err, hello.ErrNoSNI):
		return "the ClientHello names no server; it must name " + t.up.host
	case errors.Is(err, hello.ErrNotTLS):
		return "the first bytes are not a TLS ClientHello"
	case errors.Is(err, os.ErrDeadlineExceeded):
		return "no ClientHello came in time"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "the agent left before its ClientHello"
	case err != nil:
		return "the ClientHello cannot be read"
	case !strings.EqualFold(strings.TrimSuffix(name, "."), t.up.host):
		return "the ClientHello names another server than the CONNECT"
	}
	return ""
}

// unrecognizedName is the fatal TLS alert of that name (RFC 6066 3): the agent has
// had its 200, and its TLS library can show this.
var unrecognizedName = []byte{21, 3, 3, 0, 2, 2, 112}

// refuse ends a tunnel whose first bytes were wrong. The upstream has seen none.
func (t *tunnel) refuse(why string) {
	f := &t.c.flow
	f.event.Decision, f.event.Reason, f.event.Status = "deny", why, http.StatusForbidden
	t.c.dropUpstream()
	if _, err := t.c.nc.Write(unrecognizedName); err == nil {
		t.c.linger()
	}
}

// upload sends first and then what the agent sends, unless err has come already.
func (t *tunnel) upload(first []byte, err error) {
	if err == nil {
		err = t.charge(len(first))
	}
	if err == nil {
		_, err = t.wire.Conn.Write(first)
	}
	if err == nil {
		t.count(&t.sent, &t.c.agent.bytesOut, len(first))
		err = t.pump(&pump{to: t.wire.Conn, from: t.c.nc, sum: &t.sent, agent: &t.c.agent.bytesOut, charge: t.charge})
	}
	t.ended(t.wire.Conn, err)
}

// download sends the agent what the upstream sends.
func (t *tunnel) download(done chan struct{}) {
	defer close(done)
	defer func() {
		if v := recover(); v != nil {
			t.c.srv.panicked()
			t.c.end(cutFault)
		}
	}()
	t.ended(t.c.nc, t.pump(&pump{to: t.c.nc, from: t.wire.Conn, sum: &t.got, agent: &t.c.agent.bytesIn}))
}

var errLimit = errors.New("proxy: upload limit reached")

// charge counts n bytes that are about to leave against the limit. It is called on
// the connection's own goroutine.
func (t *tunnel) charge(n int) error {
	refused := t.c.agent.limit.bytes(t.c.srv.now(), t.limits, int64(n))
	if refused == nil {
		return nil
	}
	f := &t.c.flow
	f.event.Event, f.event.Decision, f.event.Reason = "limit", "deny", refused.reason
	return errLimit
}

// pump is one direction of a tunnel.
type pump struct {
	to, from net.Conn
	sum      *atomic.Int64
	agent    *atomic.Uint64
	charge   func(int) error // before bytes leave; may be nil
}

// spliceFrom is how much has to wait for its being moved within the kernel. Less
// goes by a buffer: the pipe that a splice needs costs more than the copy.
const spliceFrom = 16 << 10

// pump moves bytes until p.from ends. It waits without a buffer or a pipe, so an
// idle tunnel holds neither; then it moves what is there, counted before it leaves.
func (t *tunnel) pump(p *pump) error {
	in := newIntake(p.from)
	for seen := int64(0); ; {
		n, err := p.move(in)
		t.count(p.sum, p.agent, n)
		switch {
		case err == io.EOF:
			return nil
		case errors.Is(err, os.ErrDeadlineExceeded) && p.sum.Load() > seen:
			seen = p.sum.Load()
			t.extend(p.from) // half closed, and still talking
		case err != nil:
			return err
		}
	}
}

// move waits for bytes and moves those that came: few by a buffer, many within the
// kernel.
func (p *pump) move(in *intake) (int, error) {
	many, err := in.wait()
	defer in.free()
	n := max(many, in.n)
	if n == 0 {
		return 0, err
	}
	if err := p.pay(n); err != nil {
		return 0, err
	}
	if many > 0 {
		moved, err := io.Copy(kernel(p.to), &io.LimitedReader{R: kernel(p.from), N: int64(n)})
		return int(moved), err
	}
	n, failed := p.to.Write((*in.buf)[:n])
	if failed != nil {
		err = failed
	}
	return n, err
}

func (p *pump) pay(n int) error {
	if p.charge == nil {
		return nil
	}
	return p.charge(n)
}

// intake reads from a connection, with a buffer that it takes when there is
// something to be read and not before.
type intake struct {
	nc   net.Conn
	raw  syscall.RawConn // nil: reading waits with the buffer in hand
	try  func(fd uintptr) bool
	buf  *[]byte // of buffers, from wait until free
	n    int     // bytes in buf
	many int     // bytes that wait unread: enough for a splice
	full bool    // the last read filled the buffer: it may be worth while to ask how much waits
	err  error
}

func newIntake(nc net.Conn) *intake {
	in := &intake{nc: nc}
	if sc, ok := nc.(syscall.Conn); ok {
		in.raw, _ = sc.SyscallConn()
	}
	in.try = func(fd uintptr) bool {
		if in.full {
			if in.many, _ = unix.IoctlGetInt(int(fd), unix.TIOCINQ); in.many >= spliceFrom {
				return true
			}
			in.many = 0
		}
		in.take()
		in.n, in.err = call(unix.SYS_READ, fd, *in.buf)
		if in.err == unix.EAGAIN {
			in.free()
			return false
		}
		return true
	}
	return in
}

func (in *intake) take() {
	if in.buf == nil {
		in.buf = buffers.Get().(*[]byte)
	}
}

func (in *intake) free() {
	if in.buf != nil {
		buffers.Put(in.buf)
		in.buf = nil
	}
}

// wait waits for bytes and reads them into buf, unless they are so many that they
// are better spliced. An end is io.EOF.
func (in *intake) wait() (many int, err error) {
	in.n, in.many, in.err = 0, 0, nil
	if in.raw == nil {
		in.take()
		in.n, in.err = in.nc.Read(*in.buf)
	} else if err := in.raw.Read(in.try); err != nil {
		in.n, in.many, in.err = 0, 0, err
	}
	if in.many > 0 {
		return in.many, nil
	}
	if in.n = max(in.n, 0); in.n == 0 && in.err == nil {
		in.err = io.EOF
	}
	in.full = in.buf != nil && in.n == len(*in.buf)
	return 0, in.err
}

func (t *tunnel) count(sum *atomic.Int64, agent *atomic.Uint64, n int) {
	sum.Add(int64(n))
	agent.Add(uint64(n))
}

// ended passes the end of one direction on to the connection it went to. After a
// clean one the other direction goes on for as long as it talks; anything else ends
// both with a reset, for a clean end would look like the peer's.
func (t *tunnel) ended(to net.Conn, err error) {
	if half, ok := to.(interface{ CloseWrite() error }); ok && err == nil {
		_ = half.CloseWrite()
		t.extend(to)
		return
	}
	t.c.end(cutTunnel)
}

func (t *tunnel) extend(nc net.Conn) {
	_ = nc.SetReadDeadline(time.Now().Add(t.c.srv.opt.Timeouts.HalfClosed))
}
