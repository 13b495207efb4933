package proxy

import (
	"bytes"
	"io"
	"mime"
	"net/http"
	"strconv"
	"strings"

	"exitgate/proxy/internal/scrub"
)

// relay passes the answer on and reports whether it came to its end.
func (x *exchange) relay(a *answer) (whole bool) {
	c, resp := x.c, a.resp
	c.flow.event.Status = resp.StatusCode
	if resp.StatusCode == http.StatusUnauthorized && x.cred != nil && c.srv.opt.Refresh != nil {
		c.srv.opt.Refresh(x.cred.name)
	}
	c.stage(stageStream)
	noBody := x.req.Method == http.MethodHead || resp.StatusCode == http.StatusNoContent || resp.StatusCode == http.StatusNotModified
	chunked := !noBody && (resp.ContentLength < 0 || len(resp.Trailer) > 0)
	x.answerHead(resp, noBody, chunked)
	x.noMorePromises()
	c.flow.answered = true
	if noBody || resp.ContentLength == 0 && !chunked {
		return x.flush() == nil
	}
	return x.relayBody(a, chunked) == nil
}

// unfit refuses an answer that cannot be scrubbed: one that is encoded although
// identity was asked for.
func (x *exchange) unfit(resp *http.Response) *refusal {
	if x.cred == nil {
		return nil
	}
	for _, line := range resp.Header["Content-Encoding"] {
		for word := range strings.SplitSeq(line, ",") {
			if w := strings.TrimSpace(word); w != "" && !strings.EqualFold(w, "identity") {
				return &refusal{
					status: http.StatusBadGateway, failed: true, rule: x.up.rule, close: true,
					reason: "upstream " + x.up.authority() + " encoded its answer although identity was asked for; it could not be searched for credentials",
				}
			}
		}
	}
	return nil
}

// appendStatus appends a status line. The reason is ours: the upstream's carries
// nothing but what it may want to reflect.
func appendStatus(b []byte, code int) []byte {
	b = append(b, "HTTP/1.1 "...)
	b = strconv.AppendInt(b, int64(code), 10)
	b = append(b, ' ')
	b = append(b, http.StatusText(code)...)
	return append(b, "\r\n"...)
}

// answerHead puts the answer's head into out.
func (x *exchange) answerHead(resp *http.Response, noBody, chunked bool) {
	h := resp.Header
	removeHopByHop(h)
	if !noBody || resp.StatusCode == http.StatusNoContent {
		delete(h, "Content-Length")
	}
	x.scrubFields(h)
	x.free() // of what the request needed: a stream of events should not hold it
	x.take()
	b := appendStatus(x.out[:0], resp.StatusCode)
	b = appendFields(b, h)
	switch {
	case chunked:
		b = append(b, "Transfer-Encoding: chunked\r\n"...)
		x.scrubFields(resp.Trailer)
		b = appendTrailerNames(b, resp.Trailer)
	case !noBody:
		b = append(b, "Content-Length: "...)
		b = strconv.AppendInt(b, resp.ContentLength, 10)
		b = append(b, "\r\n"...)
	}
	if x.req.Close || x.c.srv.closed.Load() {
		x.c.flow.close = true
		b = append(b, "Connection: close\r\n"...)
	}
	x.out = append(b, "\r\n"...)
}

// scrubFields masks credentials in values, and drops fields whose names hold one.
func (x *exchange) scrubFields(h http.Header) {
	if x.cred != nil {
		x.c.flow.snap.secrets.Header(h)
	}
}

// relayBody sends the head in out and the body behind it, each read as it came:
// together where all of it is there already, else the head at once.
func (x *exchange) relayBody(a *answer, chunked bool) error {
	ready := x.allHere(a, chunked)
	if !ready {
		if err := x.flush(); err != nil {
			return err
		}
	}
	body := x.scrubbed(a.resp)
	for more := true; more; {
		at := len(x.out)
		if x.space() < chunkSpace {
			if err := x.flush(); err != nil {
				return err
			}
			at = 0
		}
		room := x.out[at:cap(x.out)]
		if chunked {
			room = room[chunkHead : len(room)-chunkTail]
		}
		n, err := body.Read(room)
		x.got(room[:n], n == len(room))
		switch {
		case chunked && n > 0:
			x.out = x.out[:at+frameChunk(x.out[at:cap(x.out)], n)]
		case !chunked:
			x.out = x.out[:at+n]
		}
		if err == io.EOF {
			more = false
			if chunked {
				x.endChunks(a.resp)
			}
			if x.load == nil {
				a.finish(!x.rest) // before the agent can ask again, for another to use
			}
		} else if err != nil {
			_ = x.flush() // what came before the break is the agent's
			return err
		}
		if ready && more {
			continue
		}
		if err := x.flush(); err != nil {
			return err
		}
	}
	return nil
}

// got counts n bytes of the answer and moves on to the big buffer for a body that
// fills the small one.
func (x *exchange) got(p []byte, full bool) {
	c := x.c
	c.flow.event.BytesIn += int64(len(p))
	c.agent.bytesIn.Add(uint64(len(p)))
	if c.flow.usage != nil {
		c.flow.usage.feed(p)
	}
	x.filled = full && !x.big
}

// flush writes out and empties it.
func (x *exchange) flush() error {
	if len(x.out) == 0 {
		return nil
	}
	_, err := x.c.nc.Write(x.out)
	x.left = err != nil
	x.out = x.out[:0]
	if x.filled {
		x.filled = false
		x.grow()
	}
	return err
}

// endChunks appends the last chunk and the trailer.
func (x *exchange) endChunks(resp *http.Response) {
	b := append(x.out, "0\r\n"...)
	if len(resp.Trailer) > 0 {
		for _, name := range append([]string{"Content-Length"}, hopByHop...) {
			delete(resp.Trailer, name)
		}
		x.scrubFields(resp.Trailer)
		b = appendFields(b, resp.Trailer)
	}
	x.out = append(b, "\r\n"...)
}

// allHere reports whether the whole body can be read without waiting, so that a
// small answer takes one write.
func (x *exchange) allHere(a *answer, chunked bool) bool {
	b := a.buffered()
	if chunked {
		return len(b) < bufferSize/2 && bytes.HasSuffix(b, []byte("0\r\n\r\n")) && len(a.resp.Trailer) == 0
	}
	return int64(len(b)) >= a.resp.ContentLength
}

// scrubbed is the answer's body as the agent may see it, and as its usage is read.
func (x *exchange) scrubbed(resp *http.Response) io.Reader {
	kind := contentType(resp.Header["Content-Type"])
	if x.cred == nil {
		return resp.Body
	}
	x.c.flow.usage = newUsage(kind)
	mode := scrub.Body
	if lines[kind] {
		mode = scrub.Events
	}
	return scrub.NewReader(resp.Body, x.c.flow.snap.secrets, mode)
}

// lines are the content types whose reader acts on each line as it comes.
var lines = map[string]bool{
	"text/event-stream": true, "application/x-ndjson": true, "application/jsonl": true, "application/ndjson": true,
	"application/stream+json": true, "application/json-seq": true,
}

// contentType is the media type without parameters, in lower case, "" if unclear.
func contentType(values []string) string {
	if len(values) != 1 {
		return ""
	}
	switch values[0] {
	case "application/json", "text/event-stream":
		return values[0]
	}
	if kind, _, err := mime.ParseMediaType(values[0]); err == nil || err == mime.ErrInvalidMediaParameter {
		return kind
	}
	kind, _, _ := strings.Cut(values[0], ";")
	return strings.ToLower(strings.TrimSpace(kind))
}
