package policy

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// The values that several sections share.

var nameForm = expression(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

// name reads the name of an entry: it stands in messages, metrics and file names.
func (r *reader) name(n *yaml.Node, what string) string {
	s, ok := r.str(n, what)
	if ok && (!nameForm().MatchString(s) || secretShape().MatchString(s)) {
		r.fail(n, "write 1 to 64 letters, digits, dots, hyphens and underscores, a letter or digit first", "%s is %s", what, quoted(s))
		return ""
	}
	return s
}

// words reads a list of words with their places; the result is never nil.
func (r *reader) words(n *yaml.Node, what string) []word {
	all := []word{}
	r.list(n, what, func(v *yaml.Node) {
		if s, ok := r.str(v, "an element of "+what); ok {
			all = append(all, word{s, r.at(v)})
		}
	})
	return all
}

// ports reads a list of TCP ports, each once.
func (r *reader) ports(n *yaml.Node, what string) []port {
	all := make([]port, 0, len(n.Content))
	r.list(n, what, func(v *yaml.Node) {
		number, ok := r.portNumber(v, what)
		if !ok {
			return
		}
		if slices.ContainsFunc(all, func(p port) bool { return p.number == number }) {
			r.fail(v, "remove one", "port %d is in %s twice", number, what)
			return
		}
		all = append(all, port{number, r.at(v)})
	})
	return all
}

var portRange = expression(`^[0-9]+ *(-|:|\.\.) *[0-9]+$`)

func (r *reader) portNumber(n *yaml.Node, what string) (uint16, bool) {
	if n.Kind == yaml.ScalarNode && strings.ContainsAny(n.Value, "-:.") && portRange().MatchString(n.Value) {
		r.fail(n, "list each port", "%s has a range: %s", what, quoted(n.Value))
		return 0, false
	}
	v, ok := r.number(n, "a port", 1, 65535)
	return uint16(v), ok
}

func numbers(ports []port) []uint16 {
	all := make([]uint16, len(ports))
	for i := range ports {
		all[i] = ports[i].number
	}
	slices.Sort(all)
	return all
}

// host reads a host in any spelling that has one meaning.
func (r *reader) host(n *yaml.Node) (Host, Position) {
	s, ok := r.raw(n, "host")
	if !ok {
		return Host{}, r.at(n)
	}
	h, err := ParseHost(s)
	if err != nil {
		r.refuse(r.at(n), err)
	}
	return h, r.at(n)
}

// prefixes reads CIDRs, each in its one form and once.
func (r *reader) prefixes(n *yaml.Node, what string) []netip.Prefix {
	var all []netip.Prefix
	r.list(n, what, func(v *yaml.Node) {
		s, ok := r.raw(v, "an element of "+what)
		if !ok {
			return
		}
		p, mend := parsePrefix(s)
		switch {
		case mend != "" && p.IsValid():
			r.fail(v, mend, "%s is every address", quoted(s))
		case mend != "":
			r.fail(v, mend, "%s is not a network", quoted(s))
		case slices.Contains(all, p):
			r.fail(v, "remove one", "%s is in %s twice", s, what)
		default:
			all = append(all, p)
		}
	})
	slices.SortFunc(all, netip.Prefix.Compare)
	return all
}

// parsePrefix returns a network, or what to write in its place.
func parsePrefix(s string) (netip.Prefix, string) {
	if addr, err := netip.ParseAddr(s); err == nil {
		return netip.Prefix{}, "write " + netip.PrefixFrom(addr.Unmap().WithZone(""), addr.Unmap().BitLen()).String()
	}
	p, err := netip.ParsePrefix(s)
	switch {
	case err != nil:
		return netip.Prefix{}, "write an address and a prefix length, such as 10.0.0.0/8"
	case p.Addr().Is4In6():
		return netip.Prefix{}, "write an IPv4 network, such as 10.0.0.0/8: addresses are compared in their IPv4 form"
	case p.Bits() == 0:
		return p, "list the ranges the name really resolves to"
	case p.Masked() != p:
		return netip.Prefix{}, "write " + p.Masked().String()
	}
	return p, ""
}

// expires reads an instant.
func (r *reader) expires(n *yaml.Node) time.Time {
	s, ok := r.raw(n, "expires")
	if !ok {
		return time.Time{}
	}
	t, err := time.Parse(time.RFC3339, s)
	if err != nil {
		mend := "write the instant with its zone, such as 2026-12-31T00:00:00Z"
		if day, err := time.Parse(time.DateOnly, s); err == nil {
			mend = "write " + day.Format(time.RFC3339)
		}
		r.fail(n, mend, "expires is %s", quoted(s))
		return time.Time{}
	}
	if t.Year() < 1970 { // the zero time means never
		r.fail(n, "write an instant after 1970", "expires is %s", quoted(s))
	}
	return t.UTC()
}

// duration reads 0s, 90s, 10m, 1h30m.
func (r *reader) duration(n *yaml.Node, what string) time.Duration {
	s, ok := r.raw(n, what)
	if !ok {
		return 0
	}
	d, err := time.ParseDuration(s)
	switch {
	case err != nil || strings.HasPrefix(s, "+"):
		mend := "write a number and its unit, such as 30s, 10m or 1h"
		if days, err := strconv.Atoi(strings.TrimSuffix(s, "d")); err == nil && strings.HasSuffix(s, "d") {
			mend = "write " + strconv.Itoa(days*24) + "h"
		} else if err == nil {
			mend = "write " + s + "s"
		}
		r.fail(n, mend, "%s is %s", what, quoted(s))
		return 0
	case d < 0 || d > 0 && d < time.Second:
		r.fail(n, "write 0s, or a second or more", "%s is %s", what, quoted(s))
		return 0
	}
	return d
}

// dns reads the resolver's servers.
func (r *reader) dns(n *yaml.Node) DNS {
	var d DNS
	r.object(n, "dns", []string{"servers"}, nil, func(_ string, v *yaml.Node) {
		r.list(v, "dns servers", func(v *yaml.Node) {
			s, ok := r.raw(v, "a dns server")
			if !ok {
				return
			}
			server, mend := parseServer(s)
			switch {
			case mend != "":
				r.fail(v, mend, "dns server %s", quoted(s))
			case slices.Contains(d.Servers, server):
				r.fail(v, "remove one", "dns server %s is there twice", server)
			default:
				d.Servers = append(d.Servers, server)
			}
		})
	})
	return d
}

// parseServer reads ADDR or ADDR:PORT, or says what to write.
func parseServer(s string) (netip.AddrPort, string) {
	const form = "write an address such as 10.0.0.53, or with a port 10.0.0.53:5353 or [fd00::53]:5353"
	server, err := netip.ParseAddrPort(s)
	if err != nil {
		addr, err := netip.ParseAddr(s)
		if err != nil {
			return netip.AddrPort{}, form
		}
		server = netip.AddrPortFrom(addr, 53)
	}
	a := server.Addr()
	switch {
	case a.Zone() != "":
		return netip.AddrPort{}, "a zone names an interface of one machine; write an address without one"
	case a.Is4In6():
		return netip.AddrPort{}, "write " + a.Unmap().String()
	case a.IsUnspecified() || a.IsMulticast() || server.Port() == 0:
		return netip.AddrPort{}, form
	}
	return server, ""
}
