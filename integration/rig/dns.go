package rig

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// DNS is the world's name server, over UDP and TCP, IPv4 and IPv6. What it answers can change at any time; what it was asked is counted.
type DNS struct {
	Addr4, Addr6 netip.Addr // port 53

	servers []*dns.Server
	mu      sync.Mutex // guards following
	answers map[string]Answer
	asked   map[string]int
	others  Answer // for names without an answer of their own; nil: they do not exist
	silent  bool
}

// Answer writes the reply to one question into m; false: no reply at all.
type Answer func(q dns.Question, m *dns.Msg) bool

func newDNS(v4, v6 netip.Addr) (*DNS, error) {
	d := &DNS{Addr4: v4, Addr6: v6, answers: map[string]Answer{}, asked: map[string]int{}}
	for _, a := range []netip.Addr{v4, v6} {
		at := netip.AddrPortFrom(a, 53)
		pc, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
		if err != nil {
			return nil, err
		}
		l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(at))
		if err != nil {
			return nil, err
		}
		d.servers = append(d.servers, &dns.Server{PacketConn: pc, Handler: d}, &dns.Server{Listener: l, Handler: d})
	}
	var up sync.WaitGroup
	for _, s := range d.servers {
		up.Add(1)
		s.NotifyStartedFunc = up.Done
		go s.ActivateAndServe()
	}
	up.Wait()
	return d, nil
}

func (d *DNS) close() error {
	for _, s := range d.servers {
		s.Shutdown()
	}
	return nil
}

func fqdn(name string) string { return dns.Fqdn(strings.ToLower(name)) }

// Set makes name resolve to addrs; none: the name exists and has no address.
func (d *DNS) Set(name string, ttl time.Duration, addrs ...netip.Addr) {
	d.SetAnswer(name, addresses(ttl, addrs))
}

func addresses(ttl time.Duration, addrs []netip.Addr) Answer {
	return func(q dns.Question, m *dns.Msg) bool {
		for _, a := range addrs {
			if rr := addressRecord(q.Name, ttl, a); rr.Header().Rrtype == q.Qtype {
				m.Answer = append(m.Answer, rr)
			}
		}
		return true
	}
}

// SetOthers makes every name without an answer of its own resolve to addrs: an outside in which all names exist.
func (d *DNS) SetOthers(ttl time.Duration, addrs ...netip.Addr) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.others = addresses(ttl, addrs)
}

func addressRecord(owner string, ttl time.Duration, a netip.Addr) dns.RR {
	h := dns.RR_Header{Name: owner, Class: dns.ClassINET, Ttl: uint32(ttl / time.Second)}
	if a.Is4() {
		h.Rrtype = dns.TypeA
		return &dns.A{Hdr: h, A: a.AsSlice()}
	}
	h.Rrtype = dns.TypeAAAA
	return &dns.AAAA{Hdr: h, AAAA: a.AsSlice()}
}

// SetRecords makes every question for name be answered by exactly these records in zone file form, whatever their owners and types.
func (d *DNS) SetRecords(name string, records ...string) error {
	var rrs []dns.RR
	for _, r := range records {
		rr, err := dns.NewRR(r)
		if err != nil {
			return fmt.Errorf("record %q: %w", r, err)
		}
		rrs = append(rrs, rr)
	}
	d.SetAnswer(name, func(_ dns.Question, m *dns.Msg) bool {
		m.Answer = rrs
		return true
	})
	return nil
}

// SetCode makes name fail with a response code, such as dns.RcodeServerFailure.
func (d *DNS) SetCode(name string, code int) {
	d.SetAnswer(name, func(_ dns.Question, m *dns.Msg) bool {
		m.Rcode = code
		return true
	})
}

// SetSilent makes name be asked in vain.
func (d *DNS) SetSilent(name string) {
	d.SetAnswer(name, func(dns.Question, *dns.Msg) bool { return false })
}

// SetAnswer gives name's questions to f; nil: the name does not exist.
func (d *DNS) SetAnswer(name string, f Answer) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if f == nil {
		delete(d.answers, fqdn(name))
		return
	}
	d.answers[fqdn(name)] = f
}

// Down makes the server answer nothing at all, and up again.
func (d *DNS) Down(down bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.silent = down
}

// Count is how many questions about name arrived.
func (d *DNS) Count(name string) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.asked[fqdn(name)]
}

// Asked lists how often each name was asked for.
func (d *DNS) Asked() map[string]int {
	d.mu.Lock()
	defer d.mu.Unlock()
	all := make(map[string]int, len(d.asked))
	for name, n := range d.asked {
		all[strings.TrimSuffix(name, ".")] = n
	}
	return all
}

// ServeDNS answers one message.
func (d *DNS) ServeDNS(rw dns.ResponseWriter, req *dns.Msg) {
	if len(req.Question) != 1 {
		return
	}
	q := req.Question[0]
	d.mu.Lock()
	d.asked[fqdn(q.Name)]++
	answer, silent := d.answers[fqdn(q.Name)], d.silent
	if answer == nil {
		answer = d.others
	}
	d.mu.Unlock()
	m := new(dns.Msg).SetReply(req)
	switch {
	case silent:
		return
	case answer == nil:
		m.Rcode = dns.RcodeNameError
		m.Ns = []dns.RR{&dns.SOA{Hdr: dns.RR_Header{Name: ".", Rrtype: dns.TypeSOA, Class: dns.ClassINET, Ttl: 5}, Ns: "ns.", Mbox: "mbox.", Minttl: 5}}
	case !answer(q, m):
		return
	}
	if _, udp := rw.RemoteAddr().(*net.UDPAddr); udp {
		size := dns.MinMsgSize
		if opt := req.IsEdns0(); opt != nil {
			size = int(opt.UDPSize())
			m.SetEdns0(opt.UDPSize(), false)
		}
		m.Truncate(size)
	}
	rw.WriteMsg(m)
}
