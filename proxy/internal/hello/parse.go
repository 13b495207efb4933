package hello

import (
	"net/netip"
	"slices"
	"strings"
)

const (
	extServerName = 0 // RFC 6066 3

	// Browsers send some 20. The bound keeps the search for duplicates short.
	maxExtensions = 128
)

// input is what is left to parse. Each method takes something off its front and
// reports whether it was there.
type input []byte

func (in *input) take(n int) (input, bool) {
	if len(*in) < n {
		return nil, false
	}
	head := (*in)[:n]
	*in = (*in)[n:]
	return head, true
}

func (in *input) uint16() (int, bool) {
	b, ok := in.take(2)
	if !ok {
		return 0, false
	}
	return int(b[0])<<8 | int(b[1]), true
}

// vector8 and vector16 take a vector whose length stands before it in 1 or 2 bytes.
func (in *input) vector8() (input, bool) {
	b, ok := in.take(1)
	if !ok {
		return nil, false
	}
	return in.take(int(b[0]))
}

func (in *input) vector16() (input, bool) {
	n, ok := in.uint16()
	if !ok {
		return nil, false
	}
	return in.take(n)
}

// parse reads a ClientHello message (RFC 8446 4.1.2) without its header.
func parse(msg []byte) (name string, err error) {
	in := input(msg)
	version, ok1 := in.uint16()
	_, ok2 := in.take(32) // random
	session, ok3 := in.vector8()
	suites, ok4 := in.vector16()
	compression, ok5 := in.vector8()
	if !(ok1 && ok2 && ok3 && ok4 && ok5) || version>>8 != 3 || len(session) > 32 ||
		len(suites) == 0 || len(suites)%2 != 0 || len(compression) == 0 {
		return "", ErrMalformed
	}
	if len(in) == 0 {
		return "", ErrNoSNI
	}
	extensions, ok := in.vector16()
	if !ok || len(in) != 0 {
		return "", ErrMalformed
	}
	return parseExtensions(extensions)
}

func parseExtensions(in input) (name string, err error) {
	var seen []int
	for len(in) > 0 {
		kind, ok1 := in.uint16()
		body, ok2 := in.vector16()
		if !ok1 || !ok2 || len(seen) == maxExtensions || slices.Contains(seen, kind) {
			return "", ErrMalformed
		}
		seen = append(seen, kind)
		if kind == extServerName {
			if name, err = parseServerName(body); err != nil {
				return "", err
			}
		}
	}
	if name == "" {
		return "", ErrNoSNI
	}
	return name, nil
}

// parseServerName reads the one host_name that a server_name extension has; other
// types of name were never defined.
func parseServerName(body input) (string, error) {
	list, ok := body.vector16()
	if !ok || len(body) != 0 {
		return "", ErrMalformed
	}
	kind, ok1 := list.take(1)
	name, ok2 := list.vector16()
	if !ok1 || !ok2 || kind[0] != 0 || len(list) != 0 {
		return "", ErrMalformed
	}
	return string(name), checkName(string(name))
}

// checkName accepts DNS names, underscores included, in ASCII (RFC 6066 wants
// A-labels), and nothing that some resolver would take for an address.
func checkName(name string) error {
	if _, err := netip.ParseAddr(name); err == nil || endsInNumber(name) {
		return ErrIPLiteral
	}
	if len(name) > 253 {
		return ErrInvalidName
	}
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || len(label) > 63 || strings.ContainsFunc(label, notInLabel) {
			return ErrInvalidName
		}
	}
	return nil
}

func notInLabel(c rune) bool {
	return !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-' || c == '_')
}

// endsInNumber reports whether the last label is decimal, octal or hex, as in
// 127.1, 2130706433 and 0x7f.0x1, all of which inet_aton takes.
func endsInNumber(name string) bool {
	last := name[strings.LastIndexByte(name, '.')+1:]
	digits := "0123456789"
	if len(last) > 1 && (last[:2] == "0x" || last[:2] == "0X") {
		last, digits = last[2:], "0123456789abcdefABCDEF"
	} else if last == "" {
		return false
	}
	return strings.Trim(last, digits) == ""
}
