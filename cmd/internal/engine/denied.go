package engine

import (
	"context"
	"fmt"
	"time"

	"exitgate/firewall"
	"exitgate/policy"
)

// Denials of packets are told once for each kind, and again when it goes on for this long; the kernel's counters are
// what is exact. An agent that floods must not fill the audit.
const (
	denialPause = 10 * time.Second
	maxDenials  = 4096 // kinds remembered; more than that forget all
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

// told is when a kind was last told of, and how many came since.
type told struct {
	at    time.Time
	since int
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
	seen := make(map[denial]told)
	err := log.Read(ctx, func(d firewall.Denied) {
		if e.hushed.Load() > 0 {
			return
		}
		if len(seen) > maxDenials {
			clear(seen)
		}
		kind := denial{d.Chain, d.UID, d.Proto, d.Addr.String(), d.Port, d.Query}
		last, again := seen[kind]
		if again && e.Now().Sub(last.at) < denialPause {
			last.since++
			seen[kind] = last
			return
		}
		seen[kind] = told{at: e.Now()}
		e.observe(e.deniedEvent(d, last.since))
	})
	if err != nil {
		e.Log("refused packets are not audited any more, only counted: %v", err)
	}
}

// deniedEvent says who sent what; for a question to a name server what matters is the name.
func (e *Engine) deniedEvent(d firewall.Denied, more int) policy.Event {
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
	if more > 0 {
		ev.Reason += fmt.Sprintf(" (%d more before)", more)
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

// protocols are the names that nft has for them.
var protocols = map[uint8]string{1: "icmp", 6: "tcp", 17: "udp", 33: "dccp", 47: "gre", 50: "esp", 58: "icmpv6", 132: "sctp", 136: "udplite"}

func protocol(n uint8) string {
	if name, ok := protocols[n]; ok {
		return name
	}
	return fmt.Sprintf("protocol %d", n)
}
