package audit

import "time"

// Subscription is one who watches.
type Subscription struct {
	C <-chan []byte // complete lines, not to be changed; closed by Close of either side

	c    chan []byte
	log  *Log
	lost uint64 // guarded by log.mu
}

// Subscribe delivers every line from now on, scrubbed, through a channel of that many lines. One who reads slower than
// lines come loses some, and is told how many by a line with event "lost" before the next one.
func (l *Log) Subscribe(buffer int) *Subscription {
	c := make(chan []byte, max(buffer, 2))
	s := &Subscription{C: c, c: c, log: l}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		close(c)
		return s
	}
	l.subs[s] = struct{}{}
	return s
}

// offerLocked never waits. A line after a loss is delivered only together with the line that tells of it.
func (s *Subscription) offerLocked(line []byte, now func() time.Time) {
	room := cap(s.c) - len(s.c)
	switch {
	case s.lost == 0 && room >= 1:
		s.c <- line
	case s.lost > 0 && room >= 2:
		s.c <- lostLine(nil, s.lost, now())
		s.c <- line
		s.lost = 0
	default:
		s.lost++
	}
}

// Close ends the subscription.
func (s *Subscription) Close() {
	s.log.mu.Lock()
	defer s.log.mu.Unlock()
	if _, there := s.log.subs[s]; there {
		delete(s.log.subs, s)
		close(s.c)
	}
}

func (l *Log) endSubscriptions() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for s := range l.subs {
		if s.lost > 0 && len(s.c) < cap(s.c) {
			s.c <- lostLine(nil, s.lost, l.o.Now())
		}
		close(s.c)
	}
	clear(l.subs)
}
