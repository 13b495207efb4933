// Package main is the demo: exitgate's main job for real, without a container engine or an internet.
//
//	go run ./integration/demo -binary .build/exitgate     # as root
//
// It makes an internet of its own (a network namespace with a DNS server and TLS servers under a certificate authority made on the
// spot) and a box in it, in which the binary is PID 1 and runs a script as UID 1000. The script tries what an agent would, the
// narrator checks each outcome from outside (what the upstream received, which packets left the box) and ends with a table.
// The exit code is 0 only if everything was as claimed. Namespaces, processes and files go with the program, however it ends.
//
// It is no test suite: what it shows once, integration's tests try in every way.
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
		code, err = run()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(max(code, 1))
	}
	os.Exit(code)
}

func run() (int, error) {
	binary := flag.String("binary", os.Getenv("EXITGATE_BINARY"), "the exitgate binary to show")
	flag.Parse()
	path, err := filepath.Abs(*binary)
	if err != nil {
		return 1, err
	}
	if _, err := os.Stat(path); *binary == "" || err != nil {
		return 1, fmt.Errorf("no binary at %q; run `make build` first, or give -binary", *binary)
	}
	d := &demo{binary: path, screen: newScreen(os.Stdout), seen: map[string]outcome{}, dumps: map[string]string{}}
	err = errors.Join(d.play(), d.close())
	if err != nil {
		return 1, err
	}
	if !d.screen.table() {
		return 1, nil
	}
	return 0, nil
}
