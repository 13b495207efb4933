package rig

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
)

// Carrier takes the outer end of the wire down or up, as a cable that is pulled.
func (w *Wire) Carrier(up bool) error {
	l, err := netlink.LinkByName(w.name)
	if err != nil {
		return err
	}
	if !up {
		return netlink.LinkSetDown(l)
	}
	if err := netlink.LinkSetUp(l); err != nil {
		return err
	}
	for _, a := range []netip.Prefix{netip.PrefixFrom(w.gate6, 64), netip.PrefixFrom(Gate6Link, 64)} { // IPv6 addresses go with the link
		if err := addAddress(netlink.AddrReplace, l, a); err != nil {
			return err
		}
	}
	return nil
}

// Added is an interface that a running box was given.
type Added struct {
	Capture *Capture // what arrives from it
	name    string
}

// Second gives the box another interface, up, with an address of its own and a way to the internet for who binds to it.
func (b *Box) Second(name string) (*Added, error) {
	n := serial()
	a := &Added{name: fmt.Sprintf("box%d", n)}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = a.name
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: name, PeerNamespace: netlink.NsPid(b.PID)}); err != nil {
		return nil, fmt.Errorf("add veth %s: %w", a.name, err)
	}
	err := a.wire(b.PID, name, netip.AddrFrom4([4]byte{43, byte(n >> 8), byte(n), 1}), netip.AddrFrom4([4]byte{43, byte(n >> 8), byte(n), 2}))
	if err != nil {
		return nil, errors.Join(err, a.Close())
	}
	return a, nil
}

func (a *Added) wire(pid int, name string, outer, inner netip.Addr) error {
	l, err := netlink.LinkByName(a.name)
	if err != nil {
		return err
	}
	if a.Capture, err = newCapture(l.Attrs().Index); err != nil {
		return err
	}
	if err := addAddress(netlink.AddrAdd, l, netip.PrefixFrom(outer, 30)); err != nil {
		return err
	}
	if err := netlink.LinkSetUp(l); err != nil {
		return err
	}
	return inside(pid, func(h *netlink.Handle) error {
		in, err := h.LinkByName(name)
		if err != nil {
			return err
		}
		if err := addAddress(h.AddrAdd, in, netip.PrefixFrom(inner, 30)); err != nil {
			return err
		}
		if err := h.LinkSetUp(in); err != nil {
			return err
		}
		all := &net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}
		return h.RouteAdd(&netlink.Route{LinkIndex: in.Attrs().Index, Dst: all, Gw: outer.AsSlice(), Priority: 1000})
	})
}

// Close takes the interface away.
func (a *Added) Close() error {
	var errs []error
	if a.Capture != nil {
		errs = append(errs, a.Capture.close())
	}
	l, err := netlink.LinkByName(a.name)
	if err == nil {
		err = netlink.LinkDel(l)
	}
	return errors.Join(append(errs, err)...)
}
