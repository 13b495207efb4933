package firewall

import (
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"exitgate/netns"
	"exitgate/netns/netnstest"
)

// TestReloadHammer changes sets, and writes the rules anew as a repair does, as
// fast as the kernel takes it, while allowed and forbidden packets are sent at
// line rate: no allowed one may be refused, no forbidden one may arrive. The
// world counts in its kernel, where no packet is lost to a slow reader.
func TestReloadHammer(t *testing.T) {
	length := 10 * time.Second
	if testing.Short() {
		length = time.Second
	}
	c := usual()
	c.Egress = append(c.Egress,
		Endpoint{unix.IPPROTO_UDP, netip.MustParseAddr(allowedIP4), 443},
		Endpoint{unix.IPPROTO_UDP, netip.MustParseAddr(allowedIP6), 443})
	f := newFence(t, c)
	nft(t, f.world, fmt.Sprintf(`table inet count {
		counter allowed { }
		counter forbidden { }
		chain arrivals {
			type filter hook prerouting priority -300;
			ip daddr %s udp dport 443 counter name allowed
			ip6 daddr %s udp dport 443 counter name allowed
			ip daddr %s counter name forbidden
			ip6 daddr %s meta l4proto udp counter name forbidden
		}
	}`, allowedIP4, allowedIP6, otherIP4, otherIP6), "-f", "-")
	f.far.socket("udp6", "[::]:443")

	type stream struct {
		who       *prober
		net, addr string
		allowed   bool
	}
	streams := []stream{
		{newProber(t, f.box, 0), "udp4", allowedIP4 + ":443", true},
		{newProber(t, f.box, 0), "udp6", "[" + allowedIP6 + "]:443", true},
		{newProber(t, f.box, 0), "udp4", otherIP4 + ":443", false},
		{newProber(t, f.box, 0), "udp6", "[" + otherIP6 + "]:443", false},
		{newProber(t, f.box, 1000), "udp4", otherIP4 + ":443", false},
	}
	var results []func() answer
	for _, s := range streams {
		fd, _ := s.who.dial(s.net, s.addr)
		results = append(results, s.who.begin(call{Op: "flood", FD: fd, Data: []byte("x"), Millis: int(length / time.Millisecond)}))
	}
	commits := f.hammer(time.Now().Add(length))
	var sent, refused int
	for i, s := range streams {
		a := results[i]()
		if a.Err != "" {
			t.Fatalf("flood to %s: %s", s.addr, a.Err)
		}
		if s.allowed {
			sent += a.N
			if a.Refused > 0 {
				t.Errorf("%d of %d allowed packets to %s were refused", a.Refused, a.N+a.Refused, s.addr)
			}
		} else {
			refused += a.Refused
			if a.N > 0 {
				t.Errorf("%d of %d forbidden packets to %s were let out", a.N, a.N+a.Refused, s.addr)
			}
		}
	}
	count := nft(t, f.world, "", "list", "counters", "table", "inet", "count")
	var allowed, forbidden int
	if _, err := fmt.Sscanf(strings.Join(strings.Fields(count), " "),
		"table inet count { counter allowed { packets %d bytes %d } counter forbidden { packets %d", &allowed, new(int), &forbidden); err != nil {
		t.Fatalf("%v in %s", err, count)
	}
	t.Logf("%v: %d commits, %d allowed packets sent (%d arrived), %d forbidden ones refused (%d arrived)", length, commits, sent, allowed, refused, forbidden)
	if forbidden != 0 {
		t.Errorf("%d forbidden packets arrived", forbidden)
	}
	if allowed == 0 || refused == 0 || commits < 16 {
		t.Error("too little happened to prove anything")
	}
}

// hammer commits changes of every kind until the time.
func (f *fence) hammer(end time.Time) (commits int) {
	var few, many Contents
	for i := range 500 {
		e := Endpoint{unix.IPPROTO_TCP, testAddr(i/256, i%256), 443}
		if i < 10 {
			few.Egress = append(few.Egress, e)
		}
		many.Egress = append(many.Egress, e)
	}
	others := Contents{Published: []uint16{3000}, OwnLoopback: []uint32{1001}, Resolvers: dnsEndpoints(netip.MustParseAddrPort("192.0.2.1:53"))}
	for time.Now().Before(end) {
		for _, c := range []Contents{few, others, many} {
			f.update(c, Contents{})
			f.update(Contents{}, c)
			commits += 2
		}
		f.restore() // all rules anew, as a repair does
		if err := f.writer.EnableDenyLog(); err != nil {
			f.t.Fatal(err)
		}
		commits += 2
	}
	return commits
}

// TestManyElements installs sixty thousand elements and reads them back.
func TestManyElements(t *testing.T) {
	ns := netnstest.New(t)
	k := openKernel(t, ns, false)
	want := manyEndpoints(60000)
	w := installed(t, k, want)
	s, err := k.Dump()
	if err != nil {
		t.Fatal(err)
	}
	if got := s.Contents(); len(got.Egress) != 60000 || s.Elements() != 60000 {
		t.Errorf("%d endpoints of %d elements were read back", len(got.Egress), s.Elements())
	}
	if add, del := s.Contents().Diff(want); !add.Empty() || !del.Empty() {
		t.Errorf("%d endpoints are missing and %d too many", add.Len(), del.Len())
	}
	// Where the socket's buffer is small, as in a user namespace, it takes several batches.
	k.limit = 200 << 10
	if err := w.Sync(manyEndpoints(50000)); err != nil {
		t.Fatal(err)
	}
	if s, err = k.Dump(); err != nil || s.Elements() != 50000 {
		t.Errorf("after Sync in parts: %d elements, %v", s.Elements(), err)
	}
}

// manyEndpoints is n distinct endpoints, half of them IPv6.
func manyEndpoints(n int) Contents {
	var c Contents
	for i := range n {
		a := netip.AddrFrom4([4]byte{198, 18 + byte(i>>17), byte(i >> 9), byte(i >> 1)})
		if i%2 == 1 {
			a = netip.AddrFrom16([16]byte{0: 0x20, 1: 0x01, 2: 0x0d, 3: 0xb8, 13: byte(i >> 17), 14: byte(i >> 9), 15: byte(i >> 1)})
		}
		c.Egress = append(c.Egress, Endpoint{unix.IPPROTO_TCP, a, 443})
	}
	return c
}

// TestManyFiles: a process with many open files goes on changing sets, if it
// opened the firewall first; and is told so if it did not.
func TestManyFiles(t *testing.T) {
	ns := netnstest.New(t)
	k := openKernel(t, ns, false)
	w := installed(t, k, Contents{})
	for range 1100 {
		f, err := os.Open("/dev/null")
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
	}
	if err := w.Update(fullContents(), Contents{}); err != nil {
		t.Fatal(err)
	}
	if s, err := k.Dump(); err != nil || s.Contents().Len() != fullContents().Len() {
		t.Errorf("read back %+v, %v", s.Contents(), err)
	}
	err := netns.Do(ns.Handle, func() error { _, err := OpenNetlink(); return err })
	if err == nil || !strings.Contains(err.Error(), "before other files") {
		t.Errorf("opened with 1100 files: %v", err)
	}
}
