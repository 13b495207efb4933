package resolver

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

const (
	queryTimeout = 2 * time.Second // one leg with one server
	rounds       = 2               // through the list of servers
	totalTimeout = 8 * time.Second // one lookup, all included
	otherFamily  = time.Second     // how long addresses of one family wait for those of the other
	inFlight     = 32              // queries
	maxFollow    = 4               // queries after the first, for the ends of chains
	slowFor      = 30 * time.Second
)

// Result words, the label of exitgate_lookups_total.
const (
	ResultOK       = "ok"
	ResultHosts    = "hosts"    // answered from the hosts file
	ResultNotFound = "nxdomain" // or a name without addresses
	ResultTimeout  = "timeout"
	ResultServer   = "servfail" // or REFUSED, or a broken answer
	ResultPanic    = "panic"    // an answer the parser could not take
	ResultAddress  = "address"  // only special-purpose addresses
)

// outcome is what a lookup gave: addresses, or an error that is one of ErrNotFound, ErrTimeout, ErrServer.
type outcome struct {
	addrs  []netip.Addr
	ttl    time.Duration // of the addresses, or of the negative answer
	err    error
	msg    string // beside err
	result string
}

// asker asks DNS servers. It keeps which of them were silent, to ask those last.
type asker struct {
	slots   chan struct{}
	timeout time.Duration
	mu      sync.Mutex
	silent  map[netip.AddrPort]time.Time // when last
}

func newAsker() *asker {
	return &asker{slots: make(chan struct{}, inFlight), timeout: queryTimeout, silent: map[netip.AddrPort]time.Time{}}
}

// lookup asks for the addresses of an absolute name, both families at once.
func (a *asker) lookup(ctx context.Context, servers []netip.AddrPort, host string, six bool) outcome {
	name, err := dnsmessage.NewName(host + ".")
	if err != nil {
		return outcome{err: ErrNotFound, msg: "the name is too long for DNS", result: ResultNotFound}
	}
	if len(servers) == 0 {
		return outcome{err: ErrServer, msg: "no DNS server is known: /etc/resolv.conf lists none; set dns.servers in the policy", result: ResultServer}
	}
	ctx, cancel := context.WithTimeout(ctx, totalTimeout)
	defer cancel()
	four := make(chan outcome, 1)
	go func() { four <- a.family(ctx, servers, question{name, dnsmessage.TypeA}) }()
	if !six {
		return <-four
	}
	other := make(chan outcome, 1)
	go func() { other <- a.family(ctx, servers, question{name, dnsmessage.TypeAAAA}) }()
	return both(four, other)
}

// both waits for two families, for the second only a while once the first has addresses.
func both(four, six <-chan outcome) outcome {
	var a, b outcome
	var late <-chan outcome
	select {
	case a = <-four:
		late = six
	case a = <-six:
		late = four
	}
	wait := totalTimeout
	if len(a.addrs) > 0 {
		wait = otherFamily
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case b = <-late:
	case <-timer.C:
		b = outcome{err: ErrTimeout, result: ResultTimeout}
	}
	return merge(a, b)
}

// merge joins the outcomes of two families. What one of them has is enough, for a short time if the other
// failed; a name is not there only if both say so.
func merge(a, b outcome) outcome {
	if len(a.addrs) == 0 {
		a, b = b, a
	}
	switch {
	case len(a.addrs) > 0 && b.err == nil:
		a.ttl = min(a.ttl, b.ttl)
		a.addrs = append(a.addrs, b.addrs...)
	case len(a.addrs) > 0 && b.err != ErrNotFound:
		a.ttl = min(a.ttl, leaseFloor)
	case len(a.addrs) == 0 && a.err == ErrNotFound:
		if b.err != ErrNotFound {
			return b
		}
		a.ttl = min(a.ttl, b.ttl)
	}
	// The newer family first, as RFC 8305 has it tried.
	slices.SortStableFunc(a.addrs, func(x, y netip.Addr) int { return y.BitLen() - x.BitLen() })
	a.addrs = a.addrs[:min(len(a.addrs), maxAddrs)]
	return a
}

// family asks for one type, and for the end of the chain if the server left the chain open.
func (a *asker) family(ctx context.Context, servers []netip.AddrPort, q question) outcome {
	ttl, hops := uint32(maxTTL), 0
	for range 1 + maxFollow {
		r, err := a.ask(ctx, servers, q)
		if err != nil {
			return failed(err)
		}
		ttl, hops = min(ttl, r.ttl), hops+r.hops
		switch {
		case hops > maxHops:
			return failed(errChain)
		case len(r.addrs) > 0 && r.rcode == dnsmessage.RCodeSuccess:
			return outcome{addrs: r.addrs, ttl: seconds(ttl), result: ResultOK}
		case r.rcode == dnsmessage.RCodeNameError || r.soa || r.hops == 0:
			return outcome{err: ErrNotFound, msg: missing(r.rcode), ttl: seconds(r.negative), result: ResultNotFound}
		}
		q.name = r.end
	}
	return failed(errChain)
}

func missing(c dnsmessage.RCode) string {
	if c == dnsmessage.RCodeNameError {
		return "the name does not exist (NXDOMAIN)"
	}
	return "the name has no address"
}

// ask goes through the servers until one gives an answer that settles the question.
func (a *asker) ask(ctx context.Context, servers []netip.AddrPort, q question) (reply, error) {
	select {
	case a.slots <- struct{}{}:
		defer func() { <-a.slots }()
	case <-ctx.Done():
		return reply{}, ctx.Err()
	}
	var worst error
	for range rounds {
		for _, server := range a.order(servers) {
			r, err := exchange(ctx, server, q, a.timeout)
			if err == nil && (r.rcode == dnsmessage.RCodeSuccess || r.rcode == dnsmessage.RCodeNameError) {
				return r, nil
			}
			if ctx.Err() != nil {
				return reply{}, worse(worst, ctx.Err())
			}
			a.note(server, err)
			if err == nil {
				err = errRefused
			}
			worst = worse(worst, err)
		}
	}
	return reply{}, worst
}

var errRefused = errors.New("a server refused or failed (SERVFAIL, REFUSED)")

// worse keeps the error that tells more: an answer, if a bad one, over silence.
func worse(old, err error) error {
	if old == nil || timeout(old) {
		return err
	}
	return old
}

func timeout(err error) bool {
	var t net.Error
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) || errors.As(err, &t) && t.Timeout()
}

func failed(err error) outcome {
	switch {
	case timeout(err):
		return outcome{err: ErrTimeout, msg: "no DNS server answered in time", result: ResultTimeout}
	case errors.Is(err, errPanic):
		return outcome{err: ErrServer, msg: errPanic.Error(), result: ResultPanic}
	case errors.Is(err, errChain), errors.Is(err, errMalformed), errors.Is(err, errRefused):
		return outcome{err: ErrServer, msg: "the DNS servers failed: " + err.Error(), result: ResultServer}
	}
	var errno syscall.Errno
	if !errors.As(err, &errno) {
		errno = syscall.EIO
	}
	return outcome{err: ErrServer, msg: "no DNS server can be reached: " + errno.Error(), result: ResultServer}
}

// note remembers who was silent.
func (a *asker) note(server netip.AddrPort, err error) {
	if err == nil || !timeout(err) {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.silent) > 4*maxAsked {
		clear(a.silent) // lists of servers changed often
	}
	a.silent[server] = time.Now()
}

// order puts the servers that were silent lately behind the others: with a dead first server each lookup
// would take its timeout.
func (a *asker) order(servers []netip.AddrPort) []netip.AddrPort {
	a.mu.Lock()
	defer a.mu.Unlock()
	var good, slow []netip.AddrPort
	for _, s := range servers {
		if at, ok := a.silent[s]; ok && time.Since(at) < slowFor {
			slow = append(slow, s)
		} else {
			good = append(good, s)
		}
	}
	return append(good, slow...)
}
