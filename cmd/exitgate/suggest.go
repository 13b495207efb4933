package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"exitgate/policy"

	"github.com/spf13/cobra"
)

func newSuggestCommand(env *environment) *cobra.Command {
	var file string
	c := &cobra.Command{
		Use:   "suggest [--audit FILE]",
		Short: "policy lines for what was denied",
		Long: "Prints the smallest addition to the policy that would have allowed what was denied, each line with how often and by\n" +
			"which program. It is a policy of its own that `exitgate check` accepts. It never suggests a wildcard, and marks hosts\n" +
			"that are known for telemetry. Read it before you take it: an agent chooses what it asks for.",
		Example: "  exitgate suggest\n" +
			"  exitgate suggest --audit /var/log/exitgate/audit.jsonl > addition.yaml && exitgate check addition.yaml",
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error { return env.suggest(file) },
	}
	auditFileFlag(c, &file)
	return c
}

// auditFileFlag gives a command that reads an audit file its --audit, which hides the setting of that name: what reads
// writes none.
func auditFileFlag(c *cobra.Command, file *string) {
	c.Flags().StringVar(file, "audit", "", "read an audit `file` instead of asking the running gate")
}

func (env *environment) suggest(file string) error {
	var text string
	if file == "" {
		if err := env.call("suggest", nil, &text); err != nil {
			return err
		}
	} else {
		denied, err := env.readDenials(file)
		if err != nil {
			return err
		}
		text = policy.Suggest(denied, nil)
	}
	if text == "" {
		fmt.Fprintln(env.stderr, "exitgate: nothing was denied")
		return nil
	}
	_, err := io.WriteString(env.stdout, text)
	return err
}

// maxAuditLine is more than Event.Append writes: 20 fields of 1 KiB, each byte escaped.
const maxAuditLine = 256 << 10

// readEvents calls each with every line of an audit file, and of those that it was rotated to, the oldest first. Lines
// that are none are counted and told of.
func (env *environment) readEvents(file string, each func(policy.Event)) error {
	files := []string{file}
	for n := 1; ; n++ {
		older := fmt.Sprintf("%s.%d", file, n)
		if _, err := os.Stat(filepath.Join(env.root, older)); err != nil {
			break
		}
		files = append([]string{older}, files...)
	}
	for _, name := range files {
		strange, err := env.readEventsOf(name, each)
		if err != nil {
			return err
		}
		if strange > 0 {
			fmt.Fprintf(env.stderr, "exitgate: %s: %d lines are no audit lines and were passed over\n", name, strange)
		}
	}
	return nil
}

func (env *environment) readEventsOf(file string, each func(policy.Event)) (strange int, err error) {
	f, err := os.Open(filepath.Join(env.root, file))
	if err != nil {
		return 0, fmt.Errorf("%s: %w; name a file that the setting `audit` writes", file, inner(err))
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, maxAuditLine)
	for lines.Scan() {
		e, err := policy.ParseEvent(lines.Bytes())
		if err != nil {
			strange++
			continue
		}
		each(e)
	}
	return strange, lines.Err()
}

func (env *environment) readDenials(file string) ([]policy.Denied, error) {
	type key struct{ event, host, method, path, proto, address, rule, exe string }
	index := make(map[key]int)
	var denied []policy.Denied
	err := env.readEvents(file, func(e policy.Event) {
		k := key{e.Event, e.Host, e.Method, e.Path, e.Proto, e.Address, e.Rule, e.Exe}
		if i, again := index[k]; again {
			denied[i].Count += e.Times()
			return
		}
		index[k] = len(denied)
		denied = append(denied, policy.Denied{Event: e, Count: e.Times()})
	})
	return denied, err
}

// suggestion is what the running gate suggests for what it remembers.
func (g *gate) suggestion() string {
	g.audit.Settle()
	return policy.Suggest(g.audit.Denials(), g.engine.Policy())
}

// parting tells a person, once, what was denied while their program ran.
func (g *gate) parting() {
	if !g.onTerminal() {
		return
	}
	if text := g.suggestion(); text != "" {
		fmt.Fprintf(g.env.stderr, "\nexitgate: some of what was tried was denied. To allow it, add to the policy what you agree with:\n\n%s", text)
	}
}
