package containers

import (
	"testing"
)

// TestDefaultNetwork: exitgate as PID 1 on the network that an engine gives to everybody.
func TestDefaultNetwork(t *testing.T) {
	each(t, everyEngine, func(t *testing.T, e *engine) {
		p := somewhere(t)
		wantOpen(t, e.open(t, nil, p.direct()...))
		p.wantFence(t, e.once(t, p.policy(), usual(), p.tries()...))
	})
}
