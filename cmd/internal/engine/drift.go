package engine

import (
	"context"
	"fmt"
	"strings"
	"time"

	"exitgate/firewall"
	"exitgate/policy"
)

// maxDriftFailures is how many repairs in a row may fail before the agent has to end: somebody with NET_ADMIN is
// working against us, and an agent behind a fence of unknown shape must not go on.
const maxDriftFailures = 3

// watchDrift repairs foreign changes of our table for as long as ctx lasts.
func (e *Engine) watchDrift(ctx context.Context) {
	every := e.Drift
	if every <= 0 {
		every = 5 * time.Second
	}
	if err := e.Fence.Watch(ctx, every, e.drifted); err != nil && ctx.Err() == nil {
		e.Lost(fmt.Sprintf("foreign changes of the table cannot be noticed: %v", err))
	}
}

// drifted is told of each foreign change that was noticed, after its repair was tried.
func (e *Engine) drifted(d firewall.Drift) {
	what := strings.Join(d.What, "; ")
	now := e.Now()
	e.mu.Lock()
	e.drift.Last, e.drift.What = &now, what
	if d.Repaired {
		e.drift.Repairs++
		e.drift.Failures = 0
	} else {
		e.drift.Failures++
	}
	failures := e.drift.Failures
	e.mu.Unlock()
	event := policy.Event{Event: "drift", Decision: "allow", Reason: "repaired: " + what, Duration: d.Took}
	if d.Repaired {
		e.metrics.repairs.Inc()
	} else {
		event.Decision = "deny"
		event.Reason = fmt.Sprintf("not repaired (%v): %s", d.Err, what)
	}
	e.Log("somebody else changed the table exitgate: %s", event.Reason)
	e.observe(event)
	e.changed()
	if failures >= maxDriftFailures {
		e.Lost(fmt.Sprintf("a foreign change of the table could not be undone %d times in a row: %v", failures, d.Err))
	}
}
