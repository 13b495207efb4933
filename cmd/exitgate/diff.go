package main

import (
	"fmt"

	"exitgate/policy"

	"github.com/spf13/cobra"
)

func newDiffCommand(env *environment) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "diff OLD NEW",
		Short: "what a new policy widens and what it narrows",
		Long: "Compares what two policies mean, not how they are written: comments, order and spelling make no difference.\n\n" +
			"The exit code is 0 when they mean the same, 1 when not, 2 when one of them could not be read.",
		Example: "  exitgate diff /etc/exitgate/policy.yaml new.yaml\n  git show HEAD:policy.yaml | exitgate diff - policy.yaml",
		Args:    cobra.ExactArgs(2),
		RunE: func(_ *cobra.Command, args []string) error {
			return env.diff(args[0], args[1], asJSON)
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "the result for programs")
	return c
}

// difference is `diff --json`.
type difference struct {
	Same    bool     `json:"same"`
	Old     string   `json:"old"` // digests
	New     string   `json:"new"`
	Widens  []change `json:"widens"`
	Narrows []change `json:"narrows"`
}

type change struct {
	Text string `json:"text"`
	File string `json:"file"`
	Line int    `json:"line,omitempty"`
}

func (env *environment) diff(oldPath, newPath string, asJSON bool) error {
	older, err := env.loadPolicy(oldPath)
	if err != nil {
		return exitError{code: exitUsage, err: err}
	}
	newer, err := env.loadPolicy(newPath)
	if err != nil {
		return exitError{code: exitUsage, err: err}
	}
	d := compare(older, newer)
	if asJSON {
		err = env.printJSON(d)
	} else {
		err = env.printDifference(d)
	}
	if err != nil {
		return exitError{code: exitUsage, err: err}
	}
	if !d.Same {
		return exitError{code: exitNo}
	}
	return nil
}

func compare(older, newer *policy.Policy) difference {
	d := difference{Old: older.Digest(), New: newer.Digest(), Widens: []change{}, Narrows: []change{}}
	d.Same = d.Old == d.New
	for _, c := range policy.Diff(older, newer) {
		one := change{c.Text, c.At.File, c.At.Line}
		if c.Widens {
			d.Widens = append(d.Widens, one)
		} else {
			d.Narrows = append(d.Narrows, one)
		}
	}
	return d
}

func (env *environment) printDifference(d difference) error {
	for _, c := range d.Widens {
		fmt.Fprintf(env.stdout, "widens: %s (%s)\n", c.Text, c.place())
	}
	for _, c := range d.Narrows {
		fmt.Fprintf(env.stdout, "narrows: %s (%s)\n", c.Text, c.place())
	}
	if !d.Same && len(d.Widens)+len(d.Narrows) == 0 {
		_, err := fmt.Fprintln(env.stdout, "different, but nothing becomes wider or narrower")
		return err
	}
	return nil
}

func (c change) place() string { return policy.Position{File: c.File, Line: c.Line}.String() }
