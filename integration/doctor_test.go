package integration

import (
	"context"
	"encoding/json"
	"regexp"
	"strings"
	"testing"

	"exitgate/integration/rig"

	"golang.org/x/sys/unix"
)

type finding struct{ Level, What, Mend string }

// doctor is what `doctor --json` finds as root; change puts something amiss into the box first.
func doctor(t *testing.T, w *rig.World, policy string, prepare string, change ...func(*rig.Config)) ([]finding, int) {
	t.Helper()
	plain := func(c *rig.Config) { c.Plain, c.Serve, c.Args = true, true, []string{rig.ProberPath, "serve"} }
	g := start(t, w, policy, append([]func(*rig.Config){plain}, change...)...)
	if err := g.Agent().Ready(patience); err != nil {
		t.Fatal(err)
	}
	out, err := g.Run(context.Background(), rig.Command{Args: []string{"/bin/sh", "-c", prepare + "\nexec ${with-setpriv --no-new-privs} " + rig.BinaryPath + " doctor --json"}})
	if err != nil {
		t.Fatal(err)
	}
	var all []finding
	if err := json.Unmarshal([]byte(out.Stdout), &all); err != nil {
		t.Fatalf("%v: %q %q", err, out.Stdout, out.Stderr)
	}
	return all, out.Code
}

// amiss are things that doctor has to find, each with its level and mend; none of them is found where all is well.
var amiss = []struct {
	name, policy, prepare string
	change                func(*rig.Config)
	level, what, mend     string
}{
	{name: "no NET_ADMIN", change: capabilities(except(rig.EngineCapabilities, unix.CAP_NET_ADMIN)...), level: "high", what: "nf_tables cannot be programmed", mend: "--cap-add NET_ADMIN"},
	{name: "no SETUID", change: capabilities(except(rig.EngineCapabilities, unix.CAP_SETUID)...), level: "high", what: "uid cannot be taken", mend: "--cap-add SETUID"},
	{name: "new privileges", prepare: "with=", level: "high", what: "setuid programs work in docker exec", mend: "no-new-privileges"},
	{name: "a secret that can be read", change: file("/run/secrets/api", rig.File{Data: secret, Mode: 0o444}), level: "high", what: "/run/secrets/api can be read by agent", mend: "chmod 0400"},
	{name: "a credential from the environment", policy: strings.Replace(basic, "file:/run/secrets/api", "env:API_CREDENTIAL", 1), level: "high", what: `credential "api" is in the container's environment`, mend: "from: file:"},
	{name: "another secret in the environment", prepare: "export OTHER_API_KEY=sk-FAKE", level: "warn", what: "the variable OTHER_API_KEY", mend: "from: file:"},
	{name: "a policy that the agent can write", prepare: "chmod 0666 /etc/exitgate/policy.yaml", level: "high", what: "the policy is within an agent's reach: /etc/exitgate/policy.yaml can be written by agent", mend: "mount it read-only"},
	{name: "a mistake in the policy", policy: "version: 1\negres: []\n", level: "warn", what: `unknown key "egres"`, mend: "exitgate check"},
	{name: "an expired grant", policy: basic + "  - host: old.example.com\n    expires: 2020-01-01T00:00:00Z\n", level: "warn", what: "egress old.example.com expired", mend: ""},
	{name: "no resolver", change: func(c *rig.Config) { c.Resolv = "# none\n" }, level: "warn", what: "names no server", mend: "dns.servers"},
	{name: "a resolver on loopback", change: func(c *rig.Config) { c.Resolv = "nameserver 127.0.0.53\n" }, level: "warn", what: "resolver 127.0.0.53 is on loopback", mend: "dns.servers"},
	{name: "an engine's resolvers", change: func(c *rig.Config) { c.Resolv = "nameserver 127.0.0.11\n# ExtServers: [host(192.0.2.1) 192.0.2.2]\n" }, level: "ok", what: "asks 192.0.2.2 from inside this namespace"},
	{name: "a socket of root's by TCP", prepare: rig.ProberPath + ` do '{"op":"listen","address":"127.0.0.1:9999","timeout":60000000000}' > /tmp/up & while ! [ -s /tmp/up ]; do sleep 0.02; done`, level: "info", what: "root listens on TCP port 9999", mend: "stop"},
	{name: "a socket of root's by path", prepare: `python3 -c 'import socket, os, time; s = socket.socket(socket.AF_UNIX); s.bind("/tmp/root.sock"); os.chmod("/tmp/root.sock", 0o666); s.listen(); time.sleep(60)' & while ! [ -S /tmp/root.sock ]; do sleep 0.02; done; sleep 0.3`,
		level: "warn", what: "may connect to root's socket /tmp/root.sock", mend: "chmod 0600"},
	{name: "few files", prepare: "ulimit -n 512", level: "warn", what: "at most 512 open files", mend: "--ulimit nofile"},
	{name: "IPv6 off", prepare: "echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6", change: everything, level: "ok", what: "IPv6 is off here"},
	{name: "fast open", prepare: "echo 519 > /proc/sys/net/ipv4/tcp_fastopen", change: everything, level: "info", what: "TCP Fast Open works without cookies (tcp_fastopen is 0x207): the fence", mend: "sysctl"},
	{name: "fast open and an own loopback", policy: "version: 1\nagents:\n  - name: a\n    loopback: own\n", prepare: "echo 519 > /proc/sys/net/ipv4/tcp_fastopen", change: everything,
		level: "warn", what: "and agent \"a\" has `loopback: own`", mend: "loopback: deny"},
}

// TestDoctor: what is amiss is found, by level and with its mend; where nothing is, nothing is.
func TestDoctor(t *testing.T) {
	t.Parallel()
	w := world(t)
	well, code := doctor(t, w, basic, "")
	for _, want := range []string{"^Linux ", "nf_tables can be programmed", "NFLOG", "user namespace", "IPv6 is on", "^resolver ", "no_new_privs is set", "credential files: 1", "open files"} {
		if !found(well, "ok", want, "") {
			t.Errorf("of a good box doctor does not say %q: %+v", want, well)
		}
	}
	if !found(well, "ok", "the clock says", "") && !found(well, "info", "the clock says", "NTP") {
		t.Errorf("doctor says nothing of the clock: %+v", well)
	}
	if code != 0 {
		t.Errorf("a good box has exit code %d: %+v", code, well)
	}
	for _, c := range amiss {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			policy := c.policy
			if policy == "" {
				policy = basic
			}
			change := func(*rig.Config) {}
			if c.change != nil {
				change = c.change
			}
			all, code := doctor(t, w, policy, c.prepare, change)
			what := regexp.QuoteMeta(c.what)
			if !found(all, c.level, what, c.mend) {
				t.Errorf("not found: %s %q with %q among %+v", c.level, c.what, c.mend, all)
			}
			if c.level != "ok" && found(well, c.level, what, c.mend) {
				t.Errorf("found in a good box too: %+v", well)
			}
			if c.level == "high" && code != 1 {
				t.Errorf("exit code %d", code)
			}
			for _, f := range all {
				if f.Level != "ok" && f.Mend == "" {
					t.Errorf("no mend: %+v", f)
				}
			}
		})
	}
}

func found(all []finding, level, what, mend string) bool {
	for _, f := range all {
		if f.Level == level && regexp.MustCompile(what).MatchString(f.What) && strings.Contains(f.Mend, mend) {
			return true
		}
	}
	return false
}
