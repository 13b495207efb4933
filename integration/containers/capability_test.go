package containers

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"exitgate/integration/prober"

	"golang.org/x/sys/unix"
)

// TestLeastCapabilities: the set that the README names is enough (every other test runs with it), and each of it is missed.
func TestLeastCapabilities(t *testing.T) {
	t.Parallel()
	e := needs(t, "docker")
	p := somewhere(t)
	_, mounts := e.files(t, p.policy())
	without := func(missing string, command ...string) output {
		t.Helper()
		have := slices.DeleteFunc(slices.Clone(least), func(c string) bool { return c == missing })
		o, err := e.client(nil, e.arguments(slices.Concat(with(have...), mounts, []string{"--security-opt", "no-new-privileges", "--rm"}), command)...)
		if err != nil {
			t.Fatal(err)
		}
		return o
	}
	if o := without("none", "exitgate", "run", "--", "sh", "-c", "echo agent"); o.code != 0 || o.stdout != "agent\n" {
		t.Errorf("with all of them: %v", o)
	}
	for _, missing := range []string{"NET_ADMIN", "SETUID", "SETGID"} {
		o := without(missing, "exitgate", "run", "--", "sh", "-c", "echo agent")
		if o.code != 125 || o.stdout != "" || !strings.Contains(o.stderr, "--cap-add "+missing) {
			t.Errorf("without %s: %v; want exit 125, no agent, and what to add", missing, o)
		}
	}
	for _, missing := range []string{"SETPCAP", "KILL"} {
		c := e.start(t, slices.Concat(with(slices.DeleteFunc(slices.Clone(least), func(c string) bool { return c == missing })...), mounts,
			[]string{"--security-opt", "no-new-privileges"}), "exitgate", "run", "--", "sleep", "1000")
		c.ready()
		for _, command := range []string{"status", "doctor"} {
			if o := c.exec("exitgate", command); !strings.Contains(flat(o.stdout), "--cap-add "+missing) {
				t.Errorf("%s without %s: %v; want what to add", command, missing, o)
			}
		}
	}
}

// TestTerminalNeedsChown: with a terminal, CHOWN lets the agent open it again by name.
func TestTerminalNeedsChown(t *testing.T) {
	t.Parallel()
	e := needs(t, "docker")
	_, mounts := e.files(t, somewhere(t).policy())
	for _, c := range []struct {
		add  []string
		code int
	}{{nil, 1}, {[]string{"CHOWN"}, 0}} {
		o, err := e.client(nil, e.arguments(slices.Concat(with(append(c.add, least...)...), mounts, []string{"--rm", "-t"}),
			[]string{"exitgate", "run", "--", "sh", "-c", "echo reopened >/dev/stderr"})...)
		if err != nil || o.code != c.code || strings.Contains(o.stdout, "reopened\r\n") != (c.code == 0) {
			t.Errorf("with %q besides: %v %v; want exit %d", c.add, o, err, c.code)
		}
	}
}

// setuid runs the image's setuid prober, which tells its effective uid.
var setuid = []string{"setuid-probe", "serve"}

func effectiveUID(r prober.Result) string {
	if r.Self == nil {
		return r.String()
	}
	return strings.Fields(r.Self.Status["Uid"])[1]
}

// TestSetuidPrograms: the engine's exec honours them without no-new-privileges, and doctor says so; exitgate exec never does.
func TestSetuidPrograms(t *testing.T) {
	t.Parallel()
	e := needs(t, "docker")
	policy := somewhere(t).policy()
	self := prober.Probe{Op: "self"}
	open := e.start(t, nil, "sleep", "1000")
	if got := effectiveUID(open.through([]string{"-u", "1000"}, setuid, self)[0]); got != "0" {
		t.Fatalf("control: a setuid program runs as uid %s; want 0", got)
	}
	_, mounts := e.files(t, policy)
	loose := e.start(t, append(with(least...), mounts...), "exitgate", "run", "--", "sleep", "1000")
	loose.ready()
	tight := e.gate(t, policy)
	for _, c := range []struct {
		*container
		name, exec string
		doctor     int
	}{{loose, "without no-new-privileges", "0", 1}, {tight, "with no-new-privileges", "1000", 0}} {
		if got := effectiveUID(c.through([]string{"-u", "1000"}, setuid, self)[0]); got != c.exec {
			t.Errorf("%s, the engine's exec: uid %s; want %s", c.name, got, c.exec)
		}
		if got := effectiveUID(c.through(nil, append([]string{"exitgate", "exec", "--"}, setuid...), self)[0]); got != "1000" {
			t.Errorf("%s, exitgate exec: uid %s; want 1000", c.name, got)
		}
		if o := c.container.exec("exitgate", "doctor"); o.code != c.doctor || !strings.Contains(flat(o.stdout), "--security-opt no-new-privileges") {
			t.Errorf("%s, doctor: %v; want exit %d", c.name, o, c.doctor)
		}
	}
}

// TestEngineProfile: nothing in this package turns the engine's own seccomp profile off, and the gate and its agent run under it.
func TestEngineProfile(t *testing.T) {
	each(t, everyEngine, func(t *testing.T, e *engine) {
		if got := e.open(t, nil, prober.Probe{Op: "self"})[0]; got.Self == nil || got.Self.Status["Seccomp"] != "2" {
			t.Fatalf("control: the engine runs a container without its profile: %+v", got.Self)
		}
		c := e.gate(t, somewhere(t).policy())
		o := c.exec("grep", "^Seccomp:", "/proc/1/status")
		if flat(o.stdout) != "Seccomp: 2" {
			t.Errorf("PID 1: %v", o)
		}
		self := c.through(nil, []string{"exitgate", "exec", "--", "probe", "serve"}, prober.Probe{Op: "self"})[0].Self
		for field, want := range map[string]string{"CapEff": zero, "CapPrm": zero, "CapInh": zero, "CapBnd": zero, "CapAmb": zero, "NoNewPrivs": "1", "Seccomp": "2", "Groups": ""} {
			if got := self.Status[field]; got != want {
				t.Errorf("the agent's %s is %q; want %q", field, got, want)
			}
		}
	})
}

const zero = "0000000000000000"

// TestSecrets: root's own key is used and kept from the agent; a key that the agent could read is refused.
func TestSecrets(t *testing.T) {
	each(t, []string{"docker", "podman"}, func(t *testing.T, e *engine) {
		p := somewhere(t)
		c := e.gate(t, p.policy())
		rs := c.as("1000", prober.Probe{Op: "read", Address: "/run/secrets/api"}, prober.Probe{Op: "read", Address: "/proc/1/environ"}, get("/reflect"))
		if rs[0].Errno != "EACCES" || rs[1].OK() {
			t.Errorf("the agent reads the key: %s; and PID 1's environment: %s", rs[0], rs[1])
		}
		p.wantCall(t, rs[2])
		if strings.Contains(string(rs[2].Data), secret) || strings.Contains(c.logs(), secret) {
			t.Error("the key is in what the upstream's answer echoes, or in the log")
		}
		for _, k := range []struct {
			mode os.FileMode
			uid  int
		}{{0o444, 0}, {0o400, 1000}} {
			dir, mounts := e.files(t, p.policy())
			if err := os.Chmod(dir+"/key", k.mode); err != nil {
				t.Fatal(err)
			}
			if err := os.Chown(dir+"/key", k.uid, k.uid); err != nil {
				t.Fatal(err)
			}
			o, err := e.client(nil, e.arguments(slices.Concat(usual(), mounts, []string{"--rm"}), []string{"exitgate", "run", "--", "sh", "-c", "echo agent"})...)
			if err != nil || o.code != 125 || o.stdout != "" || !strings.Contains(o.stderr, "/run/secrets/api") {
				t.Errorf("a key with mode %o of uid %d: %v %v; want exit 125 and no agent", k.mode, k.uid, o, err)
			}
		}
	})
}

// TestNotRoot: an engine that gives NET_ADMIN to another uid makes no root of it.
func TestNotRoot(t *testing.T) {
	each(t, []string{"docker", "podman"}, func(t *testing.T, e *engine) {
		_, mounts := e.files(t, somewhere(t).policy())
		o, err := e.client(nil, e.arguments(slices.Concat(usual(), mounts, []string{"--rm", "-u", "1000"}), []string{"exitgate", "run", "--", "sh", "-c", "echo agent"})...)
		if err != nil || o.code != 125 || o.stdout != "" || !strings.Contains(o.stderr, "needs root") {
			t.Errorf("%v %v; want exit 125 and no agent", o, err)
		}
	})
}

// TestHostNetworkIsRefused: in the machine's own network namespace, where the fence would cut off everybody. The container has no
// NET_ADMIN, so that a failure of this test cuts off nobody either.
func TestHostNetworkIsRefused(t *testing.T) {
	t.Parallel()
	e := needs(t, "podman")
	_, mounts := e.files(t, somewhere(t).policy())
	run := func(flags ...string) output {
		t.Helper()
		o, err := e.client(nil, e.arguments(slices.Concat(with("SETUID", "SETGID", "SETPCAP", "KILL"), mounts, []string{"--rm"}, flags), []string{"exitgate", "run", "--", "sh", "-c", "echo agent"})...)
		if err != nil {
			t.Fatal(err)
		}
		return o
	}
	for _, c := range []struct{ flags, says []string }{
		{[]string{"--network", "none"}, []string{"--cap-add NET_ADMIN"}}, // the control: another namespace is not refused for being the host's
		{[]string{"--network", "ns:" + machineNet}, []string{"host's own network namespace", "--network host"}},
	} {
		o := run(c.flags...)
		if o.code != 125 || o.stdout != "" || !slices.ContainsFunc(c.says, func(s string) bool { return strings.Contains(o.stderr, s) }) {
			t.Errorf("%q: %v; want exit 125, no agent, and %q", c.flags, o, c.says)
		}
	}
}

// machineNet is the machine's own network namespace, as a file.
const machineNet = "/run/rig/machine-net"

// machineNetVar names the descriptor by which it comes onto the stage.
const machineNetVar = "EXITGATE_CONTAINERS_NET"

// keepMachineNet opens the machine's network namespace for the processes to come, which cannot see it by /proc any more.
func keepMachineNet() error {
	if os.Getenv(machineNetVar) != "" {
		return nil // this is PID 1 of the stage already
	}
	fd, err := unix.Open("/proc/self/ns/net", unix.O_RDONLY, 0) // not close-on-exec: it is to be inherited
	if err != nil {
		return fmt.Errorf("open the machine's network namespace: %w", err)
	}
	return os.Setenv(machineNetVar, fmt.Sprint(fd))
}

// showMachineNet makes a file of it.
func showMachineNet() error {
	var fd int
	if _, err := fmt.Sscan(os.Getenv(machineNetVar), &fd); err != nil {
		return fmt.Errorf("%s: %w", machineNetVar, err)
	}
	unix.CloseOnExec(fd)
	if err := os.WriteFile(machineNet, nil, 0o600); err != nil {
		return err
	}
	if err := unix.Mount(fmt.Sprintf("/proc/self/fd/%d", fd), machineNet, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount the machine's network namespace: %w", err)
	}
	return nil
}
