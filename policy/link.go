package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// setSize is how many elements the fence's small kernel sets hold: listeners,
// published ports, resolvers, root's loopback ports. It bounds agents, too, so
// that an agent is one bit of a mask.
const setSize = 64

// link checks what only the whole can show, and builds the policy of it.
func link(ps *problems, file string, f *fragment) *Policy {
	l := &linker{problems: ps, fragment: f}
	if f.agents == nil {
		f.agents = []agentDraft{newAgent(Position{File: file})}
	}
	l.agentNames()
	l.listeners()
	l.openPorts()
	l.credentialSources()
	for i := range f.routes {
		l.references(&f.routes[i])
	}
	l.samePaths()
	l.environments()
	for i := range f.egress {
		e := &f.egress[i]
		l.agentsExist(e.agents)
		l.notAListener(e.hostAt, e.host.Addr, e.ports)
	}
	for i := range f.root {
		l.notAListener(f.root[i].hostAt, f.root[i].host.Addr, f.root[i].ports)
	}
	if len(f.dns.Servers) > setSize {
		l.addf(f.at, "list fewer", "dns has %d servers, of at most %d", len(f.dns.Servers), setSize)
	}
	return l.policy(file)
}

type linker struct {
	*problems
	*fragment
}

// once reports the second use of a value that is somebody's identity.
func once[T comparable](ps *problems, seen map[T]Position, v T, at Position, mend, format string) {
	if first, twice := seen[v]; twice {
		ps.addf(at, mend, format+" already, in line %d", v, first.Line)
		return
	}
	seen[v] = at
}

func (l *linker) agentNames() {
	names, uids := map[string]Position{}, map[uint32]Position{}
	for _, a := range l.agents {
		if a.Name != "" {
			once(l.problems, names, a.Name, a.nameAt, "give each agent its own name", "agent name %q is taken")
		}
		// The kernel tells callers apart by uid: two agents of one uid could use each other's listener.
		once(l.problems, uids, a.UID, a.uidAt, "give each agent its own uid", "uid %d is taken")
	}
	if len(l.agents) > setSize {
		l.addf(l.agents[setSize].At, "use several instances", "%d agents, of at most %d", len(l.agents), setSize)
	}
}

func (l *linker) listeners() {
	listens, sockets := map[netip.AddrPort]Position{}, map[string]Position{}
	for _, a := range l.agents {
		once(l.problems, listens, a.Listen, a.listenAt, "give each agent its own port", "listen address %s is taken")
		if a.Socket != "" {
			once(l.problems, sockets, a.Socket, a.socketAt, "give each agent its own socket", "socket %q is taken")
		}
	}
}

// listener is the agent that listens on a port, or nil.
func (l *linker) listener(number uint16) *agentDraft {
	for i := range l.agents {
		if l.agents[i].Listen.Port() == number {
			return &l.agents[i]
		}
	}
	return nil
}

// openPorts checks the ports the fence opens inward and for root.
func (l *linker) openPorts() {
	inward := map[uint16]Position{}
	open := func(ports []port, key string, seen map[uint16]Position) {
		for _, p := range ports {
			if a := l.listener(p.number); a != nil {
				l.addf(p.at, "use another port: only the agent itself may reach its listener", "%s port %d is the listener of agent %s", key, p.number, quoted(a.Name))
			}
			once(l.problems, seen, p.number, p.at, "one port has one owner", key+" port %d is opened")
		}
	}
	for i := range l.agents {
		open(l.agents[i].publish, "publish", inward)
	}
	open(l.rootInbound, "root_inbound", inward)
	open(l.rootLoopback, "root_loopback", map[uint16]Position{})
	if len(inward) > setSize {
		l.addf(l.at, "open fewer", "publish and root_inbound open %d ports, of at most %d", len(inward), setSize)
	}
	if len(l.rootLoopback) > setSize {
		l.addf(l.rootLoopback[setSize].at, "open fewer", "root_loopback has %d ports, of at most %d", len(l.rootLoopback), setSize)
	}
}

func (l *linker) credentialSources() {
	fds := map[string]Position{}
	for _, c := range l.credentials {
		if c.From.Scheme == "fd" {
			once(l.problems, fds, c.From.Value, c.At, "name that credential where this one is used", "a descriptor can be read once, and fd:%s is taken")
		}
	}
}

func (l *linker) references(d *routeDraft) {
	if d.credential.text != "" && !slices.ContainsFunc(l.credentials, func(c Credential) bool { return c.Name == d.credential.text }) {
		known := make([]string, len(l.credentials))
		for i := range l.credentials {
			known[i] = l.credentials[i].Name
		}
		mend := suggest(d.credential.text, known)
		if mend == "" {
			mend = fmt.Sprintf("add `credentials: [{name: %s, from: \"file:/run/secrets/%s\"}]`", d.credential.text, d.credential.text)
		}
		l.addf(d.credential.at, mend, "unknown credential %s", quoted(d.credential.text))
	}
	l.agentsExist(d.agents)
	if addr, err := netip.ParseAddr(d.Upstream.Host); err == nil {
		l.notAListener(d.upstreamAt, addr, []uint16{d.Upstream.Port})
		if len(d.Addresses) > 0 {
			l.addf(d.upstreamAt, "remove addresses", "upstream %s is an address, which resolves to nothing else", d.Upstream)
		}
	}
}

func (l *linker) agentsExist(agents []word) {
	known := make([]string, len(l.agents))
	for i := range l.agents {
		known[i] = l.agents[i].Name
	}
	seen := map[string]bool{}
	for _, w := range agents {
		if !slices.Contains(known, w.text) {
			l.addf(w.at, suggest(w.text, known), "unknown agent %s", quoted(w.text))
		} else if seen[w.text] {
			l.addf(w.at, "remove one", "agent %s is listed twice", quoted(w.text))
		}
		seen[w.text] = true
	}
}

// notAListener refuses a grant that leads back into exitgate: the agent would
// talk to itself, or to another agent's routes.
func (l *linker) notAListener(at Position, addr netip.Addr, ports []uint16) {
	if !addr.IsLoopback() {
		return
	}
	for _, number := range ports {
		if a := l.listener(number); a != nil {
			l.addf(at, "write the service's own port", "%s is the listener of agent %s", netip.AddrPortFrom(addr, number), quoted(a.Name))
		}
	}
}

// applies says that a grant for these agents is one for the named agent.
func applies(agents []word, name string) bool {
	return agents == nil || slices.ContainsFunc(agents, func(w word) bool { return w.text == name })
}

// samePaths refuses two routes of one agent with the same path: which one
// decides would depend on their order.
func (l *linker) samePaths() {
	byPath := map[string][]*routeDraft{}
	for i := range l.routes {
		d := &l.routes[i]
		if d.Path == "" {
			continue
		}
		for _, other := range byPath[d.Path] {
			if a := l.shared(d.agents, other.agents); a != "" {
				l.addf(d.pathAt, "give it another path, or name it "+quoted(other.Name)+" to replace that one",
					"path %s of route %s is taken for agent %s by route %s (%s)", quoted(d.Path), quoted(d.Name), quoted(a), quoted(other.Name), other.At)
				break
			}
		}
		byPath[d.Path] = append(byPath[d.Path], d)
	}
}

// shared is an agent that both lists name, or "".
func (l *linker) shared(a, b []word) string {
	for i := range l.agents {
		if name := l.agents[i].Name; applies(a, name) && applies(b, name) {
			return name
		}
	}
	return ""
}

// environments checks that the routes' env of each agent can be joined.
func (l *linker) environments() {
	reported := map[Position]bool{}
	for _, a := range l.agents {
		set := map[string]envSetting{}
		for i := range l.routes {
			d := &l.routes[i]
			if !applies(d.agents, a.Name) {
				continue
			}
			for _, w := range d.env {
				what, mend := envClash(set, d.Name, w.text, &a.Agent)
				if what != "" && !reported[w.at] {
					l.add(w.at, what, mend)
					reported[w.at] = true
				}
			}
		}
	}
}

type envSetting struct{ route, line string }

// envClash says why a route's env line cannot join those of the agent's other
// routes, and records it.
func envClash(set map[string]envSetting, route, line string, a *Agent) (what, mend string) {
	name, _, _ := strings.Cut(line, "=")
	first, taken := set[name]
	set[name] = envSetting{route, line}
	// The same text may still mean two things: {url} is a route's own.
	same := first.line == line && !strings.Contains(line, "{")
	switch {
	case strings.Contains(line, "{socket}") && a.Socket == "":
		return "env line " + quoted(name) + " uses {socket}, and agent " + quoted(a.Name) + " has none",
			"add `socket: /run/exitgate/" + a.Name + ".sock` to the agent"
	case taken && first.route != route && !same && !numberedGit(name):
		return "env sets " + name + ", which route " + quoted(first.route) + " sets for agent " + quoted(a.Name),
			"set it in one of them, or give the routes different agents"
	}
	return "", ""
}

// policy builds the immutable value of what was read.
func (l *linker) policy(file string) *Policy {
	p := &Policy{File: file, Presets: texts(l.presets), Credentials: l.credentials, DNS: l.dns,
		RootLoopback: numbers(l.rootLoopback), RootInbound: numbers(l.rootInbound)}
	for _, a := range l.agents {
		p.Agents = append(p.Agents, a.Agent)
	}
	for _, d := range l.routes {
		d.Route.Agents, d.Route.Env = texts(d.agents), texts(d.env)
		p.Routes = append(p.Routes, d.Route)
	}
	p.Egress = make([]Egress, len(l.egress))
	for i := range l.egress {
		e := &l.egress[i]
		p.Egress[i] = Egress{Host: e.host, Ports: e.ports, Methods: e.methods, Addresses: e.addresses,
			Required: e.required, Agents: texts(e.agents), Expires: e.expires, At: e.at}
	}
	for _, d := range l.root {
		p.Root = append(p.Root, RootHost{Host: d.host, Ports: d.ports, Addresses: d.addresses, Expires: d.expires, Required: d.required, At: d.at})
	}
	return p
}

// texts keeps the difference between no list and an empty one.
func texts(words []word) []string {
	if words == nil {
		return nil
	}
	all := make([]string, len(words))
	for i := range words {
		all[i] = words[i].text
	}
	return all
}
