package netns

import (
	"context"
	"net"
	"net/netip"
)

// ListenTCP opens a TCP listener on addr inside namespace h. It stays usable from outside. An IPv6 address
// listens for IPv6 only.
func ListenTCP(h *Handle, addr netip.AddrPort) (*net.TCPListener, error) {
	network := "tcp4"
	if addr.Addr().Is6() && !addr.Addr().Is4In6() {
		network = "tcp6"
	}
	var lc net.ListenConfig
	// Go 1.24 listens on MPTCP sockets by default. Their subflows send packets that carry no owner, which a rule by uid
	// cannot match.
	lc.SetMultipathTCP(false)
	var l net.Listener
	err := Do(h, func() (err error) {
		l, err = lc.Listen(context.Background(), network, addr.String())
		return err
	})
	if err != nil {
		return nil, err
	}
	return l.(*net.TCPListener), nil
}
