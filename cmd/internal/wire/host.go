package wire

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"syscall"

	"exitgate/policy"
	"exitgate/proxy"
)

// maxResolving is how many of the proxy's questions are answered at a time, and maxShare how many of them may be one agent's.
// The proxy asks no more: what is beyond that would wait unread in the socket, with the events and signs of life behind it,
// while a name server takes its 8 s. A share is as many as an agent's connections are by default.
const (
	maxResolving = 2048
	maxShare     = maxResolving / 4
)

// Handler is what PID 1 does with the proxy's messages. Its methods are called from several goroutines, except
// Opened and Event, which are called in the order in which they were sent.
type Handler interface {
	Resolve(ctx context.Context, rule, host string, port uint16) ([]netip.Addr, error)
	Done(host string, port uint16, addresses []netip.Addr)
	Refresh(credential string)
	Opened(agent string, c proxy.Conn)
	Event(policy.Event, proxy.Conn)
}

// Host is PID 1's end.
type Host struct {
	link    link
	handler Handler
	slots   chan struct{}

	drafting sync.Mutex
	draft    []byte // what was sent last; guarded by drafting, which is held while sending

	mu      sync.Mutex // guards the following
	lastID  uint64
	waiting map[uint64]chan *Message
	pins    map[pin]int
	held    int // sum of pins
	err     error
}

// maxHeld is how many addresses the proxy may have, counted for each time that it asked: those of a thousand connections to names
// with as many addresses as a name may have, 128. One that asks without end, in another spelling each time, gets no more.
const maxHeld = 1 << 17

// pin is one address given to the proxy and not yet given back.
type pin struct {
	host string
	port uint16
	addr netip.Addr
}

// NewHost frames messages on conn. Serve must run for anything to be answered.
func NewHost(conn *net.UnixConn, h Handler) *Host {
	return &Host{
		link:    link{conn: conn, limit: maxFromGuest},
		handler: h,
		slots:   make(chan struct{}, maxResolving),
		waiting: make(map[uint64]chan *Message),
		pins:    make(map[pin]int),
	}
}

// Serve reads until the proxy is gone or says something that it must not; the connection is closed then, every
// waiting question fails, and every pin that the proxy still held is given back.
func (h *Host) Serve(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var err error
	for err == nil {
		var m *Message
		if m, err = h.link.read(); err == nil {
			err = h.handle(ctx, m)
		}
	}
	h.link.conn.Close()
	h.fail(err)
	return err
}

func (h *Host) handle(ctx context.Context, m *Message) error {
	switch {
	case m.Resolve != nil:
		h.slots <- struct{}{}
		go func() {
			defer func() { <-h.slots }()
			h.resolve(ctx, m.ID, m.Resolve)
		}()
	case m.Done != nil:
		return h.done(m.Done)
	case m.Refresh != nil:
		h.handler.Refresh(m.Refresh.Credential)
	case m.Opened != nil:
		h.handler.Opened(m.Opened.Agent, m.Opened.Conn)
	case m.Event != nil:
		if !m.Event.proxys() {
			return errors.New("the proxy told of what only PID 1 can see")
		}
		h.handler.Event(m.Event.Event, m.Event.Conn)
	case m.Applied != nil, m.Ping != nil:
		h.answer(m)
	default:
		return errors.New("the proxy sent a message that only PID 1 may send")
	}
	return nil
}

// proxys reports whether the event is a decision of the proxy's. Reloads, packets, the fence and the start are seen by PID 1
// alone, whose lines about them nobody else may write.
func (e *Event) proxys() bool {
	kind, decision := e.Event.Event, e.Event.Decision
	return (kind == "request" || kind == "connect" || kind == "limit") && (decision == "allow" || decision == "deny")
}

func (h *Host) resolve(ctx context.Context, id uint64, q *Resolve) {
	addrs, err := h.handler.Resolve(ctx, q.Rule, q.Host, q.Port)
	answer := &Pinned{Addresses: addrs}
	if err != nil {
		answer = &Pinned{Kind: "internal", Error: "the name could not be resolved"}
		var f *proxy.Failure
		if errors.As(err, &f) {
			answer.Kind, answer.Error = f.Kind, f.Msg
		}
	}
	if !h.hold(q, addrs) {
		h.handler.Done(q.Host, q.Port, addrs)
		answer = &Pinned{Kind: "internal", Error: "too many addresses are in use"}
	}
	_ = h.link.write(&Message{ID: id, Pinned: answer}) // a broken wire ends Serve, and all that is held goes back
}

// hold notes what the proxy has from now on; false when it is gone already, or has too much.
func (h *Host) hold(q *Resolve, addrs []netip.Addr) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.err != nil || h.held+len(addrs) > maxHeld {
		return false
	}
	h.held += len(addrs)
	for _, a := range addrs {
		h.pins[pin{q.Host, q.Port, a}]++
	}
	return true
}

// release takes one pin off; false when there was none. The caller holds mu.
func (h *Host) release(p pin) bool {
	n := h.pins[p]
	if n > 1 {
		h.pins[p] = n - 1
	} else {
		delete(h.pins, p)
	}
	if n > 0 {
		h.held--
	}
	return n > 0
}

// done refuses pins that were never given: a proxy that sends those is no longer ours.
func (h *Host) done(d *Done) error {
	h.mu.Lock()
	for _, a := range d.Addresses {
		if !h.release(pin{d.Host, d.Port, a}) {
			h.mu.Unlock()
			return fmt.Errorf("the proxy gave back %s:%d, which it never had", d.Host, d.Port)
		}
	}
	h.mu.Unlock()
	h.handler.Done(d.Host, d.Port, d.Addresses)
	return nil
}

// answer hands an answer to whoever asked. An answer that nobody waits for any more is dropped.
func (h *Host) answer(m *Message) {
	h.mu.Lock()
	ch := h.waiting[m.ID]
	delete(h.waiting, m.ID)
	h.mu.Unlock()
	if ch != nil {
		ch <- m
	}
}

// fail ends every waiting question and gives back every pin.
func (h *Host) fail(err error) {
	h.mu.Lock()
	h.err = err
	for id, ch := range h.waiting {
		close(ch)
		delete(h.waiting, id)
	}
	held := h.pins
	h.pins, h.held = make(map[pin]int), 0
	h.mu.Unlock()
	for p, n := range held {
		for range n {
			h.handler.Done(p.host, p.port, []netip.Addr{p.addr})
		}
	}
}

// ask sends a message, by send, and waits for its answer.
func (h *Host) ask(ctx context.Context, m *Message, send func() error) (*Message, error) {
	ch := make(chan *Message, 1)
	h.mu.Lock()
	if h.err != nil {
		h.mu.Unlock()
		return nil, fmt.Errorf("the proxy is gone: %w", h.err)
	}
	h.lastID++
	m.ID = h.lastID
	h.waiting[m.ID] = ch
	h.mu.Unlock()
	defer func() {
		h.mu.Lock()
		delete(h.waiting, m.ID)
		h.mu.Unlock()
	}()
	// A stopped proxy does not read: the write must end with the context too.
	stop := context.AfterFunc(ctx, func() { h.link.conn.Close() })
	err := send()
	stop()
	if err != nil {
		return nil, fmt.Errorf("the proxy is gone: %w", err)
	}
	select {
	case got, ok := <-ch:
		if !ok {
			return nil, errors.New("the proxy died before it answered")
		}
		return got, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("the proxy did not answer: %w", ctx.Err())
	}
}

// Draft sends the text of a policy, which a later Configure may put in force. The text that was sent last is not sent again.
func (h *Host) Draft(d Draft) error {
	h.drafting.Lock()
	defer h.drafting.Unlock()
	return h.sendDraft(&d)
}

// sendDraft is Draft for who holds drafting.
func (h *Host) sendDraft(d *Draft) error {
	if h.draft != nil && bytes.Equal(h.draft, d.Text) {
		return nil
	}
	h.draft = d.Text
	return h.link.send(appendDraft(nil, d))
}

// Configure hands over a generation and returns when the proxy enforces it. Sockets are the listening ones that
// c.Listeners names, in order, every time all of them; they stay the caller's.
func (h *Host) Configure(ctx context.Context, c *Configure, sockets []syscall.Conn) (*Applied, error) {
	if len(sockets) > maxFiles {
		return nil, fmt.Errorf("%d listeners are more than one message carries (%d)", len(sockets), maxFiles)
	}
	question := &Message{Configure: c}
	m, err := h.ask(ctx, question, func() error {
		h.drafting.Lock() // until both are written: another's draft between them would be the policy that comes into force
		defer h.drafting.Unlock()
		if err := h.sendDraft(&c.Draft); err != nil {
			return err
		}
		return h.link.write(question, sockets...)
	})
	if err != nil {
		return nil, err
	}
	if m.Applied == nil {
		return nil, errors.New("the proxy answered a configuration with something else")
	}
	if m.Applied.Error != "" {
		return nil, &Refused{m.Applied.Error}
	}
	return m.Applied, nil
}

// Refused is a proxy's answer that it does not take a configuration; the one before it stays in force there.
type Refused struct{ Why string }

// Error is the proxy's reason.
func (r *Refused) Error() string { return r.Why }

// Ping asks for a sign of life, which carries the proxy's counters.
func (h *Host) Ping(ctx context.Context) (proxy.Stats, error) {
	question := &Message{Ping: &Ping{}}
	m, err := h.ask(ctx, question, func() error { return h.link.write(question) })
	if err != nil {
		return proxy.Stats{}, err
	}
	if m.Ping == nil || m.Ping.Stats == nil {
		return proxy.Stats{}, errors.New("the proxy answered a ping with something else")
	}
	return *m.Ping.Stats, nil
}

// Drain tells the proxy to finish.
func (h *Host) Drain() error { return h.link.write(&Message{Drain: &Drain{}}) }

// Close ends the connection; Serve returns.
func (h *Host) Close() error { return h.link.conn.Close() }
