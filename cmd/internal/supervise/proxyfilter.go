package supervise

import (
	"fmt"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// proxyFilter is the list of all that a Go program needs to accept, dial, relay and read its certificates; the rest is
// refused with EPERM. A list of what is forbidden would have to know every road; this one has to know one program.
// pid is the process the filter is for: it may signal itself, as the runtime does to preempt goroutines.
func proxyFilter(pid int) []bpf.Instruction {
	rules := always(allow,
		// The frequent ones first: kernels before 5.11 walk the list at each call.
		unix.SYS_READ, unix.SYS_WRITE, unix.SYS_FUTEX, unix.SYS_EPOLL_PWAIT, unix.SYS_NANOSLEEP,
		unix.SYS_SPLICE, unix.SYS_WRITEV, unix.SYS_READV, unix.SYS_ACCEPT4, unix.SYS_CONNECT, unix.SYS_CLOSE,
		unix.SYS_EPOLL_CTL, unix.SYS_SETSOCKOPT, unix.SYS_GETSOCKOPT, unix.SYS_GETSOCKNAME, unix.SYS_GETPEERNAME,
		unix.SYS_SHUTDOWN, unix.SYS_SENDTO, unix.SYS_RECVFROM, unix.SYS_SENDMSG, unix.SYS_RECVMSG, unix.SYS_SENDFILE,
		unix.SYS_PPOLL, // whether a peer has left, whether a kept connection is still quiet
		unix.SYS_ACCEPT, unix.SYS_BIND, unix.SYS_PIPE2, unix.SYS_EVENTFD2, unix.SYS_EPOLL_CREATE1,
		// memory
		unix.SYS_MUNMAP, unix.SYS_MADVISE,
		// threads, signals and time of the runtime
		unix.SYS_RT_SIGRETURN, unix.SYS_RT_SIGPROCMASK, unix.SYS_RT_SIGACTION, unix.SYS_SIGALTSTACK,
		unix.SYS_RESTART_SYSCALL, unix.SYS_GETPID, unix.SYS_GETTID, unix.SYS_EXIT, unix.SYS_EXIT_GROUP,
		unix.SYS_SCHED_YIELD, unix.SYS_SCHED_GETAFFINITY, unix.SYS_CLOCK_GETTIME, unix.SYS_CLOCK_NANOSLEEP,
		unix.SYS_GETTIMEOFDAY, unix.SYS_GETRANDOM, unix.SYS_GETRUSAGE,
		// files to read, and who and where we are
		unix.SYS_FSTAT, unix.SYS_NEWFSTATAT, unix.SYS_STATX, unix.SYS_LSEEK, unix.SYS_PREAD64, unix.SYS_GETDENTS64,
		unix.SYS_READLINKAT, unix.SYS_FACCESSAT, unix.SYS_FACCESSAT2, unix.SYS_GETCWD, unix.SYS_UNAME,
		unix.SYS_GETUID, unix.SYS_GETEUID, unix.SYS_GETGID, unix.SYS_GETEGID,
	)
	rules = append(rules,
		rule{unix.SYS_OPENAT, readOnly()},
		rule{unix.SYS_SOCKET, tcpOnly()},
		rule{unix.SYS_FCNTL, fcntls()},
		rule{unix.SYS_IOCTL, argOnly(1, unix.TIOCINQ)}, // how much a tunnel has to move
		rule{unix.SYS_CLONE, threadsOnly()},
		rule{unix.SYS_MMAP, noExec()},
		rule{unix.SYS_MPROTECT, noExec()},
		rule{unix.SYS_TGKILL, argOnly(0, uint32(pid))},
		rule{unix.SYS_KILL, argOnly(0, uint32(pid))},
		rule{unix.SYS_PRCTL, argOnly(0, unix.PR_SET_VMA)}, // the runtime names its memory
		rule{unix.SYS_PRLIMIT64, ownLimits()},
	)
	// Go takes ENOSYS as a kernel without the call, and uses an older one.
	rules = append(rules, always(refuse(unix.ENOSYS), unix.SYS_OPENAT2, unix.SYS_CLONE3, unix.SYS_EPOLL_PWAIT2)...)
	return filter(rules, refuse(unix.EPERM))
}

// argOnly allows a call whose argument i, an int, is val.
func argOnly(i, val uint32) []bpf.Instruction {
	return join([]bpf.Instruction{argLow(i)}, when(val, allow), []bpf.Instruction{refuse(unix.EPERM)})
}

// oTmpfile is the bit of O_TMPFILE that is not O_DIRECTORY.
const oTmpfile = unix.O_TMPFILE &^ unix.O_DIRECTORY

// readOnly refuses every way to have openat write: the access mode, or what it does to the file by itself.
func readOnly() []bpf.Instruction {
	return join([]bpf.Instruction{argLow(2)},
		whenAny(unix.O_ACCMODE|unix.O_CREAT|unix.O_TRUNC|oTmpfile, refuse(unix.EPERM)), []bpf.Instruction{allow})
}

// tcpOnly allows stream sockets of IPv4 and IPv6. No datagrams: the proxy must not resolve names by itself.
func tcpOnly() []bpf.Instruction {
	const typeMask = 0xf // SOCK_TYPE_MASK; above it are SOCK_CLOEXEC and SOCK_NONBLOCK
	no := []bpf.Instruction{refuse(unix.EPERM)}
	return join(
		[]bpf.Instruction{
			argLow(0),
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.AF_INET, SkipTrue: 2},
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.AF_INET6, SkipTrue: 1},
			refuse(unix.EPERM),
			argLow(1),
			bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: typeMask},
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.SOCK_STREAM, SkipTrue: 1},
			refuse(unix.EPERM),
			argLow(2),
		},
		when(0, allow), when(unix.IPPROTO_TCP, allow), no)
}

// fcntls leaves out F_SETOWN and F_SETSIG, by which the kernel sends any signal to any process of the same uid.
func fcntls() []bpf.Instruction {
	body := []bpf.Instruction{argLow(1)}
	for _, cmd := range []uint32{unix.F_GETFL, unix.F_SETFL, unix.F_GETFD, unix.F_SETFD, unix.F_DUPFD_CLOEXEC, unix.F_GETPIPE_SZ, unix.F_SETPIPE_SZ} {
		body = append(body, when(cmd, allow)...)
	}
	return append(body, refuse(unix.EPERM))
}

// threadsOnly allows clone for threads: such a thread cannot execute or outlive anything the process could not.
func threadsOnly() []bpf.Instruction {
	return join([]bpf.Instruction{argLow(0)}, whenAny(unix.CLONE_THREAD, allow), []bpf.Instruction{refuse(unix.EPERM)})
}

// noExec: Go's code is all in the file, so memory that is made executable is somebody else's.
func noExec() []bpf.Instruction {
	return join([]bpf.Instruction{argLow(2)}, whenAny(unix.PROT_EXEC, refuse(unix.EPERM)), []bpf.Instruction{allow})
}

// ownLimits allows reading the process's own limits: pid 0 and no new value.
func ownLimits() []bpf.Instruction {
	isZero := func(load bpf.Instruction) []bpf.Instruction {
		return []bpf.Instruction{load, bpf.JumpIf{Cond: bpf.JumpEqual, Val: 0, SkipTrue: 1}, refuse(unix.EPERM)}
	}
	return join(isZero(argLow(0)), isZero(argLow(2)), isZero(argHigh(2)), []bpf.Instruction{allow})
}

// HardenProxy makes the calling process, in all its threads, one that can relay and little else: no capability, no
// no_new_privs undone, no core dump, no memory others could read, no program executed, no process started, no file written
// or made, no socket but TCP, no signal to others; with Landlock where the kernel has it. It cannot be undone. Descriptors that
// are open stay usable. An error means that the process is not hardened and must end.
func HardenProxy() error {
	for _, step := range []func() error{
		setNoCore,
		setUndumpable,
		allThreads.setNoNewPrivs,
		restrictProxy,
		allThreads.disarm,
		func() error { return allThreads.installFilter(proxyFilter(unix.Getpid())) },
	} {
		if err := step(); err != nil {
			return fmt.Errorf("harden the proxy: %w", err)
		}
	}
	return nil
}
