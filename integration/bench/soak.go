package main

import (
	"fmt"
	"time"
)

// soakSlice is how long the load runs between two looks.
const soakSlice = 15 * time.Second

// soak runs requests at 70 % of what 16 connections reach, and 64 streams beside them, and shows what grows meanwhile.
func (b *bench) soak() error {
	s, err := b.only(gatePolicy)
	if err != nil {
		return err
	}
	defer s.close()
	c := s.all[0]
	p := b.window(c.request("load", "/small", 0))
	p.Connections = 16
	most, _, err := c.measure(p)
	if err != nil {
		return err
	}
	rate := int(0.7 * float64(most.Count) / p.Timeout.Seconds())
	t := newTable("soak", fmt.Sprintf("Soak: %d requests/s, 70 %% of what 16 connections reach, beside 64 streams of 10 events/s, for %s", rate, b.soaking), "",
		column{Name: "requests/s", Format: "%.0f"}, column{Name: "p99", Unit: "us", Format: "%.0f"}, column{Name: "CPU", Unit: "%", Format: "%.0f"},
		column{Name: "RSS", Unit: "MiB", Format: "%.1f"}, column{Name: "descriptors", Format: "%.0f"}, column{Name: "threads", Format: "%.0f"},
		column{Name: "goroutines", Format: "%.0f"})
	streams := c.request("streams", "/events?ms=100&n={n}&of=64", 0)
	streams.Connections, streams.Timeout = 64, b.soaking+time.Minute
	c.box.Agent().Start(streams)
	for begin := time.Now(); time.Since(begin) < b.soaking; {
		p.Rate, p.Every, p.Timeout = rate, time.Second, soakSlice
		row := fmt.Sprintf("after %s", time.Since(begin).Round(time.Second))
		r, used, err := c.measure(p)
		if err != nil {
			return err
		}
		t.add(row, "requests/s", float64(r.Count)/p.Timeout.Seconds())
		t.add(row, "p99", micros(r.Quantiles.P99))
		t.add(row, "CPU", 100*used.cpu.Seconds()/p.Timeout.Seconds())
		t.add(row, "RSS", float64(used.rss)/(1<<20))
		t.add(row, "descriptors", float64(used.files))
		t.add(row, "threads", float64(used.threads))
		if n, err := c.goroutines(); err == nil {
			t.add(row, "goroutines", float64(n))
		}
	}
	b.show(t)
	return nil
}

// goroutines are those of the proxy, as the status tells.
func (c *candidate) goroutines() (int, error) {
	status, err := c.box.Status()
	if err != nil {
		return 0, err
	}
	process, _ := status["proxy"].(map[string]any)
	n, ok := process["goroutines"].(float64)
	if !ok {
		return 0, fmt.Errorf("the status of %s tells no goroutines", c.name)
	}
	return int(n), nil
}
