package head

import (
	"net/http"
	"net/textproto"
	"strings"

	"golang.org/x/net/http/httpguts"
)

// build makes of a head in origin form, without Trailer, what http.ReadRequest would.
// The scanner has been over every byte of it; to look a second time took a seventh of
// what the proxy does for a request.
func (s *scanner) build(text string) *http.Request {
	line, fields, _ := strings.Cut(text, "\r\n")
	method, line, _ := strings.Cut(line, " ")
	target, _, _ := strings.Cut(line, " ")
	req := &http.Request{
		Method: method, RequestURI: target, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: make(http.Header, s.fields), ContentLength: s.length, Body: http.NoBody,
	}
	if s.chunked {
		req.ContentLength, req.TransferEncoding = -1, []string{"chunked"}
	}
	values := make([]string, 0, s.fields) // one piece of memory for those of all names
	for {
		if line, fields, _ = strings.Cut(fields, "\r\n"); line == "" {
			break
		}
		name, value, _ := strings.Cut(line, ":")
		name, value = textproto.CanonicalMIMEHeaderKey(name), strings.Trim(value, " \t")
		switch {
		case name == "Host":
			req.Host = value
		case name == "Transfer-Encoding":
		case req.Header[name] != nil:
			req.Header[name] = append(req.Header[name], value)
		default:
			values = append(values, value)
			req.Header[name] = values[len(values)-1 : len(values) : len(values)]
		}
	}
	req.Close = s.has(fieldConnection) && httpguts.HeaderValuesContainsToken(req.Header["Connection"], "close")
	return req
}
