package main

import (
	"fmt"
	"time"

	"exitgate/integration/prober"
	"exitgate/integration/rig"
)

const (
	upstreamName = "api.example.com"
	credential   = "sk-FAKE-bench-0123456789abcdef"
	listener     = "127.0.0.1:8080"
)

const routePolicy = `version: 1
agents:
  - name: agent
    limits:
      connections: 4096
credentials:
  - name: api
    from: file:/run/secrets/api
    header: Authorization
routes:
  - name: api
    path: /
    upstream: https://api.example.com
    credential: api
    allow: [GET /**]
`

// candidate is one way to the upstream.
type candidate struct {
	name  string
	box   *rig.Box
	probe prober.Probe // address and TLS
	host  string
}

// compare measures the route by exitgate, going direct, and the standard library's bare reverse proxy.
func (b *bench) compare(measure func([]candidate) error) error {
	w, err := rig.NewWorld()
	if err != nil {
		return err
	}
	defer w.Close()
	up, err := w.HTTPS(upstreamName, rig.Server{})
	if err != nil {
		return err
	}
	all, err := b.candidates(w, up)
	if err != nil {
		return err
	}
	return measure(all)
}

func (b *bench) route() error {
	return b.compare(func(all []candidate) error {
		for _, conns := range []int{1, 16, 64} {
			if err := b.requests(all, conns); err != nil {
				return err
			}
		}
		return nil
	})
}

func (b *bench) sse() error {
	return b.compare(func(all []candidate) error {
		for _, s := range []struct{ streams, ms int }{{1, 5}, {16, 5}, {1000, 100}} {
			if err := b.events(all, s.streams, s.ms); err != nil {
				return err
			}
		}
		return nil
	})
}

func (b *bench) candidates(w *rig.World, up *rig.Upstream) ([]candidate, error) {
	hosts := up.Addr4.String() + " " + upstreamName + "\n"
	serve := func(c *rig.Config) { c.Plain, c.Serve, c.Args = true, true, []string{rig.ProberPath, "serve"} }
	direct, err := rig.Start(with(rig.Config{World: w, Hosts: hosts}, serve))
	if err != nil {
		return nil, err
	}
	bare, err := rig.Start(with(rig.Config{World: w, Hosts: hosts}, func(c *rig.Config) {
		c.Plain, c.Serve = true, true
		c.Args = []string{"/bin/sh", "-c", rig.ProberPath + " reverse " + listener + " https://" + upstreamName + " 'Bearer " + credential + "' & exec " + rig.ProberPath + " serve"}
	}))
	if err != nil {
		return nil, err
	}
	gate, err := rig.Start(rig.Config{World: w, Binary: b.binary, Policy: routePolicy, Hosts: hosts,
		Files: map[string]rig.File{"/run/secrets/api": {Data: credential, Mode: 0o400}}})
	if err != nil {
		return nil, err
	}
	all := []candidate{
		{"direct", direct, prober.Probe{Address: up.Addr4.String() + ":443", ServerName: upstreamName}, upstreamName},
		{"Go, ReverseProxy", bare, prober.Probe{Address: listener}, listener},
		{"exitgate", gate, prober.Probe{Address: listener}, listener},
	}
	for _, c := range all {
		if err := c.box.Agent().Ready(time.Minute); err != nil {
			return nil, fmt.Errorf("%s: %w", c.name, err)
		}
		if err := c.answers(); err != nil {
			return nil, err
		}
	}
	return all, nil
}

func with(c rig.Config, change func(*rig.Config)) rig.Config {
	change(&c)
	return c
}

// answers waits until a request gets through.
func (c candidate) answers() error {
	p := c.request("http", "/big?n=1024")
	var r prober.Result
	for range 100 {
		if r = c.box.Agent().Do(p); r.Status == 200 {
			return nil
		}
		time.Sleep(50 * time.Millisecond)
	}
	return fmt.Errorf("%s: no answer: %s %s", c.name, r, r.Data)
}

func (c candidate) request(op, target string) prober.Probe {
	p := c.probe
	p.Op, p.Data = op, []byte("GET "+target+" HTTP/1.1\r\nHost: "+c.host+"\r\n\r\n")
	return p
}

// requests measures small answers over keep-alive connections.
func (b *bench) requests(all []candidate, conns int) error {
	rate, delay := columns(all), columns(all)
	for range b.rounds {
		for i, c := range all {
			p := c.request("load", "/big?n=1024")
			p.Connections, p.Every, p.Timeout = conns, 300*time.Millisecond, time.Second
			r := c.box.Agent().Do(p)
			if !r.OK() || r.Quantiles == nil {
				return fmt.Errorf("%s: %s", c.name, r)
			}
			rate[i].add(float64(r.Count) / p.Timeout.Seconds())
			delay[i].add(micros(r.Quantiles.P50))
		}
	}
	show(fmt.Sprintf("Route, 1 KiB answers, %d connections: requests a second", conns), "1/s", "%.0f", rate...)
	show(fmt.Sprintf("Route, 1 KiB answers, %d connections: p50", conns), "us", "%.0f", delay...)
	return nil
}

// events measures the time from an event's sending to its arrival, one event each ms milliseconds a stream.
func (b *bench) events(all []candidate, streams, ms int) error {
	p50, p99 := columns(all), columns(all)
	for range b.rounds {
		for i, c := range all {
			p := c.request("streams", fmt.Sprintf("/events?n=0&ms=%d", ms))
			p.Connections, p.Every, p.Timeout = streams, time.Second+time.Duration(streams)*2*time.Millisecond, 2*time.Second
			r := c.box.Agent().Do(p)
			if !r.OK() || r.Quantiles == nil {
				return fmt.Errorf("%s: %s", c.name, r)
			}
			p50[i].add(micros(r.Quantiles.P50))
			p99[i].add(micros(r.Quantiles.P99))
		}
	}
	title := fmt.Sprintf("Server-sent events, %d streams, one each %d ms", streams, ms)
	show(title+": p50", "us", "%.0f", p50...)
	show(title+": p99", "us", "%.0f", p99...)
	return nil
}

func columns(all []candidate) (s []*series) {
	for _, c := range all {
		s = append(s, &series{name: c.name})
	}
	return s
}
