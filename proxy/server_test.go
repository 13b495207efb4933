package proxy

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// TestSlowClients: heads, bodies and idle connections have their time; answers do not.
func TestSlowClients(t *testing.T) {
	t.Parallel()
	short := func(set func(*Timeouts)) func(*Options) { return func(o *Options) { set(&o.Timeouts) } }
	t.Run("head", func(t *testing.T) {
		t.Parallel()
		r := newRig(t, short(func(x *Timeouts) { x.Head = 400 * time.Millisecond }))
		r.api(func(http.ResponseWriter, *http.Request) {})
		c := r.dial()
		c.send("GET /v1/models HTTP/1.1\r\n")
		stop := make(chan struct{})
		go func() { // a byte now and then does not help
			defer close(stop)
			for {
				if _, err := io.WriteString(c.nc, "X"); err != nil {
					return
				}
				time.Sleep(20 * time.Millisecond)
			}
		}()
		resp, body := c.answer("GET")
		if resp.StatusCode != 408 || !c.closed() {
			t.Errorf("status %d", resp.StatusCode)
		}
		checkRefusal(t, resp, body)
		_ = c.nc.Close()
		<-stop
	})
	t.Run("idle", func(t *testing.T) {
		t.Parallel()
		r := newRig(t, short(func(x *Timeouts) { x.Idle = 300 * time.Millisecond }))
		var s seen
		r.api(s.record)
		never, once := r.dial(), r.dial()
		once.send("GET /v1/models HTTP/1.1\r\nHost: %s\r\n\r\n", r.addr)
		if resp, _ := once.answer("GET"); resp.StatusCode != 200 {
			t.Fatalf("status %d", resp.StatusCode)
		}
		if !never.closed() || !once.closed() {
			t.Error("an idle connection stays")
		}
	})
	for _, size := range []int{100, 1 << 20} {
		t.Run(fmt.Sprint("body of ", size), func(t *testing.T) {
			t.Parallel()
			r := newRig(t, short(func(x *Timeouts) { x.Body = 500 * time.Millisecond }))
			r.api(func(w http.ResponseWriter, req *http.Request) { _, _ = io.Copy(io.Discard, req.Body) })
			c := r.dial()
			c.send("POST /v1/messages HTTP/1.1\r\nHost: %s\r\nContent-Length: %d\r\n\r\n", r.addr, size)
			for range 10 { // slow, but it moves
				c.send("x")
				time.Sleep(100 * time.Millisecond)
			}
			resp, body := c.answer("POST")
			if resp.StatusCode != 408 {
				t.Errorf("status %d", resp.StatusCode)
			}
			checkRefusal(t, resp, body)
		})
	}
	t.Run("answer", func(t *testing.T) {
		t.Parallel()
		r := newRig(t, short(func(x *Timeouts) { *x = Timeouts{Head: time.Second / 4, Idle: time.Second / 4, Body: time.Second / 4} }))
		r.api(func(w http.ResponseWriter, req *http.Request) {
			time.Sleep(800 * time.Millisecond)
			_, _ = io.WriteString(w, "first ")
			_ = http.NewResponseController(w).Flush()
			time.Sleep(800 * time.Millisecond)
			_, _ = io.WriteString(w, "second")
		})
		if resp, body := r.get("GET", "/v1/models"); resp.StatusCode != 200 || body != "first second" {
			t.Errorf("status %d %q", resp.StatusCode, body)
		}
	})
}

// TestSilence: clients wait ten minutes for a first byte, and a model may think as long in the middle. Every limit but
// that on the first byte, whose default is looked at, is shorter here than the silence.
func TestSilence(t *testing.T) {
	t.Parallel()
	if first := New(Options{}).opt.Timeouts.FirstByte; first < 660*time.Second {
		t.Errorf("the first byte has %v", first)
	}
	const limit, silence = 2 * time.Second, 3 * time.Second
	short := func(o *Options) {
		o.Timeouts = Timeouts{Head: limit, Idle: limit, Body: limit, HalfClosed: limit, Dial: limit, Connect: limit, UpstreamIdle: limit}
	}
	for _, proto := range []string{"http/1.1", "h2"} {
		t.Run("answer, "+proto, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, short)
			r.api(func(w http.ResponseWriter, req *http.Request) {
				_, _ = io.Copy(io.Discard, req.Body)
				time.Sleep(silence)
				w.Header().Set("Content-Type", "text/event-stream")
				_, _ = io.WriteString(w, "data: a\n\n")
				_ = http.NewResponseController(w).Flush()
				time.Sleep(silence)
				_, _ = io.WriteString(w, "data: b\n\n")
			}, proto)
			c := r.dial()
			c.send("POST /v1/messages HTTP/1.1\r\nHost: %s\r\nContent-Length: 2\r\n\r\n{}", r.addr)
			if resp, body, err := c.tryAnswer("POST"); err != nil || resp.StatusCode != 200 || body != "data: a\n\ndata: b\n\n" {
				t.Errorf("%v, %q, %v", resp, body, err)
			}
		})
	}
	t.Run("tunnel", func(t *testing.T) {
		t.Parallel()
		r := newRig(t, short)
		port := r.rawTCP(func(c net.Conn) { _, _ = io.Copy(c, c) })
		r.configure(egressPolicy(port, "plain.example.test"), nil)
		c := r.dial()
		if status := c.connect(fmt.Sprintf("plain.example.test:%d", port)); status != 200 {
			t.Fatalf("status %d", status)
		}
		for range 2 {
			c.send("ping")
			if _, err := io.ReadFull(c.br, make([]byte, 4)); err != nil {
				t.Fatal(err)
			}
			time.Sleep(silence)
		}
	})
}

// flaky is a listener that runs out of descriptors now and then.
type flaky struct {
	net.Listener
	n atomic.Int32
}

func (l *flaky) Accept() (net.Conn, error) {
	switch l.n.Add(1) {
	case 1, 2, 4:
		return nil, &net.OpError{Op: "accept", Err: syscall.EMFILE}
	}
	return l.Listener.Accept()
}

func TestAcceptGoesOn(t *testing.T) {
	r := newRig(t)
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	r.serve("claude", &flaky{Listener: inner})
	r.addr = inner.Addr().String()
	r.configure(oneAgent, nil)
	for range 3 {
		if resp, _ := r.get("GET", "/x"); resp.StatusCode != 403 {
			t.Errorf("status %d", resp.StatusCode)
		}
	}
}

type broken struct{ net.Listener }

func (broken) Accept() (net.Conn, error) { return nil, errors.New("for good") }

func TestServeReturns(t *testing.T) {
	r := newRig(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer l.Close()
	if err := r.srv.Serve("claude", broken{l}); err == nil || err.Error() != "for good" {
		t.Errorf("%v", err)
	}
}

func TestPipelining(t *testing.T) {
	var s seen
	r := newRig(t)
	r.api(s.record)
	c := r.dial()
	var all strings.Builder
	for i := range 20 {
		fmt.Fprintf(&all, "POST /v1/%d HTTP/1.1\r\nHost: %s\r\nContent-Length: 4\r\n\r\nbody", i, r.addr)
	}
	c.send("%s", all.String())
	for i := range 20 {
		if resp, _ := c.answer("POST"); resp.StatusCode != 200 {
			t.Fatalf("%d: status %d", i, resp.StatusCode)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, g := range s.list {
		if g.Target != fmt.Sprint("/v1/", i) || g.Body != "body" {
			t.Errorf("%d: %s %q", i, g.Target, g.Body)
		}
	}
}
