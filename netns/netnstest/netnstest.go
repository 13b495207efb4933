// Package netnstest builds small networks for tests: real namespaces, real packets, nothing of the host's.
//
//	func TestMain(m *testing.M) { netnstest.Main(m, map[string]func([]string) int{"probe": probe}) }
//
//	box, world := netnstest.New(t), netnstest.New(t)
//	netnstest.Veth(
//		netnstest.End{In: box, Name: "eth0", Addrs: []string{"10.9.0.2/24", "fd09::2/64"}},
//		netnstest.End{In: world, Name: "eth0", Addrs: []string{"10.9.0.1/24", "fd09::1/64"}})
//	box.Route("default", "10.9.0.1")
//	l := netnstest.In(world, func() (net.Listener, error) { return net.Listen("tcp", "10.9.0.1:443") })
//	p := box.Start(netnstest.As(netnstest.Program("probe", "10.9.0.1:443"), 1000, 1000))
//
// Everything a test makes is gone when it ends, passed or failed: processes are killed, links deleted, namespaces
// released. A test that cannot have namespaces skips itself, and fails where the environment variable CI is set.
//
// What this does not do: it makes no mount, pid or user namespaces, and touches nothing outside the namespaces
// it made. Functions fail the test themselves, so they are called on the test's own goroutine.
package netnstest

import (
	"fmt"
	"net"
	"os"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	vnetns "github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"exitgate/netns"
)

// Namespace is a network namespace that lives as long as the test it was made for.
type Namespace struct {
	*netns.Handle
	t    testing.TB
	link *netlink.Handle
}

// RequireRoot skips the test for users other than root, and fails it where CI is set.
func RequireRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("CI") != "" {
		t.Fatal("must run as root where CI is set")
	}
	t.Skip("needs root")
}

// New returns a fresh namespace with lo up.
func New(t testing.TB) *Namespace {
	t.Helper()
	RequireRoot(t)
	h, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	link, err := netlink.NewHandleAt(vnetns.NsHandle(h.Fd()), unix.NETLINK_ROUTE)
	if err != nil {
		t.Fatalf("netlink in a new namespace: %v", err)
	}
	t.Cleanup(link.Close)
	n := &Namespace{Handle: h, t: t, link: link}
	n.enableIPv6()
	n.up("lo")
	return n
}

// enableIPv6 undoes what container engines set for namespaces without an IPv6 network, where it can be undone.
func (n *Namespace) enableIPv6() {
	for _, which := range []string{"all", "default"} {
		_ = netns.Do(n.Handle, func() error {
			return os.WriteFile("/proc/sys/net/ipv6/conf/"+which+"/disable_ipv6", []byte("0"), 0)
		})
	}
}

// Do runs f inside the namespace. It runs on a goroutine of its own, so f returns an error rather than calling t.Fatal.
func (n *Namespace) Do(f func() error) {
	n.t.Helper()
	if err := netns.Do(n.Handle, f); err != nil {
		n.t.Fatal(err)
	}
}

// In runs f inside the namespace and returns its value: a connection or a listener that stays there.
func In[T any](n *Namespace, f func() (T, error)) (v T) {
	n.t.Helper()
	n.Do(func() (err error) {
		v, err = f()
		return err
	})
	return v
}

// End is one end of a veth pair.
type End struct {
	In    *Namespace
	Name  string   // of the interface
	Addrs []string // in CIDR notation; usable at once, without duplicate address detection
}

// Veth connects two namespaces by a cable. It is removed when the test of the first ends.
func Veth(a, b End) {
	a.In.t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = a.Name
	err := a.In.link.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: b.Name, PeerNamespace: netlink.NsFd(b.In.Fd())})
	if err != nil {
		a.In.t.Fatalf("veth %s-%s: %v", a.Name, b.Name, err)
	}
	// Not left to the end of the namespace, which the kernel may put off for seconds.
	a.In.t.Cleanup(func() { a.In.remove(a.Name) })
	for _, end := range []End{a, b} {
		end.In.Address(end.Name, end.Addrs...)
	}
}

// Address brings an interface up and adds addresses in CIDR notation to it.
func (n *Namespace) Address(name string, addrs ...string) {
	n.t.Helper()
	link := n.up(name)
	for _, cidr := range addrs {
		addr, err := netlink.ParseAddr(cidr)
		if err != nil {
			n.t.Fatalf("address %q: %v", cidr, err)
		}
		if addr.IP.To4() == nil {
			addr.Flags = unix.IFA_F_NODAD // else it is tentative, and unusable, for a second
		}
		if err := n.link.AddrAdd(link, addr); err != nil {
			n.t.Fatalf("address %s on %s: %v", cidr, name, err)
		}
	}
}

// Route adds a route by a gateway. dst is in CIDR notation, or "default" in the gateway's family.
func (n *Namespace) Route(dst, via string) {
	n.t.Helper()
	gw := net.ParseIP(via)
	if gw == nil {
		n.t.Fatalf("gateway %q is not an address", via)
	}
	if dst == "default" {
		dst = "0.0.0.0/0"
		if gw.To4() == nil {
			dst = "::/0"
		}
	}
	_, to, err := net.ParseCIDR(dst)
	if err == nil {
		err = n.link.RouteAdd(&netlink.Route{Dst: to, Gw: gw})
	}
	if err != nil {
		n.t.Fatalf("route %s via %s: %v", dst, via, err)
	}
}

// Down takes an interface down, and with it the routes over it.
func (n *Namespace) Down(name string) {
	n.t.Helper()
	if err := n.link.LinkSetDown(n.find(name)); err != nil {
		n.t.Fatalf("%s down: %v", name, err)
	}
}

// Sysctl sets a network setting of the namespace, such as "net.ipv4.tcp_syncookies".
func (n *Namespace) Sysctl(key, value string) {
	n.t.Helper()
	path := "/proc/sys/" + strings.ReplaceAll(key, ".", "/")
	n.Do(func() error {
		if err := os.WriteFile(path, []byte(value), 0); err != nil {
			return fmt.Errorf("sysctl %s=%s: %w", key, value, err)
		}
		return nil
	})
}

func (n *Namespace) find(name string) netlink.Link {
	n.t.Helper()
	link, err := n.link.LinkByName(name)
	if err != nil {
		n.t.Fatalf("interface %s: %v", name, err)
	}
	return link
}

func (n *Namespace) up(name string) netlink.Link {
	n.t.Helper()
	link := n.find(name)
	if err := n.link.LinkSetUp(link); err != nil {
		n.t.Fatalf("%s up: %v", name, err)
	}
	return link
}

// remove is for cleanup: the test may have deleted the interface itself.
func (n *Namespace) remove(name string) {
	if link, err := n.link.LinkByName(name); err == nil {
		_ = n.link.LinkDel(link)
	}
}
