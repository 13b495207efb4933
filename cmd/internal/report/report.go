// Package report makes one page of HTML out of an audit: who called what, what was denied, and what it cost.
//
//	var r report.Report
//	for each line of the audit { r.Add(event) }
//	err := r.Write(w)
//
// The page stands alone: no script, no font, no image, nothing fetched, so that it can be mailed and kept. It follows the
// reader's light or dark setting.
//
// Not done here: no audit is read, and nothing is hidden or judged; the audit holds no credential, and so neither does
// the page.
package report

import (
	"cmp"
	_ "embed"
	"fmt"
	"html/template"
	"io"
	"maps"
	"slices"
	"time"

	"exitgate/policy"
)

// maxRows bounds each table; what is cut off is said.
const maxRows = 50

// buckets is how many bars the timeline has.
const buckets = 60

// Report gathers events. The zero value is empty.
type Report struct {
	events   int
	first    time.Time
	last     time.Time
	moments  []moment
	hosts    map[string]*Row
	denials  map[denialKey]*Row
	tokens   map[[2]string]*policy.Tokens
	reloads  []Reload
	allowed  int
	denied   int
	restarts int
	drifts   int
}

type moment struct {
	at   time.Time
	deny bool
}

type denialKey struct{ what, who, why string }

// Row is one line of a table.
type Row struct {
	Name, By, Why string
	Count, Denied int
	In, Out       int64
	Slowest       time.Duration
}

// Reload is one attempt to bring a policy into force.
type Reload struct {
	At     time.Time
	OK     bool
	Reason string
}

// Add takes one line of the audit.
func (r *Report) Add(e policy.Event) {
	r.events++
	if r.first.IsZero() || e.Time.Before(r.first) {
		r.first = e.Time
	}
	if e.Time.After(r.last) {
		r.last = e.Time
	}
	switch e.Event {
	case "reload", "start":
		r.reloads = append(r.reloads, Reload{e.Time, e.Decision == "allow", e.Reason})
	case "child":
		r.restarts++
	case "drift":
		r.drifts++
	case "request", "connect", "limit", "denied_packet", "denied_lookup":
		r.decision(e)
	}
}

func (r *Report) decision(e policy.Event) {
	deny := e.Decision == "deny"
	r.moments = append(r.moments, moment{e.Time, deny})
	if deny {
		r.denied++
		row := entry(&r.denials, denialKey{target(e), cmp.Or(e.Exe, "unknown"), e.Reason})
		row.Name, row.By, row.Why = target(e), cmp.Or(e.Exe, "unknown"), e.Reason
		row.Count++
	} else {
		r.allowed++
	}
	if e.Event == "request" || e.Event == "connect" {
		row := entry(&r.hosts, e.Host)
		row.Name = e.Host
		row.Count++
		row.In += e.BytesIn
		row.Out += e.BytesOut
		row.Slowest = max(row.Slowest, e.Duration)
		if deny {
			row.Denied++
		}
	}
	if e.Tokens != nil {
		t := entry(&r.tokens, [2]string{e.Agent, e.Rule})
		t.Input += e.Tokens.Input
		t.Output += e.Tokens.Output
		t.CacheRead += e.Tokens.CacheRead
		t.CacheCreation += e.Tokens.CacheCreation
	}
}

func entry[K comparable, V any](m *map[K]*V, k K) *V {
	if *m == nil {
		*m = make(map[K]*V)
	}
	if (*m)[k] == nil {
		(*m)[k] = new(V)
	}
	return (*m)[k]
}

// target is what was wanted, by the best name that there is for it.
func target(e policy.Event) string {
	switch {
	case e.Event == "denied_lookup":
		return "name " + e.Host
	case e.Event == "denied_packet" && e.Port != 0:
		return fmt.Sprintf("%s %s port %d", e.Proto, e.Address, e.Port)
	case e.Event == "denied_packet":
		return e.Proto + " " + e.Address
	case e.Event == "request":
		return e.Method + " " + e.Host + e.Path
	case e.Port != 0 && e.Port != 443:
		return fmt.Sprintf("%s port %d", e.Host, e.Port)
	}
	return e.Host
}

// Bar is one moment of the timeline, its parts in percent of the tallest.
type Bar struct {
	Allow, Deny, Top float64
	Title            string
}

// page is what the template shows.
type page struct {
	First, Last               time.Time
	Allowed, Denied, Restarts int
	Drifts, Events            int
	Bars                      []Bar
	Hosts, Denials            []Row
	HostsMore, DenialsMore    int
	MostBytes                 int64
	Tokens                    []tokenRow
	Reloads                   []Reload
}

type tokenRow struct {
	Agent, Rule string
	policy.Tokens
}

//go:embed page.html
var source string

var tmpl = template.Must(template.New("page").Funcs(template.FuncMap{
	"size": size,
	"when": func(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05") },
	"ms":   func(d time.Duration) string { return d.Round(time.Millisecond).String() },
	"part": func(n, of int64) float64 {
		if of == 0 {
			return 0
		}
		return 100 * float64(n) / float64(of)
	},
	"mul": func(i int, by float64) float64 { return float64(i) * by },
	"sub": func(a, b float64) float64 { return a - b },
	"sum": func(a, b int64) int64 { return a + b },
}).Parse(source))

// Write prints the page.
func (r *Report) Write(w io.Writer) error {
	p := page{First: r.first, Last: r.last, Allowed: r.allowed, Denied: r.denied, Restarts: r.restarts, Drifts: r.drifts, Events: r.events,
		Bars: r.bars(), Reloads: r.reloads}
	p.Hosts, p.HostsMore = top(r.hosts, func(a, b *Row) int {
		return cmp.Or(cmp.Compare(b.In+b.Out, a.In+a.Out), b.Count-a.Count, cmp.Compare(a.Name, b.Name))
	})
	p.Denials, p.DenialsMore = top(r.denials, func(a, b *Row) int {
		return cmp.Or(b.Count-a.Count, cmp.Compare(a.Name, b.Name), cmp.Compare(a.By, b.By))
	})
	for _, h := range p.Hosts {
		p.MostBytes = max(p.MostBytes, h.In+h.Out)
	}
	for k, t := range r.tokens {
		p.Tokens = append(p.Tokens, tokenRow{k[0], k[1], *t})
	}
	slices.SortFunc(p.Tokens, func(a, b tokenRow) int { return cmp.Or(cmp.Compare(a.Agent, b.Agent), cmp.Compare(a.Rule, b.Rule)) })
	return tmpl.Execute(w, p)
}

func top[K comparable](of map[K]*Row, by func(a, b *Row) int) (rows []Row, more int) {
	sorted := slices.SortedFunc(maps.Values(of), by)
	more = max(0, len(sorted)-maxRows)
	for _, r := range sorted[:len(sorted)-more] {
		rows = append(rows, *r)
	}
	return rows, more
}

// bars counts decisions in equal parts of the time that the audit covers.
func (r *Report) bars() []Bar {
	span := r.last.Sub(r.first)
	if span <= 0 || len(r.moments) == 0 {
		return nil
	}
	var allow, deny [buckets]int
	for _, m := range r.moments {
		i := min(int(float64(m.at.Sub(r.first))/float64(span)*buckets), buckets-1)
		if m.deny {
			deny[i]++
		} else {
			allow[i]++
		}
	}
	most := 1
	for i := range allow {
		most = max(most, allow[i]+deny[i])
	}
	bars := make([]Bar, buckets)
	for i := range bars {
		a, d := 100*float64(allow[i])/float64(most), 100*float64(deny[i])/float64(most)
		at := r.first.Add(span * time.Duration(i) / buckets)
		bars[i] = Bar{a, d, 100 - a - d, fmt.Sprintf("%s: %d allowed, %d denied", at.UTC().Format("15:04:05"), allow[i], deny[i])}
	}
	return bars
}

func size(n int64) string {
	for _, u := range []struct {
		unit string
		of   int64
	}{{"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}} {
		if n >= u.of {
			return fmt.Sprintf("%.1f %s", float64(n)/float64(u.of), u.unit)
		}
	}
	return fmt.Sprintf("%d B", n)
}
