package firewall

import (
	"net/netip"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// The named sets of the record, in its order.
const (
	setListeners4    = "listeners4"
	setListeners6    = "listeners6"
	setEgress4       = "egress4"
	setEgress6       = "egress6"
	setResolvers4    = "resolvers4"
	setResolvers6    = "resolvers6"
	setPublished     = "published"
	setOwnLoopback   = "own_loopback"
	setLoopbackMark  = "loopback_mark"
	setListenerPorts = "listener_ports"
	setAgents        = "agents"
	setRootLoopback  = "root_loopback"
)

// The counters, by the side that was denied.
const (
	CounterAgent   = "agent_denied"
	CounterRoot    = "root_denied"
	CounterInbound = "inbound_denied"
)

// ProxyGID is the group of the proxy's process, by which the rules tell its sockets from others of root's. Nobody is
// given it otherwise: Debian reserves 65000 to 65533, systemd uses none of 65520 to 65533.
const ProxyGID = 65521

// Record is the ruleset of record. It was attacked on Linux 6.18, and this package's tests pass on 5.10, 6.1 and 6.12 as
// far as those have what a test asks for (MPTCP). Each call gives a value of its own.
func Record() *Ruleset {
	return &Ruleset{
		Counters: []string{CounterAgent, CounterRoot, CounterInbound},
		Sets:     recordSets(),
		Chains: []Chain{
			inputChain(), forwardChain(), outputChain(), outNetChain(), outLoChain(), loReplyChain(),
			denySynackChain(), denyChain("deny_agent", CounterAgent), denyChain("deny_root", CounterRoot),
		},
	}
}

func recordSets() []Set {
	return []Set{
		{Name: setListeners4, Key: []Field{metaSkuid, ipDaddr, tcpDport}, Size: 64, Note: "agent uid . its proxy listener"},
		{Name: setListeners6, Key: []Field{metaSkuid, ip6Daddr, tcpDport}, Size: 64},
		{Name: setEgress4, Key: []Field{ipDaddr, metaL4proto, thDport}, Size: 65536, Note: "resolved address . protocol . port of an allowed host"},
		{Name: setEgress6, Key: []Field{ip6Daddr, metaL4proto, thDport}, Size: 65536},
		{Name: setResolvers4, Key: []Field{ipDaddr, metaL4proto, thDport}, Size: 64, Note: "DNS servers, for all of root but the proxy"},
		{Name: setResolvers6, Key: []Field{ip6Daddr, metaL4proto, thDport}, Size: 64},
		{Name: setPublished, Key: []Field{tcpDport}, Size: 64, Note: "inbound TCP ports opened by policy; never a listener's"},
		{Name: setOwnLoopback, Key: []Field{metaSkuid, ctMark}, Size: 64, Note: "agent uid . its loopback mark, where policy says loopback: own"},
		{Name: setLoopbackMark, Key: []Field{metaSkuid}, Value: ctMark, Size: 64},
		{Name: setListenerPorts, Key: []Field{tcpDport}, Size: 64, Note: "the ports of listeners4 and listeners6"},
		{Name: setAgents, Key: []Field{metaSkuid}, Size: 64, Note: "the uids of listeners4 and listeners6"},
		{Name: setRootLoopback, Key: []Field{tcpDport}, Size: 64, Note: "loopback TCP ports root itself may reach"},
	}
}

func inputChain() Chain {
	return Chain{Name: "input", Hook: HookInput, Rules: []Rule{
		rule(iif("lo"), accept),
		rule(state("established", "related"), accept),
		rule(icmp6(ndNeighborSolicit, ndNeighborAdvert, ndRouterAdvert), hopLimit(255), accept),
		rule(in(setPublished, tcpDport), state("new"), accept),
		rule(count{CounterInbound}),
		rule(drop),
	}}
}

func forwardChain() Chain {
	return Chain{Name: "forward", Hook: HookForward, Rules: []Rule{rule(drop)}}
}

func outputChain() Chain {
	return Chain{Name: "output", Hook: HookOutput, Rules: []Rule{
		rule(oif("lo"), goTo("out_lo")),
		rule(goTo("out_net")),
	}}
}

func outNetChain() Chain {
	return Chain{Name: "out_net", Rules: []Rule{
		rule(address(ip6Saddr, "::1"), goTo("deny_agent")).note("RFC 4291 2.5.3. An agent can begin a flow over loopback from any address (IPV6_FREEBIND); what answers it leaves here, and a published port's answers may"),
		rule(replyDirection, state("established"), in(setPublished, tcpSport), accept),
		rule(uidNot(0), goTo("deny_agent")).note("any non-root socket, whatever the protocol. No socket, no skuid: such packets match neither == nor != and fall through"),
		rule(uid(0), in(setEgress4, ipDaddr, metaL4proto, thDport), accept),
		rule(uid(0), in(setEgress6, ip6Daddr, metaL4proto, thDport), accept),
		rule(notProxy, in(setResolvers4, ipDaddr, metaL4proto, thDport), accept).note("only root is left here. The proxy asks PID 1 for addresses; a name server would carry its words out"),
		rule(notProxy, in(setResolvers6, ip6Daddr, metaL4proto, thDport), accept),
		rule(uid(0), goTo("deny_root")).note("a root socket ends here; below are only packets without a socket: late data, FIN, RST of admitted flows. No ICMP error: it takes what was refused to the source that the packet named"),
		rule(state("established"), in(setEgress4, ipDaddr, metaL4proto, thDport), accept),
		rule(state("established"), in(setEgress6, ip6Daddr, metaL4proto, thDport), accept),
		rule(state("established"), in(setResolvers4, ipDaddr, metaL4proto, thDport), accept),
		rule(state("established"), in(setResolvers6, ip6Daddr, metaL4proto, thDport), accept),
		rule(icmp6(ndNeighborSolicit, ndNeighborAdvert, ndRouterSolicit), hopLimit(255), accept),
		rule(goTo("deny_root")),
	}}
}

func outLoChain() Chain {
	ownSyn := func(daddr match) Rule {
		return rule(uidNot(0), daddr, between{tcpDport, 1024, 65535}, flags("fin | syn | rst | ack", "==", "syn"), setMarkFrom{metaSkuid, setLoopbackMark}, accept)
	}
	return Chain{Name: "out_lo", Rules: []Rule{
		rule(state("related"), accept).note("RST and ICMP made by reject are RELATED and travel over lo: without this line every refusal would hang"),
		rule(replyDirection, goTo("lo_reply")),
		rule(in(setListeners4, metaSkuid, ipDaddr, tcpDport), setMark{mark(0)}, accept),
		rule(in(setListeners6, metaSkuid, ip6Daddr, tcpDport), setMark{mark(0)}, accept),
		rule(uidNot(0), exists(tcpFastOpen), goTo("deny_agent")).note("data in a SYN would reach a listener before its SYN-ACK shows whose it is"),
		rule(uidNot(0), exists(tcpExperiment), goTo("deny_agent")).note("fast open too, where the other kind once had no answer"),
		rule(state("established"), in(setOwnLoopback, metaSkuid, ctMark), accept),
		rule(uidNot(0), in(setListenerPorts, tcpDport), goTo("deny_agent")),
		rule(uidNot(0), in(setEgress4, ipDaddr, metaL4proto, thDport), goTo("deny_agent")).note("a SYN that goes nowhere still fills the queue of an upstream on loopback, until that answers root by SYN cookies, which show no owner"),
		rule(uidNot(0), in(setEgress6, ip6Daddr, metaL4proto, thDport), goTo("deny_agent")),
		ownSyn(address(ipDaddr, "127.0.0.1")),
		ownSyn(address(ip6Daddr, "::1")),
		rule(uidNot(0), goTo("deny_agent")),
		rule(uid(0), flags("fin | syn | rst | ack", "!=", "syn"), markIs(0).not(), goTo("deny_root")).note("an agent's socket that is bound to a device may share a flow of root's, and its SYNs mark it: nothing of root's but a SYN takes the mark away"),
		rule(uid(0), setMark{mark(0)}).note("a flow that an agent had reset keeps its entry for 10 s: root's next one by the same ports would have the agent's mark, and the agent might answer it"),
		rule(in(setEgress4, ipDaddr, metaL4proto, thDport), uid(0), accept),
		rule(in(setEgress6, ip6Daddr, metaL4proto, thDport), uid(0), accept),
		rule(in(setResolvers4, ipDaddr, metaL4proto, thDport), notProxy, accept),
		rule(in(setResolvers6, ip6Daddr, metaL4proto, thDport), notProxy, accept),
		rule(address(ipDaddr, dockerDNS.String()), protos(unix.IPPROTO_TCP, unix.IPPROTO_UDP), port(ctOriginalDport, 53), notProxy, accept).note("Docker's DNS: at this priority the port is rewritten already"),
		rule(uid(0), in(setRootLoopback, tcpDport), accept),
		rule(uid(0), goTo("deny_root")),
		rule(state("established"), accept),
		rule(goTo("deny_root")),
	}}
}

func loReplyChain() Chain {
	return Chain{Name: "lo_reply", Note: "a SYN-ACK carries the uid of the listener: an agent's own loopback is its own", Rules: []Rule{
		rule(markIs(0), in(setListenerPorts, tcpSport), uidNot(0), goTo("deny_synack")),
		rule(markIs(0), in(setListenerPorts, tcpSport), state("established"), accept),
		rule(markIs(0), in(setRootLoopback, tcpSport), state("established"), accept),
		rule(markIs(0), state("established"), member{key: []Field{metaSkuid}, set: setAgents, not: true}, accept).
			note("what else root opens on loopback is not an agent's to answer; a SYN-ACK without an owner (SYN cookie) might be one's"),
		rule(state("established"), in(setOwnLoopback, metaSkuid, ctMark), accept),
		rule(flags("syn | ack", "==", "syn | ack"), goTo("deny_synack")),
		rule(match{field: metaSkuid, op: ">=", value: constant{"0", []byte{0, 0, 0, 0}}}, goTo("deny_agent")),
		rule(state("established"), accept),
		rule(goTo("deny_agent")),
	}}
}

func denySynackChain() Chain {
	return Chain{Name: "deny_synack", Note: "the client gets the reset at once, the listener at its first retransmission", Rules: []Rule{
		rule(count{CounterAgent}),
		rule(flags("syn | ack", "!=", "syn | ack"), reject{Reset}),
		rule(proto(unix.IPPROTO_TCP), markIs(resetMark), reject{Reset}),
		rule(setMark{mark(resetMark)}, setFlags{tcpFlagSet("rst | ack")}, accept),
	}}
}

func denyChain(name, counter string) Chain {
	return Chain{Name: name, Rules: []Rule{
		rule(count{counter}),
		rule(proto(unix.IPPROTO_TCP), reject{Reset}),
		rule(reject{Unreachable}),
		rule(drop),
	}}
}

// The words the record is written in.

var (
	accept         = jump{action: Accept}
	drop           = jump{action: Drop}
	replyDirection = match{field: ctDirection, op: "==", value: constant{"reply", []byte{1}}}
)

func rule(s ...Statement) Rule { return Rule{Statements: s} }

func (r Rule) note(n string) Rule { r.Note = n; return r }

func goTo(chain string) jump { return jump{chain: chain} }

func in(set string, key ...Field) member { return member{key: key, set: set} }

// The loopback interface has number 1 in every network namespace.
func iif(name string) match {
	return match{field: metaIif, op: "==", value: constant{strconv.Quote(name), native(1)}}
}
func oif(name string) match {
	return match{field: metaOif, op: "==", value: constant{strconv.Quote(name), native(1)}}
}

// state matches any of conntrack's states.
func state(words ...string) match {
	var bits uint32
	for _, w := range words {
		bits |= uint32(connStates[w])
	}
	return match{field: ctState, mask: constant{strings.Join(words, ","), native(bits)}, op: "!=", value: constant{"0", native(0)}}
}

var (
	ndRouterSolicit   = constant{"nd-router-solicit", []byte{133}}
	ndRouterAdvert    = constant{"nd-router-advert", []byte{134}}
	ndNeighborSolicit = constant{"nd-neighbor-solicit", []byte{135}}
	ndNeighborAdvert  = constant{"nd-neighbor-advert", []byte{136}}
)

func icmp6(types ...constant) oneOf { return oneOf{field: icmp6Type, values: types} }

func uid(u uint32) match {
	return match{field: metaSkuid, op: "==", value: constant{strconv.FormatUint(uint64(u), 10), native(u)}}
}

func (m match) not() match { m.op = "!="; return m }

func uidNot(u uint32) match { return uid(u).not() }

// notProxy is any socket but those of the proxy, which has ProxyGID as its group.
var notProxy = match{field: metaSkgid, op: "!=", value: constant{strconv.Itoa(ProxyGID), native(ProxyGID)}}

func exists(option Field) match {
	return match{field: option, op: "==", value: constant{"exists", []byte{1}}}
}

func mark(v uint32) constant { return constant{ctMark.format(native(v)), native(v)} }

func markIs(v uint32) match { return match{field: ctMark, op: "==", value: mark(v)} }

func proto(p byte) match {
	return match{field: metaL4proto, op: "==", value: constant{protoName(p), []byte{p}}}
}

func protos(ps ...byte) oneOf {
	o := oneOf{field: metaL4proto}
	for _, p := range ps {
		o.values = append(o.values, constant{protoName(p), []byte{p}})
	}
	return o
}

func port(f Field, p uint16) match {
	return match{field: f, op: "==", value: constant{strconv.Itoa(int(p)), big(p)}}
}

func address(f Field, a string) match {
	addr := netip.MustParseAddr(a)
	return match{field: f, op: "==", value: constant{a, addr.AsSlice()}}
}

func hopLimit(n byte) match {
	return match{field: ip6Hoplimit, op: "==", value: constant{strconv.Itoa(int(n)), []byte{n}}}
}

func tcpFlagSet(text string) constant {
	var v byte
	for word := range strings.SplitSeq(text, " | ") {
		v |= tcpFlagBits[word]
	}
	return constant{text, []byte{v}}
}

var tcpFlagBits = map[string]byte{"fin": TCPFin, "syn": TCPSyn, "rst": TCPRst, "ack": TCPAck}

func flags(mask, op, value string) match {
	return match{field: tcpFlags, mask: tcpFlagSet(mask), op: op, value: tcpFlagSet(value)}
}
