package attack

import (
	"flag"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"text/tabwriter"
)

// row is one line of the table.
type row struct{ family, name, road, want, seen, control string }

// results are the rows of all tests of this run.
type results struct {
	mu   sync.Mutex // guards rows
	rows []row
}

var table results

func (r *results) add(rows ...row) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.rows = append(r.rows, rows...)
}

// print writes the table where it was asked for by -v.
func (r *results) print(w io.Writer) {
	if f := flag.Lookup("test.v"); f == nil || f.Value.String() == "false" {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "FAMILY\tCASE\tROAD\tEXPECTED\tSEEN\tCONTROL")
	for _, x := range r.rows {
		fmt.Fprintln(tw, strings.Join([]string{x.family, x.name, x.road, x.want, x.seen, x.control}, "\t"))
	}
	tw.Flush()
	fmt.Fprintf(w, "%d rows\n", len(r.rows))
}

// judge adds a row, and fails the test where what was seen is none of the expected (alternatives are separated by |).
func judge(t testing.TB, x row) {
	t.Helper()
	table.add(x)
	for _, want := range strings.Split(x.want, "|") {
		if x.seen == want {
			return
		}
	}
	t.Errorf("%s: %s as %s: %s, want %s", x.family, x.name, x.road, x.seen, x.want)
}
