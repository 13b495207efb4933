package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Road is the way a request takes.
type Road int

const (
	RoadRoute   Road = iota // a reverse route of the listener
	RoadConnect             // CONNECT host:port
	RoadForward             // absolute-form plain http
	RoadPacket              // a packet of the agent itself; for explanation only
)

// Request is what somebody asks to do.
type Request struct {
	Agent  string // "" : the first
	Road   Road
	Method string // for RoadPacket the protocol: tcp, udp, icmp, ...
	Host   string // for RoadConnect and RoadForward; any spelling ParseHost takes. For RoadPacket an address
	Port   uint16
	Path   string // escaped, as on the wire
	Query  string // raw, without the question mark
	Now    time.Time
}

// Decision is the answer to a Request, and why.
type Decision struct {
	Allow  bool
	Rule   string // "route/NAME", "egress/HOST", "listener", "loopback" or "default"
	At     Position
	Reason string
	Mend   string  // what to write to allow it; "" where nothing would
	Route  *Route  // the route that decided, also where it denies
	Egress *Egress // the entry that decided, also where it denies
	Rest   string  // the path after the route's prefix; starts with a slash
}

// Message is the decision in one line, for the agent: it names the rule, its
// place, and what to write. It holds no byte that a terminal could act on.
func (d Decision) Message() string {
	s := "exitgate: " + d.Reason
	if at := d.At.String(); at != "" {
		s += " (" + at + ")"
	}
	if d.Mend != "" {
		s += "; " + d.Mend
	}
	return s
}

// Words of reasons, by which Suggest knows them again in an audit line.
const (
	notGranted  = " is not in "
	noSuchRoute = " has no route"
	pastExpiry  = " expired at "
	otherAgents = " for other agents"
)

// Decide says whether the policy allows a request. It is the one place where
// that is decided. What has two readings is denied, never put right; an expired
// grant denies; the most specific grant of the agent decides alone.
// It allocates only where it denies.
func (p *Policy) Decide(r Request) Decision {
	i, ok := 0, len(p.Agents) > 0
	if r.Agent != "" {
		i, ok = p.index.agents[r.Agent]
	}
	if !ok {
		return p.deny("agent "+shown(r.Agent)+" is not in the policy", "")
	}
	a := &p.Agents[i]
	switch r.Road {
	case RoadRoute:
		return p.decideRoute(1<<i, &r)
	case RoadConnect, RoadForward:
		return p.decideEgress(a, 1<<i, &r)
	case RoadPacket:
		return p.decidePacket(a, &r)
	}
	return p.deny("there is no such road", "")
}

// deny is a refusal no rule is behind.
func (p *Policy) deny(reason, mend string) Decision {
	return Decision{Rule: "default", At: Position{File: p.File}, Reason: reason, Mend: mend}
}

func (p *Policy) decideRoute(agent agentMask, r *Request) Decision {
	if why := pathFault(r.Path); why != "" {
		return p.deny("path "+shown(r.Path)+" "+why, "write it plainly")
	}
	for i := range len(r.Query) {
		if c := r.Query[i]; c <= ' ' || c == '#' || c == 0x7f {
			return p.deny("the query of "+shown(r.Path)+" has a raw space, # or control byte", "write it escaped")
		}
	}
	e, rest := p.index.route(r.Path, agent)
	if e == nil {
		return p.noRoute(agent, r)
	}
	d := Decision{Rule: e.rule, At: e.At, Route: e.Route, Rest: rest}
	if expired(e.Expires, r.Now) {
		d.Reason, d.Mend = "route "+quoted(e.Name)+pastExpiry+e.Expires.Format(time.RFC3339), "to allow it write a later `expires`"
		return d
	}
	allow, unmet := e.match(r.Method, rest, r.Query)
	if allow != nil {
		d.Allow, d.At, d.Reason = true, allow.At, allow.reason
		return d
	}
	line := shown(r.Method) + " " + shown(rest)
	d.Reason = line + notGranted + "route " + quoted(e.Name)
	d.Mend = "to allow it add `- " + patternFor(r.Method, rest) + "`"
	if unmet != nil {
		fault, condition := unmet.queryFault(r.Query)
		d.At = unmet.At
		d.Reason = line + " is in route " + quoted(e.Name) + " under a condition, and " + fault.explain(condition)
		d.Mend = ""
	}
	if checkMethod(r.Method) != nil {
		d.Mend = ""
	}
	return ownCopy(d, "route", e.Name)
}

// patternFor is the allow line that names one path.
func patternFor(method, path string) string {
	if strings.Contains(path, "*") {
		path = strings.ReplaceAll(path, "*", "%2A")
	}
	return shown(method) + " " + shown(path)
}

// ownCopy adds to a mend how an entry of a preset is changed: by an entry of
// the policy that replaces it.
func ownCopy(d Decision, what, name string) Decision {
	if preset, ok := strings.CutPrefix(d.At.File, "preset "); ok && d.Mend != "" {
		d.Mend += " to a " + what + " " + quoted(name) + " of your own, which replaces the preset's (`exitgate presets " + preset + "` prints it)"
	}
	return d
}

func (p *Policy) noRoute(agent agentMask, r *Request) Decision {
	var have []string
	for i := range p.Routes {
		if p.index.mask(p.Routes[i].Agents)&agent != 0 && len(have) < 8 {
			have = append(have, p.Routes[i].Path)
		}
	}
	mend := "to allow it add a route to `routes:`"
	if len(have) > 0 {
		mend = "routes of this agent are at " + strings.Join(have, " ")
	}
	return p.deny(shown(r.Method)+" "+shown(r.Path)+noSuchRoute, mend)
}

func (p *Policy) decideEgress(a *Agent, agent agentMask, r *Request) Decision {
	host := r.Host
	if !wellFormed(host) {
		h, err := ParseHost(host)
		if err != nil || h.Wildcard {
			return p.badHost(host, err)
		}
		host = h.Name
	}
	e := p.index.egress(host, agent)
	if e == nil {
		return p.noEgress(a, agent, host, r)
	}
	d := Decision{Rule: e.rule, At: e.At, Egress: e.Egress}
	switch {
	case expired(e.Expires, r.Now):
		d.Reason = "egress " + e.Host.String() + pastExpiry + e.Expires.Format(time.RFC3339)
		d.Mend = "to allow it write a later `expires`"
	case !contains(e.Ports, r.Port):
		d.Reason = fmt.Sprintf("port %d of %s%segress %s", r.Port, host, notGranted, e.Host)
		d.Mend = fmt.Sprintf("to allow it add %d to its `ports`", r.Port)
	case r.Road == RoadForward && !slices.Contains(e.Methods, r.Method):
		d.Reason = shown(r.Method) + " over plain http" + notGranted + "egress " + e.Host.String()
		if checkMethod(r.Method) == nil {
			d.Mend = "to allow it add " + r.Method + " to its `methods`"
		}
	default:
		d.Allow, d.Reason = true, e.reason
		return d
	}
	return ownCopy(d, "host", e.Host.String())
}

func (p *Policy) badHost(host string, err error) Decision {
	if f, ok := err.(*fault); ok {
		return p.deny(f.what, f.mend)
	}
	return p.deny("host "+shown(host)+" is a wildcard", "ask for one name")
}

// noEgress explains a host that no entry of the agent names; a route to it, or
// another agent's entry, is the likeliest misunderstanding.
func (p *Policy) noEgress(a *Agent, agent agentMask, host string, r *Request) Decision {
	authority := joinPort(host, r.Port)
	h, err := ParseHost(host)
	if err != nil {
		return p.badHost(host, err)
	}
	for _, e := range p.index.upstream[h.Name] {
		if e.agents&agent != 0 && e.Upstream.Port == r.Port {
			d := p.deny(authority+notGranted+"egress", "it is reached as "+e.Route.url(a)+", by route "+quoted(e.Name))
			d.At = e.At
			return d
		}
	}
	if e := p.index.egress(host, whoever); e != nil {
		d := p.deny(authority+" is in egress "+e.Host.String()+otherAgents, "to allow it add "+a.Name+" to its `agents`")
		d.At = e.At
		return d
	}
	line := "add `- " + egressFor(h, r) + "`"
	switch place := ownPlace(h.Name); place {
	case "":
		return p.deny(authority+notGranted+"egress", "to allow it "+line)
	case placeSelf:
		return p.deny(authority+notGranted+"egress", "it is "+place+": the agent's own programs are reached without the proxy, given `loopback: own`; to let it reach root's, "+line)
	default:
		return p.deny(authority+notGranted+"egress", "it is "+place+"; to allow it all the same, "+line)
	}
}

// Places that hardly anybody means to open to an agent.
const (
	placeSelf     = "the machine itself"
	placeMetadata = "where a cloud hands out the machine's own credentials"
	placeLink     = "an address of the machine's own link"
)

// ownPlace says which of these a host is; "" where it is none.
func ownPlace(host string) string {
	a, err := netip.ParseAddr(host)
	a = a.Unmap()
	switch {
	case err != nil && (host == "localhost" || strings.HasSuffix(host, ".localhost")), err == nil && (a.IsLoopback() || a.IsUnspecified()):
		return placeSelf
	case slices.Contains(metadata, a), host == "metadata.google.internal":
		return placeMetadata
	case a.IsLinkLocalUnicast():
		return placeLink
	}
	return ""
}

// egressFor is the egress line that names one host and port.
func egressFor(h Host, r *Request) string {
	var more string
	if r.Port != 443 {
		more += ", ports: [" + strconv.Itoa(int(r.Port)) + "]"
	}
	if r.Road == RoadForward && checkMethod(r.Method) == nil {
		more += ", methods: [" + r.Method + "]"
	}
	name := h.Name
	if strings.Contains(name, ":") {
		name = strconv.Quote(name)
	}
	if more != "" {
		return "{host: " + name + more + "}"
	}
	return "host: " + name
}

// decidePacket explains what the fence does with a packet of the agent's own.
func (p *Policy) decidePacket(a *Agent, r *Request) Decision {
	addr, err := netip.ParseAddr(r.Host)
	if err != nil {
		return p.deny("packet to "+shown(r.Host)+": not an address", "an agent sends packets by address; ask about the host without `packet`")
	}
	addr = addr.Unmap()
	to := netip.AddrPortFrom(addr, r.Port)
	tcp := strings.EqualFold(r.Method, "tcp")
	switch {
	case tcp && to == a.Listen:
		return Decision{Allow: true, Rule: "listener", At: a.At, Reason: "it is the agent's listener"}
	case tcp && a.Loopback == LoopbackOwn && r.Port >= 1024 && !p.listens(r.Port) && (addr == netip.IPv6Loopback() || addr == defaultListen.Addr()):
		return Decision{Allow: true, Rule: "loopback", At: a.At, Reason: "loopback: own, where a program of the agent's own uid listens"}
	case tcp && addr.IsLoopback() && !p.listens(r.Port):
		d := p.deny("tcp to "+to.String()+": the agent reaches its listener "+a.Listen.String()+" only", "to allow its own programs' ports write `loopback: own` in the agent")
		d.At = a.At
		return d
	}
	return p.deny(shown(r.Method)+" to "+to.String()+": the agent reaches its listener "+a.Listen.String()+" only",
		"hosts are reached by name through the proxy: add them to `egress:`")
}

func (p *Policy) listens(number uint16) bool {
	for i := range p.Agents {
		if p.Agents[i].Listen.Port() == number {
			return true
		}
	}
	return false
}

// expired says that a grant has ended; the instant itself is after the end.
func expired(at, now time.Time) bool { return !at.IsZero() && !now.Before(at) }

// wellFormed says that a host is in normal form already, without allocating.
func wellFormed(host string) bool {
	if !isNormal(host) || len(host) > maxName {
		return false
	}
	start := 0
	for i := 0; i <= len(host); i++ {
		if i < len(host) && host[i] != '.' {
			continue
		}
		if i == start || i-start > maxLabel || host[start] == '-' || host[i-1] == '-' {
			return false
		}
		start = i + 1
	}
	return true
}

func joinPort(host string, number uint16) string {
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	return host + ":" + strconv.Itoa(int(number))
}

// shown is a word of a request as a message shows it: without control and
// non-ASCII bytes, cut at 200.
func shown(s string) string {
	const most = 200
	clean := true
	for i := range len(s) {
		clean = clean && s[i] > ' ' && s[i] < 0x7f
	}
	if clean && len(s) <= most {
		return s
	}
	var b strings.Builder
	for i := range min(len(s), most) {
		if c := s[i]; c > ' ' && c < 0x7f {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	if len(s) > most {
		b.WriteString("...")
	}
	return b.String()
}
