// Package proxy is the gate an agent talks to: reverse routes that add a
// credential, CONNECT and absolute-form http to the hosts its policy names, and
// a refusal that says what to write for everything else.
//
//	s := proxy.New(proxy.Options{Resolver: r, Audit: audit})
//	if err := s.Configure(proxy.Config{Policy: p, Generation: 1, Secrets: secrets}); err != nil {
//		return err
//	}
//	go s.Serve("claude", listener) // the listener is the caller's identity
//	...
//	s.Configure(next)              // atomic; flows whose grant is gone are reset
//	s.Shutdown(ctx)
//
// What this does not do: it resolves no name and chooses no address (it asks
// its Resolver and dials what that returned, nothing else), follows no redirect,
// terminates no TLS of an agent's tunnel, caches nothing, writes no file and
// starts no process. It never forwards a request whose credential it lacks.
package proxy

import (
	"context"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"time"

	"exitgate/policy"
)

// Resolver turns a name into addresses that may be dialled now. Everything the
// proxy dials came from here.
type Resolver interface {
	// Resolve returns the pinned addresses of host:port that the rule's entry of the
	// policy may lead to. agent is who waits for
	// them: names are many agents', turns are not. A refusal is a *Failure.
	Resolve(ctx context.Context, agent, rule, host string, port uint16) (Pinned, error)
}

// Pinned are addresses that stay reachable until Release is called, which is
// done once, after the last connection to them has closed.
type Pinned struct {
	Addrs   []netip.Addr
	Release func() // may be nil
}

// Failure is why a name has no addresses. Msg is ours and is shown to the agent.
type Failure struct {
	Kind string // "denied", "nxdomain", "timeout", "address", "internal"
	Msg  string
}

// Error returns Msg.
func (f *Failure) Error() string { return f.Msg }

// Options are the proxy's surroundings; they outlive every Config.
type Options struct {
	Resolver Resolver
	Audit    func(policy.Event, Conn)                                // one call a decision, from several goroutines; nil: none
	Opened   func(agent string, c Conn)                              // a connection was accepted; must not block; nil: none
	Refresh  func(credential string)                                 // an upstream answered 401 to this credential; nil: none
	RootCAs  *x509.CertPool                                          // nil: the system's
	Dial     func(context.Context, netip.AddrPort) (net.Conn, error) // nil: net.Dialer
	Now      func() time.Time                                        // nil: time.Now
	Log      func(format string, args ...any)                        // nil: silent; never sees a peer's bytes
	Timeouts Timeouts
}

// Timeouts bound waiting, never a whole exchange: an answer may stream for as
// long as it likes. A zero field takes the default. Most are enforced by a sweep and
// may come 250 ms late.
type Timeouts struct {
	Head         time.Duration // first to last byte of a request head, and of a tunnel's ClientHello; 30 s
	Idle         time.Duration // an agent's connection between requests; 5 min
	Body         time.Duration // between two bytes of a request body; 5 min
	FirstByte    time.Duration // request sent to head of the answer; 1 h (clients themselves wait 10 min)
	HalfClosed   time.Duration // between two bytes of a tunnel that one side has closed; 5 min
	Dial         time.Duration // one connection attempt, and one TLS handshake; 10 s
	Connect      time.Duration // name, attempts and handshake together; 30 s
	UpstreamIdle time.Duration // an unused upstream connection; 55 s, below what load balancers close at
}

func (t *Timeouts) fill() {
	for _, d := range []struct {
		field *time.Duration
		value time.Duration
	}{
		{&t.Head, 30 * time.Second}, {&t.Idle, 5 * time.Minute}, {&t.Body, 5 * time.Minute},
		{&t.FirstByte, time.Hour}, {&t.HalfClosed, 5 * time.Minute}, {&t.Dial, 10 * time.Second},
		{&t.Connect, 30 * time.Second}, {&t.UpstreamIdle, 55 * time.Second},
	} {
		if *d.field == 0 {
			*d.field = d.value
		}
	}
}

// Conn is an accepted connection, as much of it as PID 1 needs to find its owner.
type Conn struct {
	Local, Remote netip.AddrPort // zero on a unix socket
	Peer          *Peer          // nil on TCP
}

// Peer is the owner of a unix socket connection, from SO_PEERCRED.
type Peer struct {
	PID int
	UID uint32
}

// Config is one generation: all that a request is judged and served by.
type Config struct {
	Policy     *policy.Policy
	Generation uint64
	Secrets    map[string]Secret // by credential name
	Retired    [][]byte          // values that were in use before this process began: scrubbed, never sent
}

// Secret is a credential's value, or why there is none. Whatever prints it
// prints "redacted".
type Secret struct {
	Value  []byte
	Broken string // not "": the routes of this credential answer 503 and say this
}

const redacted = "redacted"

// String returns "redacted".
func (Secret) String() string { return redacted }

// GoString returns "redacted".
func (Secret) GoString() string { return redacted }

// Format writes "redacted" for every verb.
func (Secret) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(redacted)) }

// MarshalJSON returns "redacted": a secret crosses to another process by a
// message of its own, never by being part of something printed.
func (Secret) MarshalJSON() ([]byte, error) { return []byte(`"` + redacted + `"`), nil }

// MarshalText returns "redacted".
func (Secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// LogValue returns "redacted".
func (Secret) LogValue() slog.Value { return slog.StringValue(redacted) }
