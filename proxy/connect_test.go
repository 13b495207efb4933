package proxy

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
)

// egressPolicy allows hosts on port.
func egressPolicy(port int, hosts ...string) string {
	y := oneAgent + "egress:\n"
	for _, h := range hosts {
		addresses := "[127.0.0.0/8]"
		if _, err := netip.ParseAddr(h); err == nil {
			addresses = "[]"
		}
		y += fmt.Sprintf("  - {host: %q, ports: [%d], methods: [GET, HEAD, POST], addresses: %s}\n", h, port, addresses)
	}
	return y
}

// connect asks for a tunnel and returns the answer's status.
func (c *raw) connect(target string) int {
	c.t.Helper()
	c.send("CONNECT %s HTTP/1.1\r\nHost: %s\r\n\r\n", target, target)
	resp, err := http.ReadResponse(c.br, &http.Request{Method: "CONNECT"})
	must(c.t, err)
	if resp.StatusCode != 200 {
		_, _ = io.ReadAll(resp.Body)
	}
	return resp.StatusCode
}

// client is a TLS client within a tunnel.
func (r *rig) client(c *raw, name string) *tls.Conn {
	return tls.Client(&rest{c.nc, c.br}, &tls.Config{ServerName: name, RootCAs: r.ca.pool})
}

// rest is a connection whose first bytes are in a reader.
type rest struct {
	*net.TCPConn
	r io.Reader
}

func (c *rest) Read(p []byte) (int, error) { return c.r.Read(p) }

func TestConnect(t *testing.T) {
	r := newRig(t)
	o := r.origin(func(w http.ResponseWriter, req *http.Request) {
		_, _ = io.WriteString(w, "hello "+req.Host+req.Header.Get("Authorization"))
	})
	r.configure(egressPolicy(o.port, "api.example.test", "*.wild.example.test"), nil)
	r.names.addrs["a.b.wild.example.test"] = r.names.addrs["api.example.test"]
	for _, tc := range []struct{ target, name string }{
		{"api.example.test", "api.example.test"},
		{"API.Example.Test.", "api.example.test"},
		{"api.example.test", "API.example.test"},
		{"a.b.wild.example.test", "a.b.wild.example.test"},
	} {
		t.Run(tc.target, func(t *testing.T) {
			c := r.dial()
			if status := c.connect(fmt.Sprintf("%s:%d", tc.target, o.port)); status != 200 {
				t.Fatalf("status %d", status)
			}
			tc2 := r.client(c, tc.name)
			fmt.Fprintf(tc2, "GET / HTTP/1.1\r\nHost: x\r\nAuthorization: mine\r\nConnection: close\r\n\r\n")
			answer, err := io.ReadAll(tc2)
			if tc.name == "a.b.wild.example.test" && err != nil {
				err = nil // the test's certificate covers one label; that the tunnel stands is what counts
			} else if !bytes.HasSuffix(answer, []byte("hello xmine")) {
				t.Errorf("%q, %v", answer, err)
			}
			_ = tc2.Close()
			e := r.event()
			if e.Event != "connect" || e.Decision != "allow" || e.Status != 200 || e.BytesIn == 0 || e.BytesOut == 0 || e.Host != strings.ToLower(strings.TrimSuffix(tc.target, ".")) || e.Upstream == "" {
				t.Errorf("audit %+v", e)
			}
		})
	}
	eventually(t, "pins to be released", func() bool { return r.names.held() == 0 })
}

// TestConnectRefused is group J: what gets no tunnel, and no lookup.
func TestConnectRefused(t *testing.T) {
	r := newRig(t)
	o := r.origin(func(http.ResponseWriter, *http.Request) {})
	r.configure(egressPolicy(o.port, "api.example.test", "*.wild.example.test", "192.0.2.7", "2001:db8::7"), nil)
	p := fmt.Sprint(":", o.port)
	for _, target := range []string{
		"evil.example.test" + p, "api.example.test:443", "api.example.test:1", "api.example.test", "wild.example.test" + p, "evilwild.example.test" + p,
		"api.example.test.evil.example" + p, "xapi.example.test" + p, "u@api.example.test" + p, "api.example.test@evil.example" + p, "api..example.test" + p,
		"2130706433" + p, "0x7f000001" + p, "0177.0.0.1" + p, "127.1" + p, "127.0.0.1" + p, "0.0.0.0" + p, "[::]" + p, "[::1]" + p, "[::ffff:127.0.0.1]" + p,
		"[64:ff9b::7f00:1]" + p, "[fe80::1%25eth0]" + p, "169.254.169.254" + p, "192.0.2.8" + p, "[2001:db8::8]" + p, "192.0.2.07" + p,
		"api.example.test:0", "api.example.test:065535", "api.example.test:65536", "api.example.test:" + strings.Repeat("4", 20), "/v1/models", "http://api.example.test" + p,
		"api.example.test%00.evil.example" + p, "*.wild.example.test" + p, "xn--zzzzzz.example.test" + p, ".api.example.test" + p, strings.Repeat("a", 64) + ".wild.example.test" + p,
	} {
		c := r.dial()
		c.send("CONNECT %s HTTP/1.1\r\nHost: %s\r\n\r\n", target, target)
		resp, body := c.answer("CONNECT")
		if resp.StatusCode != 403 && resp.StatusCode != 400 {
			t.Errorf("%s: status %d", target, resp.StatusCode)
		}
		checkRefusal(t, resp, body)
		if e := r.event(); e.Decision != "deny" || e.Status != resp.StatusCode {
			t.Errorf("%s: audit %+v", target, e)
		}
	}
	c := r.dial()
	c.send("CONNECT api.example.test%s HTTP/1.1\r\nHost: evil.example%s\r\n\r\n", p, p)
	if resp, _ := c.answer("CONNECT"); resp.StatusCode != 400 {
		t.Errorf("another Host: status %d", resp.StatusCode)
	}
	if r.names.count() > 0 {
		t.Errorf("lookups were made: %v", r.names.asked)
	}
	if status := r.dial().connect("api.example.test" + p); status != 200 {
		t.Errorf("control: status %d", status)
	}
}

// secure is a rig whose upstream is at port 443 as far as policy and resolver know.
func secure(t *testing.T, upstream func(net.Conn), change ...func(*Options)) *rig {
	var port int
	r := newRig(t, append(change, func(o *Options) { o.Dial = redirect(&port) })...)
	port = r.rawTCP(upstream)
	r.configure(oneAgent+"egress:\n  - {host: api.example.test, addresses: [127.0.0.0/8]}\n  - {host: 127.0.0.1, ports: [443, 8443]}\n", nil)
	r.names.addrs["127.0.0.1"] = r.names.addrs["api.example.test"]
	return r
}

// A client that shows its user the status line alone says who refused a tunnel, and why; the body of another method's
// refusal is shown, and the control.
func TestStatusLineSaysWhy(t *testing.T) {
	r := newRig(t)
	r.configure(egressPolicy(443, "api.example.test"), nil)
	client := http.Client{Transport: &http.Transport{Proxy: http.ProxyURL(&url.URL{Scheme: "http", Host: r.addr})}}
	const why = "exitgate: denied.example.test:443 is not in egress (policy.yaml); to allow it add `- host: denied.example.test`"
	if _, err := client.Get("https://denied.example.test/"); err == nil || !strings.Contains(err.Error(), why) {
		t.Errorf("net/http says %v", err)
	}
	c := r.dial()
	c.send("CONNECT denied.example.test:443 HTTP/1.1\r\nHost: denied.example.test:443\r\n\r\n")
	if line, err := c.br.ReadString('\n'); line != "HTTP/1.1 403 Forbidden: "+why+"\r\n" {
		t.Errorf("%q, %v", line, err)
	}
	resp, err := client.Get("http://denied.example.test/")
	must(t, err)
	defer resp.Body.Close()
	if body, _ := io.ReadAll(resp.Body); resp.Status != "403 Forbidden" || !strings.Contains(string(body), "denied.example.test:80 is not in egress") {
		t.Errorf("control: %s %s", resp.Status, body)
	}
}

func TestConnectHello(t *testing.T) {
	const patient = 300 * time.Millisecond
	for _, tc := range []struct {
		name, target, sni string
		bytes             string // sent instead of a ClientHello
		late              bool   // sent when the time for a ClientHello is over, which begins with its first byte
		ok                bool
		reason            string
	}{
		{name: "control", target: "api.example.test:443", sni: "api.example.test", ok: true},
		{name: "another name", target: "api.example.test:443", sni: "evil.example.test", reason: "names another server"},
		{name: "name with a prefix", target: "api.example.test:443", sni: "xapi.example.test", reason: "names another server"},
		{name: "no name", target: "api.example.test:443", sni: "", reason: "names no server"},
		{name: "plain http", target: "api.example.test:443", bytes: "GET / HTTP/1.1\r\nHost: api.example.test\r\n\r\n", reason: "not a TLS"},
		{name: "ssh", target: "api.example.test:443", bytes: "SSH-2.0-x\r\n", reason: "not a TLS"},
		{name: "garbage in a record", target: "api.example.test:443", bytes: "\x16\x03\x01\x00\x05hello", reason: "ClientHello"},
		{name: "address without a name", target: "127.0.0.1:443", sni: "", ok: true},
		{name: "address with a name", target: "127.0.0.1:443", sni: "evil.example.test", reason: "names another server"},
		{name: "another port, tls to another name", target: "127.0.0.1:8443", sni: "evil.example.test", reason: "names another server"},
		{name: "another port, tls to another name, late", target: "127.0.0.1:8443", sni: "evil.example.test", late: true, reason: "names another server"},
		{name: "another port, tls, late", target: "127.0.0.1:8443", sni: "", late: true, ok: true},
		{name: "another port, no tls, late", target: "127.0.0.1:8443", bytes: "SSH-2.0-x\r\n", late: true, ok: true},
		{name: "another port, no tls", target: "127.0.0.1:8443", bytes: "SSH-2.0-x\r\n", ok: true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			got := make(chan byte, 1)
			r := secure(t, func(c net.Conn) {
				var b [1]byte
				if _, err := c.Read(b[:]); err == nil {
					got <- b[0]
				}
			}, func(o *Options) {
				if tc.late {
					o.Timeouts.Head = patient
				}
			})
			c := r.dial()
			if status := c.connect(tc.target); status != 200 {
				t.Fatalf("status %d", status)
			}
			if tc.late {
				time.Sleep(2 * patient)
			}
			if tc.bytes != "" {
				c.send("%s", tc.bytes)
			} else {
				hello := tls.Client(&rest{c.nc, c.br}, &tls.Config{ServerName: tc.sni, InsecureSkipVerify: true})
				_ = hello.SetDeadline(time.Now().Add(5 * time.Second))
				if err := hello.Handshake(); !tc.ok && (err == nil || !strings.Contains(err.Error(), "unrecognized name")) {
					t.Errorf("the agent's TLS says %v", err)
				}
			}
			_ = c.nc.CloseWrite()
			e := r.event()
			if (e.Decision == "allow") != tc.ok || !strings.Contains(e.Reason, tc.reason) || e.Event != "connect" {
				t.Errorf("audit %+v", e)
			}
			if (len(got) > 0) != tc.ok {
				t.Errorf("bytes reached the upstream: %v", len(got) > 0)
			}
		})
	}
}

// TestServerFirst: on a port that is not 443 the server may begin.
func TestServerFirst(t *testing.T) {
	r := newRig(t)
	port := r.rawTCP(func(c net.Conn) {
		_, _ = io.WriteString(c, "SSH-2.0-server\r\n")
		_, _ = io.Copy(c, c)
	})
	r.configure(egressPolicy(port, "plain.example.test"), nil)
	c := r.dial()
	if status := c.connect(fmt.Sprintf("plain.example.test:%d", port)); status != 200 {
		t.Fatalf("status %d", status)
	}
	line, err := c.br.ReadString('\n')
	if err != nil || line != "SSH-2.0-server\r\n" {
		t.Fatalf("%q, %v", line, err)
	}
	c.send("SSH-2.0-client\r\n")
	if line, err = c.br.ReadString('\n'); err != nil || line != "SSH-2.0-client\r\n" {
		t.Errorf("%q, %v", line, err)
	}
}

// TestTunnelEnds: each direction ends for itself, and a reset is passed on as one.
func TestTunnelEnds(t *testing.T) {
	t.Parallel()
	open := func(t *testing.T, change func(*Options), serve func(net.Conn)) (*rig, *raw) {
		r := newRig(t, func(o *Options) {
			if change != nil {
				change(o)
			}
		})
		port := r.rawTCP(serve)
		r.configure(egressPolicy(port, "plain.example.test"), nil)
		c := r.dial()
		if status := c.connect(fmt.Sprintf("plain.example.test:%d", port)); status != 200 {
			t.Fatalf("status %d", status)
		}
		c.send("hello")
		return r, c
	}
	t.Run("agent first", func(t *testing.T) {
		_, c := open(t, nil, func(nc net.Conn) {
			all, _ := io.ReadAll(nc)
			time.Sleep(50 * time.Millisecond)
			fmt.Fprintf(nc, "%d bytes", len(all))
		})
		_ = c.nc.CloseWrite()
		if got, err := io.ReadAll(c.br); err != nil || string(got) != "5 bytes" {
			t.Errorf("%q, %v", got, err)
		}
	})
	t.Run("upstream first", func(t *testing.T) {
		rest := make(chan string, 1)
		_, c := open(t, nil, func(nc net.Conn) {
			_, _ = io.WriteString(nc, "bye")
			_ = nc.(*net.TCPConn).CloseWrite()
			all, _ := io.ReadAll(nc)
			rest <- string(all)
		})
		if got, err := io.ReadAll(c.br); err != nil || string(got) != "bye" {
			t.Errorf("%q, %v", got, err)
		}
		c.send(" and more")
		_ = c.nc.CloseWrite()
		if got := <-rest; got != "hello and more" {
			t.Errorf("%q", got)
		}
	})
	t.Run("half closed and silent", func(t *testing.T) {
		r, c := open(t, func(o *Options) { o.Timeouts.HalfClosed = 100 * time.Millisecond }, func(nc net.Conn) {
			_, _ = io.ReadAll(nc)
			buf := make([]byte, 1)
			_, _ = nc.Read(buf)
			time.Sleep(time.Second)
		})
		_ = c.nc.CloseWrite()
		if !c.closed() {
			t.Error("the tunnel stayed")
		}
		r.event()
	})
	t.Run("upstream resets", func(t *testing.T) {
		_, c := open(t, nil, func(nc net.Conn) {
			var b [5]byte
			_, _ = io.ReadFull(nc, b[:])
			reset(nc)
		})
		if _, err := io.ReadAll(c.br); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%v", err)
		}
	})
	t.Run("agent resets", func(t *testing.T) {
		ended := make(chan error, 1)
		_, c := open(t, nil, func(nc net.Conn) {
			_, err := io.ReadAll(nc)
			ended <- err
		})
		time.Sleep(20 * time.Millisecond)
		reset(c.nc)
		if err := <-ended; !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%v", err)
		}
	})
}

// TestForward: plain http in absolute form, by egress and its methods.
func TestForward(t *testing.T) {
	var s seen
	r := newRig(t)
	o := r.originWith(s.record, nil)
	r.configure(egressPolicy(o.port, "plain.example.test"), nil)
	authority := fmt.Sprintf("plain.example.test:%d", o.port)
	for _, tc := range []struct {
		method, target, host string
		fields               []string
		body                 string
		status               int
	}{
		{"GET", "http://" + authority + "/a/b?c;d", authority, []string{"Authorization: Bearer mine", "Cookie: mine", "Accept-Encoding: gzip", "Proxy-Authorization: drop", "Proxy-Connection: drop"}, "", 200},
		{"POST", "http://" + authority + "/upload", authority, []string{"Content-Length: 5"}, "hello", 200},
		{"GET", "http://" + authority, authority, nil, "", 200},
		{"GET", "http://PLAIN.example.test.:" + fmt.Sprint(o.port) + "/", "plain.example.TEST.:" + fmt.Sprint(o.port), nil, "", 200},
		{"DELETE", "http://" + authority + "/a", authority, nil, "", 403},
		{"GET", "http://" + authority + "/a", authority, []string{"X-HTTP-Method-Override: DELETE"}, "", 403},
		{"GET", "http://" + authority + "/a", authority, []string{"X_Method_Override: DELETE"}, "", 403},
		{"GET", "http://other.example.test/a", "other.example.test", nil, "", 403},
		{"GET", "http://plain.example.test/a", "plain.example.test", nil, "", 403},
		{"GET", "http://127.0.0.1:" + fmt.Sprint(o.port) + "/", "127.0.0.1:" + fmt.Sprint(o.port), nil, "", 403},
		{"GET", "http://" + authority + "/", "other.example.test", nil, "", 400},
	} {
		before := s.count()
		c := r.dial()
		c.send("%s", tc.method+" "+tc.target+" HTTP/1.1\r\nHost: "+tc.host+"\r\n"+join(tc.fields)+"\r\n"+tc.body)
		resp, body := c.answer(tc.method)
		if resp.StatusCode != tc.status {
			t.Errorf("%s %s: status %d %s", tc.method, tc.target, resp.StatusCode, body)
		}
		e := r.event()
		if (e.Decision == "allow") != (tc.status == 200) {
			t.Errorf("%s %s: audit %+v", tc.method, tc.target, e)
		}
		if tc.status != 200 {
			if s.count() != before {
				t.Errorf("%s %s was forwarded", tc.method, tc.target)
			}
			continue
		}
		g := s.last(t)
		if g.Host != authority || g.Body != tc.body || g.Method != tc.method {
			t.Errorf("%s %s: got %+v", tc.method, tc.target, g)
		}
		if len(tc.fields) > 2 && (g.Header.Get("Authorization") != "Bearer mine" || g.Header.Get("Cookie") != "mine" || g.Header.Get("Accept-Encoding") != "gzip" || g.Header.Get("Proxy-Authorization") != "" || g.Target != "/a/b?c;d") {
			t.Errorf("%s: %v", g.Target, g.Header)
		}
	}
}

// TestTunnelSplices: bulk goes through pipes within the kernel, and an idle tunnel
// holds none.
func TestTunnelSplices(t *testing.T) {
	pipes := func() (n int) {
		fds, err := os.ReadDir("/proc/self/fd")
		must(t, err)
		for _, fd := range fds {
			if to, _ := os.Readlink("/proc/self/fd/" + fd.Name()); strings.HasPrefix(to, "pipe:") {
				n++
			}
		}
		return n
	}
	r := newRig(t)
	port := r.rawTCP(func(nc net.Conn) {
		_, _ = io.CopyN(struct{ io.Writer }{nc}, struct{ io.Reader }{nc}, 4)
		piece := make([]byte, 1<<20)
		for {
			if _, err := nc.Write(piece); err != nil {
				return
			}
		}
	})
	r.configure(egressPolicy(port, "plain.example.test"), nil)
	before := pipes()
	var open []*raw
	for range 8 {
		c := r.dial()
		if status := c.connect(fmt.Sprintf("plain.example.test:%d", port)); status != 200 {
			t.Fatalf("status %d", status)
		}
		open = append(open, c)
	}
	if held := pipes() - before; held > 0 {
		t.Errorf("idle tunnels hold %d ends of pipes", held)
	}
	for _, c := range open {
		c.send("ping")
		_, err := io.CopyN(io.Discard, c.br, 4<<20)
		must(t, err)
	}
	eventually(t, "pipes", func() bool {
		_, _ = io.CopyN(io.Discard, open[0].br, 1<<20)
		return pipes() > before
	})
}
