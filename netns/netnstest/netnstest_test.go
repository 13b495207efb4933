package netnstest_test

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"exitgate/netns"
	"exitgate/netns/netnstest"
)

func TestMain(m *testing.M) {
	netnstest.Main(m, map[string]func([]string) int{"who": who, "dial": dial})
}

func who([]string) int {
	groups, _ := os.Getgroups()
	h, err := netns.Current()
	if err != nil {
		return 1
	}
	fmt.Print(os.Getuid(), os.Getgid(), len(groups), " ", h.Inode())
	return 0
}

func dial(args []string) int {
	c, err := net.DialTimeout("tcp", args[0], 5*time.Second)
	if err != nil {
		println(err.Error())
		return 1
	}
	c.Close()
	return 0
}

func TestVeth(t *testing.T) {
	box, world := netnstest.New(t), netnstest.New(t)
	netnstest.Veth(
		netnstest.End{In: box, Name: "eth0", Addrs: []string{"10.9.0.2/24", "fd09::2/64"}},
		netnstest.End{In: world, Name: "eth0", Addrs: []string{"10.9.0.1/24", "fd09::1/64"}})
	world.Address("lo", "192.0.2.1/32", "2001:db8::1/128")
	box.Route("default", "10.9.0.1")
	box.Route("2001:db8::/32", "fd09::1")
	for _, at := range []string{"10.9.0.1:443", "[fd09::1]:443", "192.0.2.1:443", "[2001:db8::1]:443"} {
		l := netnstest.In(world, func() (net.Listener, error) { return net.Listen("tcp", at) })
		defer l.Close()
		cmd := netnstest.As(netnstest.Program("dial", at), 1000, 1000)
		if out, err := box.Output(cmd); err != nil {
			t.Errorf("%s: %v %s", at, err, out)
		}
	}
	box.Down("eth0")
	if _, err := box.Output(netnstest.Program("dial", "10.9.0.1:443")); err == nil {
		t.Error("a connection over a link that is down")
	}
}

func TestStartAs(t *testing.T) {
	ns := netnstest.New(t)
	out, err := ns.Output(netnstest.As(netnstest.Program("who"), 1234, 1235))
	if err != nil {
		t.Fatal(err)
	}
	if want := fmt.Sprintf("1234 1235 0 %d", ns.Inode()); string(out) != want {
		t.Errorf("program says %q, want %q", out, want)
	}
}

func TestSysctl(t *testing.T) {
	ns := netnstest.New(t)
	ns.Sysctl("net.ipv4.tcp_syncookies", "2")
	got := netnstest.In(ns, func() ([]byte, error) { return os.ReadFile("/proc/sys/net/ipv4/tcp_syncookies") })
	if strings.TrimSpace(string(got)) != "2" {
		t.Errorf("tcp_syncookies %q, want 2", got)
	}
}

func TestCleanup(t *testing.T) {
	var cmd *exec.Cmd
	t.Run("inner", func(t *testing.T) {
		ns := netnstest.New(t)
		cmd = ns.Start(exec.Command("sleep", "1000"))
	})
	if cmd.ProcessState == nil {
		t.Error("a process outlived its test")
	}
}
