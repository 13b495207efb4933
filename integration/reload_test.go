package integration

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"exitgate/integration/prober"
	"exitgate/integration/rig"

	"golang.org/x/sys/unix"
)

// without is basic less one egress host.
func without(host string) string { return strings.Replace(basic, "  - host: "+host+"\n", "", 1) }

// last is the final result of a probe.
func last(results <-chan prober.Result) (r prober.Result) {
	for r = range results {
		if !r.More {
			return r
		}
	}
	return prober.Result{Err: "the agent is gone"}
}

// TestEntryBecomesAWildcard: a flow of a host that had an entry of its own, and is allowed by a wildcard from now on, notices
// nothing.
func TestEntryBecomesAWildcard(t *testing.T) {
	t.Parallel()
	w := world(t)
	mirror := upstream(t, w, "mirror.example.com", rig.Server{H1: true})
	g := up(t, w, basic)
	flow := g.Agent().Start(busy("mirror.example.com", 5*time.Second))
	if r := <-flow; !r.More || !r.OK() {
		t.Fatalf("the flow did not come up: %s", r)
	}
	eventually(t, "requests on the flow", func() bool { return len(mirror.Seen()) > 5 })
	if out := g.reload(strings.Replace(basic, "mirror.example.com", `"*.example.com"`, 1)); out.Code != 0 {
		t.Fatalf("reload: %q", out.Stderr)
	}
	seen := len(mirror.Seen())
	if r := last(flow); !r.OK() {
		t.Errorf("the flow ended by %s", r)
	}
	if n := len(mirror.Seen()); n < seen+5 {
		t.Errorf("control: %d requests before the reload, %d after it", seen, n-seen)
	}
}

func TestReloadAddsAndRevokes(t *testing.T) {
	t.Parallel()
	w := world(t)
	files := upstream(t, w, "files.example.com", rig.Server{H1: true})
	mirror := upstream(t, w, "mirror.example.com", rig.Server{H1: true})
	fresh := upstream(t, w, "fresh.example.com", rig.Server{})
	g := up(t, w, basic)
	if r := g.do(tunnel("fresh.example.com")); r.Status != 403 {
		t.Fatalf("control: before it is allowed: %s", r)
	}

	cut, kept := g.Agent().Start(busy("files.example.com", time.Minute)), g.Agent().Start(busy("mirror.example.com", 5*time.Second))
	for _, c := range []<-chan prober.Result{cut, kept} {
		if r := <-c; !r.More || !r.OK() {
			t.Fatalf("a flow did not come up: %s", r)
		}
	}
	// Both are at work, not only open.
	eventually(t, "requests on both flows", func() bool { return len(files.Seen()) > 5 && len(mirror.Seen()) > 5 })

	if err := g.SetPolicy(without("files.example.com") + "  - host: fresh.example.com\n"); err != nil {
		t.Fatal(err)
	}
	before := time.Now()
	if err := g.Signal(unix.SIGHUP); err != nil {
		t.Fatal(err)
	}
	r := last(cut)
	if r.OK() {
		t.Errorf("the revoked host's flow goes on: %s", r)
	}
	if r.Errno != "ECONNRESET" && r.Errno != "EPIPE" {
		t.Errorf("the revoked host's flow ended by %s; want a reset, which no program takes for a clean end", r)
	}
	// The figure is 100 ms on an idle machine; what this must tell from is an end by timeout or by the peer.
	if took := r.At.Sub(before); took > 2*time.Second {
		t.Errorf("cut %s after SIGHUP", took)
	} else {
		t.Logf("cut %s after SIGHUP", took)
	}
	eventually(t, "generation 2", func() bool { return g.status().Generation == 2 })
	if r := g.do(tunnel("files.example.com")); r.Status != 403 {
		t.Errorf("the revoked host: %s", r)
	}
	if r := g.do(tunnel("fresh.example.com")); r.Status != 200 {
		t.Errorf("the added host: %s %s", r, r.Data)
	}
	if r := last(kept); !r.OK() {
		t.Errorf("the neighbour's flow was disturbed: %s", r)
	}
	g.leaks(places(files, mirror, fresh)...)
}

// TestRevokedRouteStream: a stream by a route ends with its grant as well.
func TestRevokedRouteStream(t *testing.T) {
	t.Parallel()
	w := world(t)
	upstream(t, w, "api.example.com", rig.Server{})
	g := up(t, w, basic)
	p := get("/events?n=0&ms=10")
	p.Chunks, p.Timeout = true, time.Minute
	stream := g.Agent().Start(p)
	if r := <-stream; !r.More {
		t.Fatalf("no stream: %s", r)
	}
	before := time.Now()
	if err := g.SetPolicy(strings.Replace(basic, "      - GET /**\n", "", 1)); err != nil {
		t.Fatal(err)
	}
	if err := g.Signal(unix.SIGHUP); err != nil {
		t.Fatal(err)
	}
	r := last(stream)
	if r.OK() || r.At.Sub(before) > 5*time.Second {
		t.Errorf("the stream of a revoked grant: %s", r)
	}
}

func TestBadReloadKeepsTheOldPolicy(t *testing.T) {
	t.Parallel()
	w := world(t)
	upstream(t, w, "api.example.com", rig.Server{})
	upstream(t, w, "files.example.com", rig.Server{})
	g := up(t, w, basic)
	was := g.status()
	out := g.reload(without("files.example.com") + "egres:\n  - host: x.example.com\n")
	if out.Code != 1 || !strings.Contains(out.Stderr, "policy.yaml:") || !strings.Contains(out.Stderr, `did you mean "egress"?`) {
		t.Errorf("reload: exit %d, %q", out.Code, out.Stderr)
	}
	now := g.status()
	if now.State != "degraded" || now.Digest != was.Digest || now.Generation != was.Generation || now.Reload.OK {
		t.Errorf("status: %+v", now)
	}
	if out := g.exitgate("status"); out.Code != 1 {
		t.Errorf("status exits %d, want 1 while degraded", out.Code)
	}
	for what, p := range map[string]prober.Probe{"route": get("/reflect"), "host": tunnel("files.example.com")} {
		if r := g.do(p); r.Status != 200 {
			t.Errorf("the old policy's %s: %s %s", what, r, r.Data)
		}
	}
	// A file that is gone is as bad as a wrong one.
	if out := g.exitgate("reload"); out.Code != 1 {
		t.Errorf("reload of the same mistake: exit %d", out.Code)
	}
	if out := g.reload(without("files.example.com")); out.Code != 0 || !strings.Contains(out.Stdout, "files.example.com") {
		t.Errorf("a good reload: exit %d, %q, %q", out.Code, out.Stdout, out.Stderr)
	}
	if s := g.status(); s.State != "ready" || s.Generation != was.Generation+1 {
		t.Errorf("status after a good reload: %+v", s)
	}
}

func TestEqualDigestDoesNothing(t *testing.T) {
	t.Parallel()
	w := world(t)
	files := upstream(t, w, "files.example.com", rig.Server{H1: true})
	g := up(t, w, basic)
	flow := g.Agent().Start(busy("files.example.com", time.Second))
	eventually(t, "the flow works", func() bool { return len(files.Seen()) > 3 })
	was := g.status()
	out := g.reload("# a comment more\n" + strings.Replace(basic, "files.example.com", "FILES.example.com.", 1))
	if out.Code != 0 {
		t.Errorf("reload: exit %d, %q", out.Code, out.Stderr)
	}
	if now := g.status(); now.Generation != was.Generation || now.Digest != was.Digest || now.State != "ready" {
		t.Errorf("was %+v, is %+v", was, now)
	}
	if r := last(flow); !r.OK() {
		t.Errorf("the flow was disturbed: %s", r)
	}
}

// TestEmptyListsDenyAll: taking everything out closes everything.
func TestEmptyListsDenyAll(t *testing.T) {
	t.Parallel()
	w := world(t)
	upstream(t, w, "api.example.com", rig.Server{})
	files := upstream(t, w, "files.example.com", rig.Server{})
	g := up(t, w, basic)
	if r := g.do(tunnel("files.example.com")); r.Status != 200 {
		t.Fatalf("control: %s %s", r, r.Data)
	}
	if out := g.reload("version: 1\negress: []\n"); out.Code != 0 {
		t.Fatalf("reload: exit %d, %q", out.Code, out.Stderr)
	}
	for what, p := range map[string]prober.Probe{"route": get("/reflect"), "host": tunnel("files.example.com")} {
		if r := g.do(p); r.Status != 403 {
			t.Errorf("%s: %s", what, r)
		}
	}
	if r := g.as(0, prober.Probe{Op: "tcp", Address: at(files.Addr4, 443)}); r.Errno != "ECONNREFUSED" {
		t.Errorf("root to an address of the old policy: %s", r)
	}
}

// TestThousandHangups: PID 1 takes them, ends up with the newest policy, and nobody notices.
func TestThousandHangups(t *testing.T) {
	t.Parallel()
	w := world(t)
	files := upstream(t, w, "files.example.com", rig.Server{H1: true})
	g := up(t, w, basic)
	flow := g.Agent().Start(busy("files.example.com", 4*time.Second))
	eventually(t, "the flow works", func() bool { return len(files.Seen()) > 3 })
	begin := time.Now()
	for i := range 1000 {
		if i%50 == 0 {
			if err := g.SetPolicy(basic + fmt.Sprintf("  - host: h%d.example.com\n", i)); err != nil {
				t.Fatal(err)
			}
		}
		if err := g.Signal(unix.SIGHUP); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(i)*time.Millisecond - time.Since(begin))
	}
	want := basic + "  - host: final.example.com\n"
	if out := g.reload(want); out.Code != 0 {
		t.Errorf("reload: exit %d, %q", out.Code, out.Stderr)
	}
	if out := g.exitgate("explain", "final.example.com:443"); out.Code != 0 {
		t.Errorf("the newest policy is not in force: %q %q", out.Stdout, out.Stderr)
	}
	if s := g.status(); s.State != "ready" || s.Proxy.Restarts != 0 {
		t.Errorf("status: %+v", s)
	}
	if r := last(flow); !r.OK() {
		t.Errorf("the flow was disturbed: %s", r)
	}
	g.leaks(places(files)...)
}
