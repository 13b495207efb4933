package policy

import (
	"net/netip"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// routeDraft is a route with the places that cross checks point at.
type routeDraft struct {
	Route
	pathAt, upstreamAt Position
	credential         word
	agents             []word // nil: every agent
	env                []word
}

func (r *reader) route(n *yaml.Node) routeDraft {
	d := routeDraft{Route: Route{At: r.at(n)}}
	var plaintext bool
	var plaintextAt *yaml.Node
	keys := []string{"name", "path", "upstream", "credential", "allow", "headers", "env", "agents", "expires", "addresses", "plaintext"}
	r.object(n, "a route", keys, []string{"name", "path", "upstream"}, func(key string, v *yaml.Node) {
		at := r.at(v)
		switch key {
		case "name":
			d.Name = r.name(v, "route name")
		case "path":
			d.Path, d.pathAt = r.routePath(v), at
		case "upstream":
			d.Upstream, d.upstreamAt = r.upstream(v), at
		case "credential":
			if s, ok := r.str(v, "credential"); ok {
				d.credential, d.Credential = word{s, at}, s
			}
		case "allow":
			d.Allow = r.patterns(v)
		case "headers":
			d.Headers = r.headers(v)
		case "env":
			d.env = r.words(v, "env")
			r.env(d.env)
		case "agents":
			d.agents = r.words(v, "agents")
		case "expires":
			d.Expires = r.expires(v)
		case "addresses":
			d.Addresses = r.prefixes(v, "addresses")
		case "plaintext":
			plaintext, plaintextAt = r.boolean(v, "plaintext"), v
		}
	})
	switch {
	case d.Upstream.Scheme == "http" && !plaintext:
		r.addf(d.upstreamAt, "write https, or add `plaintext: true` where the network between is trusted", "upstream %s is not encrypted", d.Upstream)
	case d.Upstream.Scheme == "https" && plaintext:
		r.fail(plaintextAt, "remove it", "plaintext: true beside an https upstream")
	}
	return d
}

// routePath reads a prefix of the listener. It has one spelling, so it holds
// unreserved characters only (RFC 3986 section 2.3).
func (r *reader) routePath(n *yaml.Node) string {
	s, ok := r.str(n, "path")
	if !ok {
		return ""
	}
	p, mend := normalPrefix(s)
	if mend != "" {
		r.fail(n, mend, "path is %s", quoted(s))
	}
	return p
}

// normalPrefix returns a prefix without its trailing slash, or what to write.
func normalPrefix(s string) (string, string) {
	if !strings.HasPrefix(s, "/") {
		return "", "write a path with a leading slash, such as /github"
	}
	if strings.Trim(s, keyBytes+"/") != "" {
		return "", "a route's path is a plain prefix, of letters, digits and - . _ ~ between slashes, such as /github; which requests pass is said by allow"
	}
	if why := pathFault(s); why != "" {
		return "", "it " + why + ": write a plain prefix, such as /github"
	}
	if s != "/" {
		s = strings.TrimSuffix(s, "/")
	}
	return s, ""
}

func (r *reader) upstream(n *yaml.Node) Upstream {
	s, ok := r.str(n, "upstream")
	if !ok {
		return Upstream{}
	}
	u, err := parseUpstream(s)
	if err != nil {
		r.refuse(r.at(n), err)
	}
	return u
}

// parseUpstream reads https://HOST[:PORT][/BASE], and http for plaintext routes.
func parseUpstream(s string) (Upstream, error) {
	const form = "write https://HOST, with :PORT and a base path where needed"
	scheme, rest, ok := strings.Cut(s, "://")
	scheme = strings.ToLower(scheme)
	switch {
	case secretShape().MatchString(s):
		return Upstream{}, faultf("name the secret by `credential:`", "upstream has a secret in it")
	case !ok:
		return Upstream{}, faultf(form, "upstream %s is not a URL", quoted(s))
	case scheme != "https" && scheme != "http":
		return Upstream{}, faultf(form, "upstream %s has the scheme %s", quoted(s), quoted(scheme))
	case strings.ContainsAny(rest, "@"):
		return Upstream{}, faultf("name the secret by `credential:`", "upstream has user information in it")
	case strings.ContainsAny(rest, "?#"):
		return Upstream{}, faultf("remove it: the client's query is sent as it is", "upstream %s has a query or a fragment", quoted(s))
	}
	u := Upstream{Scheme: scheme, Port: 443}
	if scheme == "http" {
		u.Port = 80
	}
	authority, base := rest, ""
	if i := strings.IndexByte(rest, '/'); i >= 0 {
		authority, base = rest[:i], rest[i:]
	}
	if err := u.parseAuthority(s, authority); err != nil {
		return Upstream{}, err
	}
	if base != "" && base != "/" {
		prefix, mend := normalPrefix(base)
		if mend != "" {
			return Upstream{}, faultf("write a plain base path, such as /v1", "upstream %s has the base path %s", quoted(s), quoted(base))
		}
		u.Base = prefix
	}
	return u, nil
}

const bracketForm = "write an IPv6 address in brackets, such as https://[2001:db8::1]"

func (u *Upstream) parseAuthority(s, authority string) error {
	name := authority
	if strings.Count(authority, ":") > 1 && !strings.HasPrefix(authority, "[") {
		return faultf(bracketForm, "upstream %s has an IPv6 address without brackets, or two ports", quoted(s))
	}
	if i := strings.LastIndexByte(authority, ':'); i >= 0 && !strings.HasSuffix(authority, "]") {
		number, err := strconv.ParseUint(authority[i+1:], 10, 16)
		if err != nil || number == 0 || strconv.FormatUint(number, 10) != authority[i+1:] {
			return faultf("write a port from 1 to 65535, or none", "upstream %s has the port %s", quoted(s), quoted(authority[i+1:]))
		}
		name, u.Port = authority[:i], uint16(number)
	}
	if bare, ok := strings.CutPrefix(name, "["); ok {
		addr, err := netip.ParseAddr(strings.TrimSuffix(bare, "]"))
		if err != nil || !addr.Is6() || !strings.HasSuffix(bare, "]") {
			return faultf(bracketForm, "upstream %s", quoted(s))
		}
		name = strings.TrimSuffix(bare, "]")
	}
	h, err := ParseHost(name)
	if err != nil {
		return within("upstream "+quoted(s), err)
	}
	if h.Wildcard {
		return faultf("write the one host it is", "upstream %s has a wildcard", quoted(s))
	}
	u.Host = h.Name
	return nil
}

// String is the upstream as a policy writes it, in normal form: no port where
// it is the scheme's own.
func (u Upstream) String() string {
	host := u.Host
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	if own := map[string]uint16{"https": 443, "http": 80}[u.Scheme]; u.Port != own {
		host += ":" + strconv.Itoa(int(u.Port))
	}
	return u.Scheme + "://" + host + u.Base
}

func (r *reader) patterns(n *yaml.Node) []Pattern {
	var all []Pattern
	where := map[string]int{}
	r.list(n, "allow", func(v *yaml.Node) {
		s, ok := r.str(v, "an element of allow")
		if !ok {
			return
		}
		p, err := parsePattern(s)
		if err != nil {
			r.refuse(r.at(v), err)
			return
		}
		p.At = r.at(v)
		if first, twice := where[p.String()]; twice {
			r.fail(v, "remove one", "pattern %s is there twice, first in line %d", quoted(s), first)
			return
		}
		where[p.String()] = p.At.Line
		all = append(all, p)
	})
	return all
}

// headers reads what is added to a route's requests.
func (r *reader) headers(n *yaml.Node) []Header {
	var all []Header
	r.list(n, "headers", func(v *yaml.Node) {
		r.object(v, "an element of headers", []string{"add"}, []string{"add"}, func(_ string, v *yaml.Node) {
			s, ok := r.str(v, "add")
			if !ok {
				return
			}
			h, err := parseHeader(s)
			if err != nil {
				r.refuse(r.at(v), err)
				return
			}
			all = append(all, h)
		})
	})
	return all
}

func parseHeader(s string) (Header, error) {
	name, value, ok := strings.Cut(s, ":")
	name, value = canonicalHeader(strings.TrimSpace(name)), strings.TrimSpace(value)
	switch {
	case secretShape().MatchString(s) || secretHeaders[name]:
		return Header{}, faultf("name the secret by `credential:` and say its header there", "add sets a credential")
	case !ok || !token().MatchString(name) || value == "" || hasControl(value):
		return Header{}, faultf(`write "NAME: VALUE" in quotes`, "add is %s", quoted(s))
	case framing[name]:
		return Header{}, faultf("remove it", "add sets %s, which belongs to the connection, not to the request", name)
	}
	return Header{name, value}, nil
}
