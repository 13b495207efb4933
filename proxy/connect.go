package proxy

import (
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"time"

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
func (c *conn) connectTunnel(req *http.Request) {
	t, refused := c.openTunnel(req)
	for refused == newer {
		t, refused = c.openTunnel(req)
	}
	if refused != nil {
		c.refuse(refused, req)
		return
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
		if why := c.wasCut(); why != cutNone {
			return nil, &refusal{status: statusGone, failed: true, rule: d.Rule, reason: cutReason(why)}
		}
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
	_ = t.c.nc.SetReadDeadline(time.Now().Add(t.c.srv.opt.Timeouts.Head))
	serverFirst := t.up.port != tlsPort
	down := make(chan struct{})
	if serverFirst {
		go t.download(down) // the server may be the one to begin: SSH, SMTP
	}
	first, why := t.greeting()
	if why != "" {
		t.refuse(why)
		if serverFirst {
			<-down
		}
		return
	}
	_ = t.c.nc.SetReadDeadline(time.Time{})
	if !serverFirst {
		go t.download(down)
	}
	t.upload(first)
	<-down
}

// greeting reads the agent's first bytes and says what is wrong with them, if
// anything is.
func (t *tunnel) greeting() (first []byte, why string) {
	br := t.c.br
	if t.up.port != tlsPort {
		b, err := br.Peek(1)
		if err != nil || b[0] != recordHandshake {
			return t.buffered(), ""
		}
	}
	raw, name, err := hello.ServerName(br)
	if why := t.judge(name, err); why != "" {
		return nil, why
	}
	return append(raw, t.buffered()...), ""
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

// upload sends first and then what the agent sends.
func (t *tunnel) upload(first []byte) {
	n, err := t.send(first)
	t.count(&t.sent, &t.c.agent.bytesOut, int64(n))
	if err == nil && t.limits.UploadBytesPerHour > 0 {
		err = t.copyLimited()
	} else if err == nil {
		err = t.copy(t.wire.Conn, t.c.nc, &t.sent, &t.c.agent.bytesOut)
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
	t.ended(t.c.nc, t.copy(t.c.nc, t.wire.Conn, &t.got, &t.c.agent.bytesIn))
}

// countEvery is how much is copied before it is counted. The copy goes on within
// the kernel (splice), so a tunnel's counters are at most this much behind.
const countEvery = 1 << 20

// copy moves bytes until from ends. Two TCP connections are spliced: their bytes
// never come here.
func (t *tunnel) copy(to, from net.Conn, sum *atomic.Int64, agent *atomic.Uint64) error {
	for {
		n, err := io.Copy(to, &io.LimitedReader{R: from, N: countEvery})
		t.count(sum, agent, n)
		switch {
		case n > 0 && errors.Is(err, os.ErrDeadlineExceeded):
			t.extend(from) // half closed, and still talking
		case err != nil || n < countEvery:
			return err
		}
	}
}

// copyLimited moves the agent's bytes while its limit lasts. Each is counted before
// it leaves, which a splice could not do.
func (t *tunnel) copyLimited() error {
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	for {
		n, err := t.c.nc.Read(*buf)
		if n > 0 {
			sent, werr := t.send((*buf)[:n])
			t.count(&t.sent, &t.c.agent.bytesOut, int64(sent))
			if werr != nil {
				return werr
			}
		}
		switch {
		case err == io.EOF:
			return nil
		case n > 0 && errors.Is(err, os.ErrDeadlineExceeded):
			t.extend(t.c.nc)
		case err != nil:
			return err
		}
	}
}

var errLimit = errors.New("proxy: upload limit reached")

// send counts p against the limit and sends it.
func (t *tunnel) send(p []byte) (int, error) {
	refused := t.c.agent.limit.bytes(t.c.srv.now(), t.limits, int64(len(p)))
	if refused == nil {
		return t.wire.Conn.Write(p)
	}
	f := &t.c.flow
	f.event.Event, f.event.Decision, f.event.Reason = "limit", "deny", refused.reason
	return 0, errLimit
}

func (t *tunnel) count(sum *atomic.Int64, agent *atomic.Uint64, n int64) {
	sum.Add(n)
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
