package main

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"exitgate/integration/prober"
	"exitgate/integration/rig"

	"golang.org/x/sys/unix"
)

// reload is the time from SIGHUP to the end of a busy connection to a host that the new policy lacks, in policies of several sizes of
// which one host, or each, changes. All names are resolved beforehand.
func (b *bench) reload() error {
	t := newTable("reload", "Reload: SIGHUP to a revoked host's connection cut", "",
		column{Name: "1 changed", Unit: "ms", Format: "%.1f", Brief: true}, column{Name: "all changed", Unit: "ms", Format: "%.1f", Brief: true})
	for n := 10; n <= b.hosts; n = next(n, b.hosts) {
		for _, all := range []bool{false, true} {
			if err := b.reloads(t, n, all); err != nil {
				return fmt.Errorf("%d hosts: %w", n, err)
			}
		}
		if n == b.hosts {
			break
		}
	}
	b.show(t)
	return nil
}

// next goes 10, 1000, the largest.
func next(n, most int) int { return min(max(n*100, 1000), most) }

func (b *bench) reloads(t *table, n int, all bool) error {
	w, err := rig.NewWorld()
	if err != nil {
		return err
	}
	defer w.Close()
	up, err := w.HTTPS("cut.example.com", rig.Server{H1: true})
	if err != nil {
		return err
	}
	for i := range n {
		w.DNS.Set(fmt.Sprintf("h%d.example.com", i), time.Hour, up.Addr4)
	}
	with, without := policies(n, all)
	box, err := rig.Start(rig.Config{World: w, Binary: b.binary, Policy: with, Uncaptured: true})
	if err != nil {
		return err
	}
	if err := box.Agent().Ready(time.Minute); err != nil {
		return err
	}
	if err := resolved(box, n); err != nil {
		return err
	}
	for range b.rounds {
		took, err := cut(box, without)
		if err != nil {
			return err
		}
		t.add(fmt.Sprintf("%d hosts", n), map[bool]string{false: "1 changed", true: "all changed"}[all], millis(took))
		if err := box.SetPolicy(with); err != nil {
			return err
		}
		if out, err := box.Exitgate("reload"); err != nil || out.Code != 0 {
			return fmt.Errorf("reload: %v %s", err, out.Stderr)
		}
	}
	return nil
}

// policies are n hosts of root and the one that is revoked, and what follows it: the same less that one, each with another port where all change.
func policies(n int, all bool) (with, without string) {
	text := func(ports string) string {
		var sb strings.Builder
		sb.WriteString("version: 1\nroot:\n")
		for i := range n {
			fmt.Fprintf(&sb, "  - host: h%d.example.com\n    ports: [%s]\n", i, ports)
		}
		return sb.String()
	}
	with = text("443") + "egress:\n  - host: cut.example.com\n"
	if all {
		return with, text("8443")
	}
	return with, text("443")
}

func resolved(box *rig.Box, n int) error {
	for until := time.Now().Add(2 * time.Minute); time.Now().Before(until); time.Sleep(200 * time.Millisecond) {
		out, err := box.Exitgate("status", "--json")
		if err != nil {
			return err
		}
		if strings.Count(out.Stdout, `"lease_seconds"`) >= n {
			return nil
		}
	}
	return errors.New("the names were not resolved within two minutes")
}

// cut starts a busy connection, replaces the policy, sends SIGHUP and waits for the connection's end.
func cut(box *rig.Box, policy string) (time.Duration, error) {
	host := "cut.example.com"
	flow := box.Agent().Start(prober.Probe{Op: "hold", Address: listener, Tunnel: host + ":443", ServerName: host, Every: time.Millisecond,
		Timeout: time.Minute, Data: []byte("GET /status/204 HTTP/1.1\r\nHost: " + host + "\r\n\r\n")})
	if r, ok := <-flow; !ok || !r.OK() {
		return 0, fmt.Errorf("the connection did not come up: %s", r)
	}
	time.Sleep(50 * time.Millisecond)
	if err := box.SetPolicy(policy); err != nil {
		return 0, err
	}
	begin := time.Now()
	if err := box.Signal(unix.SIGHUP); err != nil {
		return 0, err
	}
	r, ok := <-flow
	if !ok || r.OK() {
		return 0, fmt.Errorf("the connection was not cut: %s", r)
	}
	return r.At.Sub(begin), nil
}
