package main

import (
	"fmt"
	"time"

	"exitgate/integration/prober"
)

// base is the candidate that others are compared with: the fastest of the peers where there are any.
func (b *bench) base() string {
	if b.withPeers {
		return "nginx"
	}
	return goPeer.name
}

// route is small requests over keep-alive connections.
func (b *bench) route() error {
	s, err := b.stage(reverse)
	if err != nil {
		return err
	}
	defer s.close()
	t := newTable("route", "Reverse route with injection, 1 KiB answers", b.base())
	for _, conns := range []int{1, 16, 64, 256} {
		t.Columns = append(t.Columns, column{Name: fmt.Sprintf("%d conns: requests/s", conns), Format: "%.0f", Ratio: true, Brief: conns == 16 || conns == 256},
			column{Name: fmt.Sprintf("%d: p50", conns), Unit: "us", Format: "%.0f", Brief: conns == 1}, column{Name: fmt.Sprintf("%d: p99", conns), Unit: "us", Format: "%.0f", Brief: conns == 16})
		if conns == 1 || conns == 16 {
			t.Columns = append(t.Columns, column{Name: fmt.Sprintf("%d: CPU/request", conns), Unit: "us", Format: "%.1f", Ratio: true, Brief: conns == 16},
				column{Name: fmt.Sprintf("%d: switches", conns), Format: "%.2f"})
		}
	}
	t.Columns = append(t.Columns, column{Name: "64 KiB POST: requests/s", Format: "%.0f", Ratio: true}, column{Name: "64 KiB POST: CPU/request", Unit: "us", Format: "%.1f", Ratio: true})
	for _, conns := range []int{1, 16, 64, 256} {
		if err := s.turns(b.rounds, func(c *candidate) error { return b.requests(t, c, c.request("load", "/small", 0), conns) }); err != nil {
			return err
		}
	}
	if err := s.turns(b.rounds, func(c *candidate) error { return b.posts(t, c) }); err != nil {
		return err
	}
	b.show(t)
	return nil
}

// window is how long a load runs in a round, after a quarter of that to warm up.
func (b *bench) window(p prober.Probe) prober.Probe {
	p.Every, p.Timeout = b.length/4, b.length
	return p
}

func (b *bench) requests(t *table, c *candidate, p prober.Probe, conns int) error {
	p = b.window(p)
	p.Connections = conns
	r, used, err := c.measure(p)
	if err != nil {
		return err
	}
	of := fmt.Sprintf("%d: ", conns)
	t.add(c.name, fmt.Sprintf("%d conns: requests/s", conns), float64(r.Count)/p.Timeout.Seconds())
	t.add(c.name, of+"p50", micros(r.Quantiles.P50))
	t.add(c.name, of+"p99", micros(r.Quantiles.P99))
	if t.has(of+"CPU/request") && c.serves() {
		t.add(c.name, of+"CPU/request", micros(used.cpu)/float64(r.Count))
		t.add(c.name, of+"switches", float64(used.switches)/float64(r.Count))
	}
	return nil
}

// posts are requests with a prompt's worth of body, on 16 connections.
func (b *bench) posts(t *table, c *candidate) error {
	const size = 64 << 10
	p := b.window(c.request("transfer", "/small", size))
	p.Connections, p.Size, p.Up = 16, size, true
	r, used, err := c.measure(p)
	if err != nil {
		return err
	}
	t.add(c.name, "64 KiB POST: requests/s", float64(r.Count)/p.Timeout.Seconds())
	if c.serves() {
		t.add(c.name, "64 KiB POST: CPU/request", micros(used.cpu)/float64(r.Count))
	}
	return nil
}

// forwarded is plain http in absolute form.
func (b *bench) forwarded() error {
	s, err := b.stage(forward)
	if err != nil {
		return err
	}
	defer s.close()
	t := newTable("forward", "Forward proxy, plain http, 1 KiB answers", goPeer.name,
		column{Name: "16 conns: requests/s", Format: "%.0f", Ratio: true, Brief: true}, column{Name: "16: p50", Unit: "us", Format: "%.0f"}, column{Name: "16: p99", Unit: "us", Format: "%.0f"},
		column{Name: "16: CPU/request", Unit: "us", Format: "%.1f", Ratio: true, Brief: true}, column{Name: "16: switches", Format: "%.2f"})
	if err := s.turns(b.rounds, func(c *candidate) error { return b.requests(t, c, c.absolute(s, "load"), 16) }); err != nil {
		return err
	}
	b.show(t)
	return nil
}

// sse is the time from an event's sending by the upstream to its arrival at the agent.
func (b *bench) sse() error {
	s, err := b.stage(reverse)
	if err != nil {
		return err
	}
	defer s.close()
	t := newTable("sse", "Server-sent events of 220 bytes, from sending to arrival", b.base())
	loads := []struct{ streams, ms int }{{1, 5}, {16, 5}, {1000, 100}}
	for _, l := range loads {
		of := fmt.Sprintf("%d x %d/s: ", l.streams, 1000/l.ms)
		t.Columns = append(t.Columns, column{Name: of + "p50", Unit: "us", Format: "%.0f", Brief: l.streams > 1}, column{Name: of + "p99", Unit: "us", Format: "%.0f", Brief: l.streams > 16},
			column{Name: of + "CPU/event", Unit: "us", Format: "%.1f", Ratio: true, Brief: l.streams > 16})
	}
	t.Columns = append(t.Columns, column{Name: "1000: RSS", Unit: "MiB", Format: "%.0f", Ratio: true, Brief: true})
	for _, l := range loads {
		if err := s.turns(b.rounds, func(c *candidate) error { return b.events(t, c, "/events", l.streams, l.ms) }); err != nil {
			return err
		}
	}
	b.show(t)
	return nil
}

func (b *bench) events(t *table, c *candidate, path string, streams, ms int) error {
	p := b.window(c.request("streams", fmt.Sprintf("%s?ms=%d&n={n}&of=%d", path, ms, streams), 0))
	p.Connections = streams
	p.Timeout = max(p.Timeout, time.Second)
	r, used, err := c.measure(p)
	if err != nil {
		return err
	}
	of := fmt.Sprintf("%d x %d/s: ", streams, 1000/ms)
	t.add(c.name, of+"p50", micros(r.Quantiles.P50))
	t.add(c.name, of+"p99", micros(r.Quantiles.P99))
	if !c.serves() {
		return nil
	}
	t.add(c.name, of+"CPU/event", micros(used.cpu)/float64(r.Count))
	if streams == 1000 {
		t.add(c.name, "1000: RSS", float64(used.rss)/(1<<20))
	}
	return nil
}

const bulk = 64 << 20

// bodies is 64 MiB down and up through the route.
func (b *bench) bodies() error {
	s, err := b.stage(reverse)
	if err != nil {
		return err
	}
	defer s.close()
	t := newTable("bodies", "Bodies of 64 MiB through the route", "direct",
		column{Name: "down", Unit: "MiB/s", Format: "%.0f", Ratio: true, Brief: true}, column{Name: "down: CPU", Unit: "s/GiB", Format: "%.2f", Brief: true},
		column{Name: "up", Unit: "MiB/s", Format: "%.0f", Ratio: true, Brief: true}, column{Name: "up: CPU", Unit: "s/GiB", Format: "%.2f", Brief: true})
	err = s.turns(b.rounds, func(c *candidate) error {
		down, up := c.request("transfer", fmt.Sprintf("/bytes?n=%d", bulk), 0), c.request("transfer", "/upload", bulk)
		up.Up = true
		if err := b.transfer(t, c, "down", down); err != nil {
			return err
		}
		return b.transfer(t, c, "up", up)
	})
	if err != nil {
		return err
	}
	b.show(t)
	return nil
}

// transfer adds a direction's rate and CPU. The window is longer than that of small requests, for a sample is a whole body.
func (b *bench) transfer(t *table, c *candidate, name string, p prober.Probe) error {
	p.Size, p.Every, p.Timeout = bulk, 0, 2*b.length
	r, used, err := c.measure(p)
	if err != nil {
		return err
	}
	t.add(c.name, name, bulk/float64(1<<20)/r.Quantiles.P50.Seconds())
	if c.serves() {
		// The last body began within the window and ended after it, as the first one, which is not counted, ended within.
		t.add(c.name, name+": CPU", used.cpu.Seconds()/(float64(r.Count)*bulk/(1<<30)))
	}
	return nil
}

// serves reports whether there is a server to account for.
func (c *candidate) serves() bool { return c.name != "direct" }
