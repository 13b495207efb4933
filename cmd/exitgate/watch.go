package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"exitgate/cmd/internal/control"
	"exitgate/policy"

	"github.com/spf13/cobra"
)

// filter is which decisions watch shows. What is empty takes all.
type filter struct {
	denied                   bool
	agent, event, host, rule string
}

func newWatchCommand(env *environment) *cobra.Command {
	var asJSON bool
	var f filter
	c := &cobra.Command{
		Use:   "watch [--denied] [--agent NAME] [--event KIND] [--host NAME] [--rule RULE] [--json]",
		Short: "decisions as they happen, one line each",
		Long: "Prints each decision of the running gate as one line, until the gate ends. Filters are joined: a line is shown where all\n" +
			"of them fit. --host and --rule take a `*` for any run of characters. The lines go on when the proxy is restarted.",
		Example: "  exitgate watch --denied\n" +
			"  exitgate watch --host '*.anthropic.com' --event request\n" +
			"  exitgate watch --json | jq 'select(.event==\"connect\")'",
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error { return env.watch(asJSON, f) },
	}
	c.Flags().BoolVar(&asJSON, "json", false, "the audit lines as they are written")
	c.Flags().BoolVar(&f.denied, "denied", false, "only what was denied")
	c.Flags().StringVar(&f.agent, "agent", "", "only of this agent")
	c.Flags().StringVar(&f.event, "event", "", "only of this kind: "+strings.Join(policy.EventKinds, ", "))
	c.Flags().StringVar(&f.host, "host", "", "only to this host, or address")
	c.Flags().StringVar(&f.rule, "rule", "", "only by this rule, such as egress/registry.npmjs.org")
	completes(c, "event", policy.EventKinds...)
	return c
}

// takes reports whether a line is to be shown.
func (f filter) takes(l *auditLine) bool {
	switch {
	case f.denied && l.Decision != "deny", f.agent != "" && f.agent != l.Agent, f.event != "" && f.event != l.Event:
		return false
	case f.host != "" && !fits(f.host, l.Host) && !fits(f.host, l.Address):
		return false
	}
	return f.rule == "" || fits(f.rule, l.Rule)
}

// fits compares with a pattern in which a star is any run of characters.
func fits(pattern, s string) bool {
	before, rest, star := strings.Cut(pattern, "*")
	if !star {
		return pattern == s
	}
	s, ok := strings.CutPrefix(s, before)
	for ok {
		if fits(rest, s) {
			return true
		}
		if s == "" {
			return false
		}
		s = s[1:]
	}
	return false
}

// watch prints until the gate ends.
func (env *environment) watch(asJSON bool, f filter) error {
	if f.event != "" && !slices.Contains(policy.EventKinds, f.event) {
		return exitError{code: exitUsage, err: fmt.Errorf("--event %q: write one of %s", f.event, strings.Join(policy.EventKinds, ", "))}
	}
	stream, err := control.Client{Path: env.settings.Control}.Open(context.Background(), "watch", nil)
	if err != nil {
		return whereItRuns(err)
	}
	defer stream.Close()
	p := env.paper()
	lines := bufio.NewScanner(stream)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var l auditLine
		if json.Unmarshal(lines.Bytes(), &l) != nil || !f.takes(&l) {
			continue
		}
		text := lines.Text()
		if !asJSON {
			text = p.paint(map[string]string{"deny": bad}[l.Decision], l.String())
		}
		if _, err := fmt.Fprintln(env.stdout, text); err != nil {
			return err
		}
	}
	return lines.Err()
}

// auditLine is what a person wants to see of one.
type auditLine struct {
	Time, Event, Agent, Exe, Method, Host, Path, Rule, Decision, Reason, Proto, Address string
	Port, Status, PID, Count                                                            int
	Duration                                                                            float64 `json:"duration_ms"`
}

// String is one line of at most a terminal's width for most decisions.
func (l auditLine) String() string {
	clock := l.Time
	if _, after, ok := strings.Cut(l.Time, "T"); ok && len(after) >= 8 {
		clock = after[:8]
	}
	words := []string{clock, fmt.Sprintf("%-5s", l.Decision), l.Event}
	add := func(text string, there bool) {
		if there {
			words = append(words, printable(text))
		}
	}
	add(l.Agent, l.Agent != "")
	add(l.Method, l.Method != "" && l.Event == "request")
	add(l.target(), l.target() != "")
	add(fmt.Sprint(l.Status), l.Status != 0)
	add(fmt.Sprintf("%.0f ms", l.Duration), l.Duration != 0)
	add("["+l.Rule+"]", l.Rule != "")
	add(l.Reason, l.Reason != "" && (l.Decision == "deny" || l.Rule == ""))
	add(fmt.Sprintf("(%d more times)", l.Count), l.Count > 1)
	add(fmt.Sprintf("(%s, pid %d)", l.Exe, l.PID), l.PID != 0)
	return strings.Join(words, " ")
}

func (l auditLine) target() string {
	host := l.Host
	if host == "" {
		host = l.Address
	}
	if host != "" && l.Port != 0 && l.Port != 443 {
		host = fmt.Sprintf("%s:%d", host, l.Port)
	}
	if l.Proto != "" {
		host = l.Proto + " " + host
	}
	return host + l.Path
}
