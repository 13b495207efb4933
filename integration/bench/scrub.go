package main

import "fmt"

// scrubbing compares a route whose answers are searched for its credential, and for the tokens they report, with one that has none.
func (b *bench) scrubbing() error {
	s, err := b.stage(0)
	if err != nil {
		return err
	}
	defer s.close()
	const off = "no credential, nothing searched"
	t := newTable("scrub", "Searching answers for credentials", off,
		column{Name: "16 conns: requests/s", Format: "%.0f"}, column{Name: "16: p50", Unit: "us", Format: "%.0f"}, column{Name: "16: p99", Unit: "us", Format: "%.0f"},
		column{Name: "16: CPU/request", Unit: "us", Format: "%.1f", Ratio: true}, column{Name: "16: switches", Format: "%.2f"},
		column{Name: "16 x 200/s: p50", Unit: "us", Format: "%.0f", Ratio: true}, column{Name: "16 x 200/s: p99", Unit: "us", Format: "%.0f"},
		column{Name: "16 x 200/s: CPU/event", Unit: "us", Format: "%.1f", Ratio: true},
		column{Name: "down", Unit: "MiB/s", Format: "%.0f", Ratio: true}, column{Name: "down: CPU", Unit: "s/GiB", Format: "%.2f", Ratio: true})
	for round := range b.rounds {
		for i := range 2 {
			c, path := *s.gate(), ""
			c.name = "a credential, all searched"
			if (i+round)%2 == 0 {
				c.name, path = off, "/open"
			}
			if err := b.searched(t, &c, path); err != nil {
				return err
			}
		}
	}
	b.show(t)
	return nil
}

func (b *bench) searched(t *table, c *candidate, path string) error {
	if err := b.requests(t, c, c.request("load", path+"/small", 0), 16); err != nil {
		return err
	}
	if err := b.events(t, c, path+"/events", 16, 5); err != nil {
		return err
	}
	return b.transfer(t, c, "down", c.request("transfer", fmt.Sprintf("%s/bytes?n=%d", path, bulk), 0))
}

// gate is exitgate's own candidate.
func (s *stage) gate() *candidate {
	for _, c := range s.all {
		if c.name == gateName {
			return c
		}
	}
	return nil
}
