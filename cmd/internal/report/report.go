// Package report makes one page of HTML out of an audit: who called what, what was denied, and what it cost.
//
//	var r report.Report
//	for each line of the audit { r.Add(event) }
//	err := r.Write(w)
//
// The page stands alone: no script, no font, no image, nothing fetched, so that it can be mailed and kept. It follows the
// reader's light or dark setting, the width of the window, and reads well without seeing it. A report takes a bounded
// amount of memory however many events there are, so that a running gate keeps one of itself.
//
// Not done here: no audit is read, and nothing is judged; where events may hold what must not be kept, Clean takes it out.
package report

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"time"

	"exitgate/policy"
)

// What is kept, and what of it is shown. What is beyond that is counted together, and said.
const (
	maxKept   = 2000
	maxShown  = 50
	maxEvents = 200 // of the gate's own life; the latest
)

// others is the row of all that there was no room for.
const others = "others"

// Report gathers events. The zero value is empty.
type Report struct {
	Clean func(string) string // takes out what must not be kept; nil: nothing

	lines         int
	first, last   time.Time
	times         timeline
	hosts, agents table[string]
	denials       table[denialKey]
	tokens        table[[2]string]
	life          []Moment
	forgotten     int // of life
	total         Row
}

// denialKey is who wanted what, and why it was not to be had.
type denialKey struct{ what, who, why string }

// Row is one line of a table.
type Row struct {
	Name, By, Why, Kind string
	Telemetry           bool
	Count, Denied       int
	In, Out             int64
	Slowest             time.Duration
	Last                time.Time
	policy.Tokens
}

// Bytes is what went both ways.
func (r *Row) Bytes() int64 { return r.In + r.Out }

// AllTokens is the sum of the kinds.
func (r *Row) AllTokens() int64 { return r.Input + r.Output + r.CacheRead + r.CacheCreation }

// Moment is something that happened to the gate itself.
type Moment struct {
	At   time.Time
	What string
	Bad  bool
	Why  string
}

// table is rows by key. The zero value is empty.
type table[K comparable] map[K]*Row

// row returns the key's row, or one for all that there is no room for. A new one is made by fill.
func (t *table[K]) row(k, rest K, fill func(*Row)) *Row {
	if *t == nil {
		*t = make(table[K])
	}
	if r := (*t)[k]; r != nil {
		return r
	}
	if len(*t) >= maxKept {
		k, fill = rest, func(r *Row) { r.Name = others }
		if r := (*t)[k]; r != nil {
			return r
		}
	}
	r := new(Row)
	fill(r)
	(*t)[k] = r
	return r
}

// Add takes one line of the audit.
func (r *Report) Add(e policy.Event) {
	r.lines++
	if r.first.IsZero() || e.Time.Before(r.first) {
		r.first = e.Time
	}
	if e.Time.After(r.last) {
		r.last = e.Time
	}
	switch e.Event {
	case "request", "connect", "limit", "denied_packet", "denied_lookup":
		r.decision(&e)
	case "start", "reload", "child", "drift", "lost":
		r.moment(&e)
	}
}

func (r *Report) clean(s string) string {
	if r.Clean == nil || s == "" {
		return s
	}
	return r.Clean(s)
}

func (r *Report) moment(e *policy.Event) {
	m := Moment{At: e.Time, Why: r.clean(e.Reason)}
	ok := e.Decision == "allow"
	switch e.Event {
	case "start":
		m.What, m.Bad = "started", !ok
	case "reload":
		m.What, m.Bad = "policy reloaded", !ok
		if !ok {
			m.What = "policy refused"
		}
	case "child":
		m.What, m.Bad = "process ended", true
	case "drift":
		m.What, m.Bad = "foreign change", true
	case "lost":
		m.What, m.Bad = "audit incomplete", true
	}
	if r.life = append(r.life, m); len(r.life) > maxEvents {
		r.life = slices.Delete(r.life, 0, 1)
		r.forgotten++
	}
}

func (r *Report) decision(e *policy.Event) {
	n := e.Times()
	deny := e.Decision == "deny"
	r.times.add(e.Time, deny, n)
	rows := []*Row{&r.total}
	if e.Agent != "" {
		rows = append(rows, r.agents.row(e.Agent, others, func(row *Row) { row.Name = e.Agent }))
	}
	if e.Host != "" && (e.Event == "request" || e.Event == "connect") {
		rows = append(rows, r.hosts.row(e.Host, others, func(row *Row) { row.Name = r.clean(e.Host) }))
	}
	if deny {
		rows = append(rows, r.denial(e))
	}
	for _, row := range rows {
		row.Count += n
		if deny {
			row.Denied += n
		}
		row.In += e.BytesIn
		row.Out += e.BytesOut
		row.Slowest = max(row.Slowest, e.Duration)
		if e.Time.After(row.Last) {
			row.Last = e.Time
		}
	}
	r.usage(e)
}

func (r *Report) denial(e *policy.Event) *Row {
	exe := cmp.Or(e.Exe, "unknown")
	return r.denials.row(denialKey{target(e), exe, e.Reason}, denialKey{what: others}, func(row *Row) {
		row.Name, row.By, row.Why, row.Kind = r.clean(target(e)), r.clean(exe), r.clean(e.Reason), kinds[e.Event]
		row.Telemetry = policy.Telemetry(e.Host)
	})
}

func (r *Report) usage(e *policy.Event) {
	if e.Tokens == nil {
		return
	}
	of := r.tokens.row([2]string{e.Agent, e.Rule}, [2]string{others}, func(row *Row) { row.Name, row.By = e.Agent, e.Rule })
	for _, row := range []*Row{of, &r.total} {
		row.Input += e.Tokens.Input
		row.Output += e.Tokens.Output
		row.CacheRead += e.Tokens.CacheRead
		row.CacheCreation += e.Tokens.CacheCreation
	}
	of.Count++
}

// kinds are the events in a reader's words.
var kinds = map[string]string{"request": "request", "connect": "tunnel", "limit": "limit", "denied_packet": "packet", "denied_lookup": "lookup"}

// target is what was wanted, by the best name that there is for it.
func target(e *policy.Event) string {
	switch {
	case e.Event == "denied_lookup":
		return e.Host
	case e.Event == "denied_packet" && e.Port != 0:
		return fmt.Sprintf("%s %s port %d", e.Proto, e.Address, e.Port)
	case e.Event == "denied_packet":
		return e.Proto + " " + e.Address
	case e.Event == "request":
		return e.Method + " " + e.Host + e.Path
	case e.Port != 0 && e.Port != 443:
		return fmt.Sprintf("%s port %d", e.Host, e.Port)
	}
	return cmp.Or(e.Host, e.Agent)
}

// Write prints the page.
func (r *Report) Write(w io.Writer) error {
	p := page{
		First: r.first, Last: r.last, Lines: r.lines, Total: &r.total, Allowed: r.total.Count - r.total.Denied,
		Timeline: r.times.chart(r.last, r.life), Life: r.life, Forgotten: r.forgotten,
	}
	p.Denials = r.denials.shown(func(a, b *Row) int { return b.Count - a.Count }, nil)
	p.Hosts = r.hosts.shown(func(a, b *Row) int {
		return cmp.Or(cmp.Compare(b.Bytes(), a.Bytes()), b.Count-a.Count)
	}, func(row *Row) bool { return row.Count > row.Denied })
	p.Tokens = r.tokens.shown(func(a, b *Row) int { return cmp.Compare(b.AllTokens(), a.AllTokens()) }, nil)
	if len(r.agents) > 1 {
		p.Agents = r.agents.shown(func(a, b *Row) int { return cmp.Compare(b.Bytes(), a.Bytes()) }, nil)
	}
	return tmpl().Execute(w, p)
}

// shown sorts the rows that keep wants, and cuts off what is too much.
func (t table[K]) shown(by func(a, b *Row) int, keep func(*Row) bool) Rows {
	sorted := slices.SortedFunc(maps.Values(t), func(a, b *Row) int {
		return cmp.Or(by(a, b), cmp.Compare(a.Name, b.Name), cmp.Compare(a.By, b.By), cmp.Compare(a.Why, b.Why))
	})
	if keep != nil {
		sorted = slices.DeleteFunc(sorted, func(r *Row) bool { return !keep(r) })
	}
	var out Rows
	for i, row := range sorted {
		out.MostBytes = max(out.MostBytes, row.Bytes())
		out.MostCount = max(out.MostCount, int64(row.Count))
		out.MostTokens = max(out.MostTokens, row.AllTokens())
		if i < maxShown {
			out.Rows = append(out.Rows, row)
		} else {
			out.More++
		}
	}
	return out
}
