package supervise

import (
	"errors"
	"fmt"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// scope says whose credentials a call changes. The kernel keeps credentials, no_new_privs, securebits and filters per thread.
type scope bool

const (
	oneThread  scope = false // the calling, locked one: it executes another program next, or it ends
	allThreads scope = true  // every thread of the process; fails with ENOTSUP in programs built with cgo
)

// call makes a system call on the threads of the scope.
//
//go:uintptrescapes
func (s scope) call(nr, a, b, c, d uintptr) error {
	var errno syscall.Errno
	if s == allThreads {
		_, _, errno = syscall.AllThreadsSyscall6(nr, a, b, c, d, 0, 0)
	} else {
		_, _, errno = syscall.RawSyscall6(nr, a, b, c, d, 0, 0)
	}
	if errno != 0 {
		return errno
	}
	return nil
}

func (s scope) prctl(option int, arg uintptr) error {
	return s.call(unix.SYS_PRCTL, uintptr(option), arg, 0, 0)
}

// capSet has bit n set for capability n.
type capSet uint64

func capsOf(caps ...int) (set capSet) {
	for _, c := range caps {
		set |= 1 << c
	}
	return set
}

func (s capSet) has(c int) bool { return s&(1<<c) != 0 }

// permitted returns what the calling thread may have in its effective set.
func permitted() (capSet, error) {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return 0, fmt.Errorf("read capabilities: %w", err)
	}
	return capSet(data[0].Permitted) | capSet(data[1].Permitted)<<32, nil
}

// bounding returns the calling thread's bounding set.
func bounding() (set capSet) {
	for c := range 64 {
		on, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, uintptr(c), 0, 0, 0)
		if err != nil { // EINVAL: the kernel's last capability was the one before
			break
		}
		if on == 1 {
			set |= capsOf(c)
		}
	}
	return set
}

// errNoSetpcap: without CAP_SETPCAP the bounding set stays. no_new_privs keeps an agent from gaining any of it all the same.
var errNoSetpcap = errors.New("the bounding set cannot be reduced; run with --cap-add SETPCAP")

// limitBounding takes all but keep out of the bounding set.
func (s scope) limitBounding(keep capSet) error {
	drop := bounding() &^ keep
	for c := range 64 {
		if !drop.has(c) {
			continue
		}
		if err := s.prctl(unix.PR_CAPBSET_DROP, uintptr(c)); errors.Is(err, unix.EPERM) {
			return errNoSetpcap
		} else if err != nil {
			return fmt.Errorf("bounding set: %w", err)
		}
	}
	return nil
}

// setCaps makes keep the permitted and effective sets, and empties the inheritable and ambient sets.
func (s scope) setCaps(keep capSet) error {
	err := s.call(unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0)
	if err != nil {
		return fmt.Errorf("ambient capabilities: %w", err)
	}
	header := &unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	data := &[2]unix.CapUserData{}
	for i := range data {
		word := uint32(keep >> (32 * i))
		data[i] = unix.CapUserData{Effective: word, Permitted: word}
	}
	err = s.call(unix.SYS_CAPSET, uintptr(unsafe.Pointer(header)), uintptr(unsafe.Pointer(data)), 0, 0)
	if err != nil {
		return fmt.Errorf("capabilities: %w", err)
	}
	return nil
}

// lockedSecurebits: uid 0 means nothing to execve, uid changes give nothing, no ambient set, and none of it can be undone.
const lockedSecurebits = 1<<0 | 1<<1 | 1<<2 | 1<<3 | 1<<5 | 1<<6 | 1<<7

// lockSecurebits goes as far as CAP_SETPCAP is there.
func (s scope) lockSecurebits() error {
	now, err := unix.PrctlRetInt(unix.PR_GET_SECUREBITS, 0, 0, 0, 0)
	if err != nil || now&lockedSecurebits == lockedSecurebits {
		return err
	}
	if err := s.prctl(unix.PR_SET_SECUREBITS, uintptr(now|lockedSecurebits)); err != nil && !errors.Is(err, unix.EPERM) {
		return fmt.Errorf("securebits: %w", err)
	}
	return nil
}

func (s scope) setNoNewPrivs() error {
	if err := s.call(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0); err != nil {
		return fmt.Errorf("no_new_privs: %w", err)
	}
	return nil
}

// disarm leaves the threads of the scope without any capability, and without a way to one. It needs none itself.
func (s scope) disarm() error {
	if err := s.setNoNewPrivs(); err != nil {
		return err
	}
	if err := s.limitBounding(0); err != nil && err != errNoSetpcap {
		return err
	}
	if err := s.lockSecurebits(); err != nil {
		return err
	}
	return s.setCaps(0)
}

// NoNewPrivs reports whether the calling thread has no_new_privs set. Before KeepOnly has set it, this is what
// the container was started with, and what every `docker exec` into it will have.
func NoNewPrivs() (bool, error) {
	on, err := unix.PrctlRetInt(unix.PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0)
	return on == 1, err
}

// KeepOnly takes from every thread of the process, and from whatever it will start, all capabilities but
// those of the list that it has. It sets no_new_privs, and dumpable to 0, so that nobody without
// CAP_SYS_PTRACE reads its memory, environment or descriptors. The error says what could not be done; the rest is done.
// The bounding set stays: with no_new_privs execve gives nothing out of it (commoncap.c), and agents empty theirs.
// Before it come Probe, and ShareStreams for an agent on a terminal.
func KeepOnly(caps ...int) error {
	keep := capsOf(caps...)
	have, err := permitted()
	if err != nil {
		return err
	}
	return errors.Join(
		allThreads.setCaps(keep&have),
		allThreads.setNoNewPrivs(),
		setUndumpable(),
	)
}

func setUndumpable() error {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("dumpable: %w", err)
	}
	return nil
}

// setNoCore forbids core dumps: they would hold secrets, and the limit is inherited.
func setNoCore() error {
	if err := unix.Prlimit(0, unix.RLIMIT_CORE, &unix.Rlimit{}, nil); err != nil {
		return fmt.Errorf("core size limit: %w", err)
	}
	return nil
}
