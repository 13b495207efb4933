package main

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"exitgate/cmd/internal/supervise"
	"exitgate/policy"

	"golang.org/x/sys/unix"
)

// namedLikeSecret is how variables are called that programs read a credential from.
var namedLikeSecret = regexp.MustCompile(`(?i)(^|_)(API_?KEY|ACCESS_?KEY|SECRET|TOKEN|PASSWORD|PASSWD|CREDENTIALS?)(_|$)`)

// checkEnvironment looks for secrets in the container's environment, which the engine hands to every later exec. What
// the policy names is taken out of the agent's; what it does not name is the agent's too.
func (env *environment) checkEnvironment(p *policy.Policy) (out []finding) {
	for _, kv := range env.environ() {
		name, value, _ := strings.Cut(kv, "=")
		named := slices.ContainsFunc(p.Credentials, func(c policy.Credential) bool { return c.From.Scheme == "env" && c.From.Value == name })
		if value != "" && !named && namedLikeSecret.MatchString(name) {
			out = append(out, finding{"warn", "the variable " + name + " is in this environment: if it holds a secret, the agent and every later exec have it",
				"take it out of the container's configuration, and give the secret to a route as `from: file:...`"})
		}
	}
	return out
}

// checkListeners names sockets of root's that listen: TCP, from which only the fence keeps the agent, and unix, from which
// only permissions do.
func (env *environment) checkListeners() []finding {
	p, _ := env.loadPolicy(env.settings.Policy)
	if p == nil {
		p = &policy.Policy{}
	}
	return append(env.tcpListeners(p), env.unixListeners(p)...)
}

func (env *environment) tcpListeners(p *policy.Policy) (out []finding) {
	var seen []uint64
	for _, file := range []string{"proc/net/tcp", "proc/net/tcp6"} {
		data, err := os.ReadFile(filepath.Join("/", env.root, file))
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(data)) {
			f := strings.Fields(line)
			if len(f) < 8 || f[3] != "0A" || f[7] != "0" {
				continue
			}
			_, hexPort, _ := strings.Cut(f[1], ":")
			port, err := strconv.ParseUint(hexPort, 16, 16)
			ours := slices.ContainsFunc(p.Agents, func(a policy.Agent) bool { return uint64(a.Listen.Port()) == port })
			if err != nil || ours || slices.Contains(seen, port) {
				continue
			}
			seen = append(seen, port)
			out = append(out, finding{"info", fmt.Sprintf("root listens on TCP port %d: the fence keeps the agent from it, nothing else does", port), "stop what need not listen there"})
		}
	}
	return out
}

// acceptsConnections is __SO_ACCEPTCON in the flags of /proc/net/unix.
const acceptsConnections = 1 << 16

// unixListeners are those by a path that an agent may connect to.
func (env *environment) unixListeners(p *policy.Policy) (out []finding) {
	data, _ := os.ReadFile(filepath.Join("/", env.root, "proc/net/unix"))
	var seen []string
	for line := range strings.Lines(string(data)) {
		f := strings.Fields(line)
		if len(f) < 8 || !strings.HasPrefix(f[7], "/") || slices.Contains(seen, f[7]) {
			continue
		}
		flags, err := strconv.ParseUint(f[3], 16, 32)
		if err != nil || flags&acceptsConnections == 0 || socketOwner(p, f[7]) != nil {
			continue
		}
		seen = append(seen, f[7])
		for i := range p.Agents {
			if a := &p.Agents[i]; rootsOwn(f[7]) && accessAs(env.identity(a), f[7]) == nil {
				out = append(out, finding{"warn", fmt.Sprintf("agent %q may connect to root's socket %s: the fence has no rule for a path", a.Name, f[7]),
					"chmod 0600, or a directory that the agent may not enter, or `exitgate run --isolate`"})
			}
		}
	}
	return out
}

func rootsOwn(path string) bool {
	var st unix.Stat_t
	return unix.Stat(path, &st) == nil && st.Uid == 0
}

func (env *environment) identity(a *policy.Agent) supervise.Identity {
	return (&gate{env: env}).identity(a)
}

// fewFiles is too little: two descriptors for each connection of an agent.
const fewFiles = 4096

func (env *environment) checkLimits() (out []finding) {
	var files, processes unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &files) == nil {
		if files.Max < fewFiles {
			out = append(out, finding{"warn", fmt.Sprintf("at most %d open files: two for each connection of an agent", files.Max), "--ulimit nofile=65536"})
		} else {
			out = append(out, ok("open files: at most %d", files.Max))
		}
	}
	if unix.Getrlimit(unix.RLIMIT_NPROC, &processes) == nil && env.pidsMax() == "max" && processes.Max == unix.RLIM_INFINITY {
		out = append(out, finding{"info", "no limit of processes: an agent can start as many as it likes", "--pids-limit 4096"})
	}
	return out
}

// pidsMax is the limit of the container's control group; "" where it cannot be read.
func (env *environment) pidsMax() string {
	data, _ := os.ReadFile(filepath.Join("/", env.root, "sys/fs/cgroup/pids.max"))
	return strings.TrimSpace(string(data))
}
