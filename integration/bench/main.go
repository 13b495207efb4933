// Package main prints the project's figures, each beside a baseline that was measured in the same run.
//
//	EXITGATE_BINARY=.build/exitgate go run ./integration/bench            # all, as root
//	EXITGATE_BINARY=.build/exitgate go run ./integration/bench -only boot # one table: boot, reload, pin, route, sse
//
// Everything runs on the rig: the binary is PID 1 of a box, upstream and name server are outside it, the load comes from the agent inside.
// Candidates take turns, round by round; a figure is the median over rounds, a ratio the median of the rounds' ratios, so that a slow moment
// of the machine falls on both sides.
//
// Absolute numbers are this machine's. Nothing here passes or fails.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"

	"exitgate/integration/rig"
)

func main() {
	rig.Main()
	inside, code, err := rig.Enter()
	if err == nil && inside {
		err = run()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		code = max(code, 1)
	}
	os.Exit(code)
}

// bench is one run: the binary, how often, and the tables.
type bench struct {
	binary string
	rounds int
	hosts  int
}

var tables = []struct {
	name string
	run  func(*bench) error
}{
	{"boot", (*bench).boot},
	{"reload", (*bench).reload},
	{"pin", (*bench).pin},
	{"route", (*bench).route},
	{"sse", (*bench).sse},
}

func run() error {
	binary := flag.String("binary", os.Getenv("EXITGATE_BINARY"), "the exitgate binary to measure")
	only := flag.String("only", "", "one table: boot, reload, pin, route, sse")
	rounds := flag.Int("rounds", 7, "rounds of each measurement")
	hosts := flag.Int("hosts", 10000, "the largest policy, in hosts")
	flag.Parse()
	path, err := filepath.Abs(*binary)
	if err != nil {
		return err
	}
	if _, err := os.Stat(path); *binary == "" || err != nil {
		return fmt.Errorf("no binary at %q; run `make build` first, or give -binary", *binary)
	}
	b := &bench{binary: path, rounds: *rounds, hosts: *hosts}
	var errs []error
	for _, t := range tables {
		if *only == "" || *only == t.name {
			if err := t.run(b); err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", t.name, err))
			}
		}
	}
	return errors.Join(errs...)
}
