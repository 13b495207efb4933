package main

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"exitgate/cmd/internal/engine"
	"exitgate/firewall"
)

// mostChanges bounds what is shown of a reload's diff.
const mostChanges = 6

// printStatus is status for people.
func (env *environment) printStatus(s engine.Status) {
	p := env.paper()
	colour := map[string]string{"ready": good, "degraded": bad}[s.State]
	if colour == "" {
		colour = warn
	}
	fmt.Fprintf(p.out, "%s generation %d, %s mode, up %s\n", p.paint(strong+";"+colour, fmt.Sprintf("%-*s", labelWidth-1, strings.ToUpper(s.State))), s.Generation, s.Mode, env.ago(s.Started))
	p.rows("", bad, s.Why)
	p.row("policy", "", fmt.Sprintf("%s (%.19s)", s.Policy, s.Digest))
	env.printReload(p, s.Reload)
	p.row("proxy", "", proxyLine(s.Proxy))
	for i, a := range s.Agents {
		p.row(first(i, "agents"), "", fmt.Sprintf("%s: uid %d at http://%s%s, %d connections, %s in, %s out", a.Name, a.UID, a.Listen, suffix(" and ", a.Socket), a.Connections, size(a.BytesIn), size(a.BytesOut)))
	}
	for i, r := range s.Routes {
		p.row(first(i, "routes"), "", fmt.Sprintf("%s: %s -> %s%s%s", r.Name, r.Path, r.Upstream, suffix(" with ", r.Credential), suffix(", until ", r.Expires)))
	}
	for i, c := range s.Credentials {
		line, colour := fmt.Sprintf("%s: %s from %s", c.Name, c.State, c.Source), ""
		if c.Age > 0 {
			line += fmt.Sprintf(", read %s ago", seconds(c.Age))
		}
		if c.State != "ok" {
			line, colour = line+suffix(": ", c.Why), bad
		}
		p.row(first(i, "credentials"), colour, line)
	}
	printHosts(p, s.Hosts)
	p.row("resolvers", "", strings.Join(s.Resolvers, " "))
	p.row("denied", "", fmt.Sprintf("packets: agent %d, root %d, inbound %d", s.Denied[firewall.CounterAgent], s.Denied[firewall.CounterRoot], s.Denied[firewall.CounterInbound]))
	p.row("sets", "", counts(s.Sets))
	if s.Drift.Repairs+s.Drift.Failures > 0 {
		p.row("drift", warn, fmt.Sprintf("%d foreign changes undone, %d not: %s", s.Drift.Repairs, s.Drift.Failures, s.Drift.What))
	}
	p.rows("hardening", warn, s.Hardening)
	p.rows("warnings", warn, slices.DeleteFunc(s.Warnings, func(w string) bool { return slices.Contains(s.Hardening, w) }))
}

// first is the label of the first row of several.
func first(i int, label string) string {
	if i > 0 {
		return ""
	}
	return label
}

func (env *environment) printReload(p paper, r *engine.ReloadResult) {
	if r == nil {
		return
	}
	head := fmt.Sprintf("%s ago by %s: ", env.ago(r.Time), r.Cause)
	switch {
	case !r.OK:
		p.row("reload", bad, head+"failed, the policy before it stays")
		p.rows("", bad, r.Errors[:min(len(r.Errors), mostChanges)])
		return
	case r.Unchanged:
		p.row("reload", "", head+"nothing had changed")
		return
	}
	p.row("reload", "", fmt.Sprintf("%s%d changes widened, %d narrowed", head, len(r.Widens), len(r.Narrows)))
	changes := append(prefixed("+ ", r.Widens), prefixed("- ", r.Narrows)...)
	p.rows("", "", changes[:min(len(changes), mostChanges)])
	if more := len(changes) - mostChanges; more > 0 {
		p.row("", faint, fmt.Sprintf("and %d more", more))
	}
}

func prefixed(mark string, lines []string) (out []string) {
	for _, l := range lines {
		out = append(out, mark+strings.TrimPrefix(l, mark))
	}
	return out
}

func proxyLine(s engine.ProxyStatus) string {
	if s.PID == 0 {
		return fmt.Sprintf("being started, %d restarts%s", s.Restarts, suffix(", the last one ended: ", s.LastEnd))
	}
	return fmt.Sprintf("pid %d, %d restarts%s", s.PID, s.Restarts, suffix(", the last one ended: ", s.LastEnd))
}

// printHosts has a line for each host and one for each further address.
func printHosts(p paper, hosts []engine.HostStatus) {
	var rows [][]string
	var colours []string
	for _, h := range hosts {
		name := h.Host
		if h.Root {
			name += " (root)"
		}
		if len(h.Addresses) == 0 {
			rows, colours = append(rows, []string{name, "no address yet"}), append(colours, "")
		}
		for _, a := range h.Addresses {
			use := ""
			if a.Pins > 0 {
				use = strconv.Itoa(a.Pins) + " in use"
			}
			rows, colours = append(rows, []string{name, a.Address, fmt.Sprintf("%s left", seconds(a.Lease)), use}), append(colours, "")
			name = ""
		}
		if h.LastError != "" {
			rows, colours = append(rows, []string{"  " + h.LastError}), append(colours, warn)
		}
	}
	var whole [][]string // texts of one cell are not aligned with the others
	for _, r := range rows {
		if len(r) > 1 {
			whole = append(whole, r)
		}
	}
	aligned := table(whole)
	for i, r := range rows {
		line := r[0]
		if len(r) > 1 {
			line, aligned = aligned[0], aligned[1:]
		}
		p.row(first(i, "hosts"), colours[i], line)
	}
}

func counts(of map[string]int) string {
	var out []string
	for _, name := range slices.Sorted(maps.Keys(of)) {
		if of[name] > 0 {
			out = append(out, fmt.Sprintf("%s %d", name, of[name]))
		}
	}
	if len(out) == 0 {
		return "all empty"
	}
	return strings.Join(out, ", ")
}

func (env *environment) ago(t time.Time) string { return env.now().Sub(t).Round(time.Second).String() }

func seconds(s float64) string {
	return (time.Duration(s * float64(time.Second))).Round(time.Second).String()
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
