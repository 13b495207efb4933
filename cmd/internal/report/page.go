package report

import (
	_ "embed"
	"fmt"
	"html/template"
	"strconv"
	"sync"
	"time"
)

// page is what the template shows.
type page struct {
	First, Last                    time.Time
	Lines, Allowed                 int
	Total                          *Row
	Timeline                       *Chart // nil: no decision
	Denials, Hosts, Agents, Tokens Rows
	Life                           []Moment
	Forgotten                      int
}

// Span is the time that the audit covers.
func (p page) Span() string { return p.Last.Sub(p.First).Round(time.Second).String() }

// Rows are one table's.
type Rows struct {
	Rows                             []*Row
	More                             int // that there was no room for
	MostBytes, MostCount, MostTokens int64
}

//go:embed page.html
var source string

// tmpl is parsed when it is first used: few processes of this program write a page.
var tmpl = sync.OnceValue(func() *template.Template {
	return template.Must(template.New("page").Funcs(template.FuncMap{
		"size":  size,
		"count": func(n any) string { return count(fmt.Sprint(n)) },
		"day":   func(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05") },
		"clock": func(t time.Time) string { return t.UTC().Format("15:04:05") },
		"stamp": func(t time.Time) string { return t.UTC().Format(time.RFC3339) },
		"took":  took,
		"part": func(n, of int64) string {
			if of == 0 {
				return "0"
			}
			return strconv.FormatFloat(100*float64(n)/float64(of), 'f', 2, 64)
		},
	}).Parse(source))
})

// took is a duration as one reads it.
func took(d time.Duration) string {
	switch {
	case d >= 10*time.Second:
		return d.Round(time.Second).String()
	case d >= time.Second:
		return d.Round(100 * time.Millisecond).String()
	}
	return d.Round(time.Millisecond).String()
}

// count sets thousands apart, by the thin space that no language reads as a decimal mark.
func count(digits string) string {
	for i := len(digits) - 3; i > 0; i -= 3 {
		digits = digits[:i] + "\u202f" + digits[i:]
	}
	return digits
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
