package firewall

import (
	"bytes"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"exitgate/netns"
	"exitgate/netns/netnstest"
)

func TestMain(m *testing.M) {
	netnstest.Main(m, map[string]func([]string) int{"probe": probe, "open": openAndReport})
}

func init() { netns.LockMainThread() }

// fullContents has members in every set.
func fullContents() Contents {
	return Contents{
		Listeners: []Listener{
			{UID: 1000, Addr: netip.MustParseAddrPort("127.0.0.1:8080")},
			{UID: 1001, Addr: netip.MustParseAddrPort("127.0.0.1:8081")},
			{UID: 1000, Addr: netip.MustParseAddrPort("[::1]:8080")},
		},
		Egress: []Endpoint{
			{Proto: unix.IPPROTO_TCP, Addr: netip.MustParseAddr("192.0.2.10"), Port: 443},
			{Proto: unix.IPPROTO_UDP, Addr: netip.MustParseAddr("127.0.0.53"), Port: 53},
			{Proto: unix.IPPROTO_TCP, Addr: netip.MustParseAddr("2001:db8::10"), Port: 443},
		},
		Resolvers:    slices.Concat(dnsEndpoints(netip.MustParseAddrPort("192.0.2.53:53")), dnsEndpoints(netip.MustParseAddrPort("[2001:db8::53]:53"))),
		Published:    []uint16{3000, 443},
		OwnLoopback:  []uint32{1000, 70000},
		RootLoopback: []uint16{9000},
	}.Normalize()
}

// openKernel connects to nf_tables in a namespace. Plain: others may change the table.
func openKernel(t testing.TB, ns *netnstest.Namespace, plain bool) *Netlink {
	t.Helper()
	k := netnstest.In(ns, OpenNetlink)
	k.plain = plain
	t.Cleanup(func() { k.Close() })
	return k
}

// nft runs the nft program inside a namespace.
func nft(t testing.TB, ns *netnstest.Namespace, stdin string, args ...string) string {
	t.Helper()
	out, err := tryNft(ns, stdin, args...)
	if err != nil {
		t.Fatalf("nft %q: %v\n%s", args, err, out)
	}
	return out
}

func tryNft(ns *netnstest.Namespace, stdin string, args ...string) (string, error) {
	cmd := exec.Command("nft", args...)
	cmd.Stdin = bytes.NewBufferString(stdin)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := ns.Output(cmd)
	return string(out) + stderr.String(), err
}

func requireNft(t testing.TB) {
	t.Helper()
	if _, err := exec.LookPath("nft"); err != nil {
		cannot(t, err.Error())
	}
}

// cannot skips a test that cannot run here, and fails it where CI is set.
func cannot(t testing.TB, why string) {
	t.Helper()
	if os.Getenv("CI") != "" {
		t.Fatal(why)
	}
	t.Skip(why)
}

// listing is the table as nft lists it, less what differs between two tables
// that are the same: the owner, and the order nft prints a map's values in. The
// library does not send the hint for the latter (NFTNL_UDATA_SET_DATABYTEORDER),
// so nft swaps the bytes of marks in what it prints; Dump compares them.
func listing(t testing.TB, ns *netnstest.Namespace) string {
	text := nft(t, ns, "", "list", "table", "inet", TableName)
	text = regexp.MustCompile(`( # progname \S+)?\n\tflags [a-z,]*\n\n`).ReplaceAllString(text, "\n")
	return regexp.MustCompile(`(\d+) : 0x[0-9a-f]{8}`).ReplaceAllString(text, "$1 : mark")
}

// TestTwoRoads installs the same contents by netlink and by nft from our text:
// nft must list the same, and the kernel dump the same expressions and elements,
// also when either is done twice.
func TestTwoRoads(t *testing.T) {
	requireNft(t)
	for _, tc := range []struct {
		name string
		c    Contents
	}{{"lockdown", Contents{}}, {"full", fullContents()}} {
		t.Run(tc.name, func(t *testing.T) {
			byNetlink, byText := netnstest.New(t), netnstest.New(t)
			k, reader := openKernel(t, byNetlink, false), openKernel(t, byText, false)
			w := NewWriter(k)
			for range 2 {
				if err := w.Install(tc.c); err != nil {
					t.Fatal(err)
				}
				nft(t, byText, Render(tc.c), "-f", "-")
				if d := cmp.Diff(listing(t, byText), listing(t, byNetlink)); d != "" {
					t.Errorf("netlink (+) lists otherwise than nft (-):\n%s", d)
				}
				if d := cmp.Diff(dumpText(t, reader), dumpText(t, k)); d != "" {
					t.Errorf("netlink (+) makes other expressions than nft (-):\n%s", d)
				}
			}
		})
	}
}

// dumpText is the kernel's state without the table's flags.
func dumpText(t testing.TB, k Kernel) string {
	t.Helper()
	s, err := k.Dump()
	if err != nil {
		t.Fatal(err)
	}
	s.Flags = nil
	return s.String()
}

// testAddr is one of 256 addresses for each of 256 users.
func testAddr(user, i int) netip.Addr {
	return netip.AddrFrom4([4]byte{198, 18, byte(user), byte(i)})
}

// dockerTable is what Docker puts into a container's namespace for its DNS.
const dockerTable = `
table ip docker-dns {
	chain dns-dnat {
		type nat hook output priority -100; policy accept;
		ip daddr 127.0.0.11 udp dport 53 counter dnat to 127.0.0.11:40053
		ip daddr 127.0.0.11 tcp dport 53 counter dnat to 127.0.0.11:40053
	}
	chain dns-snat {
		type nat hook postrouting priority 100; policy accept;
		ip saddr 127.0.0.11 udp sport 40053 counter snat to 127.0.0.11:53
		ip saddr 127.0.0.11 tcp sport 40053 counter snat to 127.0.0.11:53
	}
}
`
