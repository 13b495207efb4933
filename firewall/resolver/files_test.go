package resolver

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestParseResolvConf(t *testing.T) {
	tests := []struct {
		name, text        string
		servers, forwards string
	}{
		{"empty", "", "", ""},
		{"plain", "search example.com\nnameserver 9.9.9.9\nnameserver 2620:fe::fe\noptions ndots:5\n", "9.9.9.9:53 [2620:fe::fe]:53", ""},
		{"no newline at the end, tabs", "\tnameserver\t9.9.9.9", "9.9.9.9:53", ""},
		{"comments", "#nameserver 1.1.1.1\n; nameserver 1.0.0.1\n # nameserver 1.0.0.2\nnameserver 9.9.9.9 # mine\n", "9.9.9.9:53", ""},
		{"nonsense", "nameserver\nnameserver example.com\nnameserver 999.1.1.1\nnameserver 0.0.0.0\nnameserver ff02::fb\nnameservers 1.1.1.1\n", "", ""},
		{"twice", "nameserver 9.9.9.9\nnameserver 9.9.9.9\n", "9.9.9.9:53", ""},
		{"zone", "nameserver fe80::1%eth0\n", "[fe80::1%eth0]:53", ""},
		{"IPv4 in IPv6", "nameserver ::ffff:9.9.9.9\n", "9.9.9.9:53", ""},
		{"docker, host's resolver", "nameserver 127.0.0.11\nsearch lan\noptions edns0 ndots:0\n\n# Based on host file: '/etc/resolv.conf' (internal resolver)\n# ExtServers: [host(127.0.0.53)]\n# Overrides: []\n", "127.0.0.11:53", ""},
		{"docker, --dns", "nameserver 127.0.0.11\noptions ndots:0\n# ExtServers: [1.1.1.1 2606:4700:4700::1111]\n# Overrides: [nameservers]\n", "127.0.0.11:53", "1.1.1.1:53 [2606:4700:4700::1111]:53"},
		{"docker, mixed", "nameserver 127.0.0.11\n# ExtServers: [8.8.8.8 host(127.0.0.53)]\n", "127.0.0.11:53", "8.8.8.8:53"},
		{"docker, comment first", "# ExtServers: [8.8.8.8]\nnameserver 127.0.0.11\n", "127.0.0.11:53", "8.8.8.8:53"},
		{"docker, empty", "nameserver 127.0.0.11\n# ExtServers: []\n", "127.0.0.11:53", ""},
		{"the comment without the resolver it is about", "nameserver 9.9.9.9\n# ExtServers: [8.8.8.8]\n", "9.9.9.9:53", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := parseResolvConf([]byte(tt.text))
			if words(c.servers) != tt.servers || words(c.forwards) != tt.forwards {
				t.Errorf("servers %q forwards %q; want %q and %q", words(c.servers), words(c.forwards), tt.servers, tt.forwards)
			}
		})
	}
	many := strings.Repeat("nameserver 1.1.1.1\nnameserver 2.2.2.2\n", 3)
	for i := range 60 {
		many += "nameserver 9.9.9." + string(rune('0'+i%10)) + "\nnameserver 8.8.4." + string(rune('0'+i%10)) + "\n"
	}
	if c := parseResolvConf([]byte(many)); len(c.servers) != maxAsked {
		t.Errorf("%d servers", len(c.servers))
	}
}

func TestParseHosts(t *testing.T) {
	text := "127.0.0.1\tlocalhost\n::1 localhost ip6-localhost\n# 9.9.9.9 commented\n\n172.17.0.1 host.docker.internal # added\n" +
		"10.0.0.7 DB.Example.COM. db\n10.0.0.8 db\n10.0.0.8 db\nnonsense here\n1.2.3 short\n10.0.0.9\n::ffff:10.0.0.9 mapped\nfe80::1%eth0 zoned"
	want := map[string]string{
		"localhost": "127.0.0.1 ::1", "ip6-localhost": "::1", "host.docker.internal": "172.17.0.1", "db.example.com": "10.0.0.7",
		"db": "10.0.0.7 10.0.0.8", "mapped": "10.0.0.9", "zoned": "fe80::1%eth0",
	}
	got := map[string]string{}
	for name, list := range parseHosts([]byte(text)) {
		got[name] = words(list)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func FuzzParseHosts(f *testing.F) {
	f.Add([]byte("127.0.0.1 localhost\n::1 a b # c\n"))
	f.Add([]byte("\x00\xff 1.1.1.1 \r\n1.1.1.1 A. a"))
	f.Add([]byte("0.0.0.0 .. a.."))
	f.Fuzz(func(t *testing.T, data []byte) {
		for name, list := range parseHosts(data) {
			if name == "" || len(name) > 253 || strings.HasSuffix(name, ".") || name != strings.ToLower(name) {
				t.Errorf("name %q", name)
			}
			if len(list) == 0 || len(list) > maxAddrs {
				t.Errorf("%q has %d addresses", name, len(list))
			}
			for i, a := range list {
				if !a.IsValid() || a.Is4In6() || slices.Contains(list[:i], a) {
					t.Errorf("%q: %v", name, a)
				}
			}
		}
	})
}

func FuzzParseResolvConf(f *testing.F) {
	f.Add([]byte("nameserver 127.0.0.11\n# ExtServers: [8.8.8.8 host(127.0.0.53)]\n"))
	f.Add([]byte("nameserver 1.1.1.1\r\nnameserver ::1%x"))
	f.Fuzz(func(t *testing.T, data []byte) {
		c := parseResolvConf(data)
		for _, list := range [][]netip.AddrPort{c.servers, c.forwards} {
			if len(list) > maxAsked {
				t.Errorf("%d servers", len(list))
			}
			for _, s := range list {
				if !s.IsValid() || s.Port() != 53 || s.Addr().IsUnspecified() || s.Addr().IsMulticast() {
					t.Errorf("server %v", s)
				}
			}
		}
		docker := slices.ContainsFunc(c.servers, func(s netip.AddrPort) bool { return s.Addr() == dockerDNS })
		if len(c.forwards) > 0 && !docker {
			t.Error("forwards without the embedded DNS")
		}
	})
}

const routes4 = `Iface	Destination	Gateway 	Flags	RefCnt	Use	Metric	Mask		MTU	Window	IRTT
eth0	00000000	010200C0	0003	0	0	0	00000000	0	0	0
eth0	000200C0	00000000	0001	0	0	0	00FFFFFF	0	0	0
eth1	0000000A	0101A8C0	0003	0	0	0	000000FF	0	0	0
`

const routes6Text = `fd000000000000000000000000000000 40 00000000000000000000000000000000 00 00000000000000000000000000000000 00000100 00000001 00000000 00000001     eth0
00000000000000000000000000000000 00 00000000000000000000000000000000 00 fd000000000000000000000000000001 00000400 00000002 00000000 00000003     eth0
`

// idle6 is a namespace without IPv6 beyond its links.
const idle6 = `fe800000000000000000000000000000 40 00000000000000000000000000000000 00 00000000000000000000000000000000 00000100 00000002 00000000 00000001     eth0
00000000000000000000000000000001 80 00000000000000000000000000000000 00 00000000000000000000000000000000 00000000 00000003 00000000 80200001       lo
fd000000000000000000000000000002 80 00000000000000000000000000000000 00 00000000000000000000000000000000 00000000 00000003 00000000 80200001     eth0
ff000000000000000000000000000000 08 00000000000000000000000000000000 00 00000000000000000000000000000000 00000100 00000003 00000000 00000001     eth0
00000000000000000000000000000000 00 00000000000000000000000000000000 00 00000000000000000000000000000000 ffffffff 00000001 00000000 00200200       lo
`

func TestRoutes(t *testing.T) {
	if got := words(gateways4([]byte(routes4))); got != "192.0.2.1" {
		t.Errorf("gateways %q", got)
	}
	if got := words(gateways6([]byte(routes6Text + idle6))); got != "fd00::1" {
		t.Errorf("gateways %q", got)
	}
	if !routed6([]byte(routes6Text+idle6)) || routed6([]byte(idle6)) || routed6(nil) {
		t.Error("whether IPv6 leads anywhere")
	}
	if !slices.Contains(localAddrs(), netip.MustParseAddr("127.0.0.1")) {
		t.Errorf("own addresses %v", localAddrs())
	}
}

func write(t *testing.T, root, path, text string) {
	t.Helper()
	path = filepath.Join(root, path)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// TestServersAreOpenedBeforeUse follows resolv.conf through changes, failures and the policy's own list.
func TestServersAreOpenedBeforeUse(t *testing.T) {
	var opened []string
	var refuse error
	g := newRig(t, func(c *Config) {
		write(t, c.Root, "etc/resolv.conf", "nameserver 127.0.0.11\n# ExtServers: [8.8.8.8 host(127.0.0.53)]\n")
		c.Resolvers = func(list []netip.AddrPort) error {
			opened = append(opened, words(list))
			return refuse
		}
	})
	expect := func(step, asked, open string, calls ...string) {
		t.Helper()
		if got := words(g.sys.facts().servers()); got != asked {
			t.Errorf("%s: asks %q, want %q", step, got, asked)
		}
		if got := words(g.Servers()); got != open {
			t.Errorf("%s: open %q, want %q", step, got, open)
		}
		if !slices.Equal(opened, calls) {
			t.Errorf("%s: opened %q, want %q", step, opened, calls)
		}
		opened = nil
	}
	later := func() { g.clock.add(recheck); g.reread() }

	expect("new", "127.0.0.11:53", "8.8.8.8:53 127.0.0.11:53")
	p := load(t, "")
	g.apply(t, p)
	expect("first policy", "127.0.0.11:53", "8.8.8.8:53 127.0.0.11:53", "8.8.8.8:53 127.0.0.11:53")
	write(t, g.cfg.Root, "etc/resolv.conf", "nameserver 9.9.9.9\nnameserver fe80::1%eth0\n")
	g.reread()
	expect("too early to look", "127.0.0.11:53", "8.8.8.8:53 127.0.0.11:53")
	later()
	expect("changed", "9.9.9.9:53 [fe80::1%eth0]:53", "9.9.9.9:53 [fe80::1]:53", "9.9.9.9:53 [fe80::1]:53")
	later()
	expect("unchanged", "9.9.9.9:53 [fe80::1%eth0]:53", "9.9.9.9:53 [fe80::1]:53")

	refuse = errors.New("no")
	write(t, g.cfg.Root, "etc/resolv.conf", "nameserver 9.9.9.10\n")
	later()
	expect("kernel refuses", "9.9.9.9:53 [fe80::1%eth0]:53", "9.9.9.9:53 [fe80::1]:53", "9.9.9.10:53")
	refuse = nil
	g.reread()
	expect("kernel agrees", "9.9.9.10:53", "9.9.9.10:53", "9.9.9.10:53")
	write(t, g.cfg.Root, "etc/resolv.conf", "")
	later()
	expect("being rewritten", "9.9.9.10:53", "9.9.9.10:53")

	own := load(t, "", endpoint("9.9.9.11:5353"))
	refuse = errors.New("no")
	if _, err := g.SetPolicy(own); err == nil {
		t.Error("a policy whose servers cannot be opened is taken")
	}
	expect("policy's servers, refused", "9.9.9.10:53", "9.9.9.10:53", "9.9.9.11:5353")
	refuse = nil
	g.apply(t, own)
	expect("policy's servers", "9.9.9.11:5353", "9.9.9.11:5353", "9.9.9.11:5353")
	write(t, g.cfg.Root, "etc/resolv.conf", "nameserver 127.0.0.11\n# ExtServers: [8.8.8.8]\n")
	later()
	expect("policy's servers are all", "9.9.9.11:5353", "9.9.9.11:5353")
	write(t, g.cfg.Root, "etc/resolv.conf", "nameserver 9.9.9.10\n")
	later()
	g.apply(t, p)
	expect("resolv.conf again", "9.9.9.10:53", "9.9.9.10:53", "9.9.9.10:53")
}

func TestUnreadableFilesKeepWhatWasKnown(t *testing.T) {
	g := newRig(t, func(c *Config) { write(t, c.Root, "etc/resolv.conf", "nameserver 9.9.9.9\n") })
	g.apply(t, load(t, ""))
	path := filepath.Join(g.cfg.Root, "etc/resolv.conf")
	if err := errors.Join(os.Remove(path), os.Mkdir(path, 0o755)); err != nil {
		t.Fatal(err)
	}
	g.clock.add(time.Minute)
	g.reread()
	if got := words(g.Servers()); got != "9.9.9.9:53" {
		t.Errorf("servers %q", got)
	}
}
