package resolver

import (
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"exitgate/policy"

	"github.com/miekg/dns"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// load reads a policy from its entries; the DNS servers are those given.
func load(t testing.TB, text string, servers ...netip.AddrPort) *policy.Policy {
	t.Helper()
	text = "version: 1\n" + text
	if len(servers) > 0 {
		text += "\ndns:\n  servers:\n"
		for _, s := range servers {
			text += "    - \"" + s.String() + "\"\n"
		}
	}
	p, err := policy.Load("policy.yaml", []byte(text))
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	return p
}

func addrs(list ...string) []netip.Addr {
	var as []netip.Addr
	for _, s := range list {
		as = append(as, netip.MustParseAddr(s))
	}
	return as
}

func endpoint(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

// kernel is a set of endpoints as the kernel keeps it, and a check that commits never overlap.
type kernel struct {
	t       testing.TB
	busy    atomic.Bool
	mu      sync.Mutex
	set     map[netip.AddrPort]bool
	commits int
	fail    error         // of the next commits
	late    bool          // a failing commit takes effect all the same, as after a lost acknowledgement
	gate    chan struct{} // commits wait for it
}

func newKernel(t testing.TB) *kernel { return &kernel{t: t, set: map[netip.AddrPort]bool{}} }

func (k *kernel) commit(add, del []netip.AddrPort) error {
	if !k.busy.CompareAndSwap(false, true) {
		k.t.Error("a commit overlaps another")
	}
	defer k.busy.Store(false)
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.gate != nil {
		<-k.gate
	}
	k.commits++
	if k.fail == nil || k.late {
		for _, e := range add {
			k.set[e] = true
		}
		for _, e := range del {
			delete(k.set, e)
		}
	}
	return k.fail
}

func (k *kernel) has(e string) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.set[endpoint(e)]
}

func (k *kernel) list() []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	list := []string{}
	for e := range k.set {
		list = append(list, e.String())
	}
	slices.Sort(list)
	return list
}

func (k *kernel) count() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.commits
}

func (k *kernel) broken(err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.fail = err
}

// clock is a clock that a test moves.
type clock struct {
	mu sync.Mutex
	at time.Time
}

func newClock() *clock { return &clock{at: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)} }

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.at
}

func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = c.at.Add(d)
}

// server is a DNS server on loopback, UDP and TCP on one port, that answers as a test wants it to.
type server struct {
	addr   netip.AddrPort
	mu     sync.Mutex
	answer func(w dns.ResponseWriter, q *dns.Msg)
	asked  []string // "A example.com. udp"
}

// serve starts a server. answer may be nil: it stays silent.
func serve(t testing.TB, answer func(w dns.ResponseWriter, q *dns.Msg)) *server {
	t.Helper()
	s := &server{answer: answer}
	var pc net.PacketConn
	var l net.Listener
	for range 20 { // the port that UDP got may be taken for TCP
		var err error
		if pc, err = net.ListenPacket("udp", "127.0.0.1:0"); err != nil {
			t.Fatal(err)
		}
		if l, err = net.Listen("tcp", pc.LocalAddr().String()); err == nil {
			break
		}
		pc.Close()
	}
	if l == nil {
		t.Fatal("no port that is free for UDP and TCP")
	}
	s.addr = netip.MustParseAddrPort(pc.LocalAddr().String())
	started := make(chan struct{}, 2)
	for _, d := range []*dns.Server{{PacketConn: pc}, {Listener: l}} {
		d.Handler = dns.HandlerFunc(s.handle)
		d.NotifyStartedFunc = func() { started <- struct{}{} }
		done := make(chan struct{})
		go func() { d.ActivateAndServe(); close(done) }()
		<-started
		t.Cleanup(func() { d.Shutdown(); <-done })
	}
	return s
}

func (s *server) handle(w dns.ResponseWriter, q *dns.Msg) {
	s.mu.Lock()
	s.asked = append(s.asked, dns.TypeToString[q.Question[0].Qtype]+" "+q.Question[0].Name+" "+w.RemoteAddr().Network())
	answer := s.answer
	s.mu.Unlock()
	if answer != nil {
		answer(w, q)
	}
}

func (s *server) set(answer func(w dns.ResponseWriter, q *dns.Msg)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answer = answer
}

func (s *server) queries() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.asked)
}

// zone answers from records in zone-file form; what is not there does not exist.
func zone(records ...string) func(w dns.ResponseWriter, q *dns.Msg) {
	parsed := parseRRs(records)
	return func(w dns.ResponseWriter, q *dns.Msg) { w.WriteMsg(answerFrom(q, parsed)) }
}

func parseRRs(records []string) (list []dns.RR) {
	for _, text := range records {
		list = append(list, mustRR(text))
	}
	return list
}

func answerOf(q *dns.Msg, records ...string) *dns.Msg { return answerFrom(q, parseRRs(records)) }

// answerFrom follows aliases as a recursive server does.
func answerFrom(q *dns.Msg, records []dns.RR) *dns.Msg {
	m := new(dns.Msg).SetReply(q)
	at, known, found := strings.ToLower(q.Question[0].Name), false, false
	for range 20 {
		next := ""
		for _, rr := range records {
			if strings.ToLower(rr.Header().Name) != at {
				continue
			}
			known = true
			c, alias := rr.(*dns.CNAME)
			if alias || rr.Header().Rrtype == q.Question[0].Qtype {
				m.Answer = append(m.Answer, rr)
				found = found || !alias
			}
			if alias {
				next = strings.ToLower(c.Target)
			}
		}
		if next == "" {
			break
		}
		at = next
	}
	if !known {
		m.Rcode = dns.RcodeNameError
	}
	if !found {
		m.Ns = []dns.RR{mustRR("test. 30 IN SOA ns.test. admin.test. 1 2 3 4 20")}
	}
	return m
}

func mustRR(text string) dns.RR {
	rr, err := dns.NewRR(text)
	if err != nil {
		panic(err)
	}
	return rr
}

func rcode(code int) func(w dns.ResponseWriter, q *dns.Msg) {
	return func(w dns.ResponseWriter, q *dns.Msg) { w.WriteMsg(new(dns.Msg).SetRcode(q, code)) }
}

// rig is a resolver with a clock, a kernel and a log of events.
type rig struct {
	*Resolver
	clock  *clock
	kernel *kernel
	mu     sync.Mutex
	events []policy.Event
	counts map[string]int
}

// newRig makes a resolver that knows no IPv6 and no address of this machine, with files below a directory of
// its own.
func newRig(t testing.TB, change ...func(*Config)) *rig {
	t.Helper()
	g := &rig{clock: newClock(), kernel: newKernel(t), counts: map[string]int{}}
	cfg := Config{
		Root:   t.TempDir(),
		Commit: g.kernel.commit,
		Now:    g.clock.now,
		Rand:   func() float64 { return 0.5 },
		IPv6:   func() bool { return false },
		Local:  func() []netip.Addr { return nil },
		Observe: func(e policy.Event) {
			g.mu.Lock()
			defer g.mu.Unlock()
			g.events = append(g.events, e)
		},
		Count: func(result string) {
			g.mu.Lock()
			defer g.mu.Unlock()
			g.counts[result]++
		},
	}
	for _, c := range change {
		c(&cfg)
	}
	g.Resolver = New(cfg)
	t.Cleanup(g.Resolver.end)
	return g
}

// apply takes a policy into force and the one before out of it.
func (g *rig) apply(t testing.TB, p *policy.Policy) {
	t.Helper()
	remove, err := g.SetPolicy(p)
	if err != nil {
		t.Fatal(err)
	}
	if err := remove(); err != nil {
		t.Fatal(err)
	}
}

// rule is that of the first entry that allows a host and port.
func (g *rig) rule(host string, port uint16) string {
	g.Resolver.mu.Lock()
	defer g.Resolver.mu.Unlock()
	grant, _ := g.allowedLocked(host, port, g.clock.now())
	return grant.Rule
}

// get acquires and must succeed.
func (g *rig) get(t testing.TB, host string, port uint16) []netip.Addr {
	t.Helper()
	got, err := g.Acquire(t.Context(), g.rule(host, port), host, port)
	if err != nil {
		t.Fatalf("Acquire(%s, %d): %v", host, port, err)
	}
	for _, a := range got {
		if !g.kernel.has(netip.AddrPortFrom(a, port).String()) {
			t.Errorf("Acquire(%s, %d) gave %s, which the kernel does not have", host, port, a)
		}
	}
	return got
}

// refuse acquires and must fail as expected.
func (g *rig) refuse(t testing.TB, host string, port uint16, want error) *Error {
	t.Helper()
	got, err := g.Acquire(t.Context(), g.rule(host, port), host, port)
	var typed *Error
	if !errors.Is(err, want) || !errors.As(err, &typed) {
		t.Fatalf("Acquire(%s, %d) = %v, %v; want the error %q", host, port, got, err, want)
	}
	return typed
}

// quiet says that no lookup is under way.
func (g *rig) quiet() bool {
	g.Resolver.mu.Lock()
	defer g.Resolver.mu.Unlock()
	for _, n := range g.table.names {
		if n.flight != nil {
			return false
		}
	}
	return true
}

func (g *rig) told() []policy.Event {
	g.flights.Wait() // events come after the answer
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Clone(g.events)
}

func (g *rig) counted(result string) int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.counts[result]
}

func sameAddrs(t testing.TB, got []netip.Addr, want ...string) {
	t.Helper()
	if !slices.Equal(got, addrs(want...)) {
		t.Fatalf("got %v, want %v", got, want)
	}
}

// eventually waits for what another goroutine does.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("%s: not within 20 s", what)
}
