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
	// With so much waiting nobody is searched any more: a search takes up to 10 ms where an agent has ten thousand
	// descriptors, and once maxWaiting is reached the proxy's other messages wait too, its answer to a ping among them.
	maxBehind = 512
)

// callers adds pid and program to the audit. The search starts when a connection is accepted, since many a client is
// gone when its request has been answered; lines wait for it in their order, requests do not.
type callers struct {
	engine *Engine
	work   chan func()
	owners map[client]owner // one goroutine's
	order  []client         // keys of owners, oldest first
}

// client is the far end of a connection: an address, or on a unix socket a process.
type client struct {
	addr netip.AddrPort
	peer proxy.Peer
}

func clientOf(conn proxy.Conn) client {
	if conn.Peer != nil {
		return client{peer: *conn.Peer}
	}
	return client{addr: conn.Remote}
}

type owner struct {
	pid int
	exe string
}

func newCallers(e *Engine) *callers {
	c := &callers{engine: e, work: make(chan func(), maxWaiting), owners: make(map[client]owner)}
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
	key := clientOf(conn)
	if len(c.work) > maxBehind {
		delete(c.owners, key) // of an earlier connection from the same port
		return
	}
	if _, again := c.owners[key]; !again {
		c.order = append(c.order, key)
	}
	if len(c.order) > maxOwners {
		delete(c.owners, c.order[0])
		c.order = c.order[1:]
	}
	c.owners[key] = c.find(conn, *a)
}

// find asks who it is; on a unix socket the kernel has said so, and only the program is looked for.
func (c *callers) find(conn proxy.Conn, a policy.Agent) owner {
	if conn.Peer == nil {
		pid, exe := c.engine.Caller(conn.Remote, conn.Local, a)
		return owner{pid, exe}
	}
	o := owner{pid: conn.Peer.PID, exe: "unknown"}
	if c.engine.Program != nil && conn.Peer.UID == a.UID {
		o.exe = c.engine.Program(conn.Peer.PID, a)
	}
	return o
}

func (c *callers) complete(ev policy.Event, conn proxy.Conn) {
	c.work <- func() {
		if p := c.engine.Policy(); p != nil {
			if a := p.Agent(ev.Agent); a != nil {
				ev.UID = a.UID
			}
		}
		ev.Exe = "unknown"
		if conn.Peer != nil { // which may be a stranger
			ev.UID, ev.PID = conn.Peer.UID, conn.Peer.PID
		}
		if o, ok := c.owners[clientOf(conn)]; ok {
			ev.PID, ev.Exe = o.pid, o.exe
		}
		c.engine.observe(ev)
	}
}
