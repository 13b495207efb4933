// Package head reads HTTP/1.1 requests strictly. Read waits until a complete
// request head is buffered, refuses whatever lies outside a narrow grammar, and
// reads an *http.Request out of the very bytes that were looked at, as
// http.ReadRequest does:
//
//	br := bufio.NewReaderSize(conn, 8<<10)
//	req, err := head.Read(br, head.Limits{})
//	var refused *head.Error // answer refused.Status, refused.Reason, and close
//	...
//	if !head.Finish(req, 256<<10) { conn.Close() } // unread body: no next request
//
// Accepted is METHOD SP TARGET SP HTTP/1.1 with an upper-case method, a target in
// origin form, absolute form (http) or, for CONNECT, authority form, lines that end
// in CRLF, one valid Host that agrees with the target, and a body framed by one
// decimal Content-Length or by exactly "Transfer-Encoding: chunked". HTTP/1.0 is
// accepted for CONNECT alone, without Host if need be: Python before 3.12 (pip)
// opens its tunnels so. Values may hold obs-text (RFC 9110 5.5), which net/http
// passes on as it came; everything else is visible ASCII.
//
// The request body is a *Body: net/http's own accepts chunk extensions, blanks in
// the chunk line, and folded or LF-terminated trailers. A Cache-Control such as
// http.ReadRequest invents beside "Pragma: no-cache" there is not. What is rare goes
// through http.ReadRequest itself; what is common is built here, held against it by
// a fuzz test.
//
// What this does not do: it applies no policy (TRACE, upgrades, and odd spellings
// of addresses pass as far as they are in the grammar), sends no 100 Continue,
// sets no deadline and bounds no body. After any error but io.EOF the place in the
// stream is undefined; close the connection.
package head

import (
	"bufio"
	"bytes"
	"io"
	"net/http"
)

// Limits bounds a request head. A field that is zero takes its default.
type Limits struct {
	Line   int // bytes of the request line and of each field line without CRLF; default 16 KiB
	Header int // bytes of the whole head, the empty line included; default 64 KiB
	Fields int // number of field lines; default 128
}

// orDefault fills in what the caller left zero.
func (l Limits) orDefault() Limits {
	if l.Line <= 0 {
		l.Line = 16 << 10
	}
	if l.Header <= 0 {
		l.Header = 64 << 10
	}
	if l.Fields <= 0 {
		l.Fields = 128
	}
	return l
}

// Error says why a request was refused. Reason is one of a fixed set of lower-case
// phrases and holds no byte of the request, so that it can be sent and logged.
type Error struct {
	Status int // the status to answer with: 400, 414, 417, 431, 501 or 505
	Reason string
}

func (e *Error) Error() string { return e.Reason }

// bad is a refusal with status 400.
func bad(reason string) *Error { return &Error{http.StatusBadRequest, reason} }

// Read returns the next request of br. It returns io.EOF when the peer closed
// between requests, io.ErrUnexpectedEOF when it closed inside a head, *Error when
// the head is refused (as soon as the first wrong line is complete), and the
// reader's own error otherwise. RequestURI is the target as it came, and URL is nil;
// Header has neither Host nor Transfer-Encoding, as with http.ReadRequest.
//
// A head that fits into br's buffer is looked at in place. A larger one, up to
// lim.Header, is copied once.
func Read(br *bufio.Reader, lim Limits) (*http.Request, error) {
	s := scanner{lim: lim.orDefault()}
	for {
		buf, _ := br.Peek(br.Buffered()) // never blocks, never fails
		done, refused := s.scan(buf)
		if refused != nil {
			return nil, refused
		}
		if done {
			return parse(br, br, &s)
		}
		if len(buf) == br.Size() {
			return readLarge(br, &s)
		}
		if err := more(br, len(buf)); err != nil {
			return nil, err
		}
	}
}

// more waits until br holds more than the have bytes it holds.
func more(br *bufio.Reader, have int) error {
	if _, err := br.Peek(have + 1); err != nil {
		if err == io.EOF && have > 0 {
			return io.ErrUnexpectedEOF
		}
		return err
	}
	return nil
}

// readLarge goes on where the head outgrew br's buffer: it collects it in memory
// of its own and leaves br at the first byte after it.
func readLarge(br *bufio.Reader, s *scanner) (*http.Request, error) {
	var head []byte
	for {
		buf, _ := br.Peek(br.Buffered())
		before := len(head)
		head = append(head, buf...)
		done, refused := s.scan(head)
		if refused != nil {
			return nil, refused
		}
		if done {
			br.Discard(s.pos - before)
			r := bytes.NewReader(head[:s.pos])
			return parse(bufio.NewReaderSize(r, s.pos), br, s)
		}
		br.Discard(len(buf))
		if _, err := br.Peek(1); err != nil {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
	}
}

// parse reads the head that s accepted from head, and puts a strict body, read from
// br, in the place of net/http's.
func parse(head, br *bufio.Reader, s *scanner) (*http.Request, error) {
	req, err := s.read(head)
	if err != nil {
		// The grammar is meant to be narrower than net/http's; should it not
		// be, net/http's word counts. Its text quotes the request: dropped.
		return nil, bad("request head does not parse")
	}
	if s.chunked || s.length > 0 {
		req.Body = &Body{br: br, req: req, lim: s.lim, chunked: s.chunked, left: s.length}
	}
	return req, nil
}

// read takes the head from br, where it is buffered.
func (s *scanner) read(br *bufio.Reader) (*http.Request, error) {
	if s.request.authority == (span{}) && !s.has(fieldTrailer) {
		text, err := br.Peek(s.pos)
		if err != nil {
			return nil, err
		}
		req := s.build(string(text))
		br.Discard(s.pos)
		return req, nil
	}
	req, err := http.ReadRequest(br)
	if err != nil {
		return nil, err
	}
	if s.has(fieldPragma) && !s.has(fieldCacheControl) {
		delete(req.Header, "Cache-Control")
	}
	req.URL = nil
	return req, nil
}
