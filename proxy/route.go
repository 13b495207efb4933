package proxy

import (
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"

	"exitgate/policy"
)

// handle serves one request and reports whether the connection can serve another.
func (c *conn) handle(req *http.Request) (again bool) {
	if refused := c.consider(req); refused != nil {
		return c.refuse(refused, req)
	}
	if req.Method == http.MethodConnect {
		return c.connectTunnel(req)
	}
	x, refused := c.prepare(req)
	for refused == newer {
		x, refused = c.prepare(req)
	}
	if refused != nil {
		return c.refuse(refused, req)
	}
	return x.run()
}

// consider refuses what no rule could allow: there is no policy, the agent asks
// too often, or the request is none that is forwarded.
func (c *conn) consider(req *http.Request) *refusal {
	f := &c.flow
	if req.Method == http.MethodConnect {
		f.event.Event = "connect"
	}
	if f.snap == nil {
		return &refusal{status: http.StatusServiceUnavailable, reason: "there is no policy yet"}
	}
	if refused := c.agent.limit.request(f.event.Time, f.snap.limits(c.agent.name)); refused != nil {
		return refused
	}
	switch {
	case req.Header["Upgrade"] != nil:
		return &refusal{status: http.StatusUpgradeRequired, reason: "a connection cannot be upgraded here; use HTTP/1.1 requests", fields: "Upgrade: HTTP/1.1\r\nConnection: Upgrade\r\n"}
	case req.Method == "TRACE" || req.Method == "TRACK":
		return denied(req.Method + " would show the credential; it is never forwarded")
	}
	return nil
}

// prepare decides on a request and makes it ready to be sent.
func (c *conn) prepare(req *http.Request) (*exchange, *refusal) {
	path, query, question := strings.Cut(req.RequestURI, "?")
	if authority, ok := strings.CutPrefix(path, "http://"); ok {
		path = ""
		if i := strings.IndexByte(authority, '/'); i >= 0 {
			authority, path = authority[:i], authority[i:]
		}
		if path == "" {
			path = "/"
		}
		if !c.isListener(authority) {
			return c.forward(req, authority, path, query, question)
		}
	} else if refused := c.checkHost(req.Host); refused != nil {
		return nil, refused
	}
	return c.route(req, path, query, question)
}

// isListener reports whether authority names this connection's own listener.
func (c *conn) isListener(authority string) bool {
	host, port, ok := splitAuthority(authority, 80)
	if !ok {
		return false
	}
	a := c.flow.snap.agent(c.agent.name)
	if a == nil || port != a.Listen.Port() && port != c.info.Local.Port() {
		return false
	}
	return c.localName(host, a)
}

func (c *conn) localName(host string, a *policy.Agent) bool {
	if strings.EqualFold(host, "localhost") {
		return true
	}
	addr, err := netip.ParseAddr(host)
	return err == nil && (addr.IsLoopback() || addr == a.Listen.Addr() || addr == c.info.Local.Addr())
}

// splitAuthority splits HOST[:PORT], brackets removed.
func splitAuthority(authority string, port uint16) (host string, _ uint16, ok bool) {
	host = authority
	if i := strings.LastIndexByte(authority, ':'); i > strings.LastIndexByte(authority, ']') {
		n, err := strconv.ParseUint(authority[i+1:], 10, 16)
		if err != nil || n == 0 {
			return "", 0, false
		}
		host, port = authority[:i], uint16(n)
	}
	if inner, ok := strings.CutPrefix(host, "["); ok {
		host = strings.TrimSuffix(inner, "]")
	}
	return host, port, true
}

// checkHost refuses a request in origin form whose Host is not the listener: a web
// page whose name was made to resolve to 127.0.0.1 would send its own. On a unix
// socket no page can, and clients put there what they like.
func (c *conn) checkHost(host string) *refusal {
	a := c.flow.snap.agent(c.agent.name)
	if a == nil {
		return denied("this agent is not in the policy")
	}
	if _, unix := c.nc.(*net.UnixConn); unix {
		return nil
	}
	name, port, ok := splitAuthority(host, a.Listen.Port())
	if ok && (port == a.Listen.Port() || port == c.info.Local.Port()) && c.localName(name, a) {
		return nil
	}
	return denied("the Host field does not name this listener; send Host: " + a.Listen.String())
}

// route decides on a request to the listener itself.
func (c *conn) route(req *http.Request, path, query string, question bool) (*exchange, *refusal) {
	f := &c.flow
	f.event.Path = path
	d, refused := c.rule(policy.Request{Agent: c.agent.name, Road: policy.RoadRoute, Method: req.Method, Path: path, Query: query})
	if d.Route != nil {
		f.event.Host, f.event.Port = d.Route.Upstream.Host, d.Route.Upstream.Port
	}
	if refused == nil {
		refused = checkOrigin(req.Header)
	}
	if refused == nil {
		refused = f.snap.fields.checkOverride(req.Header)
	}
	if refused != nil {
		return nil, refused
	}
	x := c.exchange(req)
	x.up = routed(c.agent.name, d.Rule, d.Route)
	x.host = f.snap.hosts[d.Route]
	x.target = d.Route.Upstream.Base + d.Rest
	if question {
		x.target += "?" + query
	}
	return x, x.dress(d.Route)
}

func routed(agent, rule string, r *policy.Route) upstream {
	return upstream{agent: agent, rule: rule, host: r.Upstream.Host, port: r.Upstream.Port, tls: r.Upstream.Scheme == "https"}
}

// exchange makes the connection's exchange ready for another request.
func (c *conn) exchange(req *http.Request) *exchange {
	x := &c.x
	x.c, x.req, x.limits = c, req, c.flow.snap.limits(c.agent.name)
	x.up, x.host, x.target, x.cred = upstream{}, "", "", nil
	x.length, x.expect, x.rest, x.head = 0, false, false, 0
	x.filled, x.load, x.left = false, nil, false
	x.alone.c, x.alone.shut = c, false
	return x
}

// checkOrigin refuses requests of web pages.
func checkOrigin(h http.Header) *refusal {
	for _, origin := range h["Origin"] {
		if !localOrigin(origin) {
			return denied("the request comes from a web page of another origin")
		}
	}
	return nil
}

func localOrigin(origin string) bool {
	_, authority, ok := strings.Cut(origin, "://")
	if !ok {
		return false
	}
	host, _, ok := splitAuthority(authority, 0)
	addr, err := netip.ParseAddr(host)
	return ok && (strings.EqualFold(host, "localhost") || err == nil && addr.IsLoopback())
}

// dress takes every credential of the client off the request and puts the route's
// on. A route whose credential has no value is refused: it is never forwarded
// without.
func (x *exchange) dress(r *policy.Route) *refusal {
	h, snap := x.req.Header, x.c.flow.snap
	trailers := listHas(h["Te"], "trailers")
	snap.fields.strip(h)
	if r.Credential != "" {
		cred := snap.creds[r.Credential]
		if cred == nil || cred.broken != "" {
			return missing(r, cred)
		}
		x.cred = cred
		h["Accept-Encoding"] = identity
		// In pieces of the agent's choosing a reflected secret could not be found.
		delete(h, "Range")
		delete(h, "If-Range")
		cred.apply(h)
	}
	addHeaders(h, r.Headers)
	acceptTrailers(h, trailers)
	return nil
}

var identity = []string{"identity"}

// acceptTrailers says to the upstream what the agent said to us.
func acceptTrailers(h http.Header, yes bool) {
	if yes {
		h["Te"], h["Connection"] = []string{"trailers"}, []string{"TE"}
	}
}

func missing(r *policy.Route, cred *credential) *refusal {
	why := "it has no value"
	if cred != nil {
		why = cred.broken
	}
	return &refusal{
		status: http.StatusServiceUnavailable, rule: "route/" + r.Name,
		reason: "credential " + strconv.Quote(r.Credential) + " of route " + strconv.Quote(r.Name) + " cannot be used: " + why,
	}
}
