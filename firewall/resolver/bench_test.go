package resolver

import (
	"context"
	"fmt"
	"net/netip"
	"runtime"
	"strings"
	"testing"
	"time"

	"exitgate/policy"
)

// thousands is a policy of many names, and another that differs in one.
func thousands(t testing.TB, count int) (p, other *policy.Policy) {
	t.Helper()
	var b strings.Builder
	b.WriteString("egress:\n")
	for i := range count - 1 {
		fmt.Fprintf(&b, "  - {host: host-%d.example.com, ports: [443]}\n", i)
	}
	return load(t, b.String()+"  - host: one.example.com\n"), load(t, b.String()+"  - host: other.example.com\n")
}

// instant answers each name with an address of its own, at once.
func instant(_ context.Context, _ []netip.AddrPort, host string, _ bool) outcome {
	i := 1 << 22
	fmt.Sscanf(host, "host-%d.", &i)
	return outcome{addrs: []netip.Addr{nth(1 + i)}, ttl: 5 * time.Minute, result: ResultOK}
}

func TestTenThousandNames(t *testing.T) {
	const count = 10000
	p, other := thousands(t, count)
	g := newRig(t)
	g.look = instant
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	g.apply(t, p)
	if err := g.Prewarm(t.Context()); err != nil {
		t.Fatal(err)
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if got := len(g.Elements()); got != count {
		t.Errorf("%d elements", got)
	}
	perName := (after.HeapAlloc - before.HeapAlloc) / count
	t.Logf("%d bytes a name", perName)
	if perName > 4096 {
		t.Errorf("%d bytes a name", perName)
	}
	sameAddrs(t, g.get(t, "host-5000.example.com", 443), nth(5001).String())
	commits := g.kernel.count()
	g.apply(t, other)
	if got := g.kernel.count() - commits; got > 2 {
		t.Errorf("%d commits for one changed name", got)
	}
	if got := g.busy; got > background {
		t.Errorf("%d lookups at once", got)
	}
	g.apply(t, nil)
	g.Release("host-5000.example.com", 443, addrs(nth(5001).String()))
	g.flights.Wait()
	if len(g.Elements())+len(g.table.names)+g.table.leases+len(g.table.refresh.items) != 0 {
		t.Errorf("left over: %d elements, %d names, %d leases", len(g.Elements()), len(g.table.names), g.table.leases)
	}
}

// BenchmarkAcquire is the dial path of a name whose addresses are known and committed.
func BenchmarkAcquire(b *testing.B) {
	for _, names := range []int{10, 10000} {
		for _, addresses := range []int{1, 8} {
			b.Run(fmt.Sprintf("names=%d/addresses=%d", names, addresses), func(b *testing.B) {
				p, _ := thousands(b, names)
				g := newRig(b, func(c *Config) { c.Now = time.Now; c.Commit = func(_, _ []netip.AddrPort) error { return nil } })
				g.look = func(ctx context.Context, s []netip.AddrPort, host string, six bool) outcome {
					out := instant(ctx, s, host, six)
					for i := 1; i < addresses; i++ {
						out.addrs = append(out.addrs, nth(1<<22+i))
					}
					return out
				}
				g.apply(b, p)
				if err := g.Prewarm(b.Context()); err != nil {
					b.Fatal(err)
				}
				b.ReportAllocs()
				for b.Loop() {
					got, err := g.Acquire(b.Context(), "", "host-3.example.com", 443)
					if err != nil || len(got) != addresses {
						b.Fatal(got, err)
					}
					g.Release("host-3.example.com", 443, got)
				}
			})
		}
	}
}

// BenchmarkAcquireRefused is what a flood of refused names costs.
func BenchmarkAcquireRefused(b *testing.B) {
	p, _ := thousands(b, 10000)
	g := newRig(b)
	g.apply(b, p)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := g.Acquire(b.Context(), "", "secret.data.evil.example", 443); err == nil {
			b.Fatal("allowed")
		}
	}
}

// BenchmarkSetPolicy is a reload in which one name changes and all are resolved.
func BenchmarkSetPolicy(b *testing.B) {
	for _, count := range []int{10, 1000, 10000} {
		b.Run(fmt.Sprintf("names=%d", count), func(b *testing.B) {
			p, other := thousands(b, count)
			g := newRig(b, func(c *Config) { c.Now = time.Now; c.Commit = func(_, _ []netip.AddrPort) error { return nil } })
			g.look = instant
			g.apply(b, p)
			if err := g.Prewarm(b.Context()); err != nil {
				b.Fatal(err)
			}
			for b.Loop() {
				p, other = other, p
				g.apply(b, p)
			}
		})
	}
}

// BenchmarkPrewarm is the first lookup of every name with a DNS that takes no time.
func BenchmarkPrewarm(b *testing.B) {
	p, _ := thousands(b, 10000)
	for b.Loop() {
		g := newRig(b, func(c *Config) { c.Now = time.Now; c.Commit = func(_, _ []netip.AddrPort) error { return nil } })
		g.look = instant
		g.apply(b, p)
		if err := g.Prewarm(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkSpecial(b *testing.B) {
	for _, a := range addrs("8.8.8.8", "2606:4700::1111") {
		b.Run(a.String(), func(b *testing.B) {
			for b.Loop() {
				Special(a, nil)
			}
		})
	}
}
