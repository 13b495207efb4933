// Package main prints the project's figures, each beside others that were measured in the same run.
//
//	EXITGATE_BINARY=.build/exitgate go run ./integration/bench                   # all, as root
//	EXITGATE_BINARY=.build/exitgate go run ./integration/bench -peers            # beside nginx, haproxy, Apache, squid, tinyproxy too
//	EXITGATE_BINARY=.build/exitgate go run ./integration/bench -only route,sse   # some tables
//
// Everything runs on the rig: the binary is PID 1 of a box with all checks, audit and limits on, upstream and name server are outside it,
// the load comes from the agent inside. Peers run in boxes of the same kind. Candidates take turns, round by round; a figure is the median
// over rounds, a ratio the median of the rounds' ratios, so that a slow moment of the machine falls on all of them. CPU and memory are the
// kernel's account of the servers alone.
//
// Absolute numbers are this machine's. Nothing here passes or fails.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

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

// bench is one run: the binary, how often and how long, and the tables that were made.
type bench struct {
	binary    string
	against   string
	rounds    int
	length    time.Duration
	hosts     int
	withPeers bool
	soaking   time.Duration
	quiet     bool
	env       []string
	of        []string // the candidates to measure; none: all
	tables    []*table
}

var tables = []struct {
	name string
	run  func(*bench) error
}{
	{"route", (*bench).route},
	{"sse", (*bench).sse},
	{"bodies", (*bench).bodies},
	{"connect", (*bench).tunnels},
	{"forward", (*bench).forwarded},
	{"scrub", (*bench).scrubbing},
	{"versions", (*bench).versions},
	{"fence", (*bench).fence},
	{"sets", (*bench).sets},
	{"boot", (*bench).boot},
	{"reload", (*bench).reload},
	{"growth", (*bench).growth},
}

func run() error {
	b := &bench{}
	var names []string
	for _, t := range tables {
		names = append(names, t.name)
	}
	binary := flag.String("binary", os.Getenv("EXITGATE_BINARY"), "the exitgate binary to measure")
	only := flag.String("only", "", "some tables: "+strings.Join(names, ","))
	of := flag.String("of", "", "some candidates by name, such as exitgate,nginx")
	against := flag.String("against", "", "another exitgate binary, measured beside: that of before a change")
	asJSON := flag.Bool("json", false, "the tables as JSON, every round's value included")
	readme := flag.String("readme", "", "a file to put the tables into, between its lines for figures")
	flag.BoolVar(&b.withPeers, "peers", false, "also nginx, haproxy, Apache, squid, tinyproxy, as far as they are installed")
	flag.IntVar(&b.rounds, "rounds", 5, "rounds of each measurement")
	flag.DurationVar(&b.length, "length", time.Second, "how long a load runs in a round")
	flag.IntVar(&b.hosts, "hosts", 10000, "the largest policy that is reloaded, in hosts")
	flag.DurationVar(&b.soaking, "soak", 0, "run the soak for this long, and nothing else")
	flag.Parse()
	path, err := filepath.Abs(*binary)
	if err != nil {
		return err
	}
	if _, err := os.Stat(path); *binary == "" || err != nil {
		return fmt.Errorf("no binary at %q; run `make build` first, or give -binary", *binary)
	}
	b.binary, b.quiet = path, *asJSON
	if *against != "" {
		if b.against, err = filepath.Abs(*against); err != nil {
			return err
		}
	}
	if *of != "" {
		b.of = strings.Split(*of, ",")
	}
	if b.soaking > 0 {
		err = b.soak()
	} else {
		err = b.run(*only, names)
	}
	m := thisMachine(runtime.Version(), runtime.NumCPU())
	if *asJSON {
		err = errors.Join(err, json.NewEncoder(os.Stdout).Encode(map[string]any{"machine": m, "rounds": b.rounds, "tables": b.tables}))
	} else {
		fmt.Println(m)
	}
	if *readme != "" && len(b.tables) > 0 {
		err = errors.Join(err, writeReadme(*readme, m, b.tables))
	}
	return err
}

func (b *bench) run(only string, names []string) error {
	chosen := names
	if only != "" {
		chosen = strings.Split(only, ",")
	}
	for _, name := range chosen {
		if !slices.Contains(names, name) {
			return fmt.Errorf("no table %q; there are %s", name, strings.Join(names, ", "))
		}
	}
	var errs []error
	for _, t := range tables {
		if slices.Contains(chosen, t.name) {
			if err := t.run(b); err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", t.name, err))
			}
		}
	}
	return errors.Join(errs...)
}

// show keeps a finished table, and prints it unless they are all printed at the end as JSON.
func (b *bench) show(t *table) {
	b.tables = append(b.tables, t)
	if !b.quiet {
		t.markdown(os.Stdout)
	}
}
