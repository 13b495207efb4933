package engine

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"syscall"

	"exitgate/cmd/internal/wire"
	"exitgate/policy"
)

// listenerKey is a listener as policy names it: its address is a loopback address and port, or a socket's path.
type listenerKey struct{ agent, address string }

// listeners are the sockets that PID 1 keeps open whatever becomes of the proxy: while they are, a connecting agent
// waits in the backlog instead of being refused, and nobody else can take the port.
type listeners struct {
	mu   sync.Mutex // guards open
	open map[listenerKey]net.Listener
}

// wanted lists the listeners of p, in the order of its agents.
func wanted(p *policy.Policy) []listenerKey {
	var keys []listenerKey
	for _, a := range p.Agents {
		keys = append(keys, listenerKey{a.Name, a.Listen.String()})
		if a.Socket != "" {
			keys = append(keys, listenerKey{a.Name, a.Socket})
		}
	}
	return keys
}

// openFor opens what p wants and is not open yet. On an error what it opened is closed again. The function that it
// returns does so too, for a reload that fails later.
func (e *Engine) openFor(p *policy.Policy) (undo func(), err error) {
	ls := &e.listeners
	ls.mu.Lock()
	defer ls.mu.Unlock()
	var fresh []listenerKey
	undo = func() { e.closeListeners(fresh) }
	for _, key := range wanted(p) {
		if ls.open[key] != nil {
			continue
		}
		err := ls.free(p, key)
		var l net.Listener
		if err == nil {
			l, err = e.openOne(p, key)
		}
		if err != nil {
			for _, k := range fresh {
				ls.open[k].Close()
				delete(ls.open, k)
			}
			return nil, err
		}
		ls.open[key] = l
		fresh = append(fresh, key)
	}
	return undo, nil
}

// free refuses an address on which another agent listens until p is in force: who accepted a connection is who is asking, so one
// socket cannot be two agents', not even in passing, and a path would be opened anew over the other's. The caller holds mu.
func (ls *listeners) free(p *policy.Policy, key listenerKey) error {
	for k := range ls.open {
		if k.address == key.address && k.agent != key.agent {
			return fmt.Errorf("%s: agent %q cannot listen on %s: agent %q listens there; reload first without it, or choose another",
				p.Agent(key.agent).At, key.agent, key.address, k.agent)
		}
	}
	return nil
}

func (e *Engine) openOne(p *policy.Policy, key listenerKey) (net.Listener, error) {
	agent := *p.Agent(key.agent)
	addr, err := netip.ParseAddrPort(key.address)
	if err != nil {
		addr = netip.AddrPort{} // a path: the unix socket
	}
	l, err := e.Listen(agent, addr)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("%s: agent %q cannot listen on %s: the port is taken%s; stop what holds it, or choose another `listen`",
			agent.At, agent.Name, key.address, e.holder(addr))
	}
	if err != nil {
		return nil, fmt.Errorf("%s: agent %q cannot listen on %s: %w", agent.At, agent.Name, key.address, err)
	}
	return l, nil
}

// holder says who has taken an address, as the rest of a sentence.
func (e *Engine) holder(addr netip.AddrPort) string {
	if e.Holder == nil {
		return ""
	}
	who := e.Holder(addr)
	if who == "" {
		return ""
	}
	return " by " + who
}

// closeUnwanted closes what p has no use for.
func (e *Engine) closeUnwanted(p *policy.Policy) {
	keep := make(map[listenerKey]bool)
	for _, k := range wanted(p) {
		keep[k] = true
	}
	e.listeners.mu.Lock()
	var gone []listenerKey
	for k := range e.listeners.open {
		if !keep[k] {
			gone = append(gone, k)
		}
	}
	e.listeners.mu.Unlock()
	e.closeListeners(gone)
}

func (e *Engine) closeListeners(keys []listenerKey) {
	e.listeners.mu.Lock()
	defer e.listeners.mu.Unlock()
	for _, k := range keys {
		if l := e.listeners.open[k]; l != nil {
			l.Close()
			delete(e.listeners.open, k)
		}
	}
}

// handover is what the proxy gets: the listeners of p by name, and the sockets in the same order.
func (e *Engine) handover(p *policy.Policy) (names []wire.Listener, sockets []syscall.Conn) {
	e.listeners.mu.Lock()
	defer e.listeners.mu.Unlock()
	for _, k := range wanted(p) {
		if s, ok := e.listeners.open[k].(syscall.Conn); ok {
			names = append(names, wire.Listener{Agent: k.agent, Address: k.address})
			sockets = append(sockets, s)
		}
	}
	return names, sockets
}
