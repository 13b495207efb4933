// Package engine holds one running gate together: which generation of the policy is in force, in which order things
// start, how a reload goes, and what there is to tell about it.
//
//	e := engine.New(engine.Options{...})
//	if err := e.Start(ctx); err != nil { ... }        // policy, secrets, listeners, proxy, sets; nothing runs before it is closed
//	go e.Run(ctx)                                     // leases, drift, the proxy's life, reloads asked for by Hangup
//	result, err := e.Reload(ctx, "reload command")    // prove, commit, else keep
//	status := e.Status()
//	e.Stop(ctx)
//
// The fence is installed, with empty sets, before New is called; everything here only adds to it what policy allows.
// A reload that fails at any step leaves the generation in force as it was.
//
// Not done here: no process is started (the caller's Spawn does), no rule is written but through the fence, no word of
// policy is interpreted but by package policy, and nothing is printed.
package engine

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"exitgate/cmd/internal/secrets"
	"exitgate/firewall"
	"exitgate/firewall/resolver"
	"exitgate/policy"
)

// Options are the outside world, filled in by the command.
type Options struct {
	Mode       string                                                                    // "init", "sidecar", "attach", "isolate": for status
	PolicyFile string                                                                    // path, read by ReadPolicy
	ReadPolicy func(path string) ([]byte, error)                                         // bounded by policy.MaxSize
	Fence      *firewall.Writer                                                          // installed, sets empty
	Secrets    secrets.Options                                                           // Changed is filled in here
	Audit      func(policy.Event)                                                        // never blocks
	Spawn      func(guest *os.File) (Process, error)                                     // starts the proxy process with guest as its descriptor 3
	Listen     func(policy.Agent, netip.AddrPort) (net.Listener, error)                  // in the fenced namespace
	Holder     func(netip.AddrPort) string                                               // whose listener holds an address, for an error; "" unknown; may be nil
	Caller     func(client, server netip.AddrPort, a policy.Agent) (pid int, exe string) // who is at the far end of a connection, for the audit; nil: unknown
	Program    func(pid int, a policy.Agent) string                                      // what a process of the agent's runs, for the audit; nil: unknown
	Log        func(format string, args ...any)                                          // what went wrong, or may
	Note       func(format string, args ...any)                                          // what came to pass; nil: silent
	Now        func() time.Time                                                          // nil: time.Now
	FileRoot   string                                                                    // "" is /; resolv.conf and hosts are read below it
	Lost       func(why string)                                                          // the fence cannot be kept: the agent must end
	DenyLog    func() (*firewall.DenyLog, error)                                         // opens the log of refused packets, in the fenced namespace
	Sender     func(d firewall.Denied, a policy.Agent) (pid int, exe string)             // who sent a refused packet, for the audit; nil: unknown
	InReach    bool                                                                      // agents see the file system that PolicyFile is in
	Follow     bool                                                                      // reload when the policy file changes
	Drift      time.Duration                                                             // how often the kernel's generation is polled, as a backstop
	DirectDial bool                                                                      // attach, isolate: the proxy dials outside the fence, whose sets stay empty
}

// Process is the running proxy process.
type Process interface {
	PID() int
	Done() <-chan struct{} // closed when it has been waited for
	Kill()
	String() string // how it ended, once Done
}

// Engine is one gate. All methods may be called from any goroutine.
type Engine struct {
	Options
	resolver *resolver.Resolver
	secrets  *secrets.Store
	fixed    *fixed
	proxy    *keeper
	callers  *callers
	metrics  *metrics

	current  atomic.Pointer[generation] // in force: every reader sees one whole generation
	read     atomic.Pointer[sight]      // the policy file as it was when it was last read
	hangups  chan string                // asks Run for a reload; one waiting is enough, since a reload reads the newest file
	ready    atomic.Bool
	unlogged error        // why refused packets are counted only; written by Start
	hushed   atomic.Int32 // self-tests under way
	refused  tally        // packets
	started  time.Time

	reloading sync.Mutex // one reload at a time
	listeners listeners

	mu      sync.Mutex // guards the following
	missing []string   // in the surroundings, beside those of the policy
	last    ReloadResult
	drift   DriftStatus
	wait    chan struct{} // closed and replaced whenever status may have changed
}

// generation is one policy in force, with all that was computed from it.
type generation struct {
	number  uint64
	data    []byte // the file, which the proxy loads by the same function
	policy  *policy.Policy
	secrets map[string]secrets.Secret
}

// New puts the parts together; nothing runs yet.
func New(o Options) *Engine {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Note == nil {
		o.Note = func(string, ...any) {}
	}
	e := &Engine{Options: o, hangups: make(chan string, 1), wait: make(chan struct{}), started: o.Now()}
	e.metrics = newMetrics(e)
	o.Secrets.Changed = e.secretsChanged
	e.secrets = secrets.New(o.Secrets)
	e.fixed = &fixed{fence: o.Fence, direct: o.DirectDial}
	e.resolver = resolver.New(resolver.Config{
		Root:      o.FileRoot,
		Commit:    e.commitPins,
		Resolvers: e.useResolvers,
		Now:       o.Now,
		Observe:   e.observe,
		Count:     e.metrics.lookup,
	})
	e.proxy = newKeeper(e)
	e.callers = newCallers(e)
	e.listeners = listeners{open: make(map[listenerKey]net.Listener)}
	return e
}

// Policy is the policy in force; nil before Start.
func (e *Engine) Policy() *policy.Policy {
	if g := e.current.Load(); g != nil {
		return g.policy
	}
	return nil
}

// observe is the one way into the audit: it stamps what every line carries.
func (e *Engine) observe(ev policy.Event) {
	if ev.Time.IsZero() {
		ev.Time = e.Now()
	}
	if g := e.current.Load(); g != nil && ev.Generation == 0 {
		ev.Generation = g.number
	}
	e.metrics.event(ev)
	e.Audit(ev)
}

// commitPins is the resolver's road into the kernel. Where the proxy dials from outside the fence the sets stay empty.
func (e *Engine) commitPins(add, del []netip.AddrPort) error {
	if e.DirectDial {
		return nil
	}
	return e.Fence.Update(firewall.Contents{Egress: tcp(add)}, firewall.Contents{Egress: tcp(del)})
}

// protoTCP is IPPROTO_TCP: whatever the proxy dials is TCP.
const protoTCP = 6

func tcp(addrs []netip.AddrPort) []firewall.Endpoint {
	out := make([]firewall.Endpoint, len(addrs))
	for i, a := range addrs {
		out[i] = firewall.Endpoint{Proto: protoTCP, Addr: a.Addr(), Port: a.Port()}
	}
	return out
}

// changed wakes whoever waits for a status.
func (e *Engine) changed() {
	e.mu.Lock()
	defer e.mu.Unlock()
	close(e.wait)
	e.wait = make(chan struct{})
}

// Await returns when cond holds, or ctx ends.
func (e *Engine) Await(ctx context.Context, cond func() bool) error {
	for {
		e.mu.Lock()
		changed := e.wait
		e.mu.Unlock()
		if cond() {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("still waiting: %w", ctx.Err())
		}
	}
}
