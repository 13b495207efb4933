package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"exitgate/firewall"
	"exitgate/policy"

	"golang.org/x/sys/unix"
)

// checkFeatures tries what the fence needs of the kernel, without changing a thing.
func (env *environment) checkFeatures() (out []finding) {
	if k, err := firewall.OpenNetlink(); err != nil {
		out = append(out, finding{"high", "nf_tables cannot be programmed: " + err.Error(), "run with --cap-add NET_ADMIN, on a kernel with nf_tables (modprobe nf_tables)"})
	} else {
		k.Close()
		out = append(out, ok("nf_tables can be programmed"))
	}
	if env.running() != "" {
		return out // its packet log is nobody else's to open
	}
	log, err := firewall.OpenDenyLog()
	if err != nil {
		return append(out, finding{"info", "no packet log (NFLOG): refused packets are counted, and not named: " + err.Error(), "modprobe nfnetlink_log on the host"})
	}
	log.Close()
	return append(out, ok("refused packets can be logged (NFLOG)"))
}

// running is what the gate that runs here says of its state; "": none does.
func (env *environment) running() string {
	var s struct{ State string }
	if env.ask("status", nil, &s) != nil {
		return ""
	}
	return s.State
}

// checkFastOpen: data in a first packet reaches a listener before the fence has seen a connection. The fence refuses the
// option where an agent might use it; an agent's own listeners are not looked at by it.
func (env *environment) checkFastOpen(p *policy.Policy) []finding {
	n, err := env.number("proc/sys/net/ipv4/tcp_fastopen")
	if err != nil || n&(fastOpenNoCookieClient|fastOpenNoCookieServer) == 0 {
		return nil
	}
	f := finding{"info", fmt.Sprintf("TCP Fast Open works without cookies (tcp_fastopen is 0x%x): the fence refuses the option", n), "sysctl -w net.ipv4.tcp_fastopen=1"}
	for i := range p.Agents {
		if p.Agents[i].Loopback == policy.LoopbackOwn {
			f.Level = "warn"
			f.What = fmt.Sprintf("TCP Fast Open works without cookies (tcp_fastopen is 0x%x), and agent %q has `loopback: own`: data of a first packet could reach a listener that is not its own", n, p.Agents[i].Name)
			f.Mend += ", or `loopback: deny`"
		}
	}
	return []finding{f}
}

// Bits of net.ipv4.tcp_fastopen (ip-sysctl): data with the SYN without asking for a cookie, by clients and for servers.
const (
	fastOpenNoCookieClient = 0x4
	fastOpenNoCookieServer = 0x200
)

// surelyPast is a time before which no clock is right: on one that is, many certificates are not valid yet.
var surelyPast = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// checkClock: TLS and `expires` go by the clock. Whether it is right cannot be seen from here but for gross errors.
func (env *environment) checkClock() []finding {
	now := env.now().UTC()
	var t unix.Timex
	state, err := unix.Adjtimex(&t)
	switch {
	case now.Before(surelyPast):
		return []finding{{"high", "the clock says " + now.Format(time.RFC3339) + ": certificates are not valid yet", "set the host's clock"}}
	case err == nil && state == unix.TIME_ERROR:
		return []finding{{"info", "the clock says " + now.Format(time.RFC3339) + " and the kernel does not know it to be synchronised: TLS and `expires` go by it", "run an NTP client on the host"}}
	}
	return []finding{ok("the clock says %s", now.Format(time.RFC3339))}
}

// field is a line of /proc/self/status.
func (env *environment) field(name string) string {
	data, _ := os.ReadFile(filepath.Join("/", env.root, "proc/self/status"))
	for line := range strings.Lines(string(data)) {
		if v, found := strings.CutPrefix(line, name+":"); found {
			return strings.TrimSpace(v)
		}
	}
	return ""
}

// checkNamespaces looks at what the container's engine has put around us.
func (env *environment) checkNamespaces() (out []finding) {
	switch env.field("Seccomp") {
	case "0":
		out = append(out, finding{"info", "the container has no seccomp profile; the agent gets exitgate's own in any case", "leave out --security-opt seccomp=unconfined"})
	case "2":
		out = append(out, ok("the container has a seccomp profile"))
	}
	if m := strings.Fields(env.uidMap()); len(m) == 3 && (m[1] != "0" || m[2] != "4294967295") {
		out = append(out, ok("user namespace: root here is uid %s outside, %s uids are mapped", m[1], m[2]))
	} else if len(m) > 0 {
		out = append(out, ok("no user namespace: root here is the host's root, less its capabilities"))
	}
	if n, err := env.number("proc/sys/user/max_user_namespaces"); err == nil && n > 0 {
		out = append(out, ok("user namespaces can be made; the agent's seccomp filter refuses it them"))
	}
	return append(out, env.checkIPv6()...)
}

func (env *environment) uidMap() string {
	data, _ := os.ReadFile(filepath.Join("/", env.root, "proc/self/uid_map"))
	return string(data)
}

// checkIPv6 tells whether there is any; the fence holds it in either case.
func (env *environment) checkIPv6() []finding {
	n, err := env.number("proc/sys/net/ipv6/conf/all/disable_ipv6")
	switch {
	case err != nil:
		return []finding{ok("the kernel has no IPv6")}
	case n == 1:
		return []finding{ok("IPv6 is off here; its rules are in place and idle")}
	}
	return []finding{ok("IPv6 is on here, and fenced as IPv4 is")}
}
