package proxy

import (
	"net/http"
	"strconv"
	"sync"
	"time"

	"exitgate/policy"
	"exitgate/proxy/internal/head"
)

// exchange is one allowed request on its way to its upstream and back.
type exchange struct {
	c      *conn
	req    *http.Request // its Header is what goes upstream
	up     upstream
	host   string      // Host field
	target string      // path and query as they are sent
	cred   *credential // nil: none was added, and the answer passes as it comes
	limits policy.Limits

	length int64 // of the body; -1: it comes and goes in chunks
	expect bool  // the agent waits for 100 Continue
	rest   bool  // more of the body follows what is in out
	head   int   // bytes of out that are head
	buffer
	filled bool // the last read used all the room it had

	load  loader  // nil: nothing of the body is sent behind the answer's back
	left  bool    // the agent took no more of the answer
	alone interim // where no other goroutine speaks to the agent
}

// loader sends a body while the answer is awaited.
type loader interface {
	// stop ends it, and returns when the agent's connection is read no more.
	stop() (all bool, refused *refusal)
}

// buffer is a byte slice from a pool: small at first, big for a body that fills it.
// A stream of small events never needs the big one.
type buffer struct {
	out  []byte
	from *[]byte
	big  bool
}

const (
	bufferSize = 8 << 10
	// bigBufferSize is how much of a request is gathered before anything is sent:
	// such a request needs no second goroutine, and may be sent again.
	bigBufferSize = 144 << 10
)

var (
	buffers    = sync.Pool{New: func() any { b := make([]byte, bufferSize); return &b }}
	bigBuffers = sync.Pool{New: func() any { b := make([]byte, bigBufferSize); return &b }}
)

func (b *buffer) take() {
	b.from = buffers.Get().(*[]byte)
	b.out = (*b.from)[:0]
}

// grow moves to the big buffer unless out is as large already.
func (b *buffer) grow() {
	if b.big || len(b.out) >= bigBufferSize {
		return
	}
	old := b.from
	b.from, b.big = bigBuffers.Get().(*[]byte), true
	b.out = append((*b.from)[:0], b.out...)
	if old != nil {
		buffers.Put(old)
	}
}

func (b *buffer) free() {
	switch {
	case b.from == nil:
	case b.big:
		bigBuffers.Put(b.from)
	default:
		buffers.Put(b.from)
	}
	b.from, b.out, b.big = nil, nil, false
}

// space is how much fits behind out.
func (b *buffer) space() int { return cap(b.out) - len(b.out) }

// run makes the exchange and reports whether the agent's connection can serve
// another request.
func (x *exchange) run() (again bool) {
	c := x.c
	x.take()
	defer x.free()
	_, x.rest = x.req.Body.(*head.Body)
	x.length = x.req.ContentLength
	x.expect = x.rest && len(x.req.Header["Expect"]) > 0
	if refused := x.gather(); refused != nil {
		return c.refuse(refused, x.req)
	}
	c.stage(stageWait)
	sent := time.Now()
	a, refused := x.send()
	if refused == nil {
		c.srv.stats.latency.observe(time.Since(sent))
		if refused = x.unfit(a.resp); refused != nil {
			a.finish(false)
		}
	}
	if refused != nil {
		_, _ = x.settle()
		return c.refuse(refused, x.req)
	}
	whole := x.relay(a)
	sentAll, _ := x.settle()
	a.finish(whole && sentAll)
	if !whole {
		x.cutShort()
		return false
	}
	return c.finishBody(x.req)
}

// cutShort ends the connection of an answer that did not come to its end. Its
// framing stays open, so that the agent can tell.
func (x *exchange) cutShort() {
	x.c.flow.event.Reason = "the upstream's answer stopped before its end"
	if x.left {
		x.c.flow.event.Reason = cutReason(cutGone)
	}
	x.c.close()
}

// appendHead puts the request's head into out. Framing is what the strict reader
// found, not what the fields say.
func (x *exchange) appendHead() {
	h := x.req.Header
	declared := h["Content-Length"] != nil
	delete(h, "Content-Length")
	b := append(x.out[:0], x.req.Method...)
	b = append(b, ' ')
	b = append(b, x.target...)
	b = append(b, " HTTP/1.1\r\nHost: "...)
	b = append(b, x.host...)
	b = append(b, "\r\n"...)
	b = appendFields(b, h)
	switch {
	case x.length < 0:
		b = append(b, "Transfer-Encoding: chunked\r\n"...)
		b = appendTrailerNames(b, x.req.Trailer)
	case x.length > 0 || declared:
		b = append(b, "Content-Length: "...)
		b = strconv.AppendInt(b, x.length, 10)
		b = append(b, "\r\n"...)
	}
	x.out = append(b, "\r\n"...)
	x.head = len(x.out)
}

func appendTrailerNames(b []byte, trailer http.Header) []byte {
	for name := range trailer {
		b = append(b, "Trailer: "...)
		b = append(b, name...)
		b = append(b, "\r\n"...)
	}
	return b
}

// gather puts the head and the body into memory, so that they leave together. A
// body that does not fit, that waits for 100 Continue, or whose sender pauses is
// sent on as it comes instead: the upstream may answer before its end.
func (x *exchange) gather() *refusal {
	x.appendHead()
	if refused := x.tooLarge(x.length); refused != nil {
		return refused
	}
	// A body with a length is counted as a whole, before any of it leaves.
	if refused := x.charge(int64(x.head) + max(0, x.length)); refused != nil {
		return refused
	}
	if !x.rest || x.expect || int64(x.head)+x.length > bigBufferSize {
		return nil
	}
	if x.length > int64(x.space()) {
		x.grow()
	}
	x.c.stage(stageBody)
	for x.rest && x.soon() {
		if x.space() < chunkSpace && x.length < 0 {
			x.grow()
		}
		if x.space() < chunkSpace && x.length < 0 {
			return nil
		}
		out, more, err := x.read(x.out)
		x.out, x.rest = out, more
		if err != nil {
			return x.bodyRefusal(err)
		}
	}
	return nil
}

// tooLarge refuses a body of n bytes, or one that has come to so many, if that is
// more than the agent's limit.
func (x *exchange) tooLarge(n int64) *refusal {
	if most := x.limits.BodyBytes; most == 0 || n <= most {
		return nil
	}
	return &refusal{event: "limit", status: http.StatusRequestEntityTooLarge, rule: x.up.rule, reason: "the request body is larger than this agent's body_bytes", close: true}
}

// charge counts n bytes that are about to leave against the agent's limit.
func (x *exchange) charge(n int64) *refusal {
	return x.c.agent.limit.bytes(x.c.srv.now(), x.limits, n)
}
