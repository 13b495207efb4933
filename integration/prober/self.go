package prober

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Self is what a process knows about itself.
type Self struct {
	PID, PPID, UID, GID int
	PGID, SID           int
	Groups              []int
	Status              map[string]string // /proc/self/status: CapEff, CapBnd, NoNewPrivs, Seccomp, SigIgn ...
	Files               map[string]string // open descriptors and what they are
	Environ             []string
	Dir                 string
}

func self(Probe, emit) (r Result) {
	s := &Self{PID: os.Getpid(), PPID: os.Getppid(), UID: os.Getuid(), GID: os.Getgid(), PGID: unix.Getpgrp(), Environ: os.Environ(),
		Status: map[string]string{}, Files: map[string]string{}}
	r.Self = s
	s.Groups, _ = os.Getgroups()
	s.SID, _ = unix.Getsid(0)
	s.Dir, _ = os.Getwd()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		r.fail("read", err)
		return r
	}
	for line := range strings.Lines(string(status)) {
		if k, v, ok := strings.Cut(line, ":"); ok {
			s.Status[k] = strings.TrimSpace(v)
		}
	}
	fds, err := filepath.Glob("/proc/self/fd/*")
	if err != nil {
		r.fail("read", err)
		return r
	}
	for _, fd := range fds {
		if to, err := os.Readlink(fd); err == nil {
			s.Files[filepath.Base(fd)] = to
		}
	}
	return r
}

func read(p Probe, _ emit) (r Result) {
	data, err := os.ReadFile(p.Address)
	if err != nil {
		r.fail("read", err)
	}
	r.Data = data
	return r
}

func write(p Probe, _ emit) (r Result) {
	f, err := os.OpenFile(p.Address, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		r.fail("open", err)
		return r
	}
	defer f.Close()
	if _, err := f.Write(p.Data); err != nil {
		r.fail("write", err)
	}
	return r
}

func shell(p Probe, _ emit) (r Result) {
	ctx, cancel := context.WithTimeout(context.Background(), p.Timeout)
	defer cancel()
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, "/bin/sh", "-c", string(p.Data))
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	r.Data = out.Bytes()
	if cmd.ProcessState == nil {
		r.fail("start", err)
		return r
	}
	r.Status = cmd.ProcessState.ExitCode()
	if ctx.Err() != nil {
		r.Err = fmt.Sprintf("no end within %s", p.Timeout)
	}
	return r
}
