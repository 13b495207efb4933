package supervise

import (
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// terminal is the process's controlling terminal. Its methods work on nil, for a process that has none.
type terminal struct {
	fd int

	mu   sync.Mutex // guards the following
	lent bool       // the agent's group was made the foreground one, and has not been replaced by ours since
}

// controllingTerminal looks at the standard streams, then at what /dev/tty stands for.
func controllingTerminal() *terminal {
	for fd := range 3 {
		if _, err := unix.IoctlGetInt(fd, unix.TIOCGPGRP); err != nil {
			continue // ENOTTY: also of a terminal that is not the controlling one
		}
		if own, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3); err == nil {
			return &terminal{fd: own}
		}
	}
	if fd, err := unix.Open("/dev/tty", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0); err == nil {
		return &terminal{fd: fd}
	}
	return nil
}

func (t *terminal) descriptor() int {
	if t == nil {
		return -1
	}
	return t.fd
}

// hungUp tells a terminal's hang-up from a HUP that somebody sent. A pipe whose writer has gone looks the same to poll, and
// is no terminal.
func (t *terminal) hungUp() bool {
	if t == nil {
		return false
	}
	fds := []unix.PollFd{{Fd: int32(t.fd)}}
	_, _ = unix.Poll(fds, 0)
	return fds[0].Revents&unix.POLLHUP != 0
}

// oursToLend reports whether this process's group is the foreground one. A job in the background has nothing to lend.
func (t *terminal) oursToLend() bool {
	if t == nil {
		return false
	}
	pgrp, err := unix.IoctlGetInt(t.fd, unix.TIOCGPGRP)
	return err == nil && pgrp == unix.Getpgrp()
}

// nowLent notes that a child has made its group the foreground one.
func (t *terminal) nowLent() {
	t.mu.Lock()
	t.lent = true
	t.mu.Unlock()
}

// lend makes group pgrp the foreground one. SIGTTOU is ignored by now.
func (t *terminal) lend(pgrp int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.lent = unix.IoctlSetPointerInt(t.fd, unix.TIOCSPGRP, pgrp) == nil
}

// reclaim makes this process's group the foreground one, if it lent the terminal.
func (t *terminal) reclaim() {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.lent {
		_ = unix.IoctlSetPointerInt(t.fd, unix.TIOCSPGRP, unix.Getpgrp())
	}
	t.lent = false
}

func (t *terminal) isLent() bool {
	if t == nil {
		return false
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.lent
}

// AgentStopped continues an agent that has stopped itself, or stops with it where a shell can continue both. An adopted
// agent's first process, which cannot be stopped itself, has it called. It reports whether this process stops: it may return before
// that takes effect, so what is to follow waits for the SIGCONT.
func (s *Supervisor) AgentStopped(sig unix.Signal) (stops bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.agent == nil || s.agent.ended {
		return false
	}
	switch forTerminal := sig == unix.SIGTTIN || sig == unix.SIGTTOU; {
	case forTerminal && s.tty.oursToLend():
		// A shell has brought us to the foreground without a SIGCONT, since we had not stopped.
		s.tty.lend(s.agent.PID)
		s.signalAgentLocked(unix.SIGCONT)
	case s.stopped != nil:
		s.stopped(sig)
	case resumable():
		s.tty.reclaim()
		_ = unix.Kill(0, unix.SIGTSTP) // the rest of our job: `exitgate run ... | less`
		_ = unix.Kill(os.Getpid(), unix.SIGSTOP)
		return true
	case s.tty.isLent():
		s.tty.lend(s.agent.PID)
		s.signalAgentLocked(unix.SIGCONT)
	case sig == unix.SIGTSTP, sig == unix.SIGSTOP && os.Getpid() == 1:
		// Who sent SIGSTOP is not to be known. The agent that stops itself would stand still for ever where nobody is above us;
		// to hold a container still there is the freezer (`docker pause`).
		s.signalAgentLocked(unix.SIGCONT)
	default:
		// Elsewhere SIGSTOP is somebody's who wants it so. Without a terminal to read, SIGTTIN would come again at once.
		s.log("the agent was stopped by %v", sig)
	}
	return false
}

// resume acts on SIGCONT: whoever brought this process to the foreground again meant the agent.
func (s *Supervisor) resume() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.agent == nil || s.agent.ended {
		return
	}
	if s.tty.oursToLend() {
		s.tty.lend(s.agent.PID)
	}
	s.signalAgentLocked(unix.SIGCONT)
}
