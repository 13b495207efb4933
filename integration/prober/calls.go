package prober

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// calls are system calls that an agent must not get through, and that somebody may.
var calls = map[string]func(p Probe) error{
	"ptrace": func(p Probe) error { return ptraceSeize(p.PID) },
	"pidfd_getfd": func(p Probe) error {
		fd, err := unix.PidfdOpen(p.PID, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		got, err := unix.PidfdGetfd(fd, 0, 0)
		if err == nil {
			unix.Close(got)
		}
		return err
	},
	"process_vm_readv":  func(p Probe) error { return otherMemory(p.PID, unix.ProcessVMReadv) },
	"process_vm_writev": func(p Probe) error { return otherMemory(p.PID, unix.ProcessVMWritev) },
	"kill":              func(p Probe) error { return unix.Kill(p.PID, 0) },
	"pidfd_signal": func(p Probe) error {
		fd, err := unix.PidfdOpen(p.PID, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return unix.PidfdSendSignal(fd, 0, nil, 0)
	},
	"prlimit": func(p Probe) error {
		var old unix.Rlimit
		if err := unix.Prlimit(p.PID, unix.RLIMIT_NOFILE, nil, &old); err != nil {
			return err
		}
		return unix.Prlimit(p.PID, unix.RLIMIT_NOFILE, &old, nil)
	},
	"setns_net":   func(p Probe) error { return setns(p.PID, "net", unix.CLONE_NEWNET) },
	"setns_mnt":   func(p Probe) error { return setns(p.PID, "mnt", unix.CLONE_NEWNS) },
	"unshare_net": func(Probe) error { return onOwnThread(func() error { return unix.Unshare(unix.CLONE_NEWNET) }) },
	"clone3_user": func(Probe) error { return clone3(unix.CLONE_NEWUSER) },
	"mount": func(Probe) error {
		return onOwnThread(func() error { return unix.Mount("none", "/tmp", "tmpfs", 0, "") })
	},
	"chroot":      func(Probe) error { return onOwnThread(chroot) },
	"setuid":      func(Probe) error { return onOwnThread(func() error { return raw(unix.SYS_SETRESUID, 0, 0, 0) }) },
	"setgid":      func(Probe) error { return onOwnThread(func() error { return raw(unix.SYS_SETRESGID, 0, 0, 0) }) },
	"setgroups":   func(Probe) error { return onOwnThread(func() error { return raw(unix.SYS_SETGROUPS, 0, 0) }) },
	"bpf":         func(Probe) error { return bpfMap() },
	"io_uring":    func(Probe) error { return closing(unix.SYS_IO_URING_SETUP, 1, uintptr(unsafe.Pointer(&uringParams{}))) },
	"userfaultfd": func(Probe) error { return closing(unix.SYS_USERFAULTFD, unix.O_CLOEXEC|1) }, // UFFD_USER_MODE_ONLY
	"perf":        func(Probe) error { return perf() },
	"keyctl":      func(Probe) error { return raw(unix.SYS_KEYCTL, 0, ^uintptr(2)) }, // the session keyring's id
	"sethostname": func(Probe) error { return unix.Sethostname([]byte("box")) },
	"link_up":     func(Probe) error { return linkFlags() },
	"every_mark":  func(Probe) error { return everyMark() },
	"join_group":  func(Probe) error { return joinGroup() },
}

func systemCall(p Probe, _ emit) (r Result) {
	f := calls[p.Call]
	if f == nil {
		r.Err = fmt.Sprintf("unknown call %q", p.Call)
		return r
	}
	if err := f(p); err != nil {
		r.fail(p.Call, err)
	}
	return r
}

func raw(nr uintptr, args ...uintptr) error {
	var a [6]uintptr
	copy(a[:], args)
	if _, _, errno := unix.RawSyscall6(nr, a[0], a[1], a[2], a[3], a[4], a[5]); errno != 0 {
		return errno
	}
	return nil
}

// closing makes a call that returns a descriptor.
func closing(nr uintptr, args ...uintptr) error {
	var a [6]uintptr
	copy(a[:], args)
	fd, _, errno := unix.RawSyscall6(nr, a[0], a[1], a[2], a[3], a[4], a[5])
	if errno != 0 {
		return errno
	}
	return unix.Close(int(fd))
}

// onOwnThread runs f on a thread that is not used again, whatever f made of it.
func onOwnThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			done <- err
			return
		}
		done <- f()
	}()
	return <-done
}

// ptraceSeize attaches without stopping; the end of the thread lets go.
func ptraceSeize(pid int) error {
	return onOwnThread(func() error { return raw(unix.SYS_PTRACE, unix.PTRACE_SEIZE, uintptr(pid), 0, 0) })
}

// otherMemory tries an address that nothing is at: EFAULT says that it might have.
func otherMemory(pid int, f func(int, []unix.Iovec, []unix.RemoteIovec, uint) (int, error)) error {
	local := unix.Iovec{Base: new(byte)}
	local.SetLen(1)
	_, err := f(pid, []unix.Iovec{local}, []unix.RemoteIovec{{Base: 8, Len: 1}}, 0)
	if errors.Is(err, unix.EFAULT) {
		return nil
	}
	return err
}

func setns(pid int, kind string, flag int) error {
	return onOwnThread(func() error {
		f, err := os.Open(fmt.Sprintf("/proc/%d/ns/%s", pid, kind))
		if err != nil {
			return err
		}
		defer f.Close()
		return unix.Setns(int(f.Fd()), flag)
	})
}

// clone3 asks for a child in new namespaces; where there is one it ends at once.
func clone3(flags uint64) error {
	args := [11]uint64{0: flags, 4: uint64(unix.SIGCHLD)}
	pid, _, errno := unix.RawSyscall(unix.SYS_CLONE3, uintptr(unsafe.Pointer(&args)), unsafe.Sizeof(args), 0)
	if errno != 0 {
		return errno
	}
	if pid == 0 {
		unix.RawSyscall(unix.SYS_EXIT_GROUP, 0, 0, 0)
	}
	_, err := unix.Wait4(int(pid), nil, 0, nil)
	return err
}

func chroot() error { return unix.Chroot("/tmp") }

// bpfMap makes an array map of one element.
func bpfMap() error {
	attr := [18]uint32{2, 4, 4, 1} // BPF_MAP_TYPE_ARRAY, key size, value size, entries
	return closing(unix.SYS_BPF, 0, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
}

func perf() error {
	attr := unix.PerfEventAttr{Type: unix.PERF_TYPE_SOFTWARE, Config: unix.PERF_COUNT_SW_TASK_CLOCK, Bits: unix.PerfBitExcludeKernel | unix.PerfBitExcludeHv}
	attr.Size = uint32(unsafe.Sizeof(attr))
	fd, err := unix.PerfEventOpen(&attr, 0, -1, -1, unix.PERF_FLAG_FD_CLOEXEC)
	if err == nil {
		unix.Close(fd)
	}
	return err
}

// linkFlags sets the flags of lo to what they are.
func linkFlags() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	req, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, req); err != nil {
		return err
	}
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, req)
}

// everyMark tries each bit, all of them, none, and the marks that the ruleset itself uses. The first that can be set is a failure to report.
func everyMark() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	marks := []int{0, 0xffffffff, 0x6167dead, 1000}
	for bit := range 32 {
		marks = append(marks, 1<<bit)
	}
	for _, m := range marks {
		if err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, m); err == nil {
			return nil
		}
	}
	return err
}

// joinGroup has the kernel name a group of twelve chosen bytes on the wire, by a listener report.
func joinGroup() error {
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	req := &unix.IPv6Mreq{Multiaddr: [16]byte{0xff, 0x02, 0, 0, 't', 'w', 'e', 'l', 'v', 'e', 'b', 'y', 't', 'e', 's', '!'}}
	return unix.SetsockoptIPv6Mreq(fd, unix.IPPROTO_IPV6, unix.IPV6_JOIN_GROUP, req)
}
