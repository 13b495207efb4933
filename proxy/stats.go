package proxy

import (
	"cmp"
	"runtime"
	"slices"
	"sync/atomic"
	"time"
)

// Stats are counters since the Server was made, and gauges of now. Their size is
// bounded by the number of agents: decisions and tokens, of which there are kinds
// for every rule, are for the receiver of Options.Audit to count.
type Stats struct {
	Generation uint64
	Agents     []AgentStats
	Upstream   Histogram // seconds from a request's head sent to its answer's head read
	Tunnels    int       // CONNECT tunnels open now
	Pooled     int       // idle upstream connections now
	Pins       int       // pins not yet released
	Panics     uint64    // recovered in a handler
	Goroutines int       // of the whole process now
}

// AgentStats are one agent's connections and bytes.
type AgentStats struct {
	Agent       string
	Connections int    // open now
	BytesIn     uint64 // from the upstream to the agent
	BytesOut    uint64 // from the agent to the upstream
}

// Histogram has one count per upper bound (seconds), not cumulative; the last
// count is of what was slower than every bound.
type Histogram struct {
	Bounds []float64
	Counts []uint64
	Sum    float64 // seconds
}

// Stats reads the counters. Agents are in order of name.
func (s *Server) Stats() Stats {
	out := Stats{
		Upstream: s.stats.latency.read(),
		Tunnels:  int(s.stats.tunnels.Load()),
		Pins:     int(s.stats.pins.Load()),
		Panics:   s.stats.panics.Load(),

		Goroutines: runtime.NumGoroutine(),
	}
	if n := s.snap.Load(); n != nil {
		out.Generation, out.Pooled = n.generation, n.pool.idleCount()
	}
	s.mu.Lock()
	for _, a := range s.agents {
		out.Agents = append(out.Agents, AgentStats{
			Agent: a.name, Connections: int(a.open.Load()), BytesIn: a.bytesIn.Load(), BytesOut: a.bytesOut.Load(),
		})
	}
	s.mu.Unlock()
	slices.SortFunc(out.Agents, func(a, b AgentStats) int { return cmp.Compare(a.Agent, b.Agent) })
	return out
}

// counters are the sources of Stats.
type counters struct {
	panics  atomic.Uint64
	pins    atomic.Int64
	tunnels atomic.Int64
	latency histogram
}

// latencyBounds are seconds: from a loopback upstream to a long thought.
var latencyBounds = [...]float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600}

type histogram struct {
	counts [len(latencyBounds) + 1]atomic.Uint64
	nanos  atomic.Int64
}

func (h *histogram) observe(d time.Duration) {
	i, s := 0, d.Seconds()
	for i < len(latencyBounds) && s > latencyBounds[i] {
		i++
	}
	h.counts[i].Add(1)
	h.nanos.Add(int64(d))
}

func (h *histogram) read() Histogram {
	out := Histogram{Bounds: latencyBounds[:], Counts: make([]uint64, len(h.counts)), Sum: time.Duration(h.nanos.Load()).Seconds()}
	for i := range h.counts {
		out.Counts[i] = h.counts[i].Load()
	}
	return out
}
