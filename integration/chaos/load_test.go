package chaos

import (
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"time"

	"exitgate/integration/prober"
)

// load is work that goes on all the time: requests of the agent by a route and by a tunnel, and attempts of its uid at what is forbidden.
type load struct {
	s    *stage
	stop chan struct{}
	done sync.WaitGroup

	mu       sync.Mutex             // guards following
	good     map[string][]time.Time // by road: when those that went through were through
	bad      map[string]int
	attempts int
	escapes  map[string]int
}

func (s *stage) load() *load {
	l := &load{s: s, stop: make(chan struct{}), good: map[string][]time.Time{}, bad: map[string]int{}, escapes: map[string]int{}}
	host := "files.example.com"
	probes := map[string]prober.Probe{
		"route":  {Op: "http", Address: listener, Data: []byte("GET /reflect HTTP/1.1\r\nHost: " + listener + "\r\n\r\n"), Timeout: 4 * time.Second},
		"tunnel": {Op: "http", Address: listener, Tunnel: host + ":443", ServerName: host, Data: []byte("GET /reflect HTTP/1.1\r\nHost: " + host + "\r\n\r\n"), Timeout: 4 * time.Second},
	}
	for road, p := range probes {
		l.done.Go(func() { l.work(road, p) })
	}
	l.done.Go(l.attack)
	return l
}

func (l *load) stopped() bool {
	select {
	case <-l.stop:
		return true
	default:
		return false
	}
}

func (l *load) work(road string, p prober.Probe) {
	for !l.stopped() {
		r := l.s.Agent().Do(p)
		l.mu.Lock()
		if r.Status == 200 && r.OK() {
			l.good[road] = append(l.good[road], time.Now())
		} else {
			l.bad[strings.TrimSpace(fmt.Sprintf("%s %d %s", road, r.Status, r.Errno))]++
		}
		l.mu.Unlock()
		time.Sleep(10 * time.Millisecond)
	}
}

func (l *load) attack() {
	addrs := []string{netip.AddrPortFrom(l.s.v4, 443).String(), netip.AddrPortFrom(l.s.v6, 443).String()}
	for !l.stopped() {
		for _, network := range []string{"tcp", "udp"} {
			r := l.s.evil.Do(prober.Probe{Op: "flood", Network: network, Addresses: addrs, Timeout: 20 * time.Millisecond})
			l.mu.Lock()
			for outcome, n := range r.Tally {
				l.attempts += n
				if !refusal(outcome) {
					l.escapes[network+" "+outcome] += n
				}
			}
			l.mu.Unlock()
		}
		time.Sleep(30 * time.Millisecond)
	}
}

// refusal says that an attempt was refused, or that the attacker had nothing left to make it with.
func refusal(outcome string) bool {
	for _, errno := range []string{"ECONNREFUSED", "EPERM", "EACCES", "EHOSTUNREACH", "ENETUNREACH", "EMFILE", "ENFILE", "ENOBUFS", "ENOMEM", "EAGAIN"} {
		if strings.HasSuffix(outcome, " "+errno) {
			return true
		}
	}
	return false
}

// tally is what there was since the last one.
type tally struct {
	good, attempts int
	bad, escapes   map[string]int
}

func (l *load) take() tally {
	l.mu.Lock()
	defer l.mu.Unlock()
	got := tally{attempts: l.attempts, bad: l.bad, escapes: l.escapes}
	for _, times := range l.good {
		got.good += len(times)
	}
	l.good, l.attempts, l.bad, l.escapes = map[string][]time.Time{}, 0, map[string]int{}, map[string]int{}
	return got
}

func (t tally) failed() (n int) {
	for _, k := range t.bad {
		n += k
	}
	return n
}

// recovered is how long after a moment requests had gone through on every road.
func (l *load) recovered(after time.Time) (longest time.Duration, ok bool) {
	for until := time.Now().Add(patience); time.Now().Before(until); time.Sleep(time.Millisecond) {
		longest, ok = 0, true
		for _, road := range []string{"route", "tunnel"} {
			first := l.first(road, after)
			longest, ok = max(longest, first), ok && first > 0
		}
		if ok {
			break
		}
	}
	return longest, ok
}

func (l *load) first(road string, after time.Time) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, at := range l.good[road] {
		if at.After(after) {
			return at.Sub(after)
		}
	}
	return 0
}

func (l *load) end() {
	close(l.stop)
	l.done.Wait()
}
