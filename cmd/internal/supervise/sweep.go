package supervise

import (
	"os"
	"time"

	"golang.org/x/sys/unix"
)

const (
	sweepInterval = 10 * time.Millisecond // between looks at what is left; /proc has no events
	killWait      = 2 * time.Second       // for the kernel to end what was killed; a process in disk sleep may take for ever
)

// sweep ends what the agent left running: TERM, the grace, KILL. Whoever is left then goes with this process if it is the first
// of its pid namespace.
func (s *Supervisor) sweep() {
	if len(s.command.Argv) == 0 {
		return // an adopted agent took everything with it
	}
	if s.remaining() == 0 {
		return
	}
	s.signalRemaining(unix.SIGTERM, unix.SIGCONT)
	if s.gone(s.grace, s.hurry) {
		return
	}
	for deadline := time.Now().Add(killWait); time.Now().Before(deadline); {
		s.signalRemaining(unix.SIGKILL)
		if s.gone(killWait/8, nil) {
			return
		}
	}
	s.log("%d processes of the agent could not be ended", s.remaining())
}

// remaining counts the agent's processes. The first process of a pid namespace counts all of the agent's uid, `docker exec`
// sessions included; any other one counts its own descendants, since the uid may have other business there.
func (s *Supervisor) remaining() int {
	if os.Getpid() == 1 {
		return len(processesOf(s.command.UID))
	}
	return len(s.descendants())
}

func (s *Supervisor) descendants() []process {
	s.mu.Lock()
	defer s.mu.Unlock()
	return descendants(os.Getpid(), s.children)
}

// signalRemaining signals the agent's processes: in one call, which no fork escapes, from a process with the agent's uid, which
// can reach nobody else; or one by one. A stopped process needs CONT to act on any signal but KILL.
func (s *Supervisor) signalRemaining(sigs ...unix.Signal) {
	if os.Getpid() != 1 {
		for _, p := range s.descendants() {
			signalProcess(p, sigs)
		}
		return
	}
	s.mu.Lock()
	child, err := s.startStageLocked(s.signalOrder(0, sigs...))
	s.mu.Unlock()
	if err != nil {
		s.log("end the agent's processes: %v", err)
		return
	}
	select { // what it is to end has its uid, and could stop it
	case <-child.done:
	case <-time.After(killWait):
		_ = child.Signal(unix.SIGKILL)
	}
}

// signalOrder is a stage that signals target as the agent.
func (s *Supervisor) signalOrder(target int, sigs ...unix.Signal) (order, Process) {
	return order{Command: s.command, Signals: sigs, Target: target},
		Process{Name: "stage", Files: []*os.File{nil, nil, os.Stderr}, NewGroup: true}
}

// gone waits until nothing is left, for no longer than d.
func (s *Supervisor) gone(d time.Duration, hurry <-chan struct{}) bool {
	deadline := time.After(d)
	tick := time.NewTicker(sweepInterval)
	defer tick.Stop()
	for s.remaining() > 0 {
		select {
		case <-tick.C:
		case <-hurry:
			return false
		case <-deadline:
			return false
		}
	}
	return true
}
