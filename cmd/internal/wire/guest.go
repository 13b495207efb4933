package wire

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"exitgate/policy"
	"exitgate/proxy"
)

// maxQueue is how many messages may wait to be written before a decision waits for PID 1: a line of the audit is never lost.
const maxQueue = 4096

// Guest is the proxy's end. It is a proxy.Resolver, and the sink of its audit.
type Guest struct {
	link   link
	out    chan queued   // in the order in which they are written
	urgent chan struct{} // a token: something in out does not wait for more
	asking turns         // for questions
	draft  *reading      // the last one; nil before it came

	mu      sync.Mutex // guards the following
	lastID  uint64
	waiting map[uint64]question
	shares  map[string]turns // of asking, by agent
	gone    chan struct{}    // closed when the connection to PID 1 has ended
}

// queued is a message to write, or a mark: flushed is closed when all that was queued before it is written.
type queued struct {
	message *Message
	flushed chan struct{}
}

// patient reports whether the message may wait for others.
func (q queued) patient() bool { return q.message != nil && q.message.Resolve == nil }

// question is a Resolve under way.
type question struct {
	resolve Resolve
	answer  chan *Pinned
	share   turns
}

// turns are taken by sending and given back by receiving.
type turns chan struct{}

// share is how much of asking an agent has. One whose names take long to resolve, and who leaves before they are, waits for
// itself.
func (g *Guest) share(agent string) turns {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.shares[agent] == nil {
		g.shares[agent] = make(turns, maxShare)
	}
	return g.shares[agent]
}

// turn waits for one.
func (g *Guest) turn(ctx context.Context, of turns) error {
	select {
	case of <- struct{}{}:
		return nil
	case <-ctx.Done():
		return errLate
	case <-g.gone:
		return errGone
	}
}

// Commands are what PID 1 may tell the proxy. Configure's files are the listening sockets of c.Listeners, now ours.
type Commands struct {
	Configure func(c *Configure, p *policy.Policy, files []*os.File) error
	Stats     func() proxy.Stats
	Drain     func()
}

// NewGuest frames messages on conn. Serve must run for anything to be answered.
func NewGuest(conn *net.UnixConn) *Guest {
	return &Guest{
		link:    link{conn: conn, limit: maxFromHost, takes: true},
		out:     make(chan queued, maxQueue),
		urgent:  make(chan struct{}, 1),
		asking:  make(turns, maxResolving),
		shares:  make(map[string]turns),
		waiting: make(map[uint64]question),
		gone:    make(chan struct{}),
	}
}

// Serve obeys PID 1 until the connection ends: without PID 1 the proxy has nobody to resolve for it and must end too.
func (g *Guest) Serve(c Commands) error {
	go g.send()
	var err error
	for err == nil {
		var m *Message
		if m, err = g.link.read(); err == nil {
			err = g.obey(c, m)
		}
	}
	close(g.gone)
	g.link.conn.Close()
	return err
}

func (g *Guest) obey(c Commands, m *Message) error {
	switch {
	case m.Pinned != nil:
		g.pinned(m.ID, m.Pinned)
	case m.Draft != nil:
		g.draft = read(m.Draft)
	case m.Configure != nil:
		files, err := g.link.take(len(m.Configure.Listeners))
		if err != nil {
			return err
		}
		return g.link.write(&Message{ID: m.ID, Applied: g.apply(c, m.Configure, files)})
	case m.Ping != nil:
		stats := c.Stats()
		return g.link.write(&Message{ID: m.ID, Ping: &Ping{Stats: &stats}})
	case m.Drain != nil:
		go c.Drain()
	default:
		return errors.New("PID 1 sent a message that only the proxy may send")
	}
	return nil
}

// apply configures with the draft. The files are closed where that cannot be.
func (g *Guest) apply(c Commands, m *Configure, files []*os.File) *Applied {
	p, err := g.draft.result()
	if err != nil {
		for _, f := range files {
			f.Close()
		}
		return &Applied{Error: err.Error()}
	}
	if err := c.Configure(m, p, files); err != nil {
		return &Applied{Error: err.Error()}
	}
	return &Applied{Digest: p.Digest()}
}

// pinned hands an answer to Resolve, or to giveBackLate where the request was cancelled meanwhile.
func (g *Guest) pinned(id uint64, p *Pinned) {
	g.mu.Lock()
	q, ok := g.waiting[id]
	delete(g.waiting, id)
	g.mu.Unlock()
	if ok {
		<-g.asking
		<-q.share
		q.answer <- p
	}
}

// Resolve asks PID 1 for addresses that may be dialled now, when it is this agent's turn. Whoever leaves before the answer keeps
// the turn until it comes: PID 1 goes on looking.
func (g *Guest) Resolve(ctx context.Context, agent, rule, host string, port uint16) (proxy.Pinned, error) {
	q := question{Resolve{Rule: rule, Host: host, Port: port}, make(chan *Pinned, 1), g.share(agent)}
	if err := g.turn(ctx, q.share); err != nil {
		return proxy.Pinned{}, err
	}
	if err := g.turn(ctx, g.asking); err != nil {
		<-q.share
		return proxy.Pinned{}, err
	}
	g.mu.Lock()
	g.lastID++
	id := g.lastID
	g.waiting[id] = q
	g.mu.Unlock()
	asked := q.resolve // a message is touched where it is written
	g.queue(queued{message: &Message{ID: id, Resolve: &asked}})
	g.hurry()
	select {
	case p := <-q.answer:
		return g.accept(q.resolve, p)
	case <-ctx.Done():
		go g.giveBackLate(q)
		return proxy.Pinned{}, errLate
	case <-g.gone:
		return proxy.Pinned{}, errGone
	}
}

var (
	errLate = &proxy.Failure{Kind: "timeout", Msg: "the name was not resolved in time"}
	errGone = &proxy.Failure{Kind: "internal", Msg: "the resolver is gone"}
)

func (g *Guest) accept(q Resolve, p *Pinned) (proxy.Pinned, error) {
	if p.Error != "" {
		return proxy.Pinned{}, &proxy.Failure{Kind: p.Kind, Msg: p.Error}
	}
	if len(p.Addresses) == 0 {
		return proxy.Pinned{}, &proxy.Failure{Kind: "nxdomain", Msg: "the name has no address"}
	}
	var once atomic.Bool
	release := func() {
		if once.CompareAndSwap(false, true) {
			g.giveBack(q, p)
		}
	}
	return proxy.Pinned{Addrs: p.Addresses, Release: release}, nil
}

// giveBackLate waits for the answer of a question that nobody waits for any more.
func (g *Guest) giveBackLate(q question) {
	select {
	case p := <-q.answer:
		g.giveBack(q.resolve, p)
	case <-g.gone:
	}
}

// giveBack cannot fail usefully: a broken wire means that PID 1 has taken every pin back already.
func (g *Guest) giveBack(q Resolve, p *Pinned) {
	if len(p.Addresses) > 0 {
		g.queue(queued{message: &Message{Done: &Done{Host: q.Host, Port: q.Port, Addresses: p.Addresses}}})
	}
}

// Audit queues one decision. When PID 1 falls behind by maxQueue messages, the request waits: nothing is decided unseen.
func (g *Guest) Audit(e policy.Event, c proxy.Conn) {
	g.queue(queued{message: &Message{Event: &Event{Event: e, Conn: c}}})
}

// Opened tells of an accepted connection, before any event of it.
func (g *Guest) Opened(agent string, c proxy.Conn) {
	g.queue(queued{message: &Message{Opened: &Opened{Agent: agent, Conn: c}}})
}

// hurry has what is queued written now.
func (g *Guest) hurry() {
	select {
	case g.urgent <- struct{}{}:
	default:
	}
}

// Flush returns when everything queued so far is written, or the connection has ended.
func (g *Guest) Flush() {
	flushed := make(chan struct{})
	g.queue(queued{flushed: flushed})
	g.hurry()
	select {
	case <-flushed:
	case <-g.gone:
	}
}

func (g *Guest) queue(q queued) {
	select {
	case g.out <- q:
	case <-g.gone:
	}
}

// patience is how long after a write what can wait is gathered for the next. Each wakes PID 1, five goroutines of it one
// after the other, and at a few thousand requests a second that cost more than the requests.
const patience = 2 * time.Millisecond

// send writes what is queued, as many messages at a time as wait: one write carries many.
func (g *Guest) send() {
	var batch []byte
	var last time.Time
	more := time.NewTimer(patience)
	for {
		select {
		case q := <-g.out:
			if rest := patience - time.Since(last); rest > 0 && q.patient() && len(g.out) < maxQueue/4 {
				more.Reset(rest)
				select {
				case <-more.C:
				case <-g.urgent:
				case <-g.gone:
				}
			}
			batch = g.gather(batch[:0], q)
			last = time.Now()
		case <-g.gone:
			return
		}
	}
}

// batchSize is where a batch ends, in bytes.
const batchSize = 32 << 10

// gather writes q and what else is queued, and returns the buffer for the next time.
func (g *Guest) gather(batch []byte, q queued) []byte {
	for {
		if q.flushed != nil {
			_ = g.link.send(batch)
			close(q.flushed)
			return batch
		}
		batch = appendMessage(batch, q.message)
		if len(batch) >= batchSize || len(g.out) == 0 {
			_ = g.link.send(batch)
			return batch
		}
		q = <-g.out
	}
}

// Refresh asks for a credential to be fetched again. PID 1 decides whether it is.
func (g *Guest) Refresh(credential string) {
	_ = g.link.write(&Message{Refresh: &Refresh{Credential: credential}})
}

// Listen turns a handed-over descriptor into what proxy.Server.Serve takes; f is closed. A unix socket's name is left alone when
// the listener is closed, as net leaves it for every listener that it did not make.
func Listen(f *os.File) (net.Listener, error) {
	defer f.Close()
	l, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("a handed-over listener: %w", err)
	}
	return l, nil
}
