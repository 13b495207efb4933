package integration

import (
	"fmt"
	"net/netip"
	"regexp"
	"strings"
	"testing"
	"time"

	"exitgate/integration/prober"
	"exitgate/integration/rig"

	"golang.org/x/sys/unix"
)

// leastCapabilities is the documented least set that works.
var leastCapabilities = []uintptr{unix.CAP_NET_ADMIN, unix.CAP_SETUID, unix.CAP_SETGID, unix.CAP_KILL, unix.CAP_SETPCAP}

func policyFile(text string) func(*rig.Config) { return func(c *rig.Config) { c.Policy = text } }

func file(path string, f rig.File) func(*rig.Config) {
	return func(c *rig.Config) { c.Files[path] = f }
}

func capabilities(caps ...uintptr) func(*rig.Config) {
	return func(c *rig.Config) { c.Capabilities = caps }
}

func except(caps []uintptr, not uintptr) (rest []uintptr) {
	for _, c := range caps {
		if c != not {
			rest = append(rest, c)
		}
	}
	return rest
}

// badStarts are the mistakes and faults with which the agent must not start, each with what the one-line error has to say.
var badStarts = []struct {
	name   string
	change []func(*rig.Config)
	says   string // regular expression
}{
	{"no policy", []func(*rig.Config){policyFile("")}, `policy\.yaml`},
	{"policy is a directory", []func(*rig.Config){policyFile(""), file("/etc/exitgate/policy.yaml/x", rig.File{})}, `policy\.yaml.*directory`},
	{"policy unreadable", []func(*rig.Config){file(rig.PolicyPath, rig.File{Data: basic, Mode: 0o600, UID: 1000}), capabilities(leastCapabilities...)}, `policy\.yaml.*(permission|may not be read)`},
	{"policy named by a flag is missing", []func(*rig.Config){running("run", "--policy", "/none.yaml", "--", "echo", "ran")}, `/none\.yaml`},
	{"empty policy", []func(*rig.Config){policyFile("\n")}, `policy\.yaml:1.*version`},
	{"ten megabytes", []func(*rig.Config){policyFile(basic + "#" + strings.Repeat("x", 10<<20))}, `(?i)policy\.yaml.*(large|big|8 MiB|8388608)`},
	{"not UTF-8", []func(*rig.Config){policyFile(basic + "# \xff\xfe\n")}, `policy\.yaml.*UTF-8`},
	{"unknown key", []func(*rig.Config){policyFile(basic + "egres: []\n")}, `policy\.yaml:\d+:\d+: .*"egres".*did you mean "egress"`},
	{"no version", []func(*rig.Config){policyFile("egress: []\n")}, `policy\.yaml:1.*version`},
	{"uid 0", []func(*rig.Config){policyFile("version: 1\nagents:\n  - name: a\n    uid: 0\n")}, `policy\.yaml:4.*uid`},
	{"unknown agent", []func(*rig.Config){running("run", "--agent", "ghost", "--", "echo", "ran")}, `ghost`},
	{"secret missing", []func(*rig.Config){policyFile(strings.Replace(basic, "/run/secrets/api", "/run/secrets/absent", 1))}, `/run/secrets/absent`},
	{"secret empty", []func(*rig.Config){file("/run/secrets/api", rig.File{Data: "\n", Mode: 0o400})}, `/run/secrets/api.*empty`},
	{"secret with CR and LF", []func(*rig.Config){file("/run/secrets/api", rig.File{Data: "sk-FAKE\r\nX-Evil: 1\r\n", Mode: 0o400})}, `/run/secrets/api`},
	{"secret with a NUL", []func(*rig.Config){file("/run/secrets/api", rig.File{Data: "sk-FAKE\x00x", Mode: 0o400})}, `/run/secrets/api`},
	{"secret readable by all", []func(*rig.Config){file("/run/secrets/api", rig.File{Data: secret, Mode: 0o444})}, `/run/secrets/api.*(uid 1000|agent)`},
	{"secret owned by the agent", []func(*rig.Config){file("/run/secrets/api", rig.File{Data: secret, Mode: 0o400, UID: 1000})}, `/run/secrets/api.*(uid 1000|agent)`},
	{"secret of a group of the agent", []func(*rig.Config){file("/run/secrets/api", rig.File{Data: secret, Mode: 0o440, GID: 1000})}, `/run/secrets/api.*(gid|group|agent)`},
	{"secret in a directory of the agent", []func(*rig.Config){
		policyFile(strings.Replace(basic, "/run/secrets/api", "/home/agent/api", 1)), file("/home/agent/api", rig.File{Data: secret, Mode: 0o400}),
	}, `/home/agent`},
	{"secret in the environment is missing", []func(*rig.Config){policyFile(strings.Replace(basic, "file:/run/secrets/api", "env:ABSENT", 1))}, `ABSENT`},
	{"no NET_ADMIN", []func(*rig.Config){capabilities(except(rig.EngineCapabilities, unix.CAP_NET_ADMIN)...)}, `--cap-add NET_ADMIN`},
	{"no SETUID", []func(*rig.Config){capabilities(except(rig.EngineCapabilities, unix.CAP_SETUID)...)}, `SETUID`},
	{"no nf_tables", []func(*rig.Config){func(c *rig.Config) { c.NoNetfilter = true }}, `nf_tables`},
	{"port taken", []func(*rig.Config){func(c *rig.Config) {
		c.Plain = true
		c.Args = []string{"/bin/sh", "-c", rig.ProberPath + ` do '{"op":"listen","address":"127.0.0.1:8080","timeout":60000000000}' > /tmp/up & while ! [ -s /tmp/up ]; do sleep 0.02; done; exec ` + rig.BinaryPath + " run -- echo ran"}
	}}, `127\.0\.0\.1:8080.*taken`},
	{"bad setting", []func(*rig.Config){env("EXITGATE_GRACE=soon")}, `(?i)grace`},
	{"unknown flag", []func(*rig.Config){running("run", "--polcy", "x", "--", "echo", "ran")}, `polcy`},
	{"resolv.conf is gone, a name is required", []func(*rig.Config){policyFile("version: 1\negress:\n  - host: a.example.com\n    required: true\n"), func(c *rig.Config) { c.Resolv = "# nothing\n" }}, `a\.example\.com|resolv\.conf`},
}

func TestBadStarts(t *testing.T) {
	t.Parallel()
	w := world(t)
	ran := running("run", "--", "echo", "ran")
	t.Run("control", func(t *testing.T) {
		for name, change := range map[string]func(*rig.Config){"as documented": ran, "least capabilities": func(c *rig.Config) { ran(c); c.Capabilities = leastCapabilities }} {
			g := start(t, w, basic, change)
			if code := g.code(); code != 0 || !strings.Contains(g.Stdout.String(), "ran") {
				t.Errorf("%s: exit %d, %q", name, code, g.Stdout)
			}
		}
	})
	for _, c := range badStarts {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			g := start(t, w, basic, append([]func(*rig.Config){ran}, c.change...)...)
			if code := g.code(); code != 125 {
				t.Errorf("exit %d, want 125", code)
			}
			if strings.Contains(g.Stdout.String(), "ran") {
				t.Error("the agent ran")
			}
			g.oneLine(c.says)
			g.leaks()
		})
	}
}

// oneLine checks that standard error holds exactly one error of ours, a line that matches, and no trace of a crash.
func (g *gate) oneLine(says string) {
	g.t.Helper()
	var ours []string
	for _, line := range g.Stderr.Lines() {
		if strings.HasPrefix(line, "exitgate: ") {
			ours = append(ours, line)
		}
		if strings.HasPrefix(line, "panic:") || strings.HasPrefix(line, "goroutine ") || strings.Contains(line, "FAKE") {
			g.t.Errorf("on standard error: %s", line)
		}
	}
	if len(ours) != 1 {
		g.t.Errorf("%d error lines, want one: %q; all of it:\n%s", len(ours), ours, g.Stderr.Tail(60))
		return
	}
	if !regexp.MustCompile(says).MatchString(ours[0]) {
		g.t.Errorf("the error does not match %q:\n%s", says, ours[0])
	}
	if len(ours[0]) > 400 {
		g.t.Errorf("the error has %d bytes", len(ours[0]))
	}
}

// TestNotRoot: NET_ADMIN alone, as podman gives it to a container's non-root user, is not enough.
func TestNotRoot(t *testing.T) {
	t.Parallel()
	w := world(t)
	g := start(t, w, nothing, func(c *rig.Config) { c.Plain, c.Args, c.Serve = true, []string{rig.ProberPath, "serve"}, true })
	r := g.as(1000, prober.Probe{Op: "shell", Data: []byte(rig.BinaryPath + " run -- echo ran")})
	if r.Status != 125 || strings.Contains(string(r.Data), "ran\n") || !strings.Contains(string(r.Data), "root") {
		t.Errorf("exit %d: %s", r.Status, r.Data)
	}
}

// TestUpstreamFaults: what goes wrong behind the proxy is a 502 or 504 in the documented shape that quotes nothing of the upstream.
func TestUpstreamFaults(t *testing.T) {
	t.Parallel()
	w := world(t)
	const spoken = "upstream-said-this-FAKE"
	says := func(s string) rig.Fault { return rig.Say(s) }
	faults := map[string]rig.Fault{
		"resets": rig.Reset, "hangs-up": rig.HangUp, "garbage": rig.Garbage,
		"bad-status":  says("HTTP/1.1 " + spoken + "\r\n\r\n"),
		"bad-header":  says("HTTP/1.1 200 OK\r\n" + spoken + "\r\n\r\n"),
		"bad-length":  says("HTTP/1.1 200 OK\r\nContent-Length: " + spoken + "\r\n\r\n"),
		"bad-coding":  says("HTTP/1.1 200 OK\r\nTransfer-Encoding: " + spoken + "\r\n\r\n"),
		"two-lengths": says("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n" + spoken),
	}
	hosts := []string{"refuses", "foreign", "expired", "misnamed", "plain", "absent", "unreachable"}
	for name, f := range faults {
		hosts = append(hosts, name)
		if _, _, err := w.Faulty(name+".example.com", 0, false, f); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.Nowhere("refuses.example.com"); err != nil {
		t.Fatal(err)
	}
	if _, _, err := w.Faulty("plain.example.com", 0, true, says("HTTP/1.1 200 OK\r\n\r\n"+spoken)); err != nil {
		t.Fatal(err)
	}
	upstream(t, w, "foreign.example.com", rig.Server{Foreign: true})
	upstream(t, w, "expired.example.com", rig.Server{Expired: true})
	upstream(t, w, "misnamed.example.com", rig.Server{Name: "elsewhere.example.net"})
	w.DNS.Set("unreachable.example.com", time.Minute, unreachable(w))
	upstream(t, w, "good.example.com", rig.Server{})

	policy := "version: 1\ncredentials:\n  - name: api\n    from: file:/run/secrets/api\n    header: Authorization\nroutes:\n"
	for _, h := range append(hosts, "good") {
		policy += fmt.Sprintf("  - name: %s\n    path: /%s\n    upstream: https://%s.example.com\n    credential: api\n    allow: [GET /**]\n", h, h, h)
	}
	g := up(t, w, policy)
	if r := g.do(get("/good/reflect")); r.Status != 200 {
		t.Fatalf("control: %s %s", r, r.Data)
	}
	for _, h := range hosts {
		p := get("/" + h + "/x")
		p.Timeout = 45 * time.Second
		r := g.do(p)
		if r.Status != 502 && r.Status != 504 {
			t.Errorf("%s: %s %q", h, r, r.Data)
			continue
		}
		if msg := refusal(t, r); !strings.HasPrefix(msg, "exitgate: ") || strings.Contains(msg, spoken) {
			t.Errorf("%s: %q", h, msg)
		}
	}
	for _, line := range g.Stderr.Lines() {
		if strings.Contains(line, spoken) || strings.Contains(line, secret) {
			t.Errorf("the log quotes the upstream, or the credential: %s", line)
		}
	}
	if r := g.do(get("/good/reflect")); r.Status != 200 {
		t.Errorf("after all that: %s %s", r, r.Data)
	}
}

// unreachable is an address of nobody, to which packets go in vain.
func unreachable(w *rig.World) netip.Addr {
	return netip.AddrFrom4([4]byte{46, byte(w.Number() >> 8), byte(w.Number()), 1})
}

// TestUpstreamThatNeverAnswers: the request hangs, as a slow model's would, and nothing else does.
func TestUpstreamThatNeverAnswers(t *testing.T) {
	t.Parallel()
	w := world(t)
	api := upstream(t, w, "api.example.com", rig.Server{})
	g := up(t, w, basic)
	p := get("/hang")
	p.Timeout = 3 * time.Second
	hanging := g.Agent().Start(p)
	eventually(t, "the request arrived", func() bool { return len(api.Seen()) == 1 })
	if r := g.do(get("/reflect")); r.Status != 200 {
		t.Errorf("beside it: %s %s", r, r.Data)
	}
	if r := last(hanging); r.Errno != "timeout" {
		t.Errorf("the hanging request: %s", r)
	}
}

// TestTruncationIsVisible: an answer that the upstream cuts short is no complete answer for the agent.
func TestTruncationIsVisible(t *testing.T) {
	t.Parallel()
	w := world(t)
	if _, _, err := w.Faulty("api.example.com", 0, false, rig.Truncate); err != nil {
		t.Fatal(err)
	}
	g := up(t, w, basic)
	if r := g.do(get("/x")); r.OK() {
		t.Errorf("%s %q", r, r.Data)
	}
}
