package rigtest

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"text/tabwriter"
)

// Row is a line of a table: what was tried, as the table's columns say, and what came of it. Want may have alternatives, separated by |.
type Row struct {
	Labels              []string
	Want, Seen, Control string
}

// Table collects what the tests of a run tried, for a reader: every line with what was expected, what was seen, and the control.
type Table struct {
	columns []string
	mu      sync.Mutex // guards rows
	rows    []Row
}

// NewTable returns an empty table with these columns for a row's labels. Rows are printed by the first of them.
func NewTable(columns ...string) *Table { return &Table{columns: columns} }

// Add adds a row that is no test's verdict.
func (t *Table) Add(r Row) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.rows = append(t.rows, r)
}

// Judge adds a row, and fails the test where what was seen is none of what is wanted, or the control is said to have FAILED.
func (t *Table) Judge(tb testing.TB, r Row) {
	tb.Helper()
	t.Add(r)
	if !slices.Contains(strings.Split(r.Want, "|"), r.Seen) {
		tb.Errorf("%s: %s, want %s (control: %s)", strings.Join(r.Labels, ", "), r.Seen, r.Want, r.Control)
	}
	if strings.HasPrefix(r.Control, "FAILED") {
		tb.Errorf("%s: control: %s", strings.Join(r.Labels, ", "), r.Control)
	}
}

// Show prints the table where -v asks for it.
func (t *Table) Show() {
	if testing.Verbose() {
		t.write(os.Stdout)
	}
}

func (t *Table) write(w io.Writer) {
	t.mu.Lock()
	defer t.mu.Unlock()
	slices.SortStableFunc(t.rows, func(a, b Row) int { return strings.Compare(a.Labels[0], b.Labels[0]) })
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, strings.Join(append(slices.Clone(t.columns), "EXPECTED", "SEEN", "CONTROL"), "\t"))
	for _, r := range t.rows {
		fmt.Fprintln(tw, strings.Join(append(slices.Clone(r.Labels), r.Want, r.Seen, r.Control), "\t"))
	}
	tw.Flush()
	fmt.Fprintf(w, "%d rows\n", len(t.rows))
}
