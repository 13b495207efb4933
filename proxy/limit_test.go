package proxy

import (
	"bufio"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os/exec"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// curl asks through a unix socket as another user.
func curl(uid uint32, socket string, out io.Writer) *exec.Cmd {
	cmd := exec.Command("curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "--unix-socket", socket, "http://localhost/v1/models")
	cmd.Stdout = out
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	return cmd
}

// TestWindow: whatever is asked for and when, no interval of the window's length
// holds more than the limit, and what is granted after the wait it names is granted.
func TestWindow(t *testing.T) {
	const limit = 100
	type taken struct {
		at time.Time
		n  int64
	}
	for seed := range uint64(20) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		w := window{step: time.Second}
		now := time.Unix(1e9, 0)
		var log []taken
		granted := false
		for range 2000 {
			now = now.Add(time.Duration(rnd.Int64N(int64(3 * time.Second))))
			n := rnd.Int64N(30) + 1
			ok, wait := w.take(now, n, limit)
			if !ok {
				if wait <= 0 || wait > 61*time.Second {
					t.Fatalf("wait %v", wait)
				}
				if rnd.IntN(10) == 0 {
					now = now.Add(wait)
					if ok, again := w.take(now, n, limit); !ok {
						t.Fatalf("after %v: another %v", wait, again)
					}
					log = append(log, taken{now, n})
				}
				continue
			}
			granted = true
			log = append(log, taken{now, n})
			var sum int64
			for _, l := range log {
				if now.Sub(l.at) < time.Minute {
					sum += l.n
				}
			}
			if sum > limit {
				t.Fatalf("%d within a minute", sum)
			}
		}
		if !granted {
			t.Fatal("nothing was ever granted")
		}
	}
}

func TestWindowClock(t *testing.T) {
	w := window{step: time.Second}
	now := time.Unix(1e9, 0)
	if ok, _ := w.take(now, 10, 10); !ok {
		t.Fatal("refused")
	}
	if ok, _ := w.take(now.Add(-time.Hour), 1, 10); ok {
		t.Error("a clock that went back forgave")
	}
	if ok, wait := w.take(now, 11, 10); ok || wait <= 0 {
		t.Error("more than the limit was granted")
	}
	if ok, _ := w.take(now.Add(61*time.Second), 10, 10); !ok {
		t.Error("refused after a minute")
	}
	if ok, _ := w.take(now.Add(61*time.Second), 0, 10); ok {
		t.Error("nothing more fits, and it does not say so")
	}
}

func limits(yaml, l string) string {
	return strings.Replace(yaml, "listen: 127.0.0.1:8080", "listen: 127.0.0.1:8080\n    limits: {"+l+"}", 1)
}

func TestRequestsPerMinute(t *testing.T) {
	var clock atomic.Int64
	clock.Store(time.Now().UnixNano())
	var s seen
	r := newRig(t, func(o *Options) { o.Now = func() time.Time { return time.Unix(0, clock.Load()) } })
	o := r.origin(s.record)
	r.configure(limits(apiPolicy(o.port), "requests_per_minute: 3"), apiSecrets())
	c := r.dial()
	for i := range 5 {
		c.send("GET /v1/models HTTP/1.1\r\nHost: %s\r\n\r\n", r.addr)
		resp, body := c.answer("GET")
		e := r.event()
		if i < 3 {
			if resp.StatusCode != 200 {
				t.Fatalf("status %d", resp.StatusCode)
			}
			continue
		}
		checkRefusal(t, resp, body)
		after, err := strconv.Atoi(resp.Header.Get("Retry-After"))
		if resp.StatusCode != 429 || err != nil || after < 1 || after > 61 || resp.Header.Get("X-Should-Retry") != "true" || !strings.Contains(body, "rate_limit_error") {
			t.Errorf("status %d, %v, %s", resp.StatusCode, resp.Header, body)
		}
		if e.Event != "limit" || e.Decision != "deny" || e.Status != 429 {
			t.Errorf("audit %+v", e)
		}
	}
	if status := r.dial().connect("api.example.test:443"); status != 429 {
		t.Errorf("a CONNECT is a request too: status %d", status)
	}
	r.event()
	// A reload forgives nothing; time does.
	r.configure(limits(apiPolicy(o.port), "requests_per_minute: 3, connections: 99"), apiSecrets())
	if resp, _ := r.get("GET", "/v1/models"); resp.StatusCode != 429 {
		t.Errorf("after a reload: status %d", resp.StatusCode)
	}
	clock.Add(int64(62 * time.Second))
	if resp, _ := r.get("GET", "/v1/models"); resp.StatusCode != 200 {
		t.Errorf("a minute later: status %d", resp.StatusCode)
	}
}

func TestConnectionLimit(t *testing.T) {
	s := newScripted()
	r := newRig(t)
	o := r.origin(s.serve)
	r.configure(limits(apiPolicy(o.port), "connections: 2"), apiSecrets())
	busy := r.dial()
	busy.send("GET /v1/models HTTP/1.1\r\nHost: %s\r\n\r\n", r.addr)
	<-s.begin
	idle := r.dial()
	eventually(t, "both to be counted", func() bool { a := r.srv.Stats().Agents; return len(a) > 0 && a[0].Connections == 2 })
	for range 3 {
		resp, body := r.get("GET", "/v1/models")
		checkRefusal(t, resp, body)
		if resp.StatusCode != 429 || resp.Header.Get("Retry-After") == "" || !resp.Close {
			t.Errorf("status %d %v", resp.StatusCode, resp.Header)
		}
		if e := r.event(); e.Event != "limit" || e.Decision != "deny" {
			t.Errorf("audit %+v", e)
		}
	}
	_ = idle.nc.Close()
	eventually(t, "the idle one to be forgotten", func() bool { a := r.srv.Stats().Agents; return len(a) > 0 && a[0].Connections == 1 })
	if resp, _ := r.get("DELETE", "/v1/files"); resp.StatusCode != 403 {
		t.Errorf("with room: status %d", resp.StatusCode)
	}
	close(s.say)
}

// TestTurnedAwayAreBounded: connections above the limit cannot make us hold more.
func TestTurnedAwayAreBounded(t *testing.T) {
	r := newRig(t)
	r.configure(limits(oneAgent, "connections: 1"), nil)
	r.dial()
	eventually(t, "the first to be counted", func() bool { a := r.srv.Stats().Agents; return len(a) > 0 && a[0].Connections == 1 })
	for range maxTurnedAway + 20 {
		if nc, err := net.Dial("tcp", r.addr); err == nil {
			t.Cleanup(func() { _ = nc.Close() })
		}
	}
	eventually(t, "the others to be closed", func() bool { return len(r.srv.conns.list(nil)) <= 1+maxTurnedAway })
}

func TestUploadLimit(t *testing.T) {
	var s seen
	r := newRig(t)
	o := r.origin(s.record)
	post := func(c *raw, size int, chunked bool) (*http.Response, string) {
		t.Helper()
		if chunked {
			c.send("POST /v1/messages HTTP/1.1\r\nHost: %s\r\nTransfer-Encoding: chunked\r\n\r\n%s", r.addr, chunks(strings.Repeat("x", size), size))
		} else {
			c.send("POST /v1/messages HTTP/1.1\r\nHost: %s\r\nContent-Length: %d\r\n\r\n%s", r.addr, size, strings.Repeat("x", size))
		}
		return c.answer("POST")
	}
	yaml := limits(apiPolicy(o.port), "upload_bytes_per_hour: 100000") +
		fmt.Sprintf("egress:\n  - {host: plain.example.test, ports: [%d], addresses: [127.0.0.0/8]}\n", r.rawTCP(func(c net.Conn) { _, _ = io.Copy(c, c) }))
	r.configure(yaml, apiSecrets())
	if resp, _ := post(r.dial(), 50000, false); resp.StatusCode != 200 {
		t.Fatalf("status %d", resp.StatusCode)
	}
	for _, chunked := range []bool{false, true} {
		resp, body := post(r.dial(), 60000, chunked)
		checkRefusal(t, resp, body)
		if resp.StatusCode != 429 || resp.Header.Get("X-Should-Retry") != "false" {
			t.Errorf("status %d %v", resp.StatusCode, resp.Header)
		}
	}
	if s.count() != 1 {
		t.Errorf("%d requests were served", s.count())
	}
	if resp, _ := post(r.dial(), 1000, false); resp.StatusCode != 200 {
		t.Errorf("what fits: status %d", resp.StatusCode)
	}
}

// TestTrailerIsUpload: what leaves behind a body counts as the body does, for the hour, for the size of one body and for the
// audit. A field that overrides the method does not leave there either.
func TestTrailerIsUpload(t *testing.T) {
	for _, limit := range []string{"upload_bytes_per_hour", "body_bytes"} {
		r := newRig(t)
		got := make(chan string, 1)
		port := r.rawOrigin(func(c net.Conn, br *bufio.Reader) {
			for {
				var b strings.Builder
				for !strings.HasSuffix(b.String(), "\r\n\r\n") || !strings.Contains(b.String(), "\r\n0\r\n") {
					line, err := br.ReadString('\n')
					if err != nil {
						return
					}
					b.WriteString(line)
				}
				got <- b.String()
				_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
			}
		})
		r.configure(limits(apiPolicy(port), limit+": 10000"), apiSecrets())
		post := func(size int) int {
			t.Helper()
			c := r.dial()
			defer c.nc.Close()
			c.send("POST /v1/messages HTTP/1.1\r\nHost: %s\r\nTransfer-Encoding: chunked\r\nTrailer: A, X-Http-Method-Override\r\n\r\n0\r\nX-Http-Method-Override: DELETE\r\n", r.addr)
			for ; size > 0; size -= 1000 {
				c.send("A: %s\r\n", strings.Repeat("x", min(size, 1000)-len("A: \r\n")))
			}
			c.send("\r\n")
			resp, _ := c.answer("POST")
			return resp.StatusCode
		}
		if status := post(5000); status != 200 {
			t.Fatalf("%s: what fits: status %d", limit, status)
		}
		if all := <-got; strings.Contains(all, "DELETE") || strings.Count(all, "x") < 4900 {
			t.Errorf("%s: the upstream got %.300q", limit, all)
		}
		if e := r.event(); e.BytesOut != 5000 {
			t.Errorf("%s: audit: %d bytes out, want 5000", limit, e.BytesOut)
		}
		if status := post(20000); status != 429 && status != 413 {
			t.Errorf("%s: what does not fit: status %d", limit, status)
		}
		if len(got) > 0 {
			t.Errorf("%s: what does not fit left", limit)
		}
	}
}

// TestUploadsOfAnHour: requests and tunnels draw on one allowance, a body without a length is stopped on its way, and
// only an hour gives anything back.
func TestUploadsOfAnHour(t *testing.T) {
	var clock atomic.Int64
	clock.Store(time.Now().UnixNano())
	var s seen
	r := newRig(t, func(o *Options) { o.Now = func() time.Time { return time.Unix(0, clock.Load()) } })
	o := r.origin(s.record)
	port := r.rawTCP(func(c net.Conn) { _, _ = io.Copy(c, c) })
	r.configure(limits(apiPolicy(o.port), "upload_bytes_per_hour: 300000")+
		fmt.Sprintf("egress:\n  - {host: plain.example.test, ports: [%d], addresses: [127.0.0.0/8]}\n", port), apiSecrets())
	post := func(size, status int) {
		t.Helper()
		c := r.dial()
		defer c.nc.Close()
		c.send("POST /v1/messages HTTP/1.1\r\nHost: %s\r\nContent-Length: %d\r\n\r\n%s", r.addr, size, strings.Repeat("x", size))
		resp, body := c.answer("POST")
		e := r.event()
		if resp.StatusCode != status || (e.Event == "limit") != (status == 429) || (e.Decision == "deny") != (status == 429) {
			t.Fatalf("status %d, want %d: %s; audit %+v", resp.StatusCode, status, body, e)
		}
		if status != 429 {
			return
		}
		after, err := strconv.Atoi(resp.Header.Get("Retry-After"))
		if err != nil || after < 1 || after > 61*60 || resp.Header.Get("X-Should-Retry") != "false" || !strings.Contains(body, "rate_limit_error") {
			t.Errorf("%v, %s", resp.Header, body)
		}
	}
	post(100000, 200)
	c := r.dial()
	if status := c.connect(fmt.Sprintf("plain.example.test:%d", port)); status != 200 {
		t.Fatalf("status %d", status)
	}
	c.send("%s", strings.Repeat("x", 80000))
	_, err := io.ReadFull(c.br, make([]byte, 80000))
	must(t, err)
	_ = c.nc.Close()
	if e := r.event(); e.BytesOut != 80000 {
		t.Errorf("audit of the tunnel: %+v", e)
	}
	post(150000, 429) // would fit without the tunnel
	before := s.count()

	chunked := r.dial()
	chunked.send("POST /v1/messages HTTP/1.1\r\nHost: %s\r\nTransfer-Encoding: chunked\r\n\r\n", r.addr)
	go func() { _, _ = io.WriteString(chunked.nc, chunks(strings.Repeat("y", 1<<20), 8000)) }()
	if resp, body := chunked.answer("POST"); resp.StatusCode != 429 {
		t.Errorf("without a length: status %d %s", resp.StatusCode, body)
	}
	_ = chunked.nc.Close()
	if e := r.event(); e.Event != "limit" || e.BytesOut > 140000 {
		t.Errorf("audit of the body without a length: %+v", e)
	}
	s.mu.Lock()
	for _, g := range s.list[before:] {
		if !strings.HasSuffix(g.Body, " error") {
			t.Errorf("the upstream took %d bytes for a whole body", len(g.Body))
		}
	}
	s.mu.Unlock()
	clock.Add(int64(58 * time.Minute))
	post(150000, 429)
	clock.Add(int64(4 * time.Minute))
	post(150000, 200)
}

// TestBodyLimit: a body larger than the limit is refused before any of it leaves where it says so, else on its way.
func TestBodyLimit(t *testing.T) {
	protocols(t, func(t *testing.T, proto string) {
		var s seen
		r := newRig(t)
		o := r.origin(s.record, proto)
		r.configure(limits(apiPolicy(o.port), "body_bytes: 300000"), apiSecrets())
		for _, tc := range []struct {
			name, head string
			size       int
			status     int
		}{
			{"fits", "Content-Length: 300000", 300000, 200}, {"a byte more", "Content-Length: 300001", 300001, 413},
			{"asks first", "Expect: 100-continue\r\nContent-Length: 300001", 0, 413},
			{"fits, without a length", "Transfer-Encoding: chunked", 300000, 200}, {"a byte more, without a length", "Transfer-Encoding: chunked", 300001, 413},
			{"much more, without a length", "Transfer-Encoding: chunked", 4 << 20, 413},
		} {
			before := s.count()
			c := r.dial()
			body := strings.Repeat("x", tc.size)
			if tc.head[0] == 'T' {
				body = chunks(body, 5000)
			}
			c.send("POST /v1/messages HTTP/1.1\r\nHost: %s\r\n%s\r\n\r\n", r.addr, tc.head)
			go func() { _, _ = io.WriteString(c.nc, body) }()
			resp, text := c.answer("POST")
			_ = c.nc.Close()
			e := r.event()
			if resp.StatusCode != tc.status || (e.Event == "limit") != (tc.status == 413) {
				t.Errorf("%s: status %d %s; audit %+v", tc.name, resp.StatusCode, text, e)
			}
			if tc.status == 413 {
				checkRefusal(t, resp, text)
				if !strings.Contains(text, "request_too_large") || e.Decision != "deny" {
					t.Errorf("%s: %s; audit %+v", tc.name, text, e)
				}
			}
			s.mu.Lock()
			for _, g := range s.list[before:] {
				if (tc.status == 413) != strings.HasSuffix(g.Body, " error") {
					t.Errorf("%s: the upstream took %d bytes for a whole body", tc.name, len(g.Body))
				}
			}
			if len(s.list) == before && tc.status == 200 {
				t.Errorf("%s: nothing arrived", tc.name)
			}
			s.mu.Unlock()
		}
	})
}

func TestTunnelUploadLimit(t *testing.T) {
	r := newRig(t)
	got := make(chan int64, 1)
	port := r.rawTCP(func(c net.Conn) {
		n, _ := io.Copy(io.Discard, c)
		got <- n
	})
	r.configure(limits(egressPolicy(port, "plain.example.test"), "upload_bytes_per_hour: 20000"), nil)
	c := r.dial()
	if status := c.connect(fmt.Sprintf("plain.example.test:%d", port)); status != 200 {
		t.Fatalf("status %d", status)
	}
	for range 10 {
		if _, err := io.WriteString(c.nc, strings.Repeat("x", 5000)); err != nil {
			break
		}
	}
	if !c.closed() {
		t.Error("the tunnel stayed open")
	}
	if n := <-got; n > 20000 || n == 0 {
		t.Errorf("%d bytes left, of at most 20000", n)
	}
	if e := r.event(); e.Event != "limit" || e.Decision != "deny" {
		t.Errorf("audit %+v", e)
	}
}
