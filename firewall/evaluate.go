package firewall

import (
	"net/netip"
)

// Packet is one packet at one hook, as far as the rules look at it.
type Packet struct {
	Hook     Hook // "": HookOutput
	Owned    bool // there is a socket, and UID and GID are its owner's; packets after close() have none
	UID, GID uint32
	Proto    uint8          // unix.IPPROTO_*
	Src, Dst netip.AddrPort // ports 0 where the protocol has none
	Loopback bool           // over lo
	State    ConnState
	Reply    bool   // in the direction opposite to the flow's first packet
	Mark     uint32 // conntrack mark of the flow
	// OriginalPort is the flow's first destination port, before any
	// translation; 0: that of Dst, or of Src in a reply.
	OriginalPort uint16
	TCPFlags     uint8
	FastOpen     bool  // the TCP fast open option is present
	Experiment   bool  // the TCP option for experiments is, by which fast open goes too (RFC 6994)
	ICMPType     uint8 // of an ICMPv6 packet
	HopLimit     uint8 // of an IPv6 packet
}

// ConnState is conntrack's judgement of a packet. Zero is read as ConnNew.
type ConnState uint32

// The states, with the kernel's bits.
const (
	ConnInvalid     ConnState = 1
	ConnEstablished ConnState = 2
	ConnRelated     ConnState = 4
	ConnNew         ConnState = 8
	ConnUntracked   ConnState = 64
)

var connStates = map[string]ConnState{
	"invalid": ConnInvalid, "established": ConnEstablished, "related": ConnRelated, "new": ConnNew, "untracked": ConnUntracked,
}

// TCP flags.
const (
	TCPFin uint8 = 1 << iota
	TCPSyn
	TCPRst
	_
	TCPAck
)

// Action is what becomes of a packet.
type Action string

// The actions. Reset and Unreachable drop the packet and answer it: a TCP
// reset, or ICMP "administratively prohibited".
const (
	Accept      Action = "accept"
	Drop        Action = "drop"
	Reset       Action = "reset"
	Unreachable Action = "unreachable"
)

// Verdict is what the rules do with a packet, and which of them did it.
type Verdict struct {
	Action      Action
	Chain, Rule string   // Rule is nft text; "policy drop" where no rule decided
	Counters    []string // named counters the packet was added to
	Mark        uint32   // the flow's conntrack mark afterwards
	Rewritten   bool     // the packet goes on as a reset of the connection it was to accept
}

// Allowed says whether the packet goes on as it was sent.
func (v Verdict) Allowed() bool { return v.Action == Accept && !v.Rewritten }

// Evaluate runs a packet through the ruleset with these contents, as the kernel
// would. It keeps no state between packets: what conntrack knows is in p.
func Evaluate(rs *Ruleset, c Contents, p Packet) Verdict {
	return newEvaluator(rs, c).run(p)
}

// evaluator holds what does not change from packet to packet.
type evaluator struct {
	rules *Ruleset
	sets  map[string]map[string][]byte // set, key -> value
}

func newEvaluator(rs *Ruleset, c Contents) *evaluator {
	ev := &evaluator{rules: rs}
	ev.fill(c.elements())
	return ev
}

func (ev *evaluator) fill(elements []element) {
	ev.sets = make(map[string]map[string][]byte, len(record.Sets))
	for _, s := range record.Sets {
		ev.sets[s.Name] = make(map[string][]byte)
	}
	for _, e := range elements {
		s := record.Sets[e.set]
		ev.sets[s.Name][string(e.keyBytes(s))] = e.value[:]
	}
}

// evaluation is one packet's way through the chains.
type evaluation struct {
	*evaluator
	packet  Packet
	verdict Verdict
	next    string // chain to go to after a deciding statement; "": the verdict stands
}

// outcome is what a statement does to its rule.
type outcome int

const (
	matches outcome = iota // on to the next statement
	breaks                 // on to the next rule
	decides                // the verdict or the next chain is set
)

func when(ok bool) outcome {
	if ok {
		return matches
	}
	return breaks
}

// run goes through the base chain of the packet's hook. No base chain: accept.
func (ev *evaluator) run(p Packet) Verdict {
	p = p.normal()
	e := &evaluation{evaluator: ev, packet: p, verdict: Verdict{Mark: p.Mark}}
	var base *Chain
	for i := range ev.rules.Chains {
		if ev.rules.Chains[i].Hook == p.Hook {
			base = &ev.rules.Chains[i]
		}
	}
	if base == nil {
		e.verdict.Action = Accept
		return e.verdict
	}
	// A ruleset in which goto runs in a circle is one the kernel refuses.
	for chain, hops := base, 0; chain != nil && hops <= len(ev.rules.Chains); hops++ {
		if e.walk(chain) {
			return e.verdict
		}
		chain = ev.rules.chain(e.next)
	}
	e.verdict.Action, e.verdict.Chain, e.verdict.Rule = Drop, base.Name, "policy drop"
	return e.verdict
}

// walk runs one chain's rules. True: the verdict stands; false: e.next is the
// chain to go to, "" for the base chain's policy.
func (e *evaluation) walk(c *Chain) bool {
	e.next = ""
	for _, r := range c.Rules {
		for _, s := range r.Statements {
			switch s.step(e) {
			case matches:
				continue
			case decides:
				e.verdict.Chain, e.verdict.Rule = c.Name, r.String()
				return e.next == ""
			}
			break
		}
	}
	return false
}

// normal fills in what a caller may leave out.
func (p Packet) normal() Packet {
	if p.Hook == NoHook {
		p.Hook = HookOutput
	}
	if p.State == 0 {
		p.State = ConnNew
	}
	p.Src = netip.AddrPortFrom(p.Src.Addr().Unmap().WithZone(""), p.Src.Port())
	p.Dst = netip.AddrPortFrom(p.Dst.Addr().Unmap().WithZone(""), p.Dst.Port())
	return p
}

// tracked says whether conntrack knows a flow for the packet; expressions that
// read the flow break where not.
func (p *Packet) tracked() bool { return p.State&(ConnInvalid|ConnUntracked) == 0 }

func (p *Packet) originalPort() uint16 {
	switch {
	case p.OriginalPort != 0:
		return p.OriginalPort
	case p.Reply:
		return p.Src.Port()
	}
	return p.Dst.Port()
}

// ifindex is 1 for lo at the hook that has such an interface, 2 for any other
// interface, 0 at the other hooks.
func ifindex(p *Packet, hook Hook) ([]byte, bool) {
	switch {
	case p.Hook != hook:
		return native(0), true
	case p.Loopback:
		return native(1), true
	}
	return native(2), true
}

func (e *evaluation) get(f Field) ([]byte, bool) { return fields[f].get(&e.packet) }

func (e *evaluation) lookup(set string, key []byte) (value []byte, ok bool) {
	value, ok = e.sets[set][string(key)]
	return value, ok
}

func (e *evaluation) mark(v []byte) {
	e.packet.Mark = nativeUint(v)
	e.verdict.Mark = e.packet.Mark
}
