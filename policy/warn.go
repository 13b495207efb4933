package policy

import (
	"net/netip"
	"slices"
)

// Warnings are what a policy may say but is rarely meant: nothing in them keeps
// it from being enforced. Sorted by place.
func (p *Policy) Warnings() []*Error {
	w := &problems{}
	p.warnCredentials(w)
	for i := range p.Routes {
		p.warnRoute(w, &p.Routes[i])
	}
	for i := range p.Egress {
		warnEgress(w, &p.Egress[i])
	}
	for i := range p.Root {
		h := &p.Root[i]
		warnGrant(w, "root "+h.Host.String(), h.At, h.Ports, h.Addresses)
	}
	for i := range p.Agents {
		warnAgent(w, &p.Agents[i])
	}
	return w.all.sorted()
}

// overflowUID is the uid the kernel shows for every id that a user namespace
// does not map.
const overflowUID = 65534

func warnAgent(w *problems, a *Agent) {
	if a.GID != nil && *a.GID == 0 {
		w.addf(a.At, "write the agent's own gid", "agent %s has gid 0, and reads what root's group may read", a.Name)
	}
	if a.UID == overflowUID {
		w.addf(a.At, "write a uid of its own, such as 1000", "agent %s has uid %d, which stands for every id that is not mapped", a.Name, a.UID)
	}
}

func (p *Policy) warnCredentials(w *problems) {
	for i := range p.Credentials {
		c := &p.Credentials[i]
		if c.From.Scheme == "env" {
			w.addf(c.At, "use file:, fd: or exec:", "credential %s is read from the variable %s: a container engine hands the container's environment to every `docker exec`", c.Name, c.From.Value)
		}
		if !slices.ContainsFunc(p.Routes, func(r Route) bool { return r.Credential == c.Name }) {
			w.addf(c.At, "remove it, or name it in a route", "credential %s is used by no route", c.Name)
		}
	}
}

func (p *Policy) warnRoute(w *problems, r *Route) {
	what := "route " + r.Name
	switch {
	case len(r.Allow) == 0:
		w.addf(r.At, "add `allow:` with lines such as `- GET /v1/models`", "%s allows nothing", what)
	case r.Credential != "":
		for i := range r.Allow {
			if r.Allow[i].Path == "/**" && len(r.Allow[i].Query) == 0 {
				w.addf(r.Allow[i].At, "list the paths that are needed", "%s: %s sends credential %s with any path", what, r.Allow[i].String(), r.Credential)
			}
		}
	}
	if r.Upstream.Scheme == "http" && r.Credential != "" && !loopbackHost(r.Upstream.Host) {
		w.addf(r.At, "use https", "%s sends credential %s unencrypted", what, r.Credential)
	}
	if r.Agents != nil && len(r.Agents) == 0 {
		w.addf(r.At, "remove `agents` for every agent, or name one", "%s is for no agent", what)
	} else if e := p.index.egress(r.Upstream.Host, p.index.mask(r.Agents)); e != nil && contains(e.Ports, r.Upstream.Port) {
		w.addf(e.At, "remove it, or the route", "egress %s reaches %s, the upstream of route %s, past its allow list: what goes through a tunnel is not seen", e.Host, joinPort(r.Upstream.Host, r.Upstream.Port), r.Name)
	}
	warnRanges(w, what, r.At, r.Addresses)
}

func loopbackHost(host string) bool {
	addr, err := netip.ParseAddr(host)
	return err == nil && addr.IsLoopback()
}

func warnEgress(w *problems, e *Egress) {
	what := "egress " + e.Host.String()
	if len(e.Methods) == 0 && contains(e.Ports, 80) {
		w.addf(e.At, "add `methods: [GET, HEAD]`, or remove port 80", "%s has port 80 but no methods, so plain http is refused", what)
	}
	if why := shared[e.Host.Name]; e.Host.Wildcard && why != "" {
		w.addf(e.At, "list the names that are needed", "%s: %s", what, why)
	}
	if e.Agents != nil && len(e.Agents) == 0 {
		w.addf(e.At, "remove `agents` for every agent, or name one", "%s is for no agent", what)
	}
	warnGrant(w, what, e.At, e.Ports, e.Addresses)
}

func warnGrant(w *problems, what string, at Position, ports []uint16, ranges []netip.Prefix) {
	if len(ports) == 0 {
		w.addf(at, "remove `ports` for 443, or list some", "%s has no port", what)
	}
	warnRanges(w, what, at, ranges)
}

// metadata is where the large clouds hand out a machine's own credentials.
var metadata = []netip.Addr{
	netip.AddrFrom4([4]byte{169, 254, 169, 254}), netip.AddrFrom4([4]byte{169, 254, 170, 2}), netip.AddrFrom4([4]byte{168, 63, 129, 16}),
	netip.AddrFrom4([4]byte{100, 100, 100, 200}), netip.MustParseAddr("fd00:ec2::254"),
}

func warnRanges(w *problems, what string, at Position, ranges []netip.Prefix) {
	for _, p := range ranges {
		for _, a := range metadata {
			if p.Contains(a) {
				w.addf(at, "write narrower ranges", "%s may resolve to %s (by %s), where a cloud hands out the machine's credentials", what, a, p)
				break
			}
		}
	}
}

// shared are names below which strangers get names of their own, though no
// public suffix says so: a wildcard there is a way out for data.
var shared = map[string]string{
	"amazonaws.com":          "anyone can have a bucket or a host below it",
	"googleapis.com":         "anyone can have a bucket below it",
	"googleusercontent.com":  "anyone can have a host below it",
	"windows.net":            "anyone can have a storage account below it",
	"azure.com":              "anyone can have a host below it",
	"azure-api.net":          "anyone can have a service below it",
	"github.com":             "anyone can have a repository, a gist and an issue there",
	"githubusercontent.com":  "anyone can have content below it",
	"gitlab.com":             "anyone can have a project there",
	"cloudflarestorage.com":  "anyone can have a bucket below it",
	"digitaloceanspaces.com": "anyone can have a bucket below it",
	"aliyuncs.com":           "anyone can have a bucket below it",
	"sharepoint.com":         "anyone can have a site below it",
	"slack.com":              "anyone can have a workspace below it",
	"atlassian.net":          "anyone can have a site below it",
}
