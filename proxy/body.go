package proxy

import (
	"errors"
	"io"
	"net/http"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"exitgate/proxy/internal/head"
)

// patience is how long gathering waits for an agent that pauses in its body
// before the upstream gets what there is.
const patience = 10 * time.Millisecond

// soon reports whether the body's next bytes are there, or come within patience.
// The CRLF behind a chunk is none of them.
func (x *exchange) soon() bool {
	c, old := x.c, 0
	if x.length < 0 {
		old = len("\r\n")
	}
	if c.br.Buffered() > old || c.raw == nil || c.probe().readable() {
		return true
	}
	_ = c.nc.SetReadDeadline(time.Now().Add(patience))
	err := c.raw.Read(func(fd uintptr) bool {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN | unix.POLLRDHUP}}
		n, err := unix.Poll(fds, 0)
		return err != nil || n > 0
	})
	_ = c.nc.SetReadDeadline(time.Time{})
	return err == nil
}

// probe asks about the agent's next bytes.
func (c *conn) probe() *probe {
	if c.ask == nil {
		c.ask = newProbe(c.raw)
	}
	return c.ask
}

// chunkHead is the room for a chunk's size and its CRLF: five digits reach a
// megabyte. chunkTail is that for the CRLF after it. chunkSpace is what makes a
// chunk worth its frame.
const (
	chunkHead  = 7
	chunkTail  = 2
	chunkSpace = 512
)

// readBody reads from the agent what is about to leave, and counts it, the trailer
// with the body's end. What has a length was counted against the limit as a whole,
// and has no trailer.
func (x *exchange) readBody(p []byte) (int, error) {
	n, err := x.req.Body.Read(p)
	leaves := n
	if err == io.EOF {
		leaves += fieldsSize(x.trailer())
	}
	x.c.flow.event.BytesOut += int64(leaves)
	x.c.agent.bytesOut.Add(uint64(leaves))
	if x.length < 0 && leaves > 0 {
		refused := x.tooLarge(x.c.flow.event.BytesOut)
		if refused == nil {
			refused = x.charge(int64(leaves))
		}
		if refused != nil {
			return 0, &limitError{refused}
		}
	}
	return n, err
}

// read reads once from the body and appends what came to b, framed, with what
// ends the body where it ended. more is false then.
func (x *exchange) read(b []byte) (out []byte, more bool, err error) {
	at := len(b)
	room := b[at:cap(b)]
	if x.length >= 0 {
		n, err := x.readBody(room)
		return b[:at+n], err != io.EOF, noEOF(err)
	}
	n, err := x.readBody(room[chunkHead : len(room)-chunkTail])
	if n > 0 {
		b = b[:at+frameChunk(room, n)]
	}
	if err != io.EOF {
		return b, true, err
	}
	b = append(b, "0\r\n"...)
	b = appendFields(b, x.trailer())
	return append(b, "\r\n"...), false, nil
}

func noEOF(err error) error {
	if err == io.EOF {
		return nil
	}
	return err
}

// trailer is the request's trailer without what may not be one: here nobody can be
// told any more that a field is refused.
func (x *exchange) trailer() http.Header {
	x.c.flow.snap.fields.strip(x.req.Trailer)
	return x.req.Trailer
}

// frameChunk makes a chunk of the n bytes that begin at p[chunkHead], moved to the
// front of p, and returns its length. The bytes are moved rather than the size
// padded with zeros: some parsers count digits.
func frameChunk(p []byte, n int) int {
	const hex = "0123456789abcdef"
	p[chunkHead-2], p[chunkHead-1] = '\r', '\n'
	from := chunkHead - 2
	for m := n; ; {
		from--
		p[from] = hex[m&15]
		if m >>= 4; m == 0 {
			break
		}
	}
	to := chunkHead + n
	p[to], p[to+1] = '\r', '\n'
	return copy(p, p[from:to+chunkTail])
}

// limitError carries a limit's refusal through a reader's error.
type limitError struct{ refusal *refusal }

func (e *limitError) Error() string { return e.refusal.reason }

// bodyRefusal is the answer to a body that could not be read.
func (x *exchange) bodyRefusal(err error) *refusal {
	var malformed *head.Error
	var limit *limitError
	r := &refusal{status: http.StatusBadRequest, rule: x.up.rule, reason: "the request body ended too early", close: true}
	switch {
	case errors.As(err, &limit):
		return limit.refusal
	case errors.As(err, &malformed):
		r.status, r.reason = malformed.Status, malformed.Reason
	case errors.Is(err, os.ErrDeadlineExceeded):
		r.status, r.reason = http.StatusRequestTimeout, "the request body stopped arriving"
	}
	return r
}

// upload sends the rest of a body while the answer is awaited.
type upload struct {
	x       *exchange
	done    chan struct{} // closed at the end; the fields below are set then
	refused *refusal      // the body was at fault, and the upstream was cut off
	all     bool          // the whole body was sent
}

// uploadTo starts sending the rest of the body.
func (x *exchange) uploadTo(l *link) {
	up := &upload{x: x, done: make(chan struct{})}
	x.load = up
	x.c.uploading.Store(true)
	go func() {
		defer close(up.done)
		defer func() {
			if v := recover(); v != nil {
				x.c.srv.panicked()
				l.abort()
			}
		}()
		if err := x.copyBody(l.nc.Write, &up.all); err != nil {
			up.refused = x.bodyRefusal(err)
			l.abort()
		}
	}()
}

// stop ends the upload, finished or not.
func (up *upload) stop() (all bool, refused *refusal) {
	c := up.x.c
	select {
	case <-up.done:
	default:
		// An early answer. Nobody wants the rest: the upstream's side is cut, and
		// the read from the agent is woken.
		c.dropUpstream()
		_ = c.nc.SetReadDeadline(time.Unix(1, 0))
		<-up.done
		_ = c.nc.SetReadDeadline(time.Time{})
	}
	c.uploading.Store(false)
	return up.all, up.refused
}

// copyBody sends the body by write until it ends. An error is the body's; one of
// the upstream's shows in its answer, or in there being none.
func (x *exchange) copyBody(write func([]byte) (int, error), all *bool) error {
	var b buffer
	b.take()
	defer b.free()
	for more := true; more; {
		var err error
		b.out, more, err = x.read(b.out[:0])
		if err != nil {
			return err
		}
		if _, err := write(b.out); err != nil {
			return nil
		}
		if len(b.out) > bufferSize/2 {
			b.out = b.out[:0]
			b.grow()
		}
	}
	*all = true
	return nil
}

// settle ends the upload and reports whether the upstream got the whole request,
// and what was wrong with the body if it was that.
func (x *exchange) settle() (all bool, refused *refusal) {
	if x.load == nil {
		return !x.rest, nil
	}
	return x.load.stop()
}

// lingerSmall is how much of a body that nobody wants is read to keep the agent's
// connection.
const lingerSmall = 256 << 10

// finishBody reads what is left of the request and reports whether the connection
// can serve another.
func (c *conn) finishBody(req *http.Request) bool {
	if req.Close || c.flow.close {
		c.lingerIf(!head.Finish(req, 0))
		return false
	}
	if len(req.Header["Expect"]) > 0 && !head.Finish(req, 0) {
		c.linger() // the body may come or not: the next bytes could be either
		return false
	}
	c.stage(stageBody)
	if !head.Finish(req, lingerSmall) {
		c.linger()
		return false
	}
	return true
}

func (c *conn) lingerIf(unread bool) {
	if unread {
		c.linger()
	}
}
