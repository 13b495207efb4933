// Package resolver turns allowed names into the addresses that may be dialled, and keeps the kernel's egress
// set in step with them.
//
// It runs in the privileged process; the proxy asks it for a name and dials what it gets back:
//
//	r := resolver.New(resolver.Config{Commit: commit, Resolvers: open})
//	remove, err := r.SetPolicy(p)   // allowed by the old policy or the new from here on
//	err = remove()                  // allowed by the new one only
//	go r.Run(ctx)                   // refresh on TTL, expiry of leases, /etc/hosts and resolv.conf
//	addrs, err := r.Acquire(ctx, "route/api", "api.example.com", 443)
//	defer r.Release("api.example.com", 443, addrs)
//
// Acquire asks the policy first, so that a refused name causes no DNS packet; then /etc/hosts, the cache, the
// resolvers. It refuses addresses of special-purpose ranges that the policy entry does not list, and returns
// only after the kernel acknowledged what it returns. An address stays in the kernel while some allowed name
// holds it by lease (TTL and a grace) or by pin (a connection uses it).
//
// What it does not do: it validates no DNSSEC, speaks no DoT or DoH, knows no search list (names are
// absolute), and answers nobody but its caller. An address is shared by many names on a CDN; who answers
// there is for TLS to prove.
package resolver

import (
	"context"
	"math/rand/v2"
	"net/netip"
	"sync"
	"time"

	"exitgate/policy"
)

// Config is the outside world of a Resolver. Every field but Commit may be left out.
type Config struct {
	// Root is put before etc/resolv.conf and etc/hosts; "" is "/".
	Root string
	// Commit adds and deletes TCP endpoints in the kernel and returns after the kernel acknowledged, all or
	// nothing. Calls are serialised, and in the order in which the state changed. Adding what is there and
	// deleting what is not must be no error.
	Commit func(add, del []netip.AddrPort) error
	// Resolvers opens the kernel for these DNS servers. It is called before a list is used for the first
	// time and before a changed one is used; while it fails the old list stays in use.
	Resolvers func(servers []netip.AddrPort) error
	// Now is the clock; nil is time.Now.
	Now func() time.Time
	// Rand yields jitter in [0,1); nil is math/rand.
	Rand func() float64
	// Observe gets "pin" events: new addresses of a name (decision allow) and refused ones (deny), at most a
	// few a second. It is called from several goroutines, and must not call back.
	Observe func(policy.Event)
	// Count gets one of the Result words per lookup; called from several goroutines.
	Count func(result string)
	// IPv6 says whether AAAA records are worth asking for; nil: a route beyond the link is in
	// /proc/net/ipv6_route.
	IPv6 func() bool
	// Local lists addresses that no name may stand for unless its policy entry lists them; nil: the
	// interfaces' own and the default gateways.
	Local func() []netip.Addr
}

// Resolver holds names, leases and pins. Its methods may be called from any goroutine.
type Resolver struct {
	cfg  Config
	sys  *system
	look func(ctx context.Context, servers []netip.AddrPort, host string, six bool) outcome

	commit sync.Mutex // serialises Commit; taken before mu
	reload sync.Mutex // serialises changes of policy, and guards serial; taken before commit
	serial int        // of the latest policy

	mu    sync.Mutex // guards what follows
	gens  []*generation
	table *table
	busy  int       // background lookups in flight
	retry time.Time // a commit failed: not before then by Run
	news  news

	kick    chan struct{}
	life    context.Context // ends every lookup when Run ends
	die     context.CancelFunc
	flights sync.WaitGroup
}

// New reads resolv.conf and hosts, and allows nothing until SetPolicy.
func New(cfg Config) *Resolver {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Rand == nil {
		cfg.Rand = rand.Float64
	}
	if cfg.Count == nil {
		cfg.Count = func(string) {}
	}
	if cfg.Observe == nil {
		cfg.Observe = func(policy.Event) {}
	}
	r := &Resolver{cfg: cfg, kick: make(chan struct{}, 1)}
	r.life, r.die = context.WithCancel(context.Background())
	r.sys = newSystem(cfg)
	r.look = newAsker().lookup
	r.table = newTable(r.sys.special)
	return r
}

// Servers lists the DNS servers that the kernel must let through: those asked here, and those Docker's
// embedded DNS asks from this namespace.
func (r *Resolver) Servers() []netip.AddrPort { return r.sys.facts().open() }

// Elements lists the endpoints the kernel was told to hold, sorted.
func (r *Resolver) Elements() []netip.AddrPort {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.table.held()
}
