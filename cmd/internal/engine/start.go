package engine

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"exitgate/cmd/internal/secrets"
	"exitgate/policy"

	"github.com/prometheus/client_golang/prometheus"
)

// Start brings the first generation into force, in the order in which each step can still be refused: policy, secrets,
// listeners, resolvers into the sets, the proxy, the listeners into the sets, the names that policy requires. The fence
// is closed throughout; on an error nothing that was opened is left for an agent to use. What is slow and needs nothing of
// the policy begins first: the proxy's process, which does nothing before it is configured, and the deny log's transaction.
func (e *Engine) Start(ctx context.Context) error {
	go e.proxy.run()
	logged := make(chan error, 1)
	go func() { logged <- e.Fence.EnableDenyLog() }()
	g, err := e.prove(nil)
	if err != nil {
		return err
	}
	if _, err := e.openFor(g.policy); err != nil {
		return err
	}
	narrow, err := e.widen(g.policy)
	if err != nil {
		return err
	}
	e.current.Store(g)
	e.proxy.retarget(g)
	if err := e.proxy.await(ctx, func() bool { return e.proxy.inForce == g }); err != nil {
		return err
	}
	e.unlogged = <-logged
	if err := narrow(); err != nil {
		return err
	}
	if err := e.prewarm(ctx, g.policy); err != nil {
		return err
	}
	if err := e.trusted(g); err != nil {
		e.Warn(fmt.Sprintf("a change of the policy will be refused: %v", err))
	}
	e.logWarnings(nil, g.policy)
	e.secrets.Commit()
	e.metrics.begin(g.policy.Agents)
	e.metrics.reloaded(true, e.Now())
	e.observe(policy.Event{Event: "start", Decision: "allow", Reason: "generation 1, " + g.policy.Digest()})
	return nil
}

// prewarm looks up the first names. Only what the policy calls required is waited for: a dead name server must not keep
// an agent from starting that may not need it.
func (e *Engine) prewarm(ctx context.Context, p *policy.Policy) error {
	if slices.ContainsFunc(p.Names(e.Now()), func(n policy.Name) bool { return n.Required }) {
		return e.required(ctx)
	}
	go e.resolver.Prewarm(context.WithoutCancel(ctx))
	return nil
}

// How long the agent's start waits for required names, and how often it looks: as long as a lookup that nobody answers takes.
// The network, the name server and the service itself may come up beside us.
const (
	requiredWait = 8 * time.Second
	requiredPoll = 250 * time.Millisecond
)

// required looks the required names up until all are known. When each is asked for again is the resolver's own matter.
func (e *Engine) required(ctx context.Context) error {
	end := time.After(requiredWait)
	for told := false; ; told = true {
		err := e.resolver.Prewarm(ctx)
		if err == nil {
			return nil
		}
		if !told {
			e.Log("the agent waits for what is required: %v", err)
		}
		select {
		case <-time.After(requiredPoll):
		case <-end:
			return err
		case <-ctx.Done():
			return err
		}
	}
}

// Run does what goes on for as long as the gate stands. It returns when ctx ends.
func (e *Engine) Run(ctx context.Context) {
	go e.resolver.Run(ctx)
	go e.watchDrift(ctx)
	go e.secrets.Watch(ctx)
	if e.Follow {
		go e.follow(ctx)
	}
	for {
		select {
		case cause := <-e.hangups:
			_, _ = e.Reload(ctx, cause) // what went wrong is logged, audited and in status
		case <-ctx.Done():
			return
		}
	}
}

// Hangup asks for a reload and does not wait. A thousand of them in a second are a few reloads: one that has not begun
// will read the newest file anyway.
func (e *Engine) Hangup(cause string) {
	select {
	case e.hangups <- cause:
	default:
	}
}

// MarkReady says that the agent runs, or may be started by others.
func (e *Engine) MarkReady() {
	e.ready.Store(true)
	e.changed()
}

// Stop lets the proxy finish what is under way until ctx ends. The fence stays as it is.
func (e *Engine) Stop(ctx context.Context) {
	e.ready.Store(false)
	e.proxy.stop(ctx)
	e.TellDenied()
	if g := e.current.Load(); g != nil {
		e.closeUnwanted(&policy.Policy{})
	}
}

// secretsChanged gives the proxy the credentials as they are now: a reload, for whose end this waits, may have brought others
// than those that it is told of. The generation's number stays the same.
func (e *Engine) secretsChanged(map[string]secrets.Secret) {
	e.reloading.Lock()
	defer e.reloading.Unlock()
	g := *e.current.Load()
	g.secrets = e.secrets.Current()
	e.current.Store(&g)
	if err := e.proxy.apply(context.Background(), &g); err != nil {
		e.Log("a changed credential did not reach the proxy: %v", err)
		e.proxy.retarget(&g) // the next one has it: what was before is refused by now
	}
	e.changed()
}

// SecretValues are the credentials as text, for what must be kept free of them.
func (e *Engine) SecretValues() []string {
	var out []string
	for _, v := range e.secrets.Known() {
		out = append(out, string(v.Reveal()))
	}
	return out
}

// IsProxy tells the proxy process from others of root's: it may not ask the gate for anything but by its wire.
func (e *Engine) IsProxy(pid int) bool { return pid == e.proxy.snapshot().PID }

// Registry is where the metrics are.
func (e *Engine) Registry() *prometheus.Registry { return e.metrics.Registry }

// Resolvers are the name servers that are asked.
func (e *Engine) Resolvers() []netip.AddrPort { return e.resolver.Servers() }
