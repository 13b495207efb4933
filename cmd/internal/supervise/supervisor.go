package supervise

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// ErrInterrupted says that TERM, INT or QUIT came before the agent was started: it is not started any more.
var ErrInterrupted = errors.New("interrupted before the agent was started")

// Supervisor owns the signals and the children of the process. There is one in a process.
type Supervisor struct {
	grace   time.Duration
	hangup  func()
	log     func(string, ...any)
	stopped func(unix.Signal)
	signals chan os.Signal // all but SIGCHLD
	deaths  chan os.Signal // SIGCHLD, of which one that waits stands for all: thousands would leave no room for a TERM
	tty     *terminal      // nil: no controlling terminal

	interrupted chan struct{} // closed by the first TERM, INT or QUIT while there is no agent
	hurry       chan struct{} // closed by the first one after the agent's end, or while Run ends it

	mu       sync.Mutex     // guards the following
	children map[int]*Child // those that have not been waited for
	agent    *Child
	command  Command // the agent's, without its environment
	ending   bool
}

// New subscribes to signals, begins to wait for children, and returns. It comes first in a program: what arrives before
// it takes the Go runtime's default action, and a first process that TERM ends so exits with status 2.
func New(o Options) *Supervisor {
	s := &Supervisor{
		grace: o.Grace, hangup: o.Hangup, log: o.Log, stopped: o.Stopped,
		signals:     make(chan os.Signal, 256),
		deaths:      make(chan os.Signal, 1),
		interrupted: make(chan struct{}),
		hurry:       make(chan struct{}),
		children:    map[int]*Child{},
	}
	if s.hangup == nil {
		s.hangup = func() {}
	}
	if s.log == nil {
		s.log = func(string, ...any) {}
	}
	// Not SIGURG, which the runtime sends to itself many times a second, nor what a fault of our own raises. SIGPIPE, so that
	// the runtime does not end the process where nobody reads its standard error any more.
	signal.Notify(s.deaths, unix.SIGCHLD)
	signal.Notify(s.signals, unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM, unix.SIGUSR1, unix.SIGUSR2,
		unix.SIGWINCH, unix.SIGCONT, unix.SIGTSTP, unix.SIGTTIN, unix.SIGTTOU, unix.SIGPIPE)
	if err := closeOnExec(); err != nil { // what was inherited is for this process, not for its children
		s.log("%v", err)
	}
	if os.Getpid() != 1 {
		if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
			s.log("orphaned processes will not be waited for: %v", err)
		}
	}
	s.tty = controllingTerminal()
	go s.loop()
	return s
}

// loop is the one goroutine that waits for children and acts on signals.
func (s *Supervisor) loop() {
	again(s.deaths) // children of a program that executed this one
	for {
		select {
		case <-s.deaths:
			if s.reap() {
				again(s.deaths)
			}
		case sig := <-s.signals:
			s.act(sig.(unix.Signal))
		}
	}
}

// again has the loop look for children that have ended, after the signals that wait.
func again(deaths chan os.Signal) {
	select {
	case deaths <- unix.SIGCHLD:
	default:
	}
}

func (s *Supervisor) act(sig unix.Signal) {
	switch sig {
	case unix.SIGTSTP, unix.SIGTTIN, unix.SIGTTOU: // we do not stop
	case unix.SIGPIPE: // the write has its error
	case unix.SIGHUP:
		if s.tty.hungUp() {
			s.forward(sig)
		} else {
			s.hangup()
		}
	case unix.SIGCONT:
		s.resume()
	default:
		s.forward(sig)
	}
}

// forward sends a signal to the agent's process group, and notes an order to end that there is no agent for.
func (s *Supervisor) forward(sig unix.Signal) {
	s.mu.Lock()
	defer s.mu.Unlock()
	alive := s.agent != nil && !s.agent.ended
	if alive {
		s.signalAgentLocked(sig)
	}
	if sig != unix.SIGTERM && sig != unix.SIGINT && sig != unix.SIGQUIT {
		return
	}
	switch {
	case s.agent == nil:
		closeOnce(s.interrupted)
	case !alive || s.ending:
		closeOnce(s.hurry)
	}
}

// closeOnce is called with the lock held, or by the one goroutine that closes c.
func closeOnce(c chan struct{}) {
	select {
	case <-c:
	default:
		close(c)
	}
}

func (s *Supervisor) signalAgentLocked(sig unix.Signal) {
	target := -s.agent.PID
	err := unix.Kill(target, sig)
	if errors.Is(err, unix.ESRCH) { // it has joined another group
		target = s.agent.PID
		err = unix.Kill(target, sig)
	}
	if errors.Is(err, unix.EPERM) {
		// Without CAP_KILL. A process with the agent's uid may, and takes some milliseconds.
		_, err = s.startStageLocked(s.signalOrder(target, sig))
	}
	if err != nil {
		s.log("%v cannot be forwarded to the agent: %v", sig, err)
	}
}

// Interrupted returns a channel that is closed by the first TERM, INT or QUIT that finds no agent started.
func (s *Supervisor) Interrupted() <-chan struct{} { return s.interrupted }

// Run waits until the agent ends, or ends it when ctx is done: TERM, the grace, KILL. Then it ends what the agent left
// running, and returns the agent's exit code, 128+n if signal n killed it. Processes started by Start go on, for the caller to
// end. A second TERM, INT or QUIT meanwhile cuts the grace short.
//
// Without an agent it waits for TERM, INT, QUIT or ctx, and returns 0.
func (s *Supervisor) Run(ctx context.Context, agent *Child) int {
	if agent == nil {
		select {
		case <-s.interrupted:
		case <-ctx.Done():
		}
		return 0
	}
	select {
	case <-agent.done:
	case <-ctx.Done():
		s.end(agent)
	}
	s.tty.reclaim()
	s.sweep()
	select {
	case <-agent.done:
		return agent.Status().ExitCode()
	default: // it resists KILL; ending the first process of a pid namespace ends it
		return Status{Signal: unix.SIGKILL}.ExitCode()
	}
}

// end ends the agent's process group.
func (s *Supervisor) end(agent *Child) {
	s.mu.Lock()
	s.ending = true
	if !agent.ended {
		s.signalAgentLocked(unix.SIGTERM)
		s.signalAgentLocked(unix.SIGCONT) // a stopped process cannot act on it
	}
	s.mu.Unlock()
	if s.within(s.grace, agent.done) {
		return
	}
	s.mu.Lock()
	if !agent.ended {
		s.signalAgentLocked(unix.SIGKILL)
	}
	s.mu.Unlock()
	select {
	case <-agent.done:
	case <-time.After(killWait):
		s.log("the agent could not be ended")
	}
}

// within waits for done, for no longer than d, and not at all once a second signal asks for haste.
func (s *Supervisor) within(d time.Duration, done <-chan struct{}) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-done:
		return true
	case <-timer.C:
	case <-s.hurry:
	}
	return false
}
