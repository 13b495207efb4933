package engine

import (
	"errors"
	"strings"
	"testing"

	"exitgate/firewall"
)

// TestThreeFailedRepairsEndTheAgent: in a row, that is; a repair between them starts the count anew.
func TestThreeFailedRepairsEndTheAgent(t *testing.T) {
	w := newWorld(t, oneHost)
	var lost []string
	w.Lost = func(why string) { lost = append(lost, why) }
	w.start()
	failed := firewall.Drift{What: []string{"a rule more"}, Err: errors.New("not permitted")}
	repaired := firewall.Drift{What: []string{"a rule more"}, Repaired: true}
	for _, d := range []firewall.Drift{failed, failed, repaired, failed, failed} {
		w.drifted(d)
	}
	if len(lost) != 0 {
		t.Fatalf("given up too early: %q", lost)
	}
	if s := w.Status(); s.State != "degraded" || s.Drift.Failures != 2 || s.Drift.Repairs != 1 {
		t.Errorf("state %s, %+v", s.State, s.Drift)
	}
	w.drifted(failed)
	if len(lost) != 1 || !strings.Contains(lost[0], "3 times in a row") || !strings.Contains(lost[0], "not permitted") {
		t.Errorf("after the third: %q", lost)
	}
	told := 0
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, e := range w.events {
		if e.Event == "drift" {
			told++
		}
	}
	if told != 6 {
		t.Errorf("%d audit lines of 6 changes", told)
	}
}
