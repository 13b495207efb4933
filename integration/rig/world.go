package rig

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// World is the stretch of the internet that one test sees: addresses of its own, a DNS server, a certificate authority and servers.
// Worlds of one process share a network namespace and nothing else, so tests can run in parallel.
type World struct {
	CA  *CA
	DNS *DNS

	number int
	mu     sync.Mutex // guards following
	hosts  int
	closes []func() error
	boxes  []*Box
	last   *Capture
}

// NewWorld makes a world with a DNS server and nothing else in it.
func NewWorld() (*World, error) {
	w := &World{number: serial()}
	ca, err := newCA("exitgate rig CA")
	if err != nil {
		return nil, err
	}
	w.CA = ca
	v4, v6, err := w.Addresses()
	if err != nil {
		return nil, err
	}
	if w.DNS, err = newDNS(v4, v6); err != nil {
		return nil, err
	}
	w.onClose(w.DNS.close)
	return w, nil
}

// Addresses gives the world another pair of addresses, for a server. They sit on the loopback of the internet's namespace,
// which answers for them on every box's wire.
func (w *World) Addresses() (v4, v6 netip.Addr, err error) {
	w.mu.Lock()
	w.hosts++
	host := byte(w.hosts)
	w.mu.Unlock()
	v4 = netip.AddrFrom4([4]byte{45, byte(w.number >> 8), byte(w.number), host})
	v6 = address6(0x45, w.number, host)
	return v4, v6, w.Own(v4, v6)
}

// Own makes the internet answer for given addresses. Worlds share them: only one that is alone in its process should do so.
func (w *World) Own(addrs ...netip.Addr) error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find lo: %w", err)
	}
	for _, a := range addrs {
		if err := addAddress(netlink.AddrAdd, lo, netip.PrefixFrom(a, a.BitLen())); err != nil {
			return err
		}
	}
	return nil
}

// Number tells this world from others of the process, for addresses of one's own choice.
func (w *World) Number() int { return w.number }

// Capture is what arrived from the box that was started last.
func (w *World) Capture() *Capture {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.last
}

// Close ends the world's boxes and servers. It may be called more than once.
func (w *World) Close() error {
	w.mu.Lock()
	boxes, closes := w.boxes, w.closes
	w.boxes, w.closes = nil, nil
	w.mu.Unlock()
	var errs []error
	for _, b := range boxes {
		errs = append(errs, b.Close())
	}
	for i := len(closes) - 1; i >= 0; i-- {
		errs = append(errs, closes[i]())
	}
	return errors.Join(errs...)
}

func (w *World) onClose(f func() error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closes = append(w.closes, f)
}

// address6 is an address that looks public: the documentation and private ranges are among those the binary refuses.
func address6(group byte, number int, host byte) netip.Addr {
	return netip.AddrFrom16([16]byte{0x2a, 0x0e, 0, group, byte(number >> 8), byte(number), 15: host})
}

func addAddress(add func(netlink.Link, *netlink.Addr) error, l netlink.Link, p netip.Prefix) error {
	a := &netlink.Addr{IPNet: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}}
	if p.Addr().Is6() {
		// Duplicate address detection would keep the address unusable for a second or two.
		a.Flags = unix.IFA_F_NODAD
	}
	if err := add(l, a); err != nil {
		return fmt.Errorf("add %s to %s: %w", p, l.Attrs().Name, err)
	}
	return nil
}

// EchoUDP answers every datagram at an address with itself, and counts them.
func (w *World) EchoUDP(at netip.AddrPort) (count func() int, err error) {
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
	if err != nil {
		return nil, err
	}
	w.onClose(c.Close)
	var n atomic.Int64
	go func() {
		buf := make([]byte, 64<<10)
		for {
			size, from, err := c.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			n.Add(1)
			c.WriteToUDPAddrPort(buf[:size], from)
		}
	}()
	return func() int { return int(n.Load()) }, nil
}
