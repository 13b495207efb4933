package supervise

import (
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// Offsets in struct seccomp_data, linux/seccomp.h. Arguments are 64 bits wide; both machines we build for are little-endian.
const (
	offNumber = 0
	offArch   = 4
	offArgs   = 16
)

// newestKnown is the last system call this package has judged. What a later kernel adds is refused as not there.
const newestKnown = unix.SYS_RSEQ_SLICE_YIELD

// rule is what a filter does about one system call. Every path through body ends in a return.
type rule struct {
	nr   uint32
	body []bpf.Instruction
}

var allow = bpf.RetConstant{Val: unix.SECCOMP_RET_ALLOW}

func refuse(errno unix.Errno) bpf.RetConstant {
	return bpf.RetConstant{Val: unix.SECCOMP_RET_ERRNO | uint32(errno)}
}

// always gives one verdict for each of the system calls.
func always(verdict bpf.Instruction, numbers ...uint32) []rule {
	rules := make([]rule, len(numbers))
	for i, nr := range numbers {
		rules[i] = rule{nr, []bpf.Instruction{verdict}}
	}
	return rules
}

// argLow loads the lower half of argument i, which is all the kernel takes of an int. Comparing the whole argument
// would let a caller evade the rule by setting the upper half.
func argLow(i uint32) bpf.LoadAbsolute  { return bpf.LoadAbsolute{Off: offArgs + 8*i, Size: 4} }
func argHigh(i uint32) bpf.LoadAbsolute { return bpf.LoadAbsolute{Off: offArgs + 8*i + 4, Size: 4} }

// when returns verdict if the loaded value equals val, and goes on otherwise.
func when(val uint32, verdict bpf.Instruction) []bpf.Instruction {
	return []bpf.Instruction{bpf.JumpIf{Cond: bpf.JumpEqual, Val: val, SkipFalse: 1}, verdict}
}

// whenAny returns verdict if any of the bits is set in the loaded value, and goes on otherwise.
func whenAny(bits uint32, verdict bpf.Instruction) []bpf.Instruction {
	return []bpf.Instruction{bpf.JumpIf{Cond: bpf.JumpBitsSet, Val: bits, SkipFalse: 1}, verdict}
}

func join(parts ...[]bpf.Instruction) (all []bpf.Instruction) {
	for _, p := range parts {
		all = append(all, p...)
	}
	return all
}

// filter is the program that applies rules, and otherwise to calls without one. Other machines' calls (i386 and x32 on
// amd64) are refused as not there: their numbers mean something else, and socketcall hides its arguments in memory.
func filter(rules []rule, otherwise bpf.Instruction) []bpf.Instruction {
	p := []bpf.Instruction{
		bpf.LoadAbsolute{Off: offArch, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: auditArch, SkipTrue: 1},
		refuse(unix.ENOSYS),
		bpf.LoadAbsolute{Off: offNumber, Size: 4},
		// -1 is a call that a tracer has cancelled; it is not executed, and what the tracer put for a result shall stay.
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: ^uint32(0), SkipFalse: 1},
		allow,
		// x32 numbers have bit 30 set, so they are above as well.
		bpf.JumpIf{Cond: bpf.JumpGreaterThan, Val: newestKnown, SkipFalse: 1},
		refuse(unix.ENOSYS),
	}
	for _, r := range rules {
		p = append(p, bpf.JumpIf{Cond: bpf.JumpEqual, Val: r.nr, SkipFalse: uint8(len(r.body))})
		p = append(p, r.body...)
	}
	return append(p, otherwise)
}

// installFilter puts program on the calling thread, or on every thread of the process at once. It needs no_new_privs.
func (s scope) installFilter(program []bpf.Instruction) error {
	raw, err := bpf.Assemble(program)
	if err != nil {
		return fmt.Errorf("seccomp: %w", err)
	}
	code := make([]unix.SockFilter, len(raw))
	for i, r := range raw {
		code[i] = unix.SockFilter{Code: r.Op, Jt: r.Jt, Jf: r.Jf, K: r.K}
	}
	prog := &unix.SockFprog{Len: uint16(len(code)), Filter: &code[0]}
	var flags uintptr
	if s == allThreads {
		flags = unix.SECCOMP_FILTER_FLAG_TSYNC
	}
	tid, _, errno := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, flags, uintptr(unsafe.Pointer(prog)))
	switch {
	case errno == unix.ENOSYS || errno == unix.EINVAL:
		return errors.New("this kernel has no seccomp filters (CONFIG_SECCOMP_FILTER)")
	case errno != 0:
		return fmt.Errorf("seccomp: %w", errno)
	case tid != 0:
		return fmt.Errorf("seccomp: thread %d has a filter of its own", tid)
	}
	return nil
}
