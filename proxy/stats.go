package proxy

import "exitgate/policy"

// Stats are counters since the Server was made, and gauges of now.
type Stats struct {
	Generation uint64
	Agents     []AgentStats
	Decisions  []DecisionCount
	Tokens     []TokenCount
	Upstream   Histogram // seconds from a request's head sent to its answer's head read
	Tunnels    int       // CONNECT tunnels open now
	Pooled     int       // idle upstream connections now
	Pins       int       // pins not yet released
	Panics     uint64    // recovered in a handler
}

// AgentStats are one agent's connections and bytes.
type AgentStats struct {
	Agent       string
	Connections int    // open now
	BytesIn     uint64 // from the upstream to the agent
	BytesOut    uint64 // from the agent to the upstream
}

// DecisionCount counts the audit lines of one kind.
type DecisionCount struct {
	Agent, Event, Decision, Rule string
	Count                        uint64
}

// TokenCount sums the tokens that a route's upstream reported.
type TokenCount struct {
	Agent, Route string
	Tokens       policy.Tokens
}

// Histogram has one count per upper bound (seconds), not cumulative; the last
// count is of what was slower than every bound.
type Histogram struct {
	Bounds []float64
	Counts []uint64
	Sum    float64 // seconds
}
