package resolver

import "errors"

// Sentinels for errors.Is; what is returned is an *Error that wraps one of them.
var (
	ErrNotAllowed = errors.New("not allowed by the policy")
	ErrNotFound   = errors.New("no such name")              // NXDOMAIN, or a name without addresses
	ErrTimeout    = errors.New("no answer in time")         // no server answered, or the caller's context ended
	ErrServer     = errors.New("the DNS servers failed")    // SERVFAIL, REFUSED, answers that make no sense
	ErrAddress    = errors.New("no address may be dialled") // every address is special-purpose, and the policy entry lists none
	ErrLimit      = errors.New("too many names or addresses in use")
	ErrCommit     = errors.New("the kernel refused the addresses")
)

// Kinds of failure, as the proxy's refusals know them.
const (
	KindDenied   = "denied"
	KindNotFound = "nxdomain"
	KindTimeout  = "timeout"
	KindAddress  = "address"
	KindInternal = "internal"
)

// Error says why a name has no address to dial. No part of it quotes bytes that came from a DNS server, so it
// may be shown to anybody.
type Error struct {
	Host string // the name asked for, in normal form; "" if it has none
	Kind string // one of the Kind words
	Msg  string // lower-case, for people; names the mend where there is one
	Err  error  // a sentinel
}

func (e *Error) Error() string {
	if e.Host == "" {
		return e.Msg
	}
	return e.Host + ": " + e.Msg
}

// Unwrap gives the sentinel.
func (e *Error) Unwrap() error { return e.Err }

// fail builds the error for a host; the sentinel decides the kind.
func fail(host string, sentinel error, msg string) *Error {
	e := &Error{Host: host, Kind: KindInternal, Msg: msg, Err: sentinel}
	switch sentinel {
	case ErrNotAllowed:
		e.Kind = KindDenied
	case ErrNotFound:
		e.Kind = KindNotFound
	case ErrTimeout:
		e.Kind = KindTimeout
	case ErrAddress:
		e.Kind = KindAddress
	}
	if msg == "" {
		e.Msg = sentinel.Error()
	}
	return e
}
