package caller

import (
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
)

func TestFindHolder(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ listen, ask string }{
		{"127.0.0.1:0", "127.0.0.1"}, {"0.0.0.0:0", "127.0.0.1"}, {"[::1]:0", "::1"}, {"[::]:0", "127.0.0.1"},
	} {
		l, err := net.Listen("tcp", c.listen)
		if err != nil {
			t.Logf("%s: %v", c.listen, err) // a machine without IPv6
			continue
		}
		at := netip.AddrPortFrom(netip.MustParseAddr(c.ask), l.Addr().(*net.TCPAddr).AddrPort().Port())
		h, err := FindHolder(at)
		if err != nil || h.PID != os.Getpid() || h.Exe != exe || h.UID != uint32(os.Geteuid()) {
			t.Errorf("%s: %+v, %v; want this process, %s", c.listen, h, err, exe)
		}
		l.Close()
		if h, err := FindHolder(at); err == nil {
			t.Errorf("%s, closed: %v", c.listen, h)
		}
	}
}

func TestHolderOutOfSight(t *testing.T) {
	table := `  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 0100007F:9C40 01 00000000:00000000 00:00000000 00000000     7        0 11 1 0 100 0 0 10 0
   1: 0200007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     8        0 12 1 0 100 0 0 10 0
   2: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 13 1 0 100 0 0 10 0
`
	uid, inode, found := findListener(strings.NewReader(table), netip.MustParseAddrPort("127.0.0.1:8080"))
	if !found || uid != 1000 || inode != "13" {
		t.Errorf("uid %d, inode %s, %v", uid, inode, found)
	}
	if _, _, found := findListener(strings.NewReader(table+"x\n: : : 0A zz\n"), netip.MustParseAddrPort("127.0.0.1:80")); found {
		t.Error("found a listener on a free port")
	}
	if s := (Holder{UID: 1000}).String(); !strings.Contains(s, "uid 1000") || strings.Contains(s, "pid") {
		t.Error(s)
	}
}
