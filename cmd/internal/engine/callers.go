package engine

import (
	"net/netip"

	"exitgate/policy"
	"exitgate/proxy"
)

// How much of the audit may wait for the search of callers, and how many connections' owners are remembered.
const (
	maxWaiting = 8192
	maxOwners  = 4096
)

// callers adds pid and program to the audit. The search starts when a connection is accepted, since many a client is
// gone when its request has been answered; lines wait for it in their order, requests do not.
type callers struct {
	engine *Engine
	work   chan func()
	owners map[netip.AddrPort]owner // by the client's end; one goroutine's
	order  []netip.AddrPort         // keys of owners, oldest first
}

type owner struct {
	pid int
	exe string
}

func newCallers(e *Engine) *callers {
	c := &callers{engine: e, work: make(chan func(), maxWaiting), owners: make(map[netip.AddrPort]owner)}
	go c.run()
	return c
}

// run does the work in its order. It ends with stop.
func (c *callers) run() {
	for f := range c.work {
		f()
	}
}

// flush returns when every line so far is written.
func (c *callers) flush() {
	done := make(chan struct{})
	c.work <- func() { close(done) }
	<-done
}

func (c *callers) search(agent string, conn proxy.Conn) {
	c.work <- func() { c.remember(agent, conn) }
}

func (c *callers) remember(agent string, conn proxy.Conn) {
	p := c.engine.Policy()
	if c.engine.Caller == nil || p == nil {
		return
	}
	a := p.Agent(agent)
	if a == nil {
		return
	}
	if _, again := c.owners[conn.Remote]; !again {
		c.order = append(c.order, conn.Remote)
	}
	if len(c.order) > maxOwners {
		delete(c.owners, c.order[0])
		c.order = c.order[1:]
	}
	pid, exe := c.engine.Caller(conn.Remote, conn.Local, *a)
	c.owners[conn.Remote] = owner{pid, exe}
}

func (c *callers) complete(ev policy.Event, conn proxy.Conn) {
	c.work <- func() {
		if p := c.engine.Policy(); p != nil {
			if a := p.Agent(ev.Agent); a != nil {
				ev.UID = a.UID
			}
		}
		ev.Exe = "unknown"
		if conn.Peer != nil {
			ev.PID = conn.Peer.PID
		} else if o, ok := c.owners[conn.Remote]; ok {
			ev.PID, ev.Exe = o.pid, o.exe
		}
		c.engine.observe(ev)
	}
}
