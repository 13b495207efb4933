package policy

import (
	"bytes"
	"net/netip"
	"slices"
	"time"

	"go.yaml.in/yaml/v3"
)

// Load reads a policy. file is the name its messages give. The error is Errors
// and holds every mistake, sorted by place; with an error the policy is nil.
// Presets are merged before the file's own entries, which replace a preset's
// entry of the same name (for egress and root: of the same host) whole.
func Load(file string, data []byte) (*Policy, error) {
	var ps problems
	r := &reader{problems: &ps, file: file}
	own := r.fragment(data, policyKeys)
	merged := merge(&ps, own)
	p := link(&ps, file, merged)
	if len(ps.all) > 0 {
		return nil, ps.all.sorted()
	}
	p.source = bytes.Clone(data)
	p.index = buildIndex(p)
	p.digest = digest(p.Canonical())
	return p, nil
}

// word is a reference of one entry to another, with its place.
type word struct {
	text string
	at   Position
}

// port is a port with its place.
type port struct {
	number uint16
	at     Position
}

// fragment is one file as read: entries that are right in themselves.
type fragment struct {
	at           Position
	presets      []word
	agents       []agentDraft
	credentials  []Credential
	routes       []routeDraft
	egress       []egressDraft
	root         []grantDraft
	rootLoopback []port
	rootInbound  []port
	dns          DNS
}

// grantDraft is what egress and root entries share.
type grantDraft struct {
	host      Host
	hostAt    Position
	ports     []uint16
	addresses []netip.Prefix
	required  bool
	expires   time.Time
	at        Position
}

type egressDraft struct {
	grantDraft
	methods []string
	agents  []word // nil: every agent
}

var (
	presetKeys = []string{"version", "credentials", "routes", "egress", "root"}
	policyKeys = []string{"version", "presets", "agents", "credentials", "routes", "egress", "root", "root_loopback", "root_inbound", "dns"}
)

// fragment reads one file; keys are those it may have.
func (r *reader) fragment(data []byte, keys []string) *fragment {
	f := &fragment{at: Position{r.file, 1, 1}}
	top := r.document(data)
	if top == nil {
		return f
	}
	r.object(top, "the policy", keys, []string{"version"}, func(key string, v *yaml.Node) {
		switch key {
		case "version":
			r.version(v)
		case "presets":
			f.presets = r.words(v, "presets")
		case "agents":
			f.agents = r.agents(v)
		case "credentials":
			r.list(v, "credentials", func(v *yaml.Node) { f.credentials = append(f.credentials, r.credential(v)) })
		case "routes":
			r.list(v, "routes", func(v *yaml.Node) { f.routes = append(f.routes, r.route(v)) })
		case "egress":
			f.egress = make([]egressDraft, 0, len(v.Content))
			r.list(v, "egress", func(v *yaml.Node) { f.egress = append(f.egress, r.egress(v)) })
		case "root":
			r.list(v, "root", func(v *yaml.Node) { f.root = append(f.root, r.root(v)) })
		case "root_loopback":
			f.rootLoopback = r.ports(v, "root_loopback")
		case "root_inbound":
			f.rootInbound = r.ports(v, "root_inbound")
		case "dns":
			f.dns = r.dns(v)
		}
	})
	return f
}

func (r *reader) version(n *yaml.Node) {
	switch {
	case n.Kind != yaml.ScalarNode || n.Style != 0 || n.ShortTag() != "!!int":
		r.fail(n, "write `version: 1`", "version is not the number 1 but %s", kindOf(n))
	case n.Value != "1":
		r.fail(n, "write `version: 1`", "version %s is not supported", n.Value)
	}
}

// merge puts the presets under the file's entries.
func merge(ps *problems, own *fragment) *fragment {
	var all []*fragment
	for i, name := range own.presets {
		text, ok := presetText(name.text)
		switch first := slices.IndexFunc(own.presets, func(w word) bool { return w.text == name.text }); {
		case !ok:
			ps.addf(name.at, suggest(name.text, presetNames()), "unknown preset %s", quoted(name.text))
		case first < i:
			ps.addf(name.at, "remove one", "preset %s is listed twice", quoted(name.text))
		default:
			r := &reader{problems: ps, file: "preset " + name.text}
			f := r.fragment([]byte(text), presetKeys)
			for i := range f.credentials {
				f.credentials[i].Preset = name.text
			}
			all = append(all, f)
		}
	}
	all = append(all, own)
	m := &fragment{at: own.at, presets: own.presets, agents: own.agents, rootLoopback: own.rootLoopback, rootInbound: own.rootInbound, dns: own.dns}
	m.credentials = layer(ps, all, "credential",
		func(f *fragment) []Credential { return f.credentials },
		func(c *Credential) (string, Position) { return c.Name, c.At })
	m.routes = layer(ps, all, "route",
		func(f *fragment) []routeDraft { return f.routes },
		func(d *routeDraft) (string, Position) { return d.Name, d.At })
	m.egress = layer(ps, all, "egress host",
		func(f *fragment) []egressDraft { return f.egress },
		func(d *egressDraft) (string, Position) { return d.host.String(), d.hostAt })
	m.root = layer(ps, all, "root host",
		func(f *fragment) []grantDraft { return f.root },
		func(d *grantDraft) (string, Position) { return d.host.String(), d.hostAt })
	return m
}

// layer joins the entries of several files: a later file's entry replaces an
// earlier file's of the same identity, and within one file an identity is used once.
func layer[T any](ps *problems, files []*fragment, what string, entries func(*fragment) []T, identity func(*T) (string, Position)) []T {
	size := 0
	for _, f := range files {
		size += len(entries(f))
	}
	all, where := make([]T, 0, size), make(map[string]int, size)
	for _, f := range files {
		list := entries(f)
		for i := range list {
			name, at := identity(&list[i])
			prior, taken := where[name]
			if name == "" { // the mistake was reported where it was read
				continue
			}
			if !taken {
				where[name] = len(all)
				all = append(all, list[i])
				continue
			}
			if _, first := identity(&all[prior]); first.File == at.File {
				ps.addf(at, "join the two entries", "%s %s is there twice, first in line %d", what, quoted(name), first.Line)
				continue
			}
			all[prior] = list[i]
		}
	}
	return all
}
