package policy

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Change is one difference between two policies.
type Change struct {
	// Widens: after it something may be allowed that was not. Where it cannot be
	// told (another upstream, another credential) it is set.
	Widens bool
	Text   string   // "egress pypi.org:443 added"
	At     Position // in the new policy; in the old one for what was removed
}

// Diff lists what differs between two policies; old may be nil, for no policy
// at all. If no change widens, every request that new allows, old allowed.
// What widens comes first, then by place.
func Diff(old, new *Policy) []Change {
	if old == nil {
		old = &Policy{}
	}
	if new == nil {
		new = &Policy{}
	}
	d := &differ{old: old, new: new}
	if len(old.Agents) > 0 && len(new.Agents) > 0 && old.Agents[0].Name != new.Agents[0].Name {
		d.add(true, new.Agents[0].At, "the first agent, which runs by default, is %s instead of %s", new.Agents[0].Name, old.Agents[0].Name)
	}
	match(old.Agents, new.Agents, func(a *Agent) string { return a.Name }, d.agent)
	match(old.Credentials, new.Credentials, func(c *Credential) string { return c.Name }, d.credential)
	match(old.Routes, new.Routes, func(r *Route) string { return r.Name }, d.route)
	match(old.Egress, new.Egress, func(e *Egress) string { return e.Host.String() }, d.egress)
	match(old.Root, new.Root, func(h *RootHost) string { return h.Host.String() }, d.root)
	at := Position{File: new.File}
	d.set("root_loopback port", at, portTexts(old.RootLoopback), portTexts(new.RootLoopback))
	d.set("root_inbound port", at, portTexts(old.RootInbound), portTexts(new.RootInbound))
	d.replaced("dns servers", at, servers(old), servers(new), true)
	slices.SortStableFunc(d.changes, func(a, b Change) int {
		if a.Widens != b.Widens {
			if a.Widens {
				return -1
			}
			return 1
		}
		return cmp.Or(cmp.Compare(a.At.File, b.At.File), cmp.Compare(a.At.Line, b.At.Line))
	})
	return d.changes
}

func servers(p *Policy) string {
	if len(p.DNS.Servers) == 0 {
		return "those of the system"
	}
	return joined(p.DNS.Servers)
}

type differ struct {
	old, new *Policy
	changes  []Change
}

func (d *differ) add(widens bool, at Position, format string, args ...any) {
	d.changes = append(d.changes, Change{widens, fmt.Sprintf(format, args...), at})
}

// match pairs the entries of the two policies by identity.
func match[T any](old, new []T, identity func(*T) string, visit func(old, new *T)) {
	before := make(map[string]*T, len(old))
	for i := range old {
		before[identity(&old[i])] = &old[i]
	}
	for i := range new {
		id := identity(&new[i])
		visit(before[id], &new[i])
		delete(before, id)
	}
	for i := range old {
		if before[identity(&old[i])] != nil {
			visit(&old[i], nil)
		}
	}
}

// set reports members that come and go; a member more widens.
func (d *differ) set(what string, at Position, old, new []string) {
	for _, v := range new {
		if !slices.Contains(old, v) {
			d.add(true, at, "%s %s added", what, v)
		}
	}
	for _, v := range old {
		if !slices.Contains(new, v) {
			d.add(false, at, "%s %s removed", what, v)
		}
	}
}

// replaced reports a value that is another one now.
func (d *differ) replaced(what string, at Position, old, new string, widens bool) {
	switch {
	case old == new:
	case old == "":
		d.add(widens, at, "%s %s added", what, new)
	case new == "":
		d.add(false, at, "%s %s removed", what, old)
	default:
		d.add(widens, at, "%s %s instead of %s", what, new, old)
	}
}

// limit reports a bound; zero is none.
func (d *differ) limit(what string, at Position, old, new int64) {
	if old != new {
		widens := new == 0 || old != 0 && new > old
		d.add(widens, at, "%s %s instead of %s", what, bound(new), bound(old))
	}
}

func bound(v int64) string {
	if v == 0 {
		return "unlimited"
	}
	return strconv.FormatInt(v, 10)
}

// until reports an end of a grant; later widens, none widens most.
func (d *differ) until(what string, at Position, old, new time.Time) {
	if !old.Equal(new) {
		d.add(new.IsZero() || !old.IsZero() && new.After(old), at, "%s ends %s instead of %s", what, instant(new), instant(old))
	}
}

func instant(t time.Time) string {
	if t.IsZero() {
		return "never"
	}
	return t.Format(time.RFC3339)
}

// agents reports for whom a grant is. A new agent's grants come with it and are not named again.
func (d *differ) agents(what string, at Position, old, new []string) {
	for i := range d.new.Agents {
		name := d.new.Agents[i].Name
		known := d.old.Agent(name) != nil
		was, is := old == nil && known || slices.Contains(old, name), new == nil || slices.Contains(new, name)
		switch {
		case is && !was && known:
			d.add(true, at, "%s for agent %s added", what, name)
		case was && !is:
			d.add(false, at, "%s for agent %s removed", what, name)
		}
	}
}

func (d *differ) agent(old, new *Agent) {
	switch {
	case old == nil:
		d.add(true, new.At, "agent %s (uid %d, listener %s) added", new.Name, new.UID, new.Listen)
		return
	case new == nil:
		d.add(false, old.At, "agent %s (uid %d, listener %s) removed", old.Name, old.UID, old.Listen)
		return
	}
	what := "agent " + new.Name + ": "
	d.replaced(what+"uid", new.At, strconv.FormatUint(uint64(old.UID), 10), strconv.FormatUint(uint64(new.UID), 10), true)
	d.replaced(what+"gid", new.At, gid(old), gid(new), true)
	d.replaced(what+"listener", new.At, old.Listen.String(), new.Listen.String(), true)
	d.replaced(what+"socket", new.At, old.Socket, new.Socket, true)
	d.replaced(what+"loopback", new.At, string(old.Loopback), string(new.Loopback), new.Loopback == LoopbackOwn)
	d.set(what+"published port", new.At, portTexts(old.Publish), portTexts(new.Publish))
	d.limit(what+"connections", new.At, int64(old.Limits.Connections), int64(new.Limits.Connections))
	d.limit(what+"requests per minute", new.At, int64(old.Limits.RequestsPerMinute), int64(new.Limits.RequestsPerMinute))
	d.limit(what+"upload bytes per hour", new.At, old.Limits.UploadBytesPerHour, new.Limits.UploadBytesPerHour)
	d.limit(what+"body bytes", new.At, old.Limits.BodyBytes, new.Limits.BodyBytes)
}

func gid(a *Agent) string {
	if a.GID == nil {
		return "the uid's own"
	}
	return strconv.FormatUint(uint64(*a.GID), 10)
}

func (d *differ) credential(old, new *Credential) {
	switch {
	case old == nil: // by itself it allows nothing: the route that names it does
		d.add(false, new.At, "credential %s (%s) added", new.Name, sourceText(new.From))
		return
	case new == nil:
		d.add(false, old.At, "credential %s (%s) removed", old.Name, sourceText(old.From))
		return
	}
	what := "credential " + new.Name + ": "
	if old.From != new.From {
		d.add(true, new.At, "%sread from %s instead of %s", what, sourceText(new.From), sourceText(old.From))
	}
	d.replaced(what+"kind", new.At, string(old.Kind), string(new.Kind), true)
	d.replaced(what+"header", new.At, old.Header, new.Header, true)
	d.replaced(what+"format", new.At, old.Format, new.Format, true)
	d.replaced(what+"refresh", new.At, old.Refresh.String(), new.Refresh.String(), false)
}

// sourceText names a source without a command's arguments.
func sourceText(s Source) string {
	if s.Scheme == "exec" {
		command, _, more := strings.Cut(s.Value, " ")
		if more {
			command += " ..."
		}
		return "exec:" + command
	}
	return s.String()
}

func (d *differ) route(old, new *Route) {
	switch {
	case old == nil:
		d.add(true, new.At, "route %s at %s to %s added (%d patterns)", new.Name, new.Path, new.Upstream, len(new.Allow))
		return
	case new == nil:
		d.add(d.uncovers(old), old.At, "route %s at %s to %s removed", old.Name, old.Path, old.Upstream)
		return
	}
	what := "route " + new.Name + ": "
	if old.Path != new.Path {
		d.add(true, new.At, "%spath %s instead of %s", what, new.Path, old.Path)
	}
	d.replaced(what+"upstream", new.At, old.Upstream.String(), new.Upstream.String(), true)
	d.replaced(what+"credential", new.At, old.Credential, new.Credential, true)
	d.set(what+"pattern", new.At, patternTexts(old.Allow), patternTexts(new.Allow))
	d.set(what+"header", new.At, headerTexts(old.Headers), headerTexts(new.Headers))
	d.until("route "+new.Name, new.At, old.Expires, new.Expires)
	d.agents("route "+new.Name, new.At, old.Agents, new.Agents)
	d.set(what+"addresses", new.At, texted(old.Addresses), texted(new.Addresses))
	if before, after := slices.Sorted(slices.Values(old.Env)), slices.Sorted(slices.Values(new.Env)); !slices.Equal(before, after) {
		d.add(false, new.At, "%senvironment changed", what)
	}
	if d.lostAgent(old.Agents, new.Agents) && d.uncovers(old) {
		d.add(true, new.At, "%sa shorter path decides for the agents it lost", what)
	}
}

// uncovers says that requests a removed route decided fall to one with a
// shorter path.
func (d *differ) uncovers(r *Route) bool {
	return slices.ContainsFunc(d.new.Routes, func(n Route) bool {
		return n.Name != r.Name && (n.Path == "/" || strings.HasPrefix(r.Path+"/", n.Path+"/"))
	})
}

// lostAgent says that a grant is no longer for an agent of the new policy.
func (d *differ) lostAgent(old, new []string) bool {
	return slices.ContainsFunc(d.new.Agents, func(a Agent) bool {
		was, is := old == nil || slices.Contains(old, a.Name), new == nil || slices.Contains(new, a.Name)
		return was && !is
	})
}

func (d *differ) egress(old, new *Egress) {
	switch {
	case old == nil:
		d.add(true, new.At, "egress %s added", hostPorts(new.Host, new.Ports))
		return
	case new == nil:
		wide := d.wildcardOver(old.Host)
		if wide != "" {
			d.add(true, old.At, "egress %s removed: %s decides", hostPorts(old.Host, old.Ports), wide)
			return
		}
		d.add(false, old.At, "egress %s removed", hostPorts(old.Host, old.Ports))
		return
	}
	what := "egress " + new.Host.String()
	d.set(what+": port", new.At, portTexts(old.Ports), portTexts(new.Ports))
	d.set(what+": method", new.At, old.Methods, new.Methods)
	d.grant(what, new.At, texted(old.Addresses), texted(new.Addresses), old.Expires, new.Expires, old.Required, new.Required)
	d.agents(what, new.At, old.Agents, new.Agents)
	if wide := d.wildcardOver(old.Host); wide != "" && d.lostAgent(old.Agents, new.Agents) {
		d.add(true, new.At, "%s: %s decides for the agents it lost", what, wide)
	}
}

// wildcardOver is a wildcard of the new policy that a host falls to when its
// own entry is gone, or "".
func (d *differ) wildcardOver(h Host) string {
	for name := h.Name; ; {
		_, parent, ok := strings.Cut(name, ".")
		if !ok {
			return ""
		}
		if w := d.new.index.wildcard[parent]; w != nil {
			return w.Host.String()
		}
		name = parent
	}
}

func (d *differ) root(old, new *RootHost) {
	switch {
	case old == nil:
		d.add(true, new.At, "root %s added", hostPorts(new.Host, new.Ports))
		return
	case new == nil:
		d.add(false, old.At, "root %s removed", hostPorts(old.Host, old.Ports))
		return
	}
	what := "root " + new.Host.String()
	d.set(what+": port", new.At, portTexts(old.Ports), portTexts(new.Ports))
	d.grant(what, new.At, texted(old.Addresses), texted(new.Addresses), old.Expires, new.Expires, old.Required, new.Required)
}

// grant reports what egress and root entries share.
func (d *differ) grant(what string, at Position, oldRanges, newRanges []string, oldEnd, newEnd time.Time, was, is bool) {
	d.set(what+": addresses", at, oldRanges, newRanges)
	d.until(what, at, oldEnd, newEnd)
	if was != is {
		d.add(false, at, "%s: required %t instead of %t", what, is, was)
	}
}

func hostPorts(h Host, ports []uint16) string {
	switch len(ports) {
	case 0:
		return h.String() + " (no port)"
	case 1:
		return joinPort(h.String(), ports[0])
	}
	return h.String() + " ports " + strings.Join(portTexts(ports), " ")
}

func portTexts(ports []uint16) []string {
	all := make([]string, len(ports))
	for i := range ports {
		all[i] = strconv.Itoa(int(ports[i]))
	}
	return all
}

func patternTexts(patterns []Pattern) []string {
	all := make([]string, len(patterns))
	for i := range patterns {
		all[i] = patterns[i].String()
	}
	return all
}

func headerTexts(headers []Header) []string {
	all := make([]string, len(headers))
	for i, h := range headers {
		all[i] = h.Name + ": " + h.Value
	}
	return all
}
