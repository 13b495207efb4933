package main

import (
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"time"

	"exitgate/cmd/internal/control"
	"exitgate/cmd/internal/engine"

	"github.com/spf13/cobra"
)

// Exit codes of status.
const (
	exitDegraded   = 1
	exitNotRunning = 3
)

func newStatusCommand(env *environment) *cobra.Command {
	var asJSON bool
	var wait string
	c := &cobra.Command{
		Use:   "status [--json] [--wait ready|GENERATION]",
		Short: "what the running gate allows, holds and has refused",
		Example: "  exitgate status\n" +
			"  exitgate status --wait ready && exitgate status --json | jq .generation",
		Long: "Prints what the policy in force is, what the gate holds for it and what it has refused. The exit code is 0 when it is ready,\n" +
			"1 when it is degraded, and 3 when none runs. --wait gives one 30 s to come up.",
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error { return env.status(wait, asJSON) },
	}
	c.Flags().BoolVar(&asJSON, "json", false, "everything, for programs")
	c.Flags().StringVar(&wait, "wait", "", "return only when the gate is `ready`, or its policy has come to this generation")
	return c
}

// status prints and chooses the exit code: 0 ready, 1 degraded, 3 not running.
func (env *environment) status(wait string, asJSON bool) error {
	if _, err := strconv.ParseUint(wait, 10, 64); wait != "" && wait != "ready" && err != nil {
		return exitError{code: exitUsage, err: fmt.Errorf("--wait %q: write `ready` or the number of a generation", wait)}
	}
	var s engine.Status
	err := env.callWhenUp(wait != "", "status", url.Values{"wait": {wait}}, &s)
	if errors.Is(err, control.ErrNotRunning) {
		return exitError{code: exitNotRunning, err: err}
	}
	if err != nil {
		return err
	}
	if asJSON {
		err = env.printJSON(s)
	} else {
		env.printStatus(s)
	}
	if err == nil && s.State != "ready" {
		return exitError{code: exitDegraded}
	}
	return err
}

// How often a command that waits for a gate to come up looks for it, and for how long. A gate makes its socket within
// milliseconds of its start.
const (
	startPoll     = 20 * time.Millisecond
	startPatience = 30 * time.Second
)

// callWhenUp calls, and where wait is set goes on trying until a gate answers: a script starts the gate and waits for
// it in the next line. It does not wait for ever for one that could not start.
func (env *environment) callWhenUp(wait bool, name string, q url.Values, out any) error {
	for end := time.Now().Add(startPatience); ; time.Sleep(startPoll) {
		err := env.call(name, q, out)
		if !wait || !errors.Is(err, control.ErrNotRunning) || time.Now().After(end) {
			return err
		}
	}
}
