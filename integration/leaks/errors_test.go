package leaks

import (
	"fmt"
	"strings"
	"testing"
)

// faults is group E: answers that are none, with the credential where an error message would quote it.
func faults() map[string]answer {
	all := map[string]answer{}
	for name, text := range map[string]string{
		"status line": secret + "\r\n\r\n", "status code": "HTTP/1.1 " + secret + "\r\n\r\n", "version": secret + "/1.1 200 OK\r\n\r\n",
		"field line without a colon": "HTTP/1.1 200 OK\r\n" + secret + "\r\n\r\n", "name with blanks": "HTTP/1.1 200 OK\r\nx " + secret + " y: 1\r\n\r\n",
		"Content-Length": "HTTP/1.1 200 OK\r\nContent-Length: " + secret + "\r\n\r\n", "two Content-Lengths": "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: " + secret + "\r\n\r\n",
		"Transfer-Encoding": "HTTP/1.1 200 OK\r\nTransfer-Encoding: " + secret + "\r\n\r\n", "Content-Encoding": "HTTP/1.1 200 OK\r\nContent-Encoding: " + secret + "\r\nContent-Length: 0\r\n\r\n",
		"no HTTP at all": "\x00\xff" + secret, "end within the head": "HTTP/1.1 200 OK\r\nX-A: " + secret, "CR in a value": "HTTP/1.1 200 OK\r\nX-A: \r" + secret + "\r\n\r\n",
		"HTTP/2 frames": "\x00\x00\x30\x07\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00" + secret, "TLS alert text": "\x15\x03\x03\x00\x30" + secret,
		"1xx for ever": strings.Repeat("HTTP/1.1 103 "+secret+"\r\nLink: "+secret+"\r\n\r\n", 100), "head without an end": "HTTP/1.1 200 OK\r\n" + strings.Repeat("X-A: "+secret+strings.Repeat("a", 1000)+"\r\n", 2000),
	} {
		all[name] = answer{pieces: []string{text}, end: true}
	}
	return all
}

// broken are bodies that stop or spoil themselves after the head has gone out.
func broken() map[string]answer {
	const head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n"
	all := map[string]answer{}
	for name, text := range map[string]string{
		"size of a chunk": head + secret + "\r\nab\r\n0\r\n\r\n", "end of a chunk": head + "2\r\nab" + secret + "\r\n0\r\n\r\n", "trailer without a colon": head + "0\r\n" + secret + "\r\n\r\n",
		"end within a chunk": head + "ff\r\n" + secret, "end within the trailer": head + "0\r\nX-A: " + secret, "body that is too short": "HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\nok" + secret,
		"bytes after the end": ok("", "ok") + secret,
	} {
		all[name] = answer{pieces: []string{text}, end: true}
	}
	return all
}

// TestErrors: what an upstream does wrong is told in exitgate's words.
func TestErrors(t *testing.T) {
	t.Parallel()
	s := newScene(t, policy)
	for name, a := range faults() {
		id := s.api.will(a)
		got := s.ask("/c", id)
		seen := "502, nothing quoted"
		if status(got) != "502" || holds(got, secret) || !strings.Contains(got, `{"type":"error"`) {
			seen = fmt.Sprintf("status %s: %.300q", status(got), got)
		}
		judge(t, row{"E", name, "502, nothing quoted", seen, s.sent(id)})
	}
	for name, a := range broken() {
		id := s.api.will(a)
		got := s.ask("/c", id)
		seen := "nothing quoted"
		if holds(got, secret) || holds(read(got), secret) || !strings.Contains(got, "200 OK") {
			seen = fmt.Sprintf("%.300q", got)
		}
		judge(t, row{"E", "body: " + name, "nothing quoted", seen, s.sent(id)})
	}
	s.sweep(t, "E")
}

// sent is the control: the upstream had the credential and did send it.
func (s *scene) sent(id string) string {
	n := len(s.api.got(id))
	if n == 0 || !strings.Contains(s.api.got(id)[0], secret) {
		return "FAILED the upstream was not asked with the credential"
	}
	return fmt.Sprintf("the upstream got the credential, and sent it %d times", n)
}
