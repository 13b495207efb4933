package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"exitgate/cmd/internal/control"

	"github.com/spf13/cobra"
)

func newWatchCommand(env *environment) *cobra.Command {
	var asJSON, denied bool
	c := &cobra.Command{
		Use:   "watch [--denied] [--json]",
		Short: "decisions as they happen, one line each",
		Example: "  exitgate watch --denied\n" +
			"  exitgate watch --json | jq 'select(.event==\"connect\")'",
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error { return env.watch(asJSON, denied) },
	}
	c.Flags().BoolVar(&asJSON, "json", false, "the audit lines as they are written")
	c.Flags().BoolVar(&denied, "denied", false, "only what was denied")
	return c
}

// watch prints until the gate ends.
func (env *environment) watch(asJSON, denied bool) error {
	stream, err := control.Client{Path: env.settings.Control}.Open(context.Background(), "watch", nil)
	if err != nil {
		return whereItRuns(err)
	}
	defer stream.Close()
	lines := bufio.NewScanner(stream)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var l auditLine
		if json.Unmarshal(lines.Bytes(), &l) != nil || denied && l.Decision != "deny" {
			continue
		}
		text := lines.Text()
		if !asJSON {
			text = l.String()
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
	Port, Status, PID                                                                   int
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
