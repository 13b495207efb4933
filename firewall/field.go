package firewall

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Field is something of a packet that a statement reads.
type Field uint8

// The fields the record reads.
const (
	NoField Field = iota
	metaIif
	metaOif
	metaSkuid
	metaSkgid
	metaL4proto
	ctState
	ctDirection
	ctMark
	ctOriginalDport
	ip6Saddr
	ipDaddr
	ip6Daddr
	ip6Hoplimit
	icmp6Type
	tcpSport
	tcpDport
	thDport
	tcpFlags
	tcpFastOpen
	tcpExperiment
	lastField
)

// fieldInfo says how a field is written, typed and loaded. Family and proto are
// what must be known of the packet before the load means anything; the kernel
// does not check it.
type fieldInfo struct {
	text   string
	typ    nftables.SetDatatype
	family byte // NFPROTO_*, 0: any
	proto  byte // IPPROTO_*, 0: any
	load   func(reg uint32) expr.Any
	get    func(*Packet) (v []byte, ok bool)
}

// String is the field as nft writes it.
func (f Field) String() string { return fields[f].text }

var fields = [lastField]fieldInfo{
	metaIif: {text: "iif", typ: nftables.TypeIFIndex, load: meta(expr.MetaKeyIIF),
		get: func(p *Packet) ([]byte, bool) { return ifindex(p, HookInput) }},
	metaOif: {text: "oif", typ: nftables.TypeIFIndex, load: meta(expr.MetaKeyOIF),
		get: func(p *Packet) ([]byte, bool) { return ifindex(p, HookOutput) }},
	metaSkuid: {text: "meta skuid", typ: nftables.TypeUID, load: meta(expr.MetaKeySKUID),
		get: func(p *Packet) ([]byte, bool) { return native(p.UID), p.Owned }},
	metaSkgid: {text: "meta skgid", typ: nftables.TypeGID, load: meta(expr.MetaKeySKGID),
		get: func(p *Packet) ([]byte, bool) { return native(p.GID), p.Owned }},
	metaL4proto: {text: "meta l4proto", typ: nftables.TypeInetProto, load: meta(expr.MetaKeyL4PROTO),
		get: func(p *Packet) ([]byte, bool) { return []byte{p.Proto}, true }},
	ctState: {text: "ct state", typ: nftables.TypeCTState, load: conntrack(expr.CtKeySTATE),
		get: func(p *Packet) ([]byte, bool) { return native(uint32(p.State)), true }},
	ctDirection: {text: "ct direction", typ: nftables.TypeCTDir, load: conntrack(expr.CtKeyDIRECTION),
		get: func(p *Packet) ([]byte, bool) { return []byte{boolByte(p.Reply)}, p.tracked() }},
	ctMark: {text: "ct mark", typ: nftables.TypeMark, load: conntrack(expr.CtKeyMARK),
		get: func(p *Packet) ([]byte, bool) { return native(p.Mark), p.tracked() }},
	ctOriginalDport: {text: "ct original proto-dst", typ: nftables.TypeInetService, load: conntrack(expr.CtKeyPROTODST),
		get: func(p *Packet) ([]byte, bool) { return big(p.originalPort()), p.tracked() }},
	ip6Saddr: {text: "ip6 saddr", typ: nftables.TypeIP6Addr, family: unix.NFPROTO_IPV6, load: payload(expr.PayloadBaseNetworkHeader, 8, 16),
		get: func(p *Packet) ([]byte, bool) { return p.Src.Addr().AsSlice(), p.Src.Addr().Is6() }},
	ipDaddr: {text: "ip daddr", typ: nftables.TypeIPAddr, family: unix.NFPROTO_IPV4, load: payload(expr.PayloadBaseNetworkHeader, 16, 4),
		get: func(p *Packet) ([]byte, bool) { return p.Dst.Addr().AsSlice(), p.Dst.Addr().Is4() }},
	ip6Daddr: {text: "ip6 daddr", typ: nftables.TypeIP6Addr, family: unix.NFPROTO_IPV6, load: payload(expr.PayloadBaseNetworkHeader, 24, 16),
		get: func(p *Packet) ([]byte, bool) { return p.Dst.Addr().AsSlice(), p.Dst.Addr().Is6() }},
	ip6Hoplimit: {text: "ip6 hoplimit", typ: nftables.TypeInetProto, family: unix.NFPROTO_IPV6, load: payload(expr.PayloadBaseNetworkHeader, 7, 1),
		get: func(p *Packet) ([]byte, bool) { return []byte{p.HopLimit}, p.Dst.Addr().Is6() }},
	icmp6Type: {text: "icmpv6 type", typ: nftables.TypeICMP6Type, family: unix.NFPROTO_IPV6, proto: unix.IPPROTO_ICMPV6, load: payload(expr.PayloadBaseTransportHeader, 0, 1),
		get: func(p *Packet) ([]byte, bool) { return []byte{p.ICMPType}, p.Proto == unix.IPPROTO_ICMPV6 }},
	tcpSport: {text: "tcp sport", typ: nftables.TypeInetService, proto: unix.IPPROTO_TCP, load: payload(expr.PayloadBaseTransportHeader, 0, 2),
		get: func(p *Packet) ([]byte, bool) { return big(p.Src.Port()), p.Proto == unix.IPPROTO_TCP }},
	tcpDport: {text: "tcp dport", typ: nftables.TypeInetService, proto: unix.IPPROTO_TCP, load: payload(expr.PayloadBaseTransportHeader, 2, 2),
		get: func(p *Packet) ([]byte, bool) { return big(p.Dst.Port()), p.Proto == unix.IPPROTO_TCP }},
	// Any transport header: ports where the protocol has them, other bytes where not.
	thDport: {text: "th dport", typ: nftables.TypeInetService, load: payload(expr.PayloadBaseTransportHeader, 2, 2),
		get: func(p *Packet) ([]byte, bool) { return big(p.Dst.Port()), true }},
	tcpFlags: {text: "tcp flags", typ: nftables.TypeTCPFlag, proto: unix.IPPROTO_TCP, load: payload(expr.PayloadBaseTransportHeader, 13, 1),
		get: func(p *Packet) ([]byte, bool) { return []byte{p.TCPFlags}, p.Proto == unix.IPPROTO_TCP }},
	// The kernel itself breaks on other protocols, so nft asks for none first.
	tcpFastOpen: {text: "tcp option fastopen", typ: nftables.TypeBoolean, load: tcpOption(34),
		get: func(p *Packet) ([]byte, bool) { return []byte{boolByte(p.FastOpen)}, p.Proto == unix.IPPROTO_TCP }},
	// Fast open had this kind before it had its own, and Linux still speaks it (tcp_fastopen.c: try_exp).
	tcpExperiment: {text: "tcp option 254", typ: nftables.TypeBoolean, load: tcpOption(254),
		get: func(p *Packet) ([]byte, bool) { return []byte{boolByte(p.Experiment)}, p.Proto == unix.IPPROTO_TCP }},
}

func meta(key expr.MetaKey) func(uint32) expr.Any {
	return func(reg uint32) expr.Any { return &expr.Meta{Key: key, Register: reg} }
}

// conntrack reads in the original direction where the key has one.
func conntrack(key expr.CtKey) func(uint32) expr.Any {
	return func(reg uint32) expr.Any {
		return &expr.Ct{Key: key, Register: reg, Direction: expr.CtDirOriginal}
	}
}

func payload(base expr.PayloadBase, offset, length uint32) func(uint32) expr.Any {
	return func(reg uint32) expr.Any {
		return &expr.Payload{Base: base, Offset: offset, Len: length, DestRegister: reg}
	}
}

// tcpOption loads 1 where the option is present and 0 where not.
func tcpOption(kind uint8) func(uint32) expr.Any {
	return func(reg uint32) expr.Any {
		return &expr.Exthdr{Op: expr.ExthdrOpTcpopt, Type: kind, Len: 1, Flags: unix.NFT_EXTHDR_F_PRESENT, DestRegister: reg}
	}
}

// slots is the number of 4-byte registers a field fills in a concatenation.
func (f Field) slots() int { return (int(fields[f].typ.Bytes) + 3) / 4 }

// keyType is the datatype of a set keyed by these fields.
func keyType(key []Field) nftables.SetDatatype {
	if len(key) == 1 {
		return fields[key[0]].typ
	}
	types := make([]nftables.SetDatatype, len(key))
	for i, f := range key {
		types[i] = fields[f].typ
	}
	t, err := nftables.ConcatSetType(types...)
	if err != nil {
		return nftables.TypeInvalid // more than five fields; the kernel refuses it
	}
	return t
}

// The kernel compares uids, marks and interface numbers in host order,
// ports and addresses in network order.
func native(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }
func big(v uint16) []byte    { return binary.BigEndian.AppendUint16(nil, v) }

func boolByte(b bool) byte {
	if b {
		return 1
	}
	return 0
}

// format writes the bytes of a field as nft reads them.
func (f Field) format(b []byte) string {
	switch fields[f].typ.Name {
	case nftables.TypeIPAddr.Name, nftables.TypeIP6Addr.Name:
		a, _ := netip.AddrFromSlice(b)
		return a.String()
	case nftables.TypeUID.Name, nftables.TypeGID.Name:
		return strconv.FormatUint(uint64(binary.NativeEndian.Uint32(b)), 10)
	case nftables.TypeMark.Name:
		return fmt.Sprintf("0x%08x", binary.NativeEndian.Uint32(b))
	case nftables.TypeInetService.Name:
		return strconv.Itoa(int(binary.BigEndian.Uint16(b)))
	}
	return protoName(b[0])
}

// parse is the inverse of format.
func (f Field) parse(s string) ([]byte, error) {
	switch fields[f].typ.Name {
	case nftables.TypeIPAddr.Name, nftables.TypeIP6Addr.Name:
		a, err := netip.ParseAddr(s)
		if err == nil && a.BitLen() != 8*int(fields[f].typ.Bytes) {
			err = fmt.Errorf("%s: wrong family for %s", s, f)
		}
		return a.AsSlice(), err
	case nftables.TypeUID.Name, nftables.TypeGID.Name, nftables.TypeMark.Name:
		v, err := strconv.ParseUint(s, 0, 32)
		return native(uint32(v)), err
	case nftables.TypeInetService.Name:
		v, err := strconv.ParseUint(s, 10, 16)
		return big(uint16(v)), err
	}
	return parseProto(s)
}

var protoNames = map[byte]string{unix.IPPROTO_TCP: "tcp", unix.IPPROTO_UDP: "udp", unix.IPPROTO_ICMP: "icmp", unix.IPPROTO_ICMPV6: "ipv6-icmp"}

func protoName(p byte) string {
	if s, ok := protoNames[p]; ok {
		return s
	}
	return strconv.Itoa(int(p))
}

func parseProto(s string) ([]byte, error) {
	for p, name := range protoNames {
		if strings.EqualFold(name, s) {
			return []byte{p}, nil
		}
	}
	v, err := strconv.ParseUint(s, 10, 8)
	return []byte{byte(v)}, err
}
