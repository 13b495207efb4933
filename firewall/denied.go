package firewall

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"

	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"
)

// Denied is one refused packet, as the deny log tells of it.
type Denied struct {
	Chain    string // deny_agent, deny_root, or input for what came from outside
	Owned    bool   // there was a socket, and UID and GID are its owner's
	UID, GID uint32
	Proto    uint8 // unix.IPPROTO_*
	Src      netip.AddrPort
	Addr     netip.Addr // where it was to go
	Port     uint16     // 0 where the protocol has none
	Query    string     // the name a DNS question asks for; escaped, lower-case, without the last dot
	Length   int        // of the whole packet in bytes; only its first snapLength are looked at
}

// parse fills in what the packet's own bytes say. They are the sender's: nothing
// in them is believed, and what does not fit is left out.
func (d *Denied) parse(b []byte) bool {
	if len(b) == 0 {
		return false
	}
	var body []byte
	var ok bool
	switch b[0] >> 4 {
	case 4:
		body, ok = d.parseIPv4(b)
	case 6:
		body, ok = d.parseIPv6(b)
	}
	if ok {
		d.parseTransport(body)
	}
	return ok
}

// parseIPv4 returns what follows the header; nil for a later fragment.
func (d *Denied) parseIPv4(b []byte) (body []byte, ok bool) {
	if len(b) < 20 {
		return nil, false
	}
	d.Proto, d.Length = b[9], int(binary.BigEndian.Uint16(b[2:]))
	d.Src = netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[12:])), 0)
	d.Addr = netip.AddrFrom4([4]byte(b[16:]))
	head := int(b[0]&15) * 4
	if head < 20 || head > len(b) || binary.BigEndian.Uint16(b[6:])&0x1fff != 0 {
		return nil, true
	}
	return b[head:], true
}

// parseIPv6 goes through extension headers to the transport header; it returns
// nil where there is none in sight.
func (d *Denied) parseIPv6(b []byte) (body []byte, ok bool) {
	if len(b) < 40 {
		return nil, false
	}
	d.Length = 40 + int(binary.BigEndian.Uint16(b[4:]))
	d.Src = netip.AddrPortFrom(netip.AddrFrom16([16]byte(b[8:])), 0)
	d.Addr = netip.AddrFrom16([16]byte(b[24:]))
	d.Proto = b[6]
	body = b[40:]
	for range 8 {
		size := 8
		switch d.Proto {
		case unix.IPPROTO_HOPOPTS, unix.IPPROTO_ROUTING, unix.IPPROTO_DSTOPTS:
			if len(body) >= 2 {
				size += int(body[1]) * 8
			}
		case unix.IPPROTO_FRAGMENT:
			if len(body) >= 8 && binary.BigEndian.Uint16(body[2:])&^7 != 0 {
				d.Proto = body[0]
				return nil, true
			}
		default:
			return body, true
		}
		if len(body) < size {
			return nil, true
		}
		d.Proto, body = body[0], body[size:]
	}
	return nil, true
}

// parseTransport reads ports, and the name a DNS question asks for.
func (d *Denied) parseTransport(b []byte) {
	switch d.Proto {
	case unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_SCTP, unix.IPPROTO_DCCP, unix.IPPROTO_UDPLITE:
	default:
		return
	}
	if len(b) < 4 {
		return
	}
	d.Src = netip.AddrPortFrom(d.Src.Addr(), binary.BigEndian.Uint16(b))
	d.Port = binary.BigEndian.Uint16(b[2:])
	if d.Proto != unix.IPPROTO_UDP || len(b) < 8 {
		return
	}
	switch {
	case d.Port == 53 || d.Port == 5353 || d.Port == 5355: // DNS, mDNS, LLMNR
		d.Query = question(b[8:])
	case d.Addr == dockerDNS:
		// Docker's table has rewritten the port that the program asked for.
		if d.Query = question(b[8:]); d.Query != "" {
			d.Port = 53
		}
	}
}

// question is the name a DNS message asks for first; "" where it asks nothing.
func question(b []byte) string {
	var p dnsmessage.Parser
	h, err := p.Start(b)
	if err != nil || h.Response {
		return ""
	}
	q, err := p.Question()
	if err != nil {
		return ""
	}
	var s strings.Builder
	for _, c := range []byte(strings.TrimSuffix(q.Name.String(), ".")) {
		switch {
		case c >= 'A' && c <= 'Z':
			s.WriteByte(c + 'a' - 'A')
		case c >= 'a' && c <= 'z', c >= '0' && c <= '9', c == '-', c == '_', c == '.', c == '*':
			s.WriteByte(c)
		default:
			fmt.Fprintf(&s, `\%03d`, c) // RFC 1035, 5.1
		}
	}
	return s.String()
}
