package main

import "fmt"

// versions is one upstream, net/http's, by HTTP/1.1 and by HTTP/2: a route's requests are many short ones or streams that last, and
// what suits the one need not suit the other.
func (b *bench) versions() error {
	roads := []struct{ name, path string }{{"HTTP/1.1", "/h1"}, {"HTTP/2", "/h2"}}
	t := newTable("versions", "Reverse route to an upstream of net/http, by version", roads[0].name,
		column{Name: "16 conns: requests/s", Format: "%.0f", Ratio: true, Brief: true}, column{Name: "16: p50", Unit: "us", Format: "%.0f"}, column{Name: "16: p99", Unit: "us", Format: "%.0f"},
		column{Name: "16: CPU/request", Unit: "us", Format: "%.1f", Ratio: true, Brief: true}, column{Name: "16: switches", Format: "%.2f"},
		column{Name: "1000 x 10/s: p50", Unit: "us", Format: "%.0f", Brief: true}, column{Name: "1000 x 10/s: p99", Unit: "us", Format: "%.0f"},
		column{Name: "1000 x 10/s: CPU/event", Unit: "us", Format: "%.1f", Ratio: true, Brief: true}, column{Name: "1000: RSS", Unit: "MiB", Format: "%.0f", Ratio: true, Brief: true})
	for _, r := range roads { // each in a gate of its own: its memory would be the other's too
		s, err := b.only(gatePolicy)
		if err != nil {
			return err
		}
		defer s.close()
		c := *s.all[0]
		c.name = r.name
		for range b.rounds {
			if err := b.requests(t, &c, c.request("load", r.path+"/small", 0), 16); err != nil {
				return fmt.Errorf("%s: %w", r.name, err)
			}
		}
		for range b.rounds {
			if err := b.events(t, &c, r.path+"/events", 1000, 100); err != nil {
				return fmt.Errorf("%s: %w", r.name, err)
			}
		}
	}
	b.show(t)
	return nil
}
