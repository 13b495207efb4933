package proxy

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// says is a raw upstream that answers each request with the same bytes and ends the
// connection where close says so.
func (r *rig) says(answer string, end bool) int {
	return r.rawOrigin(func(c net.Conn, br *bufio.Reader) {
		for {
			req, err := http.ReadRequest(br)
			if err != nil {
				return
			}
			_, _ = io.Copy(io.Discard, req.Body)
			if _, err := io.WriteString(c, answer); err != nil || end {
				return
			}
		}
	})
}

// TestAnswerPasses compares what the agent reads with what the upstream sent.
func TestAnswerPasses(t *testing.T) {
	for _, tc := range []struct {
		name, method, answer string
		end                  bool
		want                 string // the head's lines, sorted by the test, and the body
	}{
		{"length", "GET", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nDate: x\r\n\r\nhello", false, "HTTP/1.1 200 OK|Content-Length: 5|Date: x||hello"},
		{"empty", "GET", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", false, "HTTP/1.1 200 OK|Content-Length: 0||"},
		{"chunks", "GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", false, "HTTP/1.1 200 OK|Transfer-Encoding: chunked||5\r\nhello\r\n0\r\n\r\n"},
		{"until close", "GET", "HTTP/1.1 200 OK\r\n\r\nhello", true, "HTTP/1.1 200 OK|Transfer-Encoding: chunked||5\r\nhello\r\n0\r\n\r\n"},
		{"until close, http/1.0", "GET", "HTTP/1.0 200 Fine\r\nX-A: b\r\n\r\nhello", true, "HTTP/1.1 200 OK|Transfer-Encoding: chunked|X-A: b||5\r\nhello\r\n0\r\n\r\n"},
		{"head", "HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n", false, "HTTP/1.1 200 OK|Content-Length: 5000||"},
		{"head in chunks", "HEAD", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", false, "HTTP/1.1 200 OK||"},
		{"no content", "GET", "HTTP/1.1 204 No Content\r\nX-A: b\r\n\r\n", false, "HTTP/1.1 204 No Content|X-A: b||"},
		{"not modified", "GET", "HTTP/1.1 304 Not Modified\r\nContent-Length: 99\r\nEtag: \"x\"\r\n\r\n", false, "HTTP/1.1 304 Not Modified|Content-Length: 99|Etag: \"x\"||"},
		{"redirect is not followed", "GET", "HTTP/1.1 307 Temporary Redirect\r\nLocation: https://evil.example/x?y\r\nContent-Length: 0\r\n\r\n", false, "HTTP/1.1 307 Temporary Redirect|Content-Length: 0|Location: https://evil.example/x?y||"},
		{"error of the upstream", "GET", "HTTP/1.1 529 Overloaded\r\nRetry-After: 3\r\nx-should-retry: true\r\nContent-Length: 2\r\n\r\n{}", false, "HTTP/1.1 529 |Content-Length: 2|Retry-After: 3|X-Should-Retry: true||{}"},
		{"duplicates in order", "GET", "HTTP/1.1 200 OK\r\nSet-Cookie: b\r\nSet-Cookie: a\r\nContent-Length: 0\r\n\r\n", false, "HTTP/1.1 200 OK|Content-Length: 0|Set-Cookie: b|Set-Cookie: a||"},
		{"for the next hop", "GET", "HTTP/1.1 200 OK\r\nConnection: X-Hop, keep-alive\r\nX-Hop: 1\r\nKeep-Alive: 5\r\nProxy-Authenticate: Basic\r\nUpgrade: h2c\r\nX-End: 1\r\nContent-Length: 0\r\n\r\n", false, "HTTP/1.1 200 OK|Content-Length: 0|X-End: 1||"},
		{"trailer", "GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n5\r\nhello\r\n0\r\nX-Sum: 42\r\n\r\n", false, "HTTP/1.1 200 OK|Trailer: X-Sum|Transfer-Encoding: chunked||5\r\nhello\r\n0\r\nX-Sum: 42\r\n\r\n"},
		{"trailer unannounced", "GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX-Sum: 42\r\nConnection: x\r\n\r\n", false, "HTTP/1.1 200 OK|Transfer-Encoding: chunked||5\r\nhello\r\n0\r\nX-Sum: 42\r\n\r\n"},
		{"early hints", "GET", "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", false, "HTTP/1.1 103 Early Hints|Link: </a>||HTTP/1.1 102 Processing||HTTP/1.1 200 OK|Content-Length: 2||ok"},
		{"unasked 100", "GET", "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", false, "HTTP/1.1 200 OK|Content-Length: 2||ok"},
		{"pragma alone", "GET", "HTTP/1.1 200 OK\r\nPragma: no-cache\r\nContent-Length: 0\r\n\r\n", false, "HTTP/1.1 200 OK|Content-Length: 0|Pragma: no-cache||"},
		{"pragma and more", "GET", "HTTP/1.1 200 OK\r\nPragma: no-cache\r\ncache-control: no-cache\r\nContent-Length: 0\r\n\r\n", false, "HTTP/1.1 200 OK|Cache-Control: no-cache|Content-Length: 0|Pragma: no-cache||"},
		{"ours are not to be forged", "GET", "HTTP/1.1 403 Forbidden\r\nExitgate-Decision: deny; rule=x\r\nExitgate-Request-Id: x\r\nContent-Length: 2\r\n\r\nok", false, "HTTP/1.1 403 Forbidden|Content-Length: 2||ok"},
		{"nor in what comes before", "GET", "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\nExitgate-Decision: deny; rule=x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", false, "HTTP/1.1 103 Early Hints|Link: </a>||HTTP/1.1 200 OK|Content-Length: 2||ok"},
		{"identity", "GET", "HTTP/1.1 200 OK\r\nContent-Encoding: identity\r\nContent-Length: 2\r\n\r\nok", false, "HTTP/1.1 200 OK|Content-Encoding: identity|Content-Length: 2||ok"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := newRig(t)
			r.configure(apiPolicy(r.says(tc.answer, tc.end)), apiSecrets())
			c := r.dial()
			for range 2 { // the second proves the framing of the first, on both sides
				c.send("%s /v1/models HTTP/1.1\r\nHost: %s\r\n\r\n", tc.method, r.addr)
				got := c.wire(tc.method)
				if diff := cmp.Diff(tc.want, got); diff != "" {
					t.Fatalf("-want +got:\n%s", diff)
				}
			}
		})
	}
}

// wire reads one answer as bytes: interim heads, the head with its lines sorted, and
// the body in its framing.
func (c *raw) wire(method string) string {
	c.t.Helper()
	var out strings.Builder
	for {
		var lines []string
		for {
			line, err := c.br.ReadString('\n')
			if err != nil {
				c.t.Fatalf("head: %v after %q", err, lines)
			}
			line = strings.TrimSuffix(line, "\r\n")
			if line == "" {
				break
			}
			lines = append(lines, line)
		}
		sortStable(lines[1:])
		out.WriteString(strings.Join(lines, "|") + "||")
		if !strings.HasPrefix(lines[0], "HTTP/1.1 1") {
			c.body(&out, method, lines)
			return out.String()
		}
	}
}

func (c *raw) body(out *strings.Builder, method string, lines []string) {
	var length int
	var chunked bool
	for _, l := range lines {
		_, _ = fmt.Sscanf(l, "Content-Length: %d", &length)
		chunked = chunked || l == "Transfer-Encoding: chunked"
	}
	if method == "HEAD" || strings.Contains(lines[0], " 304 ") {
		return
	}
	if !chunked {
		b := make([]byte, length)
		_, err := io.ReadFull(c.br, b)
		must(c.t, err)
		out.Write(b)
		return
	}
	for last := false; ; {
		line, err := c.br.ReadString('\n')
		must(c.t, err)
		out.WriteString(line)
		last = last || line == "0\r\n"
		if last && line == "\r\n" {
			return
		}
	}
}

// sortStable sorts by field name and keeps the order of values.
func sortStable(lines []string) {
	for i := 1; i < len(lines); i++ {
		for j := i; j > 0 && name(lines[j]) < name(lines[j-1]); j-- {
			lines[j], lines[j-1] = lines[j-1], lines[j]
		}
	}
}

func name(line string) string {
	n, _, _ := strings.Cut(line, ":")
	return n
}

func TestAnswerOverHTTP2(t *testing.T) {
	r := newRig(t)
	r.api(func(w http.ResponseWriter, req *http.Request) {
		switch req.URL.Path {
		case "/v1/hints":
			w.Header().Set("Link", "</a>")
			w.WriteHeader(http.StatusEarlyHints)
			w.Header().Del("Link")
		case "/v1/trailer":
			w.Header().Set("Trailer", "X-Sum")
			_, _ = io.WriteString(w, "hello")
			w.Header().Set("X-Sum", "42")
			w.Header().Set(http.TrailerPrefix+"X-Late", "43")
			return
		case "/v1/none":
			w.WriteHeader(204)
			return
		}
		w.Header().Set("X-Proto", req.Proto)
		_, _ = io.WriteString(w, "hello")
	}, "h2")
	c := r.dial()
	for _, tc := range []struct{ method, path, want string }{
		{"GET", "/v1/models", "HTTP/1.1 200 OK|Content-Length: 5|Content-Type: text/plain; charset=utf-8|X-Proto: HTTP/2.0||hello"},
		{"HEAD", "/v1/models", "HTTP/1.1 200 OK|Content-Length: 5|Content-Type: text/plain; charset=utf-8|X-Proto: HTTP/2.0||"},
		{"GET", "/v1/none", "HTTP/1.1 204 No Content||"},
		{"GET", "/v1/hints", "HTTP/1.1 103 Early Hints|Link: </a>||HTTP/1.1 200 OK|Content-Length: 5|Content-Type: text/plain; charset=utf-8|X-Proto: HTTP/2.0||hello"},
		{"GET", "/v1/trailer", "HTTP/1.1 200 OK|Content-Type: text/plain; charset=utf-8|Trailer: X-Sum|Transfer-Encoding: chunked||5\r\nhello\r\n0\r\nX-Late: 43\r\nX-Sum: 42\r\n\r\n"},
	} {
		c.send("%s %s HTTP/1.1\r\nHost: %s\r\n\r\n", tc.method, tc.path, r.addr)
		got := strings.Split(c.wire(tc.method), "|")
		kept := got[:0]
		for _, l := range got {
			if !strings.HasPrefix(l, "Date:") {
				kept = append(kept, l)
			}
		}
		want := tc.want
		if strings.Contains(want, "X-Late") && strings.Contains(strings.Join(kept, "|"), "42\r\nX-Late") {
			want = strings.Replace(want, "X-Late: 43\r\nX-Sum: 42", "X-Sum: 42\r\nX-Late: 43", 1)
		}
		if diff := cmp.Diff(want, strings.Join(kept, "|")); diff != "" {
			t.Errorf("%s %s (-want +got):\n%s", tc.method, tc.path, diff)
		}
	}
	if r.names.count() > 3 {
		t.Errorf("%d lookups: connections are not reused", r.names.count())
	}
}

// TestTruncated: an answer that stops before its end must not look whole.
func TestTruncated(t *testing.T) {
	for _, tc := range []struct {
		name, answer string
		abrupt       bool // the connection ends without a TLS closing alert
	}{
		{"length", "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello", false},
		{"length, abrupt", "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello", true},
		{"chunks", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", false},
		{"within a chunk", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nhello", false},
		{"within the trailer", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX-Sum: 4", false},
		{"until close, abrupt", "HTTP/1.1 200 OK\r\n\r\nhello", true},
		{"malformed chunk", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nzz\r\n", false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := newRig(t)
			port := r.rawOrigin(func(c net.Conn, br *bufio.Reader) {
				if _, err := http.ReadRequest(br); err == nil {
					_, _ = io.WriteString(c, tc.answer)
				}
				if tc.abrupt {
					_ = c.(*tls.Conn).NetConn().Close()
				}
			})
			r.configure(apiPolicy(port), apiSecrets())
			c := r.dial()
			c.send("GET /v1/models HTTP/1.1\r\nHost: %s\r\n\r\n", r.addr)
			resp, body, err := c.tryAnswer("GET")
			if resp == nil || resp.StatusCode != 200 || !strings.HasPrefix("hello", body) || err == nil {
				t.Errorf("answer %v, body %q, error %v; want the beginning at most, and an error", resp, body, err)
			}
			if e := r.event(); e.Status != 200 || !strings.Contains(e.Reason, "before its end") {
				t.Errorf("audit %+v", e)
			}
		})
	}
}

// TestTruncatedHTTP2: a stream that is reset before its end looks no more whole.
func TestTruncatedHTTP2(t *testing.T) {
	r := newRig(t)
	r.api(func(w http.ResponseWriter, req *http.Request) {
		if req.URL.Path == "/v1/length" {
			w.Header().Set("Content-Length", "10")
		}
		_, _ = io.WriteString(w, "hello")
		_ = http.NewResponseController(w).Flush()
		if req.URL.Path != "/v1/whole" {
			panic(http.ErrAbortHandler)
		}
	}, "h2")
	for path, whole := range map[string]bool{"/v1/length": false, "/v1/chunks": false, "/v1/whole": true} {
		c := r.dial()
		c.send("GET %s HTTP/1.1\r\nHost: %s\r\n\r\n", path, r.addr)
		resp, body, err := c.tryAnswer("GET")
		if resp == nil || resp.StatusCode != 200 || !strings.HasPrefix("hello", body) || (err == nil) != whole {
			t.Errorf("%s: answer %v, body %q, error %v", path, resp, body, err)
		}
		if e := r.event(); strings.Contains(e.Reason, "before its end") == whole {
			t.Errorf("%s: audit %+v", path, e)
		}
	}
}

// TestUpstreamFails is group E: what an upstream does wrong is told in our words.
func TestUpstreamFails(t *testing.T) {
	const quoted = apiKey + " " // what a hostile upstream would like to see quoted
	answer := func(s string) func(*rig) int { return func(r *rig) int { return r.says(s, true) } }
	certificate := func(notAfter time.Time, name string) func(*rig) int {
		return func(r *rig) int {
			return r.originWith(func(http.ResponseWriter, *http.Request) {}, &tls.Config{NextProtos: []string{"http/1.1"}, Certificates: []tls.Certificate{r.ca.issue(r.t, notAfter, name)}}).port
		}
	}
	for _, tc := range []struct {
		name     string
		upstream func(*rig) int
		status   int
		says     string
	}{
		{"status line", answer(quoted + "\r\n\r\n"), 502, "not valid HTTP"},
		{"status code", answer("HTTP/1.1 " + quoted + "\r\n\r\n"), 502, "not valid HTTP"},
		{"field line", answer("HTTP/1.1 200 OK\r\n" + quoted + "\r\n\r\n"), 502, "not valid HTTP"},
		{"content length", answer("HTTP/1.1 200 OK\r\nContent-Length: " + quoted + "\r\n\r\n"), 502, "not valid HTTP"},
		{"name with a blank", answer("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length : 0\r\n\r\nok"), 502, "not valid HTTP"},
		{"name with a colon missing", answer("HTTP/1.1 200 OK\r\nX-A\r\n\r\n"), 502, "not valid HTTP"},
		{"bare cr in a value", answer("HTTP/1.1 200 OK\r\nX-A: b\rSet-Cookie: c\r\nContent-Length: 0\r\n\r\n"), 502, "not valid HTTP"},
		{"status of two digits", answer("HTTP/1.1 +99 OK\r\nContent-Length: 0\r\n\r\n"), 502, "not valid HTTP"},
		{"two lengths", answer("HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx"), 502, "not valid HTTP"},
		{"transfer encoding", answer("HTTP/1.1 200 OK\r\nTransfer-Encoding: " + quoted + "\r\n\r\n"), 502, "not valid HTTP"},
		{"switching protocols", answer("HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nX-Leak: " + quoted + "\r\n\r\n" + quoted), 502, "not valid HTTP"},
		{"interim for ever", answer(strings.Repeat("HTTP/1.1 103 Early Hints\r\n\r\n", 100)), 502, "not valid HTTP"},
		{"gzip", answer("HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\n\x1f\x8b\x08"), 502, "although identity was asked for"},
		{"gzip among others", answer("HTTP/1.1 200 OK\r\nContent-Encoding: identity, br\r\nContent-Length: 3\r\n\r\nxyz"), 502, "although identity"},
		{"endless head", answer("HTTP/1.1 200 OK\r\n" + strings.Repeat("X-A: "+strings.Repeat("a", 1000)+"\r\n", 2000)), 502, "larger head"},
		{"nothing", answer(""), 502, "closed the connection before it answered"},
		{"end within the head", answer("HTTP/1.1 200 OK\r\nX-A: " + quoted), 502, "closed the connection before it answered"},
		{"reset", func(r *rig) int {
			return r.rawOrigin(func(c net.Conn, br *bufio.Reader) {
				_, _ = http.ReadRequest(br)
				reset(c.(*tls.Conn).NetConn())
			})
		}, 502, "reset the connection"},
		{"no tls", func(r *rig) int {
			return r.rawTCP(func(c net.Conn) { _, _ = io.WriteString(c, quoted+"\r\n\r\n") })
		}, 502, "failed the TLS handshake"},
		{"end within the handshake", func(r *rig) int { return r.rawTCP(func(net.Conn) {}) }, 502, "failed the TLS handshake"},
		{"silent handshake", func(r *rig) int { return r.rawTCP(func(c net.Conn) { _, _ = io.Copy(io.Discard, c) }) }, 504, "TLS handshake in time"},
		{"silent", func(r *rig) int {
			return r.rawOrigin(func(c net.Conn, br *bufio.Reader) { _, _ = io.Copy(io.Discard, br) })
		}, 504, "did not answer in time"},
		{"another name", certificate(time.Now().Add(time.Hour), "evil.example"), 502, "certificate for another name"},
		{"expired", certificate(time.Now().Add(-time.Hour), "api.example.test"), 502, "expired"},
		{"unknown authority", func(r *rig) int {
			return r.originWith(func(http.ResponseWriter, *http.Request) {}, &tls.Config{NextProtos: []string{"http/1.1"}, Certificates: []tls.Certificate{newAuthority(r.t).issue(r.t, time.Now().Add(time.Hour), "api.example.test")}}).port
		}, 502, "unknown authority"},
		{"refused", func(r *rig) int {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			must(r.t, err)
			defer l.Close()
			return l.Addr().(*net.TCPAddr).Port
		}, 502, "refused the connection"},
		{"no such name", func(r *rig) int {
			r.names.fail["api.example.test"] = &Failure{Kind: "nxdomain", Msg: "the name does not exist"}
			return 9
		}, 502, "does not resolve: the name does not exist"},
		{"slow name", func(r *rig) int {
			r.names.fail["api.example.test"] = &Failure{Kind: "timeout", Msg: "no server answered"}
			return 9
		}, 504, "not resolved in time"},
		{"special address", func(r *rig) int {
			r.names.fail["api.example.test"] = &Failure{Kind: "address", Msg: "it resolves to a loopback address"}
			return 9
		}, 502, "no address that is allowed"},
		{"name denied", func(r *rig) int {
			r.names.fail["api.example.test"] = &Failure{Kind: "denied", Msg: "not in the policy"}
			return 9
		}, 403, "may not be resolved"},
		{"name, internal", func(r *rig) int {
			r.names.fail["api.example.test"] = fmt.Errorf("pipe broke: %s", quoted)
			return 9
		}, 502, "api.example.test:9 "},
		{"no address", func(r *rig) int { r.names.addrs["api.example.test"] = nil; return 9 }, 502, "no address"},

		{"control", answer("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"), 200, "ok"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, func(o *Options) {
				switch tc.name {
				case "silent":
					o.Timeouts.FirstByte = 300 * time.Millisecond
				case "silent handshake":
					o.Timeouts.Dial = 300 * time.Millisecond
				}
			})
			r.configure(apiPolicy(tc.upstream(r)), apiSecrets())
			resp, body := r.get("GET", "/v1/models")
			if resp.StatusCode != tc.status || !strings.Contains(body, tc.says) {
				t.Errorf("status %d, want %d, says %q: %s", resp.StatusCode, tc.status, tc.says, body)
			}
			if tc.status != 200 {
				checkRefusal(t, resp, body)
			}
			e := r.event()
			if e.Status != tc.status || (e.Decision == "deny") != (tc.status == 403) || e.Rule != "route/anthropic" {
				t.Errorf("audit %+v", e)
			}
			for _, leak := range []string{body, fmt.Sprint(resp.Header), resp.Status, r.logs.String(), fmt.Sprintf("%+v", e)} {
				if strings.Contains(leak, apiKey) {
					t.Errorf("the upstream's bytes were quoted: %s", leak)
				}
			}
		})
	}
}

func TestUnauthorizedAsksForARefresh(t *testing.T) {
	asked := make(chan string, 10)
	r := newRig(t, func(o *Options) { o.Refresh = func(c string) { asked <- c } })
	status := 401
	r.api(func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no", status) })
	if resp, body := r.get("GET", "/v1/models"); resp.StatusCode != 401 || body != "no\n" {
		t.Errorf("status %d %q", resp.StatusCode, body)
	}
	if got := <-asked; got != "anthropic" {
		t.Errorf("refresh of %q", got)
	}
	status = 403
	if resp, _ := r.get("GET", "/v1/models"); resp.StatusCode != 403 {
		t.Errorf("status %d", resp.StatusCode)
	}
	if len(asked) > 0 {
		t.Error("a 403 asked for a refresh")
	}
}

func TestWholeChunks(t *testing.T) {
	for body, want := range map[string]bool{
		"0\r\n\r\n": true, "5\r\nhello\r\n0\r\n\r\n": true, "00A\r\n0123456789\r\n1\r\nx\r\n0\r\n\r\n": true,
		"": false, "0\r\n": false, "5\r\nhello\r\n": false, "5\r\nhello": false, "5\r\nhelloxx0\r\n\r\n": false, "5;x=1\r\nhello\r\n0\r\n\r\n": false,
		"0\r\nX: y\r\n\r\n": false, "9\r\n0\r\n\r\n0\r\n\r\n": false, "ffffffffffffffff\r\n": false, "-1\r\n": false, "0\r\n\r\nmore": false, "x\r\n": false,
	} {
		if got := wholeChunks([]byte(body)); got != want {
			t.Errorf("%q: %v", body, got)
		}
	}
}
