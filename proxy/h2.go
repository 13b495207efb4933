package proxy

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/http/httputil"
	"net/netip"
	"net/textproto"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// h2Upstream is an upstream that speaks HTTP/2 only, by net/http's transport. The
// usual road is HTTP/1.1: it is faster here, at every number of connections, for
// it needs no other goroutine.
type h2Upstream struct {
	transport *http.Transport

	mu      sync.Mutex // guards the fields below
	wires   map[*wire]struct{}
	streams int
	retired bool
}

// http2 returns the transport for an upstream.
func (p *pool) http2(up upstream) (*h2Upstream, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.retired {
		return nil, errCut
	}
	if h := p.h2[up]; h != nil {
		return h, nil
	}
	h := &h2Upstream{wires: map[*wire]struct{}{}}
	var only http.Protocols
	only.SetHTTP2(true)
	h.transport = &http.Transport{
		DialTLSContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return h.dial(ctx, p.srv, up)
		},
		Protocols:              &only,
		DisableCompression:     true,
		IdleConnTimeout:        p.srv.opt.Timeouts.UpstreamIdle,
		MaxResponseHeaderBytes: maxAnswerHead,
		ExpectContinueTimeout:  promiseAfter,
		HTTP2:                  &http.HTTP2Config{SendPingTimeout: 30 * time.Second, PingTimeout: 15 * time.Second},
	}
	p.h2[up] = h
	p.srv.wakeSweep()
	return h, nil
}

func (h *h2Upstream) dial(ctx context.Context, s *Server, up upstream) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, s.opt.Timeouts.Connect)
	defer cancel()
	tc, w, err := s.dialTLS(ctx, up, protoHTTP2)
	if err != nil {
		s.h2only.Delete(up.authority()) // ask again: it may have changed its mind
		return nil, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.retired {
		w.abort()
		return nil, errCut
	}
	h.wires[w] = struct{}{}
	release := w.release
	w.release = func() {
		release()
		h.mu.Lock()
		delete(h.wires, w)
		h.mu.Unlock()
	}
	return tc, nil
}

// retire has the connections closed: now, or when the last stream that is still
// granted has ended.
func (h *h2Upstream) retire() {
	h.change(0, true)
}

// change counts streams, and closes everything after the last of a retired upstream.
func (h *h2Upstream) change(by int, retire bool) {
	var doomed []*wire
	h.mu.Lock()
	h.streams += by
	h.retired = h.retired || retire
	if h.retired && h.streams == 0 {
		for w := range h.wires {
			doomed = append(doomed, w)
		}
	}
	h.mu.Unlock()
	for _, w := range doomed {
		w.abort()
	}
	if len(doomed) > 0 {
		h.transport.CloseIdleConnections()
	}
}

// stream is an exchange's HTTP/2 stream.
type stream struct {
	cancel context.CancelFunc
}

func (s *stream) abort() { s.cancel() }

// sendH2 sends the request as an HTTP/2 stream and waits for the answer's head.
func (x *exchange) sendH2() (*answer, error) {
	h, err := x.c.flow.snap.pool.http2(x.up)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	h.change(1, false)
	stop := sync.OnceFunc(func() {
		cancel()
		x.c.detach()
		h.change(-1, false)
	})
	if err := x.c.attach(&stream{cancel}, netip.Addr{}); err != nil {
		stop()
		return nil, err
	}
	i := &interim{c: x.c}
	resp, err := h.transport.RoundTrip(x.h2Request(httptrace.WithClientTrace(ctx, x.h2Trace(i)), i))
	i.end()
	if err != nil {
		stop()
		return nil, err
	}
	return &answer{resp: resp, c: x.c, stop: func() {
		stop()
		_ = resp.Body.Close()
	}}, nil
}

// h2Trace notes the address, and passes interim answers on.
func (x *exchange) h2Trace(i *interim) *httptrace.ClientTrace {
	return &httptrace.ClientTrace{
		GotConn: func(g httptrace.GotConnInfo) {
			addr := addrPort(g.Conn.RemoteAddr())
			x.c.mu.Lock()
			x.c.flow.addr = addr.Addr()
			x.c.mu.Unlock()
			x.c.flow.event.Upstream = addr.String()
		},
		Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
			x.passOn(i, code, http.Header(h))
			return nil
		},
	}
}

// h2Request is the request for net/http's transport. URL.Opaque keeps the target's
// bytes as they came.
func (x *exchange) h2Request(ctx context.Context, i *interim) *http.Request {
	h := x.req.Header
	delete(h, "Expect") // its 100 is sent when the body is first asked for
	delete(h, "Connection")
	if h["User-Agent"] == nil {
		h["User-Agent"] = []string{""} // none, rather than the library's
	}
	path, query, question := strings.Cut(x.target, "?")
	req := &http.Request{
		Method: x.req.Method, Host: x.host, Header: h, ContentLength: x.length,
		URL: &url.URL{Scheme: "https", Host: x.up.hostPort(), Opaque: path, RawQuery: query, ForceQuery: question},
	}
	x.h2Body(req, i)
	return req.WithContext(ctx)
}

// h2Body gives req the gathered body, and the rest behind it if there is more.
func (x *exchange) h2Body(req *http.Request, i *interim) {
	// The transport may read on after the answer, when out is somebody else's.
	pre := bytes.Clone(x.out[x.head:])
	if x.length < 0 {
		pre = unchunk(pre)
		req.Trailer = x.req.Trailer
	}
	if x.rest {
		x.load = &streamBody{x: x, i: i, pre: pre}
		req.Body = x.load.(*streamBody)
		return
	}
	if len(pre) == 0 {
		req.ContentLength = 0
		return
	}
	req.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(pre)), nil }
	req.Body, _ = req.GetBody()
}

// unchunk takes our own chunk frames off again.
func unchunk(framed []byte) []byte {
	raw, _ := io.ReadAll(httputil.NewChunkedReader(bytes.NewReader(framed)))
	return raw
}

// streamBody is a body that goes on after what was gathered. The transport reads
// it on a goroutine of its own, which may outlive the answer.
type streamBody struct {
	x    *exchange
	i    *interim
	shut atomic.Bool

	mu      sync.Mutex // held while the agent's connection is read; guards the fields below
	pre     []byte
	refused *refusal
	all     bool
}

// Read implements io.Reader.
func (b *streamBody) Read(p []byte) (n int, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.shut.Load() {
		return 0, http.ErrBodyReadAfterClose
	}
	if len(b.pre) > 0 {
		n = copy(p, b.pre)
		b.pre = b.pre[n:]
		return n, nil
	}
	if b.x.expect {
		b.i.goOn()
	}
	n, err = b.x.readBody(p)
	switch {
	case err == io.EOF:
		b.x.trailer()
		b.all = true
	case err != nil:
		b.refused = b.x.bodyRefusal(err)
	}
	return n, err
}

// Close implements io.Closer.
func (b *streamBody) Close() error {
	b.shut.Store(true)
	return nil
}

// stop ends the reading of the agent's connection.
func (b *streamBody) stop() (all bool, refused *refusal) {
	b.shut.Store(true)
	if !b.mu.TryLock() {
		_ = b.x.c.nc.SetReadDeadline(time.Unix(1, 0))
		b.mu.Lock()
		_ = b.x.c.nc.SetReadDeadline(time.Time{})
	}
	defer b.mu.Unlock()
	return b.all, b.refused
}
