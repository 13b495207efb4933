package rig

import (
	"encoding/binary"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"sync"

	"golang.org/x/sys/unix"
)

// Capture counts every packet that arrives from a box, whatever its protocol: the far side's view, which no rule inside can colour.
type Capture struct {
	file *os.File
	done chan struct{}

	mu    sync.Mutex // guards following
	flows map[Flow]int
	lost  int
}

// Flow is what a packet was addressed to. Port is the destination port of TCP and UDP, the type of ICMP, else 0.
type Flow struct {
	Proto uint8      // IP protocol; 0 where Ether is not IP
	Dst   netip.Addr // not valid where Ether is not IP
	Port  uint16
	Ether uint16
}

// String is proto, address and port, for messages.
func (f Flow) String() string {
	if !f.Dst.IsValid() {
		return fmt.Sprintf("ether 0x%04x", f.Ether)
	}
	return fmt.Sprintf("%s %s", protocolName(f.Proto), netip.AddrPortFrom(f.Dst, f.Port))
}

func protocolName(p uint8) string {
	switch p {
	case unix.IPPROTO_TCP:
		return "tcp"
	case unix.IPPROTO_UDP:
		return "udp"
	case unix.IPPROTO_ICMP:
		return "icmp"
	case unix.IPPROTO_ICMPV6:
		return "icmpv6"
	}
	return fmt.Sprintf("proto %d", p)
}

func newCapture(ifindex int) (*Capture, error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("packet socket: %w", err)
	}
	// A reload under load sends at line rate; what the reader cannot take at once waits here.
	unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20)
	all := uint16(unix.ETH_P_ALL)<<8 | uint16(unix.ETH_P_ALL)>>8
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: ifindex}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("bind packet socket: %w", err)
	}
	c := &Capture{file: os.NewFile(uintptr(fd), "capture"), done: make(chan struct{}), flows: map[Flow]int{}}
	go c.read()
	return c, nil
}

func (c *Capture) read() {
	defer close(c.done)
	raw, err := c.file.SyscallConn()
	if err != nil {
		return
	}
	buf := make([]byte, 256)
	raw.Read(func(fd uintptr) bool {
		for {
			n, from, err := unix.Recvfrom(int(fd), buf, unix.MSG_TRUNC)
			if err == unix.EAGAIN {
				return false // until readable, or closed
			}
			if err == unix.EINTR || err == unix.ENETDOWN || err == unix.ENOBUFS {
				continue
			}
			if err != nil {
				return true
			}
			if ll, ok := from.(*unix.SockaddrLinklayer); ok && ll.Pkttype != unix.PACKET_OUTGOING {
				c.count(buf[:min(n, len(buf))])
			}
		}
	})
}

func (c *Capture) count(frame []byte) {
	f, ok := parse(frame)
	if !ok {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.flows[f]++
}

func parse(frame []byte) (Flow, bool) {
	if len(frame) < 14 {
		return Flow{}, false
	}
	f := Flow{Ether: binary.BigEndian.Uint16(frame[12:])}
	ip := frame[14:]
	var rest []byte
	switch {
	case f.Ether == unix.ETH_P_IP && len(ip) >= 20:
		f.Proto, f.Dst = ip[9], netip.AddrFrom4([4]byte(ip[16:20]))
		rest = ip[min(len(ip), int(ip[0]&15)*4):]
	case f.Ether == unix.ETH_P_IPV6 && len(ip) >= 40:
		f.Proto, f.Dst = ip[6], netip.AddrFrom16([16]byte(ip[24:40]))
		rest = ip[40:]
		if f.Proto == unix.IPPROTO_HOPOPTS && len(rest) >= 8 { // multicast listener reports come with a router alert
			f.Proto, rest = rest[0], rest[min(len(rest), int(rest[1])*8+8):]
		}
	default:
		return f, true
	}
	switch {
	case (f.Proto == unix.IPPROTO_TCP || f.Proto == unix.IPPROTO_UDP) && len(rest) >= 4:
		f.Port = binary.BigEndian.Uint16(rest[2:])
	case (f.Proto == unix.IPPROTO_ICMP || f.Proto == unix.IPPROTO_ICMPV6) && len(rest) >= 1:
		f.Port = uint16(rest[0])
	}
	return f, true
}

// housekeeping is what any host says on its link: ARP and neighbour discovery, and the listener reports a kernel sends when an
// interface comes up, before anything runs in the box.
func (f Flow) housekeeping() bool {
	if !f.Dst.IsValid() {
		return f.Ether == unix.ETH_P_ARP
	}
	return f.Proto == unix.IPPROTO_ICMPV6 && (f.Port == 133 || f.Port == 135 || f.Port == 136 || f.Port == 143)
}

// Flows is what arrived so far, apart from link housekeeping.
func (c *Capture) Flows() map[Flow]int {
	c.mu.Lock()
	defer c.mu.Unlock()
	got := maps.Clone(c.flows)
	maps.DeleteFunc(got, func(f Flow, _ int) bool { return f.housekeeping() })
	return got
}

// Link is the link housekeeping that Flows leaves out, which can carry data too: a listener report names any group, a solicitation any address.
func (c *Capture) Link() map[Flow]int {
	c.mu.Lock()
	defer c.mu.Unlock()
	got := maps.Clone(c.flows)
	maps.DeleteFunc(got, func(f Flow, _ int) bool { return !f.housekeeping() })
	return got
}

// To is how many packets arrived for an address; port 0: any port.
func (c *Capture) To(dst netip.Addr, port uint16) int {
	n := 0
	for f, k := range c.Flows() {
		if f.Dst == dst && (port == 0 || f.Port == port) {
			n += k
		}
	}
	return n
}

// Except lists the flows that allow does not accept: leaks, where allow is the policy.
func (c *Capture) Except(allow func(Flow) bool) []string {
	var bad []string
	for f, n := range c.Flows() {
		if !allow(f) {
			bad = append(bad, fmt.Sprintf("%s (%d packets)", f, n))
		}
	}
	slices.Sort(bad)
	return bad
}

// Lost is how many packets the kernel could not hand to the capture; a count of zero elsewhere proves nothing unless this is zero too.
func (c *Capture) Lost() (int, error) {
	raw, err := c.file.SyscallConn()
	if err != nil {
		return 0, err
	}
	var stats *unix.TpacketStats
	if cerr := raw.Control(func(fd uintptr) {
		stats, err = unix.GetsockoptTpacketStats(int(fd), unix.SOL_PACKET, unix.PACKET_STATISTICS)
	}); cerr != nil {
		return 0, cerr
	}
	if err != nil {
		return 0, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lost += int(stats.Drops) // reading resets the kernel's counter
	return c.lost, nil
}

func (c *Capture) close() error {
	err := c.file.Close()
	<-c.done
	return err
}
