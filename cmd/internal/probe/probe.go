// Package probe tests a fence by its behaviour, from where the agent stands.
//
//	tests := probe.Tests(plan)                     // what is tried, and what must come of it; pure
//	results := probe.Attempt(tests)                // in a process that has become the agent
//	verdict := probe.Judge(tests, results, seen)   // in PID 1, with what its canaries and counters saw; pure
//
// A refusal proves something only where the same attempt would have succeeded without the fence. So the targets inside
// the box are canaries, sockets of root's that would answer; for the targets outside it is the kernel's own counter of
// refused packets that must move; and where there is no route the attempt is told apart as proving nothing. The positive
// control is the agent's own listener, which must answer.
//
// Not done here: no namespace is entered and no process started.
package probe

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Test is one attempt.
type Test struct {
	Name    string `json:"name"`
	Network string `json:"network"` // tcp, udp, icmp (a ping socket), raw, packet
	Target  string `json:"target"`  // address, with a port where the protocol has one
	Want    Want   `json:"want"`
	Canary  bool   `json:"canary,omitempty"` // the target is a socket of ours that would answer
	Silent  bool   `json:"silent,omitempty"` // the kernel reports no error to the sender: only the counter tells
}

// Want is what must come of a test.
type Want string

// The two outcomes.
const (
	Refused Want = "refused"
	Open    Want = "open"
)

// Result is what came of it.
type Result struct {
	Name    string        `json:"name"`
	Errno   syscall.Errno `json:"errno"` // 0: it went through
	Failure string        `json:"failure,omitempty"`
	Elapsed time.Duration `json:"elapsed"`
}

// Plan is what a namespace has that is worth trying.
type Plan struct {
	Listeners []netip.AddrPort // the agent's own: must answer
	Canaries  []netip.AddrPort // TCP and UDP sockets of root's, on loopback and on the own addresses: must not be reached
	Resolvers []netip.AddrPort
}

// Addresses that stand for the outside: TEST-NET-1 and the documentation prefix, where nobody answers, and the metadata
// services of the clouds, where somebody might.
var outside = []struct{ name, addr string }{
	{"internet4", "192.0.2.1"}, {"internet6", "2001:db8::1"},
	{"metadata4", "169.254.169.254"}, {"metadata6", "fd00:ec2::254"}, {"metadata-ecs", "169.254.170.2"}, {"metadata-azure", "168.63.129.16"},
}

// Tests are the attempts for a plan.
func Tests(p Plan) []Test {
	var tests []Test
	add := func(name, network, target string, want Want, canary bool) {
		tests = append(tests, Test{Name: name, Network: network, Target: target, Want: want, Canary: canary})
	}
	for _, l := range p.Listeners {
		add("listener "+l.String(), "tcp", l.String(), Open, true)
	}
	for _, o := range outside {
		add("tcp "+o.name, "tcp", net.JoinHostPort(o.addr, "443"), Refused, false)
		add("udp "+o.name, "udp", net.JoinHostPort(o.addr, "443"), Refused, false)
		add("icmp "+o.name, "icmp", o.addr, Refused, false)
		// A ping socket reports success for IPv6 although the packet was refused (Linux 6.18).
		tests[len(tests)-1].Silent = strings.Contains(o.addr, ":")
	}
	for _, c := range p.Canaries {
		add("tcp "+c.String(), "tcp", c.String(), Refused, true)
		add("udp "+c.String(), "udp", c.String(), Refused, true)
	}
	for _, r := range append(p.Resolvers, netip.MustParseAddrPort("127.0.0.11:53")) {
		add("dns udp "+r.String(), "udp", r.String(), Refused, false)
		add("dns tcp "+r.String(), "tcp", r.String(), Refused, false)
	}
	add("raw", "raw", "192.0.2.1", Refused, false)
	add("packet", "packet", "", Refused, false)
	return tests
}

// patience bounds one attempt. A refusal takes less than a millisecond, on a machine that is overloaded a second or two, or a
// second SYN; a dropped packet would take minutes.
const patience = 5 * time.Second

// Attempt tries them all at once, in the calling process.
func Attempt(tests []Test) []Result {
	results := make([]Result, len(tests))
	var wg sync.WaitGroup
	for i, t := range tests {
		wg.Go(func() { results[i] = attempt(t) })
	}
	wg.Wait()
	return results
}

func attempt(t Test) Result {
	began := time.Now()
	err := try(t)
	r := Result{Name: t.Name, Elapsed: time.Since(began)}
	switch {
	case err == nil:
	case errors.As(err, &r.Errno):
	default: // a time-out of ours
		r.Errno, r.Failure = syscall.ETIMEDOUT, err.Error()
	}
	return r
}

func try(t Test) error {
	switch t.Network {
	case "tcp":
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		c, err := (&net.Dialer{}).DialContext(ctx, "tcp", t.Target)
		if err == nil {
			c.Close()
		}
		return err
	case "udp":
		return send(t.Target, syscall.SOCK_DGRAM, 0, 0)
	case "icmp":
		return send(t.Target, syscall.SOCK_DGRAM, unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6)
	case "raw":
		return send(t.Target, syscall.SOCK_RAW, unix.IPPROTO_RAW, unix.IPPROTO_RAW)
	case "packet":
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, 0)
		if err == nil {
			unix.Close(fd)
		}
		return err
	}
	return fmt.Errorf("no such test: %s", t.Network)
}

// echo is an ICMP echo request for both families' ping sockets; the kernel fills in identifier and checksum.
func echo(v6 bool) []byte {
	kind := byte(8)
	if v6 {
		kind = 128
	}
	return []byte{kind, 0, 0, 0, 0, 0, 0, 1}
}

// send makes an unconnected socket and sends one small datagram.
func send(target string, kind, proto4, proto6 int) error {
	where, err := parse(target)
	if err != nil {
		return err
	}
	family, proto := unix.AF_INET, proto4
	var to unix.Sockaddr = &unix.SockaddrInet4{Port: int(where.Port())}
	if where.Addr().Is4() {
		to.(*unix.SockaddrInet4).Addr = where.Addr().As4()
	} else {
		family, proto = unix.AF_INET6, proto6
		to = &unix.SockaddrInet6{Port: int(where.Port()), Addr: where.Addr().As16()}
	}
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, proto)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Sendto(fd, echo(family == unix.AF_INET6), 0, to)
}

func parse(target string) (netip.AddrPort, error) {
	if a, err := netip.ParseAddr(target); err == nil {
		return netip.AddrPortFrom(a, 0), nil
	}
	return netip.ParseAddrPort(target)
}
