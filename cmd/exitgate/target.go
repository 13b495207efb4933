package main

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"exitgate/policy"

	"golang.org/x/sys/unix"
)

// question is what `explain` is asked: a URL, HOST:PORT, a unix socket's path, or a packet.
type question struct {
	agent  string
	method string // "" where none was named
	target string // as written
	packet string // the protocol, where a packet is asked about
}

// parseQuestion takes the words after the policy file apart.
func parseQuestion(agent string, words []string) (question, error) {
	q := question{agent: agent}
	if len(words) == 1 {
		words = unquoted(words[0])
	}
	switch {
	case len(words) > 0 && words[0] == "packet":
		if len(words) != 3 {
			return q, errors.New("a packet has a protocol and an address; write `packet udp 1.1.1.1:53`")
		}
		q.packet, q.target = words[1], words[2]
	case len(words) == 1:
		q.target = words[0]
	case len(words) == 2:
		q.method, q.target = words[0], words[1]
	case len(words) == 0:
		return q, errors.New("nothing is asked; write [METHOD] URL, HOST:PORT, the path of a socket, or `packet PROTOCOL ADDRESS:PORT`")
	default:
		return q, fmt.Errorf("%q is too much; write [METHOD] URL, HOST:PORT, the path of a socket, or `packet PROTOCOL ADDRESS:PORT`", words[2])
	}
	return q, nil
}

// unquoted takes a question apart that came as one word, as from a script that quotes it. A blank behind a method or the word
// packet is a separator; elsewhere it belongs to the target.
func unquoted(question string) []string {
	first, _, blank := strings.Cut(question, " ")
	isMethod := first != "" && strings.Trim(first, "ABCDEFGHIJKLMNOPQRSTUVWXYZ") == ""
	switch {
	case blank && first == "packet":
		return strings.Fields(question)
	case blank && isMethod:
		return strings.SplitN(question, " ", 2)
	}
	return []string{question}
}

// location is a URL or HOST:PORT taken apart without changing a byte of path and query: the proxy decides by what is on
// the wire, and net/url would have decoded it.
type location struct {
	scheme, host string // scheme "" for HOST:PORT
	port         uint16
	path, query  string
}

var schemePorts = map[string]uint16{"http": 80, "https": 443}

func parseLocation(s string) (location, error) {
	var l location
	scheme, rest, isURL := strings.Cut(s, "://")
	if !isURL {
		host, port, err := splitAuthority(s, 0)
		return location{host: host, port: port}, err
	}
	l.scheme = strings.ToLower(scheme)
	standard := schemePorts[l.scheme]
	if standard == 0 {
		return l, fmt.Errorf("%q has scheme %q; write an http or https URL, or HOST:PORT", s, scheme)
	}
	rest, _, _ = strings.Cut(rest, "#") // a client never sends the fragment
	authority := rest
	if i := strings.IndexAny(rest, "/?"); i >= 0 {
		authority, l.path = rest[:i], rest[i:]
	}
	l.path, l.query, _ = strings.Cut(l.path, "?")
	if l.path == "" {
		l.path = "/"
	}
	if strings.Contains(authority, "@") {
		return l, fmt.Errorf("%q has a user in front of the host; leave it out, credentials are the proxy's", s)
	}
	var err error
	l.host, l.port, err = splitAuthority(authority, standard)
	return l, err
}

// splitAuthority parts HOST[:PORT]; standard is the port of a URL without one, 0 where it must be written.
func splitAuthority(s string, standard uint16) (string, uint16, error) {
	host, port := s, ""
	if i := strings.LastIndexByte(s, ':'); i > strings.LastIndexByte(s, ']') {
		host, port = s[:i], s[i+1:]
	} else if standard == 0 {
		return "", 0, fmt.Errorf("%q has no port; write %s:443, or a URL", s, s)
	}
	if strings.HasPrefix(host, "[") && strings.HasSuffix(host, "]") {
		host = host[1 : len(host)-1]
	} else if strings.Contains(host, ":") {
		return "", 0, fmt.Errorf("%q: write an IPv6 address in brackets, [2001:db8::1]:443", s)
	}
	if host == "" {
		return "", 0, fmt.Errorf("%q has no host; write HOST:PORT or a URL", s)
	}
	if port == "" && standard != 0 {
		return host, standard, nil
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 {
		return "", 0, fmt.Errorf("%q is not a port; write 1 to 65535", port)
	}
	return host, uint16(n), nil
}

// authority is HOST:PORT as a URL has it: without the scheme's own port.
func authority(scheme, host string, port uint16) string {
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	if schemePorts[scheme] == port {
		return host
	}
	return host + ":" + strconv.Itoa(int(port))
}

// requests are the ways a location can be reached, the one a client set up by exitgate would take first: the listener's
// own URL and what a route leads to go by that route, other https through a tunnel, other http as it is.
func (l location) requests(p *policy.Policy, agent *policy.Agent, method string) []policy.Request {
	connect := policy.Request{Agent: agent.Name, Road: policy.RoadConnect, Method: "CONNECT", Host: l.host, Port: l.port}
	if l.scheme == "" {
		return []policy.Request{connect}
	}
	if method == "" {
		method = "GET"
	}
	byRoute := func(path string) policy.Request {
		return policy.Request{Agent: agent.Name, Road: policy.RoadRoute, Method: method, Path: path, Query: l.query}
	}
	if l.names(agent.Listen) {
		return []policy.Request{byRoute(l.path)}
	}
	var all []policy.Request
	for _, r := range l.routes(p, agent) {
		all = append(all, byRoute(r.path))
	}
	if l.scheme == "https" {
		return append(all, connect)
	}
	return append(all, policy.Request{Agent: agent.Name, Road: policy.RoadForward, Method: method, Host: l.host, Port: l.port, Path: l.path, Query: l.query})
}

// names reports whether the URL is the listener's own.
func (l location) names(listen netip.AddrPort) bool {
	addr, err := netip.ParseAddr(l.host)
	here := err == nil && addr == listen.Addr() || strings.EqualFold(l.host, "localhost") && listen.Addr().IsLoopback()
	return l.scheme == "http" && here && l.port == listen.Port()
}

// name is the host in the policy's own spelling, where it has one.
func (l location) name() string {
	if h, err := policy.ParseHost(l.host); err == nil {
		return h.Name
	}
	return l.host
}

// entrance is where on the listener a route takes a request for an upstream's URL.
type entrance struct {
	path string
	base int // length of the upstream's base path
}

// routes are the agent's routes to where the URL leads, the longest base path first.
func (l location) routes(p *policy.Policy, agent *policy.Agent) []entrance {
	var all []entrance
	for _, r := range p.Routes {
		u := r.Upstream
		if u.Scheme != l.scheme || u.Host != l.name() || u.Port != l.port || r.Agents != nil && !slices.Contains(r.Agents, agent.Name) {
			continue
		}
		rest, ok := strings.CutPrefix(l.path, u.Base)
		if !ok || rest != "" && rest[0] != '/' {
			continue
		}
		path := strings.TrimSuffix(r.Path, "/") + rest
		if path == "" {
			path = "/"
		}
		all = append(all, entrance{path, len(u.Base)})
	}
	slices.SortStableFunc(all, func(a, b entrance) int { return b.base - a.base })
	return all
}

// protocols are those that an agent may try, by the name and the number in an IP header.
var protocols = map[string]uint8{
	"tcp": unix.IPPROTO_TCP, "udp": unix.IPPROTO_UDP, "udplite": unix.IPPROTO_UDPLITE, "sctp": unix.IPPROTO_SCTP, "dccp": unix.IPPROTO_DCCP,
	"icmp": unix.IPPROTO_ICMP, "icmpv6": unix.IPPROTO_ICMPV6, "gre": unix.IPPROTO_GRE, "esp": unix.IPPROTO_ESP, "ipip": unix.IPPROTO_IPIP,
}

// portless protocols are asked about by address alone.
var portless = []string{"icmp", "icmpv6", "gre", "esp", "ipip"}

// parsePacket reads where a packet goes.
func (q question) parsePacket() (proto uint8, to netip.AddrPort, err error) {
	name := strings.ToLower(q.packet)
	proto, ok := protocols[name]
	if !ok {
		return 0, to, fmt.Errorf("protocol %q is not known; write tcp, udp, icmp, icmpv6, sctp, dccp, udplite, gre, esp or ipip", q.packet)
	}
	if slices.Contains(portless, name) {
		addr, err := netip.ParseAddr(strings.Trim(q.target, "[]"))
		if err != nil {
			return 0, to, fmt.Errorf("%q is not an address; write `packet %s 192.0.2.1`", q.target, name)
		}
		return proto, netip.AddrPortFrom(addr, 0), nil
	}
	to, err = netip.ParseAddrPort(q.target)
	if err != nil {
		return 0, to, fmt.Errorf("%q is not an address and a port; write `packet %s 192.0.2.1:53` (packets go to addresses; ask about a name without `packet`)", q.target, name)
	}
	return proto, to, nil
}
