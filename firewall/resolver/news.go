package resolver

import (
	"fmt"
	"time"

	"exitgate/policy"
)

const (
	newsBurst = 64 // events at once
	newsRate  = 8  // events a second after that
	newsEach  = 16 // events of one lookup: a lying server has many addresses
)

// news bounds the events of new addresses: names that rotate and servers that lie would fill the audit otherwise.
type news struct {
	left    float64
	at      time.Time
	skipped int
}

// tell gives the events of a lesson.
func (w *news) tell(n *name, l lesson, now time.Time) (events []policy.Event) {
	base := policy.Event{Time: now, Event: "pin", Host: n.host}
	refused := "special-purpose: "
	if l.mixed {
		refused = "rebinding: " // public addresses beside others, as an attacker's server mixes them
	}
	for _, x := range l.refused {
		e := base
		e.Decision, e.Address, e.Reason = "deny", x.addr.String(), refused+x.why
		events = append(events, e)
	}
	for _, a := range l.fresh {
		e := base
		e.Decision, e.Address, e.Reason = "allow", a.String(), fmt.Sprintf("ttl %s", l.ttl)
		events = append(events, e)
	}
	return w.ration(events, now)
}

func (w *news) ration(events []policy.Event, now time.Time) []policy.Event {
	if len(events) == 0 {
		return nil
	}
	if passed := now.Sub(w.at).Seconds(); w.at.IsZero() || passed > 0 {
		if w.at.IsZero() {
			passed = newsBurst
		}
		w.left, w.at = min(newsBurst, w.left+passed*newsRate), now
	}
	count := min(len(events), newsEach, int(w.left))
	w.left -= float64(count)
	dropped := len(events) - count
	events = events[:count]
	if count > 0 && w.skipped > 0 {
		events[0].Reason += fmt.Sprintf("; %d earlier events of this kind not shown", w.skipped)
		w.skipped = 0
	}
	w.skipped += dropped
	return events
}
