package chaos

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"exitgate/integration/prober"
	"exitgate/integration/rig"
	"exitgate/integration/rig/rigtest"

	"golang.org/x/sys/unix"
)

// TestClocks starts a gate whose monotonic and boot clocks are months ahead of, and behind, everybody else's, as after a long sleep of the
// machine or under a restored checkpoint. A step of CLOCK_REALTIME cannot be tried: it has no namespace.
func TestClocks(t *testing.T) {
	t.Parallel()
	uptime := time.Duration(0)
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &now); err == nil {
		uptime = time.Duration(now.Nano())
	}
	for name, offset := range map[string]time.Duration{"ahead by 200 days": 200 * 24 * time.Hour, "back to a minute after boot": time.Minute - uptime} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			clocked(t, offset)
		})
	}
}

func clocked(t *testing.T, offset time.Duration) {
	w := rigtest.World(t)
	for _, name := range []string{"api.example.com", "files.example.com"} {
		rigtest.HTTPS(t, w, name, rig.Server{TTL: time.Second})
	}
	seconds := fmt.Sprint(int64(offset / time.Second))
	// unshare --fork keeps itself as the first process; the gate is its child, in the new time namespace.
	b := rigtest.Start(t, rig.Config{World: w, Binary: program, Policy: policy, Plain: true, Serve: true,
		Args:         []string{"/usr/bin/unshare", "--time", "--monotonic", seconds, "--boottime", seconds, "--fork", rig.BinaryPath, "run", "--", rig.ProberPath, "serve"},
		Capabilities: append([]uintptr{unix.CAP_SYS_ADMIN, unix.CAP_SYS_TIME}, rig.EngineCapabilities...), Files: map[string]rig.File{"/run/secrets/api": {Data: secret + "\n", Mode: 0o400}}})
	if err := b.Agent().Ready(patience); err != nil {
		if strings.Contains(b.Stderr.String(), "timens") && os.Getenv("CI") == "" {
			t.Skip("needs CAP_SYS_TIME, which only a time namespace's clocks are set with")
		}
		t.Fatal(err)
	}
	r := b.Agent().Do(prober.Probe{Op: "shell", Data: []byte("cut -d. -f1 /proc/uptime")})
	var there int64
	fmt.Sscan(string(r.Data), &there)
	var here unix.Timespec
	unix.ClockGettime(unix.CLOCK_BOOTTIME, &here)
	if off := time.Duration(there)*time.Second - time.Duration(here.Nano()); (off - offset).Abs() > time.Minute {
		t.Fatalf("control: the agent's clock is off by %s, want %s", off, offset)
	}
	host := "files.example.com"
	for until := time.Now().Add(8 * time.Second); time.Now().Before(until); time.Sleep(200 * time.Millisecond) { // answers and leases end meanwhile
		for _, p := range []prober.Probe{{Op: "http", Address: listener, Data: []byte("GET /reflect HTTP/1.1\r\nHost: " + listener + "\r\n\r\n")},
			{Op: "http", Address: listener, Tunnel: host + ":443", ServerName: host, Data: []byte("GET /reflect HTTP/1.1\r\nHost: " + host + "\r\n\r\n")}} {
			if r := b.Agent().Do(p); r.Status != 200 || !r.OK() {
				t.Fatalf("%s %s: %s", p.Tunnel, r, b.Stderr)
			}
		}
		if r := b.Agent().Do(prober.Probe{Op: "tcp", Address: "46.0.0.1:443"}); r.Errno != "ECONNREFUSED" {
			t.Fatalf("a forbidden attempt: %s", r)
		}
	}
	if n := w.DNS.Count(host); n < 2 {
		t.Errorf("the name was asked for %d times: no answer ended", n)
	}
	for f := range b.Capture().Flows() {
		if strings.HasPrefix(f.Dst.String(), "46.") {
			t.Errorf("left the box: %s", f)
		}
	}
}
