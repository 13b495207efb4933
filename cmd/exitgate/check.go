package main

import (
	"errors"
	"fmt"

	"exitgate/policy"

	"github.com/spf13/cobra"
)

func newCheckCommand(env *environment) *cobra.Command {
	var strict, asJSON bool
	c := &cobra.Command{
		Use:   "check [FILE]",
		Short: "every mistake in a policy, with its line and what to write instead",
		Long: "Reads a policy as `exitgate run` does and prints all of its mistakes at once, one a line. Nothing is resolved and no\n" +
			"credential is read, so a policy can be checked anywhere. FILE may be - for standard input.\n\n" +
			"The exit code is 0 when it is in order, 1 when not, 2 when the command line is not understood.",
		Example: "  exitgate check policy.yaml\n  exitgate check --strict --json policy.yaml",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			return env.check(env.policyArgument(args), strict, asJSON)
		},
	}
	c.Flags().BoolVar(&strict, "strict", false, "take warnings for mistakes")
	c.Flags().BoolVar(&asJSON, "json", false, "the result for programs")
	return c
}

// verdict is `check --json`.
type verdict struct {
	File     string   `json:"file"`
	OK       bool     `json:"ok"`
	Digest   string   `json:"digest,omitempty"`
	Errors   []remark `json:"errors"`
	Warnings []remark `json:"warnings"`
}

// remark is one mistake or warning.
type remark struct {
	File   string `json:"file"`
	Line   int    `json:"line,omitempty"`
	Column int    `json:"column,omitempty"`
	What   string `json:"what"`
	Mend   string `json:"mend,omitempty"`
}

func (env *environment) check(path string, strict, asJSON bool) error {
	p, err := env.loadPolicy(path)
	var warnings []*policy.Error
	if p != nil {
		warnings = append(p.Warnings(), p.Expired(env.now())...)
	}
	ok := err == nil && (!strict || len(warnings) == 0)
	if asJSON {
		v := verdict{File: path, OK: ok, Errors: remarks(path, err), Warnings: remarks(path, policy.Errors(warnings))}
		if p != nil {
			v.Digest = p.Digest()
		}
		if err := env.printJSON(v); err != nil {
			return err
		}
	} else {
		if err != nil {
			env.complain(err)
		}
		for _, w := range warnings {
			env.warn(w)
		}
		if ok {
			fmt.Fprintf(env.stdout, "%s: ok (%s)\n", path, p.Digest())
		}
	}
	if !ok {
		return exitError{code: exitNo}
	}
	return nil
}

// warn prints a warning where an error would stand: file:line:column: warning: what; mend.
func (env *environment) warn(w *policy.Error) {
	marked := *w
	marked.What = "warning: " + w.What
	env.complain(&marked)
}

// remarks takes an error apart: a policy's are many, any other is one about the file.
func remarks(path string, err error) []remark {
	all := []remark{}
	var many policy.Errors
	switch {
	case errors.As(err, &many):
		for _, e := range many {
			all = append(all, remark{e.File, e.Line, e.Column, e.What, e.Mend})
		}
	case err != nil:
		all = append(all, remark{File: path, What: err.Error()})
	}
	return all
}
