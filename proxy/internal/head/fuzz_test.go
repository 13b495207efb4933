package head

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// reading is everything a request was read to mean.
type reading struct {
	Method, URI, Host string
	Proto             string
	Major, Minor      int
	Header, Trailer   http.Header
	Length            int64
	Encoding          []string
	Close             bool
	Body              string
	BodyErr           bool
	Rest              string // what follows on the connection, if the body is whole
}

func take(req *http.Request, br *bufio.Reader) reading {
	body, err := io.ReadAll(req.Body)
	r := reading{
		Method: req.Method, URI: req.RequestURI, Host: req.Host, Proto: req.Proto, Major: req.ProtoMajor, Minor: req.ProtoMinor, Header: req.Header, Trailer: req.Trailer,
		Length: req.ContentLength, Encoding: req.TransferEncoding, Close: req.Close, Body: string(body), BodyErr: err != nil,
	}
	if err == nil {
		rest, _ := io.ReadAll(br)
		r.Rest = string(rest)
	}
	return r
}

// FuzzRead holds Read against net/http: what Read accepts, http.ReadRequest and
// http.Server accept too, and they read the same out of it; a body that we read to
// its end is the same body, ending at the same byte.
func FuzzRead(f *testing.F) {
	f.Add([]byte(claudeHead + "\r\n"))
	for _, tt := range accepted {
		f.Add([]byte(crlf(tt.in)))
	}
	for _, tt := range refused {
		if tt.raw {
			f.Add([]byte(tt.in))
		} else {
			f.Add([]byte(crlf(tt.in)))
		}
	}
	f.Add([]byte(crlf("POST / HTTP/1.1\nHost: a:1\nContent-Length: 5\nExpect: 100-continue\n\nhelloGET / HTTP/1.1\n\n")))
	f.Add([]byte(crlf("POST / HTTP/1.1\nHost: a\nTransfer-Encoding: chunked\nTrailer: x-sum\n\n5\nhello\n0\nX-Sum: 1\n\nrest")))
	f.Fuzz(func(t *testing.T, in []byte) {
		lim := Limits{Line: 1 << 10, Header: 4 << 10}
		br := bufio.NewReaderSize(bytes.NewReader(in), 8<<10)
		req, err := Read(br, lim)
		readInPieces(t, in, lim, err == nil)
		if err != nil {
			checkRefusal(t, err)
			return
		}
		ours := take(req, br)

		br = bufio.NewReaderSize(bytes.NewReader(in), 8<<10)
		req, err = http.ReadRequest(br)
		if err != nil {
			t.Fatalf("http.ReadRequest refuses it: %v", err)
		}
		theirs := take(req, br)
		compare(t, ours, theirs)
		compareText(t, in, ours)
		if status := serve(t, in); status != http.StatusOK {
			t.Fatalf("http.Server answers %d", status)
		}
	})
}

func compare(t *testing.T, ours, theirs reading) {
	t.Helper()
	if ours.Header["Cache-Control"] == nil && len(theirs.Header["Pragma"]) > 0 {
		delete(theirs.Header, "Cache-Control") // which they made up
	}
	if ours.BodyErr { // stricter, or cut off: at least nothing else was read so far
		if !strings.HasPrefix(theirs.Body, ours.Body) {
			t.Errorf("our body %q is no prefix of theirs, %q", ours.Body, theirs.Body)
		}
		ours.Body, ours.Rest, ours.Trailer, ours.BodyErr = theirs.Body, theirs.Rest, theirs.Trailer, theirs.BodyErr
	}
	if diff := cmp.Diff(theirs, ours); diff != "" {
		t.Errorf("read otherwise than by net/http (-theirs +ours):\n%s", diff)
	}
}

// compareText holds what was read against the text of the request, taken apart in
// the one way its grammar leaves: lines at CRLF, fields at their first colon.
func compareText(t *testing.T, in []byte, ours reading) {
	t.Helper()
	head, _, _ := strings.Cut(string(in), "\r\n\r\n")
	lines := strings.Split(head, "\r\n")
	if want := strings.Fields(lines[0]); want[0] != ours.Method || want[1] != ours.URI {
		t.Errorf("request line %q read as %s, %s", lines[0], ours.Method, ours.URI)
	}
	fields := make(http.Header)
	for _, line := range lines[1:] {
		name, value, _ := strings.Cut(line, ":")
		fields.Add(name, strings.Trim(value, " \t"))
	}
	if fields["Transfer-Encoding"] != nil && fields["Content-Length"] != nil {
		t.Error("two framings")
	}
	if u, err := url.Parse(ours.URI); ours.Method != "CONNECT" && (err != nil || u.Host == "") && fields.Get("Host") != ours.Host {
		t.Errorf("host %q read as %q", fields["Host"], ours.Host)
	}
	for _, special := range []string{"Host", "Transfer-Encoding", "Trailer"} {
		delete(fields, special) // which http.ReadRequest takes out
	}
	if diff := cmp.Diff(fields, ours.Header); diff != "" {
		t.Errorf("fields read otherwise than they are written (-text +ours):\n%s", diff)
	}
}

// readInPieces checks that neither the size of the buffer nor that of the pieces
// that arrive changes the verdict.
func readInPieces(t *testing.T, in []byte, lim Limits, want bool) {
	t.Helper()
	for _, size := range []int{16, 100, 8 << 10} {
		r := iotest.HalfReader(bytes.NewReader(in))
		if size == 100 {
			r = iotest.OneByteReader(bytes.NewReader(in))
		}
		if _, err := Read(bufio.NewReaderSize(r, size), lim); (err == nil) != want {
			t.Errorf("in pieces, with a buffer of %d: %v", size, err)
		}
	}
}

func checkRefusal(t *testing.T, err error) {
	t.Helper()
	var refused *Error
	switch {
	case errors.As(err, &refused):
		if refused.Status < 400 || refused.Status > 599 || refused.Reason == "" {
			t.Errorf("refusal without status or reason: %+v", refused)
		}
		if refused.Reason == "request head does not parse" {
			t.Error("the grammar let through what net/http refuses")
		}
	case err != io.EOF && err != io.ErrUnexpectedEOF:
		t.Errorf("unexpected error: %v", err)
	}
}

// serve runs in through an http.Server and returns the status of its first answer,
// 200 for everything that reaches a handler.
func serve(t *testing.T, in []byte) int {
	t.Helper()
	done := make(chan struct{})
	conn := &oneConn{in: bytes.NewReader(in)}
	srv := &http.Server{
		Handler:                      http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}),
		DisableGeneralOptionsHandler: true,
		ErrorLog:                     log.New(io.Discard, "", 0),
		ConnState: func(_ net.Conn, s http.ConnState) {
			if s == http.StateClosed {
				close(done)
			}
		},
	}
	srv.Serve(&oneListener{conn: conn}) // returns after the only connection
	<-done
	resp, err := http.ReadResponse(bufio.NewReader(&conn.out), nil)
	if err != nil {
		t.Fatalf("http.Server does not answer: %v", err)
	}
	return resp.StatusCode
}

// oneListener is a listener that accepts one connection.
type oneListener struct{ conn net.Conn }

func (l *oneListener) Accept() (net.Conn, error) {
	if c := l.conn; c != nil {
		l.conn = nil
		return c, nil
	}
	return nil, net.ErrClosed
}

func (*oneListener) Close() error   { return nil }
func (*oneListener) Addr() net.Addr { return &net.TCPAddr{} }

// oneConn is a connection whose peer has sent in and closed its side.
type oneConn struct {
	in  *bytes.Reader
	out bytes.Buffer
}

func (c *oneConn) Read(p []byte) (int, error)     { return c.in.Read(p) }
func (c *oneConn) Write(p []byte) (int, error)    { return c.out.Write(p) }
func (*oneConn) Close() error                     { return nil }
func (*oneConn) LocalAddr() net.Addr              { return &net.TCPAddr{} }
func (*oneConn) RemoteAddr() net.Addr             { return &net.TCPAddr{} }
func (*oneConn) SetDeadline(time.Time) error      { return nil }
func (*oneConn) SetReadDeadline(time.Time) error  { return nil }
func (*oneConn) SetWriteDeadline(time.Time) error { return nil }
