package proxy

import (
	"net/http"

	"exitgate/policy"
)

// forward decides on a plain http request in absolute form. It carries what the
// client put into it, as a tunnel would: no credential is added, and only what is
// for this hop is taken away.
func (c *conn) forward(req *http.Request, authority, path, query string, question bool) (*exchange, *refusal) {
	f := &c.flow
	f.event.Path = path
	host, port, refused := destination(authority, 80)
	if refused != nil {
		return nil, refused
	}
	f.event.Host, f.event.Port = host, port
	d, refused := c.rule(policy.Request{
		Agent: c.agent.name, Road: policy.RoadForward, Method: req.Method, Host: host, Port: port, Path: path, Query: query,
	})
	if refused == nil {
		refused = f.snap.fields.checkOverride(req.Header)
	}
	if refused != nil {
		return nil, refused
	}
	x := c.exchange(req)
	x.up = upstream{agent: c.agent.name, rule: d.Rule, host: host, port: port}
	x.host = x.up.authority()
	x.target = path
	if question {
		x.target += "?" + query
	}
	trailers := listHas(req.Header["Te"], "trailers")
	removeHopByHop(req.Header)
	acceptTrailers(req.Header, trailers)
	return x, nil
}

// destination reads HOST[:PORT] of an absolute target or a CONNECT. The host is in
// normal form; one that has none goes on as it is, for the policy to say why not.
func destination(authority string, port uint16) (string, uint16, *refusal) {
	name, port, ok := splitAuthority(authority, port)
	if !ok || port == 0 {
		return "", 0, denied("the target is not HOST:PORT")
	}
	if host, err := policy.ParseHost(name); err == nil && !host.Wildcard {
		name = host.Name
	}
	return name, port, nil
}
