package policy

import (
	"fmt"
	"slices"
	"strings"
)

// Pattern is one line of a route's allow list: METHOD PATH[?key=value&...].
type Pattern struct {
	Method string
	Path   string      // normal form: "/v1/models/*"
	Query  [][2]string // decoded keys and values, sorted by key
	At     Position

	segments []segment
	reason   string // what Decide says when this pattern allows
}

// segment is one part of a path between slashes: a literal text, decoded, or
// `*` (one segment that is not empty) or `**` (any number of segments).
type segment struct {
	text string
	kind segmentKind
}

type segmentKind uint8

const (
	segmentText segmentKind = iota
	segmentOne
	segmentAny
)

// String is the pattern as a policy writes it, in normal form.
func (p *Pattern) String() string {
	s := p.Method + " " + p.Path
	for i, q := range p.Query {
		s += string("?&"[min(i, 1)]) + q[0] + "=" + escapeText(q[1], queryBytes)
	}
	return s
}

// Methods that exist (IANA's registry, and PURGE of caches): to tell a slip
// from a rare method, which is accepted.
var knownMethods = []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "QUERY",
	"ACL", "BASELINE-CONTROL", "BIND", "CHECKIN", "CHECKOUT", "COPY", "LABEL", "LINK", "LOCK", "MERGE", "MKACTIVITY",
	"MKCALENDAR", "MKCOL", "MKREDIRECTREF", "MKWORKSPACE", "MOVE", "ORDERPATCH", "PROPFIND", "PROPPATCH", "PURGE",
	"REBIND", "REPORT", "SEARCH", "UNBIND", "UNCHECKOUT", "UNLINK", "UNLOCK", "UPDATE", "UPDATEREDIRECTREF", "VERSION-CONTROL"}

// checkMethod refuses what is no method, what is nearly one, and the two that
// no rule can grant.
func checkMethod(m string) error {
	for i := range len(m) {
		if c := m[i]; (c < 'A' || c > 'Z') && c != '-' {
			if near := Nearest(m, knownMethods); near != "" {
				return faultf("write "+near, "method %s", quoted(m))
			}
			return faultf("a method is written in capitals, such as GET or POST, and one line has one", "method %s", quoted(m))
		}
	}
	switch {
	case m == "":
		return faultf("write one, such as GET", "no method")
	case m == "CONNECT":
		return faultf("tunnels are granted by `egress:` entries, by host and port", "method CONNECT")
	case m == "TRACE" || m == "TRACK":
		return faultf("remove it: it sends the request back, credential included, and is always refused", "method %s", m)
	case slices.Contains(knownMethods, m):
		return nil
	}
	if near := Nearest(m, knownMethods); near != "" {
		return faultf("did you mean "+near+"?", "method %s", quoted(m))
	}
	return nil
}

// parsePattern reads METHOD PATH[?key=value&...].
func parsePattern(s string) (Pattern, error) {
	method, target, ok := strings.Cut(s, " ")
	if !ok || strings.ContainsAny(target, " \t") || target == "" {
		mend := "write METHOD PATH, such as GET /v1/models"
		if strings.HasPrefix(s, "/") {
			mend = "write the method first, such as GET " + s
		}
		return Pattern{}, faultf(mend, "pattern %s is not a method and a path with one space between", quoted(s))
	}
	if err := checkMethod(method); err != nil {
		return Pattern{}, within("pattern "+quoted(s), err)
	}
	path, query, conditional := strings.Cut(target, "?")
	p := Pattern{Method: method}
	if err := p.parsePath(path); err != nil {
		return Pattern{}, within("pattern "+quoted(s), err)
	}
	if conditional {
		if err := p.parseQuery(query); err != nil {
			return Pattern{}, within("pattern "+quoted(s), err)
		}
	}
	p.reason = "allowed by " + p.String()
	return p, nil
}

// maxPattern bounds what one request can cost to match.
const maxPattern = 4096

func (p *Pattern) parsePath(path string) error {
	if strings.Contains(path, "://") {
		return faultf("write what follows the host, such as /v1/models", "a pattern holds a path, not a URL")
	}
	if strings.ContainsAny(path, `^|[]\`) || strings.HasPrefix(path, "(") || strings.HasSuffix(path, "$") {
		return faultf("write `*` for one segment of a path and `**` for any number, such as /v1/models/*", "a pattern is no regular expression")
	}
	if !strings.HasPrefix(path, "/") {
		return faultf("write /"+path, "the path has no leading slash")
	}
	if why := pathFault(escapeNonASCII(path)); why != "" {
		return faultf("write the plain path", "the path %s, and such requests are always refused", why)
	}
	if len(path) > maxPattern {
		return faultf(fmt.Sprintf("write at most %d, with `**` for the rest", maxPattern), "the path has %d bytes", len(path))
	}
	var normal strings.Builder
	for text := range strings.SplitSeq(path[1:], "/") {
		seg, err := parseSegment(text)
		if err != nil {
			return err
		}
		if n := len(p.segments); seg.kind == segmentAny && n > 0 && p.segments[n-1].kind == segmentAny {
			return faultf("write it once", "`**` follows `**`")
		}
		p.segments = append(p.segments, seg)
		normal.WriteString("/" + seg.String())
	}
	p.Path = normal.String()
	return nil
}

func parseSegment(text string) (segment, error) {
	switch {
	case text == "*":
		return segment{kind: segmentOne}, nil
	case text == "**":
		return segment{kind: segmentAny}, nil
	case strings.Contains(text, "*"):
		return segment{}, faultf("write `*` for one whole segment, `**` for any number of them, or %2A for a literal star", "%s has a star inside a segment", quoted(text))
	}
	plain, _ := decodeEscapes(text)
	return segment{text: plain}, nil
}

func (s segment) String() string {
	switch s.kind {
	case segmentOne:
		return "*"
	case segmentAny:
		return "**"
	}
	return escapeText(s.text, pathBytes)
}

func (p *Pattern) parseQuery(query string) error {
	for pair := range strings.SplitSeq(query, "&") {
		rawKey, rawValue, hasValue := strings.Cut(pair, "=")
		key, okKey := decodeEscapes(rawKey)
		value, okValue := decodeEscapes(rawValue)
		switch {
		case rawKey == "" || !hasValue:
			return faultf("write key=value", "condition %s", quoted(pair))
		case !okKey || !okValue:
			return faultf("write %25 for a percent sign", "condition %s has a broken escape", quoted(pair))
		case strings.ContainsAny(pair, "+;#?"):
			return faultf("write %20 for a space, %2B, %3B, %23 or %3F", "condition %s has one of + ; # ?, which servers read differently", quoted(pair))
		case strings.Trim(key, keyBytes) != "":
			return faultf("a key has letters, digits and - . _ ~ only", "condition %s", quoted(pair))
		case strings.Contains(rawValue, "*"):
			return faultf("leave the key out where its value is free", "condition %s has a star", quoted(pair))
		}
		for _, q := range p.Query {
			if strings.EqualFold(q[0], key) {
				return faultf("a listed key must be in a request once: write one pattern for each value", "condition %s: key %s is there twice", quoted(pair), quoted(key))
			}
		}
		p.Query = append(p.Query, [2]string{key, value})
	}
	slices.SortFunc(p.Query, func(a, b [2]string) int { return strings.Compare(a[0], b[0]) })
	return nil
}

const keyBytes = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~"

// literal says that the pattern's path has no wildcard and that a request's
// path equals Path byte for byte unless it has escapes.
func (p *Pattern) literal() bool {
	for _, s := range p.segments {
		if s.kind != segmentText {
			return false
		}
	}
	return !strings.Contains(p.Path, "%")
}

// matchPath says that an escaped path, which pathFault accepts, is one the
// pattern names. Backtracking to the last `**` only makes it O(path x pattern).
func (p *Pattern) matchPath(path string) bool {
	segs, rest := p.segments, path
	var afterAny []segment // what follows the last `**` met, with the rest it was tried on
	retry, canRetry := "", false
	for {
		if len(segs) > 0 && segs[0].kind == segmentAny {
			segs = segs[1:]
			afterAny, retry, canRetry = segs, rest, true
			continue
		}
		if len(segs) == 0 && rest == "" {
			return true
		}
		if len(segs) > 0 && rest != "" {
			if text, after := cutSegment(rest); segs[0].match(text) {
				segs, rest = segs[1:], after
				continue
			}
		}
		if !canRetry || retry == "" {
			return false
		}
		_, retry = cutSegment(retry)
		segs, rest = afterAny, retry
	}
}

// cutSegment splits "/a/b" into "a" and "/b".
func cutSegment(path string) (text, rest string) {
	if i := strings.IndexByte(path[1:], '/'); i >= 0 {
		return path[1 : i+1], path[i+1:]
	}
	return path[1:], ""
}

func (s segment) match(text string) bool {
	switch s.kind {
	case segmentOne:
		return text != ""
	default:
		return equalEscaped(text, s.text)
	}
}
