package resolver

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

const (
	maxHops    = 10   // CNAMEs from the question to an address, over all its queries
	maxRecords = 1024 // answer records looked at
	udpSize    = 1232 // EDNS0 payload: no fragments on any path that carries IPv6
	maxTTL     = 1<<31 - 1
)

var (
	errMismatch  = errors.New("a message that is not the answer to the question")
	errMalformed = errors.New("an answer that makes no sense")
	errChain     = errors.New("an alias chain that is too long or a loop")
	errPanic     = errors.New("an answer that the parser could not take")
)

// question is what one exchange asks. Its name is absolute.
type question struct {
	name  dnsmessage.Name
	qtype dnsmessage.Type
}

// reply is what one answer says: addresses found along the chain of aliases from the question, and where the
// chain ends.
type reply struct {
	rcode     dnsmessage.RCode
	truncated bool
	addrs     []netip.Addr // at most maxAddrs, each once
	ttl       uint32       // the lowest of the records accepted, in seconds
	end       dnsmessage.Name
	hops      int
	soa       bool   // the server says itself that there is no more
	negative  uint32 // how long it may be believed, in seconds (RFC 2308 section 5)
}

// pack builds a query with recursion desired.
func (q question) pack(id uint16, edns bool) ([]byte, error) {
	b := dnsmessage.NewBuilder(make([]byte, 0, 512), dnsmessage.Header{ID: id, RecursionDesired: true})
	b.EnableCompression()
	err := errors.Join(b.StartQuestions(), b.Question(dnsmessage.Question{Name: q.name, Type: q.qtype, Class: dnsmessage.ClassINET}))
	if edns {
		var h dnsmessage.ResourceHeader
		err = errors.Join(err, h.SetEDNS0(udpSize, dnsmessage.RCodeSuccess, false), b.StartAdditionals(), b.OPTResource(h, dnsmessage.OPTResource{}))
	}
	if err != nil {
		return nil, fmt.Errorf("build a query: %w", err)
	}
	return b.Finish()
}

// parse reads an answer to q. errMismatch: it answers something else, and the real answer may still come. Any
// other error is the server's fault.
func (q question) parse(msg []byte, id uint16) (reply, error) {
	return guarded(func() (reply, error) { return q.read(msg, id) })
}

// guarded turns a panic into an error: the parser is not ours, and whatever a message does to it must not end
// the process that keeps the fence.
func guarded(read func() (reply, error)) (r reply, err error) {
	defer func() {
		if recover() != nil {
			r, err = reply{}, errPanic
		}
	}()
	return read()
}

func (q question) read(msg []byte, id uint16) (r reply, err error) {
	var p dnsmessage.Parser
	h, err := p.Start(msg)
	if err != nil || h.ID != id || !h.Response || h.OpCode != 0 {
		return reply{}, errMismatch
	}
	r = reply{rcode: h.RCode, truncated: h.Truncated, end: q.name, ttl: maxTTL}
	switch err := q.echoed(&p); {
	case errors.Is(err, dnsmessage.ErrSectionDone) && refusesEDNS(h.RCode):
		return r, nil // servers from before EDNS return the bare header
	case err != nil:
		return reply{}, errMismatch
	}
	if h.Truncated || h.RCode != dnsmessage.RCodeSuccess && h.RCode != dnsmessage.RCodeNameError {
		return r, nil
	}
	list, complete, err := q.answers(&p)
	if err != nil {
		return reply{}, errMalformed
	}
	if complete {
		r.soa, r.negative = denial(&p)
	}
	err = list.follow(&r) // not in the return: whether r is read before or after is not specified
	return r, err
}

func refusesEDNS(c dnsmessage.RCode) bool {
	return c == dnsmessage.RCodeFormatError || c == dnsmessage.RCodeNotImplemented
}

// echoed checks that the question section is ours, and nothing else.
func (q question) echoed(p *dnsmessage.Parser) error {
	got, err := p.Question()
	if err != nil {
		return err
	}
	if got.Type != q.qtype || got.Class != dnsmessage.ClassINET || key(got.Name) != key(q.name) {
		return errMismatch
	}
	if _, err := p.Question(); !errors.Is(err, dnsmessage.ErrSectionDone) {
		return errMismatch
	}
	return nil
}

// records are the answer's, by owner.
type records struct {
	alias map[string]alias
	addrs []address
}

type alias struct {
	to  dnsmessage.Name
	ttl uint32
}

type address struct {
	owner string
	addr  netip.Addr
	ttl   uint32
}

// answers collects the address and alias records of the question's type and class; complete says that all
// records were seen.
func (q question) answers(p *dnsmessage.Parser) (list records, complete bool, err error) {
	list.alias = map[string]alias{}
	for range maxRecords {
		h, err := p.AnswerHeader()
		if errors.Is(err, dnsmessage.ErrSectionDone) {
			return list, true, nil
		}
		if err == nil {
			err = list.add(p, h, q.qtype)
		}
		if err != nil {
			return list, false, err
		}
	}
	return list, false, nil
}

var addressSize = map[dnsmessage.Type]int{dnsmessage.TypeA: 4, dnsmessage.TypeAAAA: 16}

func (list *records) add(p *dnsmessage.Parser, h dnsmessage.ResourceHeader, qtype dnsmessage.Type) error {
	owner, ttl := key(h.Name), lifetime(h.TTL)
	switch {
	case h.Class != dnsmessage.ClassINET || h.Type != dnsmessage.TypeCNAME && h.Type != qtype:
		return p.SkipAnswer()
	case h.Type == dnsmessage.TypeCNAME:
		r, err := p.CNAMEResource()
		if _, twice := list.alias[owner]; err == nil && !twice {
			list.alias[owner] = alias{r.CNAME, ttl}
		}
		return err
	case int(h.Length) != addressSize[h.Type]:
		return errMalformed // the parser would read on into the next record
	case h.Type == dnsmessage.TypeA:
		r, err := p.AResource()
		list.addrs = append(list.addrs, address{owner, netip.AddrFrom4(r.A), ttl})
		return err
	default:
		r, err := p.AAAAResource()
		list.addrs = append(list.addrs, address{owner, netip.AddrFrom16(r.AAAA), ttl})
		return err
	}
}

// follow walks the aliases from the question and accepts only what is owned by a name on the way.
func (list records) follow(r *reply) error {
	for at := key(r.end); ; r.hops++ {
		list.accept(r, at)
		next, ok := list.alias[at]
		if !ok {
			break
		}
		// A loop is a chain without end, so this ends it too.
		if r.hops == maxHops {
			return errChain
		}
		r.ttl = min(r.ttl, next.ttl)
		r.end, at = next.to, key(next.to)
	}
	return nil
}

func (list records) accept(r *reply, owner string) {
	for _, a := range list.addrs {
		if a.owner != owner {
			continue
		}
		r.ttl = min(r.ttl, a.ttl)
		if len(r.addrs) < maxAddrs && !slices.Contains(r.addrs, a.addr) {
			r.addrs = append(r.addrs, a.addr)
		}
	}
}

// denial finds the SOA record of a negative answer, and how long the answer may be kept.
func denial(p *dnsmessage.Parser) (found bool, ttl uint32) {
	for range maxRecords {
		h, err := p.AuthorityHeader()
		if err != nil {
			return false, 0
		}
		if h.Type != dnsmessage.TypeSOA || h.Class != dnsmessage.ClassINET {
			if p.SkipAuthority() != nil {
				return false, 0
			}
			continue
		}
		soa, err := p.SOAResource()
		return err == nil, min(lifetime(h.TTL), lifetime(soa.MinTTL))
	}
	return false, 0
}

// lifetime is a TTL; one with the high bit set counts as zero (RFC 2181 section 8).
func lifetime(ttl uint32) uint32 {
	if ttl > maxTTL {
		return 0
	}
	return ttl
}

func seconds(ttl uint32) time.Duration { return time.Duration(ttl) * time.Second }

// key is a name for comparison: letters without their case (RFC 1035 section 2.3.3).
func key(n dnsmessage.Name) string {
	b := slices.Clone(n.Data[:n.Length])
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			b[i] = c + 'a' - 'A'
		}
	}
	return string(b)
}
