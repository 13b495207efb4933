package main

import (
	"fmt"
	"strings"
	"text/tabwriter"

	"exitgate/policy"

	"github.com/spf13/cobra"
)

func newPresetsCommand(env *environment) *cobra.Command {
	var asJSON bool
	c := needsNoSettings(&cobra.Command{
		Use:     "presets [NAME]",
		Short:   "the built-in parts of a policy: list them, or print one",
		Example: "  exitgate presets\n  exitgate presets claude-code",
		Args:    cobra.MaximumNArgs(1),
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			return presetNames(), cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return env.listPresets(asJSON)
			}
			return env.printPreset(args[0], asJSON)
		},
	})
	c.Flags().BoolVar(&asJSON, "json", false, "for programs")
	return c
}

// preset is `presets --json`; the text only where one was asked for.
type preset struct {
	Name  string `json:"name"`
	About string `json:"about"`
	Text  string `json:"text,omitempty"`
}

func (env *environment) listPresets(asJSON bool) error {
	all := []preset{}
	for _, p := range policy.Presets() {
		all = append(all, preset{Name: p.Name, About: p.About})
	}
	if asJSON {
		return env.printJSON(all)
	}
	t := tabwriter.NewWriter(env.stdout, 0, 8, 2, ' ', 0)
	for _, p := range all {
		fmt.Fprintf(t, "%s\t%s\n", p.Name, p.About)
	}
	return t.Flush()
}

func (env *environment) printPreset(name string, asJSON bool) error {
	for _, p := range policy.Presets() {
		switch {
		case p.Name != name:
			continue
		case asJSON:
			return env.printJSON(preset(p))
		}
		_, err := fmt.Fprint(env.stdout, p.Text)
		return err
	}
	mend := "known are " + strings.Join(presetNames(), ", ")
	if near := policy.Nearest(name, presetNames()); near != "" {
		mend = fmt.Sprintf("did you mean %q?", near)
	}
	return fmt.Errorf("unknown preset %q; %s", name, mend)
}

func presetNames() []string {
	var names []string
	for _, p := range policy.Presets() {
		names = append(names, p.Name)
	}
	return names
}
