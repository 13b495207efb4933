package supervise

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestExitCodes(t *testing.T) {
	dir := openDir(t)
	script(t, dir, "plain", "#!/bin/sh\n", 0o644)
	script(t, dir, "lost", "#!/no/such/interpreter\n", 0o755)
	script(t, dir, "garbage", "\x00\x01\x02", 0o755)
	if err := os.Mkdir(dir+"/sub", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(dir+"/shut", 0o700); err != nil {
		t.Fatal(err)
	}
	script(t, dir+"/shut", "hidden", "#!/bin/sh\n", 0o755)
	cmd := func(argv ...string) Command { return Command{Argv: argv, Env: agentEnv(), Identity: agentID} }
	pastShut := func(argv ...string) Command {
		return Command{Argv: argv, Env: []string{"PATH=" + dir + "/shut:/bin:/usr/bin"}, Identity: agentID}
	}
	inPath := func(argv ...string) Command {
		return Command{Argv: argv, Env: []string{"PATH=/no/where:" + dir}, Identity: agentID}
	}
	with := func(c Command, change func(*Command)) Command { change(&c); return c }
	for _, tc := range []struct {
		name string
		cmd  Command
		code int
		say  string // part of the one line on stderr; "" for none
	}{
		{"zero", cmd("true"), 0, ""},
		{"one", cmd("false"), 1, ""},
		{"own 125", shell("exit 125"), 125, ""},
		{"own 255", shell("exit 255"), 255, ""},
		{"killed by TERM", shell("kill -TERM $$"), 143, ""},
		{"killed by KILL", shell("kill -KILL $$"), 137, ""},
		{"killed by SEGV", shell("kill -SEGV $$"), 139, ""},
		{"killed by a real-time signal", shell("kill -40 $$"), 168, ""},
		{"not in PATH", cmd("no-such-command"), 127, `"no-such-command" is not in the agent's PATH (/usr/local/sbin:`},
		{"no such file", cmd("/no/such/file"), 127, `command not found: "/no/such/file"`},
		{"empty name", cmd(""), 127, "its name is empty"},
		{"no interpreter", cmd(dir + "/lost"), 127, "interpreter or loader"},
		{"not executable", cmd(dir + "/plain"), 126, "permission denied"},
		{"not executable in PATH", inPath("plain"), 126, "permission denied"},
		{"not in PATH, part of which is shut", pastShut("no-such-command"), 127, "where it may not look into " + dir + "/shut; install it"},
		{"in a part of PATH that is shut", pastShut("hidden"), 127, "where it may not look into " + dir + "/shut; install it"},
		{"behind a part of PATH that is shut", pastShut("true"), 0, ""},
		{"in a directory that is shut", cmd(dir + "/shut/hidden"), 126, "permission denied"},
		{"a directory", cmd(dir + "/sub"), 126, "permission denied"},
		{"no program", cmd(dir + "/garbage"), 126, "neither a program for this machine nor a script"},
		{"a file as directory", cmd(dir + "/plain/x"), 127, "not found"},
		{"working directory gone", with(cmd("true"), func(c *Command) { c.Dir = dir + "/gone" }), 125, "working directory " + dir + "/gone"},
		{"root", with(cmd("true"), func(c *Command) { c.UID = 0 }), 125, "must not be root"},
		{"no command", Command{Identity: agentID}, 125, "no command"},
		{"unknown hardening point", with(cmd("true"), func(c *Command) { c.Loosen = []string{"everything"} }), 125, `unknown hardening point "everything"; the names are user-namespaces,`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			code, said := run(t, gateConfig{Command: tc.cmd}, true)
			if code != tc.code {
				t.Errorf("exit code %d, want %d; said:\n%s", code, tc.code, said)
			}
			var lines []string
			for line := range strings.Lines(said) {
				if !strings.HasPrefix(line, "gate: agent") && !strings.HasPrefix(line, "gate: end") {
					lines = append(lines, line)
				}
			}
			if want := min(len(tc.say), 1); len(lines) != want || !strings.Contains(strings.Join(lines, ""), tc.say) {
				t.Errorf("said %q, want %d line with %q", lines, want, tc.say)
			}
		})
	}
}

// A default search path, and directories that come to nothing on the way.
func TestLookup(t *testing.T) {
	dir := openDir(t)
	for _, sub := range []string{"a", "b"} {
		if err := os.Mkdir(dir+"/"+sub, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	script(t, dir+"/a", "tool", "#!/bin/sh\necho wrong\n", 0o644)
	script(t, dir+"/b", "tool", "#!/bin/sh\necho \"in $PWD\"\n", 0o755)
	for _, tc := range []struct{ env, dir, argv0, want string }{
		{"PATH=" + dir + "/a:" + dir + "/b", "", "tool", "in "},
		{"PATH=:/bin:/usr/bin", dir + "/b", "tool", "in " + dir + "/b"}, // the empty element is the working directory
		{"NOPATH=1", dir, "pwd", dir},
	} {
		c := Command{Argv: []string{tc.argv0}, Env: []string{tc.env}, Dir: tc.dir, Identity: agentID}
		if code, said := run(t, gateConfig{Command: c}, true); code != 0 || !strings.Contains(said, tc.want) {
			t.Errorf("%q with %s: code %d, said %q; want %q", tc.argv0, tc.env, code, said, tc.want)
		}
	}
}

// Arguments and variables come to the agent byte for byte.
func TestAnyBytes(t *testing.T) {
	const odd = "caf\xe9 \xff\xfe <&> \u2028 \ufffd"
	c := Command{Argv: []string{"sh", "-c", `printf '%s|%s' "$ODD" "$1"`, "sh", odd}, Env: append(agentEnv(), "ODD="+odd), Identity: agentID}
	if code, said := run(t, gateConfig{Command: c}, true); code != 0 || !strings.Contains(said, odd+"|"+odd) {
		t.Errorf("code %d, said %q", code, said)
	}
}

func TestForwarding(t *testing.T) {
	const names = "TERM INT QUIT USR1 USR2 WINCH CONT HUP URG PIPE TSTP TTIN TTOU"
	const trap = `for s in ` + names + `; do trap "echo got-$s" $s; done; trap "ended=7" ALRM
		echo ready; while [ -z "$ended" ]; do sleep 0.05; done; exit $ended`
	bothWays(t, func(t *testing.T, first bool) {
		g := startGate(t, gateConfig{Command: shell(trap), Busy: true, Grace: time.Millisecond}, first)
		g.await("ready")
		for _, sig := range []unix.Signal{unix.SIGTERM, unix.SIGINT, unix.SIGQUIT, unix.SIGUSR1, unix.SIGUSR2, unix.SIGWINCH, unix.SIGCONT} {
			g.signal(sig)
			g.await("got-" + strings.TrimPrefix(unix.SignalName(sig), "SIG"))
		}
		for _, sig := range []unix.Signal{unix.SIGTSTP, unix.SIGTTIN, unix.SIGTTOU, unix.SIGURG, unix.SIGPIPE, unix.SIGCHLD, unix.SIGHUP} {
			g.signal(sig)
		}
		g.await("gate: hangup")
		g.signal(unix.SIGUSR1) // after those, so that they have been dealt with
		eventually(t, func() bool { return strings.Count(g.String(), "got-USR1") == 2 }, g.String)
		for _, never := range []string{"HUP", "URG", "PIPE", "TSTP", "TTIN", "TTOU"} {
			if strings.Contains(g.String(), "got-"+never) {
				t.Errorf("SIG%s was forwarded", never)
			}
		}
		var pid int
		if _, err := fmt.Sscanf(g.String()[strings.Index(g.String(), "gate: agent"):], "gate: agent %d", &pid); err != nil {
			t.Fatal(err)
		}
		if first {
			g.signal(unix.SIGKILL) // nothing forwards ALRM
			_ = g.cmd.Wait()
			return
		}
		_ = unix.Kill(pid, unix.SIGALRM)
		if code := g.wait(); code != 7 {
			t.Errorf("exit code %d, want 7", code)
		}
	})
}

// The group gets signals, not the first process of it alone.
func TestForwardToGroup(t *testing.T) {
	const script = `trap : TERM
		bash -c 'trap "echo child; exit" TERM; echo ready; while :; do sleep 0.05; done' &
		while kill -0 $! 2>/dev/null; do wait $!; done; exit 3`
	bothWays(t, func(t *testing.T, first bool) {
		g := startGate(t, gateConfig{Command: shell(script)}, first)
		g.await("ready")
		g.signal(unix.SIGTERM)
		if code := g.wait(); code != 3 || !strings.Contains(g.String(), "child") {
			t.Errorf("exit code %d, said:\n%s", code, g)
		}
	})
}

func TestDefaultTermination(t *testing.T) {
	bothWays(t, func(t *testing.T, first bool) {
		g := startGate(t, gateConfig{Command: shell("echo ready; exec sleep 1000")}, first)
		g.await("ready")
		g.signal(unix.SIGTERM)
		if code := g.wait(); code != 143 {
			t.Errorf("exit code %d, want 143", code)
		}
	})
}

func TestInterruptedEarly(t *testing.T) {
	bothWays(t, func(t *testing.T, first bool) {
		dir := openDir(t)
		code, said := run(t, gateConfig{Command: shell("touch " + dir + "/ran"), TermEarly: true}, first)
		if code != 125 || !strings.Contains(said, ErrInterrupted.Error()) {
			t.Errorf("exit code %d, said:\n%s", code, said)
		}
		if _, err := os.Stat(dir + "/ran"); err == nil {
			t.Error("the agent was started after a TERM")
		}
	})
}

func TestSidecar(t *testing.T) {
	for _, sig := range []unix.Signal{unix.SIGTERM, unix.SIGINT, unix.SIGQUIT} {
		g := startGate(t, gateConfig{Sidecar: true}, true)
		g.await("ready")
		g.signal(unix.SIGHUP)
		g.await("hangup")
		g.signal(unix.SIGUSR1) // for nobody
		g.signal(sig)
		if code := g.wait(); code != 0 {
			t.Errorf("%v: exit code %d, want 0", sig, code)
		}
	}
}

// A HUP from a shell whose end of our standard input is closed is still somebody's, and no terminal's.
func TestHangupPipe(t *testing.T) {
	g := &gate{transcript: &transcript{t: t}, cmd: gateCommand(t, gateConfig{Command: shell("echo ready; trap 'echo got-HUP' HUP; while :; do sleep 0.05; done")}, true)}
	g.cmd.Stdout, g.cmd.Stderr = g.transcript, g.transcript
	stdin, err := g.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	g.start()
	stdin.Close()
	g.await("ready")
	g.signal(unix.SIGHUP)
	g.await("gate: hangup")
	if strings.Contains(g.String(), "got-HUP") {
		t.Error("HUP was forwarded")
	}
}

// Orphans are waited for: 200 grandchildren whose parents are gone, and no zombie afterwards.
func TestOrphans(t *testing.T) {
	const script = `echo 'adopter is' $PPID
		for i in $(seq 200); do (sleep 0.0$((i % 10)) & ) ; done
		for try in $(seq 500); do
			left=$(ps -o pid= --ppid $PPID | wc -l) zombies=$(ps -o stat= --ppid $PPID | grep -c Z)
			[ $left = 1 ] && echo no zombies && exit 0
			sleep 0.02
		done
		ps -ef; exit 1`
	bothWays(t, func(t *testing.T, first bool) {
		if code, said := run(t, gateConfig{Command: shell(script)}, first); code != 0 || !strings.Contains(said, "no zombies") {
			t.Errorf("exit code %d, said:\n%s", code, said)
		}
	})
}

// childrenProgram starts many children that end at once, each with a code of its own.
func childrenProgram([]string) int {
	s := New(Options{})
	ctx := make(chan struct{})
	go func() { // signals meanwhile
		for {
			select {
			case <-ctx:
				return
			default:
				_ = unix.Kill(os.Getpid(), unix.SIGCHLD)
				time.Sleep(time.Millisecond)
			}
		}
	}()
	defer close(ctx)
	if err := onlyThree(s); err != nil {
		println(err.Error())
		return 1
	}
	children := make([]*Child, 300)
	for i := range children {
		c, err := s.Start(Process{Name: "child", Path: "/bin/sh", Argv: []string{"sh", "-c", fmt.Sprintf("exit %d", i%256)}})
		if err != nil {
			println(err.Error())
			return 1
		}
		children[i] = c
	}
	for i, c := range children {
		select {
		case <-c.Done():
		case <-time.After(patience):
			println("a child's status was lost")
			return 1
		}
		if got := c.Status(); got != (Status{Code: i % 256}) {
			println("child", i, "ended with", got.Code, got.Signal)
			return 1
		}
		if err := c.Signal(unix.SIGKILL); err != os.ErrProcessDone {
			println("signal to a child that has ended:", err)
			return 1
		}
	}
	return 0
}

// turnsProgram has more children end than are waited for in one turn, and more SIGCHLD come than any channel holds.
func turnsProgram([]string) int {
	quiet := &Supervisor{children: map[int]*Child{}} // nobody but us waits
	const dead = 3*turn + 1
	for range dead {
		if _, err := syscall.ForkExec("/bin/true", []string{"true"}, nil); err != nil {
			println(err.Error())
			return 1
		}
	}
	if zombies := awaitZombies(dead); zombies != dead {
		println("zombies:", zombies)
		return 1
	}
	for n := 1; quiet.reap(); n++ {
		if zombies := awaitZombies(0); zombies != dead-n*turn {
			println("zombies after turn", n, ":", zombies)
			return 1
		}
	}
	if zombies := awaitZombies(0); zombies != 0 {
		println("zombies at the end:", zombies)
		return 1
	}
	s := New(Options{})
	s.mu.Lock() // the loop waits, as for a turn
	for range 2000 {
		_ = unix.Kill(os.Getpid(), unix.SIGCHLD)
		time.Sleep(100 * time.Microsecond) // for the runtime to take this one from the kernel, which would merge it with the next
	}
	_ = unix.Kill(os.Getpid(), unix.SIGTERM)
	time.Sleep(100 * time.Millisecond)
	s.mu.Unlock()
	select {
	case <-s.Interrupted():
		return 0
	case <-time.After(patience):
		println("TERM was lost among SIGCHLDs")
		return 1
	}
}

// awaitZombies counts the children of this process that have ended, when there are want of them or time is up.
func awaitZombies(want int) (zombies int) {
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		zombies = 0
		for _, pid := range pids() {
			if p, ok := readProcess(pid); ok && p.parent == os.Getpid() && p.state == 'Z' {
				zombies++
			}
		}
		if zombies >= want {
			break
		}
	}
	return zombies
}

// However many processes end, signals come to be acted upon.
func TestTurns(t *testing.T) {
	g := &gate{transcript: &transcript{t: t}, cmd: gateCommand(t, gateConfig{}, false)}
	g.cmd.Env = append(os.Environ(), "EXITGATE_TEST_PROGRAM=turns")
	g.cmd.Stdout, g.cmd.Stderr = g.transcript, g.transcript
	g.start()
	if code := g.wait(); code != 0 {
		t.Errorf("exit code %d: %s", code, g)
	}
}

// Nobody reads what the gate says any more, and it goes on.
func TestBrokenPipe(t *testing.T) {
	bothWays(t, func(t *testing.T, first bool) {
		dir := openDir(t)
		c := shell("exec 2>/dev/null; trap 'exit 7' USR1; touch " + dir + "/up; while :; do sleep 0.05; done")
		g := &gate{transcript: &transcript{t: t}, cmd: gateCommand(t, gateConfig{Command: c}, first)}
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		g.cmd.Stderr = w
		g.start()
		w.Close()
		eventually(t, func() bool { _, err := os.Stat(dir + "/up"); return err == nil }, func() string { return "no agent" })
		r.Close()
		g.signal(unix.SIGHUP) // of which it tells
		g.signal(unix.SIGUSR1)
		if code := g.wait(); code != 7 {
			t.Errorf("exit code %d, want 7", code)
		}
	})
}

// onlyThree has a child list its descriptors: those it was given, and the one it lists them by.
func onlyThree(s *Supervisor) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	c, err := s.Start(Process{Name: "ls", Path: "/bin/ls", Argv: []string{"ls", "/proc/self/fd"}, Files: []*os.File{nil, w, nil}})
	w.Close()
	if err != nil {
		return err
	}
	b, err := io.ReadAll(r)
	<-c.Done()
	if got := strings.Fields(string(b)); err != nil || !slices.Equal(got, []string{"0", "1", "2", "3"}) {
		return fmt.Errorf("a child has descriptors %q, %v", got, err)
	}
	return nil
}

func TestStatuses(t *testing.T) {
	g := &gate{transcript: &transcript{t: t}, cmd: gateCommand(t, gateConfig{}, false)}
	g.cmd.Env = append(os.Environ(), "EXITGATE_TEST_PROGRAM=children")
	g.cmd.Stdout, g.cmd.Stderr = g.transcript, g.transcript
	g.start()
	if code := g.wait(); code != 0 {
		t.Errorf("exit code %d: %s", code, g)
	}
}

// What the agent leaves running is ended: politely, by force, and never the proxy.
func TestLeftovers(t *testing.T) {
	bothWays(t, func(t *testing.T, first bool) {
		dir := openDir(t)
		leftover := func(name, trap string) string {
			return fmt.Sprintf(`setsid bash -c '%s; touch %s/%s.up; while :; do sleep 0.05; done' & `, trap, dir, name)
		}
		start := leftover("polite", `trap "touch `+dir+`/polite.term; exit" TERM`) +
			leftover("stubborn", `trap "" TERM HUP`) +
			leftover("stopped", `trap "touch `+dir+`/stopped.term; exit" TERM; touch `+dir+`/stopped.ready; kill -STOP $$`) +
			fmt.Sprintf(`until [ -e %[1]s/polite.up -a -e %[1]s/stubborn.up -a -e %[1]s/stopped.ready ]; do sleep 0.02; done; exit 9`, dir)
		cfg := gateConfig{Command: shell(start), Proxy: true, Grace: 1500 * time.Millisecond}
		code, said := run(t, cfg, first)
		if code != 9 || !strings.Contains(said, "the proxy runs") {
			t.Errorf("exit code %d, said:\n%s", code, said)
		}
		for _, file := range []string{"polite.term", "stopped.term"} {
			if _, err := os.Stat(dir + "/" + file); err != nil {
				t.Errorf("no TERM before the end: %v", err)
			}
		}
		if left := processesOf(agentID.UID); first && len(left) > 0 && strings.Contains(cmdlines(left), dir) {
			t.Errorf("still running: %s", cmdlines(left))
		}
	})
}

func cmdlines(pids []int) (all string) {
	for _, pid := range pids {
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		all += strings.ReplaceAll(string(b), "\x00", " ") + "\n"
	}
	return all
}

// A second TERM while the rest is being ended cuts the grace short: with a grace of an hour the test would not end.
func TestSecondTerm(t *testing.T) {
	bothWays(t, func(t *testing.T, first bool) {
		dir := openDir(t)
		g := startGate(t, gateConfig{Grace: time.Hour, Command: shell(
			`setsid bash -c 'trap "touch ` + dir + `/term" TERM; touch ` + dir + `/up; while :; do sleep 0.05; done' &
			until [ -e ` + dir + `/up ]; do sleep 0.02; done; exit 9`)}, first)
		eventually(t, func() bool { _, err := os.Stat(dir + "/term"); return err == nil }, g.String)
		g.signal(unix.SIGTERM)
		if code := g.wait(); code != 9 {
			t.Errorf("exit code %d, want 9", code)
		}
	})
}

// The caller ends a run: TERM, then KILL.
func TestContext(t *testing.T) {
	bothWays(t, func(t *testing.T, first bool) {
		up := openDir(t) + "/up"
		c := shell(`trap "echo got-TERM" TERM; touch ` + up + `; while :; do sleep 0.05; done`)
		code, said := run(t, gateConfig{Command: c, EndWhen: up, Grace: 2 * time.Second}, first)
		if code != 137 || !strings.Contains(said, "got-TERM") {
			t.Errorf("exit code %d, want 137; said:\n%s", code, said)
		}
	})
}

// An agent that stops itself without a terminal is continued, by SIGSTOP too where nobody is above the gate who could; elsewhere
// one that somebody stopped stays so.
func TestStopped(t *testing.T) {
	bothWays(t, func(t *testing.T, first bool) {
		g := startGate(t, gateConfig{Command: shell(`echo ready; kill -TSTP $$; echo continued; kill -STOP $$; echo again`)}, first)
		g.await("continued")
		if !first {
			g.await("stopped by")
			g.signal(unix.SIGCONT)
		}
		if code := g.wait(); code != 0 || !strings.Contains(g.String(), "again") {
			t.Errorf("exit code %d, said:\n%s", code, g)
		}
	})
}

// Signals that whoever started the gate blocks or ignores are neither in the agent.
func TestDispositions(t *testing.T) {
	python := tool(t, "python3")
	const show = `grep -E 'Sig(Ign|Blk)' /proc/self/status`
	const wrap = `import os, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM, signal.SIGUSR2])
signal.signal(signal.SIGHUP, signal.SIG_IGN); signal.signal(signal.SIGRTMIN, signal.SIG_IGN)
os.execv(sys.argv[1], sys.argv[1:])`
	control, err := exec.Command(python, "-c", wrap, "/bin/bash", "-c", show).CombinedOutput()
	if err != nil || !strings.Contains(string(control), "SigBlk:\t0000000000002800") || strings.Contains(string(control), "SigIgn:\t0000000000000000") {
		t.Fatalf("%v: a child of the wrapper has %q", err, control)
	}
	bothWays(t, func(t *testing.T, first bool) {
		g := &gate{transcript: &transcript{t: t}, cmd: gateCommand(t, gateConfig{Command: shell(show)}, first)}
		g.cmd.Args = append([]string{python, "-c", wrap, g.cmd.Path}, g.cmd.Args[1:]...)
		g.cmd.Path = python
		if exe, err := os.Executable(); err == nil {
			g.cmd.Args[3] = exe
		}
		g.cmd.Stdout, g.cmd.Stderr = g.transcript, g.transcript
		g.start()
		if code := g.wait(); code != 0 {
			t.Errorf("exit code %d", code)
		}
		for _, want := range []string{"SigIgn:\t0000000000000000", "SigBlk:\t0000000000000000"} {
			if !strings.Contains(g.String(), want) {
				t.Errorf("agent has\n%s\nwant %s", g, want)
			}
		}
	})
}
