package integration

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"exitgate/integration/prober"
	"exitgate/integration/rig"
)

// everything is each capability, as root has them on a plain machine.
func everything(c *rig.Config) {
	c.Capabilities = nil
	for n := uintptr(0); n < 64; n++ {
		c.Capabilities = append(c.Capabilities, n)
	}
}

// host is a box that stands for a plain machine: exitgate does not run in it, and a prober is its first process, as root.
func host(t testing.TB, w *rig.World, policy string, change ...func(*rig.Config)) *gate {
	t.Helper()
	plain := func(c *rig.Config) {
		c.Plain, c.Serve, c.Args = true, true, []string{rig.ProberPath, "serve"}
		c.Env = append(c.Env, "EXITGATE_GRACE=1s")
	}
	g := start(t, w, policy, append([]func(*rig.Config){everything, plain}, change...)...)
	if err := g.Agent().Ready(patience); err != nil {
		t.Fatal(err)
	}
	return g
}

// spawn runs a shell script as root in the background.
func (g *gate) spawn(script string) <-chan prober.Result {
	return g.Agent().Start(prober.Probe{Op: "shell", Data: []byte(script), Timeout: 5 * time.Minute})
}

// sh runs a shell script as root and returns what it prints.
func (g *gate) sh(script string) string {
	g.t.Helper()
	r := last(g.spawn(script))
	if r.Err != "" {
		g.t.Fatalf("%s: %s", script, r.Err)
	}
	return strings.TrimSpace(string(r.Data))
}

// inside is a command line that runs a probe as uid in a network namespace of the host.
func inside(ns string, uid int, p prober.Probe) string {
	return fmt.Sprintf("nsenter --net=%s setpriv --reuid %d --regid %d --clear-groups %s do '%s'", ns, uid, uid, rig.ProberPath, p.Encode())
}

// outcome is the last result among what a prober printed.
func outcome(t testing.TB, printed string) (r prober.Result) {
	t.Helper()
	lines := strings.Split(strings.TrimSpace(printed), "\n")
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &r); err != nil {
		t.Fatalf("a probe printed %q: %v", printed, err)
	}
	return r
}

// from runs a probe as uid in a namespace of the host.
func (g *gate) from(ns string, uid int, p prober.Probe) prober.Result {
	g.t.Helper()
	return outcome(g.t, g.sh(inside(ns, uid, p)))
}

// attach starts exitgate attach and waits until it is ready. The channel tells its end: "code N" after its log.
func (g *gate) attach(name, target string) <-chan prober.Result {
	g.t.Helper()
	end := g.spawn(fmt.Sprintf("%s attach %s >>/var/log/attach 2>&1; echo code $?", rig.BinaryPath, target))
	g.t.Cleanup(func() {
		if g.t.Failed() {
			g.t.Logf("log of attach: %s", g.sh("cat /var/log/attach"))
		}
	})
	if out := g.exitgate("status", "--wait", "ready", "--control", "/run/exitgate/"+name+".sock"); out.Code != 0 {
		g.t.Fatalf("attach %s: exit %d, %q; log: %s", target, out.Code, out.Stderr, g.sh("cat /var/log/attach"))
	}
	return end
}

// ends wants a script to end so.
func ends(t testing.TB, end <-chan prober.Result, want string) {
	t.Helper()
	select {
	case r := <-end:
		if got := strings.TrimSpace(string(r.Data)); !strings.HasSuffix(got, want) {
			t.Errorf("it ended with %q (%s), want %q", got, r.Err, want)
		}
	case <-time.After(patience):
		t.Errorf("it does not end (%q)", want)
	}
}

// nothingLeft wants the host as it was: no table, no process of exitgate's, no socket.
func (g *gate) nothingLeft() {
	g.t.Helper()
	eventually(g.t, "no process is left", func() bool { return g.sh("pgrep -x exitgate | xargs -r ps -o stat= -p | grep -v Z; true") == "" })
	if tables := g.sh("nft list tables"); tables != "" {
		g.t.Errorf("tables on the host: %s", tables)
	}
	if sockets := g.sh("find /run/exitgate -type s 2>/dev/null; true"); sockets != "" {
		g.t.Errorf("left over: %s", sockets)
	}
}

const blue = "/run/netns/blue"

// TestAttach: a target with nothing but lo, which is down, and neither a capability nor a secret.
func TestAttach(t *testing.T) {
	t.Parallel()
	w := world(t)
	api := upstream(t, w, "api.example.com", rig.Server{})
	files := upstream(t, w, "files.example.com", rig.Server{H1: true})
	// What would fill sets where the proxy dials from inside.
	g := host(t, w, basic+"root:\n  - {host: files.example.com, ports: [443]}\nroot_loopback: [9]\n")
	g.sh("ip netns add blue; nft add table ip bystander")
	tables := g.sh("nft -a list ruleset")
	end := g.attach("blue", "--netns "+blue)

	if r := g.from(blue, 1000, get("/reflect")); r.Status != 200 {
		t.Fatalf("the route: %s %s", r, r.Data)
	}
	if r := g.from(blue, 1000, tunnel("files.example.com")); r.Status != 200 {
		t.Errorf("a tunnel: %s %s", r, r.Data)
	}
	seen := api.Seen()
	if got := seen[0]; got.Header.Get("Authorization") != "Bearer "+secret || got.Remote.Addr() != g.Wire.Box4() && got.Remote.Addr() != g.Wire.Box6() {
		t.Errorf("the upstream saw %s with %q; the host is %s", got.Remote, got.Header.Get("Authorization"), g.Wire.Box4())
	}
	if r := g.from(blue, 1000, tunnel("denied.example.com")); r.Status != 403 || !strings.Contains(string(r.Data), "denied.example.com") {
		t.Errorf("not in the policy: %s %s", r, r.Data)
	}
	for _, uid := range []int{0, 1001} {
		if r := g.from(blue, uid, get("/reflect")); r.Errno != "ECONNREFUSED" {
			t.Errorf("uid %d at the agent's listener: %s", uid, r)
		}
	}
	if now := g.sh("nft -a list ruleset"); now != tables {
		t.Errorf("the host's ruleset changed: %s", now)
	}
	set := func(name string) string { return g.sh("nsenter --net=" + blue + " nft list set inet exitgate " + name) }
	for _, name := range []string{"egress4", "egress6", "resolvers4", "resolvers6", "root_loopback"} {
		if s := set(name); strings.Contains(s, "elements") {
			t.Errorf("the target's set is not empty: %s", s)
		}
	}
	if s := set("listeners4"); !strings.Contains(s, "8080") { // the positive control of the line above
		t.Errorf("no listener in the target: %s", s)
	}
	if out := g.exitgate("verify", "--control", "/run/exitgate/blue.sock"); out.Code != 0 {
		t.Errorf("verify: exit %d\n%s%s", out.Code, out.Stdout, out.Stderr)
	}
	if out := g.exitgate("exec", "--control", "/run/exitgate/blue.sock", "--", "true"); out.Code == 0 || !strings.Contains(out.Stderr, "another namespace") {
		t.Errorf("exec, which would run outside: exit %d, %q", out.Code, out.Stderr)
	}
	if r := g.from(blue, 1000, prober.Probe{Op: "shell", Data: []byte("cat /proc/self/environ")}); strings.Contains(string(r.Data), secret) {
		t.Error("the target holds the secret")
	}
	g.sh("pkill -TERM -x exitgate -o; true") // the eldest: attach itself
	ends(t, end, "code 0")
	if r := g.from(blue, 1000, get("/reflect")); r.Errno != "ECONNREFUSED" {
		t.Errorf("after the end: %s", r)
	}
	g.sh("ip netns del blue; nft delete table ip bystander")
	g.nothingLeft()
	g.leaks(places(api, files)...)
}

// TestAttachCutsWhatWasOpen: a target that has a way out loses it, and a flow whose grant is revoked breaks.
func TestAttachCutsWhatWasOpen(t *testing.T) {
	t.Parallel()
	w := world(t)
	files := upstream(t, w, "files.example.com", rig.Server{H1: true})
	g := host(t, w, basic)
	g.sh(`ip netns add blue; ip link add out type veth peer name in netns blue; ip addr add 10.9.0.1/24 dev out; ip link set out up
		nsenter --net=/run/netns/blue sh -c 'ip addr add 10.9.0.2/24 dev in; ip link set in up; ip link set lo up'`)
	if r := <-g.Agent().Start(prober.Probe{Op: "listen", Address: "10.9.0.1:9000", Timeout: time.Minute}); r.Local == "" {
		t.Fatalf("listen on the host: %s", r)
	}
	neighbour := prober.Probe{Op: "tcp", Address: "10.9.0.1:9000"}
	for _, uid := range []int{0, 1000} {
		if r := g.from(blue, uid, neighbour); !r.OK() {
			t.Fatalf("control: uid %d before attach: %s", uid, r)
		}
	}
	pid := g.sh("unshare --fork nsenter --net=" + blue + " sleep 1000 >/dev/null 2>&1 & sleep 0.3; pgrep -x sleep")
	end := g.attach("pid-"+pid, "--pid "+pid)
	for _, uid := range []int{0, 1000, 1001} {
		if r := g.from(blue, uid, neighbour); r.Errno != "ECONNREFUSED" {
			t.Errorf("uid %d after attach: %s", uid, r)
		}
	}
	flow := g.spawn(inside(blue, 1000, busy("files.example.com", time.Minute)))
	eventually(t, "the flow works", func() bool { return len(files.Seen()) > 5 })
	if err := g.SetPolicy(without("files.example.com")); err != nil {
		t.Fatal(err)
	}
	if out := g.exitgate("reload", "--control", "/run/exitgate/pid-"+pid+".sock"); out.Code != 0 {
		t.Fatalf("reload: %q", out.Stderr)
	}
	select {
	case r := <-flow:
		if r = outcome(t, string(r.Data)); r.OK() {
			t.Errorf("the revoked flow: %s", r)
		}
	case <-time.After(patience):
		t.Error("the revoked flow goes on")
	}
	g.sh("kill " + pid)
	ends(t, end, "code 0")
	g.sh("ip netns del blue; ip link del out 2>/dev/null; true")
	g.nothingLeft()
	g.leaks(places(files)...)
}

// TestAttachEndsWithItsPath: when it is gone, and when it names another namespace; the gate's own sockets keep the first one alive.
func TestAttachEndsWithItsPath(t *testing.T) {
	t.Parallel()
	g := host(t, world(t), nothing)
	for name, replace := range map[string]string{"gone": "ip netns del blue", "another": "ip netns del blue; ip netns add blue"} {
		g.sh("ip netns add blue")
		end := g.attach("blue", "--netns "+blue)
		time.Sleep(500 * time.Millisecond) // twice the look's interval: it does not end by itself
		select {
		case r := <-end:
			t.Fatalf("%s: it ended before: %s", name, r.Data)
		default:
		}
		g.sh(replace)
		ends(t, end, "code 0")
		g.sh("ip netns del blue 2>/dev/null; true")
		g.nothingLeft()
	}
}

func TestAttachRefuses(t *testing.T) {
	t.Parallel()
	g := host(t, world(t), nothing)
	g.sh("ip netns add blue; ip netns add red; touch /run/netns/file")
	end := g.attach("blue", "--netns "+blue)
	rootless := g.sh("unshare --user --net sleep 300 >/dev/null 2>&1 & while [ $(readlink /proc/$!/ns/user) = $(readlink /proc/self/ns/user) ]; do :; done; echo $!")
	for _, c := range []struct{ args, says string }{
		{"--pid " + rootless, "another user namespace"},
		{"--pid 1", "this very network namespace"},
		{"--netns /proc/self/ns/net", "this very network namespace"},
		{"--netns " + blue, "answers there already"},
		{"--netns /run/netns/file", "not a network namespace"},
		{"--netns /proc/self/ns/mnt", "not a network namespace"},
		{"--netns /run/netns/missing", "no such file"},
		{"--pid 4194303", "process"},
		{"--pid -1", "no process"},
		{"", "pid"},
		{"--pid 1 --netns " + blue, "netns"},
		{"--netns /run/netns/red --policy /etc/hostname", "hostname:1"},
	} {
		out := g.exitgate(append([]string{"attach"}, strings.Fields(c.args)...)...)
		if out.Code != 125 || !strings.Contains(out.Stderr, c.says) {
			t.Errorf("%s: exit %d, %q; want 125 and %q", c.args, out.Code, out.Stderr, c.says)
		}
	}
	if tables := g.sh("nft list tables"); tables != "" {
		t.Errorf("the host was fenced: %s", tables)
	}
	if g.sh("nsenter --net="+blue+" nft list set inet exitgate listeners4 | grep -c 8080") != "1" {
		t.Error("the first gate lost its listener")
	}
	g.sh("kill " + rootless + "; pkill -TERM -x exitgate -o; true")
	ends(t, end, "code 0")
	g.sh("ip netns del blue; ip netns del red")
	g.nothingLeft()
}

// TestAttachDoesNotReachTheHost: the host has a loopback too, and what listens there is not the target's to reach by a name.
func TestAttachDoesNotReachTheHost(t *testing.T) {
	t.Parallel()
	w := world(t)
	api := upstream(t, w, "api.example.com", rig.Server{})
	policy := basic + "  - {host: trap.example.com, ports: [9443]}\n  - {host: listed.example.com, ports: [9443], addresses: [127.0.0.0/8]}\n"
	g := host(t, w, policy, func(c *rig.Config) { c.Hosts = "127.0.0.1 trap.example.com listed.example.com\n" })
	listening := g.Agent().Start(prober.Probe{Op: "listen", Address: "127.0.0.1:9443", Timeout: time.Minute})
	<-listening
	g.sh("ip netns add blue")
	end := g.attach("blue", "--netns "+blue)
	reach := func(name string) prober.Result {
		return g.from(blue, 1000, prober.Probe{Op: "connect", Address: listener, Tunnel: name + ":9443"})
	}
	if r := reach("trap.example.com"); r.Status == http.StatusOK || !strings.Contains(string(r.Data), "exitgate") {
		t.Errorf("the host's loopback by a name: %s %s", r, r.Data)
	}
	if r := reach("listed.example.com"); r.Status != http.StatusOK {
		t.Errorf("control: listed by its address: %s %s", r, r.Data)
	}
	if r := g.from(blue, 1000, prober.Probe{Op: "tcp", Address: "127.0.0.1:9443"}); r.Errno != "ECONNREFUSED" {
		t.Errorf("directly: %s", r)
	}
	g.sh("pkill -TERM -x exitgate -o; true")
	ends(t, end, "code 0")
	g.leaks(places(api)...)
}

// TestTakenPortNamesItsOwner: in each mode.
func TestTakenPortNamesItsOwner(t *testing.T) {
	t.Parallel()
	g := host(t, world(t), nothing)
	g.sh("ip netns add blue; nsenter --net=" + blue + " ip link set lo up")
	listen := prober.Probe{Op: "listen", Address: listener, Timeout: time.Minute}
	g.spawn("exec " + inside(blue, 1001, listen))
	eventually(t, "the stranger listens", func() bool {
		return strings.Contains(g.sh("nsenter --net="+blue+" cat /proc/net/tcp"), ":1F90")
	})
	<-g.Agent().Start(listen)
	for _, c := range []struct{ args, owner string }{
		{"attach --netns " + blue, "uid 1001"},
		{"run --self-test=false", "pid 1, uid 0"},
		{"run --self-test=false -- true", "pid 1, uid 0"},
	} {
		out := g.exitgate(strings.Fields(c.args)...)
		if out.Code != 125 || !strings.Contains(out.Stderr, listener) || !strings.Contains(out.Stderr, "prober") || !strings.Contains(out.Stderr, c.owner) {
			t.Errorf("%s: exit %d, %q; want 125 and the owner %s", c.args, out.Code, out.Stderr, c.owner)
		}
	}
}
