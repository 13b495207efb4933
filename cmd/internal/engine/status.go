package engine

import (
	"os"
	"runtime"
	"time"

	"exitgate/proxy"
)

// Status is what `exitgate status --json` prints: stable, never a value of a credential. Durations are seconds.
type Status struct {
	State       string             `json:"state"` // starting, ready, degraded
	Why         []string           `json:"why,omitempty"`
	Mode        string             `json:"mode"`
	PID         int                `json:"pid"`
	Started     time.Time          `json:"started"`
	Policy      string             `json:"policy"`
	Presets     []string           `json:"presets,omitempty"`
	Generation  uint64             `json:"generation"`
	Digest      string             `json:"digest"`
	Reload      *ReloadResult      `json:"last_reload,omitempty"`
	Agents      []AgentStatus      `json:"agents"`
	Routes      []RouteStatus      `json:"routes"`
	Credentials []CredentialStatus `json:"credentials"`
	Hosts       []HostStatus       `json:"hosts"`
	Resolvers   []string           `json:"resolvers"`
	Sets        map[string]int     `json:"sets"`
	Denied      map[string]uint64  `json:"denied_packets"`
	Proxy       ProxyStatus        `json:"proxy"`
	Drift       DriftStatus        `json:"drift"`
	Goroutines  int                `json:"goroutines"`                  // of this process; the proxy's are its own
	Hardening   []string           `json:"missing_hardening,omitempty"` // among the warnings: what our surroundings lack
	Warnings    []string           `json:"warnings,omitempty"`
}

// AgentStatus is one agent and what it uses.
type AgentStatus struct {
	Name        string `json:"name"`
	UID         uint32 `json:"uid"`
	Listen      string `json:"listen"`
	Socket      string `json:"socket,omitempty"`
	Connections int    `json:"connections"`
	BytesIn     uint64 `json:"bytes_in"`
	BytesOut    uint64 `json:"bytes_out"`
}

// RouteStatus is one route.
type RouteStatus struct {
	Name       string `json:"name"`
	Path       string `json:"path"`
	Upstream   string `json:"upstream"`
	Credential string `json:"credential,omitempty"`
	Expires    string `json:"expires,omitempty"`
}

// CredentialStatus says where a credential comes from and how it is; never what it is.
type CredentialStatus struct {
	Name   string  `json:"name"`
	Source string  `json:"source"`
	State  string  `json:"state"` // ok, broken
	Age    float64 `json:"age_seconds,omitempty"`
	Why    string  `json:"why,omitempty"`
}

// HostStatus is one name and what is known of it now.
type HostStatus struct {
	Host      string          `json:"host"`
	Ports     []uint16        `json:"ports"`
	Root      bool            `json:"root,omitempty"`
	Addresses []AddressStatus `json:"addresses"`
	LastError string          `json:"last_error,omitempty"`
	Degraded  bool            `json:"degraded,omitempty"`
}

// AddressStatus is one pinned address.
type AddressStatus struct {
	Address string  `json:"address"`
	Lease   float64 `json:"lease_seconds"`
	Pins    int     `json:"pins"`
}

// ProxyStatus is the proxy process.
type ProxyStatus struct {
	PID        int    `json:"pid,omitempty"`
	Generation uint64 `json:"generation"`
	Restarts   int    `json:"restarts"`
	LastEnd    string `json:"last_end,omitempty"`
	Goroutines int    `json:"goroutines,omitempty"` // at its last sign of life
}

// DriftStatus counts foreign changes of the table.
type DriftStatus struct {
	Repairs  int        `json:"repairs"`
	Failures int        `json:"failures"`
	Last     *time.Time `json:"last,omitempty"`
	What     string     `json:"what,omitempty"`
}

// snapshot is the keeper's state at one moment.
type snapshot struct {
	ProxyStatus
	stats proxy.Stats
}

func (k *keeper) snapshot() snapshot {
	k.mu.Lock()
	defer k.mu.Unlock()
	s := snapshot{ProxyStatus{Restarts: k.restarts, LastEnd: k.lastEnd, Goroutines: k.stats.Goroutines}, k.stats}
	if k.inForce != nil {
		s.Generation = k.inForce.number
	}
	if k.process != nil {
		s.PID = k.process.PID()
	}
	return s
}

// Look asks the proxy for its counters of now, which the next Status then has. It waits for a moment at most.
func (e *Engine) Look() { e.proxy.look() }

// Status gathers everything; it changes nothing.
func (e *Engine) Status() Status {
	s := Status{Mode: e.Mode, PID: os.Getpid(), Started: e.started, Policy: e.PolicyFile, State: "starting",
		Goroutines: runtime.NumGoroutine()}
	g := e.current.Load()
	if g == nil {
		return s
	}
	p := g.policy
	s.Generation, s.Digest, s.Presets = g.number, p.Digest(), p.Presets
	proxy := e.proxy.snapshot()
	s.Proxy = proxy.ProxyStatus
	e.policyStatus(&s, proxy)
	e.hostStatus(&s)
	e.fenceStatus(&s)
	e.mu.Lock()
	if !e.last.Time.IsZero() {
		last := e.last
		s.Reload = &last
	}
	s.Drift = e.drift
	s.Hardening = append(s.Hardening, e.missing...)
	s.Warnings = append(s.Warnings, e.missing...)
	e.mu.Unlock()
	s.State, s.Why = e.verdict(&s)
	return s
}

// Warn logs what is missing around us, and adds it to what status warns of.
func (e *Engine) Warn(lines ...string) {
	for _, line := range lines {
		e.Log("%s", line)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.missing = append(e.missing, lines...)
}

// verdict is ready where the policy in force is the one that the operator wrote and all of it works.
func (e *Engine) verdict(s *Status) (string, []string) {
	var why []string
	if s.Reload != nil && !s.Reload.OK {
		why = append(why, "the last reload failed: "+s.Reload.Errors[0])
	}
	for _, c := range s.Credentials {
		if c.State != "ok" {
			why = append(why, "credential \""+c.Name+"\": "+c.Why)
		}
	}
	if s.Proxy.PID == 0 || s.Proxy.Generation != s.Generation {
		why = append(why, "the proxy is being started")
	}
	if s.Drift.Failures > 0 {
		why = append(why, "a foreign change of the table could not be undone: "+s.Drift.What)
	}
	switch {
	case !e.ready.Load():
		return "starting", why
	case len(why) > 0:
		return "degraded", why
	}
	return "ready", nil
}

func (e *Engine) policyStatus(s *Status, proxy snapshot) {
	p := e.Policy()
	for _, a := range p.Agents {
		as := AgentStatus{Name: a.Name, UID: a.UID, Listen: a.Listen.String(), Socket: a.Socket}
		for _, st := range proxy.stats.Agents {
			if st.Agent == a.Name {
				as.Connections, as.BytesIn, as.BytesOut = st.Connections, st.BytesIn, st.BytesOut
			}
		}
		s.Agents = append(s.Agents, as)
	}
	for _, r := range p.Routes {
		rs := RouteStatus{Name: r.Name, Path: r.Path, Upstream: r.Upstream.String(), Credential: r.Credential}
		if !r.Expires.IsZero() {
			rs.Expires = r.Expires.Format(time.RFC3339)
		}
		s.Routes = append(s.Routes, rs)
	}
	for _, c := range e.secrets.Status() {
		cs := CredentialStatus{Name: c.Name, Source: c.Source, State: "ok", Why: c.Broken}
		if c.Broken != "" {
			cs.State = "broken"
		}
		if !c.Read.IsZero() {
			cs.Age = e.Now().Sub(c.Read).Seconds()
		}
		s.Credentials = append(s.Credentials, cs)
	}
	for _, w := range e.warnings(p) {
		s.Warnings = append(s.Warnings, w.Error())
	}
}

func (e *Engine) hostStatus(s *Status) {
	for _, h := range e.resolver.Status() {
		hs := HostStatus{Host: h.Host, Ports: h.Ports, Root: h.Root, LastError: h.LastError, Degraded: h.Degraded}
		for _, a := range h.Addrs {
			hs.Addresses = append(hs.Addresses, AddressStatus{Address: a.Addr.String(), Lease: a.LeaseLeft.Seconds(), Pins: a.Pins})
		}
		s.Hosts = append(s.Hosts, hs)
	}
	for _, r := range e.resolver.Servers() {
		s.Resolvers = append(s.Resolvers, r.String())
	}
}

func (e *Engine) fenceStatus(s *Status) {
	c := e.Fence.Contents()
	s.Sets = map[string]int{"listeners": len(c.Listeners), "egress": len(c.Egress), "resolvers": len(c.Resolvers),
		"published": len(c.Published), "own_loopback": len(c.OwnLoopback), "root_loopback": len(c.RootLoopback)}
	counters, err := e.Fence.Counters()
	if err != nil {
		return
	}
	s.Denied = make(map[string]uint64)
	for name, c := range counters {
		s.Denied[name] = c.Packets
	}
}
