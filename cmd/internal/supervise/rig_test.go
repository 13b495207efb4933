package supervise

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"exitgate/netns/netnstest"
)

// patience bounds waiting for what must happen. It is no measure of speed: the machine may be busy.
const patience = 30 * time.Second

// TestMain lets the test binary be each of the processes under test: nothing here may wait for children beside a Supervisor.
func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[0] == "exitgate" && os.Args[1] == "stage" {
		os.Exit(Stage())
	}
	netnstest.Main(m, map[string]func([]string) int{
		"gate":            gateProgram,
		"calls":           callsProgram,
		"children":        childrenProgram,
		"turns":           turnsProgram,
		"proxy":           proxyProgram,
		"relay":           relayProgram,
		"output":          outputProgram,
		"keep":            keepProgram,
		"without-setpcap": withoutSetpcapProgram,
		"hardened":        hardenedProgram,
		"works":           worksProgram,
		"wait":            waitProgram,
		"become":          becomeProgram,
		"exec":            execProgram,
		"dial":            dialProgram,
	})
}

// gateConfig is what a gate under test is told to do.
type gateConfig struct {
	Command   Command
	Sidecar   bool          // no agent
	Grace     time.Duration // 5 s if 0
	Busy      bool          // goroutines that the runtime has to preempt by signals
	TermEarly bool          // TERM comes before the agent is started
	EndWhen   string        // ctx is done when this file is there
	Proxy     bool          // a child beside the agent, which must outlive it
	Bind      [2]string     // what is mounted where, for the agent
	Tool      string        // the program under test
}

// gateProgram is a first process: the shortest use of a Supervisor. It tells what happens on descriptor 2, a line each.
func gateProgram(args []string) int {
	var cfg gateConfig
	if err := json.Unmarshal([]byte(args[0]), &cfg); err != nil {
		tell("%v", err)
		return 99
	}
	s := New(Options{Grace: cfg.Grace, Hangup: func() { tell("hangup") }, Log: tell})
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	if err := cfg.prepare(s, cancel); err != nil {
		tell("%v", err)
		return 99
	}
	if cfg.Sidecar {
		tell("ready")
		return s.Run(ctx, nil)
	}
	if cfg.Proxy {
		proxy, err := s.Start(Process{Name: "proxy", Path: "/bin/sleep", Argv: []string{"sleep", "1000"}, Setsid: true})
		if err != nil {
			tell("%v", err)
			return 99
		}
		defer tellProxy(proxy)
	}
	agent, err := s.StartAgent(cfg.Command)
	if err != nil {
		tell("%v", err)
		return 125
	}
	tell("agent %d", agent.PID)
	code := s.Run(ctx, agent)
	if s.tty != nil {
		tell("terminal ours %v", s.tty.oursToLend())
	}
	tell("end %d", code)
	return code
}

func tell(format string, args ...any) { fmt.Fprintf(os.Stderr, "gate: "+format+"\n", args...) }

// prepare makes the surroundings that a test wants.
func (cfg gateConfig) prepare(s *Supervisor, cancel func()) error {
	if os.Getpid() == 1 {
		if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
			return err
		}
	}
	if cfg.Bind[0] != "" {
		if err := unix.Mount(cfg.Bind[0], cfg.Bind[1], "", unix.MS_BIND, ""); err != nil {
			return err
		}
	}
	if cfg.Busy {
		for range 4 {
			go func() {
				for n := 0; ; n++ {
					_ = n
				}
			}()
		}
	}
	if cfg.TermEarly {
		_ = unix.Kill(os.Getpid(), unix.SIGTERM)
		<-s.Interrupted()
	}
	if cfg.EndWhen != "" {
		go func() {
			for ; ; time.Sleep(5 * time.Millisecond) {
				if _, err := os.Stat(cfg.EndWhen); err == nil {
					cancel()
					return
				}
			}
		}()
	}
	return nil
}

// tellProxy says whether the proxy has outlived the agent, and ends it.
func tellProxy(proxy *Child) {
	select {
	case <-proxy.Done():
		tell("the proxy has ended: %+v", proxy.Status())
	default:
		tell("the proxy runs")
		_ = proxy.Signal(unix.SIGKILL)
		<-proxy.Done()
	}
}

// transcript collects what processes write, and waits for parts of it.
type transcript struct {
	t  testing.TB
	mu sync.Mutex
	b  bytes.Buffer
}

func (tr *transcript) Write(p []byte) (int, error) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	return tr.b.Write(p)
}

func (tr *transcript) String() string {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	return tr.b.String()
}

// await waits until the transcript has text.
func (tr *transcript) await(text string) {
	tr.t.Helper()
	eventually(tr.t, func() bool { return strings.Contains(tr.String(), text) }, func() string {
		return fmt.Sprintf("waited for %q in:\n%s", text, tr)
	})
}

func eventually(t testing.TB, ok func() bool, or func() string) {
	t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatal(or())
}

// gate is a gateProgram under test.
type gate struct {
	*transcript
	cmd *exec.Cmd
}

// agentID is the identity of agents under test. Nothing else on a machine has it.
var agentID = Identity{UID: 61000, GID: 61001}

func shell(script string) Command {
	return Command{Argv: []string{"bash", "-c", script}, Env: agentEnv(), Identity: agentID}
}

func agentEnv() []string {
	return []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/tmp", "LC_ALL=C"}
}

// program is this test binary as an agent.
func program(name string, args ...string) Command {
	cmd := netnstest.Program(name, args...)
	return Command{Argv: append([]string{"/proc/self/exe"}, args...), Env: cmd.Env, Identity: agentID}
}

// gateCommand is the command of a gate; as the first process of a new pid namespace, or as a child among others.
func gateCommand(t testing.TB, cfg gateConfig, first bool) *exec.Cmd {
	t.Helper()
	netnstest.RequireRoot(t)
	if cfg.Grace == 0 {
		cfg.Grace = 5 * time.Second
	}
	b, err := json.Marshal(cfg)
	if err != nil {
		t.Fatal(err)
	}
	cmd := netnstest.Program("gate", string(b))
	cmd.WaitDelay = patience
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // no terminal, and nobody's job
	cmd.SysProcAttr.Credential = &syscall.Credential{Groups: []uint32{4, 27}}
	passwd, err := os.Open("/etc/passwd") // descriptors 3 and 4, which no child may have
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { passwd.Close() })
	cmd.ExtraFiles = []*os.File{passwd, passwd}
	if first {
		cmd.SysProcAttr.Cloneflags = unix.CLONE_NEWPID
		cmd.SysProcAttr.Unshareflags = unix.CLONE_NEWNS
	}
	return cmd
}

func startGate(t testing.TB, cfg gateConfig, first bool) *gate {
	t.Helper()
	g := &gate{transcript: &transcript{t: t}, cmd: gateCommand(t, cfg, first)}
	g.cmd.Stdout, g.cmd.Stderr = g.transcript, g.transcript
	g.start()
	return g
}

func (g *gate) start() {
	g.t.Helper()
	if err := g.cmd.Start(); err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(func() {
		if g.cmd.ProcessState == nil {
			g.kill()
			_ = g.cmd.Wait()
		}
	})
}

// kill ends the gate and what it started: a gate that is not the first process of its namespace takes nobody with it.
func (g *gate) kill() {
	started := descendants(g.cmd.Process.Pid, nil)
	_ = g.cmd.Process.Kill()
	for _, p := range started {
		signalProcess(p, []unix.Signal{unix.SIGKILL})
	}
}

func (g *gate) signal(sig unix.Signal) {
	g.t.Helper()
	if err := g.cmd.Process.Signal(sig); err != nil {
		g.t.Fatal(err)
	}
}

// wait returns the gate's own exit code; a gate that a signal killed fails the test.
func (g *gate) wait() int {
	g.t.Helper()
	done := make(chan error, 1)
	go func() { done <- g.cmd.Wait() }()
	select {
	case <-done:
	case <-time.After(2 * patience):
		g.kill()
		<-done
		g.t.Fatalf("the gate does not end; it said:\n%s", g)
	}
	if code := g.cmd.ProcessState.ExitCode(); code >= 0 {
		return code
	}
	g.t.Fatalf("the gate itself: %v; it said:\n%s", g.cmd.ProcessState, g)
	return -1
}

// run runs a gate to its end.
func run(t testing.TB, cfg gateConfig, first bool) (code int, said string) {
	t.Helper()
	g := startGate(t, cfg, first)
	return g.wait(), g.String()
}

// bothWays runs a test with the gate as first process and as another one.
func bothWays(t *testing.T, f func(t *testing.T, first bool)) {
	t.Run("gate", func(t *testing.T) { // which waits for the two
		t.Run("first", func(t *testing.T) { t.Parallel(); f(t, true) })
		t.Run("other", func(t *testing.T) { t.Parallel(); f(t, false) })
	})
}

// openDir is a directory the agent may write.
func openDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "supervise")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, pid := range processesOf(agentID.UID) { // left by a gate that failed
			if strings.Contains(cmdlines([]int{pid}), dir) {
				_ = unix.Kill(pid, unix.SIGKILL)
			}
		}
		os.RemoveAll(dir)
	})
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	return dir
}

// script writes an executable file.
func script(t testing.TB, dir, name, text string, mode os.FileMode) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
	return path
}
