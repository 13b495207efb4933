// Package attack tries to get out. A compiled prober inside a fenced box goes through tables of attempts, on several roads: as the hardened agent,
// as `docker exec -u 1000` gives a process (the same uid without hardening), as other uids, as root. A capture on the far side counts every packet.
//
//	make attack                          # as root; prints the table: case, road, expected, seen, control
//	go test ./integration/attack -v      # the same
//
// Every attempt has a positive control in the same run: the same probe in a box without a fence arrives or works, or the same thing is done in
// the fenced box by somebody who may. What the control is stands in the table; where it is of another kind, the table says why.
// The tables are data: an attempt is added by a line. Cases that other packages show are named with their test, and the test must exist.
//
// What it does not do: it attacks no kernel bug, and a case that this machine cannot stage is listed with the reason instead.
package attack

import (
	"testing"

	"exitgate/integration/rig/rigtest"
)

// program is the program under test.
var program string

func TestMain(m *testing.M) { rigtest.Main(m, &program, table.Show) }
