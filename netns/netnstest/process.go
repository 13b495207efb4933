package netnstest

import (
	"bytes"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// programEnv tells a re-executed test binary which of its programs to be.
const programEnv = "EXITGATE_TEST_PROGRAM"

// Main is the body of TestMain. Re-executed by Program, the test binary is that program; else it runs the tests.
func Main(m *testing.M, programs map[string]func(args []string) int) {
	name := os.Getenv(programEnv)
	if name == "" {
		os.Exit(m.Run())
	}
	// A program that starts another test binary must not hand its own role on.
	os.Unsetenv(programEnv)
	run, ok := programs[name]
	if !ok {
		println("netnstest: no program named " + name)
		os.Exit(99)
	}
	os.Exit(run(os.Args[1:]))
}

// Program returns a command that runs a program given to Main, in a process of its own.
func Program(name string, args ...string) *exec.Cmd {
	// Not os.Executable: the directory `go test` builds in is closed to other users, the link is not.
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), programEnv+"="+name)
	return cmd
}

// As makes cmd run as uid and gid, without supplementary groups.
func As(cmd *exec.Cmd, uid, gid uint32) *exec.Cmd {
	attr(cmd).Credential = &syscall.Credential{Uid: uid, Gid: gid}
	return cmd
}

func attr(cmd *exec.Cmd) *syscall.SysProcAttr {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	return cmd.SysProcAttr
}

// Start starts cmd inside the namespace. At the end of the test its process group is killed, if it still
// runs, and waited for; the test may wait for it itself before that.
func (n *Namespace) Start(cmd *exec.Cmd) *exec.Cmd {
	n.t.Helper()
	if a := attr(cmd); !a.Setsid {
		a.Setpgid = true
	}
	cmd.WaitDelay = 5 * time.Second // a grandchild may hold the pipes open
	n.Do(cmd.Start)
	n.t.Cleanup(func() {
		if cmd.ProcessState == nil {
			_ = unix.Kill(-cmd.Process.Pid, unix.SIGKILL)
			_ = cmd.Wait()
		}
	})
	return cmd
}

// Output runs cmd inside the namespace and returns its standard output. The error is that of exec.Cmd.
func (n *Namespace) Output(cmd *exec.Cmd) ([]byte, error) {
	n.t.Helper()
	var out bytes.Buffer
	cmd.Stdout = &out
	err := n.Start(cmd).Wait()
	return out.Bytes(), err
}
