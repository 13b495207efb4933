package firewall

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// modelContents has something in every set, on loopback and beyond.
func modelContents() Contents {
	return Contents{
		Listeners: []Listener{
			{1000, netip.MustParseAddrPort("127.0.0.1:8080")}, {1000, netip.MustParseAddrPort("[::1]:8080")},
			{1001, netip.MustParseAddrPort("127.0.0.1:8081")},
		},
		Egress: []Endpoint{
			{unix.IPPROTO_TCP, netip.MustParseAddr("192.0.2.10"), 443}, {unix.IPPROTO_TCP, netip.MustParseAddr("2001:db8::10"), 443},
			{unix.IPPROTO_TCP, netip.MustParseAddr("127.0.0.1"), 9443}, {unix.IPPROTO_TCP, netip.MustParseAddr("::1"), 9443},
		},
		Resolvers: slices.Concat(dnsEndpoints(netip.MustParseAddrPort("192.0.2.53:53")), dnsEndpoints(netip.MustParseAddrPort("[2001:db8::53]:53")),
			dnsEndpoints(netip.MustParseAddrPort("127.0.0.53:53")), dnsEndpoints(netip.MustParseAddrPort("[::1]:5353"))),
		Published:   []uint16{3000},
		OwnLoopback: []uint32{1000, 1001}, RootLoopback: []uint16{9000},
	}
}

// The words packets are described in.

func by(uid uint32) Packet { return Packet{Owned: true, UID: uid, GID: uid, HopLimit: 64} }

func byProxy() Packet { return Packet{Owned: true, GID: ProxyGID, HopLimit: 64} }
func orphan() Packet  { return Packet{HopLimit: 64} }
func inbound() Packet { return Packet{Hook: HookInput, HopLimit: 64} }

func (p Packet) tcp(dst string) Packet { return p.over(unix.IPPROTO_TCP, dst).flags(TCPSyn) }
func (p Packet) udp(dst string) Packet { return p.over(unix.IPPROTO_UDP, dst) }

func (p Packet) over(proto uint8, dst string) Packet {
	p.Proto, p.Dst = proto, netip.MustParseAddrPort(dst)
	p.Loopback = p.Dst.Addr().IsLoopback()
	return p
}

func (p Packet) from(src string) Packet   { p.Src = netip.MustParseAddrPort(src); return p }
func (p Packet) flags(f uint8) Packet     { p.TCPFlags = f; return p }
func (p Packet) in(s ConnState) Packet    { p.State = s; return p }
func (p Packet) live() Packet             { return p.in(ConnEstablished).flags(TCPAck) }
func (p Packet) marked(m uint32) Packet   { p.Mark = m; return p }
func (p Packet) answer() Packet           { p.Reply = true; return p.in(ConnEstablished).flags(TCPAck) }
func (p Packet) synAck() Packet           { return p.answer().flags(TCPSyn | TCPAck) }
func (p Packet) fastOpen() Packet         { p.FastOpen = true; return p }
func (p Packet) experiment() Packet       { p.Experiment = true; return p }
func (p Packet) original(n uint16) Packet { p.OriginalPort = n; return p }
func (p Packet) icmp6(typ, hops uint8) Packet {
	p = p.over(unix.IPPROTO_ICMPV6, "[ff02::1]:0")
	p.ICMPType, p.HopLimit = typ, hops
	return p
}

// verdictCases say what becomes of a packet: the action, the chain that decided,
// the mark where it is set. Every rule of the record decides one of them.
var verdictCases = []struct {
	what string
	p    Packet
	want string
}{
	// input
	{"loopback comes in", inbound().tcp("127.0.0.1:8080"), "accept input"},
	{"a reply comes in", inbound().tcp("192.0.2.2:50000").in(ConnEstablished), "accept input"},
	{"an ICMP error comes in", inbound().over(unix.IPPROTO_ICMP, "192.0.2.2:0").in(ConnRelated), "accept input"},
	{"neighbour discovery comes in", inbound().icmp6(135, 255), "accept input"},
	{"a router speaks", inbound().icmp6(134, 255), "accept input"},
	{"a neighbour answers", inbound().icmp6(136, 255), "accept input"},
	{"discovery from afar", inbound().icmp6(135, 64), "drop input inbound_denied"},
	{"a redirect", inbound().icmp6(137, 255), "drop input inbound_denied"},
	{"an IPv4 packet that looks like discovery", inbound().over(unix.IPPROTO_TCP, "192.0.2.2:135"), "drop input inbound_denied"},
	{"to a published port", inbound().tcp("192.0.2.2:3000"), "accept input"},
	{"to a published port, by UDP", inbound().udp("192.0.2.2:3000"), "drop input inbound_denied"},
	{"to a published port, out of nowhere", inbound().tcp("192.0.2.2:3000").in(ConnInvalid), "drop input inbound_denied"},
	{"to another port", inbound().tcp("192.0.2.2:8080"), "drop input inbound_denied"},
	{"forwarded", Packet{Hook: HookForward}.tcp("192.0.2.2:443"), "drop forward"},

	// out_net, sockets
	{"the agent, to an allowed host", by(1000).tcp("192.0.2.10:443"), "reset deny_agent agent_denied"},
	{"the agent, by UDP", by(1000).udp("192.0.2.10:443"), "unreachable deny_agent agent_denied"},
	{"the agent, to the resolver", by(1000).udp("192.0.2.53:53"), "unreachable deny_agent agent_denied"},
	{"the agent, in a live flow", by(1000).tcp("192.0.2.10:443").live(), "reset deny_agent agent_denied"},
	{"the agent pings", by(1000).over(unix.IPPROTO_ICMP, "192.0.2.1:0"), "unreachable deny_agent agent_denied"},
	{"the agent speaks SCTP", by(1000).over(unix.IPPROTO_SCTP, "192.0.2.10:443"), "unreachable deny_agent agent_denied"},
	{"a published port answers", by(1000).tcp("198.51.100.1:50000").from("192.0.2.2:3000").answer(), "accept out_net"},
	{"a published port answers from loopback", by(1000).tcp("[2001:db8:1::1]:50000").from("[::1]:3000").answer(), "reset deny_agent agent_denied"},
	{"a published port calls", by(1000).tcp("198.51.100.1:443").from("192.0.2.2:3000").live(), "reset deny_agent agent_denied"},
	{"a published port answers what is no flow", by(1000).tcp("198.51.100.1:443").from("192.0.2.2:3000").answer().in(ConnNew), "reset deny_agent agent_denied"},
	{"another port answers", by(1000).tcp("198.51.100.1:50000").from("192.0.2.2:4000").answer(), "reset deny_agent agent_denied"},
	{"a published port answers by UDP", by(1000).udp("198.51.100.1:50000").from("192.0.2.2:3000").answer(), "unreachable deny_agent agent_denied"},
	{"root, to an allowed host", by(0).tcp("192.0.2.10:443"), "accept out_net"},
	{"root, to an allowed host, v6", by(0).tcp("[2001:db8::10]:443"), "accept out_net"},
	{"root, to another port", by(0).tcp("192.0.2.10:80"), "reset deny_root root_denied"},
	{"root, by another protocol", by(0).udp("192.0.2.10:443"), "unreachable deny_root root_denied"},
	{"root, to another host, v6", by(0).tcp("[2001:db8::11]:443"), "reset deny_root root_denied"},
	{"root, to the resolver", by(0).udp("192.0.2.53:53"), "accept out_net"},
	{"root, to the resolver by TCP", by(0).tcp("192.0.2.53:53"), "accept out_net"},
	{"root, to the resolver, v6", by(0).udp("[2001:db8::53]:53"), "accept out_net"},
	{"the proxy, to the resolver", byProxy().udp("192.0.2.53:53"), "unreachable deny_root root_denied"},
	{"the proxy, to the resolver by TCP", byProxy().tcp("192.0.2.53:53"), "reset deny_root root_denied"},
	{"the proxy, to the resolver, v6", byProxy().tcp("[2001:db8::53]:53"), "reset deny_root root_denied"},
	{"the proxy, to an upstream", byProxy().tcp("192.0.2.10:443"), "accept out_net"},
	{"root, to the resolver by SCTP", by(0).over(unix.IPPROTO_SCTP, "192.0.2.53:53"), "unreachable deny_root root_denied"},
	{"root, to the resolver by SCTP, v6", by(0).over(unix.IPPROTO_SCTP, "[2001:db8::53]:53"), "unreachable deny_root root_denied"},
	{"root, to the resolver's other port", by(0).tcp("192.0.2.53:443"), "reset deny_root root_denied"},
	{"root, to the resolver's other port, v6", by(0).tcp("[2001:db8::53]:443"), "reset deny_root root_denied"},
	{"root, to another resolver", by(0).udp("192.0.2.54:53"), "unreachable deny_root root_denied"},
	{"root, to another resolver, v6", by(0).udp("[2001:db8::54]:53"), "unreachable deny_root root_denied"},
	{"root, raw discovery", by(0).icmp6(135, 255), "unreachable deny_root root_denied"},
	{"root, raw ICMP error", by(0).over(unix.IPPROTO_ICMP, "192.0.2.1:0").in(ConnRelated), "unreachable deny_root root_denied"},
	{"root, in a revoked flow", by(0).tcp("192.0.2.99:443").live(), "reset deny_root root_denied"},

	// out_net, no socket
	{"late data", orphan().tcp("192.0.2.10:443").live(), "accept out_net"},
	{"late data, v6", orphan().tcp("[2001:db8::10]:443").live(), "accept out_net"},
	{"late data of no flow", orphan().tcp("192.0.2.10:443"), "reset deny_root root_denied"},
	{"late data of no flow, v6", orphan().tcp("[2001:db8::10]:443"), "reset deny_root root_denied"},
	{"late data of a revoked flow", orphan().tcp("192.0.2.99:443").live(), "reset deny_root root_denied"},
	{"late data to the resolver", orphan().tcp("192.0.2.53:53").live(), "accept out_net"},
	{"late data to the resolver, v6", orphan().tcp("[2001:db8::53]:53").live(), "accept out_net"},
	{"late data to the resolver, of no flow", orphan().tcp("192.0.2.53:53"), "reset deny_root root_denied"},
	{"late data to the resolver, of no flow, v6", orphan().tcp("[2001:db8::53]:53"), "reset deny_root root_denied"},
	{"late data to another resolver", orphan().tcp("192.0.2.54:53").live(), "reset deny_root root_denied"},
	{"late data to another resolver, v6", orphan().tcp("[2001:db8::54]:53").live(), "reset deny_root root_denied"},
	{"late data to the resolver's other port", orphan().tcp("192.0.2.53:443").live(), "reset deny_root root_denied"},
	{"late data to the resolver's other port, v6", orphan().tcp("[2001:db8::53]:443").live(), "reset deny_root root_denied"},
	{"an ICMP error of ours", orphan().over(unix.IPPROTO_ICMP, "192.0.2.1:0").in(ConnRelated), "unreachable deny_root root_denied"},
	{"an ICMPv6 error of ours", orphan().icmp6(1, 64).in(ConnRelated), "unreachable deny_root root_denied"},
	{"something else that is related", orphan().tcp("192.0.2.1:20").in(ConnRelated), "reset deny_root root_denied"},
	{"an echo of no flow", orphan().over(unix.IPPROTO_ICMP, "192.0.2.1:0"), "unreachable deny_root root_denied"},
	{"neighbour discovery", orphan().icmp6(135, 255), "accept out_net"},
	{"a neighbour's answer", orphan().icmp6(136, 255), "accept out_net"},
	{"a call for routers", orphan().icmp6(133, 255), "accept out_net"},
	{"discovery sent afar", orphan().icmp6(135, 64), "unreachable deny_root root_denied"},
	{"a group report", orphan().icmp6(143, 255), "unreachable deny_root root_denied"},
	{"a group report, v4", orphan().over(unix.IPPROTO_IGMP, "224.0.0.22:0"), "unreachable deny_root root_denied"},
	{"a router's word", orphan().icmp6(134, 255), "unreachable deny_root root_denied"},

	// out_lo
	{"a reset made by a refusal", orphan().tcp("127.0.0.1:50000").in(ConnRelated).flags(TCPRst), "accept out_lo"},
	{"the agent, to its proxy", by(1000).tcp("127.0.0.1:8080"), "accept out_lo"},
	{"the agent, to its proxy, v6", by(1000).tcp("[::1]:8080"), "accept out_lo"},
	{"the agent, to its proxy, over another's mark", by(1000).tcp("127.0.0.1:8080").marked(1001), "accept out_lo"},
	{"the agent, to its proxy, over another's mark, v6", by(1000).tcp("[::1]:8080").marked(1001), "accept out_lo"},
	{"the agent, to its proxy with fast open", by(1000).tcp("127.0.0.1:8080").fastOpen(), "accept out_lo"},
	{"the agent, to another's proxy", by(1000).tcp("127.0.0.1:8081"), "reset deny_agent agent_denied"},
	{"the agent, to the proxy's port elsewhere", by(1000).tcp("127.0.0.2:8080"), "reset deny_agent agent_denied"},
	{"the agent, to its proxy by UDP", by(1000).udp("127.0.0.1:8080"), "unreachable deny_agent agent_denied"},
	{"root, to the agent's proxy", by(0).tcp("127.0.0.1:8080"), "reset deny_root root_denied"},
	{"the agent, to an upstream of root's", by(1000).tcp("127.0.0.1:9443"), "reset deny_agent agent_denied"},
	{"the agent, to an upstream of root's, v6", by(1000).tcp("[::1]:9443"), "reset deny_agent agent_denied"},
	{"the agent, to its own server", by(1000).tcp("127.0.0.1:5000"), "accept out_lo mark 1000"},
	{"the agent, to its own server, v6", by(1000).tcp("[::1]:5000"), "accept out_lo mark 1000"},
	{"the agent, to its own server elsewhere", by(1000).tcp("127.0.0.2:5000"), "reset deny_agent agent_denied"},
	{"the agent, to its own server elsewhere, v6", by(1000).tcp("[::ffff:127.0.0.2]:5000"), "reset deny_agent agent_denied"},
	{"the agent, to its own address, v6", Packet{Owned: true, UID: 1000, Loopback: true}.over6("2001:db8::2", 5000), "reset deny_agent agent_denied"},
	{"the agent, to a low port", by(1000).tcp("127.0.0.1:1023"), "reset deny_agent agent_denied"},
	{"the agent, to a low port, v6", by(1000).tcp("[::1]:1023"), "reset deny_agent agent_denied"},
	{"the agent, to the first high port", by(1000).tcp("127.0.0.1:1024"), "accept out_lo mark 1000"},
	{"the agent, to the last port", by(1000).tcp("[::1]:65535"), "accept out_lo mark 1000"},
	{"the agent, with data in the SYN", by(1000).tcp("127.0.0.1:5000").fastOpen(), "reset deny_agent agent_denied"},
	{"the agent, with data in a SYN where a flow of its own was", by(1000).tcp("127.0.0.1:5000").fastOpen().in(ConnEstablished).marked(1000), "reset deny_agent agent_denied mark 1000"},
	{"the agent, with data in the SYN by the older option", by(1000).tcp("127.0.0.1:5000").experiment(), "reset deny_agent agent_denied"},
	{"root, to an endpoint on loopback, by the older option", by(0).tcp("[::1]:9443").experiment(), "accept out_lo"},
	{"the agent, by UDP to its own", by(1000).udp("127.0.0.1:5000"), "unreachable deny_agent agent_denied"},
	{"the agent, no SYN and no flow", by(1000).tcp("127.0.0.1:5000").flags(TCPAck), "reset deny_agent agent_denied"},
	{"the agent, no SYN and no flow, v6", by(1000).tcp("[::1]:5000").flags(TCPAck), "reset deny_agent agent_denied"},
	{"the agent, SYN and more", by(1000).tcp("127.0.0.1:5000").flags(TCPSyn | TCPAck), "reset deny_agent agent_denied"},
	{"the agent, SYN and FIN", by(1000).tcp("[::1]:5000").flags(TCPSyn | TCPFin), "reset deny_agent agent_denied"},
	{"the agent, in its own flow", by(1000).tcp("127.0.0.1:5000").live().marked(1000), "accept out_lo mark 1000"},
	{"the agent, in another's flow", by(1000).tcp("127.0.0.1:5000").live().marked(1001), "reset deny_agent agent_denied mark 1001"},
	{"the agent, in its own flow before it is one", by(1000).tcp("127.0.0.1:5000").flags(TCPAck).marked(1000), "reset deny_agent agent_denied mark 1000"},
	{"one without own loopback", by(65534).tcp("127.0.0.1:5000"), "reset deny_agent agent_denied"},
	{"one without own loopback, v6", by(65534).tcp("[::1]:5000"), "reset deny_agent agent_denied"},
	{"one without own loopback, to a resolver", by(65534).udp("127.0.0.53:53"), "unreachable deny_agent agent_denied"},
	{"one without own loopback, to an endpoint, v6", by(65534).tcp("[::1]:9443"), "reset deny_agent agent_denied"},
	{"the agent, to Docker's DNS", by(1000).udp("127.0.0.11:40053").original(53), "unreachable deny_agent agent_denied"},
	{"another agent, to its proxy", by(1001).tcp("127.0.0.1:8081"), "accept out_lo"},
	{"another agent, to its own server", by(1001).tcp("127.0.0.1:5001"), "accept out_lo mark 1001"},
	{"another agent, in its own flow", by(1001).tcp("127.0.0.1:5001").live().marked(1001), "accept out_lo mark 1001"},
	{"root, to an endpoint on loopback, with fast open", by(0).tcp("[::1]:9443").fastOpen(), "accept out_lo"},
	{"root, to a resolver on loopback", by(0).udp("127.0.0.53:53"), "accept out_lo"},
	{"root, to an endpoint on loopback, v6", by(0).tcp("[::1]:9443"), "accept out_lo"},
	{"no one, to a resolver on loopback", orphan().udp("127.0.0.53:53"), "unreachable deny_root root_denied"},
	{"no one, to an endpoint on loopback, v6", orphan().tcp("[::1]:9443"), "reset deny_root root_denied"},
	{"root, to an endpoint on loopback, v4", by(0).tcp("127.0.0.1:9443"), "accept out_lo"},
	{"no one, to an endpoint on loopback, v4", orphan().tcp("127.0.0.1:9443"), "reset deny_root root_denied"},
	{"root, to a resolver on loopback by TCP", by(0).tcp("127.0.0.53:53"), "accept out_lo"},
	{"root, to a resolver on loopback, v6", by(0).udp("[::1]:5353"), "accept out_lo"},
	{"root, to a resolver on loopback by TCP, v6", by(0).tcp("[::1]:5353"), "accept out_lo"},
	{"the proxy, to a resolver on loopback", byProxy().tcp("127.0.0.53:53"), "reset deny_root root_denied"},
	{"the proxy, to a resolver on loopback, v6", byProxy().tcp("[::1]:5353"), "reset deny_root root_denied"},
	{"the proxy, to an endpoint on loopback", byProxy().tcp("127.0.0.1:9443"), "accept out_lo"},
	{"the proxy, to Docker's DNS", byProxy().tcp("127.0.0.11:40053").original(53), "reset deny_root root_denied"},
	{"root, to Docker's DNS", by(0).udp("127.0.0.11:40053").original(53), "accept out_lo"},
	{"root, to Docker's DNS by TCP", by(0).tcp("127.0.0.11:40053").original(53), "accept out_lo"},
	{"root, to Docker's DNS by SCTP", by(0).over(unix.IPPROTO_SCTP, "127.0.0.11:40053").original(53), "unreachable deny_root root_denied"},
	{"root, to Docker's DNS by its real port", by(0).udp("127.0.0.11:40053"), "unreachable deny_root root_denied"},
	{"root, to another's DNS", by(0).udp("127.0.0.12:40053").original(53), "unreachable deny_root root_denied"},
	{"no one, to Docker's DNS", orphan().udp("127.0.0.11:40053").original(53), "unreachable deny_root root_denied"},
	{"root checks a server", by(0).tcp("127.0.0.1:9000"), "accept out_lo"},
	{"root checks another", by(0).tcp("127.0.0.1:9001"), "reset deny_root root_denied"},
	{"root checks a server by UDP", by(0).udp("127.0.0.1:9000"), "unreachable deny_root root_denied"},
	{"no one checks a server", orphan().tcp("127.0.0.1:9000"), "reset deny_root root_denied"},
	{"root, where a flow of an agent's was", by(0).tcp("127.0.0.1:9000").in(ConnEstablished).marked(1000), "accept out_lo"},
	{"root, where an agent was refused", by(0).tcp("127.0.0.1:9443").in(ConnEstablished).marked(resetMark), "accept out_lo"},
	{"root goes on where an agent began", by(0).tcp("127.0.0.1:9000").live().marked(1000), "reset deny_root root_denied mark 1000"},
	{"root answers a SYN where an agent began", by(0).tcp("127.0.0.1:9443").in(ConnEstablished).flags(TCPSyn | TCPAck).marked(1000), "reset deny_root root_denied mark 1000"},
	{"root goes on", by(0).tcp("127.0.0.1:9000").live(), "accept out_lo"},
	{"late data of an agent's own flow", orphan().tcp("127.0.0.1:5000").live().marked(1000), "accept out_lo mark 1000"},
	{"root, in a revoked flow over loopback", by(0).tcp("127.0.0.1:9001").live(), "reset deny_root root_denied"},
	{"late data over loopback", orphan().tcp("127.0.0.1:8080").live(), "accept out_lo"},
	{"late data over loopback, of no flow", orphan().tcp("127.0.0.1:8080"), "reset deny_root root_denied"},

	// lo_reply
	{"the proxy accepts", by(0).tcp("127.0.0.1:50000").from("127.0.0.1:8080").synAck(), "accept lo_reply"},
	{"the proxy accepts, with a cookie", orphan().tcp("127.0.0.1:50000").from("127.0.0.1:8080").synAck(), "accept lo_reply"},
	{"the proxy answers what is no flow", by(0).tcp("127.0.0.1:50000").from("127.0.0.1:8080").answer().in(ConnNew), "reset deny_agent agent_denied"},
	{"the checked server answers what is no flow", by(1000).tcp("127.0.0.1:50000").from("127.0.0.1:9000").answer().in(ConnNew), "reset deny_agent agent_denied"},
	{"the checked server answers another agent", by(1001).tcp("127.0.0.1:50000").from("127.0.0.1:9000").answer().marked(1000), "reset deny_agent agent_denied mark 1000"},
	{"a stranger accepts in the proxy's place", by(1001).tcp("127.0.0.1:50000").from("127.0.0.1:8080").synAck(), "rewritten deny_synack agent_denied mark 1634197165"},
	{"a stranger goes on in the proxy's place", by(1001).tcp("127.0.0.1:50000").from("127.0.0.1:8080").answer(), "reset deny_synack agent_denied"},
	{"a stranger tries again", by(1001).tcp("127.0.0.1:50000").from("127.0.0.1:8080").synAck().marked(resetMark), "reset deny_synack agent_denied mark 1634197165"},
	{"the checked server answers", by(1000).tcp("127.0.0.1:50000").from("127.0.0.1:9000").synAck(), "accept lo_reply"},
	{"the agent answers in the resolver's place", by(1000).udp("127.0.0.1:50000").from("127.0.0.53:53").answer(), "unreachable deny_agent agent_denied"},
	{"the agent accepts in an upstream's place", by(1000).tcp("127.0.0.1:50000").from("127.0.0.1:9443").synAck(), "rewritten deny_synack agent_denied mark 1634197165"},
	{"somebody accepts in an upstream's place, with a cookie", orphan().tcp("127.0.0.1:50000").from("127.0.0.1:9443").synAck(), "rewritten deny_synack agent_denied mark 1634197165"},
	{"a service that is no agent's answers", by(101).udp("127.0.0.1:50000").from("127.0.0.53:53").answer(), "accept lo_reply"},
	{"another agent, in the resolver's place", by(1001).udp("127.0.0.1:50000").from("127.0.0.53:53").answer(), "unreachable deny_agent agent_denied"},
	{"Docker's DNS answers", by(0).udp("127.0.0.1:50000").from("127.0.0.11:40053").answer(), "accept lo_reply"},
	{"an answer that is none", by(0).udp("127.0.0.1:50000").from("127.0.0.11:40053").answer().in(ConnNew), "unreachable deny_agent agent_denied"},
	{"its own server answers", by(1000).tcp("127.0.0.1:50000").from("127.0.0.1:5000").synAck().marked(1000), "accept lo_reply mark 1000"},
	{"its own server answers, not established", by(1000).tcp("127.0.0.1:50000").from("127.0.0.1:5000").answer().in(ConnNew).marked(1000), "reset deny_agent agent_denied mark 1000"},
	{"its own server answers on what is a listener's port by now", by(1000).tcp("127.0.0.1:50000").from("127.0.0.1:8081").answer().marked(1000), "accept lo_reply mark 1000"},
	{"root's server answers the agent", by(0).tcp("127.0.0.1:50000").from("127.0.0.1:5432").synAck().marked(1000), "rewritten deny_synack agent_denied mark 1634197165"},
	{"a server without a socket (SYN cookie) answers the agent", orphan().tcp("127.0.0.1:50000").from("127.0.0.1:5432").synAck().marked(1000), "rewritten deny_synack agent_denied mark 1634197165"},
	{"another agent's server answers", by(1001).tcp("127.0.0.1:50000").from("127.0.0.1:5001").synAck().marked(1000), "rewritten deny_synack agent_denied mark 1634197165"},
	{"another agent opens at the same time", by(1001).tcp("127.0.0.1:50000").from("127.0.0.1:5001").answer().flags(TCPSyn).marked(1000), "reset deny_agent agent_denied mark 1000"},
	{"a closed port answers", orphan().tcp("127.0.0.1:50000").from("127.0.0.1:5001").answer().flags(TCPRst | TCPAck).marked(1000), "accept lo_reply mark 1000"},
	{"a closed port answers what is no flow", orphan().tcp("127.0.0.1:50000").from("127.0.0.1:5001").answer().in(ConnNew).flags(TCPRst).marked(1000), "reset deny_agent agent_denied mark 1000"},
	{"the agent spoofs a UDP answer to another mark", by(1000).udp("127.0.0.1:50000").from("127.0.0.1:5001").answer().marked(1001), "unreachable deny_agent agent_denied mark 1001"},
}

// over6 is a TCP packet over loopback to one of the box's own addresses.
func (p Packet) over6(addr string, port uint16) Packet {
	p.Proto, p.TCPFlags = unix.IPPROTO_TCP, TCPSyn
	p.Dst = netip.AddrPortFrom(netip.MustParseAddr(addr), port)
	return p
}

// text is what verdictCases say of a verdict.
func (v Verdict) text() string {
	words := []string{string(v.Action)}
	if v.Rewritten {
		words[0] = "rewritten"
	}
	words = append(words, v.Chain)
	words = append(words, v.Counters...)
	if v.Mark != 0 {
		words = append(words, fmt.Sprintf("mark %d", v.Mark))
	}
	return strings.Join(words, " ")
}

func TestEvaluate(t *testing.T) {
	for _, tc := range verdictCases {
		v := Evaluate(record, modelContents(), tc.p)
		if got := v.text(); got != tc.want {
			t.Errorf("%s: %s by %q, want %s", tc.what, got, v.Rule, tc.want)
		}
	}
}

// sameWithout lists what can be taken out of the record without a packet faring
// otherwise: second locks on doors that are shut.
var sameWithout = map[string]bool{
	// The policy is drop, or reject has decided.
	"input: drop": true, "forward: drop": true, "deny_agent: drop": true, "deny_root: drop": true,
	// The map holds agents only.
	"out_lo: meta skuid != 0 ip daddr 127.0.0.1 tcp dport 1024-65535 tcp flags & (fin | syn | rst | ack) == (syn) ct mark set meta skuid map @loopback_mark accept, less meta skuid != 0": true,
	"out_lo: meta skuid != 0 ip6 daddr ::1 tcp dport 1024-65535 tcp flags & (fin | syn | rst | ack) == (syn) ct mark set meta skuid map @loopback_mark accept, less meta skuid != 0":      true,
	// A TCP reset answers TCP only.
	"deny_synack: meta l4proto tcp ct mark 0x6167dead reject with tcp reset, less meta l4proto tcp": true,
	"deny_agent: meta l4proto tcp reject with tcp reset, less meta l4proto tcp":                     true,
	"deny_root: meta l4proto tcp reject with tcp reset, less meta l4proto tcp":                      true,
}

// TestEveryRuleMatters takes out each rule, and each statement of a rule, in
// turn: some case must then fare otherwise. So the cases cover the record.
func TestEveryRuleMatters(t *testing.T) {
	for ci, c := range record.Chains {
		for ri, r := range c.Rules {
			rs := record.clone()
			rs.Chains[ci].Rules = slices.Delete(rs.Chains[ci].Rules, ri, ri+1)
			if name := c.Name + ": " + r.String(); !mattersTo(rs) != sameWithout[name] {
				t.Errorf("without %q every case fares as before: %v", name, !sameWithout[name])
			}
			for si := range r.Statements {
				if len(r.Statements) == 1 {
					continue
				}
				rs := record.clone()
				rs.Chains[ci].Rules[ri].Statements = slices.Delete(slices.Clone(r.Statements), si, si+1)
				if name := fmt.Sprintf("%s: %s, less %s", c.Name, r, r.Statements[si]); !mattersTo(rs) != sameWithout[name] {
					t.Errorf("%q: every case fares as before: %v", name, !sameWithout[name])
				}
			}
		}
	}
}

func mattersTo(rs *Ruleset) bool {
	ev := newEvaluator(rs, modelContents())
	return slices.ContainsFunc(verdictCases, func(tc struct {
		what string
		p    Packet
		want string
	}) bool {
		return ev.run(tc.p).text() != tc.want
	})
}

// Nor may any element be superfluous, or a chain's hook.
func TestEveryElementMatters(t *testing.T) {
	all := modelContents().elements()
	for i, e := range all {
		ev := newEvaluator(record, Contents{})
		ev.fill(slices.Delete(slices.Clone(all), i, i+1))
		if !slices.ContainsFunc(verdictCases, func(tc struct {
			what string
			p    Packet
			want string
		}) bool {
			return ev.run(tc.p).text() != tc.want
		}) {
			t.Errorf("without %s in %s every case fares as before", e, record.Sets[e.set].Name)
		}
	}
	for i, c := range record.Chains {
		rs := record.clone()
		if rs.Chains[i].Hook = NoHook; c.Hook != NoHook && !mattersTo(rs) {
			t.Errorf("without its hook %s makes no difference", c.Name)
		}
	}
}

// A circle of gotos, which the kernel would refuse, must end.
func TestEvaluateEnds(t *testing.T) {
	rs := &Ruleset{Chains: []Chain{
		{Name: "output", Hook: HookOutput, Rules: []Rule{rule(goTo("a"))}},
		{Name: "a", Rules: []Rule{rule(goTo("output"))}},
	}}
	if v := Evaluate(rs, Contents{}, by(0).tcp("192.0.2.1:1")); v.Action != Drop {
		t.Errorf("verdict %+v", v)
	}
	if v := Evaluate(&Ruleset{}, Contents{}, by(0).tcp("192.0.2.1:1")); v.Action != Accept {
		t.Errorf("without a base chain: %+v", v)
	}
}
