package policy

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Denied is something that was denied, and how often.
type Denied struct {
	Event Event // one of them
	Count int
}

// telemetry are hosts, with all below them, that programs call about themselves and not for their user.
var telemetry = []string{
	"statsig.anthropic.com", "statsig.com", "featuregates.org", "sentry.io", "segment.io", "segment.com", "amplitude.com", "posthog.com",
	"datadoghq.com", "datadoghq.eu", "mixpanel.com", "launchdarkly.com", "google-analytics.com", "googletagmanager.com",
	"play.googleapis.com", "ab.chatgpt.com", "telemetry.nextjs.org", "telemetry.go.dev", "dc.services.visualstudio.com", "honeycomb.io",
}

// Suggest writes the smallest addition to a policy that would have allowed what was denied: a document of its own that
// Load accepts, each line with how often and by which program. It names hosts and never a wildcard. What cannot be
// allowed by a line of its own, such as another request on a route that is there, is told in a comment, and so is what
// hardly anybody came for: telemetry, and addresses of the machine itself. No denials make no document.
//
// p is the policy that the addition is for: what it allows by now is left out, and what an entry of it decides is told
// with that entry's place, since a second entry for a host would be refused. With nil the audit's own words have to do.
func Suggest(denied []Denied, p *Policy) string {
	w := wishes{policy: p, hosts: make(map[string]*wish), notes: make(map[string]*wish)}
	for _, d := range denied {
		w.add(d)
	}
	return w.document()
}

// wish is one line of the addition.
type wish struct {
	ports   map[uint16]bool
	methods map[string]bool
	by      map[string]bool // programs
	count   int
}

type wishes struct {
	policy       *Policy // nil: unknown
	hosts, notes map[string]*wish
}

func (w *wishes) add(d Denied) {
	e := d.Event
	rule, of, _ := strings.Cut(e.Rule, "/")
	switch {
	case e.Decision != "deny", w.decided(d):
	case e.Event == "request" && rule == "route":
		note(w.notes, routeNote(of, e), d)
	case e.Event == "connect" || e.Event == "request":
		if rule == "egress" || e.Host == "" {
			note(w.notes, why(e), d)
			return
		}
		w.host(d)
	case e.Event == "denied_lookup":
		w.host(d)
	case e.Event == "denied_packet" && e.Agent != "":
		note(w.notes, packetNote(e), d)
	}
}

// decided asks the policy again, as it is now, and tells of what an entry of it decides. It leaves to others what no
// entry names, and what was refused for another cause than the policy's, such as a ClientHello of another host.
func (w *wishes) decided(d Denied) bool {
	e := d.Event
	lookup := e.Event == "denied_lookup"
	if w.policy == nil || e.Agent != "" && w.policy.Agent(e.Agent) == nil || !lookup && !ofPolicy(e.Reason) {
		return false
	}
	r := Request{Agent: e.Agent, Method: e.Method, Host: e.Host, Port: e.Port, Path: e.Path, Now: e.Time}
	switch {
	case lookup:
		r.Road, r.Port = RoadConnect, 443
	case e.Event == "connect":
		r.Road = RoadConnect
	case e.Host == "" || strings.HasPrefix(e.Rule, "route/"):
		r.Road = RoadRoute
	default:
		r.Road = RoadForward
	}
	now := w.policy.Decide(r)
	switch {
	case now.Allow && lookup:
		note(w.notes, shown(e.Host)+" was looked up past the proxy, which reaches it: set HTTPS_PROXY for that program", d)
	case now.Allow:
	case now.At.Line > 0:
		note(w.notes, strings.TrimPrefix(now.Message(), "exitgate: "), d)
	case r.Road == RoadRoute:
		note(w.notes, now.Reason+"; "+now.Mend, d)
	default:
		return false
	}
	return true
}

// ofPolicy reports whether a reason is Decide's, and one that another policy could change.
func ofPolicy(reason string) bool {
	return slices.ContainsFunc([]string{notGranted, noSuchRoute, pastExpiry, otherAgents}, func(s string) bool { return strings.Contains(reason, s) })
}

// routeNote is what to add to a route. The line's path has the route's prefix, and the reason names what a pattern is
// held against.
func routeNote(name string, e Event) string {
	what, ok := strings.CutSuffix(e.Reason, notGranted+"route "+quoted(name))
	if !ok {
		return why(e)
	}
	return "route " + quoted(name) + ": add to its `allow`: " + what
}

// why is the reason of a denial as a note has it.
func why(e Event) string {
	return cmp.Or(e.Reason, e.Rule+" refused "+e.Method+" "+e.Path)
}

// packetNote is what to do about a packet that went past the proxy.
func packetNote(e Event) string {
	what := e.Proto + " to " + endpoint(e)
	if a, err := netip.ParseAddr(e.Address); err == nil && a.IsLoopback() {
		return what + ": only the listener is reachable there; `loopback: own` in the agent opens the ports of its own programs"
	}
	return what + " went past the proxy: set HTTPS_PROXY for that program, or name the host it wants"
}

// host adds a grant for a name; one that policy could not take becomes a note.
func (w *wishes) host(d Denied) {
	e := d.Event
	h, err := ParseHost(e.Host)
	if err != nil || h.Wildcard || e.Status == 429 {
		note(w.notes, why(e), d)
		return
	}
	x := note(w.hosts, h.String(), d)
	switch {
	case e.Event == "request":
		x.ports[cmp.Or(e.Port, 80)] = true
		x.methods[e.Method] = checkMethod(e.Method) == nil
	case e.Event == "denied_lookup": // its port is the name server's
		x.ports[443] = true
	default:
		x.ports[cmp.Or(e.Port, 443)] = true
	}
}

func note(in map[string]*wish, key string, d Denied) *wish {
	x := in[key]
	if x == nil {
		x = &wish{ports: make(map[uint16]bool), methods: make(map[string]bool), by: make(map[string]bool)}
		in[key] = x
	}
	x.count += d.Count
	if exe := d.Event.Exe; exe != "" && exe != "unknown" {
		x.by[exe] = true
	}
	return x
}

func endpoint(e Event) string {
	if e.Port == 0 {
		return e.Address
	}
	return joinPort(e.Address, e.Port)
}

// document prints the wishes, the most frequent first.
func (w *wishes) document() string {
	if len(w.hosts)+len(w.notes) == 0 {
		return ""
	}
	var b strings.Builder
	b.WriteString("version: 1\n")
	grants := slices.DeleteFunc(ranked(w.hosts), func(host string) bool { return caution(host) != "" })
	if len(grants) > 0 {
		b.WriteString("egress:\n")
	}
	for _, host := range grants {
		fmt.Fprintf(&b, "  - %s # %s\n", w.hosts[host].grant(host), w.hosts[host].who())
	}
	for _, host := range ranked(w.hosts) {
		if why := caution(host); why != "" {
			fmt.Fprintf(&b, "# %s: %s # %s\n", why, w.hosts[host].grant(host), w.hosts[host].who())
		}
	}
	for _, text := range ranked(w.notes) {
		fmt.Fprintf(&b, "# %s # %s\n", plainText(text), w.notes[text].who())
	}
	return b.String()
}

func ranked(of map[string]*wish) []string {
	return slices.SortedFunc(maps.Keys(of), func(a, b string) int {
		return cmp.Or(of[b].count-of[a].count, strings.Compare(a, b))
	})
}

// Telemetry reports whether a host is known to be called by programs about themselves.
func Telemetry(host string) bool {
	return slices.ContainsFunc(telemetry, func(t string) bool { return host == t || strings.HasSuffix(host, "."+t) })
}

// caution says why a host is not suggested like another; "" where it is.
func caution(host string) string {
	if Telemetry(host) {
		return "known telemetry"
	}
	return ownPlace(host)
}

// grant is the egress entry of a host.
func (x *wish) grant(host string) string {
	if strings.Contains(host, ":") {
		host = strconv.Quote(host)
	}
	ports := slices.Sorted(maps.Keys(x.ports))
	if len(x.methods) == 0 && len(ports) == 1 && ports[0] == 443 {
		return "host: " + host
	}
	var numbers []string
	for _, p := range ports {
		numbers = append(numbers, strconv.Itoa(int(p)))
	}
	s := "{host: " + host + ", ports: [" + strings.Join(numbers, ", ") + "]"
	var methods []string
	for _, m := range slices.Sorted(maps.Keys(x.methods)) {
		if x.methods[m] {
			methods = append(methods, m)
		}
	}
	if len(methods) > 0 {
		s += ", methods: [" + strings.Join(methods, ", ") + "]"
	}
	return s + "}"
}

// who is how often, and by which programs.
func (x *wish) who() string {
	times := "once"
	if x.count != 1 {
		times = strconv.Itoa(x.count) + " times"
	}
	programs := slices.Sorted(maps.Keys(x.by))
	if len(programs) > 3 {
		programs = append(programs[:3], "others")
	}
	if len(programs) == 0 {
		return times
	}
	return times + ", by " + plainText(strings.Join(programs, ", "))
}

// plainText keeps a comment one line whatever an agent put into a path or a program's name.
func plainText(s string) string {
	return strings.Map(func(r rune) rune {
		if UnsafeOnTerminal(r) || r == 0xfffd {
			return '?'
		}
		return r
	}, s)
}
