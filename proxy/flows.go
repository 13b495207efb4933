package proxy

import (
	"context"
	"errors"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"time"

	"exitgate/policy"
)

// cut is why a request was ended from outside its goroutine.
type cut int32

const (
	cutNone     cut = iota
	cutGone         // the agent left
	cutGrant        // its grant is gone: withdrawn or expired
	cutStalled      // no byte of the body, or no answer, in the time there is
	cutShutdown     // the proxy ends
	cutTunnel       // one side of a tunnel broke off
	cutFault        // a fault of ours
)

// aborter ends an upstream exchange at once, from any goroutine.
type aborter interface{ abort() }

// flow is the request that a connection serves now. Its goroutine owns it but
// for the fields that conn.mu guards.
type flow struct {
	snap     *snapshot
	event    policy.Event
	begun    time.Time // monotonic
	answered bool      // a final status has been written
	close    bool      // the connection ends with this request
	usage    *usage

	on     bool // guarded by conn.mu: the next three are set, and recheck looks at them
	asked  policy.Request
	ruled  policy.Decision
	id     string
	addr   netip.Addr // guarded by conn.mu: what was dialled
	up     aborter    // guarded by conn.mu
	cancel context.CancelFunc
	cut    cut // guarded by conn.mu
}

var errCut = errors.New("proxy: the flow was cut")

// begin starts a request on the connection.
func (c *conn) begin(req *http.Request) {
	now := time.Now()
	f := &c.flow
	c.mu.Lock()
	*f = flow{snap: c.srv.snap.Load(), begun: now}
	c.mu.Unlock()
	if c.srv.opt.Now != nil {
		now = c.srv.opt.Now()
	}
	f.event = policy.Event{
		Time: now, Event: "request", Agent: c.agent.name, Method: req.Method,
		Rule: "default", Decision: "allow", ID: c.srv.id(),
	}
	c.under(f.snap)
}

// under makes n the generation that the request is judged by.
func (c *conn) under(n *snapshot) {
	f := &c.flow
	f.snap = n
	if n == nil {
		return
	}
	f.event.Generation = n.generation
	if a := n.agent(c.agent.name); a != nil {
		f.event.UID = a.UID
	}
}

// over writes the request's audit line. It may be called twice.
func (c *conn) over() {
	f := &c.flow
	if f.event.ID == "" {
		return
	}
	c.mu.Lock()
	f.on, f.up, f.cancel = false, nil, nil
	why := f.cut
	c.mu.Unlock()
	if why != cutNone && f.event.Decision == "allow" {
		f.event.Reason = cutReason(why)
	}
	f.event.Duration = time.Since(f.begun)
	if f.usage != nil {
		f.event.Tokens = f.usage.tokens()
	}
	c.srv.record(f.event, c.info)
	f.event.ID, f.snap = "", nil
}

// record writes one audit line.
func (s *Server) record(e policy.Event, c Conn) {
	if s.opt.Audit != nil {
		s.opt.Audit(e, c)
	}
}

func cutReason(why cut) string {
	switch why {
	case cutGone:
		return "the agent left before the end"
	case cutGrant:
		return "reset: its grant is gone"
	case cutStalled:
		return "no byte in the time there is"
	case cutTunnel:
		return "reset: one side broke the tunnel off"
	case cutFault:
		return "an internal fault"
	}
	return "reset: the proxy ends"
}

// newer is returned by rule where another generation came while the request was
// judged. It is judged again from the start, so that it sees one generation only.
var newer = &refusal{reason: "a newer policy came"}

// rule has a request judged and makes it one that recheck knows of.
func (c *conn) rule(r policy.Request) (policy.Decision, *refusal) {
	f := &c.flow
	r.Now = f.event.Time
	d := f.snap.policy.Decide(r)
	f.event.Rule, f.event.Reason = d.Rule, d.Reason
	if !d.Allow {
		return d, deny(d)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if now := c.srv.snap.Load(); now != f.snap {
		c.under(now)
		return d, newer
	}
	f.asked, f.ruled, f.id, f.on = r, d, f.event.ID, true
	return d, nil
}

// gone reports whether the grant that f runs on is not in n any more. Callers
// hold the connection's mu.
func (f *flow) gone(n *snapshot, now time.Time) (policy.Decision, bool) {
	r := f.asked
	r.Now = now
	d := n.policy.Decide(r)
	switch {
	case !d.Allow:
		return d, true
	case d.Route != nil && f.ruled.Route != nil && d.Route.Upstream != f.ruled.Route.Upstream,
		outside(f.addr, grantAddresses(f.ruled), grantAddresses(d)):
		d.Allow, d.Reason = false, "the rule leads elsewhere now"
		return d, true
	}
	return d, false
}

func grantAddresses(d policy.Decision) []netip.Prefix {
	switch {
	case d.Route != nil:
		return d.Route.Addresses
	case d.Egress != nil:
		return d.Egress.Addresses
	}
	return nil
}

// outside reports whether a was reachable for being listed in was and is not
// listed any more.
func outside(a netip.Addr, was, is []netip.Prefix) bool {
	in := func(p netip.Prefix) bool { return p.Contains(a) }
	return a.IsValid() && slices.ContainsFunc(was, in) && !slices.ContainsFunc(is, in)
}

// dialling notes how to stop what the connection is about to wait for. It fails
// where the request was cut already.
func (c *conn) dialling() (context.Context, context.CancelFunc, error) {
	ctx, cancel := context.WithTimeout(context.Background(), c.srv.opt.Timeouts.Connect)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.flow.cut != cutNone {
		cancel()
		return nil, nil, errCut
	}
	c.flow.cancel = cancel
	return ctx, cancel, nil
}

// attach ties an upstream to the request, so that cutting one ends the other.
func (c *conn) attach(up aborter, addr netip.Addr) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.flow.cancel = nil
	if c.flow.cut != cutNone {
		up.abort()
		return errCut
	}
	c.flow.up, c.flow.addr = up, addr
	return nil
}

// detach unties the upstream: it goes back to the pool, or has been closed.
func (c *conn) detach() {
	c.mu.Lock()
	c.flow.up = nil
	c.mu.Unlock()
}

// dropUpstream ends the exchange with the upstream.
func (c *conn) dropUpstream() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.flow.up != nil {
		c.flow.up.abort()
		c.flow.up = nil
	}
}

// wasCut says why the request was ended from outside, or cutNone.
func (c *conn) wasCut() cut {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.flow.cut
}

// end cuts the request under way, if there is one, and resets the connection
// unless it is the agent that left or stalled.
func (c *conn) end(why cut) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.endLocked(why)
}

func (c *conn) endLocked(why cut) {
	f := &c.flow
	if f.cut == cutNone {
		f.cut = why
	}
	if f.up != nil {
		f.up.abort()
	}
	if f.cancel != nil {
		f.cancel()
	}
	if why != cutGone && why != cutStalled {
		c.resetLocked()
	}
}

// closeIdle closes the connection if it is between requests.
func (c *conn) closeIdle() {
	if c.mark.Load()&0xff == stageIdle {
		_ = c.nc.SetReadDeadline(time.Unix(1, 0))
	}
}

// recheck judges every request under way by n and resets those whose grant is gone.
func (s *Server) recheck(n *snapshot) {
	now := s.now()
	for _, c := range s.conns.list(nil) {
		if e, gone := c.revoke(n, now); gone {
			s.record(e, c.info)
		}
	}
}

// revoke cuts the connection's request if n does not grant it, and returns the
// audit line of that decision.
func (c *conn) revoke(n *snapshot, now time.Time) (policy.Event, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f := &c.flow
	if !f.on || f.cut != cutNone {
		return policy.Event{}, false
	}
	d, gone := f.gone(n, now)
	if !gone {
		return policy.Event{}, false
	}
	c.endLocked(cutGrant)
	e := policy.Event{
		Time: now, Event: "request", Agent: c.agent.name, Method: f.asked.Method, Host: f.asked.Host, Port: f.asked.Port,
		Rule: d.Rule, Decision: "deny", Reason: "live flow reset: " + d.Reason, Generation: n.generation, ID: f.id,
	}
	switch {
	case f.asked.Road == policy.RoadConnect:
		e.Event = "connect"
	case f.asked.Road == policy.RoadRoute && f.ruled.Route != nil:
		e.Host, e.Port, e.Path = f.ruled.Route.Upstream.Host, f.ruled.Route.Upstream.Port, f.asked.Path
	default:
		e.Path = f.asked.Path
	}
	if a := n.agent(c.agent.name); a != nil {
		e.UID = a.UID
	}
	return e, true
}

// registry is the set of open connections.
type registry struct {
	mu   sync.Mutex
	open map[*conn]struct{}
	none sync.WaitGroup
}

func (r *registry) add(c *conn) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if c.srv.closed.Load() {
		return false
	}
	if r.open == nil {
		r.open = map[*conn]struct{}{}
	}
	r.open[c] = struct{}{}
	r.none.Add(1)
	return true
}

func (r *registry) remove(c *conn) {
	r.mu.Lock()
	delete(r.open, c)
	r.mu.Unlock()
	r.none.Done()
}

// list appends the open connections to into.
func (r *registry) list(into []*conn) []*conn {
	r.mu.Lock()
	defer r.mu.Unlock()
	for c := range r.open {
		into = append(into, c)
	}
	return into
}

// wait returns when the last connection's goroutine has ended.
func (r *registry) wait() { r.none.Wait() }
