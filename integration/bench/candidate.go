package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"exitgate/integration/prober"
	"exitgate/integration/rig"
)

// candidate is one way to the upstream: a box with a server in it, and the load generator.
type candidate struct {
	name    string
	box     *rig.Box
	address string // of the listener, or of the upstream itself
	tls     string // server name, for the direct way
	kinds   kind
}

// kind is what a candidate can do.
type kind int

const (
	reverse kind = 1 << iota
	connect
	forward
)

// stage is a world with an upstream in it and the candidates before it.
type stage struct {
	world *rig.World
	up    *upstream
	all   []*candidate
}

func (s *stage) close() {
	if s == nil {
		return
	}
	s.up.close()
	s.world.Close()
}

// stage builds all candidates of a kind. Every one has a box of its own, on a wire of its own.
func (b *bench) stage(want kind) (s *stage, err error) {
	w, err := rig.NewWorld()
	if err != nil {
		return nil, err
	}
	s = &stage{world: w}
	if s.up, err = newUpstream(w); err != nil {
		w.Close()
		return nil, err
	}
	starts := []func(*bench, *stage) (*candidate, error){startDirect, startGate}
	if b.against != "" {
		starts = append(starts, startOther)
	}
	for _, start := range append(starts, b.peers(want)...) {
		c, err := start(b, s)
		if err == nil {
			err = c.ready(s, want)
		}
		if err != nil {
			s.close()
			return nil, err
		}
		if len(b.of) == 0 || slices.Contains(b.of, c.name) {
			s.all = append(s.all, c)
		}
	}
	return s, nil
}

func (s *stage) hosts() string {
	return fmt.Sprintf("%s %s %s\n", s.up.addr, upstreamName, h2Name)
}

// serveOnly is the load generator without a server.
var serveOnly = []string{rig.ProberPath, "serve"}

func startDirect(_ *bench, s *stage) (*candidate, error) {
	box, err := rig.Start(rig.Config{World: s.world, Hosts: s.hosts(), Plain: true, Serve: true, Uncaptured: true, Args: serveOnly})
	return &candidate{name: "direct", box: box, address: s.up.addr.String() + ":443", tls: upstreamName, kinds: reverse | connect | forward}, err
}

// gatePolicy has every check switched on: limits that are counted and never reached, a credential, and rules for each way out.
const gatePolicy = `version: 1
agents:
  - name: agent
    limits: {connections: 16384, requests_per_minute: 1000000000, upload_bytes_per_hour: 1000000000000000}
credentials:
  - {name: api, from: "file:/run/secrets/api", header: Authorization}
routes:
  - {name: api, path: /, upstream: "https://api.example.com", credential: api, allow: [GET /**, POST /**]}
  - {name: h1, path: /h1, upstream: "https://h2.example.com:8445", credential: api, allow: [GET /**, POST /**]}
  - {name: h2, path: /h2, upstream: "https://h2.example.com:8443", credential: api, allow: [GET /**, POST /**]}
  - {name: open, path: /open, upstream: "https://api.example.com:8444", allow: [GET /**, POST /**]}
egress:
  - {host: api.example.com, ports: [80, 443, 9000], methods: [GET]}
`

const gateName = "exitgate"

func startGate(b *bench, s *stage) (*candidate, error) {
	return b.gate(s, gateName, b.binary, gatePolicy)
}

func startOther(b *bench, s *stage) (*candidate, error) {
	return b.gate(s, "the other binary", b.against, gatePolicy)
}

func (b *bench) gate(s *stage, name, binary, policy string) (*candidate, error) {
	box, err := rig.Start(rig.Config{World: s.world, Binary: binary, Policy: policy, Hosts: s.hosts(), Uncaptured: true,
		Env:   append([]string{"EXITGATE_AUDIT=file:/var/log/audit.jsonl"}, b.env...),
		Files: map[string]rig.File{"/run/secrets/api": {Data: credential, Mode: 0o400}}})
	return &candidate{name: name, box: box, address: listener, kinds: reverse | connect | forward}, err
}

// ready waits until the candidate does what is wanted of it.
func (c *candidate) ready(s *stage, want kind) error {
	if err := c.box.Agent().Ready(time.Minute); err != nil {
		return fmt.Errorf("%s: %w", c.name, err)
	}
	// Where a server does not reset its side, its ports would run out.
	if err := c.box.Enter(widePorts); err != nil {
		return fmt.Errorf("%s: %w", c.name, err)
	}
	p := c.request("http", "/small", 0)
	switch want {
	case connect:
		p = c.bytes(s, "http")
		p.Data, p.Read, p.Keep = []byte("u1\n."), 1, false
		p.Op = "connect"
	case forward:
		p = c.absolute(s, "http")
	}
	var r prober.Result
	for range 200 {
		if r = c.box.Agent().Do(p); r.OK() && (r.Status == 200 || want == connect) {
			return nil
		}
		time.Sleep(50 * time.Millisecond)
	}
	return fmt.Errorf("%s: no answer: %s %s; standard error: %.2000s", c.name, r, r.Data, c.box.Stderr)
}

// request is one for the route; length is that of a body.
func (c *candidate) request(op, target string, length int64) prober.Probe {
	method, body := "GET", ""
	if length > 0 {
		method, body = "POST", fmt.Sprintf("Content-Length: %d\r\n", length)
	}
	host, authorization := c.address, "Bearer placeholder"
	if c.tls != "" {
		host, authorization = upstreamName, "Bearer "+credential
	}
	return prober.Probe{Op: op, Address: c.address, ServerName: c.tls, Data: fmt.Appendf(nil, "%s %s HTTP/1.1\r\nHost: %s\r\nAuthorization: %s\r\n%s%s\r\n",
		method, target, host, authorization, clientFields, body)}
}

// clientFields are those of an API client of today.
const clientFields = "User-Agent: claude-cli/2.1 (external, cli)\r\nAccept: application/json\r\nanthropic-version: 2023-06-01\r\n" +
	"anthropic-beta: claude-code-20250219,interleaved-thinking-2025-05-14\r\nX-Stainless-Lang: js\r\nX-Stainless-Runtime: node\r\nContent-Type: application/json\r\n"

// bytes is for the upstream's port without a protocol, through a tunnel.
func (c *candidate) bytes(s *stage, op string) prober.Probe {
	if c.tls != "" {
		return prober.Probe{Op: op, Address: fmt.Sprintf("%s:%d", s.up.addr, portBytes)}
	}
	return prober.Probe{Op: op, Address: c.address, Tunnel: fmt.Sprintf("%s:%d", upstreamName, portBytes)}
}

// absolute is a plain http request to a forward proxy.
func (c *candidate) absolute(s *stage, op string) prober.Probe {
	target, address := "http://"+upstreamName+"/small", c.address
	if c.tls != "" {
		target, address = "/small", fmt.Sprintf("%s:%d", s.up.addr, portHTTP)
	}
	return prober.Probe{Op: op, Address: address, Data: fmt.Appendf(nil, "GET %s HTTP/1.1\r\nHost: %s\r\n%s\r\n", target, upstreamName, clientFields)}
}

var errNoSamples = errors.New("nothing was measured")

// measure runs a load and what the servers used while it ran.
func (c *candidate) measure(p prober.Probe) (prober.Result, usage, error) {
	fail := func(what string, err error) (prober.Result, usage, error) {
		return prober.Result{}, usage{}, fmt.Errorf("%s: %s: %w", c.name, what, err)
	}
	results := c.box.Agent().Start(p)
	up, ok := <-results
	if !ok || !up.More {
		return fail(p.Op, fmt.Errorf("%s; standard error: %.2000s", up, c.box.Stderr))
	}
	pids, err := servers(c.box)
	if err != nil {
		return fail("find the servers", err)
	}
	time.Sleep(p.Every)
	before, err := account(pids)
	if err != nil {
		return fail("account", err)
	}
	time.Sleep(p.Timeout)
	after, err := account(pids)
	if err != nil {
		return fail("account", err)
	}
	r, ok := <-results
	switch {
	case !ok || !r.OK():
		return fail(p.Op, errors.New(strings.TrimSpace(r.String())))
	case r.Quantiles == nil:
		return fail(p.Op, errNoSamples)
	}
	return r, after.since(before), nil
}

// turns calls f with every candidate, in another order each round, so that none is always the one after another.
func (s *stage) turns(rounds int, f func(c *candidate) error) error {
	for round := range rounds {
		for i := range s.all {
			if err := f(s.all[(i+round)%len(s.all)]); err != nil {
				return err
			}
		}
	}
	return nil
}
