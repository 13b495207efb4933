package proxy

import (
	"errors"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"
)

// answer is an upstream's final answer, its head read and its body to come.
type answer struct {
	resp *http.Response
	c    *conn
	link *link  // HTTP/1.1
	stop func() // HTTP/2: ends the stream
	over bool   // finish was called
}

// finish ends the exchange with the upstream, once. reuse says that both sides came
// to their end.
func (a *answer) finish(reuse bool) {
	if a.over {
		return
	}
	a.over = true
	if a.stop != nil {
		a.stop()
		return
	}
	a.c.detach()
	switch {
	case !reuse:
		a.link.abort()
	case a.resp.Close || a.link.br.Buffered() > 0:
		a.link.close()
	default:
		a.c.flow.snap.pool.put(a.link)
	}
}

// buffered is how much of the body can be read without waiting.
func (a *answer) buffered() []byte {
	if a.link == nil {
		return nil
	}
	b, _ := a.link.br.Peek(a.link.br.Buffered())
	return b
}

// more reports whether the next bytes of the body have begun to arrive.
func (a *answer) more() bool {
	return a.link != nil && (a.link.br.Buffered() > 0 || a.link.quiet.readable())
}

// send makes the request and reads the head of its answer.
func (x *exchange) send() (*answer, *refusal) {
	a, err := x.sendAny()
	if err == nil {
		return a, nil
	}
	_, refused := x.settle()
	switch {
	case x.c.wasCut() == cutStalled:
		return nil, failed(os.ErrDeadlineExceeded, x.up)
	case refused != nil:
		return nil, refused
	}
	return nil, failed(err, x.up)
}

// statusGone is what the audit says of a request whose agent left (nginx's code).
// It is never sent.
const statusGone = 499

func (x *exchange) sendAny() (*answer, error) {
	if x.up.tls {
		if only, _ := x.c.srv.h2only.Load(x.host); only == true {
			return x.sendH2()
		}
	}
	a, err := x.sendH1()
	if errors.Is(err, errNotHTTP1) {
		return x.sendH2()
	}
	return a, err
}

// sendH1 sends the request on a pooled connection, or on a new one. A pooled one
// may have been closed by the upstream at this very moment; what it surely has not
// acted upon is sent again, once, on a new one.
func (x *exchange) sendH1() (*answer, error) {
	for fresh := false; ; fresh = true {
		l, err := x.connect(fresh)
		if err != nil {
			return nil, err
		}
		before := l.wire.wrote
		x.c.flow.event.Upstream = l.addr
		resp, begun, err := x.try(l)
		if err == nil {
			return &answer{resp: resp, c: x.c, link: l}, nil
		}
		again := l.used && !begun && x.mayRepeat(l.wire.wrote == before)
		x.c.dropUpstream()
		if !again || x.c.wasCut() != cutNone {
			return nil, err
		}
	}
}

// mayRepeat reports whether the request may be sent a second time: nothing of it
// has left, or all of it is in memory and it is safe (RFC 9110 9.2.2), or the
// agent marked it as one that may be.
func (x *exchange) mayRepeat(unsent bool) bool {
	if x.load != nil {
		return false
	}
	if unsent {
		return true
	}
	if x.rest {
		return false
	}
	switch x.req.Method {
	case http.MethodGet, http.MethodHead, http.MethodOptions:
		return true
	}
	return x.req.Header["Idempotency-Key"] != nil || x.req.Header["X-Idempotency-Key"] != nil
}

// connect takes a connection from the pool or dials one, and ties it to the request.
func (x *exchange) connect(fresh bool) (*link, error) {
	p := x.c.flow.snap.pool
	if !fresh {
		if l := p.get(x.up); l != nil {
			return l, x.c.attach(l, l.wire.addr.Addr())
		}
	}
	ctx, cancel, err := x.c.dialling()
	if err != nil {
		return nil, err
	}
	defer cancel()
	l, err := p.dial(ctx, x.up)
	if err != nil {
		return nil, err
	}
	return l, x.c.attach(l, l.wire.addr.Addr())
}

// earlyAnswer is how long an answer is waited for after the upstream stopped
// taking the request. What it had to say is on its way by then.
const earlyAnswer = 100 * time.Millisecond

// try sends the request on l and reads the answer's head. begun tells whether any
// of it came.
func (x *exchange) try(l *link) (resp *http.Response, begun bool, err error) {
	_, failure := l.nc.Write(x.out)
	if failure == nil && !x.mayRepeat(false) {
		x.free() // an answer may take ten minutes
	}
	switch {
	case failure != nil:
		// It may have answered before it stopped reading: 413, say.
		_ = l.nc.SetReadDeadline(time.Now().Add(earlyAnswer))
		x.rest = true
	case x.rest:
		x.uploadTo(l)
	}
	i := &x.alone
	if x.expect {
		i = &interim{c: x.c} // a timer may speak, and too late
		defer time.AfterFunc(promiseAfter, i.goOn).Stop()
	}
	resp, begun, err = x.await(l, i)
	i.end()
	if failure != nil && err != nil {
		err = failure
	}
	return resp, begun, err
}

// maxInterim bounds the interim answers to one request.
const maxInterim = 16

var (
	errInterim = errors.New("proxy: too many interim answers, or one that switches protocols")
	errHead    = errors.New("proxy: answer head with an impossible status or name")
)

// await reads answers until a final one, and passes the interim ones on.
func (x *exchange) await(l *link, i *interim) (*http.Response, bool, error) {
	l.in.bounded, l.in.left = true, maxAnswerHead
	began := false
	for range maxInterim {
		resp, begun, err := l.readAnswer(x.req)
		began = began || begun
		if err == nil && (resp.StatusCode < 100 || !tokens(resp.Header)) {
			err = errHead
		}
		if err != nil {
			return nil, began, err
		}
		if resp.StatusCode >= 200 {
			l.in.bounded = false
			return resp, true, nil
		}
		if resp.StatusCode == http.StatusSwitchingProtocols {
			break
		}
		x.passOn(i, resp.StatusCode, resp.Header)
	}
	return nil, true, errInterim
}

// tokens reports whether the names of h are. http.ReadResponse lets blanks pass:
// "Content-Length : 5" would be a field of no meaning here, and of one behind us.
func tokens(h http.Header) bool {
	for name := range h {
		if strings.IndexByte(name, ' ') >= 0 {
			return false
		}
	}
	return true
}

// interim keeps what is said to the agent before the final answer in order, where
// more than one goroutine may say something. It belongs to one request: what is
// said too late is not said at all.
type interim struct {
	c *conn

	mu        sync.Mutex // guards the fields below, and the connection until shut
	continued bool       // 100 Continue was sent
	shut      bool       // the final answer begins
}

// promiseAfter is how long an upstream may think about a 100 Continue before the
// agent is told to go on (RFC 9110 10.1.1: neither side waits for ever).
const promiseAfter = time.Second

// goOn sends 100 Continue, once.
func (i *interim) goOn() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.goOnLocked()
}

func (i *interim) goOnLocked() {
	if !i.continued && !i.shut {
		i.continued = true
		_, _ = i.c.nc.Write([]byte("HTTP/1.1 100 Continue\r\n\r\n"))
	}
}

// end is called before anything final is written.
func (i *interim) end() {
	i.mu.Lock()
	i.shut = true
	i.mu.Unlock()
}

// passOn passes a 1xx on. 100 goes only to an agent that waits for it. Once i is
// shut x may belong to another request already, and is not touched.
func (x *exchange) passOn(i *interim, code int, h http.Header) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.shut {
		return
	}
	if code == http.StatusContinue {
		if x.expect {
			i.goOnLocked()
		}
		return
	}
	x.dropNames(h)
	delete(h, "Content-Length")
	x.scrubFields(h)
	_, _ = i.c.nc.Write(append(appendFields(appendStatus(nil, code), h), "\r\n"...))
}
