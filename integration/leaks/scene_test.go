package leaks

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"exitgate/integration/prober"
	"exitgate/integration/rig"
	"exitgate/integration/rig/rigtest"
)

// Fakes. The first has bytes that differ in the alphabets of base64, and a slash.
const (
	secret      = "FAKE-leaks-?~>?/~?0123456789>~abcdefgh"
	otherSecret = "FAKE-other-9876543210-zyxwvutsrq-ponmlk"
	apiKey      = "sk-ant-api03-FAKE-of-the-first-kind-13579"
	oatKey      = "sk-ant-oat01-FAKE-and-the-second-24680"
	listener    = "127.0.0.1:8080"
	patience    = 20 * time.Second // for what should happen at once, on a busy machine
)

// policy has the same upstream behind routes with credentials of each kind, and behind one with none: the control.
const policy = `version: 1
credentials:
  - {name: bearer, from: "file:/run/secrets/bearer"}
  - {name: basic, from: "file:/run/secrets/other", header: Authorization, format: "basic:user"}
  - {name: api, from: "file:/run/secrets/api", kind: anthropic}
  - {name: oat, from: "file:/run/secrets/oat", kind: anthropic}
routes:
  - {name: bearer, path: /c, upstream: "https://api.example.com", credential: bearer, allow: ["GET /v1/**", "POST /v1/**"], env: ["TOKEN={dummy}"]}
  - {name: basic, path: /basic, upstream: "https://api.example.com", credential: basic, allow: ["GET /v1/**", "POST /v1/**"]}
  - {name: api, path: /api, upstream: "https://api.example.com", credential: api, allow: ["GET /v1/**", "POST /v1/**"]}
  - {name: oat, path: /oat, upstream: "https://api.example.com", credential: oat, allow: ["GET /v1/**", "POST /v1/**"]}
  - {name: open, path: /o, upstream: "https://api.example.com", allow: ["GET /v1/**", "POST /v1/**"]}
`

// answer is what the hostile upstream says to one request, piece by piece.
type answer struct {
	pieces []string
	pause  time.Duration // between pieces; zero: each is its own TLS record all the same
	gate   chan struct{} // the last piece, the end of a chunked body, waits until it is closed; nil: it does not
	end    bool          // the connection ends after it
}

func raw(text string) answer { return answer{pieces: []string{text}} }

// hostile is an upstream that says whatever it is told to, and keeps what it was told.
type hostile struct {
	mu      sync.Mutex // guards following
	answers map[string]answer
	heads   map[string][]string // by the number of the request's case, byte for byte up to the body
	closed  map[string]bool     // the connection broke before the answer was out
}

// serve answers by the number that a request's query has.
func (h *hostile) serve(c net.Conn) {
	defer c.Close()
	var kept bytes.Buffer
	br := bufio.NewReader(io.TeeReader(c, &kept))
	for {
		kept.Reset()
		r, err := http.ReadRequest(br)
		if err != nil {
			return
		}
		io.Copy(io.Discard, r.Body)
		id := r.URL.RawQuery
		head := kept.String()
		for name, values := range r.Trailer { // a trailer is no better than a header
			head += "\r\ntrailer " + name + ": " + strings.Join(values, ",")
		}
		h.mu.Lock()
		a, known := h.answers[id]
		h.heads[id] = append(h.heads[id], head)
		h.mu.Unlock()
		if !known {
			a = raw("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
		}
		for i, p := range a.pieces {
			if i > 0 && a.pause > 0 {
				time.Sleep(a.pause)
			}
			if i == len(a.pieces)-1 && a.gate != nil {
				<-a.gate
			}
			if _, err := io.WriteString(c, p); err != nil {
				h.mu.Lock()
				h.closed[id] = true
				h.mu.Unlock()
				return
			}
		}
		if a.end {
			return
		}
	}
}

// will makes the upstream answer the request of the returned number so.
func (h *hostile) will(a answer) string {
	h.mu.Lock()
	defer h.mu.Unlock()
	id := fmt.Sprint("case", len(h.answers))
	h.answers[id] = a
	return id
}

// got is the heads that arrived under a number.
func (h *hostile) got(id string) []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]string(nil), h.heads[id]...)
}

// scene is a box with the binary in it, a hostile upstream, and another host that nobody may reach.
type scene struct {
	*rig.Box
	w    *rig.World
	api  *hostile
	evil *rig.Upstream
}

func newScene(t *testing.T, policy string, change ...func(*rig.Config)) *scene {
	t.Helper()
	w := rigtest.World(t)
	s := &scene{w: w, api: &hostile{answers: map[string]answer{}, heads: map[string][]string{}, closed: map[string]bool{}}}
	if _, _, err := w.Faulty("api.example.com", 0, false, s.api.serve); err != nil {
		t.Fatal(err)
	}
	s.evil = rigtest.HTTPS(t, w, "evil.example", rig.Server{})
	cfg := rig.Config{World: w, Binary: program, Policy: policy, Env: []string{"EXITGATE_METRICS=unix:/run/metrics.sock"}, Files: map[string]rig.File{
		"/run/secrets/bearer": {Data: secret + "\n", Mode: 0o400}, "/run/secrets/other": {Data: otherSecret, Mode: 0o400},
		"/run/secrets/api": {Data: apiKey, Mode: 0o400}, "/run/secrets/oat": {Data: oatKey, Mode: 0o400},
	}}
	for _, f := range change {
		f(&cfg)
	}
	s.Box = rigtest.Start(t, cfg)
	if err := s.Agent().Ready(patience); err != nil {
		t.Fatal(err)
	}
	return s
}

// ask sends a GET for a case on a route and returns everything that came back, byte for byte.
func (s *scene) ask(route, id string) string {
	return s.send("GET " + route + "/v1/x?" + id + " HTTP/1.1\r\nHost: " + listener + "\r\nConnection: close\r\n\r\n")
}

func (s *scene) send(request string) string {
	r := s.Agent().Do(prober.Probe{Op: "http", Address: listener, Data: []byte(request), Keep: true, Timeout: patience})
	return string(r.Data)
}

// read is what a client makes of what came back: the answer without its framing, trailers at the end.
func read(answer string) string {
	br := bufio.NewReader(strings.NewReader(answer))
	for {
		r, err := http.ReadResponse(br, nil)
		if err != nil {
			return ""
		}
		body, _ := io.ReadAll(r.Body)
		if r.StatusCode >= 200 {
			return fmt.Sprint(r.Header) + string(body) + fmt.Sprint(r.Trailer)
		}
	}
}

// status is the code of the last answer in what came back that is not an interim one.
func status(answer string) string {
	for rest := answer; strings.HasPrefix(rest, "HTTP/1.1 "); {
		code := rest[9:min(12, len(rest))]
		if !strings.HasPrefix(code, "1") {
			return code
		}
		_, rest, _ = strings.Cut(rest, "\r\n\r\n")
	}
	return "nothing"
}

// ok is a whole answer with more fields.
func ok(fields, body string) string {
	return fmt.Sprintf("HTTP/1.1 200 OK\r\n%sContent-Length: %d\r\n\r\n%s", fields, len(body), body)
}

// chunked is a whole answer in chunks.
func chunked(fields string, chunks ...string) []string {
	all := []string{"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n" + fields + "\r\n"}
	for _, c := range chunks {
		all = append(all, fmt.Sprintf("%x\r\n%s\r\n", len(c), c))
	}
	return append(all, "0\r\n\r\n")
}

// eventually waits until f holds.
func eventually(f func() bool) bool { return rig.Eventually(patience, f) }

// parallel calls f for each, a few at once.
func parallel[T any](list []T, f func(T)) {
	var wg sync.WaitGroup
	places := make(chan struct{}, 8)
	for _, x := range list {
		places <- struct{}{}
		wg.Go(func() {
			defer func() { <-places }()
			f(x)
		})
	}
	wg.Wait()
}
