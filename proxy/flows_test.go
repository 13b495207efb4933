package proxy

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// twoHosts is a policy with a route and an egress host, either of which may be left out.
func twoHosts(api, plain int, route, egress bool) string {
	y := oneAgent
	if route {
		y = apiPolicy(api)
	}
	if egress {
		y += fmt.Sprintf("egress:\n  - {host: plain.example.test, ports: [%d], addresses: [127.0.0.0/8]}\n", plain)
	}
	return y
}

// TestRevocation: a flow whose grant is gone is reset at once; its neighbours and
// their bytes go on.
func TestRevocation(t *testing.T) {
	protocols(t, func(t *testing.T, proto string) {
		s := newScripted()
		r := newRig(t)
		o := r.origin(s.serve, proto)
		echo := r.rawTCP(func(c net.Conn) { _, _ = io.Copy(c, c) })
		secrets := apiSecrets()
		r.configure(twoHosts(o.port, echo, true, true), secrets)

		event := r.dial()
		event.send("POST /v1/messages HTTP/1.1\r\nHost: %s\r\nContent-Length: 2\r\n\r\n{}", r.addr)
		<-s.begin
		resp, err := http.ReadResponse(event.br, nil)
		must(t, err)
		tunnel := r.dial()
		if status := tunnel.connect(fmt.Sprintf("plain.example.test:%d", echo)); status != 200 {
			t.Fatalf("status %d", status)
		}
		ping := func() error {
			tunnel.send("ping")
			_, err := io.ReadFull(tunnel.br, make([]byte, 4))
			return err
		}
		must(t, ping())

		// The same again, with a change that concerns neither.
		r.configure(twoHosts(o.port, echo, true, true)+"  - {host: new.example.test}\n", secrets)
		must(t, ping())
		s.say <- "data: a\n\n"
		if _, err := io.ReadFull(resp.Body, make([]byte, 9)); err != nil {
			t.Fatal(err)
		}

		r.configure(twoHosts(o.port, echo, true, false), secrets)
		begun := time.Now()
		if _, err := tunnel.br.ReadByte(); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("the tunnel ended with %v, want a reset", err)
		}
		if took := time.Since(begun); took > 15*time.Second {
			t.Errorf("it took %v", took)
		}
		e, other := r.event(), r.event() // in either order
		if e.Decision == "allow" {
			e, other = other, e
		}
		if e.ID == "" || e.ID != other.ID {
			t.Errorf("the two lines have the ids %q and %q", e.ID, other.ID)
		}
		if e.Decision != "deny" || e.Event != "connect" || e.Host != "plain.example.test" || e.Generation != 3 || !strings.HasPrefix(e.Reason, "live flow reset") {
			t.Errorf("audit of the revocation: %+v", e)
		}
		if other.Decision != "allow" || other.BytesIn == 0 || !strings.Contains(other.Reason, "grant is gone") {
			t.Errorf("audit of the tunnel: %+v", other)
		}
		s.say <- "data: b\n\n"
		if _, err := io.ReadFull(resp.Body, make([]byte, 9)); err != nil {
			t.Errorf("the neighbour: %v", err)
		}

		r.configure(twoHosts(o.port, echo, false, true), nil)
		if _, err := io.ReadAll(resp.Body); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("the stream ended with %v, want a reset", err)
		}
		within(t, 5*time.Second, s.gone)
		eventually(t, "pins to be released", func() bool { return r.names.held() == 0 })
	})
}

// TestRouteMoves: a flow to an upstream that its route does not lead to any more ends.
func TestRouteMoves(t *testing.T) {
	s := newScripted()
	r := newRig(t)
	o := r.origin(s.serve)
	r.configure(apiPolicy(o.port), apiSecrets())
	c := r.dial()
	c.send("GET /v1/models HTTP/1.1\r\nHost: %s\r\n\r\n", r.addr)
	<-s.begin
	if _, err := http.ReadResponse(c.br, nil); err != nil {
		t.Fatal(err)
	}
	r.configure(strings.Replace(apiPolicy(o.port), "api.example.test", "other.example.test", 1), apiSecrets())
	if _, err := c.br.ReadByte(); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("%v", err)
	}
	within(t, 5*time.Second, s.gone)
}

// TestExpiry: a grant ends on time, for new requests and for live ones.
func TestExpiry(t *testing.T) {
	t.Parallel()
	s := newScripted()
	r := newRig(t)
	o := r.origin(s.serve)
	at := time.Now().Add(2500 * time.Millisecond).UTC()
	r.configure(apiPolicy(o.port)+"    expires: "+at.Format("2006-01-02T15:04:05.999999999Z")+"\n", apiSecrets())
	c := r.dial()
	c.send("GET /v1/models HTTP/1.1\r\nHost: %s\r\n\r\n", r.addr)
	<-s.begin
	if _, err := http.ReadResponse(c.br, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := c.br.ReadByte(); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("%v", err)
	}
	if now := time.Now(); now.Before(at) || now.After(at.Add(15*time.Second)) {
		t.Errorf("ended %v after its time", now.Sub(at))
	}
	if resp, body := r.get("GET", "/v1/models"); resp.StatusCode != 403 || !strings.Contains(body, "expired") {
		t.Errorf("status %d %s", resp.StatusCode, body)
	}
}

// TestExpiryByTheClock: a clock that is set ahead, as after the machine's sleep, ends the grants that end meanwhile.
func TestExpiryByTheClock(t *testing.T) {
	t.Parallel()
	var ahead atomic.Int64
	s := newScripted()
	r := newRig(t, func(o *Options) { o.Now = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) } })
	o := r.origin(s.serve)
	r.configure(apiPolicy(o.port)+"    expires: "+time.Now().Add(time.Hour).UTC().Format(time.RFC3339)+"\n", apiSecrets())
	c := r.dial()
	c.send("GET /v1/models HTTP/1.1\r\nHost: %s\r\n\r\n", r.addr)
	<-s.begin
	if _, err := http.ReadResponse(c.br, nil); err != nil {
		t.Fatal(err)
	}
	for _, step := range []time.Duration{50 * time.Minute, 2 * time.Hour} {
		ahead.Store(int64(step))
		_ = c.nc.SetReadDeadline(time.Now().Add(2 * time.Second))
		_, err := c.br.ReadByte()
		if ended := errors.Is(err, syscall.ECONNRESET); ended != (step > time.Hour) {
			t.Errorf("%v ahead: %v", step, err)
		}
	}
}

// TestConfigureIsAtomic swaps two policies, each with an upstream and a credential
// of its own, under load: no request may see a mixture, and none may fail.
func TestConfigureIsAtomic(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	var origins [2]*origin
	keys := [2]string{"sk-ant-api03-FAKE-zero-0123456789abcdef", "sk-ant-api03-FAKE-one-0123456789abcdef"}
	var mixed, served atomic.Int64
	for i := range origins {
		origins[i] = r.origin(func(w http.ResponseWriter, req *http.Request) {
			if req.Header.Get("X-Api-Key") != keys[i] || req.Header.Get("X-Policy") != fmt.Sprint(i) {
				mixed.Add(1)
			}
			served.Add(1)
		})
	}
	configure := func(i int) {
		y := apiPolicy(origins[i].port) + fmt.Sprintf("    headers: [{add: \"X-Policy: %d\"}]\n", i)
		r.configure(y, map[string]Secret{"anthropic": {Value: []byte(keys[i])}})
	}
	configure(0)
	stop := make(chan struct{})
	var clients sync.WaitGroup
	for range 8 {
		clients.Add(1)
		go func() {
			defer clients.Done()
			var nc net.Conn
			var br *bufio.Reader
			for {
				select {
				case <-stop:
					if nc != nil {
						_ = nc.Close()
					}
					return
				default:
				}
				if nc == nil {
					nc, _ = net.Dial("tcp", r.addr)
					br = bufio.NewReader(nc)
				}
				fmt.Fprintf(nc, "GET /v1/models HTTP/1.1\r\nHost: %s\r\n\r\n", r.addr)
				resp, err := http.ReadResponse(br, nil)
				if err != nil { // reset: its upstream is not the route's any more
					_ = nc.Close()
					nc = nil
					continue
				}
				_, _ = io.Copy(io.Discard, resp.Body)
				if resp.StatusCode != 200 {
					t.Errorf("status %d", resp.StatusCode)
				}
			}
		}()
	}
	for i := 0; i < 30; i++ {
		configure((i + 1) % 2)
		want := served.Load() + 10
		eventually(t, "requests", func() bool { return served.Load() > want })
	}
	close(stop)
	clients.Wait()
	if mixed.Load() > 0 {
		t.Errorf("%d of %d requests saw a mixture", mixed.Load(), served.Load())
	}
}

// TestRotation: a new secret is used at once, and the old one is scrubbed still.
func TestRotation(t *testing.T) {
	const second = "sk-ant-api03-FAKEnewFAKEnewFAKEnew-9876543210"
	r := newRig(t)
	o := r.origin(func(w http.ResponseWriter, req *http.Request) {
		fmt.Fprintf(w, "now %s, was %s", req.Header.Get("X-Api-Key"), apiKey)
	})
	r.configure(apiPolicy(o.port), apiSecrets())
	_, first := r.get("GET", "/v1/models")
	r.configure(apiPolicy(o.port), map[string]Secret{"anthropic": {Value: []byte(second)}})
	_, later := r.get("GET", "/v1/models")
	for _, body := range []string{first, later} {
		if strings.Contains(body, apiKey) || strings.Contains(body, second) || !strings.HasPrefix(body, "now ") {
			t.Errorf("body %q", body)
		}
	}
	if r.names.count() != 1 {
		t.Error("a new secret alone needs no new connection")
	}
}

// TestRotationInFlight: what is under way keeps the credential it was made with, is
// not disturbed, and shows the new one as little as the old.
func TestRotationInFlight(t *testing.T) {
	const second = "sk-ant-api03-FAKEnewFAKEnewFAKEnew-9876543210"
	protocols(t, func(t *testing.T, proto string) {
		s := newScripted()
		waiting, answer := make(chan string, 1), make(chan struct{})
		resolve, resolving := make(chan struct{}), make(chan struct{})
		begun := sync.OnceFunc(func() { close(resolving) })
		var r *rig
		r = newRig(t, func(o *Options) {
			o.Resolver = resolveFunc(func(ctx context.Context, agent, rule, host string, port uint16) (Pinned, error) {
				if host == "other.example.test" {
					begun()
					<-resolve
				}
				return r.names.Resolve(ctx, agent, rule, host, port)
			})
		})
		slow := r.origin(func(w http.ResponseWriter, req *http.Request) {
			waiting <- req.Header.Get("X-Api-Key")
			<-answer
			w.Header().Set("X-Echo", second)
			_, _ = io.WriteString(w, "also "+second)
		}, proto)
		o := r.origin(s.serve, proto)
		yaml := apiPolicy(o.port) + fmt.Sprintf("  - {name: slow, path: /slow, upstream: \"https://api.example.test:%d\", credential: anthropic, addresses: [127.0.0.0/8], allow: [GET /**]}\n", slow.port) +
			fmt.Sprintf("  - {name: late, path: /late, upstream: \"https://other.example.test:%d\", credential: anthropic, addresses: [127.0.0.0/8], allow: [GET /**]}\n", slow.port)
		r.configure(yaml, apiSecrets())
		ask := func(path string) *raw {
			c := r.dial()
			c.send("GET %s HTTP/1.1\r\nHost: %s\r\n\r\n", path, r.addr)
			return c
		}
		stream := ask("/v1/models")
		if got := (<-s.begin).Header.Get("X-Api-Key"); got != apiKey {
			t.Fatalf("the stream's credential is %q", got)
		}
		resp, err := http.ReadResponse(stream.br, nil)
		must(t, err)
		unanswered := ask("/slow/x")
		if got := <-waiting; got != apiKey {
			t.Errorf("before the change: %q", got)
		}
		dialling := ask("/late/x")
		<-resolving

		r.configure(yaml, map[string]Secret{"anthropic": {Value: []byte(second)}})
		close(resolve)
		if got := <-waiting; got != apiKey {
			t.Errorf("a request that was decided on before the change: %q", got)
		}
		fresh := ask("/slow/y")
		if got := <-waiting; got != second {
			t.Errorf("after the change: %q", got)
		}
		close(answer)
		for name, c := range map[string]*raw{"unanswered": unanswered, "dialling": dialling, "fresh": fresh} {
			resp, body := c.answer("GET")
			if resp.StatusCode != 200 || leaks(body+resp.Header.Get("X-Echo"), second) || !strings.HasPrefix(body, "also ***") {
				t.Errorf("%s: status %d %q %v", name, resp.StatusCode, body, resp.Header)
			}
		}
		event := "data: " + second + " " + apiKey + "\n\n"
		s.say <- event
		got := make([]byte, len(event))
		if _, err := io.ReadFull(resp.Body, got); err != nil || leaks(string(got), second) || leaks(string(got), apiKey) || !strings.HasPrefix(string(got), "data: ***") {
			t.Errorf("the stream goes on with %q, %v", got, err)
		}
		close(s.say)
		if rest, err := io.ReadAll(resp.Body); err != nil || len(rest) > 0 {
			t.Errorf("the stream's end: %q, %v", rest, err)
		}
	})
}

func TestRememberedSecretsAreBounded(t *testing.T) {
	r := newRig(t)
	o := r.origin(func(w http.ResponseWriter, req *http.Request) { _, _ = io.WriteString(w, apiKey) })
	yaml := strings.Replace(apiPolicy(o.port), "routes:", "  - {name: rotating, from: \"file:/run/secrets/r\", header: X-Rotating}\nroutes:", 1)
	for i := range maxKnown + 20 {
		r.configure(yaml, map[string]Secret{"anthropic": {Value: []byte(apiKey)}, "rotating": {Value: fmt.Appendf(nil, "FAKE-rotating-%06d", i)}})
	}
	if n := len(r.srv.known); n != maxKnown {
		t.Errorf("%d secrets are remembered", n)
	}
	if _, body := r.get("GET", "/v1/models"); strings.Contains(body, apiKey) {
		t.Error("a current secret was forgotten")
	}
}

// TestRetiredBeforeStart: what was retired before this process began is scrubbed,
// the latest of it where there is too much, and another reload changes nothing.
func TestRetiredBeforeStart(t *testing.T) {
	r := newRig(t)
	var retired [][]byte
	for i := range 2 * maxKnown {
		retired = append(retired, fmt.Appendf(nil, "FAKE-retired-%06d", i))
	}
	last := string(retired[len(retired)-1])
	o := r.origin(func(w http.ResponseWriter, req *http.Request) { _, _ = io.WriteString(w, last+" "+apiKey) })
	for gen := range uint64(3) {
		must(t, r.srv.Configure(Config{Policy: load(t, apiPolicy(o.port)), Generation: gen, Secrets: apiSecrets(), Retired: retired}))
		if _, body := r.get("GET", "/v1/models"); strings.Contains(body, last) || strings.Contains(body, apiKey) {
			t.Errorf("generation %d: %q", gen, body)
		}
	}
	if a, b := r.srv.snap.Load(), r.srv.known; len(b) > maxKnown || a.secrets == nil {
		t.Errorf("%d secrets are known", len(b))
	}
}

// TestUnixSocket: only the agent's uid is served.
func TestUnixSocket(t *testing.T) {
	var s seen
	r := newRig(t)
	o := r.origin(s.record)
	path := filepath.Join(t.TempDir(), "agent.sock")
	l, err := net.Listen("unix", path)
	must(t, err)
	r.serve("claude", l)
	for _, tc := range []struct {
		uid    int
		status int
	}{{os.Getuid() + 1, 403}, {os.Getuid(), 200}} {
		if tc.uid == 0 {
			continue // an agent is never root; see below
		}
		r.configure(strings.Replace(apiPolicy(o.port), "uid: 1000", fmt.Sprint("uid: ", tc.uid), 1), apiSecrets())
		nc, err := net.Dial("unix", path)
		must(t, err)
		fmt.Fprintf(nc, "GET /v1/models HTTP/1.1\r\nHost: anything\r\n\r\n")
		resp, err := http.ReadResponse(bufio.NewReader(nc), nil)
		if err != nil || resp.StatusCode != tc.status {
			t.Errorf("uid %d: %v, %v", tc.uid, resp, err)
		}
		_ = nc.Close()
		e := <-r.events
		if c := <-r.conns; e.Status != tc.status || c.Peer == nil || int(c.Peer.UID) != os.Getuid() || c.Peer.PID != os.Getpid() {
			t.Errorf("audit %+v from %+v", e, c.Peer)
		}
	}
}

// TestUnixSocketOfRoot runs the allowed case as root, where an agent's uid cannot be
// ours: the peer is a child with that uid.
func TestUnixSocketAsAgent(t *testing.T) {
	if os.Getuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("needs root")
		}
		t.Skip("needs root")
	}
	var s seen
	r := newRig(t)
	o := r.origin(s.record)
	dir, err := os.MkdirTemp("", "proxy-test-")
	must(t, err)
	defer os.RemoveAll(dir)
	must(t, os.Chmod(dir, 0o755))
	path := filepath.Join(dir, "agent.sock")
	l, err := net.Listen("unix", path)
	must(t, err)
	must(t, os.Chmod(path, 0o666))
	r.serve("claude", l)
	r.configure(strings.Replace(apiPolicy(o.port), "uid: 1000", "uid: 54321", 1), apiSecrets())
	for uid, want := range map[uint32]string{54321: "200", 54322: "403"} {
		var out bytes.Buffer
		proc := curl(uid, path, &out)
		if err := proc.Run(); err != nil {
			t.Fatalf("curl: %v", err)
		}
		if out.String() != want {
			t.Errorf("uid %d: status %s, want %s", uid, out.String(), want)
		}
	}
}

func TestShutdown(t *testing.T) {
	s := newScripted()
	r := newRig(t)
	r.api(s.serve)
	idle := r.dial()
	idle.send("DELETE /v1/files HTTP/1.1\r\nHost: %s\r\n\r\n", r.addr)
	if resp, _ := idle.answer("DELETE"); resp.StatusCode != 403 {
		t.Fatalf("status %d", resp.StatusCode)
	}
	busy := r.dial()
	busy.send("GET /v1/models HTTP/1.1\r\nHost: %s\r\n\r\n", r.addr)
	<-s.begin
	ended := make(chan error, 1)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		ended <- r.srv.Shutdown(ctx)
	}()
	if !idle.closed() {
		t.Error("the idle connection stays open")
	}
	if _, err := net.Dial("tcp", r.addr); err == nil {
		t.Error("new connections are accepted")
	}
	s.say <- "data: last\n\n"
	close(s.say)
	if resp, body := busy.answer("GET"); resp.StatusCode != 200 || body != "data: last\n\n" {
		t.Errorf("status %d %q", resp.StatusCode, body)
	}
	if err := <-ended; err != nil {
		t.Errorf("Shutdown: %v", err)
	}
}

func TestShutdownCutsWhatStays(t *testing.T) {
	s := newScripted()
	r := newRig(t)
	r.api(s.serve)
	c := r.dial()
	c.send("GET /v1/models HTTP/1.1\r\nHost: %s\r\n\r\n", r.addr)
	<-s.begin
	if _, err := http.ReadResponse(c.br, nil); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if err := r.srv.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Shutdown: %v", err)
	}
	if _, err := c.br.ReadByte(); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the stream ended with %v", err)
	}
	within(t, 5*time.Second, s.gone)
}

func TestNoPolicy(t *testing.T) {
	r := newRig(t)
	if resp, body := r.get("GET", "/v1/models"); resp.StatusCode != 503 || !strings.Contains(body, "no policy") {
		t.Errorf("status %d %s", resp.StatusCode, body)
	}
	if err := r.srv.Configure(Config{}); err == nil {
		t.Error("a configuration without a policy was taken")
	}
	var s seen
	o := r.origin(s.record)
	r.configure(strings.Replace(apiPolicy(o.port), "name: claude", "name: somebody", 1), apiSecrets())
	if resp, _ := r.get("GET", "/v1/models"); resp.StatusCode != 403 {
		t.Errorf("an agent that the policy does not know: status %d", resp.StatusCode)
	}
	r.configure(apiPolicy(o.port), apiSecrets())
	if resp, _ := r.get("GET", "/v1/models"); resp.StatusCode != 200 {
		t.Errorf("control: status %d", resp.StatusCode)
	}
}

// TestAgentsApart: each listener has its own routes, egress and limits.
func TestAgentsApart(t *testing.T) {
	var s seen
	r := newRig(t)
	o := r.origin(s.record)
	port := r.rawTCP(func(c net.Conn) { _, _ = io.Copy(c, c) })
	other := r.listen("codex").Addr().String()
	yaml := strings.Replace(limits(apiPolicy(o.port), "requests_per_minute: 5, connections: 1"), "credentials:", "  - {name: codex, uid: 1001, listen: \"127.0.0.1:8081\"}\ncredentials:", 1) +
		fmt.Sprintf("    agents: [claude]\negress:\n  - {host: plain.example.test, ports: [%d], addresses: [127.0.0.0/8], agents: [codex]}\n", port)
	r.configure(yaml, apiSecrets())
	ask := func(addr, request string) int {
		t.Helper()
		nc, err := net.Dial("tcp", addr)
		must(t, err)
		fmt.Fprintf(nc, "%s\r\nConnection: close\r\n\r\n", request)
		resp, err := http.ReadResponse(bufio.NewReader(nc), &http.Request{Method: strings.Fields(request)[0]})
		must(t, err)
		_ = nc.Close()
		eventually(t, "the connection to be forgotten", func() bool {
			for _, a := range r.srv.Stats().Agents {
				if a.Connections > 0 {
					return false
				}
			}
			return true
		})
		return resp.StatusCode
	}
	models := func(addr string) string { return "GET /v1/models HTTP/1.1\r\nHost: " + addr }
	tunnel := fmt.Sprintf("CONNECT plain.example.test:%[1]d HTTP/1.1\r\nHost: plain.example.test:%[1]d", port)
	for _, tc := range []struct {
		name, addr, request string
		want                int
	}{
		{"its route", r.addr, models(r.addr), 200}, {"the other's route", other, models(other), 403},
		{"its host", other, tunnel, 200}, {"the other's host", r.addr, tunnel, 403},
	} {
		if got := ask(tc.addr, tc.request); got != tc.want {
			t.Errorf("%s: status %d, want %d", tc.name, got, tc.want)
		}
	}
	held := r.dial() // the one connection that claude may have
	eventually(t, "it to be counted", func() bool {
		return r.srv.Stats().Agents[0].Connections == 1 || r.srv.Stats().Agents[1].Connections == 1
	})
	if resp, _ := r.get("GET", "/v1/models"); resp.StatusCode != 429 {
		t.Errorf("a second connection of claude's: status %d", resp.StatusCode)
	}
	for range 2 { // at once
		nc, err := net.Dial("tcp", other)
		must(t, err)
		defer nc.Close()
		fmt.Fprintf(nc, "%s\r\n\r\n", models(other))
		if resp, err := http.ReadResponse(bufio.NewReader(nc), nil); err != nil || resp.StatusCode != 403 {
			t.Errorf("codex meets claude's limit of connections: %v, %v", resp, err)
		}
		_ = nc.Close()
	}
	_ = held.nc.Close()
	codes := map[int]int{}
	for range 6 {
		codes[ask(r.addr, models(r.addr))]++
	}
	if codes[429] == 0 || codes[200] == 0 {
		t.Errorf("claude's requests: %v", codes)
	}
	for range 6 {
		if got := ask(other, tunnel); got != 200 {
			t.Errorf("codex meets claude's limit of requests: status %d", got)
		}
	}
}
