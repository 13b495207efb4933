package proxy

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// scripted is an upstream whose answer the test writes piece by piece.
type scripted struct {
	begin chan *http.Request
	say   chan string
	gone  chan struct{} // the upstream saw its client leave
}

func newScripted() *scripted {
	return &scripted{make(chan *http.Request, 1), make(chan string), make(chan struct{})}
}

func (s *scripted) serve(w http.ResponseWriter, req *http.Request) {
	w.Header().Set("Content-Type", "text/event-stream")
	w.WriteHeader(200)
	_ = http.NewResponseController(w).Flush()
	s.begin <- req
	for {
		select {
		case text, ok := <-s.say:
			if !ok {
				return
			}
			_, _ = io.WriteString(w, text)
			_ = http.NewResponseController(w).Flush()
		case <-req.Context().Done():
			close(s.gone)
			return
		}
	}
}

// TestEventsFlow: the head comes before any event, and each event before the next
// one is made, whatever its size.
func TestEventsFlow(t *testing.T) {
	protocols(t, func(t *testing.T, proto string) {
		s := newScripted()
		r := newRig(t)
		r.api(s.serve, proto)
		c := r.dial()
		c.send("POST /v1/messages HTTP/1.1\r\nHost: %s\r\nContent-Length: 2\r\n\r\n{}", r.addr)
		<-s.begin
		resp, err := http.ReadResponse(c.br, nil)
		must(t, err)
		for _, event := range []string{"event: ping\ndata: {}\n\n", ": comment\n\n", "data: " + strings.Repeat("x", 8<<10) + "\n\n", "data: a\n\ndata: b\n\n", "data: " + strings.Repeat("y", 1<<20) + "\n\n", "data: z\r\n\r\n"} {
			s.say <- event
			got := make([]byte, len(event))
			if _, err := io.ReadFull(resp.Body, got); err != nil || string(got) != event {
				t.Fatalf("event %.20q: %v, got %.20q", event, err, got)
			}
		}
		close(s.say)
		if rest, err := io.ReadAll(resp.Body); err != nil || len(rest) > 0 {
			t.Errorf("end: %q, %v", rest, err)
		}
	})
}

// TestAgentLeaves: an agent that goes away is noticed wherever its request is.
func TestAgentLeaves(t *testing.T) {
	t.Parallel()
	const second = 15 * time.Second // it is one; the machine may be busy, and unnoticed would be for ever
	leave := map[string]func(*raw){"close": func(c *raw) { _ = c.nc.Close() }, "reset": func(c *raw) { reset(c.nc) }}
	for how, f := range leave {
		protocols(t, func(t *testing.T, proto string) {
			t.Run(how+" in a stream", func(t *testing.T) {
				t.Parallel()
				s := newScripted()
				r := newRig(t)
				r.api(s.serve, proto)
				c := r.dial()
				c.send("POST /v1/messages HTTP/1.1\r\nHost: %s\r\nContent-Length: 2\r\n\r\n{}", r.addr)
				<-s.begin
				f(c)
				within(t, second, s.gone)
				if e := r.event(); !strings.Contains(e.Reason, "left") {
					t.Errorf("audit %+v", e)
				}
			})
			t.Run(how+" before the answer", func(t *testing.T) {
				t.Parallel()
				begun, gone := make(chan struct{}), make(chan struct{})
				r := newRig(t)
				r.api(func(w http.ResponseWriter, req *http.Request) {
					_, _ = io.Copy(io.Discard, req.Body)
					close(begun)
					<-req.Context().Done()
					close(gone)
				}, proto)
				c := r.dial()
				c.send("POST /v1/messages HTTP/1.1\r\nHost: %s\r\nContent-Length: 2\r\n\r\n{}", r.addr)
				<-begun
				f(c)
				within(t, second, gone)
				if e := r.event(); !strings.Contains(e.Reason, "left") || e.Status != statusGone {
					t.Errorf("audit %+v", e)
				}
			})
			t.Run(how+" in its body", func(t *testing.T) {
				begun, end := make(chan struct{}), make(chan error, 1)
				r := newRig(t)
				r.api(func(w http.ResponseWriter, req *http.Request) {
					close(begun)
					_, err := io.Copy(io.Discard, req.Body)
					end <- err
				}, proto)
				c := r.dial()
				c.send("POST /v1/messages HTTP/1.1\r\nHost: %s\r\nContent-Length: 1000000\r\n\r\nabc", r.addr)
				<-begun
				f(c)
				select {
				case err := <-end:
					if err == nil {
						t.Error("the upstream took half a body for a whole one")
					}
				case <-time.After(second):
					t.Error("the upstream still waits")
				}
			})
		})
	}
	t.Run("while dialling", func(t *testing.T) {
		dialling := make(chan struct{})
		r := newRig(t, func(o *Options) {
			o.Resolver = resolveFunc(func(ctx context.Context, _, _, _ string, _ uint16) (Pinned, error) {
				close(dialling)
				<-ctx.Done()
				return Pinned{}, ctx.Err()
			})
		})
		r.configure(apiPolicy(9), apiSecrets())
		c := r.dial()
		c.send("GET /v1/models HTTP/1.1\r\nHost: %s\r\n\r\n", r.addr)
		<-dialling
		_ = c.nc.Close()
		if e := r.event(); e.Status != statusGone || e.Duration > second {
			t.Errorf("audit %+v", e)
		}
	})
}

type resolveFunc func(ctx context.Context, agent, rule, host string, port uint16) (Pinned, error)

func (f resolveFunc) Resolve(ctx context.Context, agent, rule, host string, port uint16) (Pinned, error) {
	return f(ctx, agent, rule, host, port)
}

func within(t *testing.T, d time.Duration, c <-chan struct{}) {
	t.Helper()
	select {
	case <-c:
	case <-time.After(d):
		t.Errorf("nothing within %v", d)
	}
}

// TestEarlyAnswer: an upstream may answer before it has read the body.
func TestEarlyAnswer(t *testing.T) {
	protocols(t, func(t *testing.T, proto string) {
		r := newRig(t)
		if proto == "h2" {
			r.api(func(w http.ResponseWriter, req *http.Request) {
				http.Error(w, "too much", http.StatusRequestEntityTooLarge)
			}, proto)
		} else {
			// net/http's server reads on before it answers.
			r.configure(apiPolicy(r.rawOrigin(func(c net.Conn, br *bufio.Reader) {
				if _, err := http.ReadRequest(br); err == nil {
					_, _ = io.WriteString(c, "HTTP/1.1 413 No\r\nContent-Length: 9\r\n\r\ntoo much\n")
					_, _ = io.Copy(io.Discard, c)
				}
			})), apiSecrets())
		}
		for _, announced := range []string{"Content-Length: 100", "Content-Length: 1000000", "Transfer-Encoding: chunked"} {
			t.Run(announced, func(t *testing.T) {
				// The agent waits for the answer before it sends the rest.
				c := r.dial()
				c.send("POST /v1/messages HTTP/1.1\r\nHost: %s\r\n%s\r\n\r\n5\r\nhello\r\n", r.addr, announced)
				if resp, body := c.answer("POST"); resp.StatusCode != 413 || body != "too much\n" {
					t.Errorf("status %d %q", resp.StatusCode, body)
				}
			})
		}
		t.Run("whole", func(t *testing.T) {
			// The agent sends everything before it looks at the answer.
			c := r.dial()
			c.send("POST /v1/messages HTTP/1.1\r\nHost: %s\r\nContent-Length: %d\r\n\r\n%s", r.addr, 4<<20, strings.Repeat("x", 4<<20))
			if resp, body := c.answer("POST"); resp.StatusCode != 413 || body != "too much\n" {
				t.Errorf("status %d %q", resp.StatusCode, body)
			}
		})
	})
}

func TestExpectContinue(t *testing.T) {
	t.Parallel()
	protocols(t, func(t *testing.T, proto string) {
		r := newRig(t)
		r.api(func(w http.ResponseWriter, req *http.Request) {
			if req.URL.Path == "/v1/no" {
				w.WriteHeader(http.StatusExpectationFailed)
				return
			}
			body, _ := io.ReadAll(req.Body)
			fmt.Fprintf(w, "%d bytes", len(body))
		}, proto)
		ask := func(method, path string) *raw {
			c := r.dial()
			c.send("%s %s HTTP/1.1\r\nHost: %s\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n", method, path, r.addr)
			return c
		}
		t.Run("accepted", func(t *testing.T) {
			c := ask("POST", "/v1/messages")
			resp, err := http.ReadResponse(c.br, nil)
			must(t, err)
			if resp.StatusCode != 100 {
				t.Fatalf("status %d", resp.StatusCode)
			}
			c.send("hello")
			if resp, body := c.answer("POST"); resp.StatusCode != 200 || body != "5 bytes" {
				t.Errorf("status %d %q", resp.StatusCode, body)
			}
			c.send("GET /v1/models HTTP/1.1\r\nHost: %s\r\n\r\n", r.addr)
			if resp, _ := c.answer("GET"); resp.StatusCode != 200 {
				t.Errorf("the next request: status %d", resp.StatusCode)
			}
		})
		t.Run("denied by policy", func(t *testing.T) {
			c := ask("DELETE", "/v1/files")
			if resp, _ := c.answer("DELETE"); resp.StatusCode != 403 {
				t.Errorf("status %d", resp.StatusCode)
			}
		})
		if proto == "http/1.1" { // an HTTP/2 upstream is asked only once the body has begun
			t.Run("denied by the upstream", func(t *testing.T) {
				c := ask("POST", "/v1/no")
				resp, err := http.ReadResponse(c.br, nil)
				must(t, err)
				if resp.StatusCode != 417 {
					t.Errorf("status %d", resp.StatusCode)
				}
			})
		}
	})
	t.Run("upstream that never says", func(t *testing.T) {
		r := newRig(t)
		r.configure(apiPolicy(r.rawOrigin(func(c net.Conn, br *bufio.Reader) {
			req, err := http.ReadRequest(br)
			if err != nil {
				return
			}
			body, _ := io.ReadAll(req.Body)
			fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n%d", len(body))
		})), apiSecrets())
		c := r.dial()
		c.send("POST /v1/messages HTTP/1.1\r\nHost: %s\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n", r.addr)
		resp, err := http.ReadResponse(c.br, nil)
		must(t, err)
		if resp.StatusCode != 100 {
			t.Fatalf("status %d", resp.StatusCode)
		}
		c.send("hello")
		if resp, body := c.answer("POST"); resp.StatusCode != 200 || body != "5" {
			t.Errorf("status %d %q", resp.StatusCode, body)
		}
	})
}

// TestLargeBodiesFlat moves 32 MiB both ways and more, and looks at the heap.
func TestLargeBodiesFlat(t *testing.T) {
	protocols(t, func(t *testing.T, proto string) {
		const size = 32 << 20
		r := newRig(t)
		r.api(func(w http.ResponseWriter, req *http.Request) {
			n, err := io.Copy(io.Discard, req.Body)
			if err != nil || n != size {
				t.Errorf("the upstream got %d bytes, %v", n, err)
			}
			w.Header().Set("Content-Type", "application/octet-stream")
			piece := bytes.Repeat([]byte("0123456789abcdef"), 4<<10)
			for n := 0; n < size; n += len(piece) {
				_, _ = w.Write(piece)
			}
		}, proto)
		var before, peak runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		c := r.dial()
		c.send("POST /v1/messages HTTP/1.1\r\nHost: %s\r\nContent-Length: %d\r\n\r\n", r.addr, size)
		piece := bytes.Repeat([]byte("x"), 1<<20)
		for range size / len(piece) {
			_, err := c.nc.Write(piece)
			must(t, err)
		}
		resp, err := http.ReadResponse(c.br, nil)
		must(t, err)
		n, err := io.Copy(io.Discard, resp.Body)
		if n != size || err != nil {
			t.Errorf("%d bytes came back, %v", n, err)
		}
		runtime.ReadMemStats(&peak)
		if grown := int64(peak.HeapSys) - int64(before.HeapSys); grown > 24<<20 {
			t.Errorf("the heap grew by %d MiB for two bodies of 32 MiB", grown>>20)
		}
		e := r.event()
		if e.BytesOut != size || e.BytesIn != size {
			t.Errorf("audit: %d out, %d in", e.BytesOut, e.BytesIn)
		}
	})
}

// TestSlowReader: an agent that does not read holds its upstream back.
func TestSlowReader(t *testing.T) {
	var written atomic.Int64
	stop := make(chan struct{})
	r := newRig(t)
	r.api(func(w http.ResponseWriter, req *http.Request) {
		piece := make([]byte, 64<<10)
		for {
			n, err := w.Write(piece)
			written.Add(int64(n))
			if err != nil {
				close(stop)
				return
			}
		}
	})
	c := r.dial()
	c.send("GET /v1/models HTTP/1.1\r\nHost: %s\r\n\r\n", r.addr)
	var before int64
	eventually(t, "the upstream to be held back", func() bool {
		time.Sleep(300 * time.Millisecond)
		was := before
		before = written.Load()
		return was == before && was > 0
	})
	if before > 64<<20 {
		t.Errorf("%d MiB were taken for a reader that reads nothing", before>>20)
	}
	_ = c.nc.Close()
	within(t, 10*time.Second, stop)
}

// TestManyStreams holds a thousand streams open and sends each an event at a time.
func TestManyStreams(t *testing.T) {
	const streams, events = 1000, 3
	next := make([]chan struct{}, events)
	for i := range next {
		next[i] = make(chan struct{})
	}
	r := newRig(t)
	// Without TLS: two thousand handshakes would be all that is measured.
	o := r.originWith(func(w http.ResponseWriter, req *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		_ = http.NewResponseController(w).Flush()
		for i := range events {
			select {
			case <-next[i]:
			case <-req.Context().Done():
				return
			}
			_, _ = io.WriteString(w, "data: tick\n\n")
			_ = http.NewResponseController(w).Flush()
		}
	}, nil)
	yaml := strings.Replace(limits(apiPolicy(o.port), "connections: 2000"), "upstream: https:", "plaintext: true\n    upstream: http:", 1)
	r.configure(yaml, apiSecrets())
	results := make(chan error, streams)
	opened := make(chan error)
	opening := make(chan struct{}, 16) // handshakes at a time
	for range streams {
		go func() {
			opening <- struct{}{}
			nc, resp, err := r.openStream()
			<-opening
			opened <- err
			if err != nil {
				return
			}
			defer nc.Close()
			body, err := io.ReadAll(resp.Body)
			if err == nil && string(body) != strings.Repeat("data: tick\n\n", events) {
				err = fmt.Errorf("body %q", body)
			}
			results <- err
		}()
	}
	for range streams {
		if err := <-opened; err != nil {
			t.Fatal(err)
		}
	}
	if n := r.srv.Stats().Agents[0].Connections; n != streams {
		t.Errorf("%d connections", n)
	}
	for i := range next {
		close(next[i])
	}
	for range streams {
		if err := <-results; err != nil {
			t.Error(err)
		}
	}
}

// openStream makes a request and reads the head of its answer.
func (r *rig) openStream() (net.Conn, *http.Response, error) {
	nc, err := net.Dial("tcp", r.addr)
	if err != nil {
		return nil, nil, err
	}
	fmt.Fprintf(nc, "GET /v1/models HTTP/1.1\r\nHost: %s\r\n\r\n", r.addr)
	resp, err := http.ReadResponse(bufio.NewReader(nc), nil)
	if err != nil {
		_ = nc.Close()
	}
	return nc, resp, err
}
