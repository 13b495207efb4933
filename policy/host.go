package policy

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"unicode/utf8"

	"golang.org/x/net/idna"
	"golang.org/x/net/publicsuffix"
)

// Host is a host in normal form: an exact name, every name below one
// (Wildcard), or an IP literal (Addr is valid).
type Host struct {
	Name     string // lower case, A-labels, no trailing dot; for *.example.com "example.com"
	Wildcard bool
	Addr     netip.Addr
}

// String is the host as a policy writes it.
func (h Host) String() string {
	if h.Wildcard {
		return "*." + h.Name
	}
	return h.Name
}

// Limits of a name, RFC 1035 section 2.3.4, without the dots of the root.
const (
	maxName  = 253
	maxLabel = 63
)

// names maps what people write to A-labels as browsers and curl do (UTS #46,
// non-transitional). Hyphens are judged by checkLabel: names such as
// r3---sn-x.example exist, and only xn-- has a meaning in that place.
var names = idna.New(idna.MapForLookup(), idna.Transitional(false), idna.BidiRule(), idna.CheckHyphens(false), idna.StrictDomainName(true), idna.VerifyDNSLength(false))

// ParseHost returns the normal form of a host: lower case, no trailing dot,
// international names as A-labels, and one leading "*." where it is a wildcard.
// What has a second reading is refused, and the error says what to write: IP
// literals in any but their usual form (127.1, 0x7f000001, [::1], ::ffff:1.2.3.4),
// URLs, ports, wildcards on a public suffix.
func ParseHost(s string) (Host, error) {
	if s == "" {
		return Host{}, faultf(nameMend, "host is empty")
	}
	if strings.ContainsAny(s, notInNames) {
		return parseOther(s)
	}
	if base, ok := strings.CutPrefix(s, "*."); ok {
		return parseWildcard(s, base)
	}
	if strings.Contains(s, "*") {
		return Host{}, faultf("a wildcard is one leading `*.`, such as *.example.com", "host %s has a star that is not its first label", quoted(s))
	}
	name, err := normalName(s)
	if err != nil {
		return Host{}, err
	}
	if numeric(lastLabel(name)) {
		return parseIPv4(s, name)
	}
	return Host{Name: name}, nil
}

// parseIPv4 takes the one usual form and names it for all the others that
// inet_aton(3), and so some clients and servers, read as an address too.
func parseIPv4(s, name string) (Host, error) {
	if addr, err := netip.ParseAddr(s); err == nil {
		return literal(s, addr)
	}
	if addr, ok := atoaddr(name); ok {
		return Host{}, faultf("write "+addr.String(), "host %s is an address in an unusual form", quoted(s))
	}
	return Host{}, faultf("write a name, or an address such as 192.0.2.1", "host %s ends in a number, which only an IPv4 address does", quoted(s))
}

func literal(s string, addr netip.Addr) (Host, error) {
	switch {
	case addr.Zone() != "":
		return Host{}, faultf("write "+addr.WithZone("").String(), "host %s has a zone, which names an interface of one machine", quoted(s))
	case addr.Is4In6():
		return Host{}, faultf("write "+addr.Unmap().String(), "host %s is an IPv4 address in IPv6 form", quoted(s))
	case addr.IsUnspecified(), addr.IsMulticast(), addr == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return Host{}, faultf("write the address of a host", "host %s is not the address of one host", quoted(s))
	}
	return Host{Name: addr.String(), Addr: addr}, nil
}

const notInNames = "/@:[]%\\?# \t"

// parseOther reads what contains a character no name has: an IPv6 literal, or
// a mistake such as a URL.
func parseOther(s string) (Host, error) {
	bare := strings.TrimSuffix(strings.TrimPrefix(s, "["), "]")
	addr, err := netip.ParseAddr(bare)
	if err == nil {
		h, err := literal(s, addr)
		if err == nil && bare != s {
			return Host{}, faultf("write "+h.Name, "host %s has brackets", quoted(s))
		}
		return h, err
	}
	if _, err := netip.ParsePrefix(bare); err == nil {
		return Host{}, faultf("write one address, or the name of a host and the network under its `addresses`", "host %s is a network", quoted(s))
	}
	return Host{}, faultf(misplaced(s), "host %s is not a name or an address alone", quoted(s))
}

const nameMend = "write a name such as registry.npmjs.org, or an address"

// misplaced finds the name in a URL or in HOST:PORT.
func misplaced(s string) string {
	if _, after, ok := strings.Cut(s, "://"); ok {
		s = after
	}
	s, _, _ = strings.Cut(s, "/")
	name, port, hasPort := strings.Cut(s, ":")
	if strings.ContainsAny(name, notInNames) {
		return nameMend
	}
	h, err := ParseHost(name)
	if err != nil {
		return nameMend
	}
	if _, err := strconv.ParseUint(port, 10, 16); hasPort && err == nil {
		return fmt.Sprintf("write %s, and ports: [%s]", h, port)
	}
	return "write " + h.String()
}

func parseWildcard(s, base string) (Host, error) {
	if strings.Contains(base, "*") {
		return Host{}, faultf("a wildcard is one leading `*.`, such as *.example.com", "host %s has a star that is not its first label", quoted(s))
	}
	name, err := normalName(base)
	if err != nil {
		return Host{}, err
	}
	if numeric(lastLabel(name)) {
		return Host{}, faultf("write the address alone, or *. and a name", "host %s: an address has no names below it", quoted(s))
	}
	if !strings.Contains(name, ".") {
		return Host{}, faultf("write a longer one, such as *.example."+name, "host %s: %s is a whole top-level domain", quoted(s), name)
	}
	// Both sections of the list: anyone can have a name below github.io as below com.
	if suffix, _ := publicsuffix.PublicSuffix(name); suffix == name {
		return Host{}, faultf("write a longer one, such as *.example."+name, "host %s: %s is a public suffix, anyone can have a name below it", quoted(s), name)
	}
	return Host{Name: name, Wildcard: true}, nil
}

// normalName is the lower-case A-label form of a DNS name without its trailing dot.
func normalName(s string) (string, error) {
	name := strings.TrimSuffix(s, ".")
	if !isNormal(name) {
		mapped, err := names.ToASCII(name)
		if err != nil || !utf8.ValidString(name) {
			return "", nameFault(s, name)
		}
		name = strings.TrimSuffix(mapped, ".")
	}
	if len(name) > maxName {
		return "", faultf(fmt.Sprintf("a name has at most %d", maxName), "host %s has %d bytes", quoted(s), len(name))
	}
	for label := range strings.SplitSeq(name, ".") {
		if why := labelFault(label); why != "" {
			return "", faultf(nameMend, "host %s has %s", quoted(s), why)
		}
	}
	return name, nil
}

func nameFault(s, name string) error {
	for label := range strings.SplitSeq(name, ".") {
		if why := labelFault(strings.ToLower(label)); why != "" {
			return faultf(nameMend, "host %s has %s", quoted(s), why)
		}
	}
	if strings.Contains(strings.ToLower(name), "xn--") {
		return faultf("write the name in its own letters", "host %s has an xn-- label that stands for no name", quoted(s))
	}
	return faultf("write its xn-- form if it has one", "host %s is not an international domain name (IDNA 2008)", quoted(s))
}

func labelFault(label string) string {
	switch {
	case label == "":
		return "an empty label (two dots, or a leading one)"
	case len(label) > maxLabel:
		return fmt.Sprintf("a label of %d bytes, of at most %d", len(label), maxLabel)
	case label[0] == '-' || label[len(label)-1] == '-':
		return "a label that starts or ends with a hyphen"
	}
	for i := range len(label) {
		c := label[i]
		switch {
		case c == '_':
			return "an underscore, which names of hosts never have (RFC 1123 section 2.1)"
		case c < utf8.RuneSelf && !isLDH(c):
			return fmt.Sprintf("the character %q, which is not part of a name", c)
		}
	}
	return ""
}

func isLDH(c byte) bool {
	return 'a' <= c && c <= 'z' || '0' <= c && c <= '9' || c == '-'
}

// isNormal says that a name needs no mapping: lower-case letters, digits,
// hyphens and dots, and no A-label that could be a false one.
func isNormal(s string) bool {
	for i := range len(s) {
		if !isLDH(s[i]) && s[i] != '.' {
			return false
		}
	}
	return !strings.HasPrefix(s, "xn--") && !strings.Contains(s, ".xn--")
}

func lastLabel(name string) string { return name[strings.LastIndexByte(name, '.')+1:] }

// numeric says that a last label makes the whole an IPv4 address for the URL
// standard, section "ends in a number".
func numeric(label string) bool {
	if hex, ok := strings.CutPrefix(label, "0x"); ok {
		return strings.Trim(hex, "0123456789abcdef") == ""
	}
	return label != "" && strings.Trim(label, "0123456789") == ""
}

// atoaddr reads what inet_aton(3) reads: one to four parts, the last filling
// the rest, in decimal, octal (leading 0) or hexadecimal (leading 0x).
func atoaddr(s string) (netip.Addr, bool) {
	parts := strings.Split(s, ".")
	if len(parts) > 4 {
		return netip.Addr{}, false
	}
	var value uint64
	for i, part := range parts {
		bits := 8
		if i == len(parts)-1 {
			bits = 8 * (5 - len(parts))
		}
		if part == "0x" {
			part = "0"
		}
		v, err := strconv.ParseUint(part, 0, bits)
		if err != nil {
			return netip.Addr{}, false
		}
		value = value<<bits | v
	}
	return netip.AddrFrom4([4]byte{byte(value >> 24), byte(value >> 16), byte(value >> 8), byte(value)}), true
}
