package integration

import (
	"context"
	"regexp"
	"strings"
	"testing"

	"exitgate/integration/rig"

	"golang.org/x/sys/unix"
)

// mistake is one that a new user makes, with the one line that it leads to.
type mistake struct {
	name   string
	policy string   // of `check`, or of the gate
	args   []string // default: check
	uid    uint32   // who runs it
	change func(*rig.Config)
	code   int
	says   string // the line, after "exitgate: ", as a regular expression
}

const inPolicy = `/tmp/policy\.yaml:`

// mistakes that need no gate are told by `check` or by the command itself; the others are starts that fail. Each line has what is wrong,
// where there is one file and line, and after a semicolon what to do about it.
var mistakes = []mistake{
	{name: "a misspelt key", policy: "version: 1\negres:\n  - host: a.example.com\n", says: inPolicy + `2:1: unknown key "egres"; did you mean "egress"\?`},
	{name: "a tab", policy: "version: 1\negress:\n\t- host: a.example.com\n", says: inPolicy + `3:1: not YAML: .*; indent with spaces, not tabs.*`},
	{name: "no version", policy: "egress: []\n", says: inPolicy + "1:1: the policy has no version; add `version: 1`"},
	{name: "a host with scheme", policy: "version: 1\negress:\n  - host: https://a.example.com\n", says: inPolicy + `3:11: host "https://a.example.com" is not a name or an address alone; write a\.example\.com`},
	{name: "a host with port", policy: "version: 1\negress:\n  - host: a.example.com:8443\n", says: inPolicy + `3:11: host .*; write a\.example\.com, and ports: \[8443\]`},
	{name: "a host alone", policy: "version: 1\negress:\n  - a.example.com\n", says: inPolicy + "3:5: .* the text \"a.example.com\"; write `host: \"a.example.com\"`"},
	{name: "a wildcard that would take the apex", policy: "version: 1\negress:\n  - host: \"*example.com\"\n", says: inPolicy + "3:11: host .* a star that is not its first label; a wildcard is one leading `\\*\\.`, such as \\*\\.example\\.com"},
	{name: "a wildcard without quotes", policy: "version: 1\negress:\n  - host: *.example.com\n", says: inPolicy + `3:\d+: not YAML: .*; put a value that starts with \* or & in quotes`},
	{name: "a wildcard of a whole domain", policy: "version: 1\negress:\n  - host: \"*.com\"\n", says: inPolicy + `3:11: host "\*\.com": com is a whole top-level domain; write a longer one, such as \*\.example\.com`},
	{name: "a port as a string", policy: "version: 1\negress:\n  - host: a.example.com\n    ports: [\"443\"]\n", says: inPolicy + `4:13: a port is text, not a number: "443"; remove the quotes`},
	{name: "one port that is no list", policy: "version: 1\negress:\n  - host: a.example.com\n    ports: 443\n", says: inPolicy + "4:12: ports is not a list but the number 443; write it as a list: .*"},
	{name: "a host twice", policy: "version: 1\negress:\n  - host: a.example.com\n  - host: A.example.com\n", says: inPolicy + `4:11: egress host "a\.example\.com" is there twice, first in line 3; join the two entries`},
	{name: "an unknown preset", policy: "version: 1\npresets: [claude]\n", says: inPolicy + `2:11: unknown preset "claude"; did you mean "claude-code"\?`},
	{name: "a route's unknown credential", policy: "version: 1\nroutes:\n  - name: a\n    path: /\n    upstream: https://a.example.com\n    credential: key\n", says: inPolicy + "6:17: unknown credential \"key\"; add `credentials: .*`"},
	{name: "the secret itself", policy: "version: 1\ncredentials:\n  - name: a\n    from: sk-ant-api03-FAKE0123456789abcdef\n", says: inPolicy + `4:11: from names no source; write file:PATH, .*; a secret itself never stands in a policy`},
	{name: "an agent that is root", policy: "version: 1\nagents:\n  - name: a\n    uid: 0\n", says: inPolicy + `4:10: uid 0 is root, .*; write the agent's own uid, such as 1000`},
	{name: "a listener for everybody", policy: "version: 1\nagents:\n  - name: a\n    listen: 0.0.0.0:8080\n", says: inPolicy + `4:13: listen is "0\.0\.0\.0:8080"; write 127\.0\.0\.1:8080: .*`},
	{name: "a regular expression", policy: "version: 1\nroutes:\n  - name: a\n    path: /\n    upstream: https://a.example.com\n    allow:\n      - GET ^/v1/(a|b)$\n",
		says: inPolicy + "7:9: pattern .*: a pattern is no regular expression; write `\\*` for one segment of a path and `\\*\\*` for any number, .*"},
	{name: "a pattern with .*", policy: "version: 1\nroutes:\n  - name: a\n    path: /\n    upstream: https://a.example.com\n    allow:\n      - GET /v1/.*\n",
		says: inPolicy + "7:9: pattern .* has a star inside a segment; write `\\*` for one whole segment, .*"},
	{name: "a pattern without method", policy: "version: 1\nroutes:\n  - name: a\n    path: /\n    upstream: https://a.example.com\n    allow:\n      - /v1\n",
		says: inPolicy + `7:9: pattern "/v1" is not a method and a path .*; write the method first, such as GET /v1`},
	{name: "a grant that has expired", policy: "version: 1\negress:\n  - host: a.example.com\n    expires: 2020-01-01T00:00:00Z\n", args: []string{"check", "--strict", "/tmp/policy.yaml"},
		says: inPolicy + "3:\\d+: warning: egress a\\.example\\.com expired at 2020-01-01T00:00:00Z; remove it, or write a later `expires`"},
	{name: "a day that is no time", policy: "version: 1\negress:\n  - host: a.example.com\n    expires: 2020-01-01\n", says: inPolicy + `4:14: expires is "2020-01-01"; write 2020-01-01T00:00:00Z`},
	{name: "no policy", args: []string{"check", "/tmp/none.yaml"}, says: `/tmp/none\.yaml: does not exist; name the file, or put it there`},
	{name: "a command that does not exist", args: []string{"chekc"}, code: 2, says: `unknown command "chekc"; did you mean "check"\?`},
	{name: "status where nothing runs", args: []string{"status"}, code: 3, says: "no exitgate runs here \\(/run/exitgate/control\\.sock\\); start one with `exitgate run`, or .*"},
	{name: "exec where nothing runs", args: []string{"exec", "--", "true"}, code: 125, says: "no exitgate runs here \\(/run/exitgate/control\\.sock\\); start one with `exitgate run`, or .*"},
	{name: "run, not as root", args: []string{"run", "--", "true"}, uid: 1000, code: 125, says: `exitgate needs root .*; run it as root \(in a container: no --user\)`},
	{name: "status, not as root", args: []string{"status"}, uid: 1000, code: 3, says: "no exitgate runs here .*"},

	{name: "start without a policy", change: policyFile(""), code: 125, says: `/etc/exitgate/policy\.yaml: does not exist; .*`},
	{name: "start without NET_ADMIN", change: capabilities(except(rig.EngineCapabilities, unix.CAP_NET_ADMIN)...), code: 125, says: `open nftables: .* is not permitted; run with --cap-add NET_ADMIN .*`},
	{name: "start with a secret that is missing", change: policyFile(strings.Replace(basic, "/run/secrets/api", "/run/secrets/absent", 1)), code: 125,
		says: `/etc/exitgate/policy\.yaml:3:5: credential "api": /run/secrets/absent does not exist; put the credential into .*, owned by root, mode 0400`},
	{name: "start with a secret that the agent can read", change: file("/run/secrets/api", rig.File{Data: secret, Mode: 0o444}), code: 125,
		says: `/etc/exitgate/policy\.yaml:3:5: credential "api": /run/secrets/api can be read by agent "agent" \(uid 1000\); .*chmod 0400.*`},
	{name: "start with a secret in quotes", change: file("/run/secrets/api", rig.File{Data: "\"" + secret + "\"\n", Mode: 0o400}), code: 125,
		says: `/etc/exitgate/policy\.yaml:3:5: credential "api": /run/secrets/api is in quotes; write the credential alone, without them`},
	{name: "start with an empty secret", change: file("/run/secrets/api", rig.File{Data: "\n", Mode: 0o400}), code: 125,
		says: `/etc/exitgate/policy\.yaml:3:5: credential "api": /run/secrets/api is empty; put the credential there`},
	{name: "start with the port taken", code: 125, change: func(c *rig.Config) {
		c.Plain = true
		c.Args = []string{"/bin/sh", "-c", rig.ProberPath + ` do '{"op":"listen","address":"127.0.0.1:8080","timeout":60000000000}' > /tmp/up & while ! [ -s /tmp/up ]; do sleep 0.02; done; exec ` + rig.BinaryPath + " run -- echo ran"}
	}, says: `.*cannot listen on 127\.0\.0\.1:8080: the port is taken by /rig/prober \(pid \d+, uid 0\); stop what holds it, or choose another .listen.`},
	{name: "a program that does not exist", change: running("run", "--", "cluade"), code: 127, says: `command not found: "cluade" is not in the agent's PATH .*; install it, or write its whole path`},
	{name: "a program that is not executable", change: running("run", "--", "/etc/exitgate/policy.yaml"), code: 126, says: `command cannot be executed: /etc/exitgate/policy\.yaml: permission denied; the agent needs execute permission on it`},
	{name: "an agent that the policy has not", change: running("run", "--agent", "claud", "--", "true"), code: 125, says: `the policy has no agent "claud"; it has "agent"`},
	{name: "the gate asked by the agent", code: 1, change: running("run", "--", rig.BinaryPath, "status"), says: `.*control\.sock: only root may ask the gate; run this as root`},
}

// TestMistakes drives the binary through every mistake; the right way, in the same places, is the control.
func TestMistakes(t *testing.T) {
	t.Parallel()
	w := world(t)
	plain := start(t, w, nothing, func(c *rig.Config) { c.Plain, c.Args, c.Serve = true, []string{rig.ProberPath, "serve"}, true })
	if line, code := plain.told(mistake{policy: basic}); code != 0 || line != "" {
		t.Fatalf("control: check of a good policy: %d, %q", code, line)
	}
	control := start(t, w, basic, running("run", "--", "true"))
	if code := control.code(); code != 0 {
		t.Fatalf("control: a good start: %d, %s", code, control.Stderr.Tail(60))
	}
	for _, m := range mistakes {
		t.Run(m.name, func(t *testing.T) {
			g := &gate{plain.Box, t, w}
			var line string
			var code int
			if m.change != nil {
				g = start(t, w, basic, running("run", "--", "echo", "ran"), m.change)
				code = g.code()
				line = ours(g.Stderr.Lines())
			} else {
				line, code = g.told(m)
			}
			if want := max(m.code, 1); code != want {
				t.Errorf("exit code %d, want %d", code, want)
			}
			if !regexp.MustCompile("^exitgate: " + m.says + "$").MatchString(line) {
				t.Errorf("it says\n%s\nand not\n%s", line, m.says)
			}
		})
	}
}

// told runs the command of a mistake and returns what standard error has.
func (g *gate) told(m mistake) (string, int) {
	g.t.Helper()
	if err := g.Write("/tmp/policy.yaml", rig.File{Data: m.policy}); err != nil {
		g.t.Fatal(err)
	}
	args := m.args
	if args == nil {
		args = []string{"check", "/tmp/policy.yaml"}
	}
	out, err := g.Run(context.Background(), rig.Command{UID: m.uid, Args: append([]string{rig.BinaryPath}, args...)})
	if err != nil {
		g.t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(out.Stderr), "\n")
	if m.policy == basic {
		return ours(nil), out.Code // its warnings are no mistakes
	}
	return strings.Join(lines, "\n"), out.Code
}

// ours are the lines of exitgate's own, without those of the log.
func ours(lines []string) string {
	var own []string
	for _, l := range lines {
		if strings.HasPrefix(l, "exitgate: ") {
			own = append(own, l)
		}
	}
	return strings.Join(own, "\n")
}
