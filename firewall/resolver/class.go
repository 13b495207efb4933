package resolver

import "net/netip"

// class is a range of addresses that a public name has no business to stand for.
type class struct {
	prefix netip.Prefix
	why    string
}

// classes are ranges by the first byte of the addresses in them, so that most addresses are compared with none.
type classes [256][]class

func ranges(pairs ...string) (list classes) {
	for i := 0; i < len(pairs); i += 2 {
		p := netip.MustParsePrefix(pairs[i])
		first := int(p.Addr().AsSlice()[0])
		for b := first; b < first+1<<max(0, 8-p.Bits()); b++ {
			list[b] = append(list[b], class{p, pairs[i+1] + " (" + pairs[i] + ")"})
		}
	}
	return list
}

// Source: the IANA special-purpose address registries (RFC 6890 and updates), and addresses at which clouds
// serve credentials to whoever asks.
var (
	special4 = ranges(
		"0.0.0.0/8", "this network",
		"10.0.0.0/8", "private",
		"100.64.0.0/10", "shared address space",
		"127.0.0.0/8", "loopback",
		"169.254.0.0/16", "link-local",
		"172.16.0.0/12", "private",
		"192.0.0.0/24", "protocol assignments",
		"192.0.2.0/24", "documentation",
		"192.88.99.0/24", "6to4 relay",
		"192.168.0.0/16", "private",
		"198.18.0.0/15", "benchmarking",
		"198.51.100.0/24", "documentation",
		"203.0.113.0/24", "documentation",
		"224.0.0.0/4", "multicast",
		"240.0.0.0/4", "reserved",
		"168.63.129.16/32", "cloud platform",
	)
	special6 = ranges(
		"::/128", "unspecified",
		"::1/128", "loopback",
		"::/96", "IPv4-compatible",
		"64:ff9b:1::/48", "local NAT64",
		"100::/64", "discard-only",
		"2001::/32", "Teredo",
		"2001::/23", "protocol assignments",
		"2001:db8::/32", "documentation",
		"2002::/16", "6to4",
		"3fff::/20", "documentation",
		"fc00::/7", "unique local",
		"fe80::/10", "link-local",
		"fec0::/10", "site-local",
		"ff00::/8", "multicast",
	)
	global6 = netip.MustParsePrefix("2000::/3")
	// nat64 is the well-known prefix (RFC 6052): the last 32 bits are the IPv4 address that a packet ends at.
	nat64 = netip.MustParsePrefix("64:ff9b::/96")
)

// Special says whether an address is of a range that a name may stand for only where its policy entry lists
// it, and which range that is. IPv4 in IPv6 is judged as what it reaches: ::ffff:a.b.c.d and 64:ff9b::a.b.c.d
// as a.b.c.d. 6to4 and Teredo are refused whatever they embed. allowed holds CIDRs in the form the address
// has after Unmap.
func Special(a netip.Addr, allowed []netip.Prefix) (why string, refused bool) {
	a = a.Unmap()
	if !a.IsValid() {
		return "not an address", true
	}
	if a.Zone() != "" {
		return "an address with a zone", true
	}
	why, refused = classify(a)
	if !refused || listed(a, allowed) {
		return "", false
	}
	return why, true
}

func classify(a netip.Addr) (string, bool) {
	if a.Is4() {
		b := a.As4()
		return within(a, special4[b[0]])
	}
	b := a.As16()
	if nat64.Contains(a) {
		why, refused := classify(netip.AddrFrom4([4]byte(b[12:])))
		return "NAT64 of " + why, refused
	}
	if why, refused := within(a, special6[b[0]]); refused {
		return why, true
	}
	if !global6.Contains(a) {
		return "not global unicast", true
	}
	return "", false
}

func within(a netip.Addr, list []class) (string, bool) {
	for i := range list {
		if list[i].prefix.Contains(a) {
			return list[i].why, true
		}
	}
	return "", false
}

func listed(a netip.Addr, allowed []netip.Prefix) bool {
	for _, p := range allowed {
		if p.Contains(a) {
			return true
		}
	}
	return false
}
