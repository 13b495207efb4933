// Package leaks makes upstreams send back the credential that they were given, in every form and on every channel, and looks for it in all
// that the agent can see and in all that exitgate writes.
//
//	make leaks                          # as root; prints the table: group, case, expected, seen, control
//	go test ./integration/leaks -v      # the same
//
// The binary is PID 1 of a box. Groups are those of the leak table: A what the agent puts into a request, B where it tries to send it, C framing,
// D reflection, E errors, F processes and files, G identity, H rotation, I streaming, K configuration and logs. A case is a line of a table.
// Every negative has a control: the same bytes on a route without a credential arrive as they are, or the same search finds the credential
// where it is; where a control is of another kind the table says which. Cases that other packages show are named with their test.
//
// What it does not do: it tries no way around the proxy (integration/attack does), and no encoding that SECURITY.md calls a limit, except
// to show that it is one.
package leaks

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"text/tabwriter"

	"exitgate/integration/rig"
)

// program is the program under test.
var program string

func TestMain(m *testing.M) {
	rig.Main()
	inside, code, err := rig.Enter()
	if err == nil && inside {
		if program, err = rig.Binary(); err == nil {
			code = m.Run()
			if testing.Verbose() {
				table.print(os.Stdout)
			}
			os.Exit(code)
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "leaks:", err)
		code = 1
		if errors.Is(err, rig.ErrNeedsRoot) && os.Getenv("CI") == "" {
			code = 0
		}
	}
	os.Exit(code)
}

// row is one line of the table. Forms of the same case stand in one.
type row struct{ group, name, want, seen, control string }

var table rows

type rows struct {
	mu  sync.Mutex // guards all
	all []row
}

func (t *rows) print(w io.Writer) {
	t.mu.Lock()
	defer t.mu.Unlock()
	slices.SortStableFunc(t.all, func(a, b row) int { return strings.Compare(a.group, b.group) })
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "GROUP\tCASE\tEXPECTED\tSEEN\tCONTROL")
	for _, r := range t.all {
		fmt.Fprintln(tw, strings.Join([]string{r.group, r.name, r.want, r.seen, r.control}, "\t"))
	}
	tw.Flush()
	fmt.Fprintf(w, "%d rows\n", len(t.all))
}

// judge adds a row, and fails the test where what was seen is none of the expected, which are separated by |.
func judge(t testing.TB, r row) {
	t.Helper()
	table.mu.Lock()
	table.all = append(table.all, r)
	table.mu.Unlock()
	if !slices.Contains(strings.Split(r.want, "|"), r.seen) {
		t.Errorf("%s %s: %s, want %s (control: %s)", r.group, r.name, r.seen, r.want, r.control)
	}
	if strings.HasPrefix(r.control, "FAILED") {
		t.Errorf("%s %s: control: %s", r.group, r.name, r.control)
	}
}
