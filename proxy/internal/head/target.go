package head

import (
	"bytes"
	"net/http"
	"net/netip"
)

// requestLine is what a request line says, as offsets into the head.
type requestLine struct {
	connect   bool // CONNECT, so the target is in authority form
	old       bool // HTTP/1.0, which only a CONNECT may be
	authority span // of an absolute-form or authority-form target; empty otherwise
}

// parse checks a request line without its CRLF. It begins at offset 0 of the head.
func (r *requestLine) parse(line []byte) *Error {
	method, rest, ok := bytes.Cut(line, []byte(" "))
	if !ok || len(method) > 32 || !all(method, isMethod) {
		return bad("method is not a word of upper-case letters")
	}
	target, version, ok := bytes.Cut(rest, []byte(" "))
	if !ok || len(target) == 0 || bytes.IndexByte(version, ' ') >= 0 {
		return bad("request line is not METHOD TARGET HTTP/1.1, with one space each")
	}
	r.connect = string(method) == "CONNECT"
	if err := r.version(version); err != nil {
		return err
	}
	if !all(target, isTarget) {
		return bad("byte in the request target that has to be escaped")
	}
	return r.target(target, len(method)+1)
}

func (r *requestLine) version(v []byte) *Error {
	switch {
	case string(v) == "HTTP/1.1":
		return nil
	case string(v) == "HTTP/1.0" && r.connect:
		r.old = true
		return nil
	case bytes.HasPrefix(v, []byte("HTTP/")):
		return &Error{http.StatusHTTPVersionNotSupported, "http version other than 1.1"}
	}
	return bad("request line is not METHOD TARGET HTTP/1.1, with one space each")
}

// target checks the request target t, which begins at offset at of the head.
func (r *requestLine) target(t []byte, at int) *Error {
	if r.connect {
		r.authority = span{at, at + len(t)}
		if _, port, ok := splitAuthority(t); !ok || len(port) == 0 {
			return bad("target of connect is not HOST:PORT")
		}
		return nil
	}
	path := t
	if t[0] != '/' {
		const scheme = "http://"
		if bytes.HasPrefix(t, []byte("https://")) {
			return bad("absolute target with https; use connect")
		}
		if !bytes.HasPrefix(t, []byte(scheme)) {
			return bad("target is neither a path nor an absolute http url")
		}
		n := bytes.IndexAny(t[len(scheme):], "/?")
		if n < 0 {
			n = len(t) - len(scheme)
		}
		path = t[len(scheme)+n:]
		r.authority = span{at + len(scheme), at + len(scheme) + n}
		if _, _, ok := splitAuthority(t[len(scheme) : len(scheme)+n]); !ok {
			return bad("absolute target without a plain HOST or HOST:PORT")
		}
	}
	path, _, _ = bytes.Cut(path, []byte("?"))
	if !wellEscaped(path) {
		return bad("percent sign in the path without two hex digits")
	}
	return nil
}

// agrees reports whether the Host field names the target's authority. Its port may
// be left out: in absolute form it is then 80, as there, and for CONNECT that of
// the target.
func (r *requestLine) agrees(buf, host []byte) bool {
	if r.authority == (span{}) {
		return true
	}
	name, port, _ := splitAuthority(r.authority.of(buf))
	hostName, hostPort, _ := splitAuthority(host)
	if !bytes.EqualFold(name, hostName) { // both ASCII
		return false
	}
	if r.connect {
		return len(hostPort) == 0 || bytes.Equal(port, hostPort)
	}
	return bytes.Equal(orPort80(port), orPort80(hostPort))
}

func orPort80(port []byte) []byte {
	if len(port) == 0 {
		return []byte("80")
	}
	return port
}

// splitAuthority splits HOST or HOST:PORT. A host is letters, digits, hyphens,
// underscores and dots without an empty label but the last, or an IPv6 address
// without zone in brackets; a port is 1 to 65535 without leading zeros. Whether the
// host is an address in disguise is for the policy's normal form to say.
func splitAuthority(a []byte) (host, port []byte, ok bool) {
	host = a
	colon := bytes.LastIndexByte(a, ':')
	if colon > bytes.LastIndexByte(a, ']') {
		host, port = a[:colon], a[colon+1:]
		if !validPort(port) {
			return nil, nil, false
		}
	}
	return host, port, validHost(host)
}

func validPort(p []byte) bool {
	if len(p) == 0 || len(p) > 5 || p[0] == '0' || !all(p, isDigit) {
		return false
	}
	n := 0
	for _, c := range p {
		n = n*10 + int(c-'0')
	}
	return n <= 65535
}

func validHost(h []byte) bool {
	if len(h) == 0 || len(h) > 255 {
		return false
	}
	if h[0] == '[' {
		if h[len(h)-1] != ']' {
			return false
		}
		addr, err := netip.ParseAddr(string(h[1 : len(h)-1]))
		return err == nil && addr.Is6() && addr.Zone() == ""
	}
	return all(h, isHost) && h[0] != '.' && !bytes.Contains(h, []byte(".."))
}

// wellEscaped reports whether two hex digits follow each percent sign of path.
func wellEscaped(path []byte) bool {
	for {
		n := bytes.IndexByte(path, '%')
		if n < 0 {
			return true
		}
		if len(path) < n+3 || !isHex.has(path[n+1]) || !isHex.has(path[n+2]) {
			return false
		}
		path = path[n+3:]
	}
}
