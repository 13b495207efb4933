package policy

import (
	"strings"
	"testing"
	"time"
)

func TestParseHost(t *testing.T) {
	label63 := strings.Repeat("a", 63)
	name253 := strings.Repeat(label63+".", 3) + strings.Repeat("b", 61)
	for _, c := range []struct{ in, want string }{
		{"example.com", "example.com"},
		{"EXAMPLE.Com", "example.com"},
		{"example.com.", "example.com"},
		{"BÜCHER.example", "xn--bcher-kva.example"},
		{"bu\u0308cher.example", "xn--bcher-kva.example"}, // composed and decomposed are one name
		{"XN--BCHER-KVA.example", "xn--bcher-kva.example"},
		{"straße.example", "xn--strae-oqa.example"}, // not strasse: another name since IDNA 2008
		{"例え。テスト", "xn--r8jz45g.xn--zckzah"},        // ideographic full stop
		{"ｅｘａｍｐｌｅ.com", "example.com"},
		{"r3---sn-4g5e.example", "r3---sn-4g5e.example"},
		{"r3---sn-ü.example", "xn--r3---sn--e6a.example"},
		{"postgres", "postgres"},
		{"1password.com", "1password.com"},
		{"a.1x", "a.1x"},
		{"0xdeadbeefg", "0xdeadbeefg"},
		{"*.example.com", "*.example.com"},
		{"*.EXAMPLE.com.", "*.example.com"},
		{"*.bücher.example", "*.xn--bcher-kva.example"},
		{"*.cluster.local", "*.cluster.local"},
		{"192.0.2.1", "192.0.2.1"},
		{"127.0.0.1", "127.0.0.1"},
		{"2001:DB8::0:1", "2001:db8::1"},
		{"::1", "::1"},
		{"64:ff9b::a00:1", "64:ff9b::a00:1"},
		{label63 + ".example", label63 + ".example"},
		{name253, name253},
		{name253 + ".", name253},
	} {
		h, err := ParseHost(c.in)
		if err != nil || h.String() != c.want {
			t.Errorf("ParseHost(%q) = %q, %v; want %q", c.in, h, err, c.want)
			continue
		}
	}
}

func TestParseHostRefuses(t *testing.T) {
	label64 := strings.Repeat("a", 64)
	name254 := strings.Repeat(label64[1:]+".", 3) + strings.Repeat("b", 62)
	for _, c := range []struct{ in, want string }{
		{"", "empty"},
		{".", "empty label"},
		{"..", "empty label"},
		{"a..b", "empty label"},
		{"a.b..", "empty label"},
		{".a", "empty label"},
		{label64 + ".example", "label of 64 bytes"},
		{name254, "has 254 bytes"},
		{"a-.example", "hyphen"},
		{"-a.example", "hyphen"},
		{"a_b.example", "underscore"},
		{"a\x00.example", `'\x00'`},
		{"a\nb.example", `'\n'`},
		{"a b.example", "name or an address alone"},
		{"a%00.example", "name or an address alone"},
		{"a/b", "write a"},
		{"user@example.com", "name or an address alone"},
		{"example.com:443", "ports: [443]"},
		{"https://example.com:8443/x?y", "ports: [8443]"},
		{"example.com\\.evil.example", "name or an address alone"},
		{"a#b", "alone"},
		{"xn--a", "xn-- label"},
		{"xn--999999999.example", "xn-- label"},
		{"\u202eexample.com", "not an international"},
		{"a\xff.example", "not an international"},
		{"exa\u200dmple.com", "not an international"},
		// addresses in the forms inet_aton(3) and URL parsers read
		{"127.1", "write 127.0.0.1"},
		{"127.0.1", "write 127.0.0.1"},
		{"0", "write 0.0.0.0"},
		{"1.10", "write 1.0.0.10"},
		{"2130706433", "write 127.0.0.1"},
		{"017700000001", "write 127.0.0.1"},
		{"0x7f000001", "write 127.0.0.1"},
		{"0X7F.1", "write 127.0.0.1"},
		{"0x7f.0x0.0x0.0x1", "write 127.0.0.1"},
		{"127.0.0.01", "write 127.0.0.1"},
		{"127.0.0.0x", "write 127.0.0.0"},
		{"127.0.0.1.", "write 127.0.0.1"},
		{"１２７.0.0.1", "write 127.0.0.1"},
		{"127。0。0。1", "write 127.0.0.1"},
		{"①②⑦.0.0.1", "write 127.0.0.1"},
		{"256.0.0.1", "ends in a number"},
		{"1.2.3.4.5", "ends in a number"},
		{"4294967296", "ends in a number"},
		{"0x", "write 0.0.0.0"},
		{"a.b.1", "ends in a number"},
		{"a.0x1", "ends in a number"},
		{"example.08", "ends in a number"},
		{"[::1]", "write ::1"},
		{"[::1", "write ::1"},
		{"[127.0.0.1]", "write 127.0.0.1"},
		{"fe80::1%eth0", "zone"},
		{"::ffff:10.0.0.1", "write 10.0.0.1"},
		{"::ffff:0a00:0001", "write 10.0.0.1"},
		{"0.0.0.0", "not the address of one host"},
		{"::", "not the address of one host"},
		{"255.255.255.255", "not the address of one host"},
		{"224.0.0.1", "not the address of one host"},
		{"ff02::1", "not the address of one host"},
		{"::1::", "name or an address alone"},
		{"*", "star"},
		{"*.", "empty label"},
		{"*.*.example.com", "star"},
		{"**.example.com", "star"},
		{"a*.example.com", "star"},
		{"*a.example.com", "star"},
		{"a.*", "star"},
		{"*.com", "whole top-level domain"},
		{"*.local", "whole top-level domain"},
		{"*.co.uk", "public suffix"},
		{"*.github.io", "public suffix"},
		{"*.s3.amazonaws.com", "public suffix"},
		{"*.CO.UK.", "public suffix"},
		{"*.127.0.0.1", "no names below"},
		{"*.[::1]", "name or an address alone"},
	} {
		h, err := ParseHost(c.in)
		if err == nil || h != (Host{}) {
			t.Errorf("ParseHost(%q) = %+v, %v; want a refusal", c.in, h, err)
			continue
		}
		if !strings.Contains(err.Error(), c.want) {
			t.Errorf("ParseHost(%q): %v; want it to say %q", c.in, err, c.want)
		}
	}
}

// TestHostMatch has the pairs just inside and just outside of each kind of entry.
func TestHostMatch(t *testing.T) {
	p := mustLoad(t, `
version: 1
egress:
  - host: github.com
  - host: "*.example.com"
  - host: exact.deep.example.com
    ports: [8443]
  - host: "*.deep.example.com"
    ports: [444]
  - host: "*.bücher.example"
  - host: 192.0.2.1
  - host: 2001:db8::1
`)
	for _, c := range []struct {
		host string
		port uint16
		want bool
	}{
		{"github.com", 443, true}, {"GitHub.COM", 443, true}, {"github.com.", 443, true}, {"github.com", 444, false},
		{"evilgithub.com", 443, false}, {"github.com.evil.example", 443, false}, {"a.github.com", 443, false}, {"github.co", 443, false}, {"github.comm", 443, false},
		{"github.com..", 443, false}, {".github.com", 443, false}, {"github.com\x00.evil", 443, false}, {"github.com%00", 443, false}, {"user@github.com", 443, false},
		{"a.example.com", 443, true}, {"a.b.example.com", 443, true}, {"A.Example.COM.", 443, true},
		{"example.com", 443, false}, {".example.com", 443, false}, {"a..example.com", 443, false}, {"evilexample.com", 443, false}, {"-a.example.com", 443, false},
		{"a.example.com.evil.example", 443, false}, {"*.example.com", 443, false}, {"a_b.example.com", 443, false}, {"a.example.com:443", 443, false},
		{strings.Repeat("a", 63) + ".example.com", 443, true}, {strings.Repeat("a", 64) + ".example.com", 443, false},
		// the most specific entry decides alone
		{"exact.deep.example.com", 8443, true}, {"exact.deep.example.com", 443, false}, {"exact.deep.example.com", 444, false},
		{"other.deep.example.com", 444, true}, {"other.deep.example.com", 443, false}, {"deep.example.com", 443, true}, {"deep.example.com", 444, false},
		{"a.exact.deep.example.com", 444, true},
		{"a.bücher.example", 443, true}, {"a.xn--bcher-kva.example", 443, true}, {"xn--bcher-kva.example", 443, false}, {"a.bucher.example", 443, false},
		{"192.0.2.1", 443, true}, {"192.0.2.2", 443, false}, {"192.0.2.1.", 443, false}, {"192.0.513", 443, false}, {"3221225985", 443, false}, {"0xc0000201", 443, false},
		{"::ffff:192.0.2.1", 443, false}, {"2001:db8::1", 443, true}, {"2001:DB8:0::1", 443, true}, {"[2001:db8::1]", 443, false}, {"2001:db8::2", 443, false}, {"2001:db8::1%lo", 443, false},
	} {
		r := Request{Road: RoadConnect, Host: c.host, Port: c.port}
		d := p.Decide(r)
		if d.Allow != c.want {
			t.Errorf("%s:%d: %v, want %v (%s)", c.host, c.port, d.Allow, c.want, d.Message())
		}
		if d.Allow == (d.Egress == nil) && d.Allow {
			t.Errorf("%s:%d: allowed without an entry", c.host, c.port)
		}
		if _, ok := p.Resolvable(c.host, c.port, time.Time{}); ok != c.want {
			t.Errorf("%s:%d: resolvable %v, decided %v", c.host, c.port, ok, c.want)
		}
	}
}

// FuzzHost: the normal form is a fixed point, and no spelling is allowed that
// its normal form is not.
func FuzzHost(f *testing.F) {
	for _, s := range []string{"github.com", "GitHub.com.", "a.example.com", "*.example.com", "bücher.example", "127.1", "0x7f.1", "192.0.2.1", "2001:db8::1",
		"[::1]", "::ffff:192.0.2.1", "a\x00b", "xn--bcher-kva.example", "１９２.0.2.1", "example。com", "user@github.com", "github.com:443", "a..b", "ſ.example.com"} {
		f.Add(s, uint16(443))
	}
	p, err := Load("policy.yaml", []byte("version: 1\negress:\n  - host: github.com\n  - host: \"*.example.com\"\n  - host: bücher.example\n  - host: 192.0.2.1\n  - host: 2001:db8::1\n"))
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, s string, port uint16) {
		h, err := ParseHost(s)
		d := p.Decide(Request{Road: RoadConnect, Host: s, Port: port})
		if err != nil || h.Wildcard {
			if d.Allow {
				t.Fatalf("%q is allowed and is no host: %v", s, err)
			}
			return
		}
		again, err := ParseHost(h.String())
		if err != nil || again != h {
			t.Fatalf("the normal form of %q is %q, of which it is %q, %v", s, h, again, err)
		}
		if len(h.Name) > maxName || strings.ContainsAny(h.Name, "ABCDEFGHIJKLMNOPQRSTUVWXYZ_/@[]% ") || strings.HasSuffix(h.Name, ".") {
			t.Fatalf("normal form %q", h.Name)
		}
		if n := p.Decide(Request{Road: RoadConnect, Host: h.String(), Port: port}); n.Allow != d.Allow {
			t.Fatalf("%q: %v, its normal form %q: %v", s, d.Allow, h, n.Allow)
		}
		want := h.Name == "github.com" || h.Name == "xn--bcher-kva.example" || h.Name == "192.0.2.1" || h.Name == "2001:db8::1" || strings.HasSuffix(h.Name, ".example.com")
		if d.Allow != (want && port == 443) {
			t.Fatalf("%q, %q: %v", s, h, d.Allow)
		}
		if strings.ContainsAny(d.Message(), "\x00\n\r\x1b") {
			t.Fatalf("message %q", d.Message())
		}
	})
}
