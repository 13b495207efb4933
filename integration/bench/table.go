package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

// table is what was measured: rows are candidates or sizes, columns are measures. Every cell has a value a round.
type table struct {
	Name    string // as -only takes it
	Title   string
	Base    string // the row that ratios are to; "": no ratios
	Columns []column
	Notes   []string // below it
	rows    []string
	cells   map[[2]string][]float64
}

// column is one measure.
type column struct {
	Name   string `json:"name"`
	Unit   string `json:"unit"`
	Format string `json:"-"`     // of the median
	Ratio  bool   `json:"ratio"` // beside it the median of the rounds' ratios to the base row
	Brief  bool   `json:"-"`     // one for the README
}

func newTable(name, title, base string, columns ...column) *table {
	return &table{Name: name, Title: title, Base: base, Columns: columns, cells: map[[2]string][]float64{}}
}

// add keeps a value of this round. Rows stand in the order in which they first came.
func (t *table) add(row, name string, v float64) {
	if !t.has(name) {
		panic("no column " + name) // a mistake in this program
	}
	if !slices.Contains(t.rows, row) {
		t.rows = append(t.rows, row)
	}
	key := [2]string{row, name}
	t.cells[key] = append(t.cells[key], v)
}

func median(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	if n := len(sorted); n%2 == 0 {
		return (sorted[n/2-1] + sorted[n/2]) / 2
	}
	return sorted[len(sorted)/2]
}

// ratio is the median over rounds of a row to the base row; 0 where there is none.
func (t *table) ratio(row, column string) float64 {
	mine, base := t.cells[[2]string{row, column}], t.cells[[2]string{t.Base, column}]
	var all []float64
	for i := range min(len(mine), len(base)) {
		if base[i] != 0 {
			all = append(all, mine[i]/base[i])
		}
	}
	return median(all)
}

func (t *table) cell(row string, c column) string {
	values := t.cells[[2]string{row, c.Name}]
	if len(values) == 0 {
		return ""
	}
	text := fmt.Sprintf(c.Format, median(values))
	if r := t.ratio(row, c.Name); c.Ratio && row != t.Base && r != 0 {
		text += fmt.Sprintf(" (%.2f)", r)
	}
	return text
}

// brief is the table as it stands in the README.
func (t *table) brief() *table {
	short := *t
	short.Columns = slices.DeleteFunc(slices.Clone(t.Columns), func(c column) bool { return !c.Brief })
	return &short
}

// markdown writes the table, its columns aligned for those who read it as text.
func (t *table) markdown(w io.Writer) {
	lines := [][]string{{""}, {"---"}}
	for _, c := range t.Columns {
		head := c.Name
		if c.Unit != "" {
			head += ", " + c.Unit
		}
		lines[0], lines[1] = append(lines[0], head), append(lines[1], "---:")
	}
	for _, row := range t.rows {
		line := []string{row}
		for _, c := range t.Columns {
			line = append(line, t.cell(row, c))
		}
		lines = append(lines, line)
	}
	widths := make([]int, len(lines[0]))
	for _, line := range lines {
		for i, cell := range line {
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	fmt.Fprintf(w, "%s\n\n", t.heading())
	for _, line := range lines {
		if len(t.Columns) == 0 {
			break
		}
		for i, cell := range line {
			fmt.Fprintf(w, "| %s%s ", cell, strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell)))
		}
		fmt.Fprintln(w, "|")
	}
	fmt.Fprintln(w)
	for _, note := range t.Notes {
		fmt.Fprintf(w, "* %s\n", note)
	}
	if len(t.Notes) > 0 {
		fmt.Fprintln(w)
	}
}

func (t *table) heading() string {
	if t.Base != "" && slices.ContainsFunc(t.Columns, func(c column) bool { return c.Ratio }) {
		return fmt.Sprintf("**%s** (in brackets: x %s)", t.Title, t.Base)
	}
	return "**" + t.Title + "**"
}

// cellJSON is a cell for programs.
type cellJSON struct {
	Median float64   `json:"median"`
	Ratio  float64   `json:"ratio,omitempty"`
	Rounds []float64 `json:"rounds"`
}

// MarshalJSON implements json.Marshaler.
func (t *table) MarshalJSON() ([]byte, error) {
	rows := map[string]map[string]cellJSON{}
	for _, row := range t.rows {
		rows[row] = map[string]cellJSON{}
		for _, c := range t.Columns {
			if values := t.cells[[2]string{row, c.Name}]; len(values) > 0 {
				rows[row][c.Name] = cellJSON{median(values), t.ratio(row, c.Name), values}
			}
		}
	}
	return json.Marshal(map[string]any{"name": t.Name, "title": t.Title, "base": t.Base, "columns": t.Columns, "notes": t.Notes, "order": t.rows, "rows": rows})
}

// The figures stand between these lines of the README.
const figuresBegin, figuresEnd = "<!-- figures -->\n", "<!-- /figures -->\n"

// writeReadme puts the tables into the README. Those of other runs that stand there already stay, unless this one has them too.
func writeReadme(path string, m machine, tables []*table) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	before, rest, ok := strings.Cut(string(text), figuresBegin)
	old, after, closed := strings.Cut(rest, figuresEnd)
	if !ok || !closed {
		return fmt.Errorf("%s has no %q and %q", path, strings.TrimSpace(figuresBegin), strings.TrimSpace(figuresEnd))
	}
	parts := blocks(old)
	for _, t := range tables {
		t = t.brief()
		if len(t.Columns)+len(t.Notes) == 0 {
			continue
		}
		var sb strings.Builder
		t.markdown(&sb)
		if i := slices.IndexFunc(parts, func(p string) bool { return strings.HasPrefix(p, "**"+t.Title+"**") }); i >= 0 {
			parts[i] = sb.String()
		} else {
			parts = append(parts, sb.String())
		}
	}
	section := strings.TrimRight(m.String()+"\n\n"+strings.Join(parts, ""), "\n") + "\n"
	return os.WriteFile(path, []byte(before+figuresBegin+section+figuresEnd+after), 0o644)
}

// blocks are the tables of a README's section, each from its title to before the next.
func blocks(section string) (all []string) {
	for line := range strings.Lines(section) {
		switch {
		case strings.HasPrefix(line, "**"):
			all = append(all, line)
		case len(all) > 0:
			all[len(all)-1] += line
		}
	}
	if len(all) > 0 {
		all[len(all)-1] += "\n" // the last one's empty line was cut off
	}
	return all
}

func millis(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e6 }
func micros(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e3 }

// has reports whether the table has that column.
func (t *table) has(name string) bool {
	return slices.ContainsFunc(t.Columns, func(c column) bool { return c.Name == name })
}
