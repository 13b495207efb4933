package head

import (
	"bytes"
	"net/http"
	"strconv"
)

// scanner checks a head line by line, as the lines arrive. All offsets count from
// the first byte of the head, since the buffer may move between two calls.
type scanner struct {
	lim    Limits
	pos    int // start of the first line not yet checked
	looked int // no LF before this offset, from pos on
	fields int
	seen   field

	request requestLine
	host    span
	chunked bool
	length  int64 // Content-Length, 0 without
}

type span struct{ from, to int }

func (s span) of(buf []byte) []byte { return buf[s.from:s.to] }

// field is a bit for each field that means something to this package.
type field uint16

const (
	fieldHost field = 1 << iota
	fieldContentLength
	fieldTransferEncoding
	fieldContentType
	fieldExpect
	fieldConnection
	fieldTrailer
	fieldPragma
	fieldCacheControl

	// singletons are refused when they come twice: they say where the request
	// goes, where its body ends, or how it is read.
	singletons = fieldHost | fieldContentLength | fieldTransferEncoding | fieldContentType | fieldExpect | fieldTrailer
)

func (s *scanner) has(f field) bool { return s.seen&f != 0 }

// scan checks the lines that are complete in buf, which begins with the head's
// first byte. It reports whether the head is complete; s.pos is then its length.
func (s *scanner) scan(buf []byte) (done bool, err *Error) {
	if s.pos == 0 && len(buf) > 0 && (buf[0] < 'A' || buf[0] > 'Z') {
		// At once: a TLS client would wait for an answer to its ClientHello, which is a record of this type (RFC 8446 5.1).
		if buf[0] == 22 {
			return false, bad("request is TLS, and this listener speaks plain http; ask for http:// in place of https://")
		}
		return false, bad("request does not begin with an upper-case method")
	}
	for {
		n := bytes.IndexByte(buf[max(s.pos, s.looked):], '\n')
		if n < 0 {
			s.looked = len(buf)
			return false, s.tooLong(len(buf)-s.pos-1, len(buf)) // -1: a CR may be there
		}
		end := max(s.pos, s.looked) + n
		if end == s.pos || buf[end-1] != '\r' {
			return false, bad("line does not end in CRLF")
		}
		from := s.pos
		if err := s.tooLong(end-1-from, end+1); err != nil {
			return false, err
		}
		s.pos = end + 1
		if from > 0 && end-1 == from {
			return true, s.finish(buf)
		}
		if err := s.line(buf, span{from, end - 1}); err != nil {
			return false, err
		}
	}
}

// tooLong checks a line of n bytes that takes the head to total bytes.
func (s *scanner) tooLong(n, total int) *Error {
	switch {
	case n > s.lim.Line && s.pos == 0:
		return &Error{http.StatusRequestURITooLong, "request line too long"}
	case n > s.lim.Line:
		return &Error{http.StatusRequestHeaderFieldsTooLarge, "header field too long"}
	case total > s.lim.Header:
		return &Error{http.StatusRequestHeaderFieldsTooLarge, "request head too large"}
	}
	return nil
}

func (s *scanner) line(buf []byte, l span) *Error {
	if l.from == 0 {
		return s.request.parse(l.of(buf))
	}
	s.fields++
	if s.fields > s.lim.Fields {
		return &Error{http.StatusRequestHeaderFieldsTooLarge, "too many header fields"}
	}
	name, value, err := fieldLine(l.of(buf))
	if err != nil {
		return err
	}
	f := known(name)
	if f == 0 {
		return nil
	}
	if bytes.IndexByte(name, '_') >= 0 {
		return bad("underscore in the name of a standard field") // CGI takes it for a hyphen
	}
	if f&singletons != 0 && s.has(f) {
		return bad("header field that may come once came twice")
	}
	s.seen |= f
	if f == fieldHost {
		blanks := len(bytes.TrimLeft(buf[l.from+len(name)+1:l.to], " \t"))
		s.host = span{l.to - blanks, l.to - blanks + len(value)}
	}
	return s.value(f, value)
}

// value checks the value of a known field.
func (s *scanner) value(f field, value []byte) *Error {
	switch f {
	case fieldHost:
		if _, _, ok := splitAuthority(value); !ok {
			return bad("host is not a name or address with an optional port")
		}
	case fieldContentLength:
		var ok bool
		if s.length, ok = contentLength(value); !ok {
			return bad("content-length is not a plain decimal number")
		}
	case fieldTransferEncoding:
		if string(value) != "chunked" {
			return &Error{http.StatusNotImplemented, "transfer-encoding other than chunked"}
		}
		s.chunked = true
	case fieldExpect:
		if !foldEqual(value, "100-continue") {
			return &Error{http.StatusExpectationFailed, "expectation other than 100-continue"}
		}
	case fieldConnection:
		return eachToken(value, mayDrop)
	case fieldTrailer:
		return eachToken(value, mayTrail)
	}
	return nil
}

// finish checks what only the whole head shows.
func (s *scanner) finish(buf []byte) *Error {
	r := &s.request
	switch {
	case !s.has(fieldHost) && !r.old:
		return bad("no host")
	case s.has(fieldHost) && !r.agrees(buf, s.host.of(buf)):
		return bad("host and request target differ")
	case s.chunked && s.has(fieldContentLength):
		return bad("content-length beside transfer-encoding")
	case r.connect && (s.chunked || s.length > 0):
		return bad("connect with a body")
	case s.has(fieldTrailer) && !s.chunked:
		return bad("trailer without chunked")
	}
	return nil
}

// fieldLine splits a field line without its CRLF; value is trimmed of blanks.
func fieldLine(line []byte) (name, value []byte, err *Error) {
	if len(line) > 0 && (line[0] == ' ' || line[0] == '\t') {
		return nil, nil, bad("folded header field")
	}
	colon := bytes.IndexByte(line, ':')
	if colon < 0 {
		return nil, nil, bad("header field without a colon")
	}
	if colon == 0 || !all(line[:colon], isToken) {
		return nil, nil, bad("header field name is not a token right before its colon")
	}
	value = line[colon+1:]
	if !all(value, isValue) {
		return nil, nil, bad("control byte in a header field value")
	}
	return line[:colon], bytes.Trim(value, " \t"), nil
}

// contentLength reads at most 18 digits, which fit an int64, without leading zeros.
func contentLength(v []byte) (int64, bool) {
	if len(v) == 0 || len(v) > 18 || len(v) > 1 && v[0] == '0' || !all(v, isDigit) {
		return 0, false
	}
	n, err := strconv.ParseInt(string(v), 10, 64) // does not escape: no allocation
	return n, err == nil
}

// eachToken checks that list is tokens between commas and blanks, none empty, each
// of which ok allows.
func eachToken(list []byte, ok func(token []byte) *Error) *Error {
	for more := true; more; {
		var item []byte
		item, list, more = bytes.Cut(list, []byte(","))
		item = bytes.Trim(item, " \t")
		if len(item) == 0 || !all(item, isToken) {
			return bad("list of tokens with something else in it")
		}
		if err := ok(item); err != nil {
			return err
		}
	}
	return nil
}
