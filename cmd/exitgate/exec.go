package main

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"

	"exitgate/cmd/internal/control"
	"exitgate/cmd/internal/supervise"

	"github.com/spf13/cobra"
)

func newExecCommand(env *environment) *cobra.Command {
	var agent string
	c := &cobra.Command{
		Use:   "exec [--agent NAME] -- COMMAND [ARG ...]",
		Short: "run another process as the agent, in a running gate",
		Long: "Becomes COMMAND, hardened and with the environment that `exitgate run` gives the agent. It replaces itself\n" +
			"(execve), so that an interactive program needs no supervisor.",
		Example: "  docker exec -it NAME exitgate exec -- claude",
		Args:    cobra.MatchAll(cobra.MinimumNArgs(1), notFlagValue),
		RunE: func(_ *cobra.Command, argv []string) error {
			return env.exec(agent, argv)
		},
	}
	c.Flags().SetInterspersed(false) // what follows COMMAND is COMMAND's
	c.Flags().StringVar(&agent, "agent", "", "which agent of the policy (default: the first)")
	return c
}

// exec asks the gate who the agent is, and becomes it. It returns only when that failed.
func (env *environment) exec(agent string, argv []string) error {
	var c supervise.Command
	if err := env.call("command", url.Values{"agent": {agent}}, &c); err != nil {
		return err
	}
	c.Argv = argv
	c.Env = withTerminal(c.Env, env.environ())
	err := supervise.Become(c)
	return exitError{code: supervise.ExitCode(err), err: err}
}

// terminalVariables describe the terminal that this very process has, which is another than the one at the gate's start.
var terminalVariables = []string{"TERM", "COLORTERM", "COLUMNS", "LINES"}

func withTerminal(agent, own []string) []string {
	for _, name := range terminalVariables {
		for _, kv := range own {
			if strings.HasPrefix(kv, name+"=") {
				agent = append(without(agent, name), kv)
			}
		}
	}
	return agent
}

func without(env []string, names ...string) []string {
	return slices.DeleteFunc(env, func(kv string) bool {
		name, _, _ := strings.Cut(kv, "=")
		return slices.Contains(names, name)
	})
}

// call asks the running gate. Where none runs the exit code is 125.
func (env *environment) call(name string, q url.Values, out any) error {
	return whereItRuns(env.ask(name, q, out))
}

// ask is call for those who have something better to say where nothing runs.
func (env *environment) ask(name string, q url.Values, out any) error {
	return control.Client{Path: env.settings.Control}.Call(context.Background(), name, q, out)
}

// whereItRuns adds to the error of a call that nobody answers what to do about that.
func whereItRuns(err error) error {
	if errors.Is(err, control.ErrNotRunning) {
		return ours(fmt.Errorf("%w; start one with `exitgate run`, or ask where it runs: `docker exec CONTAINER exitgate ...`", err))
	}
	return err
}
