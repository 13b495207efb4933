package main

import (
	"errors"
	"fmt"
	"io"
	"net/url"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"exitgate/cmd/internal/control"
	"exitgate/cmd/internal/engine"

	"github.com/spf13/cobra"
)

// Exit codes of status.
const (
	exitDegraded   = 1
	exitNotRunning = 3
)

func newStatusCommand(env *environment) *cobra.Command {
	var asJSON bool
	var wait string
	c := &cobra.Command{
		Use:   "status [--json] [--wait ready|GENERATION]",
		Short: "what the running gate allows, holds and has refused",
		Example: "  exitgate status\n" +
			"  exitgate status --wait ready && exitgate status --json | jq .generation",
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error { return env.status(wait, asJSON) },
	}
	c.Flags().BoolVar(&asJSON, "json", false, "everything, for programs")
	c.Flags().StringVar(&wait, "wait", "", "return only when the gate is `ready`, or its policy has come to this generation")
	return c
}

// status prints and chooses the exit code: 0 ready, 1 degraded, 3 not running.
func (env *environment) status(wait string, asJSON bool) error {
	if _, err := strconv.ParseUint(wait, 10, 64); wait != "" && wait != "ready" && err != nil {
		return exitError{code: exitUsage, err: fmt.Errorf("--wait %q: write `ready` or the number of a generation", wait)}
	}
	var s engine.Status
	err := env.callWhenUp(wait != "", "status", url.Values{"wait": {wait}}, &s)
	if errors.Is(err, control.ErrNotRunning) {
		return exitError{code: exitNotRunning, err: err}
	}
	if err != nil {
		return err
	}
	if asJSON {
		err = env.printJSON(s)
	} else {
		err = printStatus(env.stdout, s)
	}
	if err == nil && s.State != "ready" {
		return exitError{code: exitDegraded}
	}
	return err
}

// startPoll is how often a command that waits for a gate to come up looks for it.
const startPoll = 20 * time.Millisecond

// callWhenUp calls, and where wait is set goes on trying until a gate answers: a script starts the gate and waits for
// it in the next line.
func (env *environment) callWhenUp(wait bool, name string, q url.Values, out any) error {
	for {
		err := env.call(name, q, out)
		if !wait || !errors.Is(err, control.ErrNotRunning) {
			return err
		}
		time.Sleep(startPoll)
	}
}

func printStatus(w io.Writer, s engine.Status) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintf(t, "%s\tgeneration %d, %s mode, up %s\n", strings.ToUpper(s.State), s.Generation, s.Mode, ago(s.Started))
	for _, why := range s.Why {
		fmt.Fprintf(t, "\t%s\n", why)
	}
	fmt.Fprintf(t, "policy\t%s (%.19s)\n", s.Policy, s.Digest)
	if r := s.Reload; r != nil {
		fmt.Fprintf(t, "last reload\t%s ago by %s: %s\n", ago(r.Time), r.Cause, outcome(r))
	}
	fmt.Fprintf(t, "proxy\tpid %d, %d restarts\n", s.Proxy.PID, s.Proxy.Restarts)
	for _, a := range s.Agents {
		fmt.Fprintf(t, "agent %s\tuid %d at http://%s, %d connections, %s in, %s out\n", a.Name, a.UID, a.Listen, a.Connections, size(a.BytesIn), size(a.BytesOut))
	}
	for _, r := range s.Routes {
		fmt.Fprintf(t, "route %s\t%s -> %s%s\n", r.Name, r.Path, r.Upstream, suffix(" with ", r.Credential))
	}
	for _, c := range s.Credentials {
		fmt.Fprintf(t, "credential %s\t%s from %s%s\n", c.Name, c.State, c.Source, suffix(": ", c.Why))
	}
	for _, h := range s.Hosts {
		fmt.Fprintf(t, "host %s\t%s%s\n", h.Host, addresses(h), suffix("; ", h.LastError))
	}
	fmt.Fprintf(t, "resolvers\t%s\n", strings.Join(s.Resolvers, " "))
	fmt.Fprintf(t, "denied packets\tagent %d, root %d, inbound %d\n", s.Denied["agent_denied"], s.Denied["root_denied"], s.Denied["inbound_denied"])
	for _, warning := range s.Warnings {
		fmt.Fprintf(t, "warning\t%s\n", warning)
	}
	return t.Flush()
}

func ago(t time.Time) string { return time.Since(t).Round(time.Second).String() }

func outcome(r *engine.ReloadResult) string {
	switch {
	case !r.OK:
		return "failed, the policy before it stays"
	case r.Unchanged:
		return "nothing had changed"
	}
	return fmt.Sprintf("%d changes widened, %d narrowed", len(r.Widens), len(r.Narrows))
}

func addresses(h engine.HostStatus) string {
	if len(h.Addresses) == 0 {
		return "no address yet"
	}
	var out []string
	for _, a := range h.Addresses {
		one := fmt.Sprintf("%s (%.0f s", a.Address, a.Lease)
		if a.Pins > 0 {
			one += fmt.Sprintf(", %d in use", a.Pins)
		}
		out = append(out, one+")")
	}
	return strings.Join(out, " ")
}

func suffix(before, s string) string {
	if s == "" {
		return ""
	}
	return before + s
}

func size(n uint64) string {
	switch {
	case n >= 1<<30:
		return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30))
	case n >= 1<<20:
		return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
	case n >= 1<<10:
		return fmt.Sprintf("%.1f KiB", float64(n)/(1<<10))
	}
	return fmt.Sprintf("%d B", n)
}
