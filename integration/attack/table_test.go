package attack

import (
	"testing"

	"exitgate/integration/rig/rigtest"
)

var table = rigtest.NewTable("FAMILY", "CASE", "ROAD")

// row is one line of the table.
type row struct{ family, name, road, want, seen, control string }

func (r row) line() rigtest.Row {
	return rigtest.Row{Labels: []string{r.family, r.name, r.road}, Want: r.want, Seen: r.seen, Control: r.control}
}

// judge adds a row, and fails the test where what was seen is not what is wanted.
func judge(t testing.TB, r row) {
	t.Helper()
	table.Judge(t, r.line())
}
