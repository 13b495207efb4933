package supervise

import (
	"encoding/json"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"

	"exitgate/netns/netnstest"
)

// ttyGate is a gate on a terminal of its own, which is also the transcript.
type ttyGate struct {
	*gate
	master *os.File
}

// startOnTerminal starts cmd as the leader of a session on a new terminal, as `docker run -t` does.
func startOnTerminal(t *testing.T, cmd *exec.Cmd) *ttyGate {
	t.Helper()
	master, slave, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer slave.Close()
	master = pollable(t, master)
	g := &ttyGate{&gate{transcript: &transcript{t: t}, cmd: cmd}, master}
	cmd.Stdin, cmd.Stdout = slave, slave
	if cmd.Stderr == nil {
		cmd.Stderr = slave
	}
	cmd.SysProcAttr.Setsid, cmd.SysProcAttr.Setctty = true, true
	g.start()
	t.Cleanup(func() { master.Close() })
	go func() {
		b := make([]byte, 4096)
		for {
			n, err := master.Read(b)
			_, _ = g.Write(b[:n])
			if err != nil { // EIO: nobody has the other end open
				return
			}
		}
	}()
	return g
}

// pollable makes a master that can be closed while it is being read.
func pollable(t *testing.T, master *os.File) *os.File {
	t.Helper()
	defer master.Close()
	fd, err := unix.FcntlInt(master.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err == nil {
		err = unix.SetNonblock(fd, true)
	}
	if err != nil {
		t.Fatal(err)
	}
	return os.NewFile(uintptr(fd), "terminal")
}

func (g *ttyGate) resize(rows, cols uint16) {
	g.t.Helper()
	conn, err := g.master.SyscallConn()
	if err != nil {
		g.t.Fatal(err)
	}
	_ = conn.Control(func(fd uintptr) {
		err = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: cols})
	})
	if err != nil {
		g.t.Fatal(err)
	}
}

func (g *ttyGate) typed(s string) {
	g.t.Helper()
	if _, err := g.master.Write([]byte(s)); err != nil {
		g.t.Fatal(err)
	}
}

const (
	ctrlC         = "\x03"
	ctrlZ         = "\x1a"
	ctrlBackslash = "\x1c"
)

func onTerminal(t *testing.T, c Command) *ttyGate {
	t.Helper()
	return startOnTerminal(t, gateCommand(t, gateConfig{Command: c}, true))
}

// A terminal's signals go to the agent by the terminal, once.
func TestTerminalSignals(t *testing.T) {
	g := onTerminal(t, shell(`for s in INT QUIT WINCH; do trap "echo got-$s" $s; done
		trap 'exit 4' USR1; echo ready; while :; do sleep 0.05; done`))
	g.await("ready")
	g.typed(ctrlC)
	g.await("got-INT")
	g.typed(ctrlBackslash)
	g.await("got-QUIT")
	g.resize(40, 120)
	g.await("got-WINCH")
	g.signal(unix.SIGUSR1)
	if code := g.wait(); code != 4 {
		t.Errorf("exit code %d, want 4", code)
	}
	for _, s := range []string{"got-INT", "got-QUIT", "got-WINCH"} {
		if n := strings.Count(g.String(), s); n != 1 {
			t.Errorf("%s %d times", s, n)
		}
	}
	g.await("terminal ours true")
}

// An interactive shell has job control: it can stop a job, list it and bring it back.
func TestInteractiveShell(t *testing.T) {
	c := Command{Argv: []string{"bash", "--norc", "--noprofile", "-i"}, Identity: agentID,
		Env: append(agentEnv(), "PS1=prompt> ", "HISTFILE=", "TERM=dumb")}
	g := onTerminal(t, c)
	g.await("prompt> ")
	g.typed("set -o | grep monitor\n")
	g.await("monitor        \ton")
	g.typed("sleep 1000\n")
	time.Sleep(100 * time.Millisecond) // the shell says nothing about having started it
	g.typed(ctrlZ)
	g.await("Stopped")
	g.typed("jobs -l; echo listed\n")
	g.await("\nlisted")
	g.typed("fg\n")
	time.Sleep(100 * time.Millisecond)
	g.typed(ctrlC)
	g.typed("echo code $?\n")
	g.await("code 130")
	g.typed("echo 'wait''ing'; head -1\n")
	g.await("waiting")
	g.typed("echoed line\n")
	eventually(t, func() bool { return strings.Count(g.String(), "echoed line") == 2 }, g.String)
	g.typed("exit 5\n")
	if code := g.wait(); code != 5 {
		t.Errorf("exit code %d, want 5", code)
	}
	if strings.Contains(g.String(), "no job control") {
		t.Errorf("said:\n%s", g)
	}
}

// An agent that is stopped by the terminal, or stops itself, goes on: nobody outside could continue it.
func TestCtrlZ(t *testing.T) {
	g := onTerminal(t, shell(`trap 'echo "continued $((++n))"' CONT; echo ready
		while [ "$n" != 2 ]; do sleep 0.05; done; kill -STOP $$; sleep 0.1; exit 6`))
	g.await("ready")
	g.typed(ctrlZ)
	g.await("continued 1")
	g.typed(ctrlZ)
	g.await("continued 2")
	if code := g.wait(); code != 6 {
		t.Errorf("exit code %d, want 6; said:\n%s", code, g)
	}
}

// The gate writes to the terminal while another group has it, though the agent asked for such writers to be stopped.
func TestToStop(t *testing.T) {
	g := onTerminal(t, shell(`stty tostop; echo ready
		bash -c 'set -m; (echo from the background) & sleep 0.3; jobs -l' # the control: a writer that does not ignore SIGTTOU
		read line; exit 8`))
	g.await("ready")
	g.await("Stopped (tty output)")
	if strings.Contains(g.String(), "\nfrom the background") {
		t.Error("a background job could write: the terminal does not stop writers")
	}
	g.signal(unix.SIGHUP)
	g.await("gate: hangup")
	g.typed("go on\n")
	if code := g.wait(); code != 8 {
		t.Errorf("exit code %d, want 8", code)
	}
	g.await("terminal ours true")
}

// When the terminal is hung up, the agent gets the HUP; there is nothing to reload.
func TestTerminalHangup(t *testing.T) {
	dir := openDir(t)
	cmd := gateCommand(t, gateConfig{Command: shell(`trap 'touch ` + dir + `/hup; exit 3' HUP; echo ready; while :; do sleep 0.05; done`)}, true)
	told := &transcript{t: t}
	cmd.Stderr = told
	g := startOnTerminal(t, cmd)
	g.await("ready")
	g.signal(unix.SIGHUP) // the control: somebody's, while the terminal is there
	told.await("gate: hangup")
	g.master.Close()
	if code := g.wait(); code != 3 {
		t.Errorf("exit code %d, want 3", code)
	}
	if _, err := os.Stat(dir + "/hup"); err != nil {
		t.Errorf("the agent had no HUP: %v", err)
	}
	if n := strings.Count(told.String(), "gate: hangup"); n != 1 {
		t.Errorf("%d reloads, want 1", n)
	}
}

// On the container's own terminal the agent can open its streams by name.
func TestTerminalStreams(t *testing.T) {
	g := onTerminal(t, shell(`echo one > /dev/stderr; echo two > /dev/tty; echo three > $(tty); read x < /dev/stdin; echo "read $x"`))
	g.typed("line\n")
	if code := g.wait(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	for _, want := range []string{"one", "two", "three", "read line"} {
		g.await(want)
	}
	if strings.Contains(g.String(), "denied") {
		t.Errorf("said:\n%s", g)
	}
}

// A shell that dies with a job in the foreground leaves the terminal with that job's group.
func TestTerminalTakenBack(t *testing.T) {
	g := onTerminal(t, shell(`set -m; bash -c 'kill -KILL $PPID; exec sleep 1000'; true`))
	if code := g.wait(); code != 137 {
		t.Errorf("exit code %d, want 137", code)
	}
	g.await("terminal ours true")
}

// shellWithGate is an interactive shell on a terminal; typing $GATE runs the gate.
func shellWithGate(t *testing.T, cfg gateConfig) *ttyGate {
	t.Helper()
	netnstest.RequireRoot(t)
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cfg.Grace = time.Second
	b, err := json.Marshal(cfg)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("bash", "--norc", "--noprofile", "-i")
	cmd.Env = append(netnstest.Program("gate").Env, "PS1=prompt> ", "HISTFILE=", "TERM=dumb", "GATE="+exe, "CONFIG="+string(b))
	cmd.SysProcAttr = &unix.SysProcAttr{}
	g := startOnTerminal(t, cmd)
	g.await("prompt> ")
	return g
}

// answers waits until a line that is typed has come back from who reads it: the terminal's echo makes it two.
func (g *ttyGate) answers(line, word string) {
	g.t.Helper()
	g.typed(line + "\n")
	eventually(g.t, func() bool { return strings.Count(g.String(), word) == 2 }, g.String)
}

// As a job of a shell, the gate stops when its agent stops, and both go on, in the foreground or in the background.
func TestJobOfAShell(t *testing.T) {
	g := shellWithGate(t, gateConfig{Command: shell(`echo ready; while read line; do echo "agent read $line"; done; exit 7`)})
	g.typed("$GATE \"$CONFIG\"\n")
	g.await("ready")
	g.typed("1\n")
	g.await("agent read 1")
	g.typed(ctrlZ)
	g.await("Stopped")
	g.answers("echo shell is back", "shell is back")
	g.typed("fg\n")
	g.typed("2\n")
	g.await("agent read 2")
	g.typed(ctrlZ)
	eventually(t, func() bool { return strings.Count(g.String(), "Stopped") == 2 }, g.String)
	g.answers("bg; echo in background", "in background") // it reads, so it stops again at once
	g.typed("fg\n")
	g.typed("3\n")
	g.await("agent read 3")
	g.typed("\x04")
	g.await("gate: end 7")
	g.typed("echo code $?; exit\n")
	g.await("code 7")
	g.wait()
}

// A gate in the background has no terminal to lend, and gets it when the shell brings it to the foreground.
func TestBackgroundJob(t *testing.T) {
	g := shellWithGate(t, gateConfig{Command: shell(`echo ready; sleep 0.3; read line; echo "agent read $line"; exit 7`)})
	g.typed("$GATE \"$CONFIG\" &\n")
	g.await("ready")
	g.answers("echo shell reads", "shell reads")
	g.typed("fg\n")
	g.typed("hello\n")
	g.await("agent read hello")
	g.typed("exit\n")
	g.wait()
}

// A gate that ends in the background does not take the terminal from the shell it was lent by.
func TestEndInBackground(t *testing.T) {
	dir := openDir(t)
	g := shellWithGate(t, gateConfig{Command: shell(`
		trap 'ps -o tpgid= -p $$ | grep -q "^ *$$\$" && echo "agent has the terminal"' CONT
		echo ready; until [ -e ` + dir + `/go ]; do sleep 0.05; done; exit 7`)})
	g.typed("$GATE \"$CONFIG\"\n")
	g.await("ready")
	g.typed(ctrlZ)
	g.await("Stopped")
	g.typed("fg\n")
	g.await("agent has the terminal") // by SIGCONT alone: it never reads
	g.typed(ctrlZ)
	eventually(t, func() bool { return strings.Count(g.String(), "Stopped") == 2 }, g.String)
	g.typed("bg\n")
	g.answers("ps -o tpgid= -p $$ | grep -c \"^ *$$\\$\"; echo before it ends", "before it ends")
	g.typed("touch " + dir + "/go\n")
	g.await("gate: end 7")
	g.answers("ps -o tpgid= -p $$ | grep -c \"^ *$$\\$\"; echo after it ended", "after it ended")
	g.typed("wait; echo code $?; exit 5\n")
	if code := g.wait(); code != 5 {
		t.Errorf("exit code %d, want 5", code)
	}
	if strings.Contains(g.String(), "terminal ours true") {
		t.Errorf("the gate took the terminal:\n%s", g)
	}
}

// No keystroke is put into the terminal by the agent, though it is the agent's own.
func TestTerminalInjection(t *testing.T) {
	python := tool(t, "python3")
	const probe = `
import fcntl, termios, sys
try:
    fcntl.ioctl(0, termios.TIOCSTI, b"x")
    print("injected")
except OSError as e:
    print("errno", e.errno)
`
	g := onTerminal(t, Command{Argv: []string{python, "-c", probe}, Env: agentEnv(), Identity: agentID})
	g.wait()
	g.await("errno 1") // EPERM
	control := exec.Command(python, "-c", probe)
	netnstest.As(control, agentID.UID, agentID.GID)
	h := startOnTerminal(t, control)
	h.wait()
	if legacy, _ := os.ReadFile("/proc/sys/dev/tty/legacy_tiocsti"); string(legacy) != "0\n" {
		h.await("injected")
	}
}
