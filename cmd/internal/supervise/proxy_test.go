package supervise

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"exitgate/netns/netnstest"
)

// proxyBinary is this test binary built without cgo, as the product is: system calls on all threads need that, and
// the race detector is cgo.
var proxyBinary = sync.OnceValues(func() (string, error) {
	if err := allThreads.prctl(unix.PR_GET_DUMPABLE, 0); !errors.Is(err, unix.ENOTSUP) {
		return "/proc/self/exe", nil
	}
	dir, err := os.MkdirTemp("", "supervise")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir) // the open descriptor is all that is needed
	build := exec.Command("go", "test", "-c", "-o", dir+"/test", ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build without cgo: %v: %s", err, out)
	}
	fd, err := unix.Open(dir+"/test", unix.O_PATH|unix.O_CLOEXEC, 0)
	return fmt.Sprintf("/proc/self/fd/%d", fd), err // of the child, which has it until it is executed
})

func proxyCommand(t *testing.T, name string, args ...string) *exec.Cmd {
	t.Helper()
	netnstest.RequireRoot(t)
	path, err := proxyBinary()
	if err != nil {
		t.Fatal(err)
	}
	cmd := netnstest.Program(name, args...)
	cmd.Path = path
	cmd.WaitDelay = patience
	return cmd
}

// proxyCall is one thing that a proxy must not be able to do.
type proxyCall struct {
	name string
	do   func(dir string, parent int) error
	want unix.Errno
}

func sys(nr uintptr, args ...uintptr) error {
	if errno := (call{nr: nr, args: args}).do(); errno != 0 {
		return errno
	}
	return nil
}

func cstring(s string) uintptr {
	b, _ := unix.BytePtrFromString(s)
	pinned = append(pinned, b)
	return uintptr(unsafe.Pointer(b))
}

var pinned []*byte // what system calls are given by address

// proxyCalls all succeed in a process that is not hardened, run in this order: a file is there to remove, a directory to enter.
func proxyCalls() []proxyCall {
	return slices.Concat(openCalls(), fileCalls(), socketCalls(), processCalls(), ownCalls(), executeCalls())
}

const cwd = ^uintptr(99) // AT_FDCWD, -100

func at(dir, name string) uintptr { return cstring(filepath.Join(dir, name)) }

// scratch is memory that calls read and write; noLimit stays zero.
var (
	scratch [64]byte
	noLimit unix.Rlimit
)

func scratchAddr() uintptr { return uintptr(unsafe.Pointer(&scratch)) }

// plain is a call that needs nothing of the test, on a call that needs its directory, to one that needs the bystander.
func plain(name string, nr uintptr, args ...uintptr) proxyCall {
	return proxyCall{name, func(string, int) error { return sys(nr, args...) }, unix.EPERM}
}

func on(name string, f func(dir string) error) proxyCall {
	return proxyCall{name, func(dir string, _ int) error { return f(dir) }, unix.EPERM}
}

func to(name string, nr uintptr, args ...uintptr) proxyCall {
	return proxyCall{name, func(_ string, bystander int) error {
		filled := slices.Clone(args)
		for i, arg := range filled {
			if arg == thePID {
				filled[i] = uintptr(bystander)
			}
		}
		return sys(nr, filled...)
	}, unix.EPERM}
}

// thePID stands for the bystander's in the arguments of to.
const thePID = 0x7fff_7fff

func openCalls() []proxyCall {
	open := func(name, file string, flags uintptr) proxyCall {
		return on("openat "+name, func(dir string) error { return sys(unix.SYS_OPENAT, cwd, at(dir, file), flags, 0o600) })
	}
	return []proxyCall{
		open("write", "file", unix.O_WRONLY),
		open("read and write", "file", unix.O_RDWR),
		open("access mode 3", "file", unix.O_ACCMODE),
		open("create", "new", unix.O_RDONLY|unix.O_CREAT),
		open("truncate", "file", unix.O_RDONLY|unix.O_TRUNC),
		open("temporary", "", unix.O_RDWR|unix.O_TMPFILE),
		{"openat2", func(dir string, _ int) error {
			how := &unix.OpenHow{Flags: unix.O_RDONLY}
			return sys(unix.SYS_OPENAT2, cwd, at(dir, "file"), uintptr(unsafe.Pointer(how)), unsafe.Sizeof(*how))
		}, unix.ENOSYS},
		{"read another's memory", func(_ string, p int) error { return canRead(fmt.Sprintf("/proc/%d/mem", p)) }, unix.EACCES},
		{"read another's environment", func(_ string, p int) error { return canRead(fmt.Sprintf("/proc/%d/environ", p)) }, unix.EACCES},
	}
}

func fileCalls() []proxyCall {
	one := func(name, file string, nr uintptr, args ...uintptr) proxyCall {
		return on(name, func(dir string) error { return sys(nr, append([]uintptr{cwd, at(dir, file)}, args...)...) })
	}
	two := func(name string, nr uintptr, from, to string) proxyCall {
		return on(name, func(dir string) error { return sys(nr, cwd, at(dir, from), cwd, at(dir, to), 0) })
	}
	return []proxyCall{
		one("mkdirat", "sub", unix.SYS_MKDIRAT, 0o700),
		one("mknodat", "fifo", unix.SYS_MKNODAT, unix.S_IFIFO|0o600),
		one("fchmodat", "file", unix.SYS_FCHMODAT, 0o600),
		one("fchownat", "file", unix.SYS_FCHOWNAT, 0, 0),
		one("utimensat", "file", unix.SYS_UTIMENSAT, 0, 0),
		two("linkat", unix.SYS_LINKAT, "file", "link"),
		two("renameat2", unix.SYS_RENAMEAT2, "link", "renamed"),
		on("symlinkat", func(dir string) error { return sys(unix.SYS_SYMLINKAT, at(dir, "file"), cwd, at(dir, "symlink")) }),
		one("unlinkat", "renamed", unix.SYS_UNLINKAT),
		on("truncate", func(dir string) error { return sys(unix.SYS_TRUNCATE, at(dir, "file"), 0) }),
		on("setxattr", func(dir string) error {
			return sys(unix.SYS_SETXATTR, at(dir, "file"), cstring("user.x"), scratchAddr(), 1, 0)
		}),
		plain("memfd_create", unix.SYS_MEMFD_CREATE, cstring("x")),
		plain("inotify_init1", unix.SYS_INOTIFY_INIT1),
	}
}

func socketCalls() []proxyCall {
	return []proxyCall{
		plain("socket unix", unix.SYS_SOCKET, unix.AF_UNIX, unix.SOCK_STREAM),
		plain("socket netlink", unix.SYS_SOCKET, unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_NETFILTER),
		plain("socket packet", unix.SYS_SOCKET, unix.AF_PACKET, unix.SOCK_RAW),
		plain("socket udp", unix.SYS_SOCKET, unix.AF_INET, unix.SOCK_DGRAM),
		plain("socket udp6", unix.SYS_SOCKET, unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC),
		plain("socket raw", unix.SYS_SOCKET, unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP),
		plain("socket mptcp", unix.SYS_SOCKET, unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_MPTCP),
		plain("socketpair", unix.SYS_SOCKETPAIR, unix.AF_UNIX, unix.SOCK_STREAM, 0, scratchAddr()),
		plain("listen", unix.SYS_LISTEN, tcpSocket, 1),
		plain("ioctl FIONBIO", unix.SYS_IOCTL, tcpSocket, 0x5421, scratchAddr()),
	}
}

func processCalls() []proxyCall {
	return []proxyCall{
		to("kill", unix.SYS_KILL, thePID, 0),
		plain("kill all", unix.SYS_KILL, ^uintptr(0), 0),
		plain("kill group", unix.SYS_KILL, 0, 0),
		to("tgkill", unix.SYS_TGKILL, thePID, thePID, 0),
		to("tkill", unix.SYS_TKILL, thePID, 0),
		to("pidfd_open", unix.SYS_PIDFD_OPEN, thePID, 0),
		to("fcntl F_SETOWN", unix.SYS_FCNTL, tcpSocket, unix.F_SETOWN, thePID),
		plain("fcntl F_SETSIG", unix.SYS_FCNTL, tcpSocket, unix.F_SETSIG, uintptr(unix.SIGTERM)),
		to("process_vm_readv", unix.SYS_PROCESS_VM_READV, thePID, scratchAddr(), 0, scratchAddr(), 0, 0),
		to("process_vm_writev", unix.SYS_PROCESS_VM_WRITEV, thePID, scratchAddr(), 0, scratchAddr(), 0, 0),
		to("ptrace", unix.SYS_PTRACE, unix.PTRACE_SEIZE, thePID, 0, 0),
		to("prlimit64 of another", unix.SYS_PRLIMIT64, thePID, unix.RLIMIT_CORE, 0, scratchAddr()),
		plain("prlimit64 set", unix.SYS_PRLIMIT64, 0, unix.RLIMIT_MSGQUEUE, uintptr(unsafe.Pointer(&noLimit)), 0),
	}
}

func ownCalls() []proxyCall {
	return []proxyCall{
		plain("prctl dumpable", unix.SYS_PRCTL, unix.PR_SET_DUMPABLE, 1),
		plain("prctl subreaper", unix.SYS_PRCTL, unix.PR_SET_CHILD_SUBREAPER, 0),
		plain("setresuid", unix.SYS_SETRESUID, 0, 0, 0),
		plain("mmap executable", unix.SYS_MMAP, 0, 4096, unix.PROT_READ|unix.PROT_EXEC, unix.MAP_PRIVATE|unix.MAP_ANON, ^uintptr(0)),
		plain("mprotect executable", unix.SYS_MPROTECT, scratchAddr()&^4095, 4096, unix.PROT_READ|unix.PROT_WRITE|unix.PROT_EXEC),
		plain("unshare", unix.SYS_UNSHARE, unix.CLONE_NEWNET),
		on("setns", func(string) error {
			fd, err := unix.Open("/proc/self/ns/net", unix.O_RDONLY, 0)
			return errors.Join(err, sys(unix.SYS_SETNS, uintptr(fd), unix.CLONE_NEWNET))
		}),
		plain("mount", unix.SYS_MOUNT, cstring("none"), cstring("/"), 0, unix.MS_PRIVATE, 0),
		plain("chroot", unix.SYS_CHROOT, cstring("/")),
		plain("keyctl", unix.SYS_KEYCTL, 0, ^uintptr(2)),
		plain("personality", unix.SYS_PERSONALITY, 0xffffffff),
	}
}

func executeCalls() []proxyCall {
	return []proxyCall{
		plain("clone", unix.SYS_CLONE, uintptr(unix.SIGCHLD)),
		on("execve", func(dir string) error { return sys(unix.SYS_EXECVE, at(dir, "program"), 0, 0) }),
		on("execveat", func(dir string) error { return sys(unix.SYS_EXECVEAT, cwd, at(dir, "program"), 0, 0, 0) }),
	}
}

func canRead(path string) error {
	f, err := os.Open(path)
	if err == nil {
		f.Close()
	}
	return err
}

// tcpSocket is a descriptor of a TCP socket in the proxy program.
const tcpSocket = 200

// controlErrno is what a call gives that cannot succeed even in a process that is not hardened.
var controlErrno = map[string]unix.Errno{"execve": unix.ENOEXEC, "execveat": unix.ENOEXEC}

// proxyProgram is a proxy that hardens itself, by all means, by Landlock alone or not at all, and then does what it must not.
func proxyProgram(args []string) int {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	if err == nil {
		err = unix.Dup3(fd, tcpSocket, 0)
	}
	calls := proxyCalls()
	switch how := args[1]; {
	case err != nil:
	case how == "all":
		err = HardenProxy()
	case how == "landlock":
		err = errors.Join(allThreads.setNoNewPrivs(), restrictProxy())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	got := map[string]unix.Errno{}
	parent, _ := strconv.Atoi(args[2])
	runtime.LockOSThread()
	for _, c := range calls {
		var errno unix.Errno
		errors.As(c.do(args[0], parent), &errno)
		got[c.name] = errno
	}
	_ = json.NewEncoder(os.Stdout).Encode(got)
	return 0
}

func proxyResults(t *testing.T, how string) map[string]unix.Errno {
	t.Helper()
	dir := openDir(t)
	if err := os.WriteFile(dir+"/file", []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	script(t, dir, "program", "\x00 no program", 0o755)
	bystander := exec.Command("sleep", "1000") // whom it must not reach; root's, as the first process is
	if err := bystander.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = bystander.Process.Kill()
		_ = bystander.Wait()
	})
	cmd := proxyCommand(t, "proxy", dir, how, strconv.Itoa(bystander.Process.Pid))
	cmd.SysProcAttr = &unix.SysProcAttr{Cloneflags: unix.CLONE_NEWNS}
	var out, errs strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s: %v: %s", how, err, errs.String())
	}
	got := map[string]unix.Errno{}
	if err := json.Unmarshal([]byte(out.String()), &got); err != nil {
		t.Fatal(err)
	}
	return got
}

func TestProxyRefused(t *testing.T) {
	hardened, control := proxyResults(t, "all"), proxyResults(t, "none")
	for _, c := range proxyCalls() {
		if hardened[c.name] != c.want {
			t.Errorf("%s: %v, want %v", c.name, hardened[c.name], c.want)
		}
		if want := controlErrno[c.name]; control[c.name] != want {
			t.Errorf("%s without hardening: %v, want %v", c.name, control[c.name], want)
		}
	}
}

// worksProgram is a hardened proxy that asks of its connections what the relay asks.
func worksProgram([]string) int {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err == nil {
		err = HardenProxy()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	ready := func() int {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fds[0]), Events: unix.POLLIN | unix.POLLRDHUP}}, 0)
		if err != nil {
			return -1
		}
		return n
	}
	before := ready()
	_, err = unix.Write(fds[1], []byte("12345"))
	queued, ioctlErr := unix.IoctlGetInt(fds[0], unix.TIOCINQ)
	fmt.Println(before, ready(), queued, errors.Join(err, ioctlErr))
	return 0
}

// Where a look is refused the relay takes a peer that has left for one that is there, and moves bytes in small pieces.
func TestProxyLooksAtItsConnections(t *testing.T) {
	out, err := proxyCommand(t, "works").CombinedOutput()
	if got := string(out); err != nil || got != "0 1 5 <nil>\n" {
		t.Errorf("before, after, queued, error: %q (%v), want 0 1 5 <nil>", got, err)
	}
}

// Landlock alone refuses what concerns files too, so that one of the two may fail.
func TestProxyLandlock(t *testing.T) {
	if landlockABI() < 3 {
		cannot(t, "this kernel's Landlock does not know truncation; Linux 6.2's does")
	}
	got := proxyResults(t, "landlock")
	for _, name := range []string{"openat write", "openat read and write", "openat create", "openat truncate", "openat temporary", "mkdirat",
		"mknodat", "linkat", "symlinkat", "truncate", "execve", "execveat"} {
		if got[name] != unix.EACCES {
			t.Errorf("%s: %v, want %v", name, got[name], unix.EACCES)
		}
	}
}

// hardenedProgram is a proxy that waits.
func hardenedProgram([]string) int {
	fmt.Println(HardenProxy())
	time.Sleep(time.Hour)
	return 0
}

// Nobody of the proxy's own uid reads its memory, and it leaves none behind. Run as the agent's uid, since what tells
// is that /proc belongs to root then.
func TestProxyUndumpable(t *testing.T) {
	owner := func(name string) (uid uint32, limits string) {
		cmd := netnstest.As(proxyCommand(t, name), agentID.UID, agentID.GID)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
		b := make([]byte, 100)
		if n, _ := out.Read(b); string(b[:n]) != "<nil>\n" {
			t.Fatalf("%s says %q", name, b[:n])
		}
		var st unix.Stat_t
		if err := unix.Stat(fmt.Sprintf("/proc/%d/environ", cmd.Process.Pid), &st); err != nil {
			t.Fatal(err)
		}
		l, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", cmd.Process.Pid))
		if err != nil {
			t.Fatal(err)
		}
		return st.Uid, string(l)
	}
	if uid, limits := owner("hardened"); uid != 0 || !strings.Contains(limits, "Max core file size        0                    0") {
		t.Errorf("owner %d, limits:\n%s", uid, limits)
	}
	if uid, _ := owner("wait"); uid != agentID.UID {
		t.Errorf("without hardening: owner %d", uid)
	}
}

// waitProgram is a proxy that does not harden itself.
func waitProgram([]string) int {
	fmt.Println("<nil>")
	time.Sleep(time.Hour)
	return 0
}
