package supervise

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// Child is a process a Supervisor started.
type Child struct {
	PID  int
	Name string

	s      *Supervisor
	done   chan struct{}
	status Status // written before done is closed
	ended  bool   // guarded by s.mu; the PID may be another's from then on
}

// Done returns a channel that is closed when the process has ended and been waited for.
func (c *Child) Done() <-chan struct{} { return c.done }

// Status returns how the process ended, and the zero value before it did.
func (c *Child) Status() Status {
	select {
	case <-c.done:
		return c.status
	default:
		return Status{}
	}
}

// Signal sends a signal to the process alone. It returns os.ErrProcessDone if it has ended, and never reaches another
// process that has been given its number since.
func (c *Child) Signal(sig unix.Signal) error {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	if c.ended {
		return os.ErrProcessDone
	}
	return unix.Kill(c.PID, sig)
}

// Status is how a process ended.
type Status struct {
	Code   int         // exit code; 0 if a signal killed it
	Signal unix.Signal // 0 if it exited
}

// ExitCode returns the code, or 128+n for signal n.
func (st Status) ExitCode() int {
	if st.Signal != 0 {
		return 128 + int(st.Signal)
	}
	return st.Code
}

func statusOf(ws unix.WaitStatus) Status {
	if ws.Signaled() {
		return Status{Signal: ws.Signal()}
	}
	return Status{Code: ws.ExitStatus()}
}

// turn is how many processes are waited for before signals, and those who start processes, have theirs. Among thousands of
// others the kernel takes up to a millisecond to find one that has ended (wait4 walks the list of children, oldest first): with
// 9,000 sleeping orphans three processes that made more of them were enough for there to be always one.
const turn = 32

// reap waits for processes that have ended, ours and orphans, and acts on the agent's having stopped. It reports whether
// there may be more of them.
func (s *Supervisor) reap() (more bool) {
	s.mu.Lock()
	stopped, more := s.waitLocked()
	s.mu.Unlock()
	if stopped != 0 {
		s.AgentStopped(stopped)
	}
	return more
}

// waitLocked returns the signal that stopped the agent, if one did. The lock is held across starting a process
// too, so that no process is waited for before it is known.
func (s *Supervisor) waitLocked() (stopped unix.Signal, more bool) {
	for range turn {
		var ws unix.WaitStatus
		pid, err := unix.Wait4(-1, &ws, unix.WNOHANG|unix.WUNTRACED, nil)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil || pid == 0: // ECHILD: nobody left; 0: nobody has ended
			return stopped, false
		}
		child := s.children[pid]
		switch {
		case child == nil: // an orphan
		case ws.Stopped():
			if child == s.agent {
				stopped = ws.StopSignal()
			}
		default:
			delete(s.children, pid)
			child.ended, child.status = true, statusOf(ws)
			close(child.done)
		}
	}
	return stopped, true
}
