package main

import (
	"fmt"
	"os"
	"slices"
	"text/tabwriter"
	"time"
)

// series is what was measured of one candidate, a value a round.
type series struct {
	name   string
	values []float64
}

func (s *series) add(v float64) { s.values = append(s.values, v) }

func median(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	if n := len(sorted); n%2 == 0 {
		return (sorted[n/2-1] + sorted[n/2]) / 2
	}
	return sorted[len(sorted)/2]
}

// ratio is the median over rounds of s to base.
func (s *series) ratio(base *series) float64 {
	var all []float64
	for i := range min(len(s.values), len(base.values)) {
		if base.values[i] != 0 {
			all = append(all, s.values[i]/base.values[i])
		}
	}
	return median(all)
}

func (s *series) spread() (low, high float64) {
	if len(s.values) == 0 {
		return 0, 0
	}
	return slices.Min(s.values), slices.Max(s.values)
}

// show writes a table; the first series is the baseline of the ratios.
func show(title, unit string, format string, all ...*series) {
	fmt.Printf("\n%s\n", title)
	w := tabwriter.NewWriter(os.Stdout, 2, 8, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(w, "\t%s, median\tlow\thigh\tx baseline\t\n", unit)
	for _, s := range all {
		low, high := s.spread()
		fmt.Fprintf(w, "%s\t"+format+"\t"+format+"\t"+format+"\t%.2f\t\n", s.name, median(s.values), low, high, s.ratio(all[0]))
	}
	w.Flush()
}

func millis(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e6 }
func micros(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e3 }
