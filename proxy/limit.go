package proxy

import (
	"sync"
	"time"

	"exitgate/policy"
)

// window sums what happened in the last 60 steps. It keeps 61 of them, the
// running one included, so that no interval of 60 steps, wherever it begins,
// ever holds more than the limit.
type window struct {
	step  time.Duration
	slots [61]int64
	at    int64 // number of the running step
	sum   int64
}

// advance moves to now. A clock that went back keeps the running step: what was
// counted stays counted.
func (w *window) advance(now time.Time) {
	at := now.UnixNano() / int64(w.step)
	for steps := 0; w.at < at; steps++ {
		if steps == len(w.slots) {
			w.at = at
			return
		}
		w.at++
		slot := &w.slots[w.at%int64(len(w.slots))]
		w.sum -= *slot
		*slot = 0
	}
}

// take adds n if the sum stays within limit, else says how long until it could. No
// n at all is refused where nothing would fit.
func (w *window) take(now time.Time, n, limit int64) (ok bool, wait time.Duration) {
	w.advance(now)
	if max(n, 1) <= limit-w.sum {
		w.slots[w.at%int64(len(w.slots))] += n
		w.sum += n
		return true, 0
	}
	return false, w.wait(now, n, limit)
}

// wait is the time until enough of the oldest steps have left the window. What
// could never fit waits for the whole of it.
func (w *window) wait(now time.Time, n, limit int64) time.Duration {
	left := w.sum
	for i := range int64(len(w.slots)) {
		left -= w.slots[(w.at+1+i)%int64(len(w.slots))]
		if max(n, 1) <= limit-left {
			return time.Duration((w.at+1+i)*int64(w.step) - now.UnixNano())
		}
	}
	return time.Duration(len(w.slots)) * w.step
}

// limiter holds an agent to its limits. It outlives generations: a reload
// forgives nothing.
type limiter struct {
	mu       sync.Mutex
	requests window // guarded by mu
	upload   window // guarded by mu
}

func newLimiter() *limiter {
	return &limiter{requests: window{step: time.Second}, upload: window{step: time.Minute}}
}

// request counts one request.
func (l *limiter) request(now time.Time, lim policy.Limits) *refusal {
	if lim.RequestsPerMinute == 0 {
		return nil
	}
	l.mu.Lock()
	ok, wait := l.requests.take(now, 1, int64(lim.RequestsPerMinute))
	l.mu.Unlock()
	if ok {
		return nil
	}
	return limited("more requests in a minute than this agent's requests_per_minute", wait)
}

// bytes counts n bytes that are about to leave; 0 asks whether any may.
func (l *limiter) bytes(now time.Time, lim policy.Limits, n int64) *refusal {
	if lim.UploadBytesPerHour == 0 {
		return nil
	}
	l.mu.Lock()
	ok, wait := l.upload.take(now, n, lim.UploadBytesPerHour)
	l.mu.Unlock()
	if ok {
		return nil
	}
	return limited("more bytes sent in an hour than this agent's upload_bytes_per_hour", wait)
}
