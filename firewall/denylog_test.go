package firewall

import (
	"context"
	"encoding/binary"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"

	"exitgate/netns/netnstest"
)

// listen starts the fence's deny log.
func (f *fence) listen() <-chan Denied {
	f.t.Helper()
	if err := f.writer.EnableDenyLog(); err != nil {
		f.t.Fatal(err)
	}
	l := netnstest.In(f.box, OpenDenyLog)
	out, ended := make(chan Denied, 4096), make(chan error)
	ctx, stop := context.WithCancel(context.Background())
	go func() { ended <- l.Read(ctx, func(d Denied) { out <- d }) }()
	f.t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			f.t.Errorf("Read: %v", err)
		}
		l.Close()
	})
	return out
}

// query is a DNS question for a name.
func query(t testing.TB, name string) []byte {
	t.Helper()
	n, err := dnsmessage.NewName(name)
	if err != nil {
		t.Fatal(err)
	}
	m := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: 7, RecursionDesired: true},
		Questions: []dnsmessage.Question{{Name: n, Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}},
	}
	b, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestDenyLog(t *testing.T) {
	t.Parallel()
	f := newFence(t, usual())
	log := f.listen()
	send := func(p *prober, network, addr string, data []byte) {
		fd := p.socket(network, "")
		p.do(call{Op: "connect", FD: fd, Addr: addr})
		p.do(call{Op: "send", FD: fd, Data: data})
		p.do(call{Op: "close", FD: fd})
	}
	for _, tc := range []struct {
		what string
		do   func()
		want Denied
	}{
		{"a lookup", func() { send(f.agent, "udp4", resolverIP4+":53", query(t, "Statsig.Anthropic.com.")) },
			Denied{Chain: "deny_agent", Owned: true, UID: 1000, GID: 1000, Proto: unix.IPPROTO_UDP, Addr: netip.MustParseAddr(resolverIP4), Port: 53, Query: "statsig.anthropic.com"}},
		{"a lookup by Docker's DNS", func() { send(f.agent, "udp4", "127.0.0.11:53", query(t, "pypi.org.")) },
			Denied{Chain: "deny_agent", Owned: true, UID: 1000, GID: 1000, Proto: unix.IPPROTO_UDP, Addr: dockerDNS, Port: 53, Query: "pypi.org"}},
		{"a connection", func() { f.agent.try("tcp4", otherIP4+":443") },
			Denied{Chain: "deny_agent", Owned: true, UID: 1000, GID: 1000, Proto: unix.IPPROTO_TCP, Addr: netip.MustParseAddr(otherIP4), Port: 443}},
		{"a connection, v6", func() { f.agent.try("tcp6", "["+otherIP6+"]:443") },
			Denied{Chain: "deny_agent", Owned: true, UID: 1000, GID: 1000, Proto: unix.IPPROTO_TCP, Addr: netip.MustParseAddr(otherIP6), Port: 443}},
		{"a ping", func() { f.agent.try("ping4", otherIP4+":0") },
			Denied{Chain: "deny_agent", Owned: true, UID: 1000, GID: 1000, Proto: unix.IPPROTO_ICMP, Addr: netip.MustParseAddr(otherIP4)}},
		{"root", func() { f.root.try("tcp4", otherIP4+":80") },
			Denied{Chain: "deny_root", Owned: true, Proto: unix.IPPROTO_TCP, Addr: netip.MustParseAddr(otherIP4), Port: 80}},
		{"inbound", func() { f.far.begin(call{Op: "try", Net: "tcp4", Addr: boxIP4 + ":3000"}) },
			Denied{Chain: "input", Proto: unix.IPPROTO_TCP, Addr: netip.MustParseAddr(boxIP4), Port: 3000}},
	} {
		t.Run(tc.what, func(t *testing.T) {
			tc.do()
			deadline := time.After(20 * time.Second)
			for {
				select {
				case got := <-log:
					// Others, such as the kernel's own neighbour discovery, may come between.
					if got.Addr != tc.want.Addr || got.Port != tc.want.Port {
						continue
					}
					if got.Length < 28 || !got.Src.Addr().IsValid() {
						t.Errorf("length %d, source %s", got.Length, got.Src)
					}
					got.Src, got.Length = netip.AddrPort{}, 0
					if d := cmp.Diff(tc.want, got, exact); d != "" {
						t.Errorf("told (-want +got):\n%s", d)
					}
					return
				case <-deadline:
					t.Fatal("not told")
				}
			}
		})
	}
}

// A flood is told of in samples, counted in full, and refused like anything else.
func TestDenyLogIsBounded(t *testing.T) {
	t.Parallel()
	f := newFence(t, usual())
	log := f.listen()
	before := f.counter(CounterAgent)
	fd, _ := f.agent.dial("udp4", otherIP4+":9")
	start := time.Now()
	sent, refused := 0, 0
	for n := 0; refused < 1000 && n < 100; n++ { // 300 ms are enough but on a machine that is busy with others
		a := f.agent.must(call{Op: "flood", FD: fd, Data: []byte("x"), Millis: 300})
		sent, refused = sent+a.N, refused+a.Refused
	}
	counted := f.counter(CounterAgent) - before
	time.Sleep(100 * time.Millisecond)
	most := 100 + 50*(time.Since(start).Seconds()+1) // the burst, and the rate
	if n := len(log); n == 0 || float64(n) > most {
		t.Errorf("%d packets were told of; want some, and no more than %.0f", n, most)
	}
	if sent != 0 || refused < 1000 || counted < uint64(refused) {
		t.Errorf("%d packets sent, %d refused, %d counted", sent, refused, counted)
	}
}

func TestDenyLogTaken(t *testing.T) {
	ns := netnstest.New(t)
	first := netnstest.In(ns, OpenDenyLog)
	ns.Do(func() error {
		if _, err := OpenDenyLog(); !errors.Is(err, unix.EPERM) || !strings.Contains(err.Error(), "in use by another process") {
			t.Errorf("a second reader: %v", err)
		}
		return nil
	})
	ended := make(chan error)
	go func() { ended <- first.Read(context.Background(), func(Denied) {}) }()
	first.Close()
	if err := <-ended; err != nil {
		t.Errorf("Read of a closed log: %v", err)
	}
	netnstest.In(ns, OpenDenyLog).Close()
}

func TestEnableDenyLogRefused(t *testing.T) {
	k := NewFake()
	w := NewWriter(k)
	if err := w.EnableDenyLog(); !errors.Is(err, ErrNotInstalled) {
		t.Errorf("before Install: %v", err)
	}
	if err := w.Install(fullContents()); err != nil {
		t.Fatal(err)
	}
	before := k.String()
	k.FailCommit(1, unix.ENOENT, false) // as a kernel without NFLOG does
	if err := w.EnableDenyLog(); !errors.Is(err, unix.ENOENT) {
		t.Errorf("error %v, want ENOENT", err)
	}
	if d := cmp.Diff(before, k.String()); d != "" {
		t.Errorf("the refused log left (-before +after):\n%s", d)
	}
	if err := w.Update(somePorts, Contents{}); err != nil {
		t.Errorf("Update afterwards: %v", err)
	}
}

// The log tells, it does not judge: with it every packet fares as without.
func TestDenyLogChangesNoVerdict(t *testing.T) {
	with := newEvaluator(withDenyLog(record), modelContents())
	for _, tc := range verdictCases {
		if got := with.run(tc.p).text(); got != tc.want {
			t.Errorf("%s: %s, want %s", tc.what, got, tc.want)
		}
	}
	n := 0
	for _, c := range withDenyLog(record).Chains {
		for _, r := range c.Rules {
			if _, ok := r.Statements[0].(logDenied); ok {
				n++
			}
		}
	}
	if n != 3 {
		t.Errorf("%d log rules, want those of deny_agent, deny_root and input", n)
	}
}

// ip4 is an IPv4 packet with a body.
func ip4(proto byte, body []byte) []byte {
	b := make([]byte, 20, 20+len(body))
	b[0], b[9] = 0x45, proto
	binary.BigEndian.PutUint16(b[2:], uint16(20+len(body)))
	copy(b[12:], []byte{10, 0, 0, 1})
	copy(b[16:], []byte{10, 0, 0, 2})
	return append(b, body...)
}

// ip6 is an IPv6 packet with a body.
func ip6(next byte, body []byte) []byte {
	b := make([]byte, 40, 40+len(body))
	b[0], b[6], b[8], b[24] = 0x60, next, 0xfd, 0xfd
	binary.BigEndian.PutUint16(b[4:], uint16(len(body)))
	return append(b, body...)
}

func udpTo(port uint16, data []byte) []byte {
	b := make([]byte, 8)
	binary.BigEndian.PutUint16(b, 1024)
	binary.BigEndian.PutUint16(b[2:], port)
	return append(b, data...)
}

func TestDeniedParse(t *testing.T) {
	long := strings.Repeat("a", 63) + "." + strings.Repeat("b", 63) + "." + strings.Repeat("c", 63) + "." + strings.Repeat("d", 59)
	for _, tc := range []struct {
		what   string
		packet []byte
		ok     bool
		proto  uint8
		port   uint16
		query  string
	}{
		{what: "nothing"},
		{what: "no version", packet: []byte{0x10, 1, 2}},
		{what: "half a header", packet: ip4(17, nil)[:19]},
		{what: "half a v6 header", packet: ip6(17, nil)[:39]},
		{what: "no body", packet: ip4(6, nil), ok: true, proto: 6},
		{what: "header length beyond the packet", packet: append([]byte{0x4f}, ip4(6, udpTo(443, nil))[1:]...), ok: true, proto: 6},
		{what: "header length too short", packet: append([]byte{0x44}, ip4(6, udpTo(443, nil))[1:]...), ok: true, proto: 6},
		{what: "tcp", packet: ip4(6, udpTo(443, nil)), ok: true, proto: 6, port: 443},
		{what: "icmp", packet: ip4(1, udpTo(443, nil)), ok: true, proto: 1},
		{what: "dns", packet: ip4(17, udpTo(53, query(t, "a.example."))), ok: true, proto: 17, port: 53, query: "a.example"},
		{what: "dns, longest name", packet: ip4(17, udpTo(53, query(t, long+"."))), ok: true, proto: 17, port: 53, query: long},
		{what: "dns, hostile name", packet: ip4(17, udpTo(53, query(t, "a\x1b[2J\n\"\xff.example."))), ok: true, proto: 17, port: 53, query: `a\027\0912j\010\034\255.example`},
		{what: "dns, cut short", packet: ip4(17, udpTo(53, query(t, "a.example.")[:16])), ok: true, proto: 17, port: 53},
		{what: "dns over another port", packet: ip4(17, udpTo(54, query(t, "a.example."))), ok: true, proto: 17, port: 54},
		{what: "multicast dns", packet: ip6(17, udpTo(5353, query(t, "printer.local."))), ok: true, proto: 17, port: 5353, query: "printer.local"},
		{what: "v6 behind options", packet: ip6(0, append([]byte{60, 0, 0, 0, 0, 0, 0, 0, 17, 1, 14: 0, 23: 0}, udpTo(53, query(t, "a.example."))...)), ok: true, proto: 17, port: 53, query: "a.example"},
		{what: "v6 options beyond the packet", packet: ip6(0, []byte{17, 255, 0, 0, 0, 0, 0, 0}), ok: true, proto: 0},
		{what: "v6 first fragment", packet: ip6(44, append([]byte{17, 0, 0, 1, 0, 0, 0, 0}, udpTo(7, nil)...)), ok: true, proto: 17, port: 7},
		{what: "v6 later fragment", packet: ip6(44, append([]byte{17, 0, 1, 0, 0, 0, 0, 0}, udpTo(7, nil)...)), ok: true, proto: 17},
		{what: "v6 options without end", packet: ip6(0, make([]byte, 400)), ok: true, proto: 0},
	} {
		var d Denied
		ok := d.parse(tc.packet)
		if ok != tc.ok || ok && (d.Proto != tc.proto || d.Port != tc.port || d.Query != tc.query) {
			t.Errorf("%s: %v %+v", tc.what, ok, d)
		}
	}
	fragment := ip4(17, udpTo(53, query(t, "a.example.")))
	fragment[7] = 1
	var d Denied
	if d.parse(fragment); d.Port != 0 {
		t.Errorf("a later fragment's bytes were read as ports: %+v", d)
	}
}

// FuzzDenied: whatever the bytes, what is told is bounded and printable.
func FuzzDenied(f *testing.F) {
	f.Add(ip4(17, udpTo(53, query(f, "a\xff.example."))))
	f.Add(ip6(0, append([]byte{17, 0, 0, 0, 0, 0, 0, 0}, udpTo(53, query(f, "a.example."))...)))
	f.Add(ip6(44, append([]byte{17, 0, 0, 1, 0, 0, 0, 0}, udpTo(7, nil)...)))
	f.Fuzz(func(t *testing.T, b []byte) {
		var d Denied
		if !d.parse(b) {
			return
		}
		if !d.Addr.IsValid() || d.Addr.Is4() != d.Src.Addr().Is4() {
			t.Errorf("addresses %s and %s", d.Addr, d.Src)
		}
		if len(d.Query) > 4*255 {
			t.Errorf("a name of %d bytes", len(d.Query))
		}
		for _, c := range []byte(d.Query) {
			if c <= ' ' || c > '~' || c == '"' {
				t.Errorf("byte %#x in %q", c, d.Query)
			}
		}
	})
}

// FuzzMessages: a datagram of the log, or of the kernel's notices, may hold anything.
func FuzzMessages(f *testing.F) {
	f.Add([]byte{20, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0})
	f.Add([]byte{255, 255, 255, 255, 0, 4})
	f.Fuzz(func(t *testing.T, b []byte) {
		ours(b)
		if !eachMessage(b, func(typ uint16, body []byte) { parseDenied(typ, body) }) && !ours(b) {
			t.Error("what cannot be read must count as a change of ours")
		}
	})
}

// FuzzStateText: what can be read prints as what reads the same.
func FuzzStateText(f *testing.F) {
	k := NewFake()
	NewWriter(k).Install(fullContents())
	f.Add(k.String())
	f.Fuzz(func(t *testing.T, text string) {
		s, err := ParseState(text)
		if err != nil {
			return
		}
		again, err := ParseState(s.String())
		if err != nil || again.String() != s.String() {
			t.Errorf("%q prints as %q, which reads as %q, %v", text, s, again, err)
		}
	})
}
