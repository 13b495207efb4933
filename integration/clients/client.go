package main

import (
	"fmt"
	"os/exec"
	"slices"
	"strings"

	"exitgate/integration/rig"
)

// client is a program to try.
type client struct {
	name     string
	title    string // in the README
	packages []pkg  // to download; none: it is a program of the machine
	program  string // a command that says its version
	optional bool   // not every machine has the program
	presets  string // of the policy, for the README
	needs    string // beside the preset, for the README
	modes    func(files map[string]string) []mode
}

// mode is one way to run a client.
type mode struct {
	name    string
	policy  string
	secrets map[string]string // contents of files in /run/secrets, none of which the agent may see
	env     []string          // of PID 1
	files   map[string]rig.File
	place   map[string]string
	stand   func(*scene) error // the services
	argv    []string
	talk    func(*scene) error // with a person at a terminal
	root    bool               // run by root beside the agent
	open    bool               // without a fence: the control, in which it must reach the names of wants
	wants   []string           // names that must have been asked for
	denied  []string           // names that may be refused; "*" for any
	strict  bool               // it connects to its listener and nothing else
	dummy   string             // variable that holds the placeholder
	judge   func(*scene) error
}

func clients() []client {
	return slices.Concat(claudes(), []client{codex(), gemini(), npm(), pip(), goModules(), git(), curl(), cargo(), apt()})
}

func choose(names []string) ([]client, error) {
	all := clients()
	if len(names) == 0 {
		return all, nil
	}
	var chosen []client
	for _, n := range names {
		i := slices.IndexFunc(all, func(c client) bool { return c.name == n })
		if i < 0 {
			var known []string
			for _, c := range all {
				known = append(known, c.name)
			}
			return nil, fmt.Errorf("no client %q; there are %s", n, strings.Join(known, ", "))
		}
		chosen = append(chosen, all[i])
	}
	return chosen, nil
}

// missing says that the machine lacks a program that not every machine has.
func (c client) missing() bool {
	_, err := exec.LookPath(strings.Fields(c.program + " x")[0])
	return c.optional && err != nil
}
