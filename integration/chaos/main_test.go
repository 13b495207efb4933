// Package chaos breaks what a running gate stands on, under load, and looks whether the fence stays closed and the work goes on.
//
//	make chaos                                  # as root; each fault at full length, a table at the end
//	go test ./integration/chaos -v              # the short form
//
// An agent's requests and an attacker's attempts run all the while. Of each fault the table tells how many requests went through and
// how many failed, how long after its end the first went through again, and how many attempts the attacker made in vain. At the end the capture
// on the far side has counted no packet that the policy does not allow, PID 1 is alive and the same, and descriptors, goroutines, zombies
// and memory are what they were.
//
// What it does not do: it never touches the machine's clock or its settings. CLOCK_REALTIME has no namespace, so a step of it cannot be tried; the
// clocks that timers go by can differ by a time namespace from the start on, and a test has them so.
package chaos

import (
	"flag"
	"testing"

	"exitgate/integration/rig/rigtest"
)

var (
	program string // under test
	long    = flag.Bool("long", false, "every fault at full length: a DNS outage of a minute, a proxy that stays stopped, a full conntrack table")
	one     = flag.String("fault", "", "only faults whose name contains this")
)

func TestMain(m *testing.M) { rigtest.Main(m, &program) }
