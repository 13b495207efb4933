// Package integration tries the built binary as a black box, on the rig: what a user, an agent and the outside see.
//
//	EXITGATE_BINARY=.build/exitgate go test ./integration     # as root; without the variable it builds the binary itself
//
// Each test starts exitgate as PID 1 of a box of its own (namespaces, a veth pair, a DNS server and TLS servers on the far side) and
// judges by what the upstream received, what the agent's system calls returned, and which packets left the box.
//
// No test here looks into the project's packages, and none judges speed: figures are in integration/bench.
package integration

import (
	"testing"

	"exitgate/integration/rig/rigtest"
)

// binary is the program under test.
var binary string

func TestMain(m *testing.M) { rigtest.Main(m, &binary) }
