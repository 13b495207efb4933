package policy

import (
	"fmt"
	"strings"
	"unicode/utf8"
)

// pathFault says why an escaped request path has more than one reading, or "".
// Such a path is refused and never normalised: what the rules judged would not
// be what the upstream acts on. It allocates nothing.
func pathFault(p string) string {
	if p == "" || p[0] != '/' {
		return "does not start with a slash"
	}
	for i := 1; i < len(p); i++ {
		switch c := p[i]; {
		case c == '/' && p[i-1] == '/':
			return "has an empty segment (//)"
		case c == '%':
			if why := escapeFault(p[i:]); why != "" {
				return why
			}
			i += 2
		case c == '\\':
			return "has a backslash"
		case c == ';':
			return "has a semicolon, which some servers cut at"
		case c == '#' || c == '?':
			return "has a raw # or ?"
		case c <= ' ' || c >= 0x7f:
			return "has a raw space, control or non-ASCII byte"
		case delimiters[c]:
			return "has one of \"<>[]^`{|} raw"
		case c == '.' && p[i-1] == '/' && dotSegment(p[i:]):
			return "has a dot segment"
		}
	}
	if !validUTF8(p) {
		return "has escapes that are not UTF-8"
	}
	return ""
}

// delimiters stand in no path as they are (RFC 3986 section 3.3).
var delimiters = [256]bool{'"': true, '<': true, '>': true, '[': true, ']': true, '^': true, '`': true, '{': true, '|': true, '}': true}

// dotSegment says that rest begins with a segment "." or "..".
func dotSegment(rest string) bool {
	rest = strings.TrimPrefix(rest[1:], ".")
	return rest == "" || rest[0] == '/'
}

// escapeFault judges the escape that s begins with. What it refuses changes
// where a path is cut, once some server on the way has decoded it.
func escapeFault(s string) string {
	c, ok := unescape(s)
	switch {
	case !ok:
		return "has a broken percent escape"
	case c == '/':
		return "has an encoded slash"
	case c == '\\':
		return "has an encoded backslash"
	case c == '.':
		return "has an encoded dot"
	case c == ';':
		return "has an encoded semicolon"
	case c == '#' || c == '?':
		return "has an encoded # or ?"
	case c == '%':
		return "has an encoded percent sign, which may be decoded twice"
	case c < ' ' || c == 0x7f:
		return "has an encoded control byte"
	}
	return ""
}

// unescape decodes the %XX that s begins with.
func unescape(s string) (byte, bool) {
	if len(s) < 3 || s[0] != '%' {
		return 0, false
	}
	hi, lo := unhex(s[1]), unhex(s[2])
	return hi<<4 | lo, hi < 16 && lo < 16
}

func unhex(c byte) byte {
	switch {
	case '0' <= c && c <= '9':
		return c - '0'
	case 'a' <= c && c <= 'f':
		return c - 'a' + 10
	case 'A' <= c && c <= 'F':
		return c - 'A' + 10
	}
	return 0xff
}

// validUTF8 says that an escaped text, decoded, is UTF-8: overlong forms of a
// slash or a dot are not.
func validUTF8(s string) bool {
	var buf [utf8.UTFMax]byte
	n := 0
	for i := 0; i < len(s); i++ {
		c := s[i]
		if c == '%' {
			c, _ = unescape(s[i:])
			i += 2
		}
		if c < utf8.RuneSelf {
			if n > 0 {
				return false
			}
			continue
		}
		buf[n] = c
		n++
		if r, size := utf8.DecodeRune(buf[:n]); r != utf8.RuneError && size == n {
			n = 0
		} else if n == utf8.UTFMax || utf8.FullRune(buf[:n]) {
			return false
		}
	}
	return n == 0
}

// equalEscaped says that the escaped text, decoded, is plain. It allocates nothing.
func equalEscaped(escaped, plain string) bool {
	i := 0
	for j := 0; j < len(plain); j++ {
		if i >= len(escaped) {
			return false
		}
		c := escaped[i]
		if c == '%' {
			d, ok := unescape(escaped[i:])
			if !ok {
				return false
			}
			c = d
			i += 2
		}
		if c != plain[j] {
			return false
		}
		i++
	}
	return i == len(escaped)
}

// decodeEscapes decodes every escape of s; false where one is broken.
func decodeEscapes(s string) (string, bool) {
	if strings.IndexByte(s, '%') < 0 {
		return s, true
	}
	b := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		c := s[i]
		if c == '%' {
			d, ok := unescape(s[i:])
			if !ok {
				return "", false
			}
			c = d
			i += 2
		}
		b = append(b, c)
	}
	return string(b), true
}

// What stays as it is in the one spelling of a path segment and of a query
// value: RFC 3986 pchar, less what has a meaning in a pattern.
const (
	pathBytes  = "-._~!$'(),:@=&+"
	queryBytes = "-._~!$'(),:@/"
)

// escapeText writes a decoded text so that equal texts have one spelling.
func escapeText(s, stay string) string {
	var b strings.Builder
	for i := range len(s) {
		c := s[i]
		if 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte(stay, c) >= 0 {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}

// escapeNonASCII lets a pattern hold é as well as %C3%A9.
func escapeNonASCII(s string) string {
	var b strings.Builder
	for i := range len(s) {
		if c := s[i]; c >= utf8.RuneSelf {
			fmt.Fprintf(&b, "%%%02X", c)
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
}
