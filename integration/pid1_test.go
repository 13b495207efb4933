package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"exitgate/integration/prober"
	"exitgate/integration/rig"

	"golang.org/x/sys/unix"
)

// nothing is a policy that allows nothing.
const nothing = "version: 1\n"

// running makes the box run these arguments of the binary.
func running(args ...string) func(*rig.Config) {
	return func(c *rig.Config) { c.Args = args }
}

// script makes the agent a shell script.
func script(text string) func(*rig.Config) { return running("run", "--", "/bin/sh", "-c", text) }

func env(kv ...string) func(*rig.Config) {
	return func(c *rig.Config) { c.Env = append(c.Env, kv...) }
}

// code waits for PID 1's end.
func (g *gate) code() int {
	g.t.Helper()
	code, err := g.Wait(patience)
	if err != nil {
		g.t.Fatal(err)
	}
	return code
}

func TestExitCodes(t *testing.T) {
	t.Parallel()
	w := world(t)
	for _, c := range []struct {
		name string
		args []string
		want int
	}{
		{"success", []string{"/bin/true"}, 0},
		{"failure", []string{"/bin/false"}, 1},
		{"any code", []string{"/bin/sh", "-c", "exit 42"}, 42},
		{"255", []string{"/bin/sh", "-c", "exit 255"}, 255},
		{"by TERM", []string{"/bin/sh", "-c", "kill -TERM $$"}, 143},
		{"by KILL", []string{"/bin/sh", "-c", "kill -KILL $$"}, 137},
		{"by SEGV", []string{"/bin/sh", "-c", "kill -SEGV $$"}, 139},
		{"not found", []string{"/no/such/command"}, 127},
		{"not found in PATH", []string{"no-such-command"}, 127},
		{"not executable", []string{"/etc/passwd"}, 126},
		{"a directory", []string{"/etc"}, 126},
		{"found in PATH", []string{"true"}, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			g := start(t, w, nothing, running(append([]string{"run", "--"}, c.args...)...))
			if code := g.code(); code != c.want {
				t.Errorf("exit %d, want %d", code, c.want)
			}
			if c.want == 126 || c.want == 127 {
				if msg := g.Stderr.String(); !strings.Contains(msg, c.args[0]) {
					t.Errorf("it does not say what it could not run: %q", msg)
				}
			}
		})
	}
}

// TestAgentIdentity: what the agent is made of, read from its first instruction on.
func TestAgentIdentity(t *testing.T) {
	t.Parallel()
	w := world(t)
	g := start(t, w, nothing, script("cat /proc/self/status; id; pwd; ls -l /proc/self/fd; ls -l /proc/$$/fd; cat /proc/self/limits"))
	if code := g.code(); code != 0 {
		t.Fatalf("exit %d", code)
	}
	out := g.Stdout.String()
	for _, want := range []string{
		"CapInh:\t0000000000000000", "CapPrm:\t0000000000000000", "CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "CapAmb:\t0000000000000000",
		"NoNewPrivs:\t1", "Seccomp:\t2", "SigIgn:\t0000000000000000", "SigBlk:\t0000000000000000", "uid=1000(agent) gid=1000(agent) groups=1000(agent)",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in:\n%s", want, out)
		}
	}
	for line := range strings.Lines(out) {
		f := strings.Fields(line)
		if strings.HasPrefix(line, "l") && len(f) > 3 { // of ls -l: its own descriptor of the directory is the fourth
			fd, to := f[len(f)-3], f[len(f)-1]
			if !strings.Contains("0 1 2", fd) && !strings.HasPrefix(to, "/proc/") {
				t.Errorf("open in the agent: %s", line)
			}
		}
		if strings.HasPrefix(line, "Max core file size") && f[4] != "0" {
			t.Errorf("limits: %s", line)
		}
	}
}

func TestSignalsAreForwarded(t *testing.T) {
	t.Parallel()
	w := world(t)
	// A grandchild in the background reports too: signals go to the whole group.
	g := start(t, w, nothing, script(`
		report() { echo "$1 $2"; }
		sh -c 'for s in TERM INT QUIT USR1 USR2 WINCH CONT HUP URG PIPE; do trap "echo grandchild $s" $s; done; echo grandchild up; while :; do sleep 0.05; done' &
		for s in INT QUIT USR1 USR2 WINCH CONT HUP URG PIPE; do trap "echo child $s" $s; done
		trap 'echo child TERM; exit 5' TERM
		echo child up; while :; do sleep 0.05; done`), env("EXITGATE_GRACE=1s"))
	for _, who := range []string{"child up", "grandchild up"} {
		if _, err := g.Stdout.WaitText(who, patience); err != nil {
			t.Fatalf("%s: %v", who, err)
		}
	}
	for _, s := range []struct {
		name string
		sig  unix.Signal
	}{{"USR1", unix.SIGUSR1}, {"USR2", unix.SIGUSR2}, {"WINCH", unix.SIGWINCH}, {"CONT", unix.SIGCONT}, {"QUIT", unix.SIGQUIT}, {"TERM", unix.SIGTERM}} {
		if err := g.Signal(s.sig); err != nil {
			t.Fatal(err)
		}
		for _, who := range []string{"child ", "grandchild "} {
			if who == "grandchild " && s.name == "QUIT" {
				continue // a shell starts its background commands with INT and QUIT ignored
			}
			if _, err := g.Stdout.WaitText(who+s.name, patience); err != nil {
				t.Errorf("%s%s: %v", who, s.name, err)
			}
		}
	}
	if code := g.code(); code != 5 {
		t.Errorf("exit %d, want the agent's", code)
	}
	// HUP is ours, URG and PIPE are the Go runtime's.
	for _, sig := range []string{"HUP", "URG", "PIPE"} {
		if strings.Contains(g.Stdout.String(), sig) {
			t.Errorf("%s reached the agent:\n%s", sig, g.Stdout)
		}
	}
}

// zombies counts processes of the box in state Z.
func (g *gate) zombies() int {
	r := g.as(0, prober.Probe{Op: "shell", Data: []byte(`for s in /proc/[0-9]*/stat; do read -r l < $s && l=${l##*) } && [ "${l%% *}" = Z ] && echo zombie; done 2>/dev/null`)})
	return strings.Count(string(r.Data), "zombie")
}

func TestOrphansAreReaped(t *testing.T) {
	t.Parallel()
	w := world(t)
	g := up(t, w, nothing)
	r := g.do(prober.Probe{Op: "shell", Timeout: patience, Data: []byte("for i in $(seq 200); do (sleep 0.1 & exec true) & done; wait; echo made")})
	if !strings.Contains(string(r.Data), "made") {
		t.Fatalf("%s: %s", r, r.Data)
	}
	eventually(t, "no sleeping orphan is left", func() bool {
		return !strings.Contains(string(g.as(0, prober.Probe{Op: "shell", Data: []byte("cat /proc/[0-9]*/comm")}).Data), "sleep\n")
	})
	eventually(t, "no zombie is left", func() bool { return g.zombies() == 0 })
}

// TestLeftovers: when the agent's main process ends, the rest gets TERM, then KILL, and the code is the main process's.
func TestLeftovers(t *testing.T) {
	t.Parallel()
	w := world(t)
	g := start(t, w, nothing, env("EXITGATE_GRACE=1s"), script(`
		setsid sh -c 'trap "echo polite; exit" TERM; echo up1; while :; do sleep 0.05; done' &
		setsid sh -c 'trap "echo stubborn" TERM; echo up2; while :; do sleep 0.05; done' &
		while :; do sleep 0.05; [ -e /home/agent/go ] && exit 9; done`))
	for _, who := range []string{"up1", "up2"} {
		if _, err := g.Stdout.WaitText(who, patience); err != nil {
			t.Fatal(err)
		}
	}
	if err := g.Write("/home/agent/go", rig.File{}); err != nil {
		t.Fatal(err)
	}
	if code := g.code(); code != 9 {
		t.Errorf("exit %d, want 9", code)
	}
	for _, want := range []string{"polite", "stubborn"} {
		if _, err := g.Stdout.WaitText(want, patience); err != nil {
			t.Errorf("%q was not told to end: %v", want, err)
		}
	}
}

// TestSignalBeforeTheAgent: a signal while PID 1 still waits for a required name ends it, and the agent never runs.
func TestSignalBeforeTheAgent(t *testing.T) {
	t.Parallel()
	w := world(t)
	w.DNS.SetSilent("needed.example.com")
	g := start(t, w, "version: 1\negress:\n  - host: needed.example.com\n    required: true\n", script("echo ran"))
	eventually(t, "it looks the name up", func() bool { return w.DNS.Count("needed.example.com") > 0 })
	if err := g.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if code := g.code(); code != 125 && code != 143 {
		t.Errorf("exit %d; want 125 or 143", code)
	}
	if strings.Contains(g.Stdout.String(), "ran") {
		t.Error("the agent ran")
	}
}

// TestNotPID1: under another init it does the same for its own descendants.
func TestNotPID1(t *testing.T) {
	t.Parallel()
	w := world(t)
	g := start(t, w, nothing, func(c *rig.Config) {
		c.Plain = true
		c.Args = []string{"/bin/sh", "-c", "/rig/exitgate run -- /bin/sh -c '(setsid sleep 100 &); sleep 0.3; exit 8'; echo code $?; cat /proc/[0-9]*/comm; echo end"}
		c.Env = append(c.Env, "EXITGATE_GRACE=1s")
	})
	if _, err := g.Stdout.WaitText("end", patience); err != nil {
		t.Fatal(err)
	}
	out := g.Stdout.String()
	if !strings.Contains(out, "code 8") {
		t.Errorf("exit code: %s", out)
	}
	if strings.Contains(out, "sleep") {
		t.Errorf("a descendant was left to the other init: %s", out)
	}
}

// TestStandardStreamsReopen: /dev/stderr and its like are for the agent to open, though root made them.
func TestStandardStreamsReopen(t *testing.T) {
	t.Parallel()
	w := world(t)
	g := start(t, w, nothing, script("echo to-out > /dev/stdout && echo to-err > /dev/stderr && cat < /dev/stdin"))
	if _, err := g.Stdin().WriteString("from-in\n"); err != nil {
		t.Fatal(err)
	}
	g.Stdin().Close()
	if code := g.code(); code != 0 {
		t.Errorf("exit %d", code)
	}
	for text, s := range map[string]*rig.Stream{"to-out": g.Stdout, "from-in": g.Stdout, "to-err": g.Stderr} {
		if _, err := s.WaitText(text, patience); err != nil {
			t.Errorf("%s: %v", text, err)
		}
	}
}

// TestExecIsLikeRun: `exitgate exec` makes the same agent as `run`.
func TestExecIsLikeRun(t *testing.T) {
	t.Parallel()
	w := world(t)
	api := upstream(t, w, "api.example.com", rig.Server{})
	e := somewhereElse(t, w)
	g := up(t, w, basic)
	asAgent := func(p prober.Probe) string {
		out := g.exitgate("exec", "--", rig.ProberPath, "do", p.Encode())
		return out.Stdout + out.Stderr
	}
	inside, outside := g.do(prober.Probe{Op: "self"}).Self, asAgent(prober.Probe{Op: "self"})
	for _, k := range []string{"CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp", "Uid", "Gid", "Groups", "SigIgn"} {
		want := fmt.Sprintf("%q:%q", k, inside.Status[k])
		if !strings.Contains(outside, want) {
			t.Errorf("%s differs: want %s in %s", k, want, outside)
		}
	}
	for _, kv := range inside.Environ {
		if !strings.Contains(outside, fmt.Sprintf("%q", kv)) {
			t.Errorf("the environment lacks %s", kv)
		}
	}
	if got := asAgent(get("/reflect")); !strings.Contains(got, `"status":200`) {
		t.Errorf("by the listener: %s", got)
	}
	if got := asAgent(prober.Probe{Op: "tcp", Address: at(e.v4, 443)}); !strings.Contains(got, "ECONNREFUSED") && !strings.Contains(got, "EACCES") {
		t.Errorf("directly: %s", got)
	}
	for _, c := range []struct {
		args []string
		want int
	}{{[]string{"/bin/sh", "-c", "exit 3"}, 3}, {[]string{"/no/such"}, 127}, {[]string{"/etc/passwd"}, 126}, {[]string{"/bin/sh", "-c", "kill -TERM $$"}, 143}} {
		if out := g.exitgate(append([]string{"exec", "--"}, c.args...)...); out.Code != c.want {
			t.Errorf("exec %q: exit %d, want %d (%q)", c.args, out.Code, c.want, out.Stderr)
		}
	}
	if out := g.exitgate("exec", "--agent", "nobody", "--", "true"); out.Code != 125 {
		t.Errorf("exec as an unknown agent: exit %d, %q", out.Code, out.Stderr)
	}
	g.leaks(places(api)...)
}

// TestSidecar: without a command it fences what others start, until a signal.
func TestSidecar(t *testing.T) {
	t.Parallel()
	w := world(t)
	upstream(t, w, "api.example.com", rig.Server{})
	e := somewhereElse(t, w)
	g := start(t, w, basic, running("run"))
	if out := g.exitgate("status", "--wait", "ready"); out.Code != 0 {
		t.Fatalf("status --wait ready: exit %d, %q %q", out.Code, out.Stdout, out.Stderr)
	}
	if r := g.as(1000, get("/reflect")); r.Status != 200 {
		t.Errorf("by the listener: %s %s", r, r.Data)
	}
	if r := g.as(1000, prober.Probe{Op: "tcp", Address: at(e.v4, 443)}); r.Errno != "ECONNREFUSED" {
		t.Errorf("directly: %s", r)
	}
	if err := g.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if code := g.code(); code != 0 && code != 143 {
		t.Errorf("exit %d after TERM", code)
	}
}

// TestAgentNeverBeforeTheFence: the agent's first act is a datagram to elsewhere, in many starts. (A connect would be stopped by the
// agent's own hardening, where the kernel has it, and prove nothing about the fence.)
func TestAgentNeverBeforeTheFence(t *testing.T) {
	t.Parallel()
	w := world(t)
	e := somewhereElse(t, w)
	for range 10 {
		g := start(t, w, nothing, running("run", "--", rig.ProberPath, "do", prober.Probe{Op: "udp", Address: at(e.v4, 443), Data: []byte("x")}.Encode()))
		if code := g.code(); code != 0 {
			t.Fatalf("exit %d", code)
		}
		if _, err := g.Stdout.WaitText("EPERM", patience); err != nil {
			t.Errorf("%v: %s", err, g.Stdout)
		}
		g.leaks()
		if err := g.Close(); err != nil {
			t.Error(err)
		}
	}
}

// processes lists what runs in the box, by its status files as the rig sees them.
func (g *gate) processes() string {
	return string(g.as(0, prober.Probe{Op: "shell", Data: []byte("for p in /proc/[0-9]*; do tr '\\0' ' ' < $p/cmdline; echo; done")}).Data)
}

// TestNothingInProc: no credential in what any process of the box shows to root or to the agent.
func TestNothingInProc(t *testing.T) {
	t.Parallel()
	w := world(t)
	upstream(t, w, "api.example.com", rig.Server{})
	g := up(t, w, strings.Replace(basic, "file:/run/secrets/api", "env:API_SECRET", 1), env("API_SECRET="+secret))
	if r := g.do(get("/reflect")); r.Status != 200 {
		t.Fatalf("control: %s %s", r, r.Data)
	}
	if !strings.Contains(g.processes(), "exitgate proxy") {
		t.Fatalf("control: the proxy is not in the list of processes: %s", g.processes())
	}
	dump := prober.Probe{Op: "shell", Data: []byte("cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline /proc/[0-9]*/task/*/environ 2>/dev/null | tr '\\0' '\\n'")}
	for what, r := range map[string]prober.Result{"agent": g.do(dump), "root": g.as(0, dump)} {
		if strings.Contains(string(r.Data), secret) {
			t.Errorf("%s reads the credential in /proc", what)
		}
		if !strings.Contains(string(r.Data), "exitgate") {
			t.Errorf("control: %s reads nothing: %q", what, r.Data)
		}
	}
	for _, file := range []string{"/proc/1/environ", "/proc/1/mem", "/proc/1/maps", "/proc/1/fd/0", "/proc/1/root/etc/passwd", "/run/secrets/api"} {
		if r := g.do(prober.Probe{Op: "read", Address: file}); r.Errno != "EACCES" && r.Errno != "EPERM" {
			t.Errorf("%s: %s", file, r)
		}
	}
	filepath.WalkDir(g.Path("/run/exitgate"), func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return nil
		}
		if data, err := os.ReadFile(path); err != nil || strings.Contains(string(data), secret) {
			t.Errorf("%s holds the credential (%v)", path, err)
		}
		return nil
	})
	time.Sleep(50 * time.Millisecond)
	if strings.Contains(g.Stderr.String(), secret) {
		t.Error("the log holds the credential")
	}
}

// TestLoopbackDown: a network namespace that nobody has set up, as unshare makes it, is enough.
func TestLoopbackDown(t *testing.T) {
	t.Parallel()
	g := up(t, world(t), basic, func(c *rig.Config) {
		c.Plain, c.Serve = true, true
		c.Args = []string{"/bin/sh", "-c", "ip link set lo down && ip -o link show lo >&2 && exec " + rig.BinaryPath + " run -- " + rig.ProberPath + " serve"}
	})
	if !strings.Contains(g.Stderr.String(), "state DOWN") {
		t.Fatalf("control: lo was not down:\n%s", g.Stderr)
	}
	if r := g.do(get("/")); r.Status != 502 { // nobody resolves the upstream here
		t.Errorf("its listener: %s", r)
	}
}
