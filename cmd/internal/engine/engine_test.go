package engine

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"exitgate/cmd/internal/secrets"
	"exitgate/cmd/internal/wire"
	"exitgate/firewall"
	"exitgate/policy"
	"exitgate/proxy"

	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// world is an engine over a fake kernel, with the real proxy running in this process in the place of its own.
type world struct {
	*Engine
	t    *testing.T
	fake *firewall.Fake
	dir  string
	port uint16

	mu      sync.Mutex // guards the following
	proxies []*process
	events  []policy.Event
	refuse  bool              // the next proxy refuses its policy
	hold    chan struct{}     // not nil: the next proxy takes its policy when this is closed
	stall   chan struct{}     // not nil: the proxy that is asked for a sign of life reads nothing until this is closed
	taken   []*wire.Configure // what proxies took
}

// process is a proxy as one that could be killed.
type process struct {
	conn  net.Conn
	done  chan struct{}
	links map[wire.Listener]net.Listener
}

func (p *process) PID() int              { return 4242 }
func (p *process) Done() <-chan struct{} { return p.done }
func (p *process) String() string        { return "killed by SIGKILL" }
func (p *process) Kill()                 { p.conn.Close() }

func (w *world) spawn(guest *os.File) (Process, error) {
	// The engine closes guest: a second descriptor, as a child process has one.
	own, err := duplicate(guest)
	if err != nil {
		return nil, err
	}
	conn, err := wire.FromFile(own)
	if err != nil {
		return nil, err
	}
	p := &process{conn: conn, done: make(chan struct{}), links: make(map[wire.Listener]net.Listener)}
	g := wire.NewGuest(conn)
	server := proxy.New(proxy.Options{Resolver: g, Audit: g.Audit, Opened: g.Opened, Refresh: g.Refresh})
	w.mu.Lock()
	w.proxies = append(w.proxies, p)
	refuse, hold := w.refuse, w.hold
	w.mu.Unlock()
	go func() {
		_ = g.Serve(wire.Commands{
			Configure: func(c *wire.Configure, loaded *policy.Policy, files []*os.File) error {
				if hold != nil {
					<-hold
				}
				err := p.configure(server, c, loaded, files, refuse)
				if err == nil {
					w.mu.Lock()
					defer w.mu.Unlock()
					w.taken = append(w.taken, c)
				}
				return err
			},
			Stats: func() proxy.Stats {
				w.mu.Lock()
				stall := w.stall
				w.mu.Unlock()
				if stall != nil {
					<-stall
				}
				return server.Stats()
			},
			Drain: func() { conn.Close() },
		})
		for _, l := range p.links {
			l.Close()
		}
		_ = server.Shutdown(context.Background())
		close(p.done)
	}()
	return p, nil
}

func (p *process) configure(s *proxy.Server, c *wire.Configure, loaded *policy.Policy, files []*os.File, refuse bool) error {
	if refuse && c.Generation > 1 {
		return errors.New("refused")
	}
	config := proxy.Config{Policy: loaded, Generation: c.Generation, Secrets: make(map[string]proxy.Secret)}
	for name, v := range c.Secrets {
		config.Secrets[name] = proxy.Secret{Value: v.Value, Broken: v.Broken}
	}
	if err := s.Configure(config); err != nil {
		return err
	}
	for i, name := range c.Listeners {
		l, err := wire.Listen(files[i])
		if err != nil {
			return err
		}
		if p.links[name] != nil {
			l.Close()
			continue
		}
		p.links[name] = l
		go s.Serve(name.Agent, l)
	}
	return nil
}

func duplicate(f *os.File) (*os.File, error) {
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	return c.(*net.UnixConn).File()
}

// newWorld starts an engine with a policy, whose %d is a free port.
func newWorld(t *testing.T, text string) *world {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := uint16(l.Addr().(*net.TCPAddr).Port)
	l.Close()
	w := &world{t: t, fake: firewall.NewFake(), dir: t.TempDir(), port: port}
	for name, content := range map[string]string{"etc/hosts": "192.0.2.7 one.example.com\n192.0.2.8 two.example.com\n",
		"etc/resolv.conf": "nameserver 192.0.2.53\n", "etc/passwd": "root:x:0:0::/root:/bin/sh\n", "etc/group": ""} {
		w.write(name, content)
	}
	fence := firewall.NewWriter(w.fake)
	if err := fence.Install(firewall.Contents{}); err != nil {
		t.Fatal(err)
	}
	w.policy(text)
	w.Engine = New(Options{
		Mode: "init", PolicyFile: filepath.Join(w.dir, "policy.yaml"), ReadPolicy: os.ReadFile, Fence: fence,
		Secrets: secrets.Options{Root: w.dir}, FileRoot: w.dir,
		Audit: func(e policy.Event) { w.mu.Lock(); defer w.mu.Unlock(); w.events = append(w.events, e) },
		Spawn: w.spawn,
		Listen: func(a policy.Agent, addr netip.AddrPort) (net.Listener, error) {
			return net.Listen("tcp", addr.String())
		},
		Log: t.Logf, Lost: func(why string) { t.Errorf("lost: %s", why) },
	})
	t.Cleanup(func() { fence.Close() })
	return w
}

func (w *world) start() {
	w.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	if err := w.Start(ctx); err != nil {
		cancel()
		w.t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { w.Run(ctx); close(done) }()
	w.MarkReady()
	w.t.Cleanup(func() { w.Stop(ctx); cancel(); <-done })
}

func (w *world) write(name, content string) {
	w.t.Helper()
	path := filepath.Join(w.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		w.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) policy(text string) {
	w.t.Helper()
	w.write("policy.yaml", fmt.Sprintf("version: 1\nagents: [{name: claude, uid: 1000, listen: \"127.0.0.1:%d\"}]\n%s", w.port, text))
}

// ask sends CONNECT and returns the status code.
func (w *world) ask(host string) int {
	w.t.Helper()
	c, err := net.DialTimeout("tcp", fmt.Sprintf("127.0.0.1:%d", w.port), 5*time.Second)
	if err != nil {
		w.t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	fmt.Fprintf(c, "CONNECT %s:443 HTTP/1.1\r\nHost: %s:443\r\n\r\n", host, host)
	r, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		w.t.Fatalf("CONNECT %s: %v", host, err)
	}
	defer r.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(r.Body, 4096))
	return r.StatusCode
}

func (w *world) eventually(what string, cond func() bool) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	for !cond() {
		select {
		case <-ctx.Done():
			w.t.Fatalf("%s: not within 10 s", what)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

const oneHost = "egress: [{host: one.example.com, addresses: [192.0.2.0/24]}]\n"
const twoHosts = "egress: [{host: one.example.com, addresses: [192.0.2.0/24]}, {host: two.example.com, addresses: [192.0.2.0/24]}]\n"

func (w *world) pinned(addr string) bool {
	return slices.ContainsFunc(w.Fence.Contents().Egress, func(e firewall.Endpoint) bool { return e.Addr.String() == addr })
}

func TestReloadAddsAndRevokes(t *testing.T) {
	w := newWorld(t, oneHost)
	w.start()
	if got := w.ask("two.example.com"); got != 403 {
		t.Fatalf("a host that is not in the policy: %d, want 403", got)
	}
	w.policy(twoHosts)
	r, err := w.Reload(context.Background(), "test")
	if err != nil || r.Generation != 2 || len(r.Widens) != 1 || len(r.Narrows) != 0 {
		t.Fatalf("Reload = %+v, %v", r, err)
	}
	// 192.0.2.8 leads nowhere, so the answer is the gateway's, but the policy and the pin were asked.
	if got := w.ask("two.example.com"); got == 403 {
		t.Errorf("an added host is still refused")
	}
	w.eventually("the address of the added host is in the set", func() bool { return w.pinned("192.0.2.8") })

	w.policy(oneHost)
	if r, err = w.Reload(context.Background(), "test"); err != nil || r.Generation != 3 || len(r.Narrows) != 1 {
		t.Fatalf("Reload = %+v, %v", r, err)
	}
	if w.pinned("192.0.2.8") {
		t.Errorf("the address of the revoked host is still in the set")
	}
	if got := w.ask("two.example.com"); got != 403 {
		t.Errorf("a revoked host: %d, want 403", got)
	}
}

// A policy that the agent can write is not taken from it: the one in force stays, until the file is out of its reach.
func TestAgentsPolicyIsRefused(t *testing.T) {
	w := newWorld(t, oneHost)
	w.InReach = true
	for _, dir := range []string{filepath.Dir(w.dir), w.dir} { // t.TempDir is closed to others
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(w.PolicyFile, 0o666); err != nil {
		t.Fatal(err)
	}
	w.start()
	if all := strings.Join(w.Status().Warnings, "\n"); !strings.Contains(all, "a change of the policy will be refused: ") {
		t.Errorf("no word of it in:\n%s", all)
	}
	w.policy(twoHosts)
	if r, err := w.Reload(context.Background(), "test"); err == nil || !strings.Contains(err.Error(), "policy.yaml can be written by agent \"claude\" (uid 1000); `chown root:root") || r.Generation != 1 {
		t.Fatalf("Reload = %+v, %v", r, err)
	}
	if err := os.Chmod(w.PolicyFile, 0o644); err != nil {
		t.Fatal(err)
	}
	if r, err := w.Reload(context.Background(), "test"); err != nil || r.Generation != 2 {
		t.Fatalf("Reload = %+v, %v", r, err)
	}
}

func TestBadPolicyKeepsTheOld(t *testing.T) {
	w := newWorld(t, oneHost)
	w.start()
	before := w.Status()
	w.policy("egres: []\n")
	_, err := w.Reload(context.Background(), "test")
	if err == nil || !strings.Contains(err.Error(), `policy.yaml:3:1: unknown key "egres"`) {
		t.Fatalf("Reload said %v", err)
	}
	after := w.Status()
	if after.State != "degraded" || after.Generation != before.Generation || after.Digest != before.Digest {
		t.Errorf("status after a bad reload: %s, generation %d", after.State, after.Generation)
	}
	w.policy(oneHost)
	r, err := w.Reload(context.Background(), "test")
	if err != nil || !r.Unchanged || w.Status().State != "ready" {
		t.Errorf("after the mend: %+v, %v, %s", r, err, w.Status().State)
	}
}

// What fails in the kernel or in the proxy is taken back whole.
func TestReloadThatFailsLate(t *testing.T) {
	for name, sabotage := range map[string]func(*world){
		"kernel refuses": func(w *world) { // and the writer's repairs with it
			for n := range 20 {
				w.fake.FailCommit(n+1, errors.New("no space left"), false)
			}
		},
		"proxy refuses": func(w *world) {
			w.mu.Lock()
			w.refuse = true
			w.mu.Unlock()
			w.proxies[0].Kill()
			w.eventually("another proxy", func() bool { w.mu.Lock(); defer w.mu.Unlock(); return len(w.proxies) > 1 })
			w.eventually("it serves", func() bool { return w.proxy.snapshot().Generation == 1 })
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, oneHost)
			w.start()
			before := w.Fence.Contents()
			sabotage(w)
			w.policy(twoHosts + "root: [{host: two.example.com, addresses: [192.0.2.0/24]}]\nroot_loopback: [9]\n")
			if r, err := w.Reload(context.Background(), "test"); err == nil {
				t.Fatalf("Reload = %+v", r)
			}
			if got := w.Status(); got.Generation != 1 || got.State == "ready" {
				t.Errorf("generation %d, %s", got.Generation, got.State)
			}
			if add, del := before.Diff(w.Fence.Contents()); len(add.RootLoopback)+len(del.Listeners) != 0 || w.pinned("192.0.2.8") {
				t.Errorf("the sets differ from before: +%v -%v", add, del)
			}
			if got := w.ask("two.example.com"); got != 403 {
				t.Errorf("the refused policy is in force: %d", got)
			}
			if name == "kernel refuses" {
				for n := range 20 {
					w.fake.FailCommit(n+1, nil, true)
				}
				if r, err := w.Reload(context.Background(), "test"); err != nil || r.Generation != 2 {
					t.Errorf("the kernel's refusal is over, and Reload = %+v, %v", r, err)
				}
			}
		})
	}
}

// A dead proxy is replaced; who connects meanwhile waits in the backlog.
func TestProxyDies(t *testing.T) {
	w := newWorld(t, oneHost)
	w.start()
	if got := w.ask("one.example.com"); got == 403 {
		t.Fatal("an allowed host is refused")
	}
	w.eventually("its address is in the set", func() bool { return w.pinned("192.0.2.7") })
	for n := range 3 {
		w.eventually("a proxy serves", func() bool { return w.proxy.snapshot().Generation == 1 })
		w.mu.Lock()
		last := w.proxies[len(w.proxies)-1]
		w.mu.Unlock()
		last.Kill()
		<-last.done
		if got := w.ask("nowhere.example"); got != 403 {
			t.Errorf("while the proxy was away: %d", got)
		}
		w.eventually("the death is counted", func() bool { return w.Status().Proxy.Restarts == n+1 })
	}
	w.eventually("ready again", func() bool { return w.Status().State == "ready" })
}

// What the metrics say of agents is there from the start, and of now.
func TestAgentsInMetrics(t *testing.T) {
	w := newWorld(t, oneHost)
	w.start()
	text := func() string {
		r := httptest.NewRecorder()
		promhttp.HandlerFor(w.Registry(), promhttp.HandlerOpts{}).ServeHTTP(r, httptest.NewRequest("GET", "/metrics", nil))
		return r.Body.String()
	}
	for _, want := range []string{`exitgate_connections{agent="claude"} 0`, `exitgate_bytes_total{agent="claude",direction="in"} 0`, `exitgate_bytes_total{agent="claude",direction="out"} 0`} {
		if got := text(); !strings.Contains(got, want) {
			t.Errorf("before any connection there is no %s in\n%s", want, got)
		}
	}
	c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", w.port))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	// It is counted when the proxy has accepted it; the next sign of life is 2 s away.
	begin := time.Now()
	w.eventually("the connection is counted", func() bool { return strings.Contains(text(), `exitgate_connections{agent="claude"} 1`) })
	if took := time.Since(begin); took > pingEvery/2 {
		t.Errorf("counted after %v", took)
	}
	w.Look()
	if n := w.Status().Agents[0].Connections; n != 1 {
		t.Errorf("status has %d connections", n)
	}
}

func TestHangupsAreFewReloads(t *testing.T) {
	w := newWorld(t, oneHost)
	w.start()
	for range 1000 {
		w.Hangup("SIGHUP")
	}
	w.policy(twoHosts)
	w.Hangup("SIGHUP")
	w.eventually("the newest file is in force", func() bool {
		return w.Policy().Decide(policy.Request{
			Road: policy.RoadConnect, Host: "two.example.com", Port: 443, Now: time.Now()}).Allow
	})
	if g := w.Status().Generation; g != 2 {
		t.Errorf("generation %d after one change", g)
	}
}

func TestPortTaken(t *testing.T) {
	w := newWorld(t, oneHost)
	l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", w.port))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	err = w.Start(context.Background())
	if err == nil || !strings.Contains(err.Error(), "the port is taken") {
		t.Errorf("Start = %v", err)
	}
}

// The resolvers of the new resolv.conf are opened before they are asked; those of the old are closed.
func TestResolversChange(t *testing.T) {
	w := newWorld(t, oneHost)
	w.start()
	has := func(addr string) bool {
		return slices.ContainsFunc(w.Fence.Contents().Resolvers, func(e firewall.Endpoint) bool { return e.Addr == netip.MustParseAddr(addr) })
	}
	if !has("192.0.2.53") {
		t.Fatal("the resolver is not in the set")
	}
	w.write("etc/resolv.conf", "nameserver 192.0.2.54\n")
	w.eventually("the new resolver alone is in the set", func() bool { return has("192.0.2.54") && !has("192.0.2.53") })
}

// A ConfigMap's file is a symlink by way of ..data, which the kubelet swaps.
func TestFollowsTheFile(t *testing.T) {
	w := newWorld(t, oneHost)
	for n, text := range []string{oneHost, twoHosts, "egres: []\n"} {
		w.policy(text)
		dir := filepath.Join(w.dir, fmt.Sprint("v", n))
		if err := errors.Join(os.Mkdir(dir, 0o755), os.Rename(filepath.Join(w.dir, "policy.yaml"), filepath.Join(dir, "policy.yaml"))); err != nil {
			t.Fatal(err)
		}
	}
	swap := func(to string) {
		fresh := filepath.Join(w.dir, "..fresh")
		if err := errors.Join(os.Symlink(to, fresh), os.Rename(fresh, filepath.Join(w.dir, "..data"))); err != nil {
			t.Fatal(err)
		}
	}
	swap("v0")
	if err := os.Symlink("..data/policy.yaml", filepath.Join(w.dir, "policy.yaml")); err != nil {
		t.Fatal(err)
	}
	w.Follow = true
	w.start()
	swap("v1")
	w.eventually("the second version is in force", func() bool { return w.Status().Generation == 2 })
	swap("v2")
	w.eventually("the third is refused", func() bool { s := w.Status(); return s.Generation == 2 && s.State == "degraded" })
	swap("v1")
	w.eventually("the second is as good as before", func() bool { return w.Status().State == "ready" })
}
