package main

import (
	"fmt"
	"strings"
	"text/tabwriter"
	"time"
)

// row is the outcome of one mode.
type row struct {
	client, version, mode string
	requests              int
	denied, reached       []string
	took                  time.Duration
	err                   error
}

func (r *row) verdict() string {
	if r.err != nil {
		return "FAILED"
	}
	return "ok"
}

func (r *row) progress() string {
	return fmt.Sprintf("%-8s %s, %s (%.1f s)", r.verdict(), r.client, r.mode, r.took.Seconds())
}

func resultTable(rows []*row) string {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "client\tversion\tmode\tresult\trequests\tseconds\trefused, or reached without a fence")
	for _, r := range rows {
		names := strings.Join(r.denied, ", ")
		if len(r.reached) > 0 {
			names = "REACHES " + strings.Join(r.reached, ", ")
		}
		if names == "" {
			names = "-"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d\t%.1f\t%s\n", r.client, r.version, r.mode, r.verdict(), r.requests, r.took.Seconds(), names)
	}
	w.Flush()
	return b.String()
}

// needsTable is what the README says of the clients.
func needsTable() string {
	var b strings.Builder
	b.WriteString("| client | preset | needs beside it |\n|---|---|---|\n")
	for _, c := range clients() {
		if c.title != "" {
			fmt.Fprintf(&b, "| %s | %s | %s |\n", c.title, c.presets, c.needs)
		}
	}
	return b.String()
}
