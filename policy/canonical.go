package policy

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"strconv"
	"strings"
	"time"
)

func digest(canonical []byte) string {
	sum := sha256.Sum256(canonical)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// Canonical is the policy as one spelling: a file that Load reads, with the
// presets' entries and every default written out, hosts and paths in normal
// form and entries in order. Two policies that mean the same are equal in it,
// and loading it gives itself.
func (p *Policy) Canonical() []byte {
	w := writer{b: make([]byte, 0, 1024+96*len(p.Egress))}
	w.line("version: 1")
	w.line("agents:")
	for i := range p.Agents {
		w.agent(&p.Agents[i])
	}
	section(&w, "credentials:", p.Credentials, func(c *Credential) string { return c.Name }, (*writer).credential)
	section(&w, "routes:", p.Routes, func(r *Route) string { return r.Name }, (*writer).route)
	section(&w, "egress:", p.Egress, func(e *Egress) string { return e.Host.String() }, (*writer).egress)
	section(&w, "root:", p.Root, func(h *RootHost) string { return h.Host.String() }, (*writer).root)
	if len(p.RootLoopback) > 0 {
		w.numbers("root_loopback: ", p.RootLoopback)
	}
	if len(p.RootInbound) > 0 {
		w.numbers("root_inbound: ", p.RootInbound)
	}
	if len(p.DNS.Servers) > 0 {
		w.line("dns:")
		w.list("  servers: ", texted(p.DNS.Servers))
	}
	return w.b
}

// section writes the entries in the order of their identities. Only agents keep
// the file's order, since the first is the default.
func section[T any](w *writer, title string, entries []T, identity func(*T) string, write func(*writer, *T)) {
	if len(entries) == 0 {
		return
	}
	type keyed struct {
		key string
		at  int
	}
	order := make([]keyed, len(entries))
	for i := range entries {
		order[i] = keyed{identity(&entries[i]), i}
	}
	slices.SortFunc(order, func(a, b keyed) int { return cmp.Compare(a.key, b.key) })
	w.line(title)
	for _, k := range order {
		write(w, &entries[k.at])
	}
}

// writer appends lines of canonical YAML.
type writer struct{ b []byte }

func (w *writer) line(s string) { w.b = append(append(w.b, s...), '\n') }

// text writes `key: "value"`; the key comes with its indent and colon.
func (w *writer) text(key, value string) {
	w.b = append(strconv.AppendQuote(append(w.b, key...), value), '\n')
}

func (w *writer) optional(key, value string) {
	if value != "" {
		w.text(key, value)
	}
}

func (w *writer) number(key string, v int64) {
	w.b = append(strconv.AppendInt(append(w.b, key...), v, 10), '\n')
}

func (w *writer) numbers(key string, v []uint16) {
	w.b = append(append(w.b, key...), '[')
	for i, n := range v {
		if i > 0 {
			w.b = append(w.b, ", "...)
		}
		w.b = strconv.AppendUint(w.b, uint64(n), 10)
	}
	w.b = append(w.b, "]\n"...)
}

func (w *writer) list(key string, v []string) {
	w.b = append(append(w.b, key...), '[')
	for i, s := range v {
		if i > 0 {
			w.b = append(w.b, ", "...)
		}
		w.b = strconv.AppendQuote(w.b, s)
	}
	w.b = append(w.b, "]\n"...)
}

// names writes the agents of a grant: nil and empty mean different things.
func (w *writer) names(key string, v []string) {
	if v != nil {
		w.list(key, slices.Sorted(slices.Values(v)))
	}
}

func (w *writer) some(key string, v []string) {
	if len(v) > 0 {
		w.list(key, v)
	}
}

func (w *writer) instant(key string, t time.Time) {
	if !t.IsZero() {
		w.text(key, t.Format(time.RFC3339Nano))
	}
}

func (w *writer) agent(a *Agent) {
	w.text("  - name: ", a.Name)
	w.number("    uid: ", int64(a.UID))
	if a.GID != nil {
		w.number("    gid: ", int64(*a.GID))
	}
	w.text("    listen: ", a.Listen.String())
	w.optional("    socket: ", a.Socket)
	w.text("    loopback: ", string(a.Loopback))
	if len(a.Publish) > 0 {
		w.numbers("    publish: ", a.Publish)
	}
	w.line("    limits:")
	w.number("      connections: ", int64(a.Limits.Connections))
	w.number("      requests_per_minute: ", int64(a.Limits.RequestsPerMinute))
	w.number("      upload_bytes_per_hour: ", a.Limits.UploadBytesPerHour)
	if a.Limits.BodyBytes > 0 {
		w.number("      body_bytes: ", a.Limits.BodyBytes)
	}
}

func (w *writer) credential(c *Credential) {
	w.text("  - name: ", c.Name)
	w.text("    from: ", c.From.String())
	w.text("    kind: ", string(c.Kind))
	w.optional("    header: ", c.Header)
	w.optional("    format: ", c.Format)
	if c.Refresh > 0 {
		w.text("    refresh: ", c.Refresh.String())
	}
}

func (w *writer) route(r *Route) {
	w.text("  - name: ", r.Name)
	w.text("    path: ", r.Path)
	w.text("    upstream: ", r.Upstream.String())
	if r.Upstream.Scheme == "http" {
		w.line("    plaintext: true")
	}
	w.optional("    credential: ", r.Credential)
	lines := make([]string, len(r.Allow))
	for i := range r.Allow {
		lines[i] = r.Allow[i].String()
	}
	w.lines("    allow:", slices.Sorted(slices.Values(lines)))
	w.headers(r.Headers)
	w.instant("    expires: ", r.Expires)
	w.names("    agents: ", r.Agents)
	w.lines("    env:", slices.Sorted(slices.Values(r.Env)))
	w.some("    addresses: ", texted(r.Addresses))
}

func (w *writer) lines(key string, v []string) {
	if len(v) > 0 {
		w.line(key)
	}
	for _, s := range v {
		w.text("      - ", s)
	}
}

func (w *writer) headers(v []Header) {
	if len(v) > 0 {
		w.line("    headers:")
	}
	for _, h := range v {
		w.text("      - add: ", h.Name+": "+h.Value)
	}
}

func (w *writer) egress(e *Egress) {
	w.text("  - host: ", e.Host.String())
	w.numbers("    ports: ", e.Ports)
	w.some("    methods: ", e.Methods)
	w.some("    addresses: ", texted(e.Addresses))
	if e.Required {
		w.line("    required: true")
	}
	w.names("    agents: ", e.Agents)
	w.instant("    expires: ", e.Expires)
}

func (w *writer) root(h *RootHost) {
	w.text("  - host: ", h.Host.String())
	w.numbers("    ports: ", h.Ports)
	w.some("    addresses: ", texted(h.Addresses))
	if h.Required {
		w.line("    required: true")
	}
	w.instant("    expires: ", h.Expires)
}

// texted is each value as a policy writes it.
func texted[T interface{ String() string }](v []T) []string {
	if len(v) == 0 {
		return nil
	}
	all := make([]string, len(v))
	for i := range v {
		all[i] = v[i].String()
	}
	return all
}

// joined is a list as one text, for comparisons and messages.
func joined[T interface{ String() string }](v []T) string { return strings.Join(texted(v), " ") }
