package rig

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"exitgate/integration/prober"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	Main()
	inside, code, err := Enter()
	if err != nil {
		fmt.Fprintln(os.Stderr, "rig:", err)
		if errors.Is(err, ErrNeedsRoot) && os.Getenv("CI") == "" {
			os.Exit(0)
		}
		os.Exit(1)
	}
	if !inside {
		os.Exit(code)
	}
	os.Exit(m.Run())
}

// bare starts a box whose PID 1 is the prober: the rig without the program under test.
func bare(t testing.TB, w *World, change ...func(*Config)) *Box {
	t.Helper()
	cfg := Config{World: w, Plain: true, Serve: true, Args: []string{ProberPath, "serve"}}
	for _, c := range change {
		c(&cfg)
	}
	b, err := Start(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func world(t testing.TB) *World {
	t.Helper()
	w, err := NewWorld()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	})
	return w
}

func TestBoxReachesTheWorld(t *testing.T) {
	t.Parallel()
	w := world(t)
	up, err := w.HTTPS("api.example.com", Server{})
	if err != nil {
		t.Fatal(err)
	}
	a := bare(t, w).Agent()
	for _, addr := range []netip.Addr{up.Addr4, up.Addr6} {
		r := a.Do(prober.Probe{Op: "http", Address: netip.AddrPortFrom(addr, 443).String(), ServerName: "api.example.com",
			Data: []byte("POST /reflect?a=b;c HTTP/1.1\r\nHost: api.example.com\r\nX-One: 1\r\nContent-Length: 2\r\n\r\nhi")})
		if !r.OK() || r.Status != 200 || !strings.Contains(string(r.Data), `"/reflect?a=b;c"`) {
			t.Errorf("%s: %s: %s", addr, r, r.Data)
		}
		if !Eventually(10*time.Second, func() bool { return w.Capture().To(addr, 443) > 0 }) { // which is read beside
			t.Errorf("the capture saw nothing for %s: %v", addr, w.Capture().Flows())
		}
	}
	if lost, err := w.Capture().Lost(); err != nil || lost != 0 {
		t.Errorf("capture lost %d, %v", lost, err)
	}
	seen := up.Seen()
	if len(seen) != 2 || seen[0].Header.Get("X-One") != "1" || string(seen[0].Body) != "hi" {
		t.Errorf("seen: %+v", seen)
	}
}

func TestFailuresByName(t *testing.T) {
	t.Parallel()
	w := world(t)
	refused, err := w.Nowhere("closed.example.com")
	if err != nil {
		t.Fatal(err)
	}
	a := bare(t, w).Agent()
	if r := a.Do(prober.Probe{Op: "tcp", Address: netip.AddrPortFrom(refused, 443).String()}); r.Errno != "ECONNREFUSED" {
		t.Errorf("closed port: %s", r)
	}
	if r := a.Do(prober.Probe{Op: "tcp", Address: "9.9.9.9:443", Timeout: 50 * time.Millisecond}); r.OK() {
		t.Errorf("an address of nobody: %s", r)
	}
	if w.Capture().To(netip.MustParseAddr("9.9.9.9"), 443) == 0 {
		t.Errorf("the packet to nobody is missing: %v", w.Capture().Flows())
	}
	for name, f := range map[string]Fault{"reset.example.com": Reset, "garbage.example.com": Garbage} {
		at, _, err := w.Faulty(name, 0, false, f)
		if err != nil {
			t.Fatal(err)
		}
		r := a.Do(prober.Probe{Op: "http", Address: netip.AddrPortFrom(at, 443).String(), ServerName: name, Data: []byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n")})
		if r.OK() {
			t.Errorf("%s: %s", name, r)
		}
	}
	for name, s := range map[string]Server{"foreign.example.com": {Foreign: true}, "expired.example.com": {Expired: true}, "other.example.com": {Name: "x.example.com"}} {
		up, err := w.HTTPS(name, s)
		if err != nil {
			t.Fatal(err)
		}
		r := a.Do(prober.Probe{Op: "http", Address: netip.AddrPortFrom(up.Addr4, 443).String(), ServerName: name, Data: []byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n")})
		if r.Stage != "tls" {
			t.Errorf("%s: %s", name, r)
		}
	}
}

func TestEventsComeOnSchedule(t *testing.T) {
	t.Parallel()
	w := world(t)
	up, err := w.HTTPS("api.example.com", Server{H1: true})
	if err != nil {
		t.Fatal(err)
	}
	head := []byte("GET /events?n=3&ms=100 HTTP/1.1\r\nHost: api.example.com\r\nx-ODD:  kept\r\n\r\n")
	results := bare(t, w).Agent().Start(prober.Probe{Op: "http", Chunks: true, Address: netip.AddrPortFrom(up.Addr4, 443).String(), ServerName: "api.example.com", Data: head})
	var at []time.Time
	var last prober.Result
	for r := range results {
		if last = r; r.More {
			at = append(at, r.At)
		}
	}
	if !last.OK() || len(at) != 3 {
		t.Fatalf("%d pieces, %s", len(at), last)
	}
	if d := at[2].Sub(at[0]); d < 150*time.Millisecond {
		t.Errorf("three events within %s", d)
	}
	if raw := up.Raw(); len(raw) != 1 || !bytes.Equal(raw[0], head) {
		t.Errorf("raw: %q", raw)
	}
}

func TestDNSServerIsAsked(t *testing.T) {
	t.Parallel()
	w := world(t)
	w.DNS.Set("one.example.com", 7*time.Second, netip.MustParseAddr("45.1.2.3"))
	w.DNS.SetCode("broken.example.com", dns.RcodeServerFailure)
	b := bare(t, w)
	ask := func(name string) *dns.Msg {
		q, err := new(dns.Msg).SetQuestion(dns.Fqdn(name), dns.TypeA).Pack()
		if err != nil {
			t.Fatal(err)
		}
		r := b.Agent().Do(prober.Probe{Op: "udp", Address: netip.AddrPortFrom(w.DNS.Addr6, 53).String(), Data: q, Read: 512})
		m := new(dns.Msg)
		if err := m.Unpack(r.Data); err != nil {
			t.Fatalf("%s: %v", r, err)
		}
		return m
	}
	if m := ask("ONE.example.com"); len(m.Answer) != 1 || m.Answer[0].Header().Ttl != 7 {
		t.Errorf("answer: %v", m)
	}
	if m := ask("broken.example.com"); m.Rcode != dns.RcodeServerFailure {
		t.Errorf("answer: %v", m)
	}
	if m := ask("absent.example.com"); m.Rcode != dns.RcodeNameError {
		t.Errorf("answer: %v", m)
	}
	if n := w.DNS.Count("one.example.com"); n != 1 {
		t.Errorf("counted %d", n)
	}
}

func TestIdentitiesInABox(t *testing.T) {
	t.Parallel()
	w := world(t)
	b := bare(t, w)
	for _, uid := range []uint32{0, 1000, 65534} {
		r, err := b.Probe(uid, prober.Probe{Op: "self"})
		if err != nil {
			t.Fatal(err)
		}
		if r.Self == nil || r.Self.UID != int(uid) {
			t.Errorf("as %d: %+v", uid, r.Self)
		}
		if uid != 0 && r.Self.Status["CapEff"] != "0000000000000000" {
			t.Errorf("as %d: CapEff %s", uid, r.Self.Status["CapEff"])
		}
	}
	r := b.Agent().Do(prober.Probe{Op: "self"})
	if r.Self.PID != 1 || r.Self.Status["CapBnd"] == "000001ffffffffff" {
		t.Errorf("PID 1: %+v", r.Self)
	}
	if r := b.Agent().Do(prober.Probe{Op: "read", Address: "/etc/resolv.conf"}); !strings.Contains(string(r.Data), w.DNS.Addr4.String()) {
		t.Errorf("resolv.conf: %s %q", r, r.Data)
	}
	if r := b.Agent().Do(prober.Probe{Op: "read", Address: "/home/agent/../../etc/shadow"}); r.Errno != "ENOENT" {
		t.Errorf("the host's files are in the box: %s", r)
	}
}

func TestTerminal(t *testing.T) {
	t.Parallel()
	w := world(t)
	b := bare(t, w, func(c *Config) { c.Terminal, c.Serve, c.Args = true, false, []string{"/bin/sh"} })
	if err := b.Terminal.Type("tty; echo pid $$; exit 7\n"); err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"/dev/pts/0", "pid 1"} {
		if err := b.Terminal.Expect(text, 10*time.Second); err != nil {
			t.Error(err)
		}
	}
	if code, err := b.Wait(10 * time.Second); code != 7 || err != nil {
		t.Errorf("exit code %d, %v", code, err)
	}
}

func TestNothingIsLeft(t *testing.T) {
	w := world(t)
	b := bare(t, w)
	if err := b.Agent().Ready(10 * time.Second); err != nil {
		t.Fatal(err)
	}
	name, pid, root := b.Wire.name, b.PID, b.root
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat("/sys/class/net/" + name); err == nil {
		t.Errorf("the wire %s is left", name)
	}
	if err := unix.Kill(pid, 0); !errors.Is(err, unix.ESRCH) {
		t.Errorf("PID 1 of the box is left: %v", err)
	}
	if _, err := os.Stat(root); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is left: %v", root, err)
	}
}

// BenchmarkBox is what a box costs a test.
func BenchmarkBox(b *testing.B) {
	w := world(b)
	for b.Loop() {
		box := bare(b, w)
		if err := box.Agent().Ready(10 * time.Second); err != nil {
			b.Fatal(err)
		}
		if err := box.Close(); err != nil {
			b.Fatal(err)
		}
	}
}
