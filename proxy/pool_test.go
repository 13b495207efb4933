package proxy

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// TestStaleConnection: an upstream may close a connection while it is idle, at any
// moment. A request that is safe, or of which nothing left, is sent again; one that
// may have been acted upon never is.
func TestStaleConnection(t *testing.T) {
	const ok = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
	for _, tc := range []struct {
		name   string
		then   func(net.Conn, *bufio.Reader) // what the first connection does after one answer
		method string
		fields string
		body   string
		status int
		seen   int32 // requests that reached a handler after the first
	}{
		{"closed while idle, get", nil, "GET", "", "", 200, 1},
		{"closed while idle, post", nil, "POST", "Content-Length: 5\r\n", "hello", 200, 1},
		{"closed while idle, large post", nil, "POST", fmt.Sprintf("Content-Length: %d\r\n", 1<<20), strings.Repeat("x", 1<<20), 200, 1},
		{"closed on the request, get", readThenClose, "GET", "", "", 200, 1},
		{"closed on the request, head", readThenClose, "HEAD", "", "", 200, 1},
		{"closed on the request, marked post", readThenClose, "POST", "Idempotency-Key: k\r\nContent-Length: 5\r\n", "hello", 200, 1},
		{"closed on the request, post", readThenClose, "POST", "Content-Length: 5\r\n", "hello", 502, 0},
		{"closed on the request, put", readThenClose, "PUT", "Content-Length: 5\r\n", "hello", 502, 0},
		{"unasked answer, post", func(c net.Conn, _ *bufio.Reader) {
			_, _ = io.WriteString(c, "HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n")
		}, "POST", "Content-Length: 5\r\n", "hello", 200, 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			var conns, handled atomic.Int32
			ended := make(chan struct{})
			port := r.rawOrigin(func(c net.Conn, br *bufio.Reader) {
				first := conns.Add(1) == 1
				for {
					req, err := http.ReadRequest(br)
					if err != nil {
						return
					}
					_, _ = io.Copy(io.Discard, req.Body)
					if handled.Add(1) > 1 && tc.method == "HEAD" {
						_, _ = io.WriteString(c, strings.TrimSuffix(ok, "ok"))
					} else {
						_, _ = io.WriteString(c, ok)
					}
					if first {
						if tc.then != nil {
							close(ended)
							tc.then(c, br)
							return
						}
						_ = c.Close()
						close(ended)
						return
					}
				}
			})
			r.configure(apiPolicy(port), apiSecrets())
			c := r.dial()
			c.send("GET /v1/models HTTP/1.1\r\nHost: %s\r\n\r\n", r.addr)
			if resp, _ := c.answer("GET"); resp.StatusCode != 200 {
				t.Fatalf("status %d", resp.StatusCode)
			}
			<-ended
			if tc.seen > 0 && !strings.HasPrefix(tc.name, "closed on the request") {
				r.untilHeard()
			}
			c.send("%s", tc.method+" /v1/models HTTP/1.1\r\nHost: "+r.addr+"\r\n"+tc.fields+"\r\n"+tc.body)
			resp, _ := c.answer(tc.method)
			if resp.StatusCode != tc.status || handled.Load()-1 != tc.seen {
				t.Errorf("status %d, want %d; %d requests handled, want %d", resp.StatusCode, tc.status, handled.Load()-1, tc.seen)
			}
		})
	}
}

// untilHeard waits until what an upstream did to its idle connection has arrived.
func (r *rig) untilHeard() {
	r.t.Helper()
	eventually(r.t, "the upstream's end to arrive", func() bool {
		p := r.srv.snap.Load().pool
		p.mu.Lock()
		defer p.mu.Unlock()
		for _, links := range p.idle {
			for _, l := range links {
				if !l.quiet.readable() {
					return false
				}
			}
		}
		return true
	})
}

func readThenClose(_ net.Conn, br *bufio.Reader) {
	if req, err := http.ReadRequest(br); err == nil {
		_, _ = io.Copy(io.Discard, req.Body)
	}
}

// TestPins: addresses are held while a connection to them is open and not longer.
func TestPins(t *testing.T) {
	t.Parallel()
	protocols(t, func(t *testing.T, proto string) {
		r := newRig(t, func(o *Options) { o.Timeouts.UpstreamIdle = 1500 * time.Millisecond })
		var s seen
		r.api(s.record, proto)
		for range 5 {
			if resp, _ := r.get("GET", "/v1/models"); resp.StatusCode != 200 {
				t.Fatalf("status %d", resp.StatusCode)
			}
		}
		if held := r.names.held(); held != 1 {
			t.Errorf("%d pins for one idle connection", held)
		}
		eventually(t, "the idle connection to be closed", func() bool { return r.names.held() == 0 })
		if resp, _ := r.get("GET", "/v1/models"); resp.StatusCode != 200 {
			t.Fatalf("status %d", resp.StatusCode)
		}
	})
}

// TestReap: an idle connection that the upstream closed is given up by itself.
func TestReap(t *testing.T) {
	r := newRig(t)
	r.configure(apiPolicy(r.says("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", true)), apiSecrets())
	if resp, _ := r.get("GET", "/v1/models"); resp.StatusCode != 200 {
		t.Fatalf("status %d", resp.StatusCode)
	}
	eventually(t, "the pin to be released", func() bool { return r.names.held() == 0 })
	eventually(t, "the sweep to end", func() bool { return !r.srv.sweeping.Load() })
}

func TestOrder(t *testing.T) {
	var in []netip.Addr
	for _, s := range []string{"192.0.2.1", "192.0.2.2", "2001:db8::1", "192.0.2.3", "2001:db8::2"} {
		in = append(in, netip.MustParseAddr(s))
	}
	got := fmt.Sprint(order(in))
	if want := "[2001:db8::1 192.0.2.1 2001:db8::2 192.0.2.2 192.0.2.3]"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

// TestHappyEyeballs: only what the resolver returned is dialled, one after the
// other, and the first that answers wins.
func TestHappyEyeballs(t *testing.T) {
	silent, refused, good := "2001:db8::1", "192.0.2.1", "2001:db8::2"
	for _, tc := range []struct {
		name  string
		addrs []string
		good  int
		err   error
		most  time.Duration
	}{
		{"first", []string{good}, 1, nil, 10 * time.Second},
		{"after a refusal, at once", []string{refused, good}, 1, nil, 10 * time.Second},
		{"after a silent one", []string{silent, good}, 1, nil, 10 * time.Second},
		{"two good", []string{good, "2001:db8::3"}, 1, nil, 10 * time.Second},
		{"all refuse", []string{refused, "192.0.2.2"}, 0, syscall.ECONNREFUSED, 10 * time.Second},
		{"none", nil, 0, errNoAddress, 10 * time.Second},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var mu sync.Mutex
			var dialled []string
			s := New(Options{Dial: func(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
				mu.Lock()
				dialled = append(dialled, to.Addr().String())
				mu.Unlock()
				switch {
				case to.Port() != 443:
					t.Errorf("port %d", to.Port())
				case to.Addr().Is4():
					return nil, syscall.ECONNREFUSED
				case to.Addr().String() == silent:
					<-ctx.Done()
					return nil, ctx.Err()
				}
				a, b := net.Pipe()
				t.Cleanup(func() { _ = b.Close() })
				return a, nil
			}})
			var addrs []netip.Addr
			for _, a := range tc.addrs {
				addrs = append(addrs, netip.MustParseAddr(a))
			}
			begun := time.Now()
			nc, to, err := s.connectAny(context.Background(), addrs, 443)
			if !errors.Is(err, tc.err) || (nc != nil) != (tc.good == 1) {
				t.Fatalf("%v to %v: %v", nc, to, err)
			}
			if nc != nil {
				_ = nc.Close()
			}
			if took := time.Since(begun); took > tc.most {
				t.Errorf("took %v", took)
			}
			for _, d := range dialled {
				if !slices.Contains(tc.addrs, d) {
					t.Errorf("%s was dialled; resolved were %v", d, tc.addrs)
				}
			}
		})
	}
}

// TestHTTP2Only: an upstream without HTTP/1.1 is found out once, whether it refuses
// the protocol or ignores it, and its streams share a connection.
func TestHTTP2Only(t *testing.T) {
	for _, how := range []string{"ignores http/1.1", "refuses http/1.1"} {
		t.Run(how, func(t *testing.T) {
			var s seen
			r := newRig(t)
			conf := &tls.Config{NextProtos: []string{"h2"}, Certificates: []tls.Certificate{r.ca.issue(t, time.Now().Add(time.Hour), "api.example.test")}}
			if how == "refuses http/1.1" {
				conf.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
					if !slices.Contains(hello.SupportedProtos, "h2") {
						return &tls.Config{NextProtos: []string{"something-else"}, Certificates: conf.Certificates}, nil
					}
					return nil, nil
				}
			}
			o := r.originWith(s.record, conf)
			r.configure(apiPolicy(o.port), apiSecrets())
			for range 3 {
				if resp, body := r.get("GET", "/v1/models"); resp.StatusCode != 200 {
					t.Fatalf("status %d: %s", resp.StatusCode, body)
				}
			}
			if s.last(t).Proto != "HTTP/2.0" {
				t.Errorf("proto %s", s.last(t).Proto)
			}
			if n := o.ln.count(); n > 3 {
				t.Errorf("%d connections for three requests", n)
			}
		})
	}
}

// TestPrefersHTTP1: an upstream that speaks both is spoken to in HTTP/1.1.
func TestPrefersHTTP1(t *testing.T) {
	var s seen
	r := newRig(t)
	r.api(s.record, "h2", "http/1.1")
	if resp, _ := r.get("GET", "/v1/models"); resp.StatusCode != 200 || s.last(t).Proto != "HTTP/1.1" {
		t.Errorf("status %d, proto %s", resp.StatusCode, s.last(t).Proto)
	}
}

func TestProxyVariablesAreIgnored(t *testing.T) {
	for _, v := range []string{"HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "https_proxy", "http_proxy"} {
		t.Setenv(v, "http://192.0.2.1:1")
	}
	protocols(t, func(t *testing.T, proto string) {
		var s seen
		r := newRig(t)
		r.api(s.record, proto)
		if resp, _ := r.get("GET", "/v1/models"); resp.StatusCode != 200 {
			t.Errorf("status %d", resp.StatusCode)
		}
	})
}
