package attack

import (
	"encoding/binary"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"exitgate/integration/prober"
	"exitgate/integration/rig"
	"exitgate/integration/rig/rigtest"

	"golang.org/x/sys/unix"
)

const short = 300 * time.Millisecond

type option = prober.Option

// socket is a probe by a socket of its own making.
func socket(domain, kind, proto int, to string, change ...func(*prober.Probe)) prober.Probe {
	p := prober.Probe{Op: "socket", Domain: domain, Type: kind, Protocol: proto, Address: to, Timeout: 2 * time.Second}
	if kind != unix.SOCK_STREAM {
		p.Data, p.Timeout = []byte("payload that must not leave"), short
	}
	for _, c := range change {
		c(&p)
	}
	return p
}

func stream4(to string, change ...func(*prober.Probe)) prober.Probe {
	return socket(unix.AF_INET, unix.SOCK_STREAM, 0, to, change...)
}

func stream6(to string, change ...func(*prober.Probe)) prober.Probe {
	return socket(unix.AF_INET6, unix.SOCK_STREAM, 0, to, change...)
}

func dgram4(to string, change ...func(*prober.Probe)) prober.Probe {
	return socket(unix.AF_INET, unix.SOCK_DGRAM, 0, to, change...)
}

func dgram6(to string, change ...func(*prober.Probe)) prober.Probe {
	return socket(unix.AF_INET6, unix.SOCK_DGRAM, 0, to, change...)
}

// Changes of a probe.
func opt(level, name, value int) func(*prober.Probe) {
	return func(p *prober.Probe) { p.Options = append(p.Options, option{Level: level, Name: name, Value: value}) }
}

func optData(level, name int, data ...byte) func(*prober.Probe) {
	return func(p *prober.Probe) { p.Options = append(p.Options, option{Level: level, Name: name, Data: data}) }
}

func by(method string) func(*prober.Probe)  { return func(p *prober.Probe) { p.Method = method } }
func from(local string) func(*prober.Probe) { return func(p *prober.Probe) { p.Local = local } }
func data(text string) func(*prober.Probe)  { return func(p *prober.Probe) { p.Data = []byte(text) } }
func flags(f int) func(*prober.Probe)       { return func(p *prober.Probe) { p.Flags = f } }
func awaiting(n int) func(*prober.Probe)    { return func(p *prober.Probe) { p.Read = n } }
func call(name string) func(p *place) prober.Probe {
	return func(*place) prober.Probe { return prober.Probe{Op: "call", Call: name} }
}

// reuse lets several roads of one box bind the same port at a time.
func reuse(p *prober.Probe) { opt(unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)(p) }

// To an address of the attempt's own.
func to4(port uint16, change ...func(*prober.Probe)) func(*place) prober.Probe {
	return func(p *place) prober.Probe { return stream4(at(p.v4, port), change...) }
}

func to6(port uint16, change ...func(*prober.Probe)) func(*place) prober.Probe {
	return func(p *place) prober.Probe { return stream6(at(p.v6, port), change...) }
}

func udp4(port uint16, change ...func(*prober.Probe)) func(*place) prober.Probe {
	return func(p *place) prober.Probe { return dgram4(at(p.v4, port), change...) }
}

func udp6(port uint16, change ...func(*prober.Probe)) func(*place) prober.Probe {
	return func(p *place) prober.Probe { return dgram6(at(p.v6, port), change...) }
}

func proto4(kind, proto int, change ...func(*prober.Probe)) func(*place) prober.Probe {
	return func(p *place) prober.Probe { return socket(unix.AF_INET, kind, proto, at(p.v4, 0), change...) }
}

func proto6(kind, proto int, change ...func(*prober.Probe)) func(*place) prober.Probe {
	return func(p *place) prober.Probe { return socket(unix.AF_INET6, kind, proto, at(p.v6, 0), change...) }
}

// fixed is an address that is always the same.
func fixed(f func(string, ...func(*prober.Probe)) prober.Probe, to string, change ...func(*prober.Probe)) func(*place) prober.Probe {
	return func(*place) prober.Probe { return f(to, change...) }
}

// embed puts an IPv4 address into an IPv6 prefix.
func embed(prefix string, at int) func(p *place) prober.Probe {
	return func(p *place) prober.Probe {
		a, v4 := netip.MustParseAddr(prefix).As16(), p.v4.As4()
		copy(a[at:], v4[:])
		return stream6(netip.AddrPortFrom(netip.AddrFrom16(a), 443).String())
	}
}

const (
	echo4 = "\x08\x00\x00\x00\x00\x01\x00\x01tunnel"
	echo6 = "\x80\x00\x00\x00\x00\x01\x00\x01tunnel"
)

// noSocket is what the agent, and an exec of its uid, gets for sockets that want a capability.
const noSocket = "EPERM"

func asRoot() control { return control{as: "root"} }

// streams are connections.
func streams() []attempt {
	const mptcp, sctp, dccp = unix.IPPROTO_MPTCP, unix.IPPROTO_SCTP, unix.IPPROTO_DCCP
	return []attempt{
		{name: "tcp, IPv4 literal", probe: to4(443), want: refused},
		{name: "tcp, IPv6 literal", probe: to6(443), want: refused},
		{name: "tcp, ::ffff:a.b.c.d by a v6 socket", probe: embed("::ffff:0:0", 12), want: refused},
		{name: "tcp, NAT64 64:ff9b::/96", probe: embed("64:ff9b::", 12), want: refused},
		{name: "tcp, 6to4 2002::/16", probe: embed("2002::1", 2), want: refused},
		{name: "tcp, IPv4-compatible ::a.b.c.d", probe: embed("::", 12), want: refused},
		{name: "tcp, link-local with scope", probe: fixed(stream6, "[fe80::1%eth0]:443"), want: refused},
		{name: "tcp, an allowed host's IPv4 address", probe: func(p *place) prober.Probe { return stream4(at(p.s.deb.Addr4, 443)) }, want: refused},
		{name: "tcp, an allowed host's IPv6 address", probe: func(p *place) prober.Probe { return stream6(at(p.s.deb.Addr6, 443)) }, want: refused},
		{name: "mptcp, IPv4", probe: proto4p(mptcp), want: refused, agent: "EPROTONOSUPPORT"},
		{name: "mptcp, IPv6", probe: proto6p(mptcp), want: refused, agent: "EPROTONOSUPPORT"},
		{name: "sctp stream", probe: proto4p(sctp), want: refused + "|" + prohibited + "|EPROTONOSUPPORT|ESOCKTNOSUPPORT"},
		{name: "sctp seqpacket", probe: proto4(unix.SOCK_SEQPACKET, sctp), want: refused + "|" + prohibited + "|EPROTONOSUPPORT|ESOCKTNOSUPPORT"},
		{name: "dccp", probe: proto4(6, dccp), want: refused + "|" + prohibited + "|EPROTONOSUPPORT|ESOCKTNOSUPPORT"},
		{name: "tcp fast open, data in the SYN", probe: to4(443, flags(unix.MSG_FASTOPEN), data("smuggled")), want: refused + "|EINPROGRESS"},
		{name: "tcp fast open, IPv6", probe: to6(443, flags(unix.MSG_FASTOPEN), data("smuggled")), want: refused + "|EINPROGRESS"},
		{name: "tcp, source port 53", probe: fromOwn(53), want: refused},
		{name: "tcp, source port of the listener", probe: fromOwn(8080), want: refused},
		{name: "tcp, SO_BINDTODEVICE eth0", probe: to4(443, optData(unix.SOL_SOCKET, unix.SO_BINDTODEVICE, 'e', 't', 'h', '0', 0)), want: refused},
		{name: "tcp, IPv6 SO_BINDTODEVICE eth0", probe: to6(443, optData(unix.SOL_SOCKET, unix.SO_BINDTODEVICE, 'e', 't', 'h', '0', 0)), want: refused},
		{name: "tcp, IP_TTL 1", probe: to4(443, opt(unix.IPPROTO_IP, unix.IP_TTL, 1)), want: refused},
		{name: "tcp, IP_TOS and SO_PRIORITY", probe: to4(443, opt(unix.IPPROTO_IP, unix.IP_TOS, 0x10), opt(unix.SOL_SOCKET, unix.SO_PRIORITY, 6)), want: refused},
		{name: "tcp by io_uring", probe: to4(443, by("uring")), want: refused, agent: "EPERM"},
		{name: "tcp by io_uring, IPv6", probe: to6(443, by("uring")), want: refused, agent: "EPERM"},
	}
}

// fromOwn connects from a chosen port of the box's own address.
func fromOwn(port uint16) func(*place) prober.Probe {
	return func(p *place) prober.Probe { return stream4(at(p.v4, 443), reuse, from(at(p.Wire.Box4(), port))) }
}

func proto4p(proto int) func(*place) prober.Probe {
	return func(p *place) prober.Probe { return socket(unix.AF_INET, unix.SOCK_STREAM, proto, at(p.v4, 443)) }
}

func proto6p(proto int) func(*place) prober.Probe {
	return func(p *place) prober.Probe { return socket(unix.AF_INET6, unix.SOCK_STREAM, proto, at(p.v6, 443)) }
}

// datagrams are packets that ask for no connection.
func datagrams() []attempt {
	const lite = unix.IPPROTO_UDPLITE
	broadcast := opt(unix.SOL_SOCKET, unix.SO_BROADCAST, 1)
	sourceRoute := func(p *place) prober.Probe {
		hop := p.s.api.Addr4.As4()
		return dgram4(at(p.v4, 443), optData(unix.IPPROTO_IP, unix.IP_OPTIONS, 131, 7, 4, hop[0], hop[1], hop[2], hop[3], 0))
	}
	firstHop := func(p *place) netip.AddrPort { return netip.AddrPortFrom(p.s.api.Addr4, 443) }
	return []attempt{
		{name: "udp, QUIC to 443, IPv4", probe: udp4(443), want: prohibited},
		{name: "udp, QUIC to 443, IPv6", probe: udp6(443), want: prohibited},
		{name: "udp connected", probe: func(p *place) prober.Probe { return prober.Probe{Op: "udp", Address: at(p.v4, 9), Data: []byte("x")} }, want: prohibited},
		{name: "udp by sendmsg", probe: udp4(443, by("sendmsg")), want: prohibited},
		{name: "udp by sendmmsg", probe: udp4(443, by("sendmmsg")), want: prohibited},
		{name: "udp by sendmmsg, IPv6", probe: udp6(443, by("sendmmsg")), want: prohibited},
		{name: "udp, ::ffff:a.b.c.d by a v6 socket", probe: func(p *place) prober.Probe { return dgram6(at(netip.AddrFrom16(p.v4.As16()), 443)) }, want: prohibited},
		{name: "udp, source port 53", probe: udp4(5353, reuse, from("0.0.0.0:53")), want: prohibited},
		{name: "udp, source port 53, IPv6", probe: udp6(5353, reuse, from("[::]:53")), want: prohibited},
		{name: "udp, MSG_CONFIRM and MSG_DONTROUTE", probe: func(p *place) prober.Probe {
			return dgram4(at(p.Wire.Gate4(), 9), flags(unix.MSG_CONFIRM|unix.MSG_DONTROUTE))
		}, want: prohibited},
		{name: "udp fragments", probe: udp4(443, data(string(make([]byte, 4000)))), want: prohibited},
		{name: "udp fragments, IPv6", probe: udp6(443, data(string(make([]byte, 4000)))), want: prohibited, control: control{to: noPort6}},
		{name: "udp, TTL 1 (traceroute)", probe: udp4(33434, opt(unix.IPPROTO_IP, unix.IP_TTL, 1)), want: prohibited},
		{name: "udp, hop limit 1 (traceroute)", probe: udp6(33434, opt(unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS, 1)), want: prohibited},
		{name: "udp, loose source route", probe: sourceRoute, want: "EPERM", control: control{as: "root", to: firstHop}},
		{name: "udp, loose source route as root", roads: rootOnly, probe: sourceRoute, want: prohibited, control: control{as: "root", to: firstHop}},
		{name: "udp, record route option", probe: udp4(443, optData(unix.IPPROTO_IP, unix.IP_OPTIONS, 7, 7, 4, 0, 0, 0, 0, 0)), want: prohibited},
		{name: "udp, IPV6_FREEBIND of a foreign source", probe: udp6(443, reuse, opt(unix.IPPROTO_IP, unix.IP_FREEBIND, 1), from("[2a0e:99::1]:1")), want: prohibited},
		{name: "udp, SO_BINDTODEVICE eth0", probe: udp4(443, optData(unix.SOL_SOCKET, unix.SO_BINDTODEVICE, 'e', 't', 'h', '0', 0)), want: prohibited},
		{name: "udplite", probe: proto4(unix.SOCK_DGRAM, lite, func(p *prober.Probe) { p.Address = withPort(p.Address, 443) }), want: prohibited + "|EPROTONOSUPPORT"},
		{name: "udplite, IPv6", probe: proto6(unix.SOCK_DGRAM, lite, func(p *prober.Probe) { p.Address = withPort(p.Address, 443) }), want: prohibited + "|EPROTONOSUPPORT"},
		{name: "ping and payload, IPv4", probe: proto4(unix.SOCK_DGRAM, unix.IPPROTO_ICMP, data(echo4), awaiting(64)), want: prohibited + "|ETIMEDOUT"},
		{name: "ping and payload, IPv6", probe: proto6(unix.SOCK_DGRAM, unix.IPPROTO_ICMPV6, data(echo6), awaiting(64)), want: prohibited + "|ETIMEDOUT"},
		{name: "multicast, IPv4", probe: fixed(dgram4, "239.1.2.3:5000"), want: prohibited},
		{name: "multicast, IPv6 with scope", probe: fixed(dgram6, "[ff02::1234%eth0]:5000"), want: prohibited},
		{name: "multicast, IPv6 site", probe: fixed(dgram6, "[ff05::1234]:5000", opt(unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_HOPS, 32)), want: prohibited},
		{name: "broadcast 255.255.255.255", probe: fixed(dgram4, "255.255.255.255:5001", broadcast), want: prohibited},
		{name: "broadcast of the subnet", probe: func(p *place) prober.Probe { return dgram4(at(subnetBroadcast(p), 5002), broadcast) }, want: prohibited},
		{name: "multicast listener report naming a group", probe: call("join_group"), want: "ok", control: control{to: reportTo, probe: call("join_group")}},
		{name: "neighbour solicitation of a chosen address", probe: onLink6, want: refused, control: control{to: solicitedOf}},
	}
}

func withPort(address string, port uint16) string {
	return netip.AddrPortFrom(netip.MustParseAddrPort(address).Addr(), port).String()
}

func noPort6(p *place) netip.AddrPort { return netip.AddrPortFrom(p.v6, 0) }

func subnetBroadcast(p *place) netip.Addr {
	a := p.Wire.Gate4().As4()
	a[3] |= 3
	return netip.AddrFrom4(a)
}

// reportTo is where reports go; the far side counts none after the fence is up.
func reportTo(*place) netip.AddrPort { return netip.MustParseAddrPort("[ff02::16]:143") }

// onLink6 connects to an address in the box's own /64: its kernel would ask the link for it, aloud.
func onLink6(p *place) prober.Probe {
	a := p.Wire.Box6().As16()
	copy(a[8:], "chosen8!")
	return stream6(at(netip.AddrFrom16(a), 443))
}

func solicitedOf(p *place) netip.AddrPort {
	to := netip.MustParseAddrPort(onLink6(p).Address)
	return netip.AddrPortFrom(solicited(to.Addr()), 0)
}

// rawSockets want a capability that the agent's uid has not; root in the box has it, and the fence stops root.
func rawSockets() []attempt {
	type protocol struct {
		name string
		n    int
		data string
	}
	var all []attempt
	for _, p := range []protocol{{"icmp", unix.IPPROTO_ICMP, echo4}, {"tcp", unix.IPPROTO_TCP, "\x01\xbb\x01\xbb\x00\x00\x00\x00\x00\x00\x00\x00\x50\x02\x00\x00\x00\x00\x00\x00"},
		{"udp", unix.IPPROTO_UDP, "\x00\x35\x01\xbb\x00\x0c\x00\x00data"}, {"igmp", unix.IPPROTO_IGMP, "\x16\x00\x00\x00\xef\x01\x02\x03"},
		{"gre", unix.IPPROTO_GRE, "\x00\x00\x08\x00data"}, {"ipip", unix.IPPROTO_IPIP, string(header(netip.MustParseAddr("8.8.8.8"), 17))}, {"esp", unix.IPPROTO_ESP, "\x00\x00\x00\x01data"},
		{"ah", unix.IPPROTO_AH, "\x00\x00\x00\x01data"}, {"sctp", unix.IPPROTO_SCTP, "\x01\xbb\x01\xbb\x00\x00\x00\x00\x00\x00\x00\x00"}, {"dccp", unix.IPPROTO_DCCP, "\x01\xbb\x01\xbb\x00\x00\x00\x00"},
		{"udplite", unix.IPPROTO_UDPLITE, "\x00\x35\x01\xbb\x00\x08\x00\x00"}, {"proto 253", 253, "experiment"}} {
		all = append(all, attempt{name: "raw " + p.name, probe: proto4(unix.SOCK_RAW, p.n, data(p.data)), want: noSocket, control: asRoot()},
			attempt{name: "raw " + p.name + " with NET_RAW", roads: rootOnly, probe: proto4(unix.SOCK_RAW, p.n, data(p.data)), want: prohibited, control: asRoot()})
	}
	whole := func(p *place) prober.Probe {
		return socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_RAW, at(p.v4, 0), data(string(header(p.v4, 17))))
	}
	icmp6 := proto6(unix.SOCK_RAW, unix.IPPROTO_ICMPV6, data(echo6))
	return append(all,
		attempt{name: "raw IPPROTO_RAW, own header", probe: whole, want: noSocket, control: asRoot()},
		attempt{name: "raw IPPROTO_RAW with NET_RAW", roads: rootOnly, probe: whole, want: prohibited, control: asRoot()},
		attempt{name: "raw icmpv6", probe: icmp6, want: noSocket, control: asRoot()},
		attempt{name: "raw icmpv6 with NET_RAW", roads: rootOnly, probe: icmp6, want: prohibited, control: asRoot()},
		attempt{name: "tcp elsewhere as root", roads: rootOnly, probe: to4(443), want: refused, control: asRoot()},
		attempt{name: "tcp elsewhere as root, IPv6", roads: rootOnly, probe: to6(443), want: refused, control: asRoot()},
		attempt{name: "udp elsewhere as root", roads: rootOnly, probe: udp4(443), want: prohibited, control: asRoot()},
		attempt{name: "dns elsewhere as root", roads: rootOnly, probe: udp4(53), want: prohibited, control: asRoot()},
		attempt{name: "SO_MARK and tcp as root", roads: rootOnly, probe: to4(443, opt(unix.SOL_SOCKET, unix.SO_MARK, 0x6167dead)), want: refused, control: asRoot()},
		attempt{name: "IP_TRANSPARENT as root", roads: rootOnly, probe: to4(443, opt(unix.IPPROTO_IP, unix.IP_TRANSPARENT, 1)), want: refused, control: asRoot()},
	)
}

// header is a bare IPv4 header; the kernel fills in the rest.
func header(dst netip.Addr, proto byte) []byte {
	h := make([]byte, 28)
	h[0], h[8], h[9] = 0x45, 64, proto
	binary.BigEndian.PutUint16(h[2:], uint16(len(h)))
	to := dst.As4()
	copy(h[16:], to[:])
	return h
}

// families are sockets that are no way to IP, and options that would make one.
func families() []attempt {
	open := func(domain, kind, proto int) func(*place) prober.Probe {
		return func(*place) prober.Probe {
			return prober.Probe{Op: "socket", Domain: domain, Type: kind, Protocol: proto}
		}
	}
	seccomp := control{kind: because, why: "the same call without hardening is the row of exec"}
	return []attempt{
		{name: "AF_PACKET", probe: open(unix.AF_PACKET, unix.SOCK_RAW, 0x0300), want: noSocket, agent: "EAFNOSUPPORT", control: control{kind: works, as: "root"}},
		{name: "AF_VSOCK", roads: agentOnly, probe: open(unix.AF_VSOCK, unix.SOCK_STREAM, 0), want: "EAFNOSUPPORT", control: kernelHas(unix.AF_VSOCK, unix.SOCK_STREAM, 0)},
		{name: "AF_ALG", roads: agentOnly, probe: open(unix.AF_ALG, unix.SOCK_SEQPACKET, 0), want: "EAFNOSUPPORT", control: kernelHas(unix.AF_ALG, unix.SOCK_SEQPACKET, 0)},
		{name: "AF_XDP", probe: open(unix.AF_XDP, unix.SOCK_RAW, 0), want: "EPERM|EAFNOSUPPORT", control: seccomp},
		{name: "AF_KEY", probe: open(unix.AF_KEY, unix.SOCK_RAW, 2), want: "EPERM|EAFNOSUPPORT", control: seccomp},
		{name: "AF_NETLINK netfilter", roads: agentOnly, probe: open(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_NETFILTER), want: "EAFNOSUPPORT", control: control{kind: works}},
		{name: "AF_NETLINK audit, kobject", roads: agentOnly, probe: open(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_KOBJECT_UEVENT), want: "EAFNOSUPPORT", control: control{kind: works}},
		{name: "SO_MARK, every value", probe: call("every_mark"), want: "EPERM", control: control{kind: works, as: "root"}},
		{name: "IP_TRANSPARENT", probe: to4(443, opt(unix.IPPROTO_IP, unix.IP_TRANSPARENT, 1)), want: "EPERM", control: asRoot()},
		{name: "SO_RCVBUFFORCE", probe: to4(443, opt(unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 1<<20)), want: "EPERM", control: asRoot()},
	}
}

// kernelHas is the control for families that a kernel may be built without: what an exec in the bare box gets is part of the table.
func kernelHas(domain, kind, proto int) control {
	return control{kind: works, probe: func(*place) prober.Probe {
		return prober.Probe{Op: "socket", Domain: domain, Type: kind, Protocol: proto}
	}}
}

// tables are all that goes through the prober alone.
func tables() map[string][]attempt {
	return map[string][]attempt{"L3/L4 streams": streams(), "L3/L4 datagrams": datagrams(), "L3/L4 raw": rawSockets(), "L3/L4 families": families(),
		"cloud and host": cloud(), "dns": dnsAttempts(), "inside the box": inside(), "processes": processes()}
}

func TestPackets(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	for i, name := range slices.Sorted(maps.Keys(tables())) {
		s.try(t, name, i, tables()[name])
	}
	s.oracle(t, "the whole table", s.fenced)
}

// TestPacketsUnderRunc is the same in a container of a real runtime, with the least capabilities and no_new_privs.
func TestPacketsUnderRunc(t *testing.T) {
	t.Parallel()
	rigtest.Program(t, "runc", "runc")
	s := newScene(t, func(c *rig.Config) { c.Runc, c.NoNewPrivs, c.Capabilities = true, true, rig.LeastCapabilities })
	for i, name := range slices.Sorted(maps.Keys(tables())) {
		s.try(t, name+", runc", i, withoutSweeps(tables()[name]))
	}
	s.oracle(t, "the whole table, runc", s.fenced)
}

// withoutSweeps leaves out what takes its time and would show nothing new.
func withoutSweeps(all []attempt) []attempt {
	return slices.DeleteFunc(all, func(a attempt) bool { return strings.Contains(a.name, "every tcp port") })
}
