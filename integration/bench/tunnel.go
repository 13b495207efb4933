package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// widePorts gives the calling thread's namespace all ports to dial from, and lets it use them again at once.
func widePorts() error {
	for name, value := range map[string]string{"ip_local_port_range": "2000 65000", "tcp_tw_reuse": "1"} {
		if err := os.WriteFile("/proc/sys/net/ipv4/"+name, []byte(value), 0); err != nil {
			return fmt.Errorf("set %s: %w", name, err)
		}
	}
	return nil
}

// tunnels is CONNECT: bytes through one tunnel, and new tunnels.
func (b *bench) tunnels() error {
	s, err := b.stage(connect)
	if err != nil {
		return err
	}
	defer s.close()
	t := newTable("connect", "CONNECT", "direct",
		column{Name: "64 MiB down", Unit: "MiB/s", Format: "%.0f", Ratio: true, Brief: true}, column{Name: "64 MiB down: CPU", Unit: "s/GiB", Format: "%.2f", Brief: true},
		column{Name: "splice calls/MiB", Format: "%.1f"},
		column{Name: "byte and back: p50", Unit: "us", Format: "%.0f", Brief: true},
		column{Name: "new, 1 at a time: p50", Unit: "us", Format: "%.0f"},
		column{Name: "new, 16 at a time", Unit: "1/s", Format: "%.0f", Ratio: true, Brief: true}, column{Name: "new, 16: CPU", Unit: "us", Format: "%.0f"})
	if err := s.turns(b.rounds, func(c *candidate) error { return b.tunnelled(t, s, c) }); err != nil {
		return err
	}
	for _, c := range s.all {
		if c.serves() {
			if err := b.spliced(t, s, c); err != nil {
				fmt.Fprintln(os.Stderr, "bench: no count of splice calls:", err)
			}
		}
	}
	b.show(t)
	return nil
}

func (b *bench) tunnelled(t *table, s *stage, c *candidate) error {
	p := c.bytes(s, "transfer")
	p.Data, p.Raw = fmt.Appendf(nil, "d%d\n", bulk), true
	if err := b.transfer(t, c, "64 MiB down", p); err != nil {
		return err
	}
	r, _, err := c.measure(b.window(c.bytes(s, "pingpong")))
	if err != nil {
		return err
	}
	t.add(c.name, "byte and back: p50", micros(r.Quantiles.P50))
	for _, conns := range []int{1, 16} {
		p := b.window(c.bytes(s, "tunnels"))
		p.Connections = conns
		r, used, err := c.measure(p)
		if err != nil {
			return err
		}
		if conns == 1 {
			t.add(c.name, "new, 1 at a time: p50", micros(r.Quantiles.P50))
			continue
		}
		t.add(c.name, "new, 16 at a time", float64(r.Count)/p.Timeout.Seconds())
		if c.serves() {
			t.add(c.name, "new, 16: CPU", micros(used.cpu)/float64(r.Count))
		}
	}
	return nil
}

// spliced counts the calls of splice(2) during one transfer, by strace: bytes that are moved so never enter the proxy.
func (b *bench) spliced(t *table, s *stage, c *candidate) error {
	pids, err := servers(c.box)
	if err != nil {
		return err
	}
	out := filepath.Join(os.TempDir(), "splice."+strconv.Itoa(c.box.PID))
	args := []string{"-f", "-c", "-U", "calls,name", "-e", "trace=splice", "-o", out}
	for _, pid := range pids {
		args = append(args, "-p", strconv.Itoa(pid))
	}
	trace := exec.Command("strace", args...)
	if err := trace.Start(); err != nil {
		return err
	}
	defer trace.Wait()
	defer trace.Process.Signal(unix.SIGINT)
	time.Sleep(300 * time.Millisecond) // until it is attached
	p := c.bytes(s, "transfer")
	p.Data, p.Raw, p.Size, p.Timeout = fmt.Appendf(nil, "d%d\n", bulk), true, bulk, time.Millisecond
	if r := c.box.Agent().Do(p); !r.OK() {
		return fmt.Errorf("%s", r)
	}
	trace.Process.Signal(unix.SIGINT)
	trace.Wait()
	text, err := os.ReadFile(out)
	if err != nil {
		return err
	}
	calls := 0
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) == 2 && f[1] == "splice" {
			calls, _ = strconv.Atoi(f[0])
		}
	}
	t.add(c.name, "splice calls/MiB", float64(calls)/(2*bulk>>20)) // one transfer until it is up, one in the window
	return nil
}
