package supervise

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// ErrTooLarge says that a helper wrote more than it may.
var ErrTooLarge = errors.New("wrote more than it may")

// OutputError is a helper command that failed. Its text has nothing of what the helper wrote, nor of its arguments: both may
// hold a credential.
type OutputError struct {
	Name   string // the command's, without its directory
	Status Status
	Stderr []byte // the first 4 KiB; for a terminal or a test, never for a log
	Cause  error  // nil: see Status
}

func (e *OutputError) Error() string {
	switch {
	case e.Cause != nil:
		return fmt.Sprintf("helper %q: %v", e.Name, e.Cause)
	case e.Status.Signal != 0:
		return fmt.Sprintf("helper %q was killed by %v", e.Name, e.Status.Signal)
	}
	return fmt.Sprintf("helper %q ended with exit code %d", e.Name, e.Status.Code)
}

func (e *OutputError) Unwrap() error { return e.Cause }

// ExitCode is the helper's own; 0 where a signal or Cause ended it.
func (e *OutputError) ExitCode() int {
	if e.Cause != nil {
		return 0
	}
	return e.Status.Code
}

const (
	maxStderr = 4 << 10         // bytes kept
	drainTime = 1 * time.Second // for pipes that a helper's own children hold open
)

// Output runs a helper command to its end and returns what it wrote to its standard output, at most max bytes. It runs as
// this process's uid, without capabilities, in a session of its own, with exactly env and nothing on its standard input. It and
// its children are killed when ctx is done, when it has written more, and when it has ended. The error is an *OutputError; beside
// ErrTooLarge come the first max bytes.
func Output(ctx context.Context, s *Supervisor, argv, env []string, max int) ([]byte, error) {
	fail := &OutputError{}
	if len(argv) == 0 {
		fail.Cause = errors.New("no command")
		return nil, fail
	}
	fail.Name = filepath.Base(argv[0])
	h, err := startHelper(s, argv, env)
	if err != nil {
		fail.Cause = err
		return nil, fail
	}
	defer h.close()
	stdout, stderr := make(chan []byte, 1), make(chan []byte, 1)
	over := make(chan struct{})
	go func() {
		b, _ := io.ReadAll(io.LimitReader(h.stdout, int64(max)+1))
		if len(b) > max {
			close(over)
		}
		stdout <- b
	}()
	go func() {
		b, _ := io.ReadAll(io.LimitReader(h.stderr, maxStderr))
		_, _ = io.Copy(io.Discard, h.stderr)
		stderr <- b
	}()
	select {
	case <-h.child.done:
	case <-over:
	case <-ctx.Done():
		fail.Cause = context.Cause(ctx)
	}
	h.kill()
	out := <-stdout
	fail.Stderr, fail.Status = <-stderr, h.child.Status()
	if len(out) > max && fail.Cause == nil {
		fail.Cause = fmt.Errorf("%w: %d bytes", ErrTooLarge, max)
		return out[:max], fail
	}
	if fail.Cause != nil || fail.Status != (Status{}) {
		return nil, fail
	}
	return out, nil
}

// helper is a running helper command.
type helper struct {
	child          *Child
	stdout, stderr *os.File
}

func startHelper(s *Supervisor, argv, env []string) (*helper, error) {
	if !executable(argv[0], env) {
		return nil, fmt.Errorf("%w: write the path of an executable file", ErrNotFound)
	}
	outR, outW, err := pipe()
	if err != nil {
		return nil, err
	}
	defer outW.Close()
	errR, errW, err := pipe()
	if err != nil {
		outR.Close()
		return nil, err
	}
	defer errW.Close()
	o := order{Command: Command{Argv: argv, Env: env}, Helper: true}
	s.mu.Lock()
	child, err := s.startStageLocked(o, Process{Name: "helper", Files: []*os.File{nil, outW, errW}, Setsid: true})
	s.mu.Unlock()
	if err != nil {
		outR.Close()
		errR.Close()
		return nil, err
	}
	return &helper{child, outR, errR}, nil
}

// pipe makes a pipe whose write end blocks, as programs take for granted: os.Pipe's does not, and one that is full would fail
// the helper's write.
func pipe() (r, w *os.File, err error) {
	r, w, err = os.Pipe()
	if err == nil {
		err = unix.SetNonblock(int(w.Fd()), false)
	}
	return r, w, err
}

// executable reports whether execute would find something. Asked before, so that the error needs nothing of what the
// helper wrote.
func executable(name string, env []string) bool {
	return slices.ContainsFunc(candidates(name, env), func(path string) bool { return unix.Access(path, unix.X_OK) == nil })
}

// kill ends the helper's process group, and bounds the time that whoever left it may hold the pipes.
func (h *helper) kill() {
	_ = unix.Kill(-h.child.PID, unix.SIGKILL)
	<-h.child.done
	deadline := time.Now().Add(drainTime)
	_ = h.stdout.SetReadDeadline(deadline)
	_ = h.stderr.SetReadDeadline(deadline)
}

func (h *helper) close() {
	h.stdout.Close()
	h.stderr.Close()
}
