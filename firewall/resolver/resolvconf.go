package resolver

import (
	"bytes"
	"net/netip"
	"slices"
	"strings"
)

// dockerDNS is where Docker's embedded DNS answers. Its sockets are in the container's namespace.
var dockerDNS = netip.MustParseAddr("127.0.0.11")

// resolvConf is what resolv.conf(5) tells us; the search list and options are for libc.
type resolvConf struct {
	servers  []netip.AddrPort // nameserver lines, in order
	forwards []netip.AddrPort // where Docker's embedded DNS forwards to from inside this namespace
}

// parseResolvConf reads nameserver lines and Docker's comment, such as
//
//	# ExtServers: [8.8.8.8 host(127.0.0.53)]
//
// in which host(...) marks a server that dockerd asks from the host's namespace, out of our sight. The
// comment counts only beside the embedded DNS that it is about.
func parseResolvConf(data []byte) (conf resolvConf) {
	var forwards []netip.AddrPort
	for line := range bytes.Lines(data) {
		fields := strings.Fields(string(line))
		switch {
		case len(fields) >= 2 && fields[0] == "nameserver":
			conf.servers = appendServer(conf.servers, fields[1])
		case len(fields) >= 3 && fields[0] == "#" && fields[1] == "ExtServers:":
			for _, s := range strings.Fields(strings.Trim(strings.Join(fields[2:], " "), "[]")) {
				forwards = appendServer(forwards, s)
			}
		}
	}
	if slices.ContainsFunc(conf.servers, func(s netip.AddrPort) bool { return s.Addr() == dockerDNS }) {
		conf.forwards = forwards
	}
	return conf
}

// appendServer adds a server once, while there is room, if it is the address of one.
func appendServer(list []netip.AddrPort, s string) []netip.AddrPort {
	a, err := netip.ParseAddr(s)
	if err != nil || a.IsUnspecified() || a.IsMulticast() || len(list) >= maxAsked {
		return list
	}
	server := netip.AddrPortFrom(a.Unmap(), 53)
	if slices.Contains(list, server) {
		return list
	}
	return append(list, server)
}
