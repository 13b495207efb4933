package engine

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"exitgate/cmd/internal/wire"
	"exitgate/firewall/resolver"
	"exitgate/policy"
	"exitgate/proxy"
)

// How long the proxy may take. A healthy one applies 10,000 hosts in tens of milliseconds and answers a ping in less than one.
const (
	applyTimeout = 5 * time.Second
	pingEvery    = 2 * time.Second
	pingTimeout  = 5 * time.Second
	lookTimeout  = 250 * time.Millisecond
	maxBackoff   = 2 * time.Second
)

// keeper keeps one proxy process running, with the target generation. Its death closes nothing and opens nothing: the
// listeners stay here, the pins that it held are given back, and the next one gets the same generation.
type keeper struct {
	engine *Engine
	ctx    context.Context
	cancel context.CancelFunc
	ended  chan struct{}

	mu       sync.Mutex // guards the following
	host     *wire.Host // nil while no proxy runs
	process  Process
	target   *generation
	inForce  *generation // what the running proxy enforces; nil while none does
	restarts int
	lastEnd  string
	stats    proxy.Stats
	looking  chan struct{} // closed when the question under way is answered; nil: none is
	stopping bool
}

func newKeeper(e *Engine) *keeper {
	ctx, cancel := context.WithCancel(context.Background())
	return &keeper{engine: e, ctx: ctx, cancel: cancel, ended: make(chan struct{})}
}

// run starts the proxy again whenever it ends, at once the first time and then with a growing pause.
func (k *keeper) run() {
	defer close(k.ended)
	pause := time.Duration(0)
	for k.ctx.Err() == nil {
		began := time.Now()
		end := k.once()
		if k.isStopping() {
			return
		}
		k.died(end)
		if time.Since(began) > 10*time.Second {
			pause = 0
		}
		select {
		case <-time.After(pause):
		case <-k.ctx.Done():
		}
		pause = min(2*pause+50*time.Millisecond, maxBackoff)
	}
}

// once runs one proxy process from its start to its end, and says how it ended.
func (k *keeper) once() string {
	conn, guest, err := wire.Pair()
	if err != nil {
		return err.Error()
	}
	process, err := k.engine.Spawn(guest)
	guest.Close()
	if err != nil {
		conn.Close()
		return err.Error()
	}
	host := wire.NewHost(conn, (*answers)(k.engine))
	k.mu.Lock()
	k.host, k.process = host, process
	k.mu.Unlock()
	served := make(chan error, 1)
	go func() { served <- host.Serve(k.ctx) }()
	go k.watch(host, process)

	var end string
	select {
	case <-process.Done():
		end = process.String()
		host.Close()
		<-served
	case err := <-served:
		process.Kill()
		<-process.Done()
		end = fmt.Sprintf("%s (%v)", process, err)
	}
	return end
}

// watch configures a new proxy and then asks it for signs of life: a stopped process is as bad as a dead one.
func (k *keeper) watch(host *wire.Host, process Process) {
	for target := k.first(); ; {
		if target == nil {
			return
		}
		if err := k.configure(host, target); err != nil {
			k.engine.Log("the proxy does not take the policy: %v", err)
			process.Kill()
			return
		}
		next := k.enforces(host, target)
		if next == target {
			break
		}
		target = next // a reload came meanwhile, and waits for us: a proxy without a policy is not its to configure
	}
	tick := time.NewTicker(pingEvery)
	defer tick.Stop()
	for {
		select {
		case <-process.Done():
			return
		case <-tick.C:
			if !k.ping(host) {
				process.Kill()
				return
			}
		}
	}
}

func (k *keeper) ping(host *wire.Host) bool {
	ctx, cancel := context.WithTimeout(k.ctx, pingTimeout)
	defer cancel()
	return k.count(ctx, host) == nil || k.ctx.Err() != nil
}

// look brings the proxy's counters to now, for somebody who asks for them. Where it does not answer at once, those of its
// last sign of life stand: the question goes on, with the patience of any, since to give one up is to give up the proxy.
func (k *keeper) look() {
	k.mu.Lock()
	if k.looking == nil && k.inForce != nil {
		k.looking = make(chan struct{})
		go k.lookAt(k.host, k.looking)
	}
	answered := k.looking
	k.mu.Unlock()
	if answered == nil {
		return
	}
	select {
	case <-answered:
	case <-time.After(lookTimeout):
	}
}

func (k *keeper) lookAt(host *wire.Host, answered chan struct{}) {
	k.ping(host)
	k.mu.Lock()
	k.looking = nil
	k.mu.Unlock()
	close(answered)
}

func (k *keeper) count(ctx context.Context, host *wire.Host) error {
	stats, err := host.Ping(ctx)
	if err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.host == host { // and not of one that has died meanwhile
		k.stats = stats
	}
	return nil
}

func (k *keeper) configure(host *wire.Host, g *generation) error {
	ctx, cancel := context.WithTimeout(k.ctx, applyTimeout)
	defer cancel()
	names, sockets := k.engine.handover(g.policy)
	message := &wire.Configure{Generation: g.number, Draft: wire.Draft{File: g.policy.File, Text: g.data}, Listeners: names,
		Secrets: make(map[string]wire.Secret)}
	for name, s := range g.secrets {
		message.Secrets[name] = wire.Secret{Value: s.Value.Reveal(), Broken: s.Broken}
	}
	for _, v := range k.engine.secrets.Retired() {
		message.Retired = append(message.Retired, v.Reveal())
	}
	applied, err := host.Configure(ctx, message, sockets)
	if err != nil {
		return err
	}
	if applied.Digest != g.policy.Digest() {
		return errors.New("the proxy read another policy than PID 1")
	}
	return nil
}

// enforces notes what a proxy has taken, and gives what it should have now.
func (k *keeper) enforces(host *wire.Host, g *generation) (target *generation) {
	k.mu.Lock()
	if k.host == host { // and not of one that has died meanwhile
		k.inForce = g
	}
	target = k.target
	k.mu.Unlock()
	k.engine.changed()
	return target
}

// draft gives the proxy a head start with a policy that may come into force, and does not wait. What goes wrong shows
// when it does.
func (k *keeper) draft(file string, text []byte) {
	k.mu.Lock()
	host := k.host
	k.mu.Unlock()
	if host != nil {
		go func() { _ = host.Draft(wire.Draft{File: file, Text: text}) }()
	}
}

// died clears what the dead process held and tells.
func (k *keeper) died(end string) {
	k.mu.Lock()
	k.host, k.process, k.inForce, k.stats = nil, nil, nil, proxy.Stats{}
	k.restarts++
	k.lastEnd = end
	k.mu.Unlock()
	k.engine.metrics.restart()
	k.engine.Log("the proxy ended (%s); starting it again, the fence stays closed", end)
	k.engine.observe(policy.Event{Event: "child", Decision: "deny", Reason: "the proxy ended: " + end})
	k.engine.changed()
}

// apply brings g into force in the proxy: by Configure where one runs and answers in time, else by killing it and
// letting the next one start with g. One that is being started comes to g by itself. Secrets that changed take the same road,
// as another generation with the number unchanged.
func (k *keeper) apply(ctx context.Context, g *generation) error {
	k.mu.Lock()
	before := k.target
	k.target = g
	host, process := k.host, k.process
	running := k.inForce != nil
	k.mu.Unlock()
	if running {
		err := k.configure(host, g)
		if err == nil {
			k.enforces(host, g)
			return nil
		}
		var refused *wire.Refused
		if errors.As(err, &refused) {
			k.retarget(before)
			return fmt.Errorf("the proxy refused the policy: %w", err)
		}
		k.engine.Log("the proxy did not apply generation %d (%v); starting it anew", g.number, err)
		process.Kill()
	}
	err := k.await(ctx, func() bool { return k.inForce == g })
	if err != nil && k.giveUp(g, before) {
		return err
	}
	return nil
}

// giveUp has the next proxy, or the one that is being started, take before instead of g; false where g is in force after all.
func (k *keeper) giveUp(g, before *generation) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.inForce == g {
		return false
	}
	k.target = before
	return true
}

func (k *keeper) retarget(g *generation) {
	k.mu.Lock()
	k.target = g
	k.mu.Unlock()
	k.engine.changed()
}

// first is the target, once there is one; nil when the gate ends before.
func (k *keeper) first() (g *generation) {
	_ = k.engine.Await(k.ctx, func() bool {
		k.mu.Lock()
		defer k.mu.Unlock()
		g = k.target
		return g != nil
	})
	return g
}

// await waits for the proxy to come to what cond, called with mu held, asks for.
func (k *keeper) await(ctx context.Context, cond func() bool) error {
	ctx, cancel := context.WithTimeout(ctx, 2*applyTimeout)
	defer cancel()
	err := k.engine.Await(ctx, func() bool {
		k.mu.Lock()
		defer k.mu.Unlock()
		return cond()
	})
	if err != nil {
		k.mu.Lock()
		defer k.mu.Unlock()
		return fmt.Errorf("the proxy did not take the policy within %v%s", 2*applyTimeout, ended(k.lastEnd))
	}
	return nil
}

func ended(how string) string {
	if how == "" {
		return ""
	}
	return "; it ended: " + how
}

func (k *keeper) isStopping() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.stopping
}

// stop lets the proxy finish what is under way until ctx ends, then kills it.
func (k *keeper) stop(ctx context.Context) {
	k.mu.Lock()
	k.stopping = true
	host, process := k.host, k.process
	k.mu.Unlock()
	if process != nil {
		if host.Drain() == nil {
			select {
			case <-process.Done():
			case <-ctx.Done():
			}
		}
		process.Kill()
	}
	k.cancel()
	if process != nil {
		<-k.ended
	}
}

// answers is the engine as the proxy may use it.
type answers Engine

// Resolve is the one road from a name to an address. Policy is asked, with the clock, before DNS is.
func (a *answers) Resolve(ctx context.Context, rule, host string, port uint16) ([]netip.Addr, error) {
	addrs, err := a.resolver.Acquire(ctx, rule, host, port)
	if err == nil {
		return addrs, nil
	}
	f := &proxy.Failure{Kind: resolver.KindInternal, Msg: err.Error()}
	var why *resolver.Error
	if errors.As(err, &why) {
		f.Kind, f.Msg = why.Kind, why.Msg // who shows it names the host
	}
	return nil, f
}

func (a *answers) Done(host string, port uint16, addrs []netip.Addr) {
	a.resolver.Release(host, port, addrs)
}

func (a *answers) Refresh(credential string) { a.secrets.Refresh(credential) }

// Opened starts the search for the connection's owner, while it is there to be found.
func (a *answers) Opened(agent string, c proxy.Conn) { a.callers.search(agent, c) }

// Event completes a line with what only PID 1 knows, and writes it when that is known.
func (a *answers) Event(ev policy.Event, c proxy.Conn) { a.callers.complete(ev, c) }
