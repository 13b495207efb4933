package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"

	"github.com/spf13/cobra"
)

// formats are how `exitgate env` can print one variable.
var formats = map[string]func(name, value string) (string, error){
	"sh": func(name, value string) (string, error) {
		return "export " + name + "='" + strings.ReplaceAll(value, "'", `'\''`) + "'", nil
	},
	"docker": func(name, value string) (string, error) {
		if strings.Contains(value, "\n") {
			return "", fmt.Errorf("%s has a line break, which an env file cannot hold; use --format sh", name)
		}
		return name + "=" + value, nil
	},
	"k8s": func(name, value string) (string, error) {
		quoted, err := json.Marshal(value) // a JSON string is a YAML string
		return "- name: " + name + "\n  value: " + string(quoted), err
	},
}

func newEnvCommand(env *environment) *cobra.Command {
	var agent, format string
	c := &cobra.Command{
		Use:   "env [--agent NAME] [--format sh|docker|k8s]",
		Short: "the variables that an agent needs, for containers that exitgate does not start",
		Long: "Prints what exitgate adds to an agent's environment: proxy variables and those of the routes. There is no secret\n" +
			"among them; the credential that a client insists on is a placeholder.",
		Example: "  eval \"$(exitgate env)\"\n" +
			"  exitgate env --format docker > agent.env && docker run --env-file agent.env ...",
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error { return env.printEnvironment(agent, format) },
	}
	c.Flags().StringVar(&agent, "agent", "", "which agent of the policy (default: the first)")
	c.Flags().StringVar(&format, "format", "sh", "sh, docker (an env file) or k8s (a container's env list)")
	completes(c, "format", slices.Sorted(maps.Keys(formats))...)
	return c
}

func (env *environment) printEnvironment(agent, format string) error {
	render := formats[format]
	if render == nil {
		return fmt.Errorf("--format %q: write sh, docker or k8s", format)
	}
	var variables []string
	if err := env.call("environment", url.Values{"agent": {agent}}, &variables); err != nil {
		return err
	}
	for _, kv := range variables {
		name, value, _ := strings.Cut(kv, "=")
		line, err := render(name, value)
		if err != nil {
			return err
		}
		fmt.Fprintln(env.stdout, line)
	}
	return nil
}
