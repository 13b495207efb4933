package resolver

import (
	"net/netip"
	"strings"
	"testing"
)

func TestSpecialAddressesAreRefused(t *testing.T) {
	tests := []struct {
		addr string
		why  string // "": allowed
	}{
		{"1.1.1.1", ""}, {"8.8.8.8", ""}, {"104.16.0.1", ""}, {"223.255.255.255", ""}, {"2606:4700::1111", ""}, {"2a00:1450::1", ""}, {"3ffe::1", ""},
		{"0.0.0.0", "this network"}, {"0.1.2.3", "this network"},
		{"9.255.255.255", ""}, {"10.0.0.0", "private"}, {"10.255.255.255", "private"}, {"11.0.0.0", ""},
		{"100.63.255.255", ""}, {"100.64.0.0", "shared"}, {"100.100.100.200", "shared"}, {"100.127.255.255", "shared"}, {"100.128.0.0", ""},
		{"126.255.255.255", ""}, {"127.0.0.1", "loopback"}, {"127.0.0.11", "loopback"}, {"127.255.255.255", "loopback"}, {"128.0.0.0", ""},
		{"169.253.255.255", ""}, {"169.254.0.0", "link-local"}, {"169.254.169.254", "link-local"}, {"169.254.170.2", "link-local"}, {"169.255.0.0", ""},
		{"172.15.255.255", ""}, {"172.16.0.0", "private"}, {"172.31.255.255", "private"}, {"172.32.0.0", ""},
		{"192.0.0.1", "protocol"}, {"192.0.1.1", ""}, {"192.0.2.1", "documentation"}, {"192.88.99.1", "6to4"},
		{"192.167.255.255", ""}, {"192.168.0.0", "private"}, {"192.168.255.255", "private"}, {"192.169.0.0", ""},
		{"198.17.255.255", ""}, {"198.18.0.0", "benchmarking"}, {"198.19.255.255", "benchmarking"}, {"198.20.0.0", ""},
		{"198.51.100.7", "documentation"}, {"203.0.113.7", "documentation"},
		{"224.0.0.1", "multicast"}, {"239.255.255.255", "multicast"}, {"240.0.0.1", "reserved"}, {"255.255.255.255", "reserved"},
		{"168.63.129.16", "cloud"}, {"168.63.129.15", ""}, {"168.63.129.17", ""},
		{"::", "unspecified"}, {"::1", "loopback"}, {"::7f00:1", "IPv4-compatible"}, {"::102:304", "IPv4-compatible"},
		{"::ffff:10.0.0.1", "private"}, {"::ffff:127.0.0.1", "loopback"}, {"::ffff:169.254.169.254", "link-local"}, {"::ffff:8.8.8.8", ""},
		{"::ffff:0:10.0.0.1", "not global"}, {"::ffff:0:8.8.8.8", "not global"},
		{"64:ff9b::a00:1", "NAT64 of private"}, {"64:ff9b::7f00:1", "NAT64 of loopback"}, {"64:ff9b::a9fe:a9fe", "NAT64 of link-local"}, {"64:ff9b::808:808", ""},
		{"64:ff9b:1::808:808", "local NAT64"}, {"64:ff9b:1:ffff::1", "local NAT64"}, {"64:ff9b::1:808:808", "not global"},
		{"100::1", "discard"}, {"100:0:0:1::1", "not global"},
		{"2001::1", "Teredo"}, {"2001:0:4136:e378:8000:63bf:3fff:fdd2", "Teredo"}, {"2001:2::1", "protocol"}, {"2001:20::1", "protocol"}, {"2001:200::1", ""},
		{"2001:db8::1", "documentation"}, {"2001:db7::1", ""}, {"3fff::1", "documentation"}, {"3fff:1000::1", ""},
		{"2002:a00:1::1", "6to4"}, {"2002:7f00:1::", "6to4"}, {"2002:808:808::1", "6to4"}, {"2003::1", ""},
		{"fc00::1", "unique local"}, {"fd00:ec2::254", "unique local"}, {"fdff::1", "unique local"},
		{"fe80::1", "link-local"}, {"febf::1", "link-local"}, {"fec0::1", "site-local"}, {"ff02::1", "multicast"}, {"4000::1", "not global"}, {"5f00::1", "not global"},
		{"2606:4700::1%eth0", "zone"}, {"fe80::1%lo", "zone"},
	}
	for _, tt := range tests {
		a := netip.MustParseAddr(tt.addr)
		why, refused := Special(a, nil)
		if refused != (tt.why != "") || !strings.Contains(why, tt.why) || refused != (why != "") {
			t.Errorf("%s: %q, refused %v; want %q", tt.addr, why, refused, tt.why)
		}
		if tt.why == "zone" {
			continue
		}
		bits := a.Unmap().BitLen()
		if why, refused := Special(a, []netip.Prefix{netip.PrefixFrom(a.Unmap(), bits)}); refused || why != "" {
			t.Errorf("%s, listed: %q", tt.addr, why)
		}
	}
	if _, refused := Special(netip.Addr{}, nil); !refused {
		t.Error("the zero address passes")
	}
}

// TestListedRangesAdmitNothingElse: an exception for one range is none for another, nor for the same address
// in another family's clothes.
func TestListedRangesAdmitNothingElse(t *testing.T) {
	ten := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
	for addr, refused := range map[string]bool{
		"10.1.2.3": false, "::ffff:10.1.2.3": false, "8.8.8.8": false,
		"192.168.0.1": true, "169.254.169.254": true, "64:ff9b::a00:1": true, "2002:a00:1::1": true, "::1": true,
	} {
		if why, got := Special(netip.MustParseAddr(addr), ten); got != refused {
			t.Errorf("%s: refused %v (%s)", addr, got, why)
		}
	}
}

// FuzzSpecial: an IPv4 address is judged alike in every form that reaches it, and nothing outside global
// unicast passes.
func FuzzSpecial(f *testing.F) {
	f.Add([]byte{10, 0, 0, 1})
	f.Add(netip.MustParseAddr("64:ff9b::a00:1").AsSlice())
	f.Add(netip.MustParseAddr("2606:4700::1").AsSlice())
	f.Fuzz(func(t *testing.T, b []byte) {
		a, ok := netip.AddrFromSlice(b)
		if !ok {
			return
		}
		_, refused := Special(a, nil)
		if a.Is4() {
			nat := netip.MustParseAddr("64:ff9b::").As16()
			copy(nat[12:], a.AsSlice())
			for _, form := range []netip.Addr{netip.AddrFrom16(a.As16()), netip.AddrFrom16(nat)} {
				if _, other := Special(form, nil); other != refused {
					t.Errorf("%s is refused %v, %s %v", a, refused, form, other)
				}
			}
		}
		u := a.Unmap()
		if !refused && (!u.IsGlobalUnicast() || u.IsPrivate()) && !nat64.Contains(u) {
			t.Errorf("%s passes", a)
		}
	})
}
