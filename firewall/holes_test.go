package firewall

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The holes that an attack on the first version of the ruleset found. Each test
// runs the attack against the record, where it must fail, and against the record
// without the rule that closes the hole, where it must succeed.

// hole runs an attack both ways. It returns whether the attacker got through.
func (f *fence) hole(weaken func(*Ruleset), attack func() bool) {
	f.t.Helper()
	if attack() {
		f.t.Error("the attack got through the record")
	}
	f.weaken(weaken)
	through := false
	for i := 0; i < 5 && !through; i++ { // some are a race that a busy machine may lose
		through = attack()
	}
	if !through {
		f.t.Error("the attack failed without the rule that stops it: the test proves nothing")
	}
	f.restore()
	if attack() {
		f.t.Error("the attack got through the record, installed again")
	}
}

// without removes a rule of the record.
func (f *fence) without(chain, text string) func(*Ruleset) {
	return func(rs *Ruleset) { f.dropRule(rs, chain, text) }
}

// H1: root's UDP query to Docker's DNS leaves a conntrack entry. The agent binds
// the same source port, and its packets are those of an established flow.
func TestHoleConntrackReuse(t *testing.T) {
	t.Parallel()
	f := newFence(t, usual())
	server := f.root.socket("udp4", "127.0.0.11:40053")
	client := newProber(t, f.box, 0)
	port := 20000
	f.hole(func(rs *Ruleset) {
		c := rs.chain("out_lo")
		c.Rules = append([]Rule{rule(state("established"), accept)}, c.Rules...)
	}, func() bool {
		port++
		local := fmt.Sprintf("127.0.0.1:%d", port)
		fd := client.socket("udp4", local)
		client.must(call{Op: "connect", FD: fd, Addr: "127.0.0.11:53"})
		client.must(call{Op: "send", FD: fd, Data: []byte("root's")})
		q := f.root.must(call{Op: "recv", FD: server, N: 100})
		f.root.must(call{Op: "sendto", FD: server, Addr: q.Addr, Data: []byte("answer")})
		client.must(call{Op: "recv", FD: fd, N: 100})
		client.must(call{Op: "close", FD: fd})

		fd = f.agent.socket("udp4", local)
		defer f.agent.do(call{Op: "close", FD: fd})
		f.agent.must(call{Op: "connect", FD: fd, Addr: "127.0.0.11:53"})
		if a := f.agent.do(call{Op: "send", FD: fd, Data: []byte("agent's")}); a.Err != "" {
			return false
		}
		return string(f.root.must(call{Op: "recv", FD: server, N: 100}).Data) == "agent's"
	})
}

// ownFence has two agents that may talk to their own servers, and a root service
// on a high port.
func ownFence(t *testing.T) (f *fence, other *prober, service int) {
	c := usual()
	c.OwnLoopback = []uint32{1000, 1001}
	f = newFence(t, c)
	return f, newProber(t, f.box, 1001), f.root.listen("127.0.0.1:5432")
}

// H2: with SYN cookies a SYN-ACK has no socket, so nothing can be said of its
// owner, and a rule that refuses the wrong owner does not match.
func TestHoleSynCookies(t *testing.T) {
	t.Parallel()
	f, _, _ := ownFence(t)
	f.box.Sysctl("net.ipv4.tcp_syncookies", "2")
	f.hole(f.without("lo_reply", "tcp flags & (syn | ack) == (syn | ack) goto deny_synack"),
		func() bool { return f.agent.try("tcp4", "127.0.0.1:5432").Err == "" })
	// The listener's own way is not harmed by cookies.
	f.root.listen(listenerAddr4)
	if a := f.agent.try("tcp4", listenerAddr4); a.Err != "" {
		t.Errorf("the proxy under SYN cookies: %s", a.Err)
	}
}

// H3: with TCP Fast Open data in the SYN reaches a program before any SYN-ACK
// could show whose listener it is. The cookie that it takes is given to an
// address, whatever the port: the agent's own server hands it out. A client that
// got none for the option turns to the older one: the agent's proxy gives none.
func TestHoleFastOpen(t *testing.T) {
	t.Parallel()
	for _, v := range []struct{ option, none string }{{"fastopen", ""}, {"254", listenerAddr4}} {
		t.Run(v.option, func(t *testing.T) {
			t.Parallel()
			f, _, service := ownFence(t)
			f.box.Sysctl("net.ipv4.tcp_fastopen", "3") // client and server
			own := f.agent.listen("127.0.0.1:3000")
			f.agent.must(call{Op: "setsockopt", FD: own, Level: unix.SOL_TCP, Option: unix.TCP_FASTOPEN, N: 16})
			f.root.must(call{Op: "setsockopt", FD: service, Level: unix.SOL_TCP, Option: unix.TCP_FASTOPEN, N: 16})
			send := func(addr string) {
				fd := f.agent.socket("tcp4", "")
				defer f.agent.do(call{Op: "close", FD: fd})
				f.agent.do(call{Op: "sendto", FD: fd, Addr: addr, Data: []byte("smuggled"), Option: unix.MSG_FASTOPEN})
			}
			if v.none != "" {
				f.root.listen(v.none)
				send(v.none)
			}
			f.hole(f.without("out_lo", "meta skuid != 0 tcp option "+v.option+" exists goto deny_agent"), func() bool {
				send("127.0.0.1:3000")
				send("127.0.0.1:5432")
				a := f.root.do(call{Op: "accept", FD: service})
				if a.Err != "" {
					return false
				}
				defer f.root.do(call{Op: "close", FD: a.FD})
				return string(f.root.do(call{Op: "recv", FD: a.FD, N: 100}).Data) == "smuggled"
			})
		})
	}
}

// H4: joining an IPv6 group makes the kernel send its address, of which twelve
// bytes are the program's to choose; an IPv4 group has 28 bits.
func TestHoleMulticastJoin(t *testing.T) {
	t.Parallel()
	f := newFence(t, usual())
	n := 0
	groups := map[string]string{"udp6": "ff02:0:dead:beef:cafe:f00d:0:%x", "udp4": "239.1.2.%d"}
	for network, group := range groups {
		t.Run(network, func(t *testing.T) {
			f := *f
			f.t = t
			f.hole(func(rs *Ruleset) {
				c := rs.chain("out_net")
				c.Rules = append([]Rule{rule(protos(unix.IPPROTO_ICMPV6, unix.IPPROTO_IGMP), accept)}, c.Rules...)
			}, func() bool {
				n++
				f.tap.reset()
				fd := f.agent.socket(network, "")
				f.agent.must(call{Op: "join", FD: fd, Addr: fmt.Sprintf(group, n), N: 2})
				for range 60 { // the kernel takes its time over reports
					if len(f.tap.arrived()) > 0 {
						return true
					}
				}
				return false
			})
		})
	}
}

// H5: a root process with NET_RAW sends ICMPv6 of the discovery types with what
// it likes in it, to anywhere.
func TestHoleRawDiscovery(t *testing.T) {
	t.Parallel()
	f := newFence(t, usual())
	f.hole(f.without("out_net", "meta skuid 0 goto deny_root"), func() bool {
		f.tap.reset()
		fd := f.root.socket("raw6", "")
		defer f.root.do(call{Op: "close", FD: fd})
		f.root.must(call{Op: "setsockopt", FD: fd, Level: unix.IPPROTO_IPV6, Option: unix.IPV6_UNICAST_HOPS, N: 255})
		payload := append([]byte{135, 0, 0, 0}, "smuggled data"...)
		f.root.do(call{Op: "sendto", FD: fd, Addr: "[" + otherIP6 + "]:0", Data: payload})
		f.tap.arrived()
		f.tap.mu.Lock()
		defer f.tap.mu.Unlock()
		return to(f.tap.seen, otherIP6) > 0
	})
}

// holdSyn drops what goes to a port over loopback, by a foreign table: a
// connection attempt then waits half open.
func (f *fence) holdSyn(ports string) (release func()) {
	f.t.Helper()
	nft(f.t, f.box, fmt.Sprintf("table inet hold { chain input { type filter hook input priority -10; iif lo tcp dport { %s } drop; }; }", ports), "-f", "-")
	return func() { nft(f.t, f.box, "", "delete", "table", "inet", "hold") }
}

// H6: a simultaneous open needs no SYN-ACK from a listener, so two agents could
// meet: neither first packet shows the other's owner.
func TestHoleSimultaneousOpen(t *testing.T) {
	t.Parallel()
	f, other, _ := ownFence(t)
	port := 21000
	f.hole(f.without("lo_reply", "meta skuid >= 0 goto deny_agent"), func() bool {
		port += 2
		a, b := fmt.Sprintf("127.0.0.1:%d", port), fmt.Sprintf("127.0.0.1:%d", port+1)
		release := f.holdSyn(fmt.Sprint(port + 1))
		afd, bfd := f.agent.socket("tcp4", a), other.socket("tcp4", b)
		first := f.agent.begin(call{Op: "connect", FD: afd, Addr: b})
		time.Sleep(10 * time.Millisecond)
		release() // the first SYN is lost, and sent again after a second only
		second := other.do(call{Op: "connect", FD: bfd, Addr: a})
		met := first().Err == "" && second.Err == ""
		f.agent.do(call{Op: "abort", FD: afd})
		other.do(call{Op: "abort", FD: bfd})
		return met
	})
}

// H7: when the proxy is gone another process may take its port. It must not be
// taken for the proxy.
func TestHoleStrangerOnListenerPort(t *testing.T) {
	t.Parallel()
	f := newFence(t, usual())
	other := newProber(t, f.box, 1001)
	other.listen(listenerAddr4)
	f.hole(f.without("lo_reply", "ct mark 0x00000000 tcp sport @listener_ports meta skuid != 0 goto deny_synack"),
		func() bool { return f.agent.try("tcp4", listenerAddr4).Err == "" })
}

// H8: an agent's attempt leaves its mark on a half-open flow. Another agent that
// uses the same ports for its own listener would be refused for it.
func TestHolePoisonedMark(t *testing.T) {
	t.Parallel()
	f, other, _ := ownFence(t)
	f.root.listen("127.0.0.1:9100")
	mine := Contents{Listeners: []Listener{{1000, netip.MustParseAddrPort("127.0.0.1:9100")}}}
	port := 22000
	// Here it is the record that must let through, and the weakened one that hangs.
	connects := func() bool {
		port++
		local := fmt.Sprintf("127.0.0.1:%d", port)
		f.update(Contents{}, mine)
		release := f.holdSyn("9100")
		fd := other.socket("tcp4", local)
		other.do(call{Op: "connect", FD: fd, Addr: "127.0.0.1:9100"}) // waits, and gives up
		other.do(call{Op: "close", FD: fd})
		release()
		f.update(mine, Contents{})
		fd = f.agent.socket("tcp4", local)
		defer f.agent.do(call{Op: "abort", FD: fd})
		return f.agent.do(call{Op: "connect", FD: fd, Addr: "127.0.0.1:9100"}).Err == ""
	}
	if !connects() {
		t.Error("another agent's attempt kept the agent from its proxy")
	}
	f.weaken(func(rs *Ruleset) {
		for i, r := range rs.chain("out_lo").Rules {
			if r.String() == "meta skuid . ip daddr . tcp dport @listeners4 ct mark set 0x00000000 accept" {
				rs.chain("out_lo").Rules[i] = rule(in(setListeners4, metaSkuid, ipDaddr, tcpDport), accept)
			}
		}
	})
	if connects() {
		t.Error("without the rule's mark nothing changed: the test proves nothing")
	}
}

// What root opens on loopback (a resolver there, an upstream) is not an agent's
// to answer: whoever may bind the port when its server is gone would receive
// credentials, or tell the proxy which addresses a name has.
func TestHoleImpostor(t *testing.T) {
	t.Parallel()
	c := usual()
	c.Resolvers = dnsEndpoints(netip.MustParseAddrPort("127.0.0.53:53"))
	c.Egress = append(c.Egress, Endpoint{unix.IPPROTO_TCP, netip.MustParseAddr("127.0.0.1"), 9000})
	f := newFence(t, c)
	udp, tcp := f.agent.socket("udp4", "127.0.0.53:53"), f.agent.listen("127.0.0.1:9000")
	before := func(rs *Ruleset) {
		lo := rs.chain("lo_reply")
		for i, r := range lo.Rules {
			if r.String() == "ct mark 0x00000000 ct state established meta skuid != @agents accept" {
				lo.Rules[i] = rule(markIs(0), state("established"), accept)
				return
			}
		}
		t.Fatal("no such rule")
	}
	t.Run("resolver", func(t *testing.T) {
		f := *f
		f.t = t
		f.hole(before, func() bool {
			fd := f.root.socket("udp4", "")
			defer f.root.do(call{Op: "close", FD: fd})
			f.root.must(call{Op: "connect", FD: fd, Addr: "127.0.0.53:53"})
			f.root.must(call{Op: "send", FD: fd, Data: []byte("question")})
			q := f.agent.must(call{Op: "recv", FD: udp, N: 100})
			f.agent.do(call{Op: "sendto", FD: udp, Addr: q.Addr, Data: []byte("lie")})
			return string(f.root.do(call{Op: "recv", FD: fd, N: 100}).Data) == "lie"
		})
	})
	upstream := func() bool {
		fd, a := f.root.dial("tcp4", "127.0.0.1:9000")
		defer f.root.do(call{Op: "abort", FD: fd})
		if a.Err != "" {
			return false
		}
		f.root.must(call{Op: "send", FD: fd, Data: []byte("sk-ant-api03-FAKE")})
		peer := f.accept(f.agent, tcp, f.root, fd)
		return len(f.agent.do(call{Op: "recv", FD: peer, N: 100}).Data) > 0
	}
	for _, cookies := range []string{"1", "2"} {
		t.Run("upstream, tcp_syncookies "+cookies, func(t *testing.T) {
			f := *f
			f.t = t
			f.box.Sysctl("net.ipv4.tcp_syncookies", cookies)
			f.hole(before, upstream)
		})
	}
	// A server that is no agent's may answer, and an agent's may where root is to check it.
	f.box.Sysctl("net.ipv4.tcp_syncookies", "1")
	newProber(t, f.box, 101).listen("127.0.0.1:9001")
	f.update(Contents{Egress: []Endpoint{{unix.IPPROTO_TCP, netip.MustParseAddr("127.0.0.1"), 9001}}}, Contents{})
	if a := f.root.try("tcp4", "127.0.0.1:9001"); a.Err != "" {
		t.Errorf("another service: %s", a.Err)
	}
	f.update(Contents{RootLoopback: []uint16{9000}}, Contents{})
	if !upstream() {
		t.Error("an agent's server did not answer root's check")
	}
}

// A reset flow's conntrack entry lives on for ten seconds, with its mark. Root's next connection by the same ports must not be taken for
// the agent's that was there: neither may the agent answer it, nor is a refusal of the agent's one of root's.
func TestHoleInheritedMark(t *testing.T) {
	t.Parallel()
	c := usual()
	c.OwnLoopback = []uint32{1000}
	c.Resolvers = append(c.Resolvers, dnsEndpoints(netip.MustParseAddrPort("127.0.0.1:9000"))...)
	c.RootLoopback = []uint16{5432}
	f := newFence(t, c)
	tcp := f.agent.listen("127.0.0.1:9000")
	f.root.listen("127.0.0.1:5432")
	client := newProber(t, f.box, 0)
	port := 23000
	from := func(p *prober, local, remote string) (int, string) {
		fd := p.socket("tcp4", local)
		return fd, p.do(call{Op: "connect", FD: fd, Addr: remote}).Err
	}
	inherits := func(rs *Ruleset) { // root's second packet would be refused otherwise
		f.dropRule(rs, "out_lo", "meta skuid 0 ct mark set 0x00000000")
		f.dropRule(rs, "out_lo", unmarkedRoot)
	}
	f.hole(inherits, func() bool {
		port++
		local := fmt.Sprintf("127.0.0.1:%d", port)
		mine, err := from(f.agent, local, "127.0.0.1:9000")
		if err != "" {
			t.Fatalf("the agent's own server: %s", err)
		}
		f.agent.must(call{Op: "abort", FD: f.accept(f.agent, tcp, f.agent, mine)})
		f.agent.must(call{Op: "close", FD: mine})
		fd, err := from(client, local, "127.0.0.1:9000")
		defer client.do(call{Op: "abort", FD: fd})
		return err == ""
	})
	refusedThenReached := func() string {
		port++
		local := fmt.Sprintf("127.0.0.1:%d", port)
		fd, err := from(f.agent, local, "127.0.0.1:5432")
		if err != "ECONNREFUSED" {
			t.Fatalf("the agent at root's server: %q", err)
		}
		f.agent.must(call{Op: "close", FD: fd})
		time.Sleep(1200 * time.Millisecond) // until the server's second SYN-ACK is reset, its half of the flow stands
		fd, err = from(client, local, "127.0.0.1:5432")
		client.must(call{Op: "abort", FD: fd})
		return err
	}
	if err := refusedThenReached(); err != "" {
		t.Errorf("root at its server after an agent was refused: %s", err)
	}
	f.weaken(inherits)
	if refusedThenReached() == "" {
		t.Error("without the rule root was not refused: the test proves nothing")
	}
}

// unmarkedRoot is the rule by which what root sends after its SYN finds the flow still root's.
const unmarkedRoot = "meta skuid 0 tcp flags & (fin | syn | rst | ack) != (syn) ct mark != 0x00000000 goto deny_root"

// A socket that is bound to a device and one that is not may have the same four addresses and ports: two connections, and one flow to
// conntrack. An agent's SYN gives root's flow the agent's mark, and the agent opens at the same time as root does: its SYN may pass then.
// Root's answer takes the mark away. The SYN is sent again, the mark is back, and the agent's acknowledgement of that SYN is all that
// root's side waits for. Both SYNs come when the agent wants: TCP_USER_TIMEOUT shortens a retransmission's time.
func TestHoleSharedFlow(t *testing.T) {
	t.Parallel()
	c := usual()
	c.OwnLoopback = []uint32{1000}
	const resolver, clients = "127.0.0.1:9000", "127.0.0.1:50000"
	c.Resolvers = append(c.Resolvers, dnsEndpoints(netip.MustParseAddrPort("127.0.0.1:9000"))...)
	f := newFence(t, c)
	f.box.Sysctl("net.ipv4.ip_local_port_range", "50000 50000") // an agent that had but sockets would take all of the range
	f.hole(f.without("out_lo", unmarkedRoot), func() bool {
		// A server that takes no more connections leaves SYNs without an answer.
		server := f.agent.socket("tcp4", resolver)
		f.agent.must(call{Op: "listen", FD: server, N: 0})
		first := f.agent.socket("tcp4", "127.0.0.1:40000")
		f.agent.must(call{Op: "connect", FD: first, Addr: resolver})

		twin := f.agent.socket("tcp4", "")
		f.agent.must(call{Op: "setsockopt", FD: twin, Level: unix.SOL_SOCKET, Option: unix.SO_BINDTOIFINDEX, N: 1})
		f.agent.must(call{Op: "setsockopt", FD: twin, Level: unix.SOL_TCP, Option: unix.TCP_USER_TIMEOUT, N: 1180})
		began := time.Now()
		f.agent.must(call{Op: "start", FD: twin, Addr: resolver})
		time.Sleep(700 * time.Millisecond)
		fd := f.root.socket("tcp4", "")
		connected := f.root.begin(call{Op: "connect", FD: fd, Addr: resolver})
		time.Sleep(time.Until(began.Add(1070 * time.Millisecond))) // the twin's second SYN, after a second
		f.agent.must(call{Op: "setsockopt", FD: twin, Level: unix.SOL_TCP, Option: unix.TCP_USER_TIMEOUT, N: 0})
		f.agent.must(call{Op: "abort", FD: server})
		f.agent.must(call{Op: "abort", FD: first})
		impostor := f.agent.socket("tcp4", resolver)
		f.agent.must(call{Op: "setsockopt", FD: impostor, Level: unix.SOL_TCP, Option: unix.TCP_DEFER_ACCEPT, N: 5}) // does not acknowledge at once
		f.agent.do(call{Op: "connect", FD: impostor, Addr: clients})
		answered := connected().Err == ""
		f.root.do(call{Op: "send", FD: fd, Data: []byte("question")})
		got := f.agent.do(call{Op: "recv", FD: impostor, N: 100}).Data
		for _, s := range []int{twin, impostor} {
			f.agent.must(call{Op: "abort", FD: s})
		}
		f.root.must(call{Op: "abort", FD: fd})
		return answered && len(got) > 0
	})
}

// An agent's SYN to a server that is not its own gets no further than that server's queue. It must not get there where root's connections
// are served: an answer by SYN cookie, from a full queue, shows no owner and is refused to root too.
func TestHoleFullQueue(t *testing.T) {
	t.Parallel()
	c := usual()
	c.OwnLoopback = []uint32{1000}
	for _, addr := range []string{"127.0.0.1", "::1"} {
		c.Egress = append(c.Egress, Endpoint{unix.IPPROTO_TCP, netip.MustParseAddr(addr), 9000})
	}
	f := newFence(t, c)
	for network, addr := range map[string]string{"tcp4": "127.0.0.1:9000", "tcp6": "[::1]:9000"} {
		t.Run(network, func(t *testing.T) {
			f := *f
			f.t = t
			server := f.root.socket(network, addr)
			f.root.must(call{Op: "listen", FD: server, N: 8})
			f.hole(func(rs *Ruleset) {
				f.dropRule(rs, "out_lo", "meta skuid != 0 ip daddr . meta l4proto . th dport @egress4 goto deny_agent")
				f.dropRule(rs, "out_lo", "meta skuid != 0 ip6 daddr . meta l4proto . th dport @egress6 goto deny_agent")
			}, func() bool {
				time.Sleep(1500 * time.Millisecond) // what a run before left in the queue goes with its second SYN-ACK
				for range 30 {
					if a := f.agent.try(network, addr); a.Err != "ECONNREFUSED" {
						t.Fatalf("the agent at root's server: %q", a.Err)
					}
				}
				fd, a := f.root.dial(network, addr)
				f.root.must(call{Op: "abort", FD: fd})
				if a.Err == "" {
					f.root.must(call{Op: "close", FD: f.root.must(call{Op: "accept", FD: server}).FD})
				}
				return a.Err != ""
			})
		})
	}
}

// A refusal is an ICMP error with the refused packet in it, sent to the packet's source. IPV6_FREEBIND lets anybody name any source: the
// refusal itself would take the agent's data to a place of its choice.
func TestHoleRefusalToChosenSource(t *testing.T) {
	t.Parallel()
	f := newFence(t, usual())
	const freebind = 78 // IPV6_FREEBIND
	f.hole(func(rs *Ruleset) {
		c := rs.chain("out_net")
		for i, r := range c.Rules {
			if r.String() == "meta skuid 0 goto deny_root" {
				c.Rules = slices.Insert(c.Rules, i+1, rule(protos(unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6), state("related"), accept))
				return
			}
		}
		t.Fatal("no such rule")
	}, func() bool {
		f.tap.reset()
		fd := f.agent.socket("udp6", "")
		defer f.agent.do(call{Op: "close", FD: fd})
		f.agent.must(call{Op: "setsockopt", FD: fd, Level: unix.IPPROTO_IPV6, Option: freebind, N: 1})
		f.agent.must(call{Op: "bind", FD: fd, Addr: "[" + otherIP6 + "]:0"})
		f.agent.do(call{Op: "sendto", FD: fd, Addr: "[" + allowedIP6 + "]:443", Data: []byte("smuggled data")})
		f.tap.arrived()
		f.tap.mu.Lock()
		defer f.tap.mu.Unlock()
		return to(f.tap.seen, otherIP6) > 0
	})
}

// An agent may name any IPv6 source for a flow over loopback. The answers leave by an interface then, as those of a published port may, and
// what the published port's socket sends first, with data in its SYN, is such an answer too.
func TestHoleLoopbackFromChosenSource(t *testing.T) {
	t.Parallel()
	const freebind, noCookie = 78, 34 // IPV6_FREEBIND, TCP_FASTOPEN_NO_COOKIE
	c := usual()
	c.OwnLoopback, c.Published = []uint32{1000}, []uint16{3000}
	f := newFence(t, c)
	second := newProber(t, f.box, 1000)
	local, far := "[::1]:3000", "["+otherIP6+"]:7000"
	f.hole(f.without("out_net", "ip6 saddr ::1 goto deny_agent"), func() bool {
		f.tap.reset()
		full := f.agent.socket("tcp6", local)
		f.agent.must(call{Op: "listen", FD: full, N: 0})
		one, a := f.agent.dial("tcp6", local)
		if a.Err != "" {
			t.Fatalf("the agent's own server: %s", a.Err)
		}
		fd := second.socket("tcp6", "")
		second.must(call{Op: "setsockopt", FD: fd, Level: unix.IPPROTO_IPV6, Option: freebind, N: 1})
		second.must(call{Op: "bind", FD: fd, Addr: far})
		begun := second.begin(call{Op: "connect", FD: fd, Addr: local}) // the server takes no more: no reset ends the flow
		time.Sleep(10 * time.Millisecond)
		f.agent.must(call{Op: "close", FD: full})
		f.agent.must(call{Op: "close", FD: one})
		out := f.agent.socket("tcp6", local)
		f.agent.must(call{Op: "setsockopt", FD: out, Level: unix.SOL_TCP, Option: noCookie, N: 1})
		f.agent.do(call{Op: "sendto", FD: out, Addr: far, Data: []byte("smuggled data"), Option: unix.MSG_FASTOPEN})
		f.agent.do(call{Op: "close", FD: out})
		begun()
		second.must(call{Op: "close", FD: fd})
		return slices.ContainsFunc(f.tap.arrived(), func(a arrival) bool { return strings.Contains(string(a.body), "smuggled data") })
	})
}

func isNotProxy(s Statement) bool {
	m, ok := s.(match)
	return ok && m.field == metaSkgid
}

// A proxy that was taken over could carry data out in the names that it asks a name server for. It has a group of its own.
func TestHoleProxyAsksNames(t *testing.T) {
	t.Parallel()
	c := usual()
	c.Resolvers = append(c.Resolvers, dnsEndpoints(netip.MustParseAddrPort("127.0.0.53:53"))...)
	f := newFence(t, c)
	f.far.listen(resolverIP4 + ":53")
	f.far.listen(allowedIP4 + ":443")
	f.root.listen("127.0.0.53:53")
	f.root.listen("127.0.0.11:40053") // where the box rewrites Docker's :53 to
	taken, other := newProberOf(t, f.box, owner{0, ProxyGID}), newProber(t, f.box, 0)
	if a := taken.try("tcp4", otherIP4+":443"); a.Err != "ECONNREFUSED" {
		t.Errorf("the proxy, to an address that is not pinned: %q", a.Err)
	}
	if a := taken.try("tcp4", allowedIP4+":443"); a.Err != "" {
		t.Errorf("the proxy, to a pinned address: %q", a.Err)
	}
	for _, server := range []string{resolverIP4 + ":53", "127.0.0.53:53", "127.0.0.11:53"} {
		t.Run(server, func(t *testing.T) {
			f := *f
			f.t = t
			if a := other.try("tcp4", server); a.Err != "" {
				t.Fatalf("another process of root's: %s", a.Err)
			}
			f.hole(func(rs *Ruleset) {
				for _, name := range []string{"out_net", "out_lo"} {
					for i, r := range rs.chain(name).Rules {
						rs.chain(name).Rules[i].Statements = slices.DeleteFunc(slices.Clone(r.Statements), isNotProxy)
					}
				}
			}, func() bool { return taken.try("tcp4", server).Err == "" })
		})
	}
}
