package containers

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"exitgate/integration/prober"
	"exitgate/integration/rig"
)

const (
	secret   = "sk-ant-api03-FAKE-containers-0123456789abcdef"
	listener = "127.0.0.1:8080"
)

var serial atomic.Int32

// place is a place on the internet that one test's policy allows, and one that it does not.
type place struct {
	api, elsewhere *rig.Upstream
}

// somewhere makes a place with names of its own.
func somewhere(t testing.TB) place {
	t.Helper()
	var ups []*rig.Upstream
	n := serial.Add(1)
	for _, name := range []string{"api", "elsewhere"} {
		u, err := internet.HTTPS(fmt.Sprintf("%s%d.example.com", name, n), rig.Server{})
		if err != nil {
			t.Fatal(err)
		}
		ups = append(ups, u)
	}
	return place{ups[0], ups[1]}
}

// policy is one route with a credential.
func (p place) policy() string {
	return fmt.Sprintf(`version: 1
credentials:
  - name: api
    from: file:/run/secrets/api
    header: Authorization
routes:
  - name: api
    path: /
    upstream: https://%s
    credential: api
    allow:
      - GET /**
    env:
      - API_URL={url}
`, p.api.Name)
}

// least is the least set of capabilities: TestLeastCapabilities takes each away. CHOWN is for -t alone.
var least = []string{"NET_ADMIN", "SETUID", "SETGID", "SETPCAP", "KILL"}

// with are flags of run for these capabilities and no others.
func with(capabilities ...string) []string {
	flags := []string{"--cap-drop", "ALL"}
	for _, c := range capabilities {
		flags = append(flags, "--cap-add", c)
	}
	return flags
}

// usual are the flags of the README.
func usual() []string { return append(with(least...), "--security-opt", "no-new-privileges") }

// files writes a policy and a key as the engine's own user has them, and returns the flags that show them to a container.
func (e *engine) files(t testing.TB, policy string) (dir string, flags []string) {
	t.Helper()
	dir, err := os.MkdirTemp("/run/rig", "gate")
	if err != nil {
		t.Fatal(err)
	}
	for name, f := range map[string]struct {
		text string
		mode os.FileMode
	}{"policy.yaml": {policy, 0o644}, "key": {secret + "\n", 0o400}} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(f.text), f.mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(path, int(e.uid), int(e.uid)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir, []string{"-v", dir + "/policy.yaml:/etc/exitgate/policy.yaml:ro", "-v", dir + "/key:/run/secrets/api:ro"}
}

// container is a running one.
type container struct {
	*engine
	t      testing.TB
	name   string
	policy string // the policy's file, outside; empty without exitgate
}

// arguments are those of a run.
func (e *engine) arguments(flags, command []string) []string {
	args := []string{"run"}
	if e.podman {
		args = append(args, "--pull=never")
	}
	if e.podman && e.uid == 0 { // without root there are no cgroups to be had
		args = append(args, "--cgroup-parent", "/"+os.Getenv(cgroupVar))
	}
	return slices.Concat(args, flags, []string{image}, command)
}

// start starts a container in the background; it goes with the test.
func (e *engine) start(t testing.TB, flags []string, command ...string) *container {
	t.Helper()
	c := &container{engine: e, t: t, name: fmt.Sprintf("c%d", serial.Add(1))}
	t.Cleanup(func() {
		if t.Failed() {
			o, _ := e.client(nil, "logs", c.name)
			t.Logf("logs of %s under %s:\n%s%s", c.name, e.name, o.stdout, o.stderr)
		}
		if out, err := e.do("", "rm", "-f", "-v", c.name); err != nil {
			t.Errorf("rm: %s %v", out, err)
		}
	})
	e.must(t, e.arguments(append(flags, "-d", "--name", c.name), command)...)
	return c
}

// gate starts exitgate in the background with an agent that waits, and waits until it is ready.
func (e *engine) gate(t testing.TB, policy string, flags ...string) *container {
	t.Helper()
	dir, mounts := e.files(t, policy)
	c := e.start(t, slices.Concat(usual(), mounts, flags), "exitgate", "run", "--", "sleep", "1000")
	c.policy = dir + "/policy.yaml"
	c.ready()
	return c
}

// ready waits for a gate.
func (c *container) ready() {
	c.t.Helper()
	eventually(c.t, "the gate is ready", func() bool {
		o, err := c.client(nil, "exec", c.name, "exitgate", "status")
		return err == nil && o.code == 0
	})
}

// once runs exitgate in front of the prober, which tries these, and ends.
func (e *engine) once(t testing.TB, policy string, flags []string, probes ...prober.Probe) []prober.Result {
	t.Helper()
	_, mounts := e.files(t, policy)
	o, err := e.client(strings.NewReader(lines(probes)), e.arguments(slices.Concat(flags, mounts, []string{"--rm", "-i"}), []string{"exitgate", "run", "--", "probe", "serve"})...)
	if err != nil || o.code != 0 {
		t.Fatalf("%s: %v %v", e.name, o, err)
	}
	return results(t, o, len(probes))
}

// open runs the prober in a container without exitgate, as a control. It is uid 1000 without capabilities.
func (e *engine) open(t testing.TB, flags []string, probes ...prober.Probe) []prober.Result {
	t.Helper()
	o, err := e.client(strings.NewReader(lines(probes)), e.arguments(append(flags, "--rm", "-i", "-u", "1000"), []string{"probe", "serve"})...)
	if err != nil || o.code != 0 {
		t.Fatalf("%s: %v %v", e.name, o, err)
	}
	return results(t, o, len(probes))
}

// as tries these by the engine's exec as a user.
func (c *container) as(user string, probes ...prober.Probe) []prober.Result {
	c.t.Helper()
	return c.through([]string{"-u", user}, []string{"probe", "serve"}, probes...)
}

// through tries these by the engine's exec, with its flags and a command that leads to a prober.
func (c *container) through(flags, command []string, probes ...prober.Probe) []prober.Result {
	c.t.Helper()
	o, err := c.client(strings.NewReader(lines(probes)), slices.Concat([]string{"exec", "-i"}, flags, []string{c.name}, command)...)
	if err != nil || o.code != 0 {
		c.t.Fatalf("exec: %v %v", o, err)
	}
	return results(c.t, o, len(probes))
}

// exec runs a command by the engine's exec, as root.
func (c *container) exec(args ...string) output {
	c.t.Helper()
	o, err := c.client(nil, append([]string{"exec", c.name}, args...)...)
	if err != nil {
		c.t.Fatal(err)
	}
	return o
}

// flat is text without the line breaks that fit it to a screen.
func flat(text string) string { return strings.Join(strings.Fields(text), " ") }

// logs is what PID 1 and its agent have printed.
func (c *container) logs() string {
	c.t.Helper()
	o, err := c.client(nil, "logs", c.name)
	if err != nil {
		c.t.Fatal(err)
	}
	return o.stdout + o.stderr
}

// lines are probes as the prober reads them, and the word that it is to end when they have.
func lines(probes []prober.Probe) string {
	var b strings.Builder
	for i, p := range probes {
		p.ID = i + 1
		b.WriteString(p.Encode() + "\n")
	}
	return b.String() + prober.Probe{Op: "exit"}.Encode() + "\n"
}

// results are the prober's answers in the order of what was asked.
func results(t testing.TB, o output, n int) []prober.Result {
	t.Helper()
	all := make([]prober.Result, n)
	found := 0
	for line := range strings.Lines(o.stdout) {
		var r prober.Result
		if json.Unmarshal([]byte(line), &r) == nil && r.ID > 0 && r.ID <= n {
			all[r.ID-1] = r
			found++
		}
	}
	if found != n {
		t.Fatalf("%d answers to %d probes: %v", found, n, o)
	}
	return all
}

func eventually(t testing.TB, what string, f func() bool) {
	t.Helper()
	if !rig.Eventually(patience, f) {
		t.Fatalf("not within %s: %s", patience, what)
	}
}

func get(path string) prober.Probe {
	return prober.Probe{Op: "http", Address: listener, Data: fmt.Appendf(nil, "GET %s HTTP/1.1\r\nHost: %s\r\n\r\n", path, listener)}
}

func tcp(a netip.Addr, port uint16) prober.Probe {
	return prober.Probe{Op: "tcp", Address: netip.AddrPortFrom(a, port).String(), Timeout: 5 * time.Second}
}

// query asks the server at an address for a name, by UDP.
func query(a netip.Addr, port uint16, name string) prober.Probe {
	q := []byte("\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00")
	for label := range strings.SplitSeq(name, ".") {
		q = append(append(q, byte(len(label))), label...)
	}
	return prober.Probe{Op: "udp", Address: netip.AddrPortFrom(a, port).String(), Data: append(q, 0, 0, 1, 0, 1), Read: 512, Timeout: 2 * time.Second}
}

// direct are the ways out that a fence refuses: by TCP and UDP, to what policy names and what it does not.
func (p place) direct() []prober.Probe {
	return []prober.Probe{tcp(p.api.Addr4, 443), tcp(p.elsewhere.Addr4, 443), query(internet.DNS.Addr4, 53, p.elsewhere.Name), tcp(internet.DNS.Addr4, 53)}
}

// wantOpen is the control of direct: without exitgate everything answers.
func wantOpen(t testing.TB, rs []prober.Result) {
	t.Helper()
	for i, r := range rs {
		if !r.OK() {
			t.Fatalf("control: way %d does not work even without a fence: %s", i, r)
		}
	}
}

// refusals are what a refused TCP connect and a refused datagram look like to the agent.
var refusals = []string{"ECONNREFUSED", "EPERM", "EACCES", "EHOSTUNREACH"}

// wantRefused says that each was refused by the kernel, at once and by name.
func wantRefused(t testing.TB, rs []prober.Result) {
	t.Helper()
	for i, r := range rs {
		if !slices.Contains(refusals, r.Errno) {
			t.Errorf("way %d: %s; want a refusal (%s)", i, r, strings.Join(refusals, ", "))
		}
	}
}

// wantCall says that a call through the listener arrived, with the credential.
func (p place) wantCall(t testing.TB, r prober.Result) {
	t.Helper()
	if r.Status != 200 {
		t.Errorf("the allowed call: %s %s", r, r.Data)
	}
	seen := p.api.Seen()
	if len(seen) == 0 || seen[len(seen)-1].Header.Get("Authorization") != "Bearer "+secret {
		t.Errorf("the upstream saw %v; want the credential", seen)
	}
}

// wantFence says that a prober is fenced: its allowed call arrives, and nothing else leaves.
func (p place) wantFence(t testing.TB, rs []prober.Result) {
	t.Helper()
	p.wantCall(t, rs[0])
	wantRefused(t, rs[1:])
}

// tries is what wantFence judges.
func (p place) tries() []prober.Probe { return append([]prober.Probe{get("/reflect")}, p.direct()...) }
