package policy

import (
	"slices"

	"go.yaml.in/yaml/v3"
)

var defaultPorts = []uint16{443}

var (
	egressKeys = []string{"host", "ports", "methods", "addresses", "required", "agents", "expires"}
	rootKeys   = []string{"host", "ports", "addresses", "required", "expires"}
	grantNeeds = []string{"host"}
)

func (r *reader) egress(n *yaml.Node) egressDraft {
	d := egressDraft{grantDraft: r.newGrant(n)}
	r.object(n, "an egress entry", egressKeys, grantNeeds, func(key string, v *yaml.Node) {
		switch key {
		case "methods":
			d.methods = r.methods(v)
		case "agents":
			d.agents = r.words(v, "agents")
		default:
			r.grantField(&d.grantDraft, key, v)
		}
	})
	if d.required && d.host.Wildcard {
		r.addf(d.hostAt, "remove required, or list the name itself", "host %s cannot be resolved before it is asked for", d.host)
	}
	r.grantDone(&d.grantDraft)
	return d
}

func (r *reader) root(n *yaml.Node) grantDraft {
	d := r.newGrant(n)
	r.object(n, "a root entry", rootKeys, grantNeeds, func(key string, v *yaml.Node) { r.grantField(&d, key, v) })
	if d.host.Wildcard {
		r.addf(d.hostAt, "list each name", "host %s: root's programs resolve for themselves, so only exact names can be kept open for them", d.host)
	}
	r.grantDone(&d)
	return d
}

func (r *reader) newGrant(n *yaml.Node) grantDraft {
	return grantDraft{ports: defaultPorts, at: r.at(n)}
}

func (r *reader) grantField(d *grantDraft, key string, v *yaml.Node) {
	switch key {
	case "host":
		d.host, d.hostAt = r.host(v)
	case "ports":
		d.ports = numbers(r.ports(v, "ports"))
	case "addresses":
		d.addresses = r.prefixes(v, "addresses")
	case "required":
		d.required = r.boolean(v, "required")
	case "expires":
		d.expires = r.expires(v)
	}
}

func (r *reader) grantDone(d *grantDraft) {
	if d.host.Addr.IsValid() && len(d.addresses) > 0 {
		r.addf(d.hostAt, "remove addresses", "host %s is an address, which resolves to nothing else", d.host)
	}
}

// methods reads those of absolute-form plain http; sorted.
func (r *reader) methods(n *yaml.Node) []string {
	var all []string
	r.list(n, "methods", func(v *yaml.Node) {
		m, ok := r.str(v, "an element of methods")
		if !ok {
			return
		}
		switch err := checkMethod(m); {
		case m == "CONNECT":
			r.fail(v, "remove it: methods are of plain http; a tunnel to the listed ports is allowed without", "method CONNECT")
		case err != nil:
			r.refuse(r.at(v), err)
		case slices.Contains(all, m):
			r.fail(v, "remove one", "method %s is there twice", m)
		default:
			all = append(all, m)
		}
	})
	slices.Sort(all)
	return all
}
