package firewall

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"exitgate/policy"
)

// exact compares netip values, which have unexported fields but are comparable.
var exact = cmp.Options{
	cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
	cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b }),
}

func loadPolicy(t testing.TB, text string) *policy.Policy {
	t.Helper()
	p, err := policy.Load("policy.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func addrPorts(t testing.TB, text ...string) []netip.AddrPort {
	t.Helper()
	out := make([]netip.AddrPort, len(text))
	for i, s := range text {
		var err error
		if out[i], err = netip.ParseAddrPort(s); err != nil {
			t.Fatal(err)
		}
	}
	return out
}

func TestCompile(t *testing.T) {
	p := loadPolicy(t, `
version: 1
agents:
  - {name: b, uid: 1001, listen: "[::1]:8081", loopback: own}
  - {name: a, uid: 1000, listen: "127.0.0.1:8080", publish: [3000]}
root_inbound: [9100]
root_loopback: [5432]
`)
	pin := Endpoint{Proto: unix.IPPROTO_TCP, Addr: netip.MustParseAddr("::ffff:192.0.2.1"), Port: 443}
	got := Compile(p, addrPorts(t, "192.0.2.53:53", "[fe80::1%eth0]:53", "127.0.0.11:53", "127.0.0.53:53", "192.0.2.54:5353"), []Endpoint{pin, pin})
	udpAndTCP := func(a string, port uint16) []Endpoint {
		addr := netip.MustParseAddr(a)
		return []Endpoint{{unix.IPPROTO_TCP, addr, port}, {unix.IPPROTO_UDP, addr, port}}
	}
	want := Contents{
		Listeners: []Listener{
			{1000, netip.MustParseAddrPort("127.0.0.1:8080")},
			{1001, netip.MustParseAddrPort("[::1]:8081")},
		},
		Egress:       []Endpoint{{unix.IPPROTO_TCP, netip.MustParseAddr("192.0.2.1"), 443}},
		Resolvers:    slices.Concat(udpAndTCP("127.0.0.53", 53), udpAndTCP("192.0.2.53", 53), udpAndTCP("192.0.2.54", 5353), udpAndTCP("fe80::1", 53)),
		Published:    []uint16{3000, 9100},
		OwnLoopback:  []uint32{1001},
		RootLoopback: []uint16{5432},
	}
	if d := cmp.Diff(want, got, exact); d != "" {
		t.Errorf("Compile (-want +got):\n%s", d)
	}
	if again := Compile(p, nil, got.Egress); !cmp.Equal(got.Egress, again.Egress, exact) {
		t.Error("Compile changed endpoints that were in normal form")
	}
}

func TestCompileNilIsLockdown(t *testing.T) {
	got := Compile(nil, addrPorts(t, "192.0.2.53:53"), fullContents().Egress)
	if !got.Empty() || len(got.elements()) != 0 {
		t.Errorf("no policy compiled to %+v; want nothing", got)
	}
}

// An own-loopback mark is the uid, and one mark means a refused flow.
func TestCompileKeepsResetMarkFree(t *testing.T) {
	p := &policy.Policy{Agents: []policy.Agent{
		{UID: resetMark, Listen: netip.MustParseAddrPort("127.0.0.1:8080"), Loopback: policy.LoopbackOwn},
		{UID: 1000, Listen: netip.MustParseAddrPort("127.0.0.1:8081"), Loopback: policy.LoopbackOwn, Publish: []uint16{8080, 3000}},
	}}
	got := Compile(p, nil, nil)
	if d := cmp.Diff([]uint32{1000}, got.OwnLoopback); d != "" {
		t.Errorf("own loopback (-want +got):\n%s", d)
	}
	if d := cmp.Diff([]uint16{3000}, got.Published); d != "" {
		t.Errorf("a listener's port must not be published (-want +got):\n%s", d)
	}
}

func TestContentsDiff(t *testing.T) {
	full := fullContents()
	for name, c := range map[string]struct{ from, to Contents }{
		"fill":  {Contents{}, full},
		"empty": {full, Contents{}},
		"same":  {full, full},
		"change": {
			Contents{Published: []uint16{1, 2}, Egress: full.Egress[:2]},
			Contents{Published: []uint16{2, 3}, Egress: full.Egress[1:]},
		},
	} {
		t.Run(name, func(t *testing.T) {
			add, del := c.from.Diff(c.to)
			if got := c.from.without(del); !cmp.Equal(got.Len()+add.Len(), c.to.Normalize().Len()) {
				t.Errorf("diff of %d to %d members adds %d and deletes %d", c.from.Len(), c.to.Len(), add.Len(), del.Len())
			}
			m := newMembers(c.from.elements())
			m.change(m.plan([]*request{{add: add.base(), del: del.base()}}))
			if d := cmp.Diff(c.to.Normalize(), contentsOf(m.list()), exact); d != "" {
				t.Errorf("applying the diff (-want +got):\n%s", d)
			}
			if name == "same" && !(add.Empty() && del.Empty()) {
				t.Errorf("equal contents differ: add %+v, del %+v", add, del)
			}
		})
	}
}

// Elements say all that contents do: there and back is the identity, in the
// kernel's bytes and in text.
func TestElementsRoundTrip(t *testing.T) {
	want := fullContents()
	elements := want.elements()
	if d := cmp.Diff(want, contentsOf(elements), exact); d != "" {
		t.Errorf("elements and back (-want +got):\n%s", d)
	}
	used := make(map[uint8]bool)
	for _, e := range elements {
		used[e.set] = true
		back, err := parseElement(record.Sets[e.set].Name, e.String())
		if err != nil || back != e {
			t.Errorf("%s reads back as %v, %v", e, back, err)
		}
	}
	for i, s := range record.Sets {
		if !used[uint8(i)] {
			t.Errorf("no element of %s was tried", s.Name)
		}
	}
}

func TestParseElementRefuses(t *testing.T) {
	for _, text := range []string{"", "1000", "1000 . 127.0.0.1", "1000 . ::1 . 80", "1000 . 127.0.0.1 . 99999", "x . 127.0.0.1 . 80", "1000 . 127.0.0.1 . 80 : 1"} {
		if e, err := parseElement(setListeners4, text); err == nil {
			t.Errorf("%q was read as %s", text, e)
		}
	}
	if _, err := parseElement("nosuch", "1"); err == nil {
		t.Error("an element of an unknown set was read")
	}
}

// Two listeners may share a port; the port leaves with the last of them.
func TestDerivedSetsFollowListeners(t *testing.T) {
	a := Contents{Listeners: []Listener{{1000, netip.MustParseAddrPort("127.0.0.1:8080")}}}
	b := Contents{Listeners: []Listener{{1001, netip.MustParseAddrPort("[::1]:8080")}}}
	m := newMembers(nil)
	for i, step := range []struct {
		r             request
		ports, agents int
	}{
		{request{add: a.base()}, 1, 1}, {request{add: b.base()}, 1, 2}, {request{del: a.base()}, 1, 1},
		{request{add: a.base(), del: b.base()}, 1, 1}, {request{del: a.base()}, 0, 0},
	} {
		m.change(m.plan([]*request{&step.r}))
		if p, a := len(m[setIndex[setListenerPorts]]), len(m[setIndex[setAgents]]); p != step.ports || a != step.agents {
			t.Errorf("step %d: %d listener ports and %d agents, want %d and %d", i, p, a, step.ports, step.agents)
		}
	}
}
