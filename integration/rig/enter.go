package rig

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Command is a program to run in a box beside PID 1's children, as `docker exec` does.
type Command struct {
	UID   uint32 // 0: root
	Args  []string
	Env   []string // besides PATH
	Stdin string
}

// Output is what came of a command.
type Output struct {
	Code           int // 128+n where a signal ended it
	Stdout, Stderr string
	Elapsed        time.Duration
}

// Run runs a command in the box until it ends. A non-zero exit code is no error.
func (b *Box) Run(ctx context.Context, c Command) (Output, error) {
	var out, errs bytes.Buffer
	cmd := exec.CommandContext(ctx, c.Args[0], c.Args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(c.Stdin), &out, &errs
	cmd.Env = append([]string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/rig"}, c.Env...)
	cmd.Dir = "/"
	cmd.WaitDelay = time.Second
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	if c.UID != 0 {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: c.UID, Gid: c.UID}
	}
	start := time.Now()
	err := b.Enter(func() error {
		// No more rights than the box has: root with CAP_SYS_PTRACE would see what no `docker exec` shows.
		if err := limitCapabilities(b.orders("").Capabilities); err != nil {
			return err
		}
		return cmd.Start()
	})
	if err != nil {
		return Output{}, fmt.Errorf("run %q in the box: %w", c.Args, err)
	}
	err = cmd.Wait()
	res := Output{Stdout: out.String(), Stderr: errs.String(), Elapsed: time.Since(start), Code: cmd.ProcessState.ExitCode()}
	if ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		res.Code = 128 + int(ws.Signal())
	}
	if ctx.Err() != nil {
		return res, fmt.Errorf("run %q in the box: %w (stdout %q, stderr %q)", c.Args, ctx.Err(), res.Stdout, res.Stderr)
	}
	if errors.As(err, new(*exec.ExitError)) || errors.Is(err, exec.ErrWaitDelay) {
		err = nil
	}
	return res, err
}

// Exitgate runs the program under test in the box as root, with these arguments.
func (b *Box) Exitgate(args ...string) (Output, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	return b.Run(ctx, Command{Args: append([]string{BinaryPath}, args...)})
}

// Status is `exitgate status --json`, decoded as it stands.
func (b *Box) Status() (map[string]any, error) {
	out, err := b.Exitgate("status", "--json")
	if err != nil {
		return nil, err
	}
	var status map[string]any
	if err := json.Unmarshal([]byte(out.Stdout), &status); err != nil {
		return nil, fmt.Errorf("status said %q, %q (exit %d): %w", out.Stdout, out.Stderr, out.Code, err)
	}
	return status, nil
}

// Enter calls f on a thread that is in the box's namespaces; a process that f starts is in them for good. The thread is not used again.
func (b *Box) Enter(f func() error) error {
	pidfd, err := unix.PidfdOpen(b.PID, 0)
	if err != nil {
		return fmt.Errorf("the box has ended: %w", err)
	}
	defer unix.Close(pidfd)
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // for good: what is left of the thread must not run other goroutines
		// A mount namespace can only be entered by a thread that shares its root and working directory with no other.
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			done <- fmt.Errorf("unshare: %w", err)
			return
		}
		all := unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWPID | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS
		if err := unix.Setns(pidfd, all); err != nil {
			done <- fmt.Errorf("setns: %w", err)
			return
		}
		done <- f()
	}()
	return <-done
}
