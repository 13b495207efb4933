package resolver

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"exitgate/policy"
)

// stroll drives a whole resolver by random steps: policies come and go, names resolve to other addresses or not at all, the kernel
// refuses, time passes, connections begin and end.
type stroll struct {
	*rig
	t *testing.T
	r *rand.Rand

	mu    sync.Mutex // guards the following
	zone  map[string][]netip.Addr
	fault error
	said  map[string]map[netip.Addr]bool // what each name ever resolved to

	policy *policy.Policy
	held   []held
}

// held is what a connection has.
type held struct {
	host  string
	port  uint16
	addrs []netip.Addr
}

var strollHosts = []string{"a.test", "b.test", "c.test", "x.w.test", "y.w.test", "10.9.9.9", "8.9.9.9"}

func newStroll(t *testing.T, seed uint64) *stroll {
	s := &stroll{rig: newRig(t), t: t, r: rand.New(rand.NewPCG(seed, 11)), zone: map[string][]netip.Addr{}, said: map[string]map[netip.Addr]bool{}}
	s.look = func(_ context.Context, _ []netip.AddrPort, host string, _ bool) outcome {
		s.mu.Lock()
		defer s.mu.Unlock()
		addrs := s.zone[host]
		switch {
		case s.fault != nil:
			return outcome{err: s.fault, ttl: 5 * time.Second, msg: "fault", result: ResultServer}
		case len(addrs) == 0:
			return outcome{err: ErrNotFound, ttl: 5 * time.Second, msg: "none", result: ResultNotFound}
		}
		if s.said[host] == nil {
			s.said[host] = map[netip.Addr]bool{}
		}
		for _, a := range addrs {
			s.said[host][a] = true
		}
		return outcome{addrs: slices.Clone(addrs), ttl: time.Duration(len(addrs)) * 40 * time.Second, result: ResultOK}
	}
	return s
}

// draw writes a policy at random.
func (s *stroll) draw() *policy.Policy {
	var egress, root, routes []string
	ranges := func(h string) string {
		if _, err := netip.ParseAddr(h); err == nil {
			return ""
		}
		return []string{"", ", addresses: [10.0.0.0/8]", ", addresses: [10.0.0.0/9]"}[s.r.IntN(3)]
	}
	ends := func() string {
		if s.r.IntN(4) > 0 {
			return ""
		}
		return ", expires: " + s.clock.now().Add(time.Duration(s.r.IntN(300)-30)*time.Second).Format(time.RFC3339)
	}
	for _, h := range append(strollHosts, "*.w.test") {
		if s.r.IntN(2) == 0 {
			egress = append(egress, fmt.Sprintf("  - {host: %q, ports: %s%s%s}\n", h, []string{"[443]", "[80]", "[80, 443]"}[s.r.IntN(3)], ranges(h), ends()))
		}
		if h[0] != '*' && s.r.IntN(4) == 0 {
			root = append(root, fmt.Sprintf("  - {host: %q, ports: [%d]%s%s}\n", h, []int{80, 443}[s.r.IntN(2)], ranges(h), ends()))
		}
		if h[0] != '*' && s.r.IntN(4) == 0 {
			routes = append(routes, fmt.Sprintf("  - {name: r%d, path: /r%d, upstream: \"https://%s\", allow: [GET /]%s%s}\n", len(routes), len(routes), h, ranges(h), ends()))
		}
	}
	text := ""
	for key, list := range map[string][]string{"egress": egress, "root": root, "routes": routes} {
		if len(list) > 0 {
			text += key + ":\n" + strings.Join(list, "")
		}
	}
	return load(s.t, text)
}

// rules are all by which a policy may lead to a host and port.
func rules(p *policy.Policy, host string) []string {
	all := []string{"egress/" + host, "egress/*.w.test"}
	for i := range p.Routes {
		all = append(all, "route/"+p.Routes[i].Name)
	}
	return all
}

// justified says whether the policy has any use for an address of a host at a port, told from its text alone.
func (s *stroll) justified(at netip.AddrPort, now time.Time) bool {
	p := s.policy
	for _, h := range strollHosts {
		literal, err := netip.ParseAddr(h)
		if err == nil && literal != at.Addr() || err != nil && !s.said[h][at.Addr()] {
			continue
		}
		var ranges [][]netip.Prefix
		if grant, ok := p.Resolvable(h, at.Port(), now); ok {
			ranges = append(ranges, grant.Addresses)
		}
		for _, e := range p.Root {
			if e.Host.Name == h && slices.Contains(e.Ports, at.Port()) && (e.Expires.IsZero() || now.Before(e.Expires)) {
				ranges = append(ranges, e.Addresses)
			}
		}
		for _, list := range ranges {
			if _, refused := Special(at.Addr(), list); !refused || err == nil {
				return true
			}
		}
	}
	return false
}

func (s *stroll) step() {
	host := strollHosts[s.r.IntN(len(strollHosts))]
	port := []uint16{80, 443}[s.r.IntN(2)]
	switch what := s.r.IntN(20); {
	case what < 8:
		s.connect(host, port)
	case what < 12 && len(s.held) > 0:
		i := s.r.IntN(len(s.held))
		h := s.held[i]
		s.held = slices.Delete(s.held, i, i+1)
		s.Release(h.host, h.port, h.addrs)
	case what < 14:
		s.mu.Lock()
		s.zone[host] = nil
		for range s.r.IntN(4) {
			s.zone[host] = append(s.zone[host], netip.AddrFrom4([4]byte{[]byte{8, 10}[s.r.IntN(2)], byte(s.r.IntN(2)) * 200, 0, byte(s.r.IntN(4))}))
		}
		s.mu.Unlock()
	case what == 14:
		s.mu.Lock()
		s.fault = []error{nil, ErrServer, ErrTimeout, nil}[s.r.IntN(4)]
		s.mu.Unlock()
	case what < 17:
		s.clock.add(time.Duration(s.r.IntN(100)) * time.Second)
	case what == 17:
		s.kernel.broken([]error{nil, nil, errors.New("no space left")}[s.r.IntN(3)])
		s.kernel.late = s.r.IntN(2) == 0
	default:
		s.reload()
	}
	s.tick()
	s.flights.Wait()
}

func (s *stroll) reload() {
	p := s.draw()
	remove, err := s.SetPolicy(p)
	if err != nil {
		return
	}
	s.check("between the two steps of a reload")
	s.policy = p
	remove()
}

func (s *stroll) connect(host string, port uint16) {
	all := rules(s.policy, host)
	rule := all[s.r.IntN(len(all))]
	got, err := s.Acquire(s.t.Context(), rule, host, port)
	if err != nil {
		return
	}
	s.held = append(s.held, held{host, port, got})
	now := s.clock.now()
	if _, ok := s.policy.Resolvable(host, port, now); !ok {
		s.t.Errorf("%s:%d was given, and is not allowed", host, port)
	}
	for _, a := range got {
		if !s.kernel.has(netip.AddrPortFrom(a, port).String()) {
			s.t.Errorf("%s of %s:%d was given, and is not in the kernel", a, host, port)
		}
		if _, err := netip.ParseAddr(host); err == nil {
			continue
		}
		if _, refused := Special(a, s.policy.Ranges(rule, host, port, now)); refused {
			s.t.Errorf("%s of %s:%d was given to %s, which does not list it", a, host, port, rule)
		}
	}
}

// check holds the kernel against policy and connections, when it takes what it is sent.
func (s *stroll) check(when string) {
	s.t.Helper()
	now := s.clock.now()
	for _, h := range s.held {
		grant, ok := s.policy.Resolvable(h.host, h.port, now)
		for _, a := range h.addrs {
			at := netip.AddrPortFrom(a, h.port)
			if _, refused := Special(a, grant.Addresses); ok && !refused && !s.kernel.has(at.String()) {
				s.t.Errorf("%s: %s of %s is in use and allowed, and not in the kernel", when, at, h.host)
			}
		}
	}
}

func (s *stroll) settle() {
	s.kernel.broken(nil)
	s.clock.add(2 * commitRetry)
	for range 3 {
		s.tick()
		s.flights.Wait()
	}
}

func (s *stroll) compare(when string) {
	s.t.Helper()
	s.check(when)
	now := s.clock.now()
	for _, e := range s.kernel.list() {
		if !s.justified(endpoint(e), now) {
			s.t.Errorf("%s: the kernel has %s, for which there is no reason", when, e)
		}
	}
	var known []string
	for _, e := range s.Elements() {
		known = append(known, e.String())
	}
	slices.Sort(known)
	if !slices.Equal(known, s.kernel.list()) && len(known)+len(s.kernel.list()) > 0 {
		s.t.Errorf("%s: thought to be in the kernel %v, is %v", when, known, s.kernel.list())
	}
}

// finish ends every connection and waits: what is left is written in the policy, or root's.
func (s *stroll) finish() {
	for _, h := range s.held {
		s.Release(h.host, h.port, h.addrs)
	}
	s.held = nil
	s.mu.Lock()
	s.fault, s.zone = nil, map[string][]netip.Addr{}
	s.mu.Unlock()
	for range 12 {
		s.clock.add(10 * time.Minute)
		s.settle()
	}
	now := s.clock.now()
	for _, e := range s.kernel.list() {
		h := endpoint(e).Addr().String()
		if !slices.Contains(strollHosts, h) || !s.justified(endpoint(e), now) {
			s.t.Errorf("in the end the kernel has %s", e)
		}
	}
	s.Resolver.mu.Lock()
	defer s.Resolver.mu.Unlock()
	for _, n := range s.table.names {
		if n.pins != 0 || len(n.claims) == 0 {
			s.t.Errorf("in the end there is %s with %d pins and %d claims", n.host, n.pins, len(n.claims))
		}
	}
}

func TestResolverAgainstAModel(t *testing.T) {
	most := 0
	for seed := range uint64(30) {
		s := newStroll(t, seed)
		s.policy = s.draw()
		s.apply(t, s.policy)
		for n := range 300 {
			s.step()
			if n%5 == 0 {
				s.settle()
				s.compare(fmt.Sprintf("seed %d, step %d", seed, n))
				most = max(most, len(s.kernel.list()))
			}
			if t.Failed() {
				t.Fatalf("seed %d, step %d", seed, n)
			}
		}
		s.finish()
		if t.Failed() {
			t.Fatalf("seed %d, the end", seed)
		}
	}
	if most < 10 {
		t.Errorf("control: at most %d endpoints", most)
	}
}
