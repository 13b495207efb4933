// Package main tries the programs that people run as agents: the real ones, from the npm registry and from Debian.
//
//	go run ./integration/clients -binary .build/exitgate                           # as root: make clients
//	go run ./integration/clients -binary .build/exitgate -clients "curl git npm"   # some of them
//	go run ./integration/clients -readme                                           # the README's table of what each needs
//
// Each runs as uid 1000 in a box of the rig in which the binary is PID 1, against stand-ins of the services it speaks to, over real
// TLS. It has a placeholder for a credential; the stand-in must see the real one. What it connects to is read from its system calls,
// what left from the wire, what was refused from the audit. Without the fence the same program has to reach the stand-ins directly,
// or else the run fails: a check that cannot fail proves nothing. Downloads are kept in .build/clients.
//
// It does not speak to the real services, holds no real credential, and judges no speed.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"

	"exitgate/integration/rig"
)

func main() {
	rig.Main()
	code, err := run()
	if err != nil {
		fmt.Fprintln(os.Stderr, "clients:", err)
		code = max(code, 1)
	}
	os.Exit(code)
}

func run() (int, error) {
	binary := flag.String("binary", os.Getenv("EXITGATE_BINARY"), "the exitgate binary to try")
	only := flag.String("clients", "", "names of clients, separated by blanks; all by default")
	dir := flag.String("cache", ".build/clients", "directory for what is downloaded")
	readme := flag.Bool("readme", false, "print the README's table and end")
	verbose := flag.Bool("v", false, "show what each program wrote")
	flag.Parse()
	if *readme {
		fmt.Print(needsTable())
		return 0, nil
	}
	chosen, err := choose(strings.Fields(*only))
	if err != nil {
		return 2, err
	}
	path, err := filepath.Abs(*binary)
	if err != nil {
		return 2, err
	}
	if _, err := os.Stat(path); *binary == "" || err != nil {
		return 2, fmt.Errorf("no binary at %q; run `make build` first, or give -binary", *binary)
	}
	store, err := newStore(*dir)
	if err != nil {
		return 1, err
	}
	if !rig.Inside() { // the only time that the machine's own network is there
		if err := store.fetch(chosen); err != nil {
			return 1, err
		}
	}
	inside, code, err := rig.Enter()
	if err != nil || !inside {
		return code, err
	}
	return try(chosen, store, path, *verbose)
}

// try runs every mode of every client, a few at once, and prints the table.
func try(chosen []client, store *store, binary string, verbose bool) (int, error) {
	var rows []*row
	var running sync.WaitGroup
	places := make(chan struct{}, max(2, runtime.NumCPU()))
	for _, c := range chosen {
		if c.missing() && len(chosen) > 1 {
			fmt.Fprintf(os.Stderr, "left out: %s, which this machine does not have\n", c.name)
			continue
		}
		files, version, err := store.take(c)
		if err != nil {
			return 1, err
		}
		for _, m := range c.modes(files) {
			r := &row{client: c.name, version: version, mode: m.name}
			rows = append(rows, r)
			places <- struct{}{}
			running.Go(func() {
				defer func() { <-places }()
				r.fill(m, binary, verbose)
				fmt.Fprintln(os.Stderr, r.progress())
			})
		}
	}
	running.Wait()
	fmt.Print(resultTable(rows))
	var failed []error
	for _, r := range rows {
		if r.err != nil {
			failed = append(failed, fmt.Errorf("%s, %s: %w", r.client, r.mode, r.err))
		}
	}
	return min(len(failed), 1), errors.Join(failed...)
}
