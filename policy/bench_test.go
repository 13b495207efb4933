package policy

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// manyHosts is a policy of n egress hosts, one wildcard in a hundred.
func manyHosts(n int) []byte {
	var b strings.Builder
	b.WriteString("version: 1\negress:\n")
	for i := range n {
		if i%100 == 0 {
			fmt.Fprintf(&b, "  - host: \"*.wild%d.example.com\"\n", i)
			continue
		}
		fmt.Fprintf(&b, "  - host: host%d.example.com\n    ports: [443, 8443]\n", i)
	}
	return []byte(b.String())
}

func manyRoutes(n int) []byte {
	var b strings.Builder
	b.WriteString("version: 1\nroutes:\n  - name: api\n    path: /api\n    upstream: https://api.example.com\n    allow:\n")
	for i := range n {
		fmt.Fprintf(&b, "      - POST /v1/thing%d\n", i)
	}
	b.WriteString("      - GET /**/info/refs?service=git-upload-pack\n")
	return []byte(b.String())
}

func BenchmarkLoad(b *testing.B) {
	for _, n := range []int{10, 1000, 10_000} {
		data := manyHosts(n)
		b.Run(fmt.Sprintf("hosts=%d", n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := Load("policy.yaml", data); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkDecide(b *testing.B) {
	hosts, routes := mustLoad(b, string(manyHosts(10_000))), mustLoad(b, string(manyRoutes(10_000)))
	now := time.Unix(1_800_000_000, 0)
	for _, c := range []struct {
		name string
		p    *Policy
		r    Request
	}{
		{"exact", hosts, Request{Road: RoadConnect, Host: "host9999.example.com", Port: 443, Now: now}},
		{"wildcard", hosts, Request{Road: RoadConnect, Host: "a.b.c.wild9900.example.com", Port: 443, Now: now}},
		{"route", routes, Request{Road: RoadRoute, Method: "POST", Path: "/api/v1/thing9999", Query: "beta=true", Now: now}},
		{"route-wild", routes, Request{Road: RoadRoute, Method: "GET", Path: "/api/a/b/info/refs", Query: "service=git-upload-pack", Now: now}},
	} {
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if d := c.p.Decide(c.r); !d.Allow {
					b.Fatal(d.Message())
				}
			}
		})
	}
}

func BenchmarkDiff(b *testing.B) {
	old := mustLoad(b, string(manyHosts(10_000)))
	new := mustLoad(b, strings.Replace(string(manyHosts(10_000)), "host77.example", "other.example", 1))
	for b.Loop() {
		if c := Diff(old, new); len(c) != 2 {
			b.Fatal(c)
		}
	}
}
