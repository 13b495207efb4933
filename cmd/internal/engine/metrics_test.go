package engine

import (
	"fmt"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"exitgate/policy"
)

// TestNamesFromTheProxy: what it calls agents and rules is counted as it stands, whatever bytes those have, and takes a bounded
// amount of memory.
func TestNamesFromTheProxy(t *testing.T) {
	m := newMetrics(&Engine{})
	m.event(policy.Event{Event: "request", Decision: "allow", Agent: "claude", Rule: "route/anthropic", BytesIn: 7})
	m.event(policy.Event{Event: "request", Decision: "deny", Agent: "\xff", Rule: "\xc3", BytesOut: 1, Tokens: &policy.Tokens{Input: 1}})
	for i := range 2 * maxNames {
		m.event(policy.Event{Event: "request", Decision: "deny", Agent: fmt.Sprint("made up ", i)})
	}
	m.event(policy.Event{Event: "request", Decision: "allow", Agent: "claude", Rule: "route/anthropic", BytesIn: 7})
	series, total := 0, 0.0
	of := make(chan prometheus.Metric, 3*maxNames)
	m.decisions.Collect(of)
	close(of)
	for range of {
		series++
	}
	if series > maxNames+3 {
		t.Errorf("%d series are kept, want at most %d", series, maxNames+3)
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(m.decisions, m.bytes)
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, s := range f.Metric {
			switch {
			case f.GetName() == "exitgate_decisions_total":
				total += s.Counter.GetValue()
			case s.Label[0].GetValue() == "claude" && s.Counter.GetValue() != 14:
				t.Errorf("%v bytes of claude, want 14", s.Counter.GetValue())
			}
		}
	}
	if total != 2*maxNames+3 {
		t.Errorf("%v decisions are counted, want %d", total, 2*maxNames+3)
	}
}
