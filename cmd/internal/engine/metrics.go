package engine

import (
	"strings"
	"sync"
	"time"

	"exitgate/policy"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are what Prometheus may ask for. Decisions are counted where their audit line passes, so the two
// cannot disagree; what the kernel or the proxy counts is read when somebody asks.
type metrics struct {
	Registry *prometheus.Registry

	decisions *prometheus.CounterVec
	lookups   *prometheus.CounterVec
	bytes     *prometheus.CounterVec
	tokens    *prometheus.CounterVec
	upstream  prometheus.Histogram
	restarts  prometheus.Counter
	repairs   prometheus.Counter
	reloadOK  prometheus.Gauge
	reloadAt  prometheus.Gauge

	mu   sync.Mutex // guards the following
	told map[names]struct{}
}

// names are the labels that come from the proxy.
type names struct{ agent, rule string }

// A policy's agents and rules are few, but a proxy that was taken over may make up others for ever. What is beyond this is
// counted together.
const (
	maxNames = 10000
	others   = "others"
)

// labels are an event's names as far as they are kept. Prometheus' library panics at what is not UTF-8.
func (m *metrics) labels(ev *policy.Event) names {
	n := names{strings.ToValidUTF8(ev.Agent, "?"), strings.ToValidUTF8(ev.Rule, "?")}
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, known := m.told[n]; !known {
		if len(m.told) >= maxNames {
			return names{others, others}
		}
		m.told[n] = struct{}{}
	}
	return n
}

func newMetrics(e *Engine) *metrics {
	m := &metrics{
		told:      make(map[names]struct{}),
		Registry:  prometheus.NewRegistry(),
		decisions: counters("exitgate_decisions_total", "Decisions, as in the audit.", "agent", "event", "decision", "rule"),
		lookups:   counters("exitgate_lookups_total", "DNS lookups by result.", "result"),
		bytes:     counters("exitgate_bytes_total", "Bytes of bodies and tunnels.", "agent", "direction"),
		tokens:    counters("exitgate_usage_tokens_total", "Tokens that upstreams reported.", "agent", "route", "kind"),
		upstream: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "exitgate_upstream_seconds",
			Help: "Seconds of a request through a route, to its last byte.", Buckets: prometheus.ExponentialBuckets(0.001, 4, 10)}),
		restarts: prometheus.NewCounter(prometheus.CounterOpts{Name: "exitgate_proxy_restarts_total", Help: "Proxy processes that ended and were replaced."}),
		repairs:  prometheus.NewCounter(prometheus.CounterOpts{Name: "exitgate_drift_repairs_total", Help: "Foreign changes of the table undone."}),
		reloadOK: prometheus.NewGauge(prometheus.GaugeOpts{Name: "exitgate_config_last_reload_successful", Help: "1 when the last reload succeeded."}),
		reloadAt: prometheus.NewGauge(prometheus.GaugeOpts{Name: "exitgate_config_last_reload_success_timestamp_seconds", Help: "When a reload last succeeded."}),
	}
	m.Registry.MustRegister(m.decisions, m.lookups, m.bytes, m.tokens, m.upstream, m.restarts, m.repairs, m.reloadOK, m.reloadAt, live{e})
	return m
}

func counters(name, help string, labels ...string) *prometheus.CounterVec {
	return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
}

func (m *metrics) lookup(result string) { m.lookups.WithLabelValues(result).Inc() }
func (m *metrics) restart()             { m.restarts.Inc() }

func (m *metrics) reloaded(ok bool, at time.Time) {
	if !ok {
		m.reloadOK.Set(0)
		return
	}
	m.reloadOK.Set(1)
	m.reloadAt.Set(float64(at.UnixMilli()) / 1000)
}

// begin has the agents' series at 0 before their first byte: a rate counts nothing of what a series begins with.
func (m *metrics) begin(agents []policy.Agent) {
	for _, a := range agents {
		m.bytes.WithLabelValues(a.Name, "in")
		m.bytes.WithLabelValues(a.Name, "out")
	}
}

// event counts an audit line.
func (m *metrics) event(ev policy.Event) {
	of := m.labels(&ev)
	m.decisions.WithLabelValues(of.agent, ev.Event, ev.Decision, of.rule).Add(float64(ev.Times()))
	if ev.BytesIn > 0 {
		m.bytes.WithLabelValues(of.agent, "in").Add(float64(ev.BytesIn))
	}
	if ev.BytesOut > 0 {
		m.bytes.WithLabelValues(of.agent, "out").Add(float64(ev.BytesOut))
	}
	if ev.Event == "request" && ev.Decision == "allow" {
		m.upstream.Observe(ev.Duration.Seconds())
	}
	if t := ev.Tokens; t != nil {
		for kind, n := range map[string]int64{"input": t.Input, "output": t.Output, "cache_read": t.CacheRead, "cache_creation": t.CacheCreation} {
			if n > 0 {
				m.tokens.WithLabelValues(of.agent, strings.TrimPrefix(of.rule, "route/"), kind).Add(float64(n))
			}
		}
	}
}

// live collects what somebody else counts: the kernel's denials, the resolver's pins, the proxy's connections.
type live struct{ *Engine }

var (
	deniedPackets = prometheus.NewDesc("exitgate_denied_packets_total", "Packets that the fence refused.", []string{"chain"}, nil)
	pinsHeld      = prometheus.NewDesc("exitgate_pins", "Addresses of a host that the fence lets root reach.", []string{"host"}, nil)
	connections   = prometheus.NewDesc("exitgate_connections", "Connections from an agent to its proxy.", []string{"agent"}, nil)
)

// Describe names the three.
func (l live) Describe(ch chan<- *prometheus.Desc) {
	ch <- deniedPackets
	ch <- pinsHeld
	ch <- connections
}

// Collect reads the three.
func (l live) Collect(ch chan<- prometheus.Metric) {
	if counters, err := l.Fence.Counters(); err == nil {
		for name, c := range counters {
			ch <- prometheus.MustNewConstMetric(deniedPackets, prometheus.CounterValue, float64(c.Packets), name)
		}
	}
	for _, h := range l.resolver.Status() {
		ch <- prometheus.MustNewConstMetric(pinsHeld, prometheus.GaugeValue, float64(len(h.Addrs)), h.Host)
	}
	for agent, n := range l.connections() {
		ch <- prometheus.MustNewConstMetric(connections, prometheus.GaugeValue, float64(n), agent)
	}
}

// connections are every agent's of now, those who have none included.
func (l live) connections() map[string]int {
	n := make(map[string]int)
	if p := l.Policy(); p != nil {
		for _, a := range p.Agents {
			n[a.Name] = 0
		}
	}
	l.proxy.look()
	for _, a := range l.proxy.snapshot().stats.Agents {
		if _, ours := n[a.Agent]; ours {
			n[a.Agent] = a.Connections
		}
	}
	return n
}
