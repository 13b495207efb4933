package resolver

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"
	"golang.org/x/net/dns/dnsmessage"
)

const testID = 4711

// reading is what parse made of a message, in short.
func read(t testing.TB, host string, qtype dnsmessage.Type, m *dns.Msg) (reply, error) {
	t.Helper()
	wire, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	q := question{dnsmessage.MustNewName(host), qtype}
	return q.parse(wire, testID)
}

func response(host string, qtype uint16, answers ...string) *dns.Msg {
	m := new(dns.Msg).SetQuestion(host, qtype)
	m.Id, m.Response = testID, true
	for _, a := range answers {
		m.Answer = append(m.Answer, mustRR(a))
	}
	return m
}

func chain(length int, ttl func(i int) int) (records []string) {
	for i := range length {
		records = append(records, fmt.Sprintf("n%d.test. %d IN CNAME n%d.test.", i, ttl(i), i+1))
	}
	return append(records, fmt.Sprintf("n%d.test. %d IN A 192.0.2.1", length, ttl(length)))
}

func TestAnswersCountAlongTheChainOnly(t *testing.T) {
	sixty := func(int) int { return 60 }
	reversed := slices.Clone(chain(5, sixty))
	slices.Reverse(reversed)
	tests := []struct {
		name    string
		records []string
		want    string // addresses
		ttl     uint32
		err     error
	}{
		{"plain", []string{"n0.test. 60 IN A 192.0.2.1", "n0.test. 50 IN A 192.0.2.2"}, "192.0.2.1 192.0.2.2", 50, nil},
		{"another owner", []string{"evil.test. 60 IN A 192.0.2.66"}, "", maxTTL, nil},
		{"another owner beside", []string{"n0.test. 60 IN A 192.0.2.1", "evil.test. 1 IN A 192.0.2.66"}, "192.0.2.1", 60, nil},
		{"owner off the chain", []string{"n0.test. 60 IN CNAME n1.test.", "n2.test. 1 IN A 192.0.2.66", "n1.test. 60 IN A 192.0.2.1"}, "192.0.2.1", 60, nil},
		{"letters of another case", []string{"N0.Test. 60 IN CNAME N1.tesT.", "n1.TEST. 60 IN A 192.0.2.1"}, "192.0.2.1", 60, nil},
		{"out of order", reversed, "192.0.2.1", 60, nil},
		{"another class", []string{"n0.test. 60 CH A 192.0.2.66", "n0.test. 60 IN A 192.0.2.1"}, "192.0.2.1", 60, nil},
		{"another type", []string{"n0.test. 60 IN AAAA 2001:db8::1", "n0.test. 60 IN TXT \"x\"", "n0.test. 60 IN A 192.0.2.1"}, "192.0.2.1", 60, nil},
		{"twice the same", []string{"n0.test. 60 IN A 192.0.2.1", "n0.test. 60 IN A 192.0.2.1"}, "192.0.2.1", 60, nil},
		{"two aliases of one owner", []string{"n0.test. 60 IN CNAME n1.test.", "n0.test. 60 IN CNAME evil.test.", "evil.test. 60 IN A 192.0.2.66", "n1.test. 60 IN A 192.0.2.1"}, "192.0.2.1", 60, nil},
		{"ten hops", chain(10, sixty), "192.0.2.1", 60, nil},
		{"eleven hops", chain(11, sixty), "", 0, errChain},
		{"loop of two", []string{"n0.test. 60 IN CNAME n1.test.", "n1.test. 60 IN CNAME n0.test."}, "", 0, errChain},
		{"alias of itself", []string{"n0.test. 60 IN CNAME n0.test."}, "", 0, errChain},
		{"open chain", []string{"n0.test. 60 IN CNAME n1.test."}, "", 60, nil},
		{"lowest TTL is an alias's", chain(3, func(i int) int { return 300 - 50*i*(3-i) }), "192.0.2.1", 200, nil},
		{"lowest TTL is the address's", chain(3, func(i int) int { return 300 - i }), "192.0.2.1", 297, nil},
		{"TTL 0", []string{"n0.test. 0 IN A 192.0.2.1"}, "192.0.2.1", 0, nil},
		{"largest TTL", []string{"n0.test. 2147483647 IN A 192.0.2.1"}, "192.0.2.1", 1<<31 - 1, nil},
		{"TTL with the high bit", []string{"n0.test. 2147483648 IN A 192.0.2.1"}, "192.0.2.1", 0, nil},
		{"TTL of all ones in the chain", []string{"n0.test. 4294967295 IN CNAME n1.test.", "n1.test. 60 IN A 192.0.2.1"}, "192.0.2.1", 0, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r, err := read(t, "n0.test.", dnsmessage.TypeA, response("n0.test.", dns.TypeA, tt.records...))
			if !errors.Is(err, tt.err) {
				t.Fatalf("error %v, want %v", err, tt.err)
			}
			if got := words(r.addrs); err == nil && (got != tt.want || r.ttl != tt.ttl) {
				t.Errorf("got %q, ttl %d; want %q, ttl %d", got, r.ttl, tt.want, tt.ttl)
			}
		})
	}
}

func words[T fmt.Stringer](list []T) string {
	var s []string
	for _, x := range list {
		s = append(s, x.String())
	}
	return strings.Join(s, " ")
}

func TestOnlyTheAnswerToTheQuestionIsRead(t *testing.T) {
	good := func() *dns.Msg { return response("n0.test.", dns.TypeA, "n0.test. 60 IN A 192.0.2.1") }
	if r, err := read(t, "n0.test.", dnsmessage.TypeA, good()); err != nil || len(r.addrs) != 1 {
		t.Fatalf("control: %v, %v", r, err)
	}
	tests := map[string]func(m *dns.Msg){
		"another ID":          func(m *dns.Msg) { m.Id++ },
		"a query":             func(m *dns.Msg) { m.Response = false },
		"another operation":   func(m *dns.Msg) { m.Opcode = dns.OpcodeNotify },
		"another name":        func(m *dns.Msg) { m.Question[0].Name = "n1.test." },
		"another type":        func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeAAAA },
		"another class":       func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassCHAOS },
		"no question":         func(m *dns.Msg) { m.Question = nil },
		"two questions":       func(m *dns.Msg) { m.Question = append(m.Question, m.Question[0]) },
		"SERVFAIL w/o asking": func(m *dns.Msg) { m.Question, m.Answer, m.Rcode = nil, nil, dns.RcodeServerFailure },
	}
	for name, change := range tests {
		m := good()
		change(m)
		if _, err := read(t, "n0.test.", dnsmessage.TypeA, m); err != errMismatch {
			t.Errorf("%s: error %v, want a mismatch", name, err)
		}
	}
	bare := &dns.Msg{MsgHdr: dns.MsgHdr{Id: testID, Response: true, Rcode: dns.RcodeFormatError}}
	if r, err := read(t, "n0.test.", dnsmessage.TypeA, bare); err != nil || r.rcode != dnsmessage.RCodeFormatError {
		t.Errorf("a bare FORMERR: %v, %v", r, err)
	}
}

func TestNegativeTTLIsTheLowerOfTwo(t *testing.T) {
	for _, tt := range []struct {
		soa  string
		want uint32
	}{
		{"test. 30 IN SOA ns.test. a.test. 1 2 3 4 20", 20},
		{"test. 10 IN SOA ns.test. a.test. 1 2 3 4 20", 10},
		{"test. 3000000000 IN SOA ns.test. a.test. 1 2 3 4 20", 0},
	} {
		m := response("n0.test.", dns.TypeA)
		m.Rcode = dns.RcodeNameError
		m.Ns = []dns.RR{mustRR("test. 5 IN NS ns.test."), mustRR(tt.soa)}
		r, err := read(t, "n0.test.", dnsmessage.TypeA, m)
		if err != nil || !r.soa || r.negative != tt.want {
			t.Errorf("%s: %+v, %v; want %d s", tt.soa, r, err, tt.want)
		}
	}
}

func TestQueryAsksForRecursionAndEDNS(t *testing.T) {
	q := question{dnsmessage.MustNewName("registry.example.com."), dnsmessage.TypeAAAA}
	for _, edns := range []bool{true, false} {
		wire, err := q.pack(testID, edns)
		if err != nil {
			t.Fatal(err)
		}
		var m dns.Msg
		if err := m.Unpack(wire); err != nil {
			t.Fatal(err)
		}
		if m.Id != testID || !m.RecursionDesired || m.Response || len(m.Question) != 1 || m.Question[0] != (dns.Question{Name: "registry.example.com.", Qtype: dns.TypeAAAA, Qclass: dns.ClassINET}) {
			t.Errorf("query %v", &m)
		}
		opt := m.IsEdns0()
		if (opt != nil) != edns || edns && opt.UDPSize() != 1232 {
			t.Errorf("edns %v: %v", edns, opt)
		}
	}
}

func TestManyRecordsAreBounded(t *testing.T) {
	m := response("n0.test.", dns.TypeA)
	for i := range 500 {
		m.Answer = append(m.Answer, mustRR(fmt.Sprintf("n0.test. 60 IN A 192.%d.%d.1", i/256, i%256)))
	}
	r, err := read(t, "n0.test.", dnsmessage.TypeA, m)
	if err != nil || len(r.addrs) != maxAddrs {
		t.Fatalf("%d addresses, %v", len(r.addrs), err)
	}
}

// FuzzParse holds the reader to what it promises of any bytes at all.
func FuzzParse(f *testing.F) {
	for _, m := range []*dns.Msg{
		response("n0.test.", dns.TypeA, chain(3, func(int) int { return 60 })...),
		response("n0.test.", dns.TypeA, "n0.test. 60 IN CNAME n0.test."),
		response("n0.test.", dns.TypeAAAA, "n0.test. 60 IN AAAA 2001:db8::1"),
		response("n0.test.", dns.TypeA, "n0.test. 4294967295 IN A 192.0.2.1", "n0.test. 60 IN TXT \"x\""),
	} {
		m.Compress = true
		m.Ns = []dns.RR{mustRR("test. 30 IN SOA ns.test. a.test. 1 2 3 4 20")}
		wire, err := m.Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(wire)
		f.Add(wire[:len(wire)/2])
	}
	f.Fuzz(func(t *testing.T, wire []byte) {
		if len(wire) >= 2 {
			wire[0], wire[1] = testID>>8, testID&0xff
		}
		for _, qtype := range []dnsmessage.Type{dnsmessage.TypeA, dnsmessage.TypeAAAA} {
			q := question{dnsmessage.MustNewName("n0.test."), qtype}
			r, err := q.parse(wire, testID)
			checkReply(t, q, r, err, wire)
		}
	})
}

func checkReply(t *testing.T, q question, r reply, err error, wire []byte) {
	if err != nil {
		if len(r.addrs) > 0 && !errors.Is(err, errChain) {
			t.Errorf("addresses beside the error %v", err)
		}
		if errors.Is(err, errPanic) {
			t.Errorf("the parser panicked")
		}
		return
	}
	if len(r.addrs) > maxAddrs || r.hops > maxHops || r.ttl > maxTTL || r.negative > maxTTL {
		t.Errorf("out of bounds: %+v", r)
	}
	for i, a := range r.addrs {
		if a.Is4() != (q.qtype == dnsmessage.TypeA) || slices.Contains(r.addrs[:i], a) {
			t.Errorf("%v: address %v", q.qtype, a)
		}
	}
	// An independent reader agrees that the address is there, owned by someone.
	var m dns.Msg
	if len(r.addrs) > 0 && m.Unpack(wire) == nil && !slices.ContainsFunc(m.Answer, func(rr dns.RR) bool { return addrOf(rr) == r.addrs[0] }) {
		t.Errorf("%v is not in the answer", r.addrs[0])
	}
}

func addrOf(rr dns.RR) (a netip.Addr) {
	switch rr := rr.(type) {
	case *dns.A:
		a, _ = netip.AddrFromSlice(rr.A)
	case *dns.AAAA:
		a, _ = netip.AddrFromSlice(rr.AAAA)
	}
	if aaaa, ok := rr.(*dns.AAAA); ok && aaaa != nil {
		return a
	}
	return a.Unmap()
}
