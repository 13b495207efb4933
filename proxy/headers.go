package proxy

import (
	"bytes"
	"net/http"
	"net/textproto"
	"slices"
	"strings"

	"exitgate/policy"
)

// clientCredentials are the fields in which a client may have put a credential
// of its own, lower case and with dashes. All are removed on a route: a key that
// the agent brings would carry data out under somebody else's account.
var clientCredentials = []string{
	"authorization", "proxy-authorization", "x-api-key", "x-goog-api-key", "api-key", "cookie", "cookie2",
}

// overrides are fields by which some servers act on another method or path than
// those of the request line, which are the ones that were checked.
var overrides = []string{
	"x-http-method-override", "x-http-method", "x-method-override", "x-original-url", "x-rewrite-url", "x-original-uri",
}

// hopByHop are fields for the next hop only (RFC 9110 7.6.1), canonical.
var hopByHop = []string{
	"Connection", "Proxy-Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization",
	"Te", "Trailer", "Transfer-Encoding", "Upgrade", "Http2-Settings",
}

// fieldKind says why a request's field is not simply passed on.
type fieldKind byte

const (
	fieldPlain      fieldKind = iota
	fieldHop                  // for the next hop only
	fieldCredential           // may hold a credential of the client's
	fieldOverride             // names another method or path
)

// fieldKinds are the fields that are not plain, by their names in lower case with
// dashes.
type fieldKinds map[string]fieldKind

func newFieldKinds(credentials []string) fieldKinds {
	k := fieldKinds{}
	for _, name := range overrides {
		k[normalName(name)] = fieldOverride
	}
	for _, name := range slices.Concat(clientCredentials, credentials) {
		k[normalName(name)] = fieldCredential
	}
	for _, name := range hopByHop {
		if _, ok := k[normalName(name)]; !ok {
			k[normalName(name)] = fieldHop
		}
	}
	return k
}

// of compares without case and with _ as -: CGI and WSGI servers read X_Api_Key as
// X-Api-Key. It does not allocate.
func (k fieldKinds) of(name string) fieldKind {
	var buf [64]byte
	if len(name) > len(buf) {
		return k[normalName(name)]
	}
	for i := range len(name) {
		buf[i] = normal(name[i])
	}
	return k[string(buf[:len(name)])]
}

func normalName(name string) string {
	b := []byte(name)
	for i := range b {
		b[i] = normal(b[i])
	}
	return string(b)
}

func normal(b byte) byte {
	switch {
	case b == '_':
		return '-'
	case 'A' <= b && b <= 'Z':
		return b + 'a' - 'A'
	}
	return b
}

// strip deletes the fields of h that are not plain.
func (k fieldKinds) strip(h http.Header) {
	removeNamed(h)
	for name := range h {
		if k.of(name) != fieldPlain {
			delete(h, name)
		}
	}
}

// checkOverride refuses a request that is another one to some servers.
func (k fieldKinds) checkOverride(h http.Header) *refusal {
	for name := range h {
		if k.of(name) == fieldOverride {
			return denied(name + " would have the upstream act on another method or path than the one that was checked")
		}
	}
	return nil
}

// removeNamed deletes the fields that Connection names. Content-Length and Host are
// framing and authority, which it cannot take away.
func removeNamed(h http.Header) {
	for _, line := range h["Connection"] {
		for name := range strings.SplitSeq(line, ",") {
			name = textproto.CanonicalMIMEHeaderKey(textproto.TrimString(name))
			if name != "" && name != "Content-Length" && name != "Host" {
				delete(h, name)
			}
		}
	}
}

// removeHopByHop deletes the fields for the next hop.
func removeHopByHop(h http.Header) {
	removeNamed(h)
	for name := range h {
		if _, plain := plainNames[name]; !plain && slices.Contains(hopByHop, name) {
			delete(h, name)
		}
	}
}

// listHas reports whether a comma list has token, compared without case.
func listHas(lines []string, token string) bool {
	for _, line := range lines {
		for word := range strings.SplitSeq(line, ",") {
			if strings.EqualFold(textproto.TrimString(word), token) {
				return true
			}
		}
	}
	return false
}

// mergeList puts token into a comma list exactly once: appended to the last line
// where it is absent, its later copies removed where it is repeated. Lines that
// need no change keep their bytes.
func mergeList(h http.Header, name, token string) {
	lines := h[name]
	if len(lines) == 0 {
		h[name] = []string{token}
		return
	}
	switch countToken(lines, token) {
	case 0:
		lines = slices.Clone(lines)
		last := &lines[len(lines)-1]
		if strings.TrimSpace(*last) == "" {
			*last = token
		} else {
			*last += "," + token
		}
		h[name] = lines
	case 1:
	default:
		h[name] = dropRepeats(lines, token)
	}
}

func countToken(lines []string, token string) (n int) {
	for _, line := range lines {
		for word := range strings.SplitSeq(line, ",") {
			if textproto.TrimString(word) == token {
				n++
			}
		}
	}
	return n
}

func dropRepeats(lines []string, token string) (kept []string) {
	seen := false
	for _, line := range lines {
		var words []string
		for word := range strings.SplitSeq(line, ",") {
			if textproto.TrimString(word) == token {
				if seen {
					continue
				}
				seen = true
			}
			words = append(words, word)
		}
		if words != nil {
			kept = append(kept, strings.Join(words, ","))
		}
	}
	return kept
}

// addHeaders merges a route's own request fields, each word once.
func addHeaders(h http.Header, add []policy.Header) {
	for _, a := range add {
		name := textproto.CanonicalMIMEHeaderKey(a.Name)
		for word := range strings.SplitSeq(a.Value, ",") {
			mergeList(h, name, textproto.TrimString(word))
		}
	}
}

// appendFields appends h as field lines. The names are canonical, the values of
// one name in their order.
func appendFields(b []byte, h http.Header) []byte {
	for name, values := range h {
		for _, v := range values {
			b = append(b, name...)
			b = append(b, ": "...)
			b = append(b, v...)
			b = append(b, "\r\n"...)
		}
	}
	return b
}

// fieldsSize is how much appendFields appends.
func fieldsSize(h http.Header) (n int) {
	for name, values := range h {
		for _, v := range values {
			n += len(name) + len(": ") + len(v) + len("\r\n")
		}
	}
	return n
}

// pragmaAdded undoes what http.ReadResponse does to a head with Pragma: no-cache
// and no Cache-Control: it adds the latter. raw is the head as it came, empty where
// it was not all at hand; then it cannot be told, and the field stays.
func pragmaAdded(h http.Header, raw []byte) {
	if h["Pragma"] == nil || len(raw) == 0 || len(h["Cache-Control"]) != 1 {
		return
	}
	if !bytes.Contains(bytes.ToLower(raw), []byte("\ncache-control:")) {
		delete(h, "Cache-Control")
	}
}
