package audit

import (
	"time"

	"exitgate/policy"
)

// Denial is one thing that was denied, however often.
type Denial struct {
	Event policy.Event // the latest
	Count int
	First time.Time
}

// keepDenials bounds how many different denials are remembered; the oldest make room.
const keepDenials = 512

// denials remembers what was denied. The zero value is ready to use.
type denials struct {
	known map[denialKey]*Denial
	order []denialKey // as first seen
}

// denialKey is what makes two denials the same: who wanted what.
type denialKey struct {
	event, agent, exe, method, host, path, proto, address string
	port                                                  uint16
}

func denied(e *policy.Event) bool {
	return e.Decision == "deny" || e.Event == "denied_packet" || e.Event == "denied_lookup"
}

func (d *denials) add(e *policy.Event, scrub func([]byte) []byte) {
	key := denialKey{e.Event, e.Agent, e.Exe, e.Method, e.Host, e.Path, e.Proto, e.Address, e.Port}
	if k := d.known[key]; k != nil {
		k.Count += e.Times()
		k.Event.Time = e.Time
		return
	}
	if d.known == nil {
		d.known = make(map[denialKey]*Denial)
	}
	if len(d.order) >= keepDenials {
		delete(d.known, d.order[0])
		d.order = append(d.order[:0], d.order[1:]...)
	}
	d.order = append(d.order, key)
	d.known[key] = &Denial{Event: clean(*e, scrub), Count: e.Times(), First: e.Time}
}

// clean scrubs what the agent or an upstream had a hand in, as a line of the log is.
func clean(e policy.Event, scrub func([]byte) []byte) policy.Event {
	for _, s := range []*string{&e.Exe, &e.Method, &e.Host, &e.Path, &e.Reason, &e.Upstream, &e.ID, &e.Address} {
		if *s != "" {
			*s = string(scrub([]byte(*s)))
		}
	}
	return e
}

// Denials returns the denials remembered, in the order in which they were first seen.
func (l *Log) Denials() []Denial {
	l.mu.Lock()
	defer l.mu.Unlock()
	all := make([]Denial, len(l.denials.order))
	for i, key := range l.denials.order {
		all[i] = *l.denials.known[key]
	}
	return all
}
