package supervise

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Become makes the calling process the agent: it hardens the calling thread as the agent and executes the command in place of the
// process. It returns only on error, and the process is of no use then but to say so and end with
// ExitCode(err). All of it is done by the time the first instruction of the command runs; a command that cannot be hardened is not executed.
func Become(c Command) error {
	runtime.LockOSThread() // and never unlocked
	if err := c.check(); err != nil {
		return err
	}
	if err := checkStreams(); err != nil {
		return err
	}
	ShareStreams(c.UID)
	if err := harden(c); err != nil {
		return fmt.Errorf("harden the agent: %w", err)
	}
	if c.Dir != "" {
		if err := unix.Chdir(c.Dir); err != nil {
			return fmt.Errorf("working directory %s, as uid %d: %w", c.Dir, c.UID, err)
		}
	}
	return execute(c.Argv, c.Env)
}

func (c Command) check() error {
	switch {
	case len(c.Argv) == 0:
		return errors.New("no command")
	case c.UID == 0 || c.GID == 0:
		return errors.New("the agent must not be root: uid and gid must not be 0")
	}
	return checkLoosen(c.Loosen)
}

// harden takes from the calling thread what an agent must not have. The order matters: what needs a capability comes
// before capabilities go, Landlock and seccomp want no_new_privs, and the filter comes last because it may refuse the rest.
func harden(c Command) error {
	t := oneThread
	for _, step := range []func() error{
		func() error { return limitCore(c.Loosen) },
		defaultSignals,
		closeOnExec,
		func() error { return ignoreNoSetpcap(t.limitBounding(0)) },
		t.lockSecurebits,
		func() error { return t.setIdentity(c.Identity) },
		func() error { return t.setCaps(0) },
		t.setNoNewPrivs,
		func() error { return verify(c.Identity) },
		func() error { return restrictAgent(c) },
		func() error { return t.installFilter(agentFilter(c.Loosen)) },
	} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

func limitCore(loosen []string) error {
	if slices.Contains(loosen, LoosenCoreDumps) {
		return nil
	}
	return setNoCore()
}

// setIdentity changes every uid and gid of the thread and drops its supplementary groups. It does nothing, and so needs
// nothing, where the identity is right already, as in a `docker exec -u`.
func (s scope) setIdentity(id Identity) error {
	if !onlyGroup(id.GID) {
		if err := s.call(unix.SYS_SETGROUPS, 0, 0, 0, 0); err != nil {
			return fmt.Errorf("supplementary groups: %w; run with --cap-add SETGID", err)
		}
	}
	if r, e, v := unix.Getresgid(); !all(int(id.GID), r, e, v) {
		gid := uintptr(id.GID)
		if err := s.call(unix.SYS_SETRESGID, gid, gid, gid, 0); err != nil {
			return fmt.Errorf("gid %d: %w; run with --cap-add SETGID", id.GID, err)
		}
	}
	if r, e, v := unix.Getresuid(); !all(int(id.UID), r, e, v) {
		uid := uintptr(id.UID)
		if err := s.call(unix.SYS_SETRESUID, uid, uid, uid, 0); err != nil {
			return fmt.Errorf("uid %d: %w; run with --cap-add SETUID", id.UID, err)
		}
	}
	return nil
}

func all(want int, got ...int) bool {
	return !slices.ContainsFunc(got, func(v int) bool { return v != want })
}

// onlyGroup reports whether there is no supplementary group but possibly the primary one, which gives nothing.
func onlyGroup(gid uint32) bool {
	groups, err := unix.Getgroups()
	return err == nil && all(int(gid), groups...)
}

// verify reads back what matters most: a kernel, a security module or an emulator may accept a call and not follow it.
func verify(id Identity) error {
	ru, eu, su := unix.Getresuid()
	rg, eg, sg := unix.Getresgid()
	caps, err := permitted()
	nnp, nerr := NoNewPrivs()
	switch {
	case err != nil || nerr != nil:
		return errors.Join(err, nerr)
	case !all(int(id.UID), ru, eu, su) || !all(int(id.GID), rg, eg, sg) || !onlyGroup(id.GID):
		return fmt.Errorf("uid %d or gid %d, or the groups, did not take", id.UID, id.GID)
	case caps != 0 || !nnp:
		return fmt.Errorf("capabilities %#x or no_new_privs %v did not take", caps, nnp)
	}
	return nil
}

func ignoreNoSetpcap(err error) error {
	if err == errNoSetpcap {
		return nil // Probe tells; without capabilities and with no_new_privs nothing can be gained from the set
	}
	return err
}

// closeOnExec leaves programs executed from now on descriptors 0 to 2 only. The others stay open here.
func closeOnExec() error {
	if unix.CloseRange(3, ^uint(0), unix.CLOSE_RANGE_CLOEXEC) == nil {
		return nil
	}
	// Before Linux 5.11, or refused by a container engine's filter of that time.
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return fmt.Errorf("descriptors: %w", err)
	}
	for _, e := range entries {
		if fd, err := strconv.Atoi(e.Name()); err == nil && fd > 2 {
			unix.CloseOnExec(fd)
		}
	}
	return nil
}

// sigaction is the kernel's struct, the same size on both machines; the zero value is SIG_DFL.
type sigaction struct{ handler, flags, restorer, mask uintptr }

const (
	sigIgn   = 1
	sigCount = 64
	sigSize  = 8 // bytes of a signal set
)

// defaultSignals makes every signal that is ignored default again, and unblocks all: both would survive execve.
// Handlers are reset by execve itself.
func defaultSignals() error {
	for sig := uintptr(1); sig <= sigCount; sig++ {
		var old, dfl sigaction
		_, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, sig, 0, uintptr(unsafe.Pointer(&old)), sigSize, 0, 0)
		if errno != 0 || old.handler != sigIgn {
			continue // EINVAL: not a signal
		}
		_, _, errno = unix.RawSyscall6(unix.SYS_RT_SIGACTION, sig, uintptr(unsafe.Pointer(&dfl)), 0, sigSize, 0, 0)
		if errno != 0 {
			return fmt.Errorf("signal %d: %w", sig, errno)
		}
	}
	var none uint64
	_, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&none)), 0, sigSize, 0, 0)
	if errno != 0 {
		return fmt.Errorf("signal mask: %w", errno)
	}
	return nil
}
