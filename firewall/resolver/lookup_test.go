package resolver

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// ask looks a name up over real sockets, with a short time for silent servers.
func ask(t *testing.T, six bool, servers ...netip.AddrPort) outcome {
	t.Helper()
	a := newAsker()
	a.timeout = 300 * time.Millisecond
	return a.lookup(t.Context(), servers, "www.test", six)
}

const record = "www.test. 60 IN A 192.0.2.1"

func isGood(t *testing.T, out outcome) {
	t.Helper()
	if out.err != nil {
		t.Fatalf("%v: %s", out.err, out.msg)
	}
	sameAddrs(t, out.addrs, "192.0.2.1")
}

func TestTruncatedAnswerIsAskedForAgainOverTCP(t *testing.T) {
	s := serve(t, func(w dns.ResponseWriter, q *dns.Msg) {
		m := answerOf(q, record)
		if w.RemoteAddr().Network() == "udp" {
			m.Truncated = true
			m.Answer = []dns.RR{mustRR("www.test. 60 IN A 192.0.2.66")}
		}
		w.WriteMsg(m)
	})
	isGood(t, ask(t, false, s.addr))
	if got, want := s.queries(), []string{"A www.test. udp", "A www.test. tcp"}; !slices.Equal(got, want) {
		t.Errorf("asked %v, want %v", got, want)
	}
}

func TestHugeAnswerComesWholeOverTCP(t *testing.T) {
	var records []string
	for i := range 500 {
		records = append(records, fmt.Sprintf("www.test. 60 IN A 192.1.%d.%d", i/256, i%256))
	}
	s := serve(t, func(w dns.ResponseWriter, q *dns.Msg) {
		m := answerOf(q, records...)
		if w.RemoteAddr().Network() == "udp" {
			m.Truncate(1232)
		}
		w.WriteMsg(m)
	})
	out := ask(t, false, s.addr)
	if out.err != nil || len(out.addrs) != maxAddrs {
		t.Fatalf("%d addresses, %v", len(out.addrs), out.err)
	}
}

func TestTruncatedOverTCPIsAFailure(t *testing.T) {
	s := serve(t, func(w dns.ResponseWriter, q *dns.Msg) {
		m := answerOf(q, record)
		m.Truncated = true
		w.WriteMsg(m)
	})
	if out := ask(t, false, s.addr); out.err != ErrServer {
		t.Errorf("%+v", out)
	}
}

func TestServerWithoutEDNSIsAskedWithout(t *testing.T) {
	for _, bare := range []bool{false, true} {
		s := serve(t, func(w dns.ResponseWriter, q *dns.Msg) {
			if q.IsEdns0() == nil {
				w.WriteMsg(answerOf(q, record))
				return
			}
			m := new(dns.Msg).SetRcode(q, dns.RcodeFormatError)
			if bare {
				m.Question = nil
			}
			w.WriteMsg(m)
		})
		isGood(t, ask(t, false, s.addr))
		if got := s.queries(); len(got) != 2 {
			t.Errorf("asked %v", got)
		}
	}
}

// TestForgeriesAreIgnored sends every forgery ahead of the true answer, from the server's own address.
func TestForgeriesAreIgnored(t *testing.T) {
	forge := func(q *dns.Msg, change func(m *dns.Msg)) *dns.Msg {
		m := answerOf(q, "www.test. 60 IN A 192.0.2.66")
		change(m)
		return m
	}
	s := serve(t, func(w dns.ResponseWriter, q *dns.Msg) {
		w.Write([]byte("not DNS"))
		w.Write(nil)
		w.WriteMsg(forge(q, func(m *dns.Msg) { m.Id++ }))
		w.WriteMsg(forge(q, func(m *dns.Msg) { m.Response = false }))
		w.WriteMsg(forge(q, func(m *dns.Msg) { m.Question[0].Name = "evil.test." }))
		w.WriteMsg(forge(q, func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeAAAA }))
		w.WriteMsg(answerOf(q, record))
	})
	isGood(t, ask(t, false, s.addr))
	s.set(func(w dns.ResponseWriter, q *dns.Msg) { w.WriteMsg(forge(q, func(m *dns.Msg) { m.Id++ })) })
	if out := ask(t, false, s.addr); out.err != ErrTimeout {
		t.Errorf("forgeries alone: %+v", out)
	}
}

func TestEachQueryHasItsOwnIDAndPort(t *testing.T) {
	var mu sync.Mutex
	ids, ports := map[uint16]bool{}, map[string]bool{}
	s := serve(t, func(w dns.ResponseWriter, q *dns.Msg) {
		mu.Lock()
		defer mu.Unlock()
		ids[q.Id], ports[w.RemoteAddr().String()] = true, true
		w.WriteMsg(answerOf(q, record))
	})
	for range 40 {
		isGood(t, ask(t, false, s.addr))
	}
	mu.Lock()
	defer mu.Unlock()
	if len(ids) < 35 || len(ports) < 20 {
		t.Errorf("%d IDs and %d ports in 40 queries", len(ids), len(ports))
	}
}

func TestNextServerAfterAFailure(t *testing.T) {
	good := serve(t, zone(record))
	closed := netip.MustParseAddrPort("127.0.0.1:1")
	for name, bad := range map[string]netip.AddrPort{
		"SERVFAIL": serve(t, rcode(dns.RcodeServerFailure)).addr,
		"REFUSED":  serve(t, rcode(dns.RcodeRefused)).addr,
		"silent":   serve(t, nil).addr,
		"closed":   closed,
		"nonsense": serve(t, func(w dns.ResponseWriter, q *dns.Msg) { w.WriteMsg(answerOf(q, "www.test. 60 IN CNAME www.test.")) }).addr,
	} {
		t.Run(name, func(t *testing.T) { isGood(t, ask(t, false, bad, good.addr)) })
	}
	for name, tt := range map[string]struct {
		bad  netip.AddrPort
		want error
	}{
		"SERVFAIL": {serve(t, rcode(dns.RcodeServerFailure)).addr, ErrServer},
		"silent":   {serve(t, nil).addr, ErrTimeout},
		"closed":   {closed, ErrServer},
	} {
		if out := ask(t, false, tt.bad); out.err != tt.want {
			t.Errorf("%s alone: %+v, want %v", name, out, tt.want)
		}
	}
}

// TestLostQueryIsSentAgain: the same one, so that an answer to either will do.
func TestLostQueryIsSentAgain(t *testing.T) {
	var mu sync.Mutex
	var seen []string
	s := serve(t, func(w dns.ResponseWriter, q *dns.Msg) {
		mu.Lock()
		defer mu.Unlock()
		if seen = append(seen, fmt.Sprint(q.Id, w.RemoteAddr())); len(seen) > 1 {
			w.WriteMsg(answerOf(q, record))
		}
	})
	isGood(t, newAsker().lookup(t.Context(), []netip.AddrPort{s.addr}, "www.test", false))
	mu.Lock()
	defer mu.Unlock()
	if len(seen) != 2 || seen[0] != seen[1] {
		t.Errorf("queries: %q", seen)
	}
}

// TestSilentServerIsAskedLast: it costs its timeout once, not with each lookup.
func TestSilentServerIsAskedLast(t *testing.T) {
	silent, good := serve(t, nil), serve(t, zone(record))
	a := newAsker()
	a.timeout = 200 * time.Millisecond
	for range 5 {
		isGood(t, a.lookup(t.Context(), []netip.AddrPort{silent.addr, good.addr}, "www.test", false))
	}
	if got := len(silent.queries()); got != 1 {
		t.Errorf("the silent server was asked %d times", got)
	}
}

func TestNoSuchNameIsFinal(t *testing.T) {
	first, second := serve(t, zone("other.test. 60 IN A 192.0.2.1")), serve(t, zone(record))
	out := ask(t, false, first.addr, second.addr)
	if out.err != ErrNotFound || out.ttl != 20*time.Second || len(second.queries()) > 0 {
		t.Errorf("%+v, second server asked %v", out, second.queries())
	}
}

func TestOpenChainIsFollowed(t *testing.T) {
	// An authoritative server of one zone knows the alias only.
	step := func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg).SetReply(q)
		name := q.Question[0].Name
		switch {
		case name == "www.test.":
			m.Answer = []dns.RR{mustRR("www.test. 60 IN CNAME n1.test."), mustRR("n4.test. 60 IN A 192.0.2.66")}
		case name < "n4.test.":
			m.Answer = []dns.RR{mustRR(fmt.Sprintf("%s 50 IN CNAME n%c.test.", name, name[1]+1))}
		default:
			m.Answer = []dns.RR{mustRR(name + " 70 IN A 192.0.2.1")}
		}
		w.WriteMsg(m)
	}
	s := serve(t, step)
	out := ask(t, false, s.addr)
	isGood(t, out)
	if out.ttl != 50*time.Second || len(s.queries()) != 5 {
		t.Errorf("ttl %s after %v", out.ttl, s.queries())
	}
	s.set(func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg).SetReply(q)
		m.Answer = []dns.RR{mustRR(q.Question[0].Name + " 60 IN CNAME x" + q.Question[0].Name)}
		w.WriteMsg(m)
	})
	before := len(s.queries())
	if out := ask(t, false, s.addr); out.err != ErrServer || len(s.queries())-before != 1+maxFollow {
		t.Errorf("endless chain: %+v after %d queries", out, len(s.queries())-before)
	}
}

// TestHopsCountOverAllQueries: no answer is long by itself.
func TestHopsCountOverAllQueries(t *testing.T) {
	hops := func(each int) func(w dns.ResponseWriter, q *dns.Msg) {
		return func(w dns.ResponseWriter, q *dns.Msg) {
			m := new(dns.Msg).SetReply(q)
			at := q.Question[0].Name
			for range each {
				m.Answer = append(m.Answer, mustRR(at+" 60 IN CNAME x"+at))
				at = "x" + at
			}
			if strings.HasPrefix(at, strings.Repeat("x", 4*each)) {
				m.Answer = append(m.Answer, mustRR(at+" 60 IN A 192.0.2.1"))
			}
			w.WriteMsg(m)
		}
	}
	s := serve(t, hops(3))
	if out := ask(t, false, s.addr); out.err != ErrServer {
		t.Errorf("twelve hops: %+v", out)
	}
	s.set(hops(2))
	isGood(t, ask(t, false, s.addr))
}

// TestMerge: only two denials are a denial, in whatever order they come.
func TestMerge(t *testing.T) {
	good := outcome{addrs: addrs("8.0.0.1"), ttl: time.Minute}
	six := outcome{addrs: addrs("2606::1"), ttl: 20 * time.Second}
	none := outcome{err: ErrNotFound, ttl: 10 * time.Second}
	dead := outcome{err: ErrTimeout}
	for _, tt := range []struct{ a, b, want outcome }{
		{good, six, outcome{addrs: addrs("2606::1", "8.0.0.1"), ttl: 20 * time.Second}},
		{good, none, good},
		{good, dead, outcome{addrs: addrs("8.0.0.1"), ttl: leaseFloor}},
		{none, none, none},
		{none, dead, dead},
		{dead, dead, dead},
	} {
		for _, got := range []outcome{merge(tt.a, tt.b), merge(tt.b, tt.a)} {
			if words(got.addrs) != words(tt.want.addrs) || got.ttl != tt.want.ttl || got.err != tt.want.err {
				t.Errorf("%v and %v: %v, want %v", tt.a, tt.b, got, tt.want)
			}
		}
	}
}

// TestAliasWithoutAddressOfAFamily: the SOA record says that the chain is at its end.
func TestAliasWithoutAddressOfAFamily(t *testing.T) {
	s := serve(t, zone("www.test. 60 IN CNAME n1.test.", "n1.test. 60 IN A 192.0.2.1"))
	isGood(t, ask(t, true, s.addr))
	if got := s.queries(); len(got) != 2 {
		t.Errorf("asked %v", got)
	}
}

func TestBothFamilies(t *testing.T) {
	s := serve(t, zone(record, "www.test. 20 IN AAAA 2001:db8::1"))
	out := ask(t, true, s.addr)
	sameAddrs(t, out.addrs, "2001:db8::1", "192.0.2.1")
	if out.ttl != 20*time.Second {
		t.Errorf("ttl %s", out.ttl)
	}
	if out := ask(t, false, s.addr); len(out.addrs) != 1 {
		t.Errorf("without IPv6: %v", out.addrs)
	}
	for _, q := range s.queries()[2:] {
		if strings.HasPrefix(q, "AAAA") {
			t.Errorf("asked %s without IPv6", q)
		}
	}
}

// TestOneFamilyIsEnough: a server that is silent about the other does not hold the lookup up to its end, nor
// is it taken for an answer.
func TestOneFamilyIsEnough(t *testing.T) {
	four := zone(record)
	s := serve(t, func(w dns.ResponseWriter, q *dns.Msg) {
		if q.Question[0].Qtype == dns.TypeA {
			four(w, q)
		}
	})
	a := newAsker()
	start := time.Now()
	out := a.lookup(t.Context(), []netip.AddrPort{s.addr}, "www.test", true)
	isGood(t, out)
	if out.ttl > leaseFloor || time.Since(start) > totalTimeout/2 {
		t.Errorf("ttl %s after %s", out.ttl, time.Since(start))
	}
	six := zone("www.test. 60 IN TXT x")
	s.set(func(w dns.ResponseWriter, q *dns.Msg) {
		if q.Question[0].Qtype == dns.TypeAAAA {
			six(w, q)
		} else {
			rcode(dns.RcodeServerFailure)(w, q)
		}
	})
	if out := ask(t, true, s.addr); out.err != ErrServer {
		t.Errorf("no AAAA, and A failed: %+v", out)
	}
}

func TestLookupEndsWithItsContext(t *testing.T) {
	s := serve(t, nil)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan outcome)
	go func() { done <- newAsker().lookup(ctx, []netip.AddrPort{s.addr}, "www.test", true) }()
	eventually(t, "two queries", func() bool { return len(s.queries()) == 2 })
	cancel()
	if out := <-done; out.err != ErrTimeout {
		t.Errorf("%+v", out)
	}
}

func TestQueriesAreBounded(t *testing.T) {
	release := make(chan struct{})
	s := serve(t, func(w dns.ResponseWriter, q *dns.Msg) {
		<-release
		w.WriteMsg(answerOf(q, record))
	})
	a := newAsker()
	done := make(chan outcome)
	for range 3 * inFlight {
		go func() { done <- a.lookup(t.Context(), []netip.AddrPort{s.addr}, "www.test", false) }()
	}
	eventually(t, "all slots in use", func() bool { return len(s.queries()) == inFlight })
	time.Sleep(50 * time.Millisecond)
	if got := len(s.queries()); got != inFlight {
		t.Errorf("%d queries in flight", got)
	}
	close(release)
	for range 3 * inFlight {
		isGood(t, <-done)
	}
}

func TestNoServerIsAClearFailure(t *testing.T) {
	out := ask(t, false)
	if out.err != ErrServer || !strings.Contains(out.msg, "dns.servers") {
		t.Errorf("%+v", out)
	}
}

func TestPanicInTheReaderIsAFailure(t *testing.T) {
	if r, err := guarded(func() (reply, error) { return reply{hops: 1}, nil }); err != nil || r.hops != 1 {
		t.Fatalf("control: %+v, %v", r, err)
	}
	r, err := guarded(func() (reply, error) { panic("out of range") })
	if err != errPanic || len(r.addrs) > 0 {
		t.Errorf("%+v, %v", r, err)
	}
	if out := failed(err); out.result != ResultPanic || out.err != ErrServer {
		t.Errorf("%+v", out)
	}
}
