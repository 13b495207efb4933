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
	"testing"

	"exitgate/integration/rig/rigtest"
)

// program is the program under test.
var program string

func TestMain(m *testing.M) { rigtest.Main(m, &program, table.Show) }

var table = rigtest.NewTable("GROUP", "CASE")

// row is one line of the table. Forms of the same case stand in one.
type row struct{ group, name, want, seen, control string }

// judge adds a row, and fails the test where what was seen is not what is wanted.
func judge(t testing.TB, r row) {
	t.Helper()
	table.Judge(t, rigtest.Row{Labels: []string{r.group, r.name}, Want: r.want, Seen: r.seen, Control: r.control})
}
