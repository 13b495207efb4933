package firewall

import (
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"exitgate/netns/netnstest"
)

// soon is far more than a refusal takes and less than the second after which a
// client believes an ICMP answer over IPv6 (FIREWALL: verdicts): a refusal later
// than this would be a hang.
const soon = 700 * time.Millisecond

// attempt is one thing a process in the box tries. Open is what it gets where no
// rule stops it, so that a refusal shows the fence and not a dead network.
type attempt struct {
	what      string
	who       *prober
	net, addr string
	want      string // errno; "" goes through
	open      string
}

// attempts is the matrix of who may go where.
func (f *fence) attempts() []attempt {
	const refused, eperm = "ECONNREFUSED", "EPERM"
	a, r := f.agent, f.root
	return []attempt{
		{"proxy v4", a, "tcp4", listenerAddr4, "", ""},
		{"proxy v6", a, "tcp6", listenerAddr6, "", ""},
		{"proxy port on 127.0.0.2", a, "tcp4", "127.0.0.2:8080", refused, ""},
		{"proxy port on eth0", a, "tcp4", boxIP4 + ":8080", refused, ""},
		{"proxy port on eth0, v6", a, "tcp6", "[" + boxIP6 + "]:8080", refused, ""},
		{"proxy port, v4 mapped", a, "tcp6", "[::ffff:127.0.0.1]:8080", "", ""},
		{"allowed host by address", a, "tcp4", allowedIP4 + ":443", refused, ""},
		{"allowed host by address, v6", a, "tcp6", "[" + allowedIP6 + "]:443", refused, ""},
		{"allowed host, v4 mapped", a, "tcp6", "[::ffff:" + allowedIP4 + "]:443", refused, ""},
		{"allowed host by MPTCP", a, "mptcp4", allowedIP4 + ":443", refused, ""},
		{"proxy by MPTCP", a, "mptcp4", listenerAddr4, "", ""},
		{"other host", a, "tcp4", otherIP4 + ":443", refused, ""},
		{"other host, v6", a, "tcp6", "[" + otherIP6 + "]:443", refused, ""},
		{"gateway", a, "tcp4", "10.9.0.1:80", refused, ""},
		{"QUIC", a, "udp4", allowedIP4 + ":443", eperm, ""},
		{"QUIC, v6", a, "udp6", "[" + allowedIP6 + "]:443", eperm, ""},
		{"resolver", a, "udp4", resolverIP4 + ":53", eperm, ""},
		{"resolver by TCP", a, "tcp4", resolverIP4 + ":53", refused, ""},
		{"Docker DNS", a, "udp4", "127.0.0.11:53", eperm, ""},
		{"Docker DNS by TCP", a, "tcp4", "127.0.0.11:53", refused, ""},
		{"Docker DNS, real port", a, "udp4", "127.0.0.11:40053", eperm, ""},
		{"Docker DNS, real port by TCP", a, "tcp4", "127.0.0.11:40053", refused, ""},
		{"ping", a, "ping4", otherIP4 + ":0", eperm, ""},
		{"ping the proxy's address", a, "ping4", "127.0.0.1:0", eperm, ""},
		{"a root service on loopback", a, "tcp4", "127.0.0.1:5432", refused, ""},
		{"a root service on loopback, v6", a, "tcp6", "[::1]:5432", refused, ""},
		{"a root service on a low port", a, "tcp4", "127.0.0.1:22", refused, ""},
		{"a root service by UDP", a, "udp4", "127.0.0.1:5353", eperm, ""},
		{"a closed port", a, "tcp4", "127.0.0.1:4444", refused, refused},
		{"broadcast", a, "udp4", "10.9.0.255:9", "EACCES", "EACCES"},
		{"multicast", a, "udp4", "224.0.0.251:5353", eperm, ""},
		{"multicast, v6", a, "udp6", "[ff02::fb%2]:5353", eperm, ""},

		{"root: allowed host", r, "tcp4", allowedIP4 + ":443", "", ""},
		{"root: allowed host, v6, neighbour not known yet", r, "tcp6", "[" + allowedIP6 + "]:443", "", ""},
		{"root: allowed host, other port", r, "tcp4", allowedIP4 + ":80", refused, ""},
		{"root: allowed host, other port, v6", r, "tcp6", "[" + allowedIP6 + "]:80", refused, ""},
		{"root: allowed host by UDP", r, "udp4", allowedIP4 + ":443", eperm, ""},
		{"root: other host", r, "tcp4", otherIP4 + ":443", refused, ""},
		{"root: other host, v6", r, "tcp6", "[" + otherIP6 + "]:443", refused, ""},
		{"root: gateway", r, "tcp4", "10.9.0.1:80", refused, ""},
		{"root: ping", r, "ping4", otherIP4 + ":0", eperm, ""},
		{"root: resolver", r, "udp4", resolverIP4 + ":53", "", ""},
		{"root: resolver by TCP", r, "tcp4", resolverIP4 + ":53", "", ""},
		{"root: resolver, other port", r, "tcp4", resolverIP4 + ":443", refused, ""},
		{"root: other resolver", r, "udp4", otherIP4 + ":53", eperm, ""},
		{"root: Docker DNS", r, "udp4", "127.0.0.11:53", "", ""},
		{"root: Docker DNS by TCP", r, "tcp4", "127.0.0.11:53", "", ""},
		{"root: Docker DNS, real port", r, "tcp4", "127.0.0.11:40053", refused, ""},
		{"root: loopback (a tricked proxy)", r, "tcp4", "127.0.0.1:5432", refused, ""},
		{"root: loopback by UDP", r, "udp4", "127.0.0.1:5353", eperm, ""},
		{"root: the agent's proxy", r, "tcp4", listenerAddr4, refused, ""},
	}
}

// serve opens what the attempts aim at.
func (f *fence) serve() {
	for _, addr := range []string{
		listenerAddr4, listenerAddr6, "127.0.0.2:8080", boxIP4 + ":8080", "[" + boxIP6 + "]:8080",
		"127.0.0.1:5432", "[::1]:5432", "127.0.0.1:22", "127.0.0.11:40053",
	} {
		f.root.listen(addr)
	}
	f.root.socket("udp4", "127.0.0.11:40053")
	f.root.socket("udp4", "127.0.0.1:5353")
	for _, port := range []string{":443", ":80", ":53"} {
		f.far.listen("0.0.0.0" + port)
		fd := f.far.socket("tcp6", "")
		f.far.must(call{Op: "setsockopt", FD: fd, Level: unix.IPPROTO_IPV6, Option: unix.IPV6_V6ONLY, N: 1})
		f.far.must(call{Op: "bind", FD: fd, Addr: "[::]" + port})
		f.far.must(call{Op: "listen", FD: fd, N: 64})
	}
	for _, port := range []string{"443", "53", "5353"} {
		f.far.socket("udp6", "[::]:"+port)
	}
}

// TestTraffic sends the whole matrix for real: with the fence, where nothing but
// what is allowed may arrive in the world; and without, where everything must.
func TestTraffic(t *testing.T) {
	t.Parallel()
	f := newFence(t, usual())
	f.serve()
	allowed := map[string]bool{allowedIP4: true, allowedIP6: true, resolverIP4: true}
	for _, a := range f.attempts() {
		t.Run("fenced/"+a.what, func(t *testing.T) {
			denied := f.counter(CounterAgent) + f.counter(CounterRoot)
			f.tap.reset()
			got := a.who.try(a.net, a.addr)
			if got.Err != a.want {
				t.Errorf("%s %s: %q, want %q", a.net, a.addr, got.Err, a.want)
			}
			if got.took() > soon {
				t.Errorf("%s %s took %v", a.net, a.addr, got.took())
			}
			moved := f.counter(CounterAgent)+f.counter(CounterRoot) > denied
			for i := 0; moved && a.want == a.open && i < 3; i++ { // the kernel reports its multicast groups when it likes, and is refused
				denied = f.counter(CounterAgent) + f.counter(CounterRoot)
				a.who.try(a.net, a.addr)
				moved = f.counter(CounterAgent)+f.counter(CounterRoot) > denied
			}
			if moved != (a.want != a.open) && a.what != "a closed port" {
				t.Errorf("denied counters moved: %v", moved)
			}
			for _, p := range f.tap.arrived() {
				if a.want != "" || !allowed[p.dst.String()] {
					t.Errorf("a packet left: protocol %d to %s port %d", p.proto, p.dst, p.port)
				}
			}
		})
	}
	f.weaken(func(rs *Ruleset) { rs.chain("output").Rules = []Rule{rule(accept)} })
	for _, a := range f.attempts() {
		t.Run("open/"+a.what, func(t *testing.T) {
			if got := a.who.try(a.net, a.addr); got.Err != a.open {
				t.Errorf("%s %s without a fence: %q, want %q", a.net, a.addr, got.Err, a.open)
			}
		})
	}
}

// An ICMPv6 echo socket's send reports success though the packet was refused;
// only the far end can tell.
func TestPing6(t *testing.T) {
	t.Parallel()
	f := newFence(t, usual())
	echo := call{Op: "sendto", Addr: "[" + otherIP6 + "]:0", Data: []byte{128, 0, 0, 0, 0, 1, 0, 1}}
	send := func(p *prober) int {
		f.tap.reset()
		echo.FD = p.socket("ping6", "")
		p.do(echo)
		return to(f.tap.arrived(), otherIP6)
	}
	if n := send(f.agent) + send(f.root); n != 0 {
		t.Errorf("%d echo requests left", n)
	}
	f.weaken(func(rs *Ruleset) { rs.chain("output").Rules = []Rule{rule(accept)} })
	if n := send(f.agent); n == 0 {
		t.Error("without a fence the echo request did not arrive: the test proves nothing")
	}
}

// Whoever is not root and has no listener of its own reaches nothing at all.
func TestOtherIdentities(t *testing.T) {
	t.Parallel()
	f := newFence(t, usual())
	f.serve()
	userns := netnstest.Program("probe")
	userns.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: 1000, Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: 1000, Size: 1}},
		Credential:  &syscall.Credential{NoSetGroups: true}, // root in there, 1000 out here
	}
	for name, p := range map[string]*prober{
		"nobody": newProber(t, f.box, 65534), "another user": newProber(t, f.box, 1001), "a subordinate uid": newProber(t, f.box, 100000),
		"the agent as root of a user namespace": startProber(t, f.box, userns),
	} {
		t.Run(name, func(t *testing.T) {
			f.tap.reset()
			for _, addr := range []string{allowedIP4 + ":443", otherIP4 + ":443", "127.0.0.1:5432", "127.0.0.11:53", resolverIP4 + ":53"} {
				if got := p.try("tcp4", addr); got.Err != "ECONNREFUSED" {
					t.Errorf("tcp to %s: %q", addr, got.Err)
				}
			}
			if got := p.try("udp4", resolverIP4+":53"); got.Err != "EPERM" {
				t.Errorf("udp to the resolver: %q", got.Err)
			}
			want := "ECONNREFUSED"
			if p != nil && strings.HasPrefix(name, "the agent") {
				want = "" // it is the agent still, and has the agent's listener
			}
			if got := p.try("tcp4", listenerAddr4); got.Err != want {
				t.Errorf("the agent's listener: %q, want %q", got.Err, want)
			}
			fd := p.socket("tcp4", "")
			if got := p.do(call{Op: "setsockopt", FD: fd, Level: unix.SOL_SOCKET, Option: unix.SO_MARK, N: 1}); got.Err != "EPERM" {
				t.Errorf("setting a packet mark: %q, want EPERM", got.Err)
			}
			if got := f.tap.arrived(); len(got) != 0 {
				t.Errorf("%d packets left", len(got))
			}
		})
	}
	if got := f.agent.try("tcp4", listenerAddr4); got.Err != "" {
		t.Errorf("the agent's listener for the agent: %q", got.Err)
	}
}

// With loopback: own an agent reaches the servers of its own uid and no others.
func TestOwnLoopback(t *testing.T) {
	t.Parallel()
	c := usual()
	c.OwnLoopback = []uint32{1000, 1001}
	f := newFence(t, c)
	f.serve()
	other := newProber(t, f.box, 1001)
	f.agent.listen("127.0.0.1:3000")
	f.agent.listen("[::1]:3000")
	f.agent.listen("127.0.0.2:3000")
	f.agent.listen("127.0.0.1:999")
	f.agent.socket("udp4", "127.0.0.1:3001")
	for _, tc := range []struct {
		who       *prober
		net, addr string
		want      string
	}{
		{f.agent, "tcp4", "127.0.0.1:3000", ""},
		{f.agent, "tcp6", "[::1]:3000", ""},
		{f.agent, "mptcp4", "127.0.0.1:3000", ""},
		{f.agent, "tcp4", "127.0.0.2:3000", "ECONNREFUSED"},
		{f.agent, "tcp4", "127.0.0.1:999", "ECONNREFUSED"},
		{f.agent, "udp4", "127.0.0.1:3001", "EPERM"},
		{f.agent, "tcp4", "127.0.0.1:5432", "ECONNREFUSED"},
		{f.agent, "tcp6", "[::1]:5432", "ECONNREFUSED"},
		{f.agent, "tcp4", "127.0.0.1:22", "ECONNREFUSED"},
		{f.agent, "tcp4", "127.0.0.1:4444", "ECONNREFUSED"},
		{f.agent, "tcp4", listenerAddr4, ""},
		{other, "tcp4", "127.0.0.1:3000", "ECONNREFUSED"},
		{other, "tcp6", "[::1]:3000", "ECONNREFUSED"},
		{other, "tcp4", listenerAddr4, "ECONNREFUSED"},
	} {
		got := tc.who.try(tc.net, tc.addr)
		if got.Err != tc.want || got.took() > soon {
			t.Errorf("%s %s: %q in %v, want %q", tc.net, tc.addr, got.Err, got.took(), tc.want)
		}
	}
	// Data flows, both ways, and until both ends have closed.
	l := f.agent.listen("127.0.0.1:3002")
	fd, _ := f.agent.dial("tcp4", "127.0.0.1:3002")
	f.exchange(f.agent, fd, f.agent, f.accept(f.agent, l, f.agent, fd))
}

// exchange sends something each way between two connected sockets.
func (f *fence) exchange(a *prober, afd int, b *prober, bfd int) {
	f.t.Helper()
	for _, way := range []struct {
		from *prober
		fd   int
		to   *prober
		at   int
	}{{a, afd, b, bfd}, {b, bfd, a, afd}} {
		way.from.must(call{Op: "send", FD: way.fd, Data: []byte("hello")})
		if got := way.to.must(call{Op: "recv", FD: way.at, N: 10}); string(got.Data) != "hello" {
			f.t.Errorf("received %q", got.Data)
		}
	}
}

// Docker's resolver answers root, by UDP and TCP, through its own NAT.
func TestDockerDNS(t *testing.T) {
	t.Parallel()
	f := newFence(t, usual())
	udp, tcp := f.root.socket("udp4", "127.0.0.11:40053"), f.root.listen("127.0.0.11:40053")
	client := newProber(t, f.box, 0)

	fd, _ := client.dial("udp4", "127.0.0.11:53")
	client.must(call{Op: "send", FD: fd, Data: []byte("question")})
	q := f.root.must(call{Op: "recv", FD: udp, N: 100})
	f.root.must(call{Op: "sendto", FD: udp, Addr: q.Addr, Data: []byte("answer")})
	if got := client.must(call{Op: "recv", FD: fd, N: 100}); string(got.Data) != "answer" {
		t.Errorf("UDP answer %q", got.Data)
	}
	fd, a := client.dial("tcp4", "127.0.0.11:53")
	if a.Err != "" {
		t.Fatalf("TCP: %s", a.Err)
	}
	f.exchange(client, fd, f.root, f.accept(f.root, tcp, client, fd))

	// Its own upstream queries leave from this namespace, as root.
	up := f.far.socket("udp4", resolverIP4+":53")
	if a := f.root.try("udp4", resolverIP4+":53"); a.Err != "" {
		t.Errorf("upstream: %s", a.Err)
	}
	if got := f.far.must(call{Op: "recv", FD: up, N: 100}); string(got.Data) != "x" {
		t.Errorf("the resolver received %q", got.Data)
	}
}

// A resolver on loopback is an endpoint like any other, reached by root only.
func TestLoopbackResolver(t *testing.T) {
	t.Parallel()
	c := usual()
	c.Resolvers = dnsEndpoints(netip.MustParseAddrPort("127.0.0.53:53"))
	f := newFence(t, c)
	server := newProber(t, f.box, 101) // such a resolver seldom runs as root
	udp := server.socket("udp4", "127.0.0.53:53")
	server.listen("127.0.0.53:53")

	fd, _ := f.root.dial("udp4", "127.0.0.53:53")
	f.root.must(call{Op: "send", FD: fd, Data: []byte("question")})
	q := server.must(call{Op: "recv", FD: udp, N: 100})
	server.must(call{Op: "sendto", FD: udp, Addr: q.Addr, Data: []byte("answer")})
	if got := f.root.must(call{Op: "recv", FD: fd, N: 100}); string(got.Data) != "answer" {
		t.Errorf("answer %q", got.Data)
	}
	if got := f.root.try("tcp4", "127.0.0.53:53"); got.Err != "" {
		t.Errorf("by TCP: %s", got.Err)
	}
	for network, want := range map[string]string{"udp4": "EPERM", "tcp4": "ECONNREFUSED"} {
		if got := f.agent.try(network, "127.0.0.53:53"); got.Err != want {
			t.Errorf("the agent by %s: %q, want %q", network, got.Err, want)
		}
	}
}

// Root's health checks of an agent's server, where policy says so.
func TestRootLoopback(t *testing.T) {
	t.Parallel()
	f := newFence(t, usual())
	f.agent.listen("127.0.0.1:3000")
	ports := Contents{RootLoopback: []uint16{3000}}
	for i, want := range []string{"ECONNREFUSED", "", "ECONNREFUSED"} {
		if got := f.root.try("tcp4", "127.0.0.1:3000"); got.Err != want {
			t.Errorf("attempt %d: %q, want %q", i, got.Err, want)
		}
		if i == 0 {
			f.update(ports, Contents{})
		} else {
			f.update(Contents{}, ports)
		}
	}
}

func TestInbound(t *testing.T) {
	t.Parallel()
	f := newFence(t, usual())
	l := f.agent.listen("0.0.0.0:3000")
	port := Contents{Published: []uint16{3000, 3001}}
	remote := boxIP4 + ":3000"
	denied := f.counter(CounterInbound)
	if got := f.far.try("tcp4", remote); got.Err != "EINPROGRESS" {
		t.Errorf("not published: %q, want no answer", got.Err)
	}
	if f.counter(CounterInbound) == denied {
		t.Error("the inbound counter did not move")
	}
	f.update(port, Contents{})
	fd, a := f.far.dial("tcp4", remote)
	if a.Err != "" {
		t.Fatalf("published: %s", a.Err)
	}
	peer := f.accept(f.agent, l, f.far, fd)
	f.exchange(f.far, fd, f.agent, peer)
	// Published is for what others begin; it is no way out.
	if got := f.agent.try("tcp4", otherIP4+":80"); got.Err != "ECONNREFUSED" {
		t.Errorf("outwards: %q", got.Err)
	}
	out := f.agent.socket("tcp4", "0.0.0.0:3001")
	if got := f.agent.do(call{Op: "connect", FD: out, Addr: otherIP4 + ":80"}); got.Err != "ECONNREFUSED" {
		t.Errorf("outwards from the published port: %q", got.Err)
	}
	f.tap.arrived() // what the exchange sent is on a busy machine still to be seen
	f.update(Contents{}, port)
	f.far.must(call{Op: "send", FD: fd, Data: []byte("hello")})
	f.tap.reset()
	if got := f.agent.do(call{Op: "send", FD: peer, Data: []byte("secret")}); got.Err != "" {
		t.Logf("sending on the unpublished port: %s", got.Err)
	}
	for _, p := range f.tap.arrived() {
		t.Errorf("after unpublishing a packet left: protocol %d, %d bytes", p.proto, len(p.body))
	}
}

// A removed element cuts the live flow it admitted, at the next packet, with an
// error the program sees at once; its neighbour does not notice.
func TestRevocation(t *testing.T) {
	t.Parallel()
	c := usual()
	c.OwnLoopback = []uint32{1000, 1001}
	c.Egress = append(c.Egress, Endpoint{unix.IPPROTO_TCP, netip.MustParseAddr(otherIP4), 443})
	c.RootLoopback = []uint16{4000}
	f := newFence(t, c)
	far4, far6 := f.far.listen("0.0.0.0:443"), 0
	far6 = f.far.socket("tcp6", "["+allowedIP6+"]:443")
	f.far.must(call{Op: "listen", FD: far6, N: 8})
	resolver := f.far.listen(resolverIP4 + ":53")
	proxy4, proxy6 := f.root.listen(listenerAddr4), f.root.listen(listenerAddr6)
	dev, health := f.agent.listen("127.0.0.1:3000"), f.agent.listen("127.0.0.1:4000")
	client := newProber(t, f.box, 0) // root again; f.root serves

	for _, tc := range []struct {
		what      string
		who       *prober
		net, addr string
		server    *prober
		listener  int
		del       Contents
	}{
		{what: "egress", who: client, net: "tcp4", addr: allowedIP4 + ":443", server: f.far, listener: far4, del: Contents{Egress: c.Egress[:1]}},
		{what: "egress v6", who: client, net: "tcp6", addr: "[" + allowedIP6 + "]:443", server: f.far, listener: far6, del: Contents{Egress: c.Egress[1:2]}},
		{what: "resolver", who: client, net: "tcp4", addr: resolverIP4 + ":53", server: f.far, listener: resolver, del: Contents{Resolvers: c.Resolvers}},
		{what: "listener", who: f.agent, net: "tcp4", addr: listenerAddr4, server: f.root, listener: proxy4, del: Contents{Listeners: c.Listeners[:1]}},
		{what: "listener v6", who: f.agent, net: "tcp6", addr: listenerAddr6, server: f.root, listener: proxy6, del: Contents{Listeners: c.Listeners[1:]}},
		{what: "own loopback", who: f.agent, net: "tcp4", addr: "127.0.0.1:3000", server: f.agent, listener: dev, del: Contents{OwnLoopback: []uint32{1000}}},
		{what: "root loopback", who: client, net: "tcp4", addr: "127.0.0.1:4000", server: f.agent, listener: health, del: Contents{RootLoopback: []uint16{4000}}},
	} {
		t.Run(tc.what, func(t *testing.T) {
			neighbour, a := client.dial("tcp4", otherIP4+":443")
			if a.Err != "" {
				t.Fatalf("neighbour: %s", a.Err)
			}
			neighbourPeer := f.accept(f.far, far4, client, neighbour)
			fd, a := tc.who.dial(tc.net, tc.addr)
			if a.Err != "" {
				t.Fatalf("before: %s", a.Err)
			}
			peer := f.accept(tc.server, tc.listener, tc.who, fd)
			f.exchange(tc.who, fd, tc.server, peer)
			f.exchange(client, neighbour, f.far, neighbourPeer)

			f.update(Contents{}, tc.del)
			start := time.Now()
			sent := tc.who.do(call{Op: "send", FD: fd, Data: []byte("late")})
			got := tc.who.do(call{Op: "recv", FD: fd, N: 10})
			if sent.Err != "" || got.Err != "ECONNRESET" || time.Since(start) > soon {
				t.Errorf("after: send %q, receive %q in %v; want ECONNRESET", sent.Err, got.Err, time.Since(start))
			}
			f.exchange(client, neighbour, f.far, neighbourPeer)
			if again := tc.who.try(tc.net, tc.addr); again.Err != "ECONNREFUSED" {
				t.Errorf("again: %q, want ECONNREFUSED", again.Err)
			}
			f.update(tc.del, Contents{})
			if again := tc.who.try(tc.net, tc.addr); again.Err != "" {
				t.Errorf("allowed again: %s", again.Err)
			}
		})
	}
}

// Data that is still queued when its socket closes has no owner any more. All of
// it must arrive, and the connection must end in good order.
func TestOrphanData(t *testing.T) {
	t.Parallel()
	f := newFence(t, usual())
	l := f.far.socket("tcp4", "")
	f.far.must(call{Op: "setsockopt", FD: l, Level: unix.SOL_SOCKET, Option: unix.SO_RCVBUF, N: 8192})
	f.far.must(call{Op: "bind", FD: l, Addr: allowedIP4 + ":443"})
	f.far.must(call{Op: "listen", FD: l, N: 8})

	transfer := func() (sent, received int, end string) {
		fd, a := f.root.dial("tcp4", allowedIP4+":443")
		if a.Err != "" {
			t.Fatal(a.Err)
		}
		peer := f.accept(f.far, l, f.root, fd)
		for sent < 1<<20 {
			a := f.root.do(call{Op: "send", FD: fd, Data: make([]byte, 8192), Option: unix.MSG_DONTWAIT})
			if a.Err == "EAGAIN" {
				break
			}
			sent += a.N
		}
		f.root.must(call{Op: "close", FD: fd})
		for {
			a := f.far.do(call{Op: "recv", FD: peer, N: 65536})
			if a.Err != "" || a.N == 0 {
				f.far.do(call{Op: "close", FD: peer})
				return sent, received, a.Err
			}
			received += a.N
		}
	}
	sent, received, end := transfer()
	if received != sent || end != "" {
		t.Errorf("%d of %d bytes arrived, then %q", received, sent, end)
	}
	f.weaken(func(rs *Ruleset) {
		f.dropRule(rs, "out_net", "ct state established ip daddr . meta l4proto . th dport @egress4 accept")
	})
	if sent, received, _ := transfer(); received == sent {
		t.Errorf("all %d bytes arrived without the rule for them: the test proves nothing", sent)
	}
}

// Path MTU discovery needs ICMP from routers on the way.
func TestPathMTU(t *testing.T) {
	t.Parallel()
	f := newFence(t, usual())
	beyond := netnstest.New(t)
	beyond.Sysctl("net.ipv6.conf.default.dad_transmits", "0")
	netnstest.Veth(
		netnstest.End{In: f.world, Name: "eth1", Addrs: []string{"10.10.0.1/24", "fd10::1/64"}},
		netnstest.End{In: beyond, Name: "eth0", Addrs: []string{"10.10.0.2/24", "fd10::2/64"}})
	beyond.Route("default", "10.10.0.1")
	beyond.Route("default", "fd10::1")
	f.world.Sysctl("net.ipv4.ip_forward", "1")
	f.world.Sysctl("net.ipv6.conf.all.forwarding", "1")
	f.world.Do(func() error { return setMTU("eth1", 1280) })
	end := newProber(t, beyond, 0)
	for network, addr := range map[string]string{"tcp4": "10.10.0.2:443", "tcp6": "[fd10::2]:443"} {
		t.Run(network, func(t *testing.T) {
			ap := netip.MustParseAddrPort(addr)
			f.update(Contents{Egress: []Endpoint{{unix.IPPROTO_TCP, ap.Addr(), ap.Port()}}}, Contents{})
			l := end.listen(addr)
			transfer := func() string {
				fd, a := f.root.dial(network, addr)
				if a.Err != "" {
					t.Fatal(a.Err)
				}
				defer f.root.do(call{Op: "abort", FD: fd})
				peer := f.accept(end, l, f.root, fd)
				f.root.must(call{Op: "send", FD: fd, Data: make([]byte, 8000)})
				for got := 0; got < 8000; {
					a := end.do(call{Op: "recv", FD: peer, N: 8000})
					if a.Err != "" {
						return a.Err
					}
					got += a.N
				}
				return ""
			}
			f.weaken(func(rs *Ruleset) { f.dropRule(rs, "input", "ct state established,related accept"); openEstablished(rs) })
			if got := transfer(); got != "EAGAIN" {
				t.Errorf("without ICMP from the router: %q; the test proves nothing", got)
			}
			f.restore()
			if got := transfer(); got != "" {
				t.Errorf("the transfer stopped: %s", got)
			}
		})
	}
}

// openEstablished admits replies but nothing related.
func openEstablished(rs *Ruleset) {
	c := rs.chain("input")
	c.Rules = append([]Rule{rule(state("established"), accept)}, c.Rules...)
}

func setMTU(name string, mtu int) error {
	out, err := exec.Command("ip", "link", "set", name, "mtu", fmt.Sprint(mtu)).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}
