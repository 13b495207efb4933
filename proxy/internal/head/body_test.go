package head

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/google/go-cmp/cmp"
)

const chunkedHead = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n"

// readBody reads the request in raw and its whole body.
func readBody(t *testing.T, br *bufio.Reader) (*http.Request, []byte, error) {
	t.Helper()
	req, err := Read(br, Limits{})
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(req.Body)
	return req, body, err
}

func TestBody(t *testing.T) {
	tests := map[string]struct {
		in      string
		want    string
		trailer http.Header
	}{
		"length":         {in: "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello", want: "hello"},
		"none":           {in: "GET / HTTP/1.1\r\nHost: a\r\n\r\n"},
		"length zero":    {in: "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n"},
		"chunks":         {in: chunkedHead + "\r\n5\r\nhello\r\n1\r\n \r\n00000005\r\nworld\r\n0\r\n\r\n", want: "hello world"},
		"chunk of nine":  {in: chunkedHead + "\r\n9\r\n123456789\r\n0\r\n\r\n", want: "123456789"},
		"empty chunked":  {in: chunkedHead + "\r\n0\r\n\r\n"},
		"hex, both":      {in: chunkedHead + "\r\nA\r\n0123456789\r\na\r\n0123456789\r\n00\r\n\r\n", want: "01234567890123456789"},
		"CRLF in chunks": {in: chunkedHead + "\r\n6\r\n\r\n0\r\n\r\r\n0\r\n\r\n", want: "\r\n0\r\n\r"},
		"trailer": {in: chunkedHead + "Trailer: x-sum, X-More\r\n\r\n2\r\nab\r\n0\r\nx-sum:  1 \r\nX-SUM: 2\r\n\r\n", want: "ab",
			trailer: http.Header{"X-Sum": {"1", "2"}, "X-More": nil}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			for _, size := range []int{64, 4096} {
				for _, wrap := range []func(io.Reader) io.Reader{iotest.OneByteReader, iotest.DataErrReader} {
					src := strings.NewReader(tt.in + "GET /next HTTP/1.1\r\nHost: a\r\n\r\n")
					br := bufio.NewReaderSize(wrap(src), size)
					req, body, err := readBody(t, br)
					if err != nil || string(body) != tt.want {
						t.Errorf("body %q, %v; want %q", body, err, tt.want)
					}
					if diff := cmp.Diff(tt.trailer, req.Trailer); diff != "" {
						t.Error(diff)
					}
					if !Finish(req, 0) {
						t.Error("not finished after io.EOF")
					}
					if next, err := Read(br, Limits{}); err != nil || next.RequestURI != "/next" {
						t.Errorf("next request: %v, %v", next, err)
					}
				}
			}
		})
	}
}

func TestBodyRefuses(t *testing.T) {
	early := io.ErrUnexpectedEOF
	tests := map[string]struct {
		in     string // after the head
		reason string // of an *Error, or
		err    error
	}{
		"bare LF":                {in: "5\nhello\r\n0\r\n\r\n", reason: "CRLF"},
		"bare LF after chunk":    {in: "5\r\nhello\n0\r\n\r\n", reason: "CRLF"},
		"bare LF at the end":     {in: "5\r\nhello\r\n0\n\n", reason: "CRLF"},
		"extension":              {in: "5;a=b\r\nhello\r\n0\r\n\r\n", reason: "hex"},
		"extension, last":        {in: "5\r\nhello\r\n0;a\r\n\r\n", reason: "hex"},
		"blank":                  {in: "5 \r\nhello\r\n0\r\n\r\n", reason: "hex"},
		"blank before":           {in: " 5\r\nhello\r\n0\r\n\r\n", reason: "hex"},
		"prefix":                 {in: "0x5\r\nhello\r\n0\r\n\r\n", reason: "hex"},
		"sign":                   {in: "+5\r\nhello\r\n0\r\n\r\n", reason: "hex"},
		"empty size":             {in: "\r\nhello\r\n0\r\n\r\n", reason: "hex"},
		"huge size":              {in: "100000000\r\nhello", reason: "hex"},
		"huge zero":              {in: "000000000\r\n\r\n", reason: "hex"},
		"longer than its size":   {in: "4\r\nhello\r\n0\r\n\r\n", reason: "longer"},
		"shorter than its size":  {in: "6\r\nhello\r\n0\r\n\r\n", reason: "CRLF"},
		"endless line":           {in: strings.Repeat("0", 5000), reason: "long"},
		"unannounced trailer":    {in: "0\r\nX-Other: 1\r\n\r\n", reason: "announced"},
		"credential trailer":     {in: "0\r\nAuthorization: 1\r\n\r\n", reason: "announced"},
		"folded trailer":         {in: "0\r\nX-Sum: 1\r\n 2\r\n\r\n", reason: "folded"},
		"trailer with bare LF":   {in: "0\r\nX-Sum: 1\n\r\n", reason: "CRLF"},
		"trailer, blank, colon":  {in: "0\r\nX-Sum : 1\r\n\r\n", reason: "token"},
		"too many trailers":      {in: "0\r\n" + strings.Repeat("X-Sum: 1\r\n", 200) + "\r\n", reason: "large"},
		"trailers too large":     {in: "0\r\n" + strings.Repeat("X-Sum: "+strings.Repeat("a", 1000)+"\r\n", 100) + "\r\n", reason: "large"},
		"ends in size":           {in: "5", err: early},
		"ends in data":           {in: "5\r\nhel", err: early},
		"ends after data":        {in: "5\r\nhello\r\n", err: early},
		"ends before last CRLF":  {in: "5\r\nhello\r\n0\r\n", err: early},
		"ends in trailer":        {in: "0\r\nX-Sum: 1\r\n", err: early},
		"positive control: fine": {in: "5\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			src := strings.NewReader(chunkedHead + "Trailer: X-Sum\r\n\r\n" + tt.in)
			req, body, err := readBody(t, bufio.NewReader(src))
			var refused *Error
			switch {
			case tt.reason != "":
				if !errors.As(err, &refused) || !strings.Contains(refused.Reason, tt.reason) {
					t.Errorf("body %q, error %v; want %q", body, err, tt.reason)
				}
			case err != tt.err:
				t.Errorf("body %q, error %v; want %v", body, err, tt.err)
			}
			if Finish(req, 1<<20) != (err == nil) {
				t.Errorf("Finish is %v after error %v", err != nil, err)
			}
			if _, again := req.Body.Read(make([]byte, 1)); err != nil && again != err {
				t.Errorf("the error %v became %v", err, again)
			}
		})
	}
	req, body, err := readBody(t, bufio.NewReader(strings.NewReader("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nshort")))
	if err != early || string(body) != "short" || Finish(req, 9) {
		t.Errorf("short body: %q, %v", body, err)
	}
}

// What has arrived is returned at once, also where a chunk ends.
func TestBodyDoesNotWaitForMore(t *testing.T) {
	pr, pw := io.Pipe()
	defer pw.Close()
	step := make(chan string)
	go func() {
		for s := range step {
			io.WriteString(pw, s)
		}
	}()
	defer close(step)
	step <- chunkedHead + "\r\n"
	req, err := Read(bufio.NewReader(pr), Limits{})
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []string{"5\r\nhello", "\r\n5\r\nthere\r\n", "9\r\nand", " again", "\r\n3\r\nyou", "\r\n1\r\n!\r\n0\r\n"} {
		step <- s
		buf := make([]byte, 100)
		n, err := req.Body.Read(buf)
		if want := strings.Trim(s, "\r\n01359"); err != nil || string(buf[:n]) != want {
			t.Errorf("after %q: read %q, %v", s, buf[:n], err)
		}
	}
	step <- "\r\n"
	if n, err := req.Body.Read(make([]byte, 100)); n != 0 || err != io.EOF {
		t.Errorf("at the end: %d, %v", n, err)
	}
}

func TestFinish(t *testing.T) {
	length := "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n0123456789"
	chunks := chunkedHead + "\r\n5\r\n01234\r\n5\r\n56789\r\n0\r\n\r\n"
	for _, in := range []string{length, chunks} {
		for _, tt := range []struct {
			read, max int
			want      bool
		}{{0, 10, true}, {0, 9, false}, {0, 0, false}, {0, -1, false}, {4, 6, true}, {4, 5, false}, {10, 0, true}, {0, 1 << 20, true}} {
			t.Run(fmt.Sprint(len(in), tt), func(t *testing.T) {
				br := bufio.NewReader(strings.NewReader(in + "GET /next HTTP/1.1\r\nHost: a\r\n\r\n"))
				req, err := Read(br, Limits{})
				if err != nil {
					t.Fatal(err)
				}
				io.ReadFull(req.Body, make([]byte, tt.read))
				req.Body.Close()
				if _, err := req.Body.Read(make([]byte, 1)); err != http.ErrBodyReadAfterClose {
					t.Errorf("read after close: %v", err)
				}
				if got := Finish(req, int64(tt.max)); got != tt.want {
					t.Fatalf("got %v", got)
				}
				if next, err := Read(br, Limits{}); tt.want && (err != nil || next.RequestURI != "/next") {
					t.Errorf("next request: %v, %v", next, err)
				}
			})
		}
	}
}

// Of a body that is not this package's nobody knows the end.
func TestFinishOfOtherBodies(t *testing.T) {
	for want, body := range map[bool]io.ReadCloser{true: http.NoBody, false: io.NopCloser(strings.NewReader(""))} {
		if Finish(&http.Request{Body: body}, 1) != want {
			t.Errorf("%T: finished is %v", body, !want)
		}
	}
	if !Finish(&http.Request{}, 1) {
		t.Error("no body is not finished")
	}
}

// Transport reads a body in a goroutine of its own and may close it meanwhile.
func TestBodyCloseDuringRead(t *testing.T) {
	pr, pw := io.Pipe()
	go io.WriteString(pw, chunkedHead+"\r\n")
	req, err := Read(bufio.NewReader(pr), Limits{})
	if err != nil {
		t.Fatal(err)
	}
	read := make(chan error)
	go func() {
		_, err := req.Body.Read(make([]byte, 1))
		read <- err
	}()
	time.Sleep(time.Millisecond) // either order is fine; this one is the usual
	req.Body.Close()
	pw.CloseWithError(io.ErrClosedPipe)
	if err := <-read; err != io.ErrClosedPipe && err != http.ErrBodyReadAfterClose {
		t.Error(err)
	}
	if Finish(req, 1<<20) {
		t.Error("finished")
	}
}

func BenchmarkBody(b *testing.B) {
	var chunks bytes.Buffer
	for range 64 {
		fmt.Fprintf(&chunks, "%x\r\n%s\r\n", 4096, strings.Repeat("x", 4096))
	}
	chunks.WriteString("0\r\n\r\n")
	raw := chunkedHead + "\r\n" + chunks.String()
	bench := func(read func(*bufio.Reader) (*http.Request, error)) func(*testing.B) {
		return func(b *testing.B) {
			b.SetBytes(64 * 4096)
			buf := make([]byte, 32<<10)
			for b.Loop() {
				req, err := read(bufio.NewReaderSize(strings.NewReader(raw), 8<<10))
				if err != nil {
					b.Fatal(err)
				}
				for err == nil {
					_, err = req.Body.Read(buf)
				}
				if err != io.EOF {
					b.Fatal(err)
				}
			}
		}
	}
	b.Run("nethttp", bench(http.ReadRequest))
	b.Run("strict", bench(func(br *bufio.Reader) (*http.Request, error) { return Read(br, Limits{}) }))
}
