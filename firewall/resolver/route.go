package resolver

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Flags of a route, linux/route.h.
const (
	routeUp      = 0x1
	routeGateway = 0x2
	routeReject  = 0x200
	routeLocal   = 0x80000000
)

// localAddrs lists the interfaces' addresses and the default gateways: what a name that an agent may reach
// must not stand for.
func localAddrs() (addrs []netip.Addr) {
	list, _ := net.InterfaceAddrs()
	for _, a := range list {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			addrs = append(addrs, p.Addr().Unmap())
		}
	}
	addrs = append(addrs, gateways4(readBounded("/proc/net/route"))...)
	addrs = append(addrs, gateways6(readBounded("/proc/net/ipv6_route"))...)
	slices.SortFunc(addrs, netip.Addr.Compare)
	return slices.Compact(addrs)
}

// gateways4 reads the gateways of default routes from /proc/net/route: Iface Destination Gateway Flags ...
// Mask, in hexadecimal, addresses in the machine's byte order.
func gateways4(table []byte) (list []netip.Addr) {
	for line := range bytes.Lines(table) {
		f := strings.Fields(string(line))
		if len(f) < 8 || f[1] != "00000000" || f[7] != "00000000" {
			continue
		}
		flags, err := strconv.ParseUint(f[3], 16, 32)
		gateway, err2 := strconv.ParseUint(f[2], 16, 32)
		if err != nil || err2 != nil || flags&routeGateway == 0 {
			continue
		}
		var b [4]byte
		binary.NativeEndian.PutUint32(b[:], uint32(gateway))
		list = append(list, netip.AddrFrom4(b))
	}
	return list
}

// route6 is a line of /proc/net/ipv6_route.
type route6 struct {
	to      netip.Prefix
	gateway netip.Addr
	flags   uint64
	device  string
}

// routes6 reads /proc/net/ipv6_route: destination, its length, source, its length, gateway, metric,
// references, uses, flags, device.
func routes6(table []byte) (list []route6) {
	for line := range bytes.Lines(table) {
		f := strings.Fields(string(line))
		if len(f) < 10 {
			continue
		}
		to, gateway := parseHex6(f[0]), parseHex6(f[4])
		bits, err := strconv.ParseUint(f[1], 16, 8)
		flags, err2 := strconv.ParseUint(f[8], 16, 32)
		if err != nil || err2 != nil || bits > 128 || !to.IsValid() || !gateway.IsValid() {
			continue
		}
		list = append(list, route6{netip.PrefixFrom(to, int(bits)), gateway, flags, f[9]})
	}
	return list
}

func parseHex6(s string) netip.Addr {
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != 16 {
		return netip.Addr{}
	}
	return netip.AddrFrom16([16]byte(b))
}

func gateways6(table []byte) (list []netip.Addr) {
	for _, r := range routes6(table) {
		if r.to.Bits() == 0 && r.flags&routeGateway != 0 && !r.gateway.IsUnspecified() {
			list = append(list, r.gateway)
		}
	}
	return list
}

// routed6 says that IPv6 leads anywhere beyond the link.
func routed6(table []byte) bool {
	return slices.ContainsFunc(routes6(table), func(r route6) bool {
		a := r.to.Addr()
		return r.flags&routeUp != 0 && r.flags&(routeReject|routeLocal) == 0 && r.device != "lo" &&
			!a.IsLinkLocalUnicast() && !a.IsMulticast() && !a.IsLoopback()
	})
}
