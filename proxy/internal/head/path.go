package head

import (
	"strings"
	"unicode/utf8"
)

// CheckPath refuses an escaped path, without its query, that a server behind the
// proxy might read otherwise than it stands here. It is never normalised: what was
// decided upon is what is sent. Refused are, besides bytes that RFC 3986 has
// escaped in a path: a path that does not begin with a slash; the segments "", "."
// and ".." (an empty last one, after a closing slash, is fine); semicolons and
// backslashes; the escapes of slash, dot, backslash, semicolon, question mark and
// number sign and of control bytes; escapes whose decoding holds an escape; and escapes that are not UTF-8, so
// overlong forms too. The error is an *Error with status 400.
//
// An npm scope therefore goes by "@scope/name", not "@scope%2fname".
func CheckPath(escaped string) error {
	if escaped == "" || escaped[0] != '/' {
		return bad("path does not begin with a slash")
	}
	if strings.IndexByte(escaped, '%') >= 0 {
		if err := checkEscapes(escaped); err != nil {
			return err
		}
	}
	for i := 0; i < len(escaped); i++ {
		if !isPath.has(escaped[i]) {
			return bad("byte in the path that is ambiguous or has to be escaped")
		}
	}
	for rest := escaped[1:]; rest != ""; {
		var segment string
		var more bool
		segment, rest, more = strings.Cut(rest, "/")
		if segment == "." || segment == ".." || segment == "" && more {
			return bad("empty or dot segment in the path")
		}
	}
	return nil
}

func checkEscapes(path string) error {
	var decoded []byte
	for i := 0; i < len(path); i++ {
		c := path[i]
		if c == '%' {
			if len(path) < i+3 || !isHex.has(path[i+1]) || !isHex.has(path[i+2]) {
				return bad("percent sign in the path without two hex digits")
			}
			c = unhex(path[i+1])<<4 | unhex(path[i+2])
			i += 2
			if ambiguous(c) {
				return bad("ambiguous escape in the path")
			}
		}
		decoded = append(decoded, c)
	}
	if !utf8.Valid(decoded) {
		return bad("escapes in the path that are not utf-8")
	}
	for i := 0; i+2 < len(decoded); i++ {
		if decoded[i] == '%' && isHex.has(decoded[i+1]) && isHex.has(decoded[i+2]) {
			return bad("escaped escape in the path")
		}
	}
	return nil
}

// ambiguous reports whether the escape of c may end or change the path in the eyes
// of a server that decodes first and splits afterwards.
func ambiguous(c byte) bool {
	switch c {
	case '/', '.', '\\', ';', '?', '#':
		return true
	}
	return c < 0x20 || c == 0x7f
}

func unhex(c byte) byte {
	if c <= '9' {
		return c - '0'
	}
	return c&^0x20 - 'A' + 10
}
