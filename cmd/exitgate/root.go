package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"exitgate/policy"

	"github.com/spf13/cobra"
)

// Exit codes that several commands share.
const (
	exitNo    = 1   // the answer is no: a mistake, a denial, a difference
	exitUsage = 2   // the command line could not be understood, or there was nothing to answer from
	exitOurs  = 125 // something of ours failed, and no command of the user's ran
)

// environment is the outside world as the commands see it: filled in by main, made up by tests.
type environment struct {
	args           []string // less the program's name
	stdin          io.Reader
	stdout, stderr io.Writer
	getenv         func(string) string
	environ        func() []string
	root           string // absolute paths are below it; "" is /
	now            func() time.Time

	settings *settings // there before a command runs
}

// exitError ends the program with a code. err may be nil: everything has been said.
type exitError struct {
	code int
	err  error
}

// Error is what err says.
func (e exitError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit code %d", e.code)
	}
	return e.err.Error()
}

// Unwrap returns err.
func (e exitError) Unwrap() error { return e.err }

// commands are all that exitgate can be told to do, as the help lists them.
var commands = []func(*environment) *cobra.Command{
	newRunCommand, newAttachCommand, newHookCommand, newExecCommand,
	newCheckCommand, newRulesCommand, newDiffCommand, newExplainCommand, newPresetsCommand,
	newStatusCommand, newWatchCommand, newSuggestCommand, newReportCommand, newDoctorCommand, newReloadCommand, newVerifyCommand, newEnvCommand, newVersionCommand,
}

// failsAsOurs are the commands whose exit code is that of a program of the user's: a code of ours must not be taken
// for it.
var failsAsOurs = []string{"run", "exec", "attach"}

func newRoot(env *environment) *cobra.Command {
	root := &cobra.Command{
		Use:   "exitgate",
		Short: "an egress firewall with a credential-holding proxy, for what is not trusted",
		Long: "exitgate closes a network namespace, so that the program in it reaches one thing: a proxy that holds the credentials\n" +
			"and lets through what the policy allows.",
		Example:       "  exitgate check policy.yaml\n  exitgate run --policy policy.yaml -- claude",
		SilenceErrors: true, SilenceUsage: true,
		Args: knownCommand,
		RunE: func(c *cobra.Command, _ []string) error {
			c.SetOut(env.stderr)
			_ = c.Help()
			return exitError{code: exitUsage}
		},
		PersistentPreRunE: func(c *cobra.Command, _ []string) error { return env.prepare(c) },
	}
	root.SetArgs(env.args)
	root.SetIn(env.stdin)
	root.SetOut(env.stdout)
	root.SetErr(env.stderr)
	root.SuggestionsMinimumDistance = 2
	root.PersistentFlags().SortFlags = false
	addSettings(root.PersistentFlags())
	completes(root, "log-level", "debug", "info", "warn", "error")
	completes(root, "log-format", "json", "text")
	completes(root, "audit", "stderr", "none")
	for _, make := range commands {
		root.AddCommand(make(env))
	}
	root.SetUsageTemplate(usage(root.UsageTemplate()))
	root.Version = thisBuild().String()
	root.SetVersionTemplate("{{.Version}}\n")
	ready(root)
	return root
}

// completes offers words in a shell as values of a flag.
func completes(c *cobra.Command, flag string, words ...string) {
	if err := c.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp)); err != nil {
		panic(err) // no such flag
	}
}

// ready adds what cobra brings, which has no examples of its own.
func ready(root *cobra.Command) {
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd()
	for _, c := range root.Commands() {
		switch c.Name() {
		case "help":
			c.Example = "  exitgate help run"
		case "completion":
			c.Short = "a script that completes exitgate's commands in a shell"
			c.Example = "  exitgate completion bash > /etc/bash_completion.d/exitgate"
			c.Use, c.Args, c.RunE = "completion bash|zsh|fish|powershell", cobra.ArbitraryArgs, knownShell
			for _, shell := range c.Commands() {
				shell.Example = "  exitgate completion " + shell.Name()
			}
		}
	}
}

// knownShell refuses what is no shell: a help text would end up in the file that the script was to be written to.
func knownShell(_ *cobra.Command, args []string) error {
	const mend = "write bash, zsh, fish or powershell, as in `exitgate completion bash`"
	if len(args) == 0 {
		return exitError{code: exitUsage, err: errors.New("completion names no shell; " + mend)}
	}
	return exitError{code: exitUsage, err: fmt.Errorf("there is no completion for %q; %s", args[0], mend)}
}

// usage is cobra's, with a flag that may stand alone as people write it: pflag has `--watch true|false[="true"]`.
func usage(template string) string {
	cobra.AddTemplateFunc("standing", func(flags string) string {
		return strings.ReplaceAll(flags, ` true|false[="true"]`, `[=true|false]       `)
	})
	return strings.ReplaceAll(template, ".FlagUsages |", ".FlagUsages | standing |")
}

// knownCommand is asked when the first word is no command.
func knownCommand(c *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	mend := "`exitgate --help` lists them"
	if near := c.SuggestionsFor(args[0]); len(near) > 0 {
		mend = fmt.Sprintf("did you mean %q?", near[0])
	}
	return exitError{code: exitUsage, err: fmt.Errorf("unknown command %q; %s", args[0], mend)}
}

// prepare reads the settings, once it is clear that the command line is in order. Commands that only tell about the
// program itself work with broken ones.
func (env *environment) prepare(c *cobra.Command) error {
	cobras := []string{"help", "completion", cobra.ShellCompRequestCmd, cobra.ShellCompNoDescRequestCmd}
	if c.Annotations["settings"] == "no" || !c.HasParent() || slices.Contains(cobras, c.Name()) || c.Parent().Name() == "completion" {
		env.settings = &settings{}
		return nil
	}
	s, err := env.readSettings(c.Flags())
	if err != nil {
		return exitError{code: exitCodeOf(c, exitNo), err: err}
	}
	env.settings = s
	return nil
}

// needsNoSettings marks a command that tells about the program itself.
func needsNoSettings(c *cobra.Command) *cobra.Command {
	c.Annotations = map[string]string{"settings": "no"}
	return c
}

// execute runs the command line and returns the exit code.
func execute(env *environment) int {
	c, err := newRoot(env).ExecuteC()
	if err == nil {
		return 0
	}
	var exit exitError
	switch {
	case errors.As(err, &exit):
		if exit.err == nil {
			return exit.code
		}
	case env.settings == nil: // the command had not begun: cobra could not make sense of the line
		exit.code = exitCodeOf(c, exitUsage)
		err = fmt.Errorf("%s; `%s --help` shows how", err, c.CommandPath())
	default:
		exit.code = exitCodeOf(c, exitNo)
	}
	env.complain(err)
	return exit.code
}

func exitCodeOf(c *cobra.Command, otherwise int) int {
	if slices.Contains(failsAsOurs, c.Name()) {
		return exitOurs
	}
	return otherwise
}

// complain prints an error, each of its lines marked as ours.
func (env *environment) complain(err error) {
	for line := range strings.SplitSeq(err.Error(), "\n") {
		fmt.Fprintf(env.stderr, "exitgate: %s\n", printable(line))
	}
}

// printable replaces what could change how a terminal shows a line: words of files and arguments are in there.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if policy.UnsafeOnTerminal(r) && r != '\t' {
			return '\ufffd'
		}
		return r
	}, s)
}

// printJSON answers a program.
func (env *environment) printJSON(v any) error {
	out := json.NewEncoder(env.stdout)
	out.SetIndent("", "  ")
	out.SetEscapeHTML(false)
	return out.Encode(v)
}
