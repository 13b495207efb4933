package supervise

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// self is this program's file, also after it was replaced or is out of reach.
const self = "/proc/self/exe"

// Start starts a process. The caller closes its Files.
func (s *Supervisor) Start(p Process) (*Child, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.startLocked(p)
}

// StartAgent starts the agent, by way of `exitgate stage`: in its own process group, in the foreground of the terminal if
// there is one, with this process's standard streams. A command that cannot be executed is an agent that ends with 127, 126 or 125, having said why.
// It returns ErrInterrupted if a signal to end has come already.
func (s *Supervisor) StartAgent(c Command) (*Child, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-s.interrupted:
		return nil, ErrInterrupted
	default:
	}
	agent, err := s.startStageLocked(order{Command: c}, Process{
		Name: "agent", Files: []*os.File{os.Stdin, os.Stdout, os.Stderr}, Foreground: true})
	if err != nil {
		return nil, err
	}
	// From here on this process is in the background of the terminal. With `stty tostop` a line of log would fail, and so would
	// taking the terminal back. Not earlier, because what is ignored stays so across execve.
	signal.Ignore(unix.SIGTTOU)
	s.agent, s.command = agent, Command{Argv: c.Argv[:1], Identity: c.Identity, Loosen: c.Loosen}
	return agent, nil
}

// Adopt makes a process that Start started the agent: the first one of a pid namespace of its own, which the kernel empties at
// its end. It returns ErrInterrupted if a signal to end has come already.
func (s *Supervisor) Adopt(child *Child) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-s.interrupted:
		return ErrInterrupted
	default:
	}
	signal.Ignore(unix.SIGTTOU) // as in StartAgent: a log line, or the terminal's mode, from the background
	s.agent = child
	return nil
}

// startStageLocked starts `exitgate stage` as p says, which has three Files, and gives it its order.
func (s *Supervisor) startStageLocked(o order, p Process) (*Child, error) {
	b, err := json.Marshal(o)
	if err != nil {
		return nil, err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", p.Name, err)
	}
	defer w.Close()
	p.Path, p.Argv = self, []string{"exitgate", "stage"}
	p.Files = append(p.Files, r)
	child, err := s.startLocked(p)
	r.Close() // before writing: if the stage dies the write must fail, not block
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(b); err != nil && !errors.Is(err, unix.EPIPE) {
		s.log("%s: %v", p.Name, err) // it will end, and say what it misses
	}
	return child, nil
}

func (s *Supervisor) startLocked(p Process) (*Child, error) {
	fds, err := descriptors(p.Files)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", p.Name, err)
	}
	defer closeAll(fds)
	attr := &syscall.ProcAttr{Env: p.Env, Files: fds, Sys: &syscall.SysProcAttr{
		Setsid: p.Setsid, Setpgid: p.NewGroup, Cloneflags: p.Namespaces}}
	if p.GID != 0 {
		attr.Sys.Credential = &syscall.Credential{Uid: uint32(unix.Geteuid()), Gid: p.GID}
	}
	fork := syscall.ForkExec
	if p.NoCaps {
		fork = forkWithoutCaps
	}
	lend := p.Foreground && s.tty.oursToLend()
	if p.Foreground {
		attr.Sys.Setpgid, attr.Sys.Foreground = true, lend
		attr.Sys.Ctty = s.tty.descriptor()
	}
	pid, err := fork(p.Path, p.Argv, attr)
	if err != nil {
		return nil, fmt.Errorf("start %s: %s: %w", p.Name, p.Path, err)
	}
	if lend {
		s.tty.nowLent()
	}
	child := &Child{PID: pid, Name: p.Name, s: s, done: make(chan struct{})}
	s.children[pid] = child
	return child, nil
}

// forkWithoutCaps forks from a thread with an empty bounding set, which then ends: a program that uid 0 executes gets what
// that set holds. The thread gives up nothing else: a call of AllThreadsSyscall that meets it must fare as on the others.
// A Go program that gives the set up by itself has to stop all its threads for each of the 41 capabilities, which took
// the proxy 8 ms of every start.
func forkWithoutCaps(path string, argv []string, attr *syscall.ProcAttr) (pid int, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlocked
		if err = ignoreNoSetpcap(oneThread.limitBounding(0)); err == nil {
			pid, err = syscall.ForkExec(path, argv, attr)
		}
	}()
	<-done
	return pid, err
}

// descriptors duplicates files for a child. File.Fd would make descriptions blocking that another process shares.
func descriptors(files []*os.File) (fds []uintptr, err error) {
	for _, f := range files {
		fd, err := duplicate(f)
		if err != nil {
			closeAll(fds)
			return nil, err
		}
		fds = append(fds, uintptr(fd))
	}
	return fds, nil
}

func duplicate(f *os.File) (fd int, err error) {
	if f == nil {
		return unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0)
	}
	conn, err := f.SyscallConn()
	if err != nil {
		return -1, err
	}
	cerr := conn.Control(func(old uintptr) { fd, err = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 3) })
	return fd, errors.Join(cerr, err)
}

func closeAll(fds []uintptr) {
	for _, fd := range fds {
		unix.Close(int(fd))
	}
}
