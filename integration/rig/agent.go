package rig

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"exitgate/integration/prober"
)

// Agent drives the prober that PID 1 started as the agent: probes go in by its standard input, results come by its standard output.
type Agent struct {
	in   *os.File
	errs *Stream

	mu   sync.Mutex // guards following
	next int
	wait map[int]chan prober.Result
	gone bool
}

func newAgent(in *os.File, out, errs *Stream) *Agent {
	a := &Agent{in: in, errs: errs, wait: map[int]chan prober.Result{}}
	go a.dispatch(out)
	return a
}

func (a *Agent) dispatch(out *Stream) {
	for from := 0; ; from++ {
		line, at, err := out.Wait(from, time.Hour, func(l string) bool { return strings.HasPrefix(l, "{") })
		if err != nil {
			a.end()
			return
		}
		from = at
		var r prober.Result
		if json.Unmarshal([]byte(line), &r) != nil {
			continue
		}
		a.mu.Lock()
		if c := a.wait[r.ID]; c != nil {
			c <- r
			if !r.More {
				close(c)
				delete(a.wait, r.ID)
			}
		}
		a.mu.Unlock()
	}
}

func (a *Agent) end() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.gone = true
	for id, c := range a.wait {
		close(c)
		delete(a.wait, id)
	}
}

// Start begins a probe. Its results come on the channel, which is closed after the last of them or when the agent is gone.
func (a *Agent) Start(p prober.Probe) <-chan prober.Result {
	// Room for every intermediate result of a probe, so that a reader that waits for the last one blocks nobody.
	c := make(chan prober.Result, 1<<14)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.next++
	p.ID = a.next
	if a.gone {
		close(c)
		return c
	}
	a.wait[p.ID] = c
	if _, err := a.in.WriteString(p.Encode() + "\n"); err != nil {
		delete(a.wait, p.ID)
		close(c)
	}
	return c
}

// Do runs a probe and returns its last result. Where the agent is gone or does not answer within two minutes, Err says so.
func (a *Agent) Do(p prober.Probe) prober.Result {
	limit := time.After(2 * time.Minute)
	results := a.Start(p)
	for {
		select {
		case r, ok := <-results:
			if !ok {
				return prober.Result{Err: fmt.Sprintf("the agent is gone; no answer to %s; standard error: %s", p.Op, a.errs)}
			}
			if !r.More {
				return r
			}
		case <-limit:
			return prober.Result{Err: fmt.Sprintf("the agent did not answer %s", p.Op)}
		}
	}
}

// Ready waits until the agent runs.
func (a *Agent) Ready(limit time.Duration) error {
	select {
	case _, ok := <-a.Start(prober.Probe{Op: "hello"}):
		if !ok {
			return fmt.Errorf("the agent ended, or never ran; standard error: %s", a.errs)
		}
		return nil
	case <-time.After(limit):
		return fmt.Errorf("the agent does not run after %s; standard error: %s", limit, a.errs)
	}
}
