package engine

import (
	"context"
	"fmt"
	"sync"
	"time"

	"exitgate/firewall"
	"exitgate/policy"
)

// A kind of refused packet is told of when it is first seen, and what came since after every pause and at the end, with
// how many those were: an agent that floods must not fill the audit, and no refusal may be missing from its counts.
const (
	denialPause = 10 * time.Second
	maxDenials  = 4096 // kinds remembered; with more than that all are told of and forgotten
)

// denial is a kind of refused packet.
type denial struct {
	chain   string
	uid     uint32
	proto   uint8
	address string
	port    uint16
	query   string
}

func kindOf(d firewall.Denied) denial {
	return denial{d.Chain, d.UID, d.Proto, d.Addr.String(), d.Port, d.Query}
}

// tally counts refused packets by kind. The zero value is empty.
type tally struct {
	mu    sync.Mutex // guards the following
	kinds map[denial]*told
}

// told is what was said of a kind, and how many came since.
type told struct {
	event policy.Event
	at    time.Time
	since int
}

// again counts a packet of a kind that was told of already.
func (t *tally) again(k denial) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	seen := t.kinds[k]
	if seen == nil {
		return false
	}
	seen.since++
	return true
}

// first takes a kind that has just been told of; what it returns has to be told of too.
func (t *tally) first(k denial, ev policy.Event, now time.Time) (rest []policy.Event) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.kinds) >= maxDenials {
		rest = t.dueLocked(now, 0)
		clear(t.kinds)
	}
	if t.kinds == nil {
		t.kinds = make(map[denial]*told)
	}
	t.kinds[k] = &told{event: ev, at: now}
	return rest
}

// due returns what came since each kind was told of, where that is at least pause ago. A kind of which nothing came in
// that time is forgotten.
func (t *tally) due(now time.Time, pause time.Duration) []policy.Event {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.dueLocked(now, pause)
}

func (t *tally) dueLocked(now time.Time, pause time.Duration) (events []policy.Event) {
	for k, seen := range t.kinds {
		switch {
		case now.Sub(seen.at) < pause:
		case seen.since == 0:
			if pause > 0 {
				delete(t.kinds, k)
			}
		default:
			ev := seen.event
			ev.Time, ev.Count = time.Time{}, seen.since
			events = append(events, ev)
			seen.at, seen.since = now, 0
		}
	}
	return events
}

// HearDenied opens the deny log and audits what the fence refuses from then on, until ctx ends. It is called after the
// self-test, whose attempts are nobody's, and before the agent's first instruction. On a kernel without NFLOG refused
// packets are counted all the same.
func (e *Engine) HearDenied(ctx context.Context) {
	err := e.unlogged
	if err == nil {
		var log *firewall.DenyLog
		if log, err = e.DenyLog(); err == nil {
			go e.readDenied(ctx, log)
			return
		}
	}
	e.Log("refused packets will be counted, but not audited: %v", err)
}

func (e *Engine) readDenied(ctx context.Context, log *firewall.DenyLog) {
	defer log.Close()
	go e.tellDenied(ctx)
	err := log.Read(ctx, func(d firewall.Denied) {
		if e.hushed.Load() > 0 || kernelsOwn(d) {
			return
		}
		kind := kindOf(d)
		if e.refused.again(kind) {
			return
		}
		ev := e.deniedEvent(d)
		e.observe(ev)
		for _, rest := range e.refused.first(kind, ev, e.Now()) {
			e.observe(rest)
		}
	})
	if err != nil {
		e.Log("refused packets are not audited any more, only counted: %v", err)
	}
}

// kernelsOwn says that a refused packet is what every interface sends by itself, such as reports about multicast groups:
// nobody's attempt, and of no use to a reader of the audit.
func kernelsOwn(d firewall.Denied) bool {
	return !d.Owned && d.Proto == icmpv6 && d.Addr.IsMulticast()
}

// tellDenied tells of what goes on, until ctx ends.
func (e *Engine) tellDenied(ctx context.Context) {
	tick := time.NewTicker(denialPause / 4)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			e.tellRefused(denialPause)
		case <-ctx.Done():
			return
		}
	}
}

// TellDenied brings the audit up to date: with the lines whose callers are being looked for, and with every refused
// packet so far.
func (e *Engine) TellDenied() {
	e.callers.flush()
	e.tellRefused(0)
}

func (e *Engine) tellRefused(pause time.Duration) {
	for _, ev := range e.refused.due(e.Now(), pause) {
		e.observe(ev)
	}
}

// deniedEvent says who sent what; for a question to a name server what matters is the name.
func (e *Engine) deniedEvent(d firewall.Denied) policy.Event {
	ev := policy.Event{Event: "denied_packet", Decision: "deny", Rule: "fence/" + d.Chain, UID: d.UID, Proto: protocol(d.Proto),
		Address: d.Addr.String(), Port: d.Port, Reason: "the agent reaches its listener only"}
	switch {
	case d.Chain == "input":
		ev.Address, ev.Reason = d.Src.Addr().String(), "nothing listens for the outside"
	case !d.Owned:
		ev.Reason = "a packet without a socket"
	case d.UID == 0:
		ev.Reason = "not an address of an allowed host"
	}
	if d.Query != "" {
		ev.Event, ev.Host, ev.Reason = "denied_lookup", d.Query, "the agent has no name server: use the proxy"
	}
	if !d.Owned || d.Chain == "input" {
		return ev
	}
	if a := e.agentOf(d.UID); a != nil {
		ev.Agent = a.Name
		if e.Sender != nil {
			ev.PID, ev.Exe = e.Sender(d, *a)
		}
	}
	return ev
}

func (e *Engine) agentOf(uid uint32) *policy.Agent {
	p := e.Policy()
	if p == nil {
		return nil
	}
	for i := range p.Agents {
		if p.Agents[i].UID == uid {
			return &p.Agents[i]
		}
	}
	return nil
}

// hushTime is how long after a self-test its packets may still be on their way through the log.
const hushTime = 100 * time.Millisecond

// Hush keeps a later self-test's refusals out of the audit, until the function returned is called.
func (e *Engine) Hush() (over func()) {
	e.hushed.Add(1)
	return func() { time.AfterFunc(hushTime, func() { e.hushed.Add(-1) }) }
}

// icmpv6 is its number in an IP header.
const icmpv6 = 58

// protocols are the names that nft has for them.
var protocols = map[uint8]string{1: "icmp", 6: "tcp", 17: "udp", 33: "dccp", 47: "gre", 50: "esp", icmpv6: "icmpv6", 132: "sctp", 136: "udplite"}

func protocol(n uint8) string {
	if name, ok := protocols[n]; ok {
		return name
	}
	return fmt.Sprintf("protocol %d", n)
}
