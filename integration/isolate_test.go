package integration

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"exitgate/integration/prober"
	"exitgate/integration/rig"
)

// machine is a plain machine with a user's home, a working directory in it, and things that are none of the agent's business.
func machine(t testing.TB, w *rig.World, change ...func(*rig.Config)) *gate {
	t.Helper()
	g := host(t, w, basic, append([]func(*rig.Config){func(c *rig.Config) {
		for path, f := range map[string]rig.File{
			"/home/agent/work/mine":    {Data: "mine\n", UID: 1000, GID: 1000},
			"/home/agent/private":      {Data: "private\n", UID: 1000, GID: 1000},
			"/home/agent/named/it":     {Data: "it\n", UID: 1000, GID: 1000},
			"/home/agent/readable/it":  {Data: "it\n", UID: 1000, GID: 1000},
			"/srv/other":               {Data: "other\n"},
			"/var/lib/other":           {Data: "other\n"},
			"/tmp/other":               {Data: "other\n"},
			"/etc/exitgate/other.yaml": {Data: "other\n", UID: 1000},
		} {
			c.Files[path] = f
		}
	}}, change...)...)
	g.sh("chown -R 1000:1000 /home/agent; nft add table ip bystander")
	return g
}

// isolated is the command line that runs COMMAND isolated, in the user's working directory.
func isolated(flags, command string) string {
	return fmt.Sprintf("cd /home/agent/work && %s run --isolate --bind %s:ro %s -- %s", rig.BinaryPath, rig.ProberPath, flags, command)
}

// try runs a script isolated and returns what it prints on standard output, then "code N".
func (g *gate) try(flags, script string) string {
	g.t.Helper()
	return g.sh(isolated(flags, "/bin/sh -c '"+script+"'") + " 2>>/var/log/isolate; echo code $?")
}

// showLog shows what the isolated ones logged, where a test fails.
func showLog(g *gate) {
	g.t.Cleanup(func() {
		if g.t.Failed() {
			g.t.Logf("log of isolate: %s", g.sh("cat /var/log/isolate"))
		}
	})
}

func TestIsolateReachesOnlyTheListener(t *testing.T) {
	t.Parallel()
	w := world(t)
	api := upstream(t, w, "api.example.com", rig.Server{})
	g := machine(t, w)
	showLog(g)
	probe := func(p prober.Probe) prober.Result {
		g.t.Helper()
		out := g.sh(isolated("", rig.ProberPath+" do '"+p.Encode()+"'") + " 2>>/var/log/isolate")
		return outcome(t, out)
	}
	if r := probe(get("/reflect")); r.Status != 200 {
		t.Fatalf("the route: %s %s", r, r.Data)
	}
	if seen := api.Seen(); seen[0].Header.Get("Authorization") != "Bearer "+secret || seen[0].Remote.Addr() != g.Wire.Box4() && seen[0].Remote.Addr() != g.Wire.Box6() {
		t.Errorf("the upstream saw %s from %s", seen[0].Header, seen[0].Remote)
	}
	there := prober.Probe{Op: "tcp", Address: at(api.Addr4, 443)}
	if r := g.do(there); !r.OK() {
		t.Fatalf("control: the host reaches the upstream: %s", r)
	}
	if r := probe(there); r.OK() {
		t.Errorf("directly: %s", r)
	}
	if r := probe(prober.Probe{Op: "udp", Address: at(w.DNS.Addr4, 53), Data: []byte("x")}); r.OK() {
		t.Errorf("DNS: %s", r)
	}
	self := probe(prober.Probe{Op: "self"}).Self
	if self.UID != 1000 || self.Status["CapEff"] != "0000000000000000" || self.Status["NoNewPrivs"] != "1" || self.Dir != "/home/agent/work" {
		t.Errorf("the agent: %+v", self)
	}
	if all := strings.Join(self.Environ, "\n"); strings.Contains(all, secret) || !strings.Contains(all, "API_URL=http://"+listener) || !strings.Contains(all, "HOME=/home/agent") {
		t.Errorf("its environment: %s", all)
	}
	for fd, to := range self.Files {
		if !strings.Contains("0 1 2", fd) && !strings.HasPrefix(to, "/proc/") && !strings.HasPrefix(to, "anon_inode:") {
			t.Errorf("open in the agent: %s %s", fd, to)
		}
	}
	g.sh("nft delete table ip bystander")
	g.nothingLeft()
	g.leaks(places(api)...)
}

// TestIsolateShows: what is seen and what is not; each negative has its like on the host.
func TestIsolateShows(t *testing.T) {
	t.Parallel()
	g := machine(t, world(t))
	showLog(g)
	g.sh("ln -s /run /home/agent/work/link")
	tables := g.sh("nft list tables")
	for _, path := range []string{"/home/agent/private", "/srv/other", "/var/lib/other", "/tmp/other", "/root", "/run/exitgate", "/run/secrets/api"} {
		if got := g.sh("test -e " + path + " && echo there"); got != "there" {
			t.Errorf("control: %s is not on the host", path)
		}
		if got := g.try("", "test -e "+path); got != "code 1" {
			t.Errorf("%s: %q", path, got)
		}
	}
	for _, c := range []struct{ flags, script, want string }{
		{"", "cat mine; echo new > made; rm mine; pwd", "mine\n/home/agent/work\ncode 0"},
		{"", "touch /etc/x /usr/x /x /proc/sys/x 2>&1 | grep -c -E \"Read-only|denied|Permission|No such\"", "4\ncode 0"},
		{"", "touch /etc/exitgate/other.yaml 2>&1", "touch: cannot touch '/etc/exitgate/other.yaml': Read-only file system\ncode 1"},
		{"", "touch ~/x /tmp/x /var/tmp/x /dev/shm/x && ls ~ /tmp | sort", "/home/agent:\n/tmp:\nwork\nx\nx\ncode 0"},
		{"", "grep -c nameserver /etc/resolv.conf", "0\ncode 1"},
		{"", "ls /sys/class/net", "lo\ncode 0"},
		{"", "ls /proc | grep -c -E \"^[0-9]+$\"", "5\ncode 0"}, // init, sh, ls, grep, and a fork of sh on the way to one of them at most
		{"", "cat /proc/1/cmdline | tr \"\\0\" \" \"; grep CapEff /proc/1/status", "exitgate inner CapEff:\t00000000000001e0\ncode 0"},
		{"", "cat /proc/1/environ 2>&1 | grep -c denied", "1\ncode 0"},
		{"", "exit 42", "code 42"},
		{"", "kill -TERM $$", "code 143"},
		{"--bind /home/agent/named --bind /home/agent/readable:ro", "cat ~/named/it && touch ~/named/x && cat ~/readable/it; touch ~/readable/x 2>/dev/null || echo no", "it\nit\nno\ncode 0"},
		{"--bind /home/agent/missing", "true", "code 125"},
		{"--bind /home/agent/work/link", "true", "code 125"},
		{"--bind work", "true", "code 125"},
	} {
		got := g.try(c.flags, c.script)
		if strings.HasPrefix(c.want, "5\n") && (strings.HasPrefix(got, "4\n") || strings.HasPrefix(got, "3\n")) {
			continue
		}
		if got != c.want {
			t.Errorf("%s: %s: got %q, want %q", c.flags, c.script, got, c.want)
		}
	}
	if got := g.sh("cat /home/agent/work/made; stat -c %u /home/agent/work/made /home/agent/named/x; ls /home/agent/work /tmp"); got != "new\n1000\n1000\n/home/agent/work:\nlink\nmade\n\n/tmp:\nother" {
		t.Errorf("on the host afterwards: %q", got)
	}
	for dir, want := range map[string]string{"/": "125", "/home/agent": "125", "/run": "125", "/srv": "0"} {
		got := g.sh("cd " + dir + " && " + rig.BinaryPath + " run --isolate -- true 2>>/var/log/isolate; echo $?")
		if got != want {
			t.Errorf("in %s: exit %s, want %s", dir, got, want)
		}
	}
	if now := g.sh("nft list tables"); now != tables {
		t.Errorf("tables on the host: %q, before %q", now, tables)
	}
	g.sh("nft delete table ip bystander")
	g.nothingLeft()
}

// sockets listens on each of its arguments until it is killed, and says when it does.
const sockets = `import os,socket,sys,time
keep=[]
for p in sys.argv[1:]:
    s=socket.socket(socket.AF_UNIX); s.bind("\0"+p[1:] if p[0]=="@" else p); s.listen(5); keep.append(s)
    if p[0]!="@": os.chmod(p, 0o777)
open("/var/log/listening","w").close()
time.sleep(300)
`

// connects tries each of its arguments and says which one answers.
const connects = `import socket,sys
for p in sys.argv[1:]:
    s=socket.socket(socket.AF_UNIX)
    try:
        s.connect("\0"+p[1:] if p[0]=="@" else p); print(p,"reached")
    except OSError as e: print(p,"refused")
`

// TestIsolateHasNoSocketOfTheHost: pathname sockets are ways out that no firewall sees.
func TestIsolateHasNoSocketOfTheHost(t *testing.T) {
	t.Parallel()
	g := machine(t, world(t), func(c *rig.Config) {
		c.Files["/home/agent/named/sockets.py"] = rig.File{Data: sockets}
		c.Files["/home/agent/named/connects.py"] = rig.File{Data: connects}
	})
	showLog(g)
	paths := "/run/canary.sock /tmp/canary.sock /var/tmp/canary.sock /var/lib/canary.sock /home/agent/canary.sock /srv/canary.sock /dev/shm/canary.sock " +
		"/etc/canary.sock /home/agent/work/canary.sock /home/agent/named/canary.sock @canary"
	g.spawn("cd /home/agent/work && exec python3 /home/agent/named/sockets.py " + paths + " /home/agent/readable/named.sock relative.sock /home//agent/work/slash.sock")
	paths += " /home/agent/work/relative.sock /home/agent/work/slash.sock"
	eventually(t, "the canaries listen", func() bool { return g.sh("test -e /var/log/listening && echo yes") == "yes" })
	try := "python3 /home/agent/named/connects.py " + paths
	if got := g.sh("setpriv --reuid 1000 --regid 1000 --clear-groups " + try); strings.Contains(got, "refused") || strings.Count(got, "reached") != 13 {
		t.Fatalf("control: on the host: %s", got)
	}
	got := g.try("--bind /home/agent/named --bind /home/agent/readable/named.sock", try+" /home/agent/readable/named.sock")
	if strings.Count(got, "refused") != 13 || !strings.HasSuffix(got, "/home/agent/readable/named.sock reached\ncode 0") {
		t.Errorf("isolated: %s", got)
	}
}

// TestIsolateUnixSocketOfThePolicy: the agent's own is there.
func TestIsolateUnixSocketOfThePolicy(t *testing.T) {
	t.Parallel()
	w := world(t)
	upstream(t, w, "api.example.com", rig.Server{})
	g := machine(t, w, func(c *rig.Config) {
		c.Policy = strings.Replace(basic, "version: 1\n", "version: 1\nagents: [{name: agent, socket: /run/exitgate/agent.sock}]\n", 1)
	})
	showLog(g)
	if got := g.try("", "ls /run/exitgate; curl -s -o /dev/null -w \"%{http_code}\\n\" --unix-socket /run/exitgate/agent.sock http://x/reflect"); got != "agent.sock\n200\ncode 0" {
		t.Errorf("got %q", got)
	}
}

// TestIsolateEndsWithItsGate: without the proxy's parent there is nobody to answer, and nobody to end the agent.
func TestIsolateEndsWithItsGate(t *testing.T) {
	t.Parallel()
	for name, sig := range map[string]string{"KILL": "137", "TERM": "143"} {
		g := machine(t, world(t))
		end := g.spawn(isolated("", "/bin/sh -c 'touch /home/agent/work/up; sleep 1000 & sleep 1000'") + " 2>>/var/log/isolate; echo code $?")
		eventually(t, "the agent runs", func() bool { return g.sh("test -e /home/agent/work/up && echo yes") == "yes" })
		eventually(t, "control: two processes of the agent's", func() bool { return g.sh("pgrep -c -x sleep") == "2" })
		g.sh("kill -" + name + " $(pgrep -o -x exitgate)")
		ends(t, end, "code "+sig)
		eventually(t, name+": the agent has ended", func() bool { return g.sh("pgrep -x sleep | xargs -r ps -o stat= -p | grep -v Z; true") == "" })
		if name == "TERM" {
			g.sh("nft delete table ip bystander")
			g.nothingLeft()
		}
	}
}

// TestIsolateTerminal: a person at a shell of the host, who starts agents isolated.
func TestIsolateTerminal(t *testing.T) {
	t.Parallel()
	g := start(t, world(t), nothing, everything, func(c *rig.Config) {
		c.Terminal, c.Plain = true, true
		c.Args = []string{"/bin/bash", "--norc", "--noprofile", "-i"}
		c.Env = append(c.Env, "TERM=dumb", "PS1=outer> ", "EXITGATE_GRACE=1s")
		c.Files["/home/agent/work/rc"] = rig.File{Data: "PS1='inner> '\n"}
	})
	term := g.Terminal
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("screen:\n%s", term.Screen())
		}
	})
	run := rig.BinaryPath + " run --isolate -- "
	typed(t, term, "", "outer> ")
	typed(t, term, "cd /home/agent/work\n", "outer> ")
	if err := term.Resize(30, 100); err != nil {
		t.Fatal(err)
	}
	// A shell: its jobs, its signals, its size.
	typed(t, term, run+"bash --noprofile --rcfile rc -i\n", "inner> ")
	typed(t, term, "tty; stty size; id -u\n", "/dev/pts/0", "30 100", "1000", "inner> ")
	if err := term.Resize(33, 111); err != nil {
		t.Fatal(err)
	}
	typed(t, term, "while ! stty size | grep -q '33 111'; do sleep 0.05; done; echo re''sized\n", "resized", "inner> ")
	typed(t, term, "echo ag''ain > /dev/stderr; echo a''nd > /dev/tty\n", "again", "and", "inner> ")
	typed(t, term, "sh -c 'echo up; exec sleep 1000'\n", "up\r\n")
	typed(t, term, "\x1a", "Stopped", "inner> ")
	typed(t, term, "fg\n", "sleep 1000")
	time.Sleep(200 * time.Millisecond)
	typed(t, term, "\x03", "inner> ")
	typed(t, term, "echo code $?\n", "code 130", "inner> ")
	typed(t, term, "exit 6\n", "outer> ")
	typed(t, term, "echo code $?\n", "code 6", "outer> ")
	// A program: Ctrl-Z goes back to the outer shell, fg to the program.
	typed(t, term, run+"sh -c 'echo u''p; exec cat'\n", "up\r\n") // not before: what is typed earlier is the outer terminal's
	typed(t, term, "one\n", "one", "one")
	typed(t, term, "\x1a", "Stopped", "outer> ")
	typed(t, term, "echo still he''re\n", "still here", "outer> ")
	typed(t, term, "fg\n", "cat")
	time.Sleep(300 * time.Millisecond)
	typed(t, term, "two\n", "two", "two")
	typed(t, term, "\x1a", "Stopped", "outer> ")
	typed(t, term, "bg\n", "outer> ")
	typed(t, term, "fg\n", "cat")
	time.Sleep(600 * time.Millisecond) // a relay in the background looks five times a second
	typed(t, term, "three\n", "three", "three")
	typed(t, term, "\x03", "outer> ")
	typed(t, term, "echo code $?\n", "code 130", "outer> ")
	typed(t, term, "stty -a | grep -o ' icanon'\n", " icanon", "outer> ")
	// A pipe on either side stays one.
	typed(t, term, run+"sh -c 'test -t 0 && ! test -t 1 && echo first' | tr f F\n", "First", "outer> ")
	typed(t, term, "echo second | "+run+"sh -c '! test -t 0 && test -t 1 && tr s S'\n", "Second", "outer> ")
	if s := term.Screen(); strings.Contains(s, `{"time"`) || strings.Contains(s, "exitgate: ") {
		t.Errorf("the gate drew over the terminal: %s", s)
	}
	typed(t, term, run+"sh -c 'echo a''t work; exec sleep 1000'\n", "at work")
	if err := term.HangUp(); err != nil {
		t.Fatal(err)
	}
	if _, err := g.Wait(patience); err != nil {
		t.Errorf("after the terminal's hang-up: %v", err)
	}
}

// TestIsolateWithoutItsMeans: a container's root cannot make mounts; it says so.
func TestIsolateWithoutItsMeans(t *testing.T) {
	t.Parallel()
	g := start(t, world(t), nothing, func(c *rig.Config) {
		c.Plain = true
		c.Args = []string{"/bin/sh", "-c", "cd /home/agent && mkdir work && cd work && exec " + rig.BinaryPath + " run --isolate -- true"}
		c.Capabilities = append([]uintptr{}, rig.EngineCapabilities...)
	})
	if code := g.code(); code != 125 || !strings.Contains(g.Stderr.String(), "CAP_SYS_ADMIN") {
		t.Errorf("exit %d, %q", code, g.Stderr.String())
	}
}
