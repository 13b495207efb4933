package policy

import (
	"slices"
	"strings"
)

// index answers in time that does not grow with the policy: hosts by name and
// by each suffix, routes by each prefix, literal patterns by their text.
type index struct {
	agents   map[string]int
	exact    map[string]*egressEntry // by name, or literal address
	wildcard map[string]*egressEntry // by the name below which it matches
	routes   map[string][]*routeEntry
	upstream map[string][]*routeEntry // by host
}

// agentMask has one bit for each agent, by its place in Policy.Agents.
type agentMask uint64

type egressEntry struct {
	*Egress
	agents agentMask
	rule   string
	reason string // what Decide says when it allows
}

type routeEntry struct {
	*Route
	agents  agentMask
	rule    string
	literal map[methodPath][]*Pattern // without wildcards, for paths without escapes
	wild    []*Pattern                // the others
	all     []*Pattern
}

type methodPath struct{ method, path string }

func buildIndex(p *Policy) index {
	x := index{agents: map[string]int{}, exact: make(map[string]*egressEntry, len(p.Egress)), wildcard: map[string]*egressEntry{},
		routes: map[string][]*routeEntry{}, upstream: map[string][]*routeEntry{}}
	for i := range p.Agents {
		x.agents[p.Agents[i].Name] = i
	}
	entries := make([]egressEntry, len(p.Egress))
	for i := range p.Egress {
		e := &entries[i]
		reason := "allowed by egress/" + p.Egress[i].Host.String()
		*e = egressEntry{&p.Egress[i], x.mask(p.Egress[i].Agents), reason[len("allowed by "):], reason}
		if e.Host.Wildcard {
			x.wildcard[e.Host.Name] = e
		} else {
			x.exact[e.Host.Name] = e
		}
	}
	for i := range p.Routes {
		e := newRouteEntry(&p.Routes[i], x.mask(p.Routes[i].Agents))
		x.routes[e.Path] = append(x.routes[e.Path], e)
		x.upstream[e.Upstream.Host] = append(x.upstream[e.Upstream.Host], e)
	}
	return x
}

func newRouteEntry(r *Route, agents agentMask) *routeEntry {
	e := &routeEntry{Route: r, agents: agents, rule: "route/" + r.Name, literal: map[methodPath][]*Pattern{}}
	for i := range r.Allow {
		p := &r.Allow[i]
		e.all = append(e.all, p)
		if !p.literal() {
			e.wild = append(e.wild, p)
			continue
		}
		k := methodPath{p.Method, p.Path}
		e.literal[k] = append(e.literal[k], p)
	}
	return e
}

// mask is the agents a grant is for.
func (x *index) mask(agents []string) agentMask {
	if agents == nil {
		return ^agentMask(0)
	}
	var m agentMask
	for _, name := range agents {
		if i, ok := x.agents[name]; ok {
			m |= 1 << i
		}
	}
	return m
}

// whoever asks for an entry whatever agents it is for.
const whoever agentMask = 0

// egress is the entry that decides over a host in normal form for the agent:
// its own, else the wildcard with the longest name. O(labels).
func (x *index) egress(host string, agent agentMask) *egressEntry {
	if e := x.exact[host]; e != nil && (e.agents&agent != 0 || agent == whoever) {
		return e
	}
	if len(x.wildcard) == 0 {
		return nil
	}
	for {
		_, parent, ok := strings.Cut(host, ".")
		if !ok {
			return nil
		}
		if e := x.wildcard[parent]; e != nil && (e.agents&agent != 0 || agent == whoever) {
			return e
		}
		host = parent
	}
}

// route is the route with the longest prefix of the path, on a segment
// boundary, that the agent has, and the rest of the path.
func (x *index) route(path string, agent agentMask) (*routeEntry, string) {
	prefix := strings.TrimSuffix(path, "/")
	for prefix != "" {
		if e := x.routeAt(prefix, agent); e != nil {
			if rest := path[len(prefix):]; rest != "" {
				return e, rest
			}
			return e, "/"
		}
		prefix = prefix[:strings.LastIndexByte(prefix, '/')]
	}
	return x.routeAt("/", agent), path
}

func (x *index) routeAt(prefix string, agent agentMask) *routeEntry {
	for _, e := range x.routes[prefix] {
		if e.agents&agent != 0 {
			return e
		}
	}
	return nil
}

// match is the pattern that allows, or nil and, where the path is allowed under
// a condition, the pattern whose condition is not met.
func (e *routeEntry) match(method, path, query string) (allow, unmet *Pattern) {
	scan := e.all
	if strings.IndexByte(path, '%') < 0 {
		for _, p := range e.literal[methodPath{method, path}] {
			if f, _ := p.queryFault(query); f == queryMeets {
				return p, nil
			}
			unmet = p
		}
		scan = e.wild
	}
	for _, p := range scan {
		if p.Method != method || !p.matchPath(path) {
			continue
		}
		if f, _ := p.queryFault(query); f == queryMeets {
			return p, nil
		}
		unmet = p
	}
	return nil, unmet
}

// contains says that a sorted list of ports has one.
func contains(ports []uint16, p uint16) bool {
	_, ok := slices.BinarySearch(ports, p)
	return ok
}
