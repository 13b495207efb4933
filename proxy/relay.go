package proxy

import (
	"bytes"
	"io"
	"mime"
	"net/http"
	"slices"
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
	c.flow.answered = true
	if noBody || resp.ContentLength == 0 && !chunked {
		return x.flush() == nil
	}
	if x.cred != nil {
		c.flow.usage = newUsage(contentType(resp.Header["Content-Type"]))
	}
	if x.allHere(a, chunked) {
		return x.relayWhole(a, chunked) == nil
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
	if !noBody || resp.StatusCode == http.StatusNoContent {
		delete(h, "Content-Length")
	}
	x.dropNames(h)
	x.dropNames(resp.Trailer)
	x.free() // of what the request needed: a stream of events should not hold it
	x.take()
	b := appendStatus(x.out, resp.StatusCode)
	b = appendFields(b, h)
	switch {
	case chunked:
		b = append(b, "Transfer-Encoding: chunked\r\n"...)
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
	x.mask(x.out)
}

// secrets is what the answer may not hold now. An answer outlives its request's
// generation: a credential that came since is as little for the agent to see.
func (x *exchange) secrets() *scrub.Set { return x.c.srv.snap.Load().secrets }

// mask masks credentials in b, in place.
func (x *exchange) mask(b []byte) {
	if x.cred != nil {
		copy(b, x.secrets().Bytes(b))
	}
}

// dropNames drops the fields that end here: those for the next hop, those that are
// ours alone to say, and those whose names hold a credential. A name has lost its
// case on the way, so it is compared without; masked it could not be told from one
// that is meant.
func (x *exchange) dropNames(h http.Header) {
	removeNamed(h)
	for name := range h {
		if _, plain := plainNames[name]; plain {
			continue
		}
		if slices.Contains(hopByHop, name) || slices.Contains(ours, name) || x.cred != nil && x.secrets().ContainsFold(name) {
			delete(h, name)
		}
	}
}

// ours are the fields by which a refusal is known to be ours.
var ours = []string{"Exitgate-Decision", "Exitgate-Request-Id"}

// plainNames are common names of end-to-end fields in answers: neither secret nor
// for the next hop, without a search.
var plainNames = func() map[string]struct{} {
	m := map[string]struct{}{}
	for name := range strings.FieldsSeq(`Accept-Ranges Access-Control-Allow-Headers Access-Control-Allow-Origin Access-Control-Expose-Headers Age
		Alt-Svc Anthropic-Organization-Id Anthropic-Ratelimit-Input-Tokens-Limit Anthropic-Ratelimit-Input-Tokens-Remaining
		Anthropic-Ratelimit-Input-Tokens-Reset Anthropic-Ratelimit-Output-Tokens-Limit Anthropic-Ratelimit-Output-Tokens-Remaining
		Anthropic-Ratelimit-Output-Tokens-Reset Anthropic-Ratelimit-Requests-Limit Anthropic-Ratelimit-Requests-Remaining
		Anthropic-Ratelimit-Requests-Reset Anthropic-Ratelimit-Tokens-Limit Anthropic-Ratelimit-Tokens-Remaining Anthropic-Ratelimit-Tokens-Reset
		Cache-Control Cf-Cache-Status Cf-Ray Content-Disposition Content-Encoding Content-Language Content-Length Content-Location
		Content-Range Content-Security-Policy Content-Type Date Etag Expires Last-Modified Link Location Pragma Referrer-Policy Request-Id Retry-After
		Server Server-Timing Set-Cookie Strict-Transport-Security Vary Via Www-Authenticate X-Content-Type-Options
		X-Envoy-Upstream-Service-Time X-Frame-Options X-Request-Id X-Robots-Tag X-Should-Retry X-Xss-Protection`) {
		m[name] = struct{}{}
	}
	return m
}()

// scrubFields masks credentials in the values of fields that are sent apart from
// the head, and drops those whose names hold one.
func (x *exchange) scrubFields(h http.Header) {
	if x.cred != nil {
		x.secrets().Header(h)
	}
}

// allHere reports whether the whole body is buffered and fits behind the head.
func (x *exchange) allHere(a *answer, chunked bool) bool {
	b := a.buffered()
	if len(b)+chunkHead+chunkTail+len("0\r\n\r\n") > x.space() {
		return false
	}
	if chunked {
		return len(a.resp.Trailer) == 0 && wholeChunks(b)
	}
	return int64(len(b)) >= a.resp.ContentLength
}

// wholeChunks reports whether b is a body in chunks up to its very end, without
// extensions or trailer.
func wholeChunks(b []byte) bool {
	for {
		line, rest, ok := bytes.Cut(b, []byte("\r\n"))
		size, err := strconv.ParseUint(string(line), 16, 31)
		switch {
		case !ok || err != nil:
			return false
		case size == 0:
			return string(rest) == "\r\n"
		case uint64(len(rest)) < size+2 || string(rest[size:size+2]) != "\r\n":
			return false
		}
		b = rest[size+2:]
	}
}

// relayWhole sends the head in out and a body that is all buffered in one write.
// The upstream's connection is given back before: the agent may ask again at once.
func (x *exchange) relayWhole(a *answer, chunked bool) error {
	at := len(x.out)
	room := x.out[at:cap(x.out)]
	if chunked {
		room = room[chunkHead : len(room)-chunkTail]
	}
	n := 0
	for err := error(nil); err == nil; {
		var m int
		m, err = a.resp.Body.Read(room[n:])
		n += m
		if err != nil && err != io.EOF {
			return err
		}
	}
	x.mask(room[:n])
	x.got(room[:n], false)
	switch {
	case !chunked:
		x.out = x.out[:at+n]
	case n > 0:
		x.out = x.out[:at+frameChunk(x.out[at:cap(x.out)], n)]
	}
	if chunked {
		x.endChunks(a.resp)
	}
	if x.load == nil {
		a.finish(!x.rest)
	}
	return x.flush()
}

// bulkFrom is how much one read brings of a body that comes as fast as it can. What
// has begun to arrive behind it goes out with it, in one write: a TLS record at a
// time costs the agent's side a wake-up each. Not so where readers act on lines.
const bulkFrom = 8 << 10

// relayBody sends the head in out, and then the body as it comes: each read is one
// write, so an event waits for nothing.
func (x *exchange) relayBody(a *answer, chunked bool) error {
	if err := x.flush(); err != nil {
		return err
	}
	body := x.scrubbed(a.resp)
	events := lines[contentType(a.resp.Header["Content-Type"])]
	for {
		room := x.out[:cap(x.out)]
		if chunked {
			room = room[chunkHead : len(room)-chunkTail]
		}
		n, err := body.Read(room)
		for m := 0; err == nil && n >= bulkFrom && n+bulkFrom <= len(room) && !events && a.more(); n += m {
			m, err = body.Read(room[n:])
		}
		x.got(room[:n], n == len(room))
		switch {
		case !chunked:
			x.out = x.out[:n]
		case n > 0:
			x.out = x.out[:frameChunk(x.out[:cap(x.out)], n)]
		}
		if err == nil {
			if err := x.flush(); err != nil {
				return err
			}
			continue
		}
		if err != io.EOF {
			_ = x.flush() // what came before the break is the agent's
			return err
		}
		if chunked {
			x.endChunks(a.resp)
		}
		if x.load == nil {
			a.finish(!x.rest) // before the agent can ask again, for another to use
		}
		return x.flush()
	}
}

// got counts p, bytes of the answer. After a read that filled the small buffer flush
// moves on to the big one.
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
		delete(resp.Trailer, "Content-Length")
		x.dropNames(resp.Trailer)
		x.scrubFields(resp.Trailer)
		if tokens(resp.Trailer) {
			b = appendFields(b, resp.Trailer)
		}
	}
	x.out = append(b, "\r\n"...)
}

// scrubbed is the answer's body as the agent may see it.
func (x *exchange) scrubbed(resp *http.Response) io.Reader {
	if x.cred == nil {
		return resp.Body
	}
	mode := scrub.Body
	if lines[contentType(resp.Header["Content-Type"])] {
		mode = scrub.Events
	}
	body := scrub.NewReader(resp.Body, x.secrets(), mode)
	body.Follow(x.secrets)
	return body
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
