package main

import (
	"fmt"
	"strings"

	"exitgate/cmd/internal/engine"

	"github.com/spf13/cobra"
)

func newReloadCommand(env *environment) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:     "reload",
		Short:   "bring the changed policy file into force, and say what changed",
		Long:    "As SIGHUP, but waits. A policy with a mistake changes nothing: its errors are printed and the one in force stays.",
		Example: "  exitgate check /etc/exitgate/policy.yaml && exitgate reload",
		Args:    cobra.NoArgs,
		RunE:    func(*cobra.Command, []string) error { return env.reload(asJSON) },
	}
	c.Flags().BoolVar(&asJSON, "json", false, "the result, for programs")
	return c
}

func (env *environment) reload(asJSON bool) error {
	var r engine.ReloadResult
	if err := env.call("reload", nil, &r); err != nil {
		return err
	}
	switch {
	case asJSON:
		if err := env.printJSON(r); err != nil {
			return err
		}
	case r.Unchanged:
		fmt.Fprintf(env.stdout, "nothing changed (generation %d)\n", r.Generation)
	case r.OK:
		for _, line := range r.Widens {
			fmt.Fprintf(env.stdout, "+ %s\n", line)
		}
		for _, line := range r.Narrows {
			fmt.Fprintf(env.stdout, "- %s\n", line)
		}
		fmt.Fprintf(env.stdout, "generation %d is in force\n", r.Generation)
	}
	if r.OK {
		return nil
	}
	return fmt.Errorf("%s\nthe policy in force stays (generation %d)", strings.Join(r.Errors, "\n"), r.Generation)
}
