package engine

import (
	"testing"
	"time"

	"exitgate/policy"
)

// TestTally: each refused packet is told of exactly once, in the line of the first of its kind or in the count of a later one.
func TestTally(t *testing.T) {
	now := time.Unix(1000, 0)
	var tl tally
	kind := denial{chain: "deny_agent", query: "statsig.anthropic.com"}
	if tl.again(kind) {
		t.Fatal("a kind is known before it was told of")
	}
	tl.first(kind, policy.Event{Event: "denied_lookup", Host: "statsig.anthropic.com", PID: 7}, now)
	if more := tl.due(now.Add(time.Hour), time.Minute); len(more) != 0 || tl.again(kind) {
		t.Errorf("a kind of which nothing came is told of again, or remembered: %v", more)
	}
	tl.first(kind, policy.Event{Event: "denied_lookup", Host: "statsig.anthropic.com", PID: 7}, now)
	for range 13 {
		if !tl.again(kind) {
			t.Fatal("a kind that was told of is not known")
		}
	}
	if more := tl.due(now.Add(time.Second), time.Minute); len(more) != 0 {
		t.Errorf("told of before the pause was over: %v", more)
	}
	more := tl.due(now.Add(time.Minute), time.Minute)
	if len(more) != 1 || more[0].Count != 13 || more[0].PID != 7 || !more[0].Time.IsZero() {
		t.Errorf("%+v", more)
	}
	tl.again(kind)
	if more := tl.due(now.Add(time.Minute), 0); len(more) != 1 || more[0].Times() != 1 {
		t.Errorf("at the end: %+v", more)
	}
}

// TestTallyIsBounded: with too many kinds they are forgotten, and their counts told.
func TestTallyIsBounded(t *testing.T) {
	var tl tally
	total := 0
	for i := range 3 * maxDenials {
		kind := denial{port: uint16(i), address: string(rune(i))}
		for _, more := range tl.first(kind, policy.Event{}, time.Unix(1, 0)) {
			total += more.Times()
		}
		total++
		tl.again(kind)
	}
	for _, more := range tl.due(time.Unix(1, 0), 0) {
		total += more.Times()
	}
	if len(tl.kinds) > maxDenials || total != 2*3*maxDenials {
		t.Errorf("%d kinds, %d told of, want %d", len(tl.kinds), total, 2*3*maxDenials)
	}
}
