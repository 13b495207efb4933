package main

import (
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"exitgate/cmd/internal/secrets"
	"exitgate/cmd/internal/supervise"
	"exitgate/policy"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// finding is one thing that doctor looked at.
type finding struct {
	Level string `json:"level"` // ok, info, warn, high
	What  string `json:"what"`
	Mend  string `json:"mend,omitempty"`
}

func newDoctorCommand(env *environment) *cobra.Command {
	var asJSON bool
	var manifest string
	c := &cobra.Command{
		Use:   "doctor [--manifest FILE] [--json]",
		Short: "what this kernel, container and policy lack, each with its mend",
		Long: "Looks at the kernel's features and clock, this container's capabilities, flags and namespaces, its resolvers, IPv6, the\n" +
			"policy and its credentials, setuid programs, sockets of root's that listen, and limits. Each finding is ok, info, warn or\n" +
			"high, with what mends it. The exit code is 1 when there is one that is high: it weakens the fence, or keeps it from\n" +
			"standing. With --manifest it looks at a Kubernetes manifest instead: whether the containers beside exitgate's hold a\n" +
			"capability or a secret, and whether one could start before the fence.",
		Example: "  docker exec NAME exitgate doctor\n  docker run --rm --cap-add NET_ADMIN IMAGE exitgate doctor\n  exitgate doctor --manifest pod.yaml",
		Args:    cobra.NoArgs,
		RunE:    func(*cobra.Command, []string) error { return env.doctor(manifest, asJSON) },
	}
	c.Flags().StringVar(&manifest, "manifest", "", "look at the pods of a Kubernetes manifest `file`, and not at this machine")
	c.Flags().BoolVar(&asJSON, "json", false, "the findings, for programs")
	return c
}

// examine looks at a manifest, or without one at this very place.
func (env *environment) examine(manifest string) (all []finding, err error) {
	if manifest != "" {
		return checkManifest(manifest)
	}
	for _, look := range []func(*environment) []finding{
		(*environment).checkKernel, (*environment).checkClock, (*environment).checkPrivileges, (*environment).checkNamespaces,
		(*environment).checkNetwork, (*environment).checkPolicy, (*environment).checkSetuid, (*environment).checkListeners, (*environment).checkLimits,
	} {
		all = append(all, look(env)...)
	}
	return all, nil
}

func (env *environment) doctor(manifest string, asJSON bool) error {
	all, err := env.examine(manifest)
	if err != nil {
		return err
	}
	if asJSON {
		if err := env.printJSON(all); err != nil {
			return err
		}
	} else if err := env.printFindings(all); err != nil {
		return err
	}
	if slices.ContainsFunc(all, func(f finding) bool { return f.Level == "high" }) {
		return exitError{code: exitNo}
	}
	return nil
}

func (env *environment) printFindings(all []finding) error {
	t := tabwriter.NewWriter(env.stdout, 0, 8, 2, ' ', 0)
	for _, f := range all {
		fmt.Fprintf(t, "%s\t%s\n", f.Level, printable(f.What))
		if f.Mend != "" {
			fmt.Fprintf(t, "\t-> %s\n", printable(f.Mend))
		}
	}
	return t.Flush()
}

func ok(format string, args ...any) finding {
	return finding{Level: "ok", What: fmt.Sprintf(format, args...)}
}

// oldest is the kernel whose meta skuid is read in the namespace's own user namespace.
var oldest = [2]int{5, 10}

func (env *environment) checkKernel() []finding {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return []finding{{"warn", "the kernel's version cannot be read", "allow uname(2) in the seccomp profile"}}
	}
	release := unix.ByteSliceToString(u.Release[:])
	var major, minor int
	_, _ = fmt.Sscanf(release, "%d.%d", &major, &minor)
	out := []finding{ok("Linux %s", release)}
	if major < oldest[0] || major == oldest[0] && minor < oldest[1] {
		out[0] = finding{"high", "Linux " + release + " is too old: uids in nftables rules are not read in the container's user namespace", "use Linux 5.10 or later"}
	}
	return append(out, env.checkFeatures()...)
}

func (env *environment) number(path string) (int, error) {
	data, err := os.ReadFile(filepath.Join("/", env.root, path))
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(data)))
}

func (env *environment) checkPrivileges() []finding {
	if os.Geteuid() != 0 {
		return []finding{{"high", "this is not root", "run the container, or this command, as root: no --user, no USER in the image"}}
	}
	facts, err := supervise.Probe()
	if err != nil {
		return []finding{{"warn", "capabilities cannot be read: " + err.Error(), "mount /proc"}}
	}
	var out []finding
	for _, gap := range facts.Gaps() {
		what, mend, _ := strings.Cut(gap, "; ")
		level := "warn"
		if strings.Contains(gap, "setuid programs") || strings.Contains(gap, "cannot be taken") || strings.Contains(gap, "no seccomp") {
			level = "high"
		}
		if strings.Contains(gap, "Landlock") {
			level = "info"
		}
		out = append(out, finding{level, what, mend})
	}
	if facts.NoNewPrivs {
		out = append(out, ok("no_new_privs is set for everything in this container"))
	}
	return out
}

func (env *environment) checkNetwork() []finding {
	if refuseHostNetwork(false) != nil {
		return []finding{{"high", "this is the host's own network namespace", "use the engine's default network, or `exitgate run --isolate`"}}
	}
	data, err := os.ReadFile(filepath.Join("/", env.root, "etc/resolv.conf"))
	if err != nil {
		return []finding{{"warn", "/etc/resolv.conf cannot be read: names will not resolve", "set dns.servers in the policy"}}
	}
	var out []finding
	for line := range strings.Lines(string(data)) {
		words := strings.Fields(line)
		switch {
		case len(words) == 2 && words[0] == "nameserver":
			if a, err := netip.ParseAddr(words[1]); err == nil {
				out = append(out, resolverFinding(a))
			}
		case strings.Contains(line, "ExtServers:"):
			_, servers, _ := strings.Cut(line, "ExtServers:")
			out = append(out, engineResolvers(strings.Fields(strings.Trim(strings.TrimSpace(servers), "[]")))...)
		}
	}
	p, err := env.loadPolicy(env.settings.Policy)
	if gap := resolverGap(data); gap != "" && (err != nil || len(p.DNS.Servers) == 0) {
		what, mend, _ := strings.Cut(gap, "; ")
		out = append(out, finding{"warn", what, mend})
	}
	if len(out) == 0 {
		out = []finding{{"warn", "/etc/resolv.conf names no server", "set dns.servers in the policy"}}
	}
	return out
}

// resolverGap is what a resolv.conf leaves out: Docker's own resolver asks further from inside the container's namespace, as
// root, and engines before 26 do not write down whom (20.10 asks all servers so).
func resolverGap(resolvConf []byte) string {
	conf := string(resolvConf)
	if !strings.Contains(conf, "nameserver 127.0.0.11") || strings.Contains(conf, "ExtServers:") {
		return ""
	}
	return "the engine's resolver does not say which servers it asks from this namespace, and the fence refuses them; " +
		"name it and them in the policy: `dns.servers: [127.0.0.11, ADDRESS]`"
}

// engineResolvers are those that the engine's own resolver asks. host(...) it asks from the host's namespace, the others
// from inside this one, as root: the fence lets exactly those through.
func engineResolvers(servers []string) (out []finding) {
	for _, s := range servers {
		if strings.HasPrefix(s, "host(") {
			out = append(out, ok("the engine asks %s outside this namespace", s))
		} else {
			out = append(out, ok("the engine asks %s from inside this namespace: the fence lets root ask it, and the agent not", s))
		}
	}
	return out
}

func resolverFinding(a netip.Addr) finding {
	switch {
	case a == netip.MustParseAddr("127.0.0.11"):
		return ok("resolver %s (the container engine's own); the agent is kept from it", a)
	case a.IsLoopback():
		return finding{"warn", "resolver " + a.String() + " is on loopback: in a container nobody answers there", "set dns.servers in the policy, or `--dns`"}
	}
	return ok("resolver %s", a)
}

// checkPolicy looks at the policy and at the files of its credentials as the start would.
func (env *environment) checkPolicy() []finding {
	p, err := env.loadPolicy(env.settings.Policy)
	if err != nil {
		first, _, _ := strings.Cut(err.Error(), "\n")
		return []finding{{"warn", "no policy to look at: " + first, "`exitgate check` tells more"}}
	}
	out := []finding{ok("policy %s", env.settings.Policy)}
	if err := secrets.Alterable(env.root, filepath.Join(env.root, env.settings.Policy), p); err != nil {
		what, mend, _ := strings.Cut(err.Error(), "; ")
		out[0] = finding{"high", "the policy is within an agent's reach: " + what, mend}
	}
	for _, w := range append(p.Warnings(), p.Expired(env.now())...) {
		out = append(out, finding{"warn", w.Position.String() + ": " + w.What, w.Mend})
	}
	for _, c := range p.Credentials {
		if c.From.Scheme == "env" {
			out = append(out, finding{"high", fmt.Sprintf("credential %q is in the container's environment: the engine shows it to every later exec", c.Name),
				"give it as a file: `from: file:/run/secrets/" + c.Name + "`"})
		}
	}
	out = append(out, env.checkFastOpen(p)...)
	out = append(out, env.checkEnvironment(p)...)
	files := &policy.Policy{File: p.File, Agents: p.Agents}
	for _, c := range p.Credentials {
		if c.From.Scheme == "file" {
			files.Credentials = append(files.Credentials, c)
		}
	}
	if _, err := secrets.New(secrets.Options{Root: env.root}).Load(files); err != nil {
		for line := range strings.SplitSeq(err.Error(), "\n") {
			what, mend, _ := strings.Cut(line, "; ")
			out = append(out, finding{"high", what, mend})
		}
	} else if len(files.Credentials) > 0 {
		out = append(out, ok("credential files: %d, none within an agent's reach", len(files.Credentials)))
	}
	return out
}

// maxSetuid bounds the list of names; the count is of all.
const maxSetuid = 8

// setuidTime bounds the search for setuid programs; an image's takes 0.2 s.
const setuidTime = 5 * time.Second

// checkSetuid counts the programs that would give an agent other rights, on the image's own file system.
func (env *environment) checkSetuid() []finding {
	names, whole := setuidBelow(filepath.Join("/", env.root), env.now().Add(setuidTime), env.now)
	if !whole {
		return append(env.setuidFindings(names), finding{"info", fmt.Sprintf("the search for setuid programs ended after %v", setuidTime), "find / -xdev -perm /6000"})
	}
	return env.setuidFindings(names)
}

// setuidBelow searches one file system, and /usr first. It is not whole when the time ran out.
func setuidBelow(root string, until time.Time, now func() time.Time) (names []string, whole bool) {
	var home unix.Stat_t
	if unix.Stat(root, &home) != nil {
		return nil, false
	}
	usr := filepath.Join(root, "usr")
	for _, top := range []string{usr, root} {
		err := filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
			var st unix.Stat_t
			switch {
			case err != nil:
				return nil // what root cannot look at here, an agent cannot run either
			case !d.IsDir() && !d.Type().IsRegular() || unix.Lstat(path, &st) != nil:
				return nil
			case d.IsDir() && (st.Dev != home.Dev || path == usr && top == root):
				return filepath.SkipDir
			case d.IsDir() && now().After(until):
				return filepath.SkipAll
			case d.IsDir():
				return nil
			}
			n, _ := unix.Lgetxattr(path, "security.capability", nil)
			if st.Mode&unix.S_ISUID != 0 || st.Mode&(unix.S_ISGID|unix.S_IXGRP) == unix.S_ISGID|unix.S_IXGRP || n > 0 {
				names = append(names, path)
			}
			return nil
		})
		if err != nil || now().After(until) {
			return names, false
		}
	}
	return names, true
}

func (env *environment) setuidFindings(names []string) []finding {
	if len(names) == 0 {
		return []finding{ok("no setuid, setgid or file-capability programs")}
	}
	level := "info"
	if on, err := supervise.NoNewPrivs(); err == nil && !on {
		level = "warn"
	}
	what := fmt.Sprintf("%d setuid, setgid or file-capability programs: %s", len(names), strings.Join(names[:min(len(names), maxSetuid)], " "))
	return []finding{{level, what, "--security-opt no-new-privileges takes their effect away; `exitgate run` does so for the agent in any case"}}
}
