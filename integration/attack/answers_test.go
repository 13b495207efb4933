package attack

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"exitgate/integration/prober"
	"exitgate/integration/rig"

	"github.com/miekg/dns"
)

// lie is what a name server says about an allowed name.
type lie struct {
	name    string
	records []string                // HOST stands for the name
	answer  func(*scene) rig.Answer // instead of records
	want    string                  // what a tunnel to the name gets
}

const cannot = "403|502|504"

func lies() []lie {
	var all []lie
	for name, address := range map[string]string{
		"loopback": "127.0.0.1", "loopback, other": "127.9.9.9", "RFC 1918, 10/8": "10.1.2.3", "RFC 1918, 172.16/12": "172.16.5.4", "RFC 1918, 192.168/16": "192.168.0.9", "CGNAT": "100.64.3.2",
		"metadata": "169.254.169.254", "Azure's wire server": "168.63.129.16", "Alibaba's metadata": "100.100.100.200", "this network": "0.0.0.0", "multicast": "224.0.0.1", "broadcast": "255.255.255.255", "reserved": "240.0.0.1",
		"documentation": "192.0.2.7", "benchmarking": "198.18.0.1",
	} {
		all = append(all, lie{name: name, records: []string{"HOST 60 IN A " + address}, want: cannot})
	}
	for name, address := range map[string]string{
		"::1": "::1", "unspecified": "::", "mapped loopback": "::ffff:127.0.0.1", "mapped metadata": "::ffff:169.254.169.254", "compatible": "::10.0.0.1", "NAT64 of metadata": "64:ff9b::a9fe:a9fe", "local NAT64": "64:ff9b:1::a00:1",
		"6to4 of a private address": "2002:a00:1::1", "Teredo": "2001::1", "unique local": "fd00:ec2::254", "link-local": "fe80::1", "multicast, IPv6": "ff02::1", "documentation, IPv6": "2001:db8::1", "discard": "100::1",
	} {
		all = append(all, lie{name: name, records: []string{"HOST 60 IN AAAA " + address}, want: cannot})
	}
	return append(all,
		lie{name: "the box's own address", answer: func(s *scene) rig.Answer { return address(s.fenced.Wire.Box4().String()) }, want: cannot},
		lie{name: "another owner's record", records: []string{"other.example.com. 60 IN A 45.99.99.99"}, want: cannot},
		lie{name: "CNAME loop", records: []string{"HOST 60 IN CNAME a.HOST", "a.HOST 60 IN CNAME HOST"}, want: cannot},
		lie{name: "CNAME and a foreign address", records: []string{"HOST 60 IN CNAME b.HOST", "c.HOST 60 IN A 45.99.99.99"}, want: cannot},
		lie{name: "no answers", records: []string{}, want: cannot},
		lie{name: "NXDOMAIN", answer: func(*scene) rig.Answer { return code(dns.RcodeNameError) }, want: cannot},
		lie{name: "SERVFAIL", answer: func(*scene) rig.Answer { return code(dns.RcodeServerFailure) }, want: cannot},
		lie{name: "REFUSED", answer: func(*scene) rig.Answer { return code(dns.RcodeRefused) }, want: cannot},
		lie{name: "truncated for ever", answer: func(*scene) rig.Answer {
			return func(_ dns.Question, m *dns.Msg) bool { m.Truncated = true; return true }
		}, want: cannot},
		lie{name: "another class", answer: func(s *scene) rig.Answer {
			return func(q dns.Question, m *dns.Msg) bool {
				m.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: q.Name, Rrtype: dns.TypeA, Class: dns.ClassCHAOS, Ttl: 60}, A: s.files.Addr4.AsSlice()}}
				return true
			}
		}, want: cannot},
		lie{name: "private beside public", answer: func(s *scene) rig.Answer { return address("10.0.0.1", s.files.Addr4.String()) }, want: "200"},
		lie{name: "500 records and duplicates", answer: func(s *scene) rig.Answer {
			many := []string{s.files.Addr4.String(), s.files.Addr4.String()}
			for i := range 500 {
				many = append(many, fmt.Sprintf("10.7.%d.%d", i/250, i%250))
			}
			return address(many...)
		}, want: "200"},
		lie{name: "TTL 0", answer: func(s *scene) rig.Answer { return ttl(0, s.files.Addr4.String()) }, want: "200"},
		lie{name: "TTL 2^31", answer: func(s *scene) rig.Answer { return ttl(1<<31, s.files.Addr4.String()) }, want: "200"},
		lie{name: "CNAME to a denied name, which gives an address", answer: func(s *scene) rig.Answer {
			return func(q dns.Question, m *dns.Msg) bool {
				to := "denied.attacker.example."
				m.Answer = []dns.RR{&dns.CNAME{Hdr: dns.RR_Header{Name: q.Name, Rrtype: dns.TypeCNAME, Class: dns.ClassINET, Ttl: 60}, Target: to}}
				if q.Qtype == dns.TypeA {
					m.Answer = append(m.Answer, &dns.A{Hdr: dns.RR_Header{Name: to, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 60}, A: s.files.Addr4.AsSlice()})
				}
				return true
			}
		}, want: "200"}, // the chain is followed; the denied name itself stays denied: the row of CONNECT in the proxy's table
	)
}

func code(n int) rig.Answer {
	return func(_ dns.Question, m *dns.Msg) bool { m.Rcode = n; return true }
}

func address(addrs ...string) rig.Answer { return ttl(60, addrs...) }

func ttl(seconds uint32, addrs ...string) rig.Answer {
	return func(q dns.Question, m *dns.Msg) bool {
		for _, a := range addrs {
			if rr, err := dns.NewRR(fmt.Sprintf("%s IN A %s", q.Name, a)); err == nil && q.Qtype == dns.TypeA {
				rr.Header().Ttl = seconds
				m.Answer = append(m.Answer, rr)
			}
		}
		return true
	}
}

// TestAnswers has a name server lie about names that the policy allows. The control of each is a name of the same pattern with an honest answer.
func TestAnswers(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	s.w.DNS.SetAnswer("honest.wild.example.com", address(s.files.Addr4.String()))
	connect := func(host string) string {
		p := prober.Probe{Op: "connect", Address: listener, Tunnel: host + ":443", Timeout: patience}
		return seen(p, s.fenced.agents["agent"].Do(p))
	}
	if got := connect("honest.wild.example.com"); got != "200" {
		t.Fatalf("control: an honest answer: %s", got)
	}
	for i, l := range lies() {
		host := fmt.Sprintf("l%d.wild.example.com", i)
		if l.answer != nil {
			s.w.DNS.SetAnswer(host, l.answer(s))
		} else {
			var records []string
			for _, r := range l.records {
				records = append(records, strings.ReplaceAll(r, "HOST", host+"."))
			}
			if err := s.w.DNS.SetRecords(host, records...); err != nil {
				t.Fatal(err)
			}
		}
		judge(t, row{"resolution", l.name, "agent", l.want, connect(host), "an honest answer under the same wildcard: 200"})
	}
	s.w.DNS.SetSilent("silent.wild.example.com")
	began := time.Now()
	judge(t, row{"resolution", "no reply at all", "agent", cannot, connect("silent.wild.example.com"), fmt.Sprintf("as above; it took %s", time.Since(began).Round(time.Millisecond))})
	s.oracle(t, "lying name servers", s.fenced)
}
