package audit

import "exitgate/policy"

// keepDenials bounds how many different denials are remembered; the oldest make room.
const keepDenials = 512

// denials remembers what was denied. The zero value is ready to use.
type denials struct {
	known map[denialKey]*policy.Denied
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
		d.known = make(map[denialKey]*policy.Denied)
	}
	if len(d.order) >= keepDenials {
		delete(d.known, d.order[0])
		d.order = append(d.order[:0], d.order[1:]...)
	}
	d.order = append(d.order, key)
	d.known[key] = &policy.Denied{Event: clean(*e, scrub), Count: e.Times()}
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

// Denials returns the denials remembered, in the order in which they were first seen; each event has the time of the latest.
func (l *Log) Denials() []policy.Denied {
	l.mu.Lock()
	defer l.mu.Unlock()
	all := make([]policy.Denied, len(l.denials.order))
	for i, key := range l.denials.order {
		all[i] = *l.denials.known[key]
	}
	return all
}
