package rig

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Wire is the veth pair between the internet and one box.
type Wire struct {
	name         string // of the outer end
	index        int
	gate4, gate6 netip.Addr
	box4, box6   netip.Addr
}

// newWire connects the network namespace of pid: addresses on both ends, default routes inside.
func newWire(pid int) (*Wire, error) {
	n := serial()
	at := func(host byte) netip.Addr { return netip.AddrFrom4([4]byte{44, byte(n >> 8), byte(n), host}) }
	w := &Wire{name: fmt.Sprintf("box%d", n), gate4: at(1), box4: at(2), gate6: address6(0x44, n, 1), box6: address6(0x44, n, 2)}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = w.name
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsPid(pid)}
	if err := netlink.LinkAdd(veth); err != nil {
		return nil, fmt.Errorf("add veth %s: %w", w.name, err)
	}
	outer, err := netlink.LinkByName(w.name)
	if err != nil {
		return nil, errors.Join(err, w.cut())
	}
	w.index = outer.Attrs().Index
	if err := setUp(&netlink.Handle{}, outer, w.gate4, w.gate6); err != nil {
		return nil, errors.Join(err, w.cut())
	}
	if err := addAddress(netlink.AddrAdd, outer, netip.PrefixFrom(Gate6Link, 64)); err != nil {
		return nil, errors.Join(err, w.cut())
	}
	if err := inside(pid, w.setUpInside); err != nil {
		return nil, errors.Join(fmt.Errorf("inside the box: %w", err), w.cut())
	}
	return w, nil
}

// inside calls f with the links and routes of a process's network namespace.
func inside(pid int, f func(*netlink.Handle) error) error {
	ns, err := netns.GetFromPid(pid)
	if err != nil {
		return err
	}
	defer ns.Close()
	h, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	return f(h)
}

func (w *Wire) setUpInside(h *netlink.Handle) error {
	lo, err := h.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := h.LinkSetUp(lo); err != nil {
		return err
	}
	eth, err := h.LinkByName("eth0")
	if err != nil {
		return err
	}
	if err := setUp(h, eth, w.box4, w.box6); err != nil {
		return err
	}
	for _, gate := range []netip.Addr{w.gate4, w.gate6} {
		all := &net.IPNet{IP: make(net.IP, gate.BitLen()/8), Mask: net.CIDRMask(0, gate.BitLen())}
		if err := h.RouteAdd(&netlink.Route{LinkIndex: eth.Attrs().Index, Dst: all, Gw: gate.AsSlice()}); err != nil {
			return fmt.Errorf("default route by %s: %w", gate, err)
		}
	}
	return nil
}

func setUp(h *netlink.Handle, l netlink.Link, v4, v6 netip.Addr) error {
	if err := addAddress(h.AddrAdd, l, netip.PrefixFrom(v4, 30)); err != nil {
		return err
	}
	if err := addAddress(h.AddrAdd, l, netip.PrefixFrom(v6, 64)); err != nil {
		return err
	}
	return h.LinkSetUp(l)
}

// cut removes the pair at once; left to itself the kernel does so some time after the namespace has gone.
func (w *Wire) cut() error {
	l, err := netlink.LinkByName(w.name)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := netlink.LinkDel(l); !errors.Is(err, unix.ENODEV) {
		return err
	}
	return nil
}

// Box4 is the box's own IPv4 address on its wire.
func (w *Wire) Box4() netip.Addr { return w.box4 }

// Box6 is the box's own IPv6 address on its wire.
func (w *Wire) Box6() netip.Addr { return w.box6 }

// Gate4 is the internet's end of the wire, the box's gateway.
func (w *Wire) Gate4() netip.Addr { return w.gate4 }

// Gate6Link is the link-local address of every box's gateway.
var Gate6Link = netip.MustParseAddr("fe80::1")

// Gate6 is the gateway's IPv6 address; the whole /64 around it is on the box's link.
func (w *Wire) Gate6() netip.Addr { return w.gate6 }
