package supervise

import (
	"encoding/binary"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"exitgate/netns/netnstest"
)

// call is one system call that the agent's filter refuses.
type call struct {
	name   string
	nr     uintptr
	args   []uintptr
	errno  unix.Errno // of the refusal
	loosen string     // the point that allows it; "" for none
}

// agentCalls are chosen so that the kernel itself answers each with something else than the refusal.
func agentCalls() []call {
	ring := make([]byte, 120) // struct io_uring_params
	socket := func(name string, errno unix.Errno, args ...uintptr) call {
		return call{"socket " + name, unix.SYS_SOCKET, args, errno, LoosenSocketFamilies}
	}
	const none = ^uintptr(0) // no descriptor
	return []call{
		socket("vsock", unix.EAFNOSUPPORT, unix.AF_VSOCK, unix.SOCK_STREAM),
		socket("vsock, upper half set", unix.EAFNOSUPPORT, 1<<32|unix.AF_VSOCK, unix.SOCK_STREAM),
		socket("packet", unix.EAFNOSUPPORT, unix.AF_PACKET, unix.SOCK_RAW),
		socket("alg", unix.EAFNOSUPPORT, unix.AF_ALG, unix.SOCK_SEQPACKET),
		socket("xdp", unix.EAFNOSUPPORT, unix.AF_XDP, unix.SOCK_RAW),
		socket("key", unix.EAFNOSUPPORT, unix.AF_KEY, unix.SOCK_RAW, 2),
		socket("bluetooth", unix.EAFNOSUPPORT, unix.AF_BLUETOOTH, unix.SOCK_RAW, 1),
		socket("can", unix.EAFNOSUPPORT, unix.AF_CAN, unix.SOCK_RAW, 1),
		socket("tipc", unix.EAFNOSUPPORT, unix.AF_TIPC, unix.SOCK_STREAM),
		socket("netlink netfilter", unix.EAFNOSUPPORT, unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_NETFILTER),
		socket("netlink diag", unix.EAFNOSUPPORT, unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_SOCK_DIAG),
		socket("netlink generic", unix.EAFNOSUPPORT, unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_GENERIC),
		socket("mptcp", unix.EPROTONOSUPPORT, unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_MPTCP),
		socket("mptcp6", unix.EPROTONOSUPPORT, unix.AF_INET6, unix.SOCK_STREAM, unix.IPPROTO_MPTCP),
		{"socketpair inet", unix.SYS_SOCKETPAIR, []uintptr{unix.AF_INET, unix.SOCK_STREAM}, unix.EAFNOSUPPORT, LoosenSocketFamilies},
		{"unshare user", unix.SYS_UNSHARE, []uintptr{unix.CLONE_NEWUSER}, unix.EPERM, LoosenUserNamespaces},
		{"unshare user and net", unix.SYS_UNSHARE, []uintptr{unix.CLONE_NEWUSER | unix.CLONE_NEWNET}, unix.EPERM, LoosenUserNamespaces},
		{"clone user", unix.SYS_CLONE, []uintptr{unix.CLONE_NEWUSER | uintptr(unix.SIGCHLD)}, unix.EPERM, LoosenUserNamespaces},
		{"clone3", unix.SYS_CLONE3, nil, unix.ENOSYS, LoosenUserNamespaces},
		{"setns", unix.SYS_SETNS, []uintptr{none}, unix.EPERM, LoosenUserNamespaces},
		{"io_uring_setup", unix.SYS_IO_URING_SETUP, []uintptr{1, uintptr(unsafe.Pointer(&ring[0]))}, unix.EPERM, LoosenIOUring},
		{"io_uring_enter", unix.SYS_IO_URING_ENTER, []uintptr{none}, unix.EPERM, LoosenIOUring},
		{"io_uring_register", unix.SYS_IO_URING_REGISTER, []uintptr{none}, unix.EPERM, LoosenIOUring},
		{"perf_event_open", unix.SYS_PERF_EVENT_OPEN, nil, unix.EPERM, LoosenPerf},
		{"bpf", unix.SYS_BPF, []uintptr{0, 0, 1 << 20}, unix.EPERM, LoosenBPF},
		{"userfaultfd", unix.SYS_USERFAULTFD, []uintptr{0xf0f0}, unix.EPERM, LoosenUserfaultfd},
		{"add_key", unix.SYS_ADD_KEY, nil, unix.EPERM, LoosenKeyring},
		{"request_key", unix.SYS_REQUEST_KEY, nil, unix.EPERM, LoosenKeyring},
		{"keyctl", unix.SYS_KEYCTL, []uintptr{0, none - 3}, unix.EPERM, LoosenKeyring},
		{"ioctl TIOCSTI", unix.SYS_IOCTL, []uintptr{0, unix.TIOCSTI}, unix.EPERM, ""},
		{"ioctl TIOCSTI, upper half set", unix.SYS_IOCTL, []uintptr{0, 1<<32 | unix.TIOCSTI}, unix.EPERM, ""},
		{"ioctl TIOCLINUX", unix.SYS_IOCTL, []uintptr{0, unix.TIOCLINUX}, unix.EPERM, ""},
	}
}

// neededCalls are close to refused ones and must work in the agent.
func neededCalls() []call {
	socket := func(name string, args ...uintptr) call { return call{name: name, nr: unix.SYS_SOCKET, args: args} }
	pair := new([2]int32)
	return []call{
		socket("unix", unix.AF_UNIX, unix.SOCK_STREAM),
		socket("unix datagram", unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC),
		socket("tcp", unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK, unix.IPPROTO_TCP),
		socket("udp", unix.AF_INET, unix.SOCK_DGRAM),
		socket("tcp6", unix.AF_INET6, unix.SOCK_STREAM),
		socket("udp6", unix.AF_INET6, unix.SOCK_DGRAM),
		socket("netlink route", unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_ROUTE),
		{name: "socketpair", nr: unix.SYS_SOCKETPAIR, args: []uintptr{unix.AF_UNIX, unix.SOCK_STREAM, 0, uintptr(unsafe.Pointer(pair))}},
		{name: "clone", nr: unix.SYS_CLONE, args: []uintptr{uintptr(unix.SIGCHLD)}},
		{name: "unshare files", nr: unix.SYS_UNSHARE, args: []uintptr{unix.CLONE_FILES}},
		{name: "personality", nr: unix.SYS_PERSONALITY, args: []uintptr{0xffffffff}},
	}
}

func (c call) do() unix.Errno {
	var a [6]uintptr
	copy(a[:], c.args)
	r, _, errno := unix.RawSyscall6(c.nr, a[0], a[1], a[2], a[3], a[4], a[5])
	if r == 0 && errno == 0 && c.nr == unix.SYS_CLONE {
		unix.RawSyscall(unix.SYS_EXIT_GROUP, 0, 0, 0) // the child
	}
	return errno
}

// callsProgram makes every call and prints what came of it.
func callsProgram([]string) int {
	got := map[string]unix.Errno{}
	for _, c := range append(agentCalls(), neededCalls()...) {
		got[c.name] = c.do()
	}
	_ = json.NewEncoder(os.Stdout).Encode(got)
	return 0
}

func parseCalls(t *testing.T, said string) map[string]unix.Errno {
	t.Helper()
	got := map[string]unix.Errno{}
	_, text, _ := strings.Cut(said, "{")
	text, _, _ = strings.Cut(text, "}")
	if err := json.Unmarshal([]byte("{"+text+"}"), &got); err != nil {
		t.Fatalf("%v in:\n%s", err, said)
	}
	return got
}

func callsAsAgent(t *testing.T, loosen ...string) map[string]unix.Errno {
	t.Helper()
	c := program("calls")
	c.Loosen = loosen
	code, said := run(t, gateConfig{Command: c}, true)
	if code != 0 {
		t.Fatalf("exit code %d, said:\n%s", code, said)
	}
	return parseCalls(t, said)
}

// Every call of the list is refused in the agent with its errno, and answered otherwise without the filter: to root, or to
// the agent's uid. Families that this kernel does not have prove nothing, and are told.
func TestRefusedCalls(t *testing.T) {
	netnstest.RequireRoot(t)
	var control [2]map[string]unix.Errno
	for i, cmd := range []*exec.Cmd{netnstest.Program("calls"), netnstest.As(netnstest.Program("calls"), agentID.UID, agentID.GID)} {
		out, err := cmd.Output()
		if err != nil {
			t.Fatal(err)
		}
		control[i] = parseCalls(t, string(out))
	}
	agent := callsAsAgent(t)
	proven := 0
	for _, c := range agentCalls() {
		if agent[c.name] != c.errno {
			t.Errorf("%s: agent got %v, want %v", c.name, agent[c.name], c.errno)
		}
		if control[0][c.name] == c.errno && control[1][c.name] == c.errno {
			t.Logf("%s: not in this kernel, or not for this container: %v anyhow", c.name, c.errno)
			continue
		}
		proven++
	}
	if proven < 20 {
		t.Errorf("only %d refusals are the filter's", proven)
	}
	for _, c := range neededCalls() {
		if agent[c.name] != 0 {
			t.Errorf("%s: %v, and must work", c.name, agent[c.name])
		}
	}
}

// A name loosens its own calls, and no others.
func TestLoosen(t *testing.T) {
	out, err := netnstest.As(netnstest.Program("calls"), agentID.UID, agentID.GID).Output()
	if err != nil {
		t.Fatal(err)
	}
	control := parseCalls(t, string(out))
	for _, name := range []string{LoosenUserNamespaces, LoosenIOUring, LoosenPerf, LoosenBPF, LoosenUserfaultfd, LoosenKeyring, LoosenSocketFamilies} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			agent := callsAsAgent(t, name)
			for _, c := range agentCalls() {
				want := c.errno
				if c.loosen == name {
					want = control[c.name]
				}
				if agent[c.name] != want {
					t.Errorf("%s: %v, want %v", c.name, agent[c.name], want)
				}
			}
		})
	}
}

// i386 calls are not there for an agent, nor in anything it starts.
func TestForeignCalls(t *testing.T) {
	python := tool(t, "python3")
	if auditArch != unix.AUDIT_ARCH_X86_64 {
		t.Skip("this machine has no foreign calls")
	}
	// mov eax, 20 (getpid); int 0x80; ret. And x32's getpid.
	const probe = `
import ctypes, mmap, os
m = mmap.mmap(-1, 4096, prot=mmap.PROT_READ|mmap.PROT_WRITE|mmap.PROT_EXEC)
m.write(bytes.fromhex("b814000000cd80c3"))
got = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(m)))()
print("i386", "works" if got == os.getpid() else got)
libc = ctypes.CDLL(None, use_errno=True)
got = libc.syscall(0x40000000 + 39)
print("x32", "works" if got == os.getpid() else ctypes.get_errno())
`
	control, err := exec.Command(python, "-c", probe).Output()
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(control), "i386 works") {
		t.Logf("this kernel has no i386 calls, so their refusal proves nothing: %s", control)
	}
	c := Command{Argv: []string{python, "-c", probe}, Env: agentEnv(), Identity: agentID}
	if _, said := run(t, gateConfig{Command: c}, true); !strings.Contains(said, "i386 -38") || !strings.Contains(said, "x32 38") {
		t.Errorf("want ENOSYS for both, said:\n%s", said)
	}
}

// tool finds a program that the agent can execute. Where CI is set it must be there.
func tool(t testing.TB, name string) string {
	t.Helper()
	dirs := append(filepath.SplitList(os.Getenv("PATH")), "/usr/local/go/bin", "/usr/bin")
	for _, dir := range dirs {
		path := filepath.Join(dir, name)
		if real, err := filepath.EvalSymlinks(path); err == nil && openToAll(real) && !strings.Contains(path, "/shims/") {
			return path
		}
	}
	cannot(t, name+" is not installed for all users")
	return ""
}

// cannot ends a test that cannot run here: where CI is set that is a failure.
func cannot(t testing.TB, why string) {
	t.Helper()
	if os.Getenv("CI") != "" {
		t.Fatal(why)
	}
	t.Skip(why)
}

// openToAll reports whether every user may execute a file: root's home has tools of its own.
func openToAll(path string) bool {
	for ; path != "/"; path = filepath.Dir(path) {
		if st, err := os.Stat(path); err != nil || st.Mode()&1 == 0 {
			return false
		}
	}
	return true
}

// No two rules of a filter are for one call: the second would never be asked.
func TestFilterUnambiguous(t *testing.T) {
	for name, loosen := range map[string][]string{"agent": nil, "agent, all loosened": LoosenNames()} {
		if _, err := bpf.Assemble(agentFilter(loosen)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	var seen []uint32
	for point, rules := range agentPoints() {
		if point != "" && !slices.Contains(LoosenNames(), point) {
			t.Errorf("point %q has no name", point)
		}
		for _, r := range rules {
			if slices.Contains(seen, r.nr) {
				t.Errorf("call %d has two rules", r.nr)
			}
			seen = append(seen, r.nr)
		}
	}
}

// What a filter says of numbers that no machine here makes: of other machines, of later kernels, of a cancelled call.
func TestFilterNumbers(t *testing.T) {
	const allowed, notThere, refused = unix.SECCOMP_RET_ALLOW, unix.SECCOMP_RET_ERRNO | int(unix.ENOSYS), unix.SECCOMP_RET_ERRNO | int(unix.EPERM)
	for _, tc := range []struct {
		name         string
		arch, nr     uint32
		agent, proxy int
	}{
		{"read", auditArch, unix.SYS_READ, allowed, allowed},
		{"acct", auditArch, unix.SYS_ACCT, allowed, refused},
		{"bpf", auditArch, unix.SYS_BPF, refused, refused},
		{"the newest known", auditArch, newestKnown, allowed, refused},
		{"of a later kernel", auditArch, newestKnown + 1, notThere, notThere},
		{"cancelled by a tracer", auditArch, ^uint32(0), allowed, allowed},
		{"x32", auditArch, 0x40000000 | unix.SYS_READ, notThere, notThere},
		{"i386", unix.AUDIT_ARCH_I386, unix.SYS_READ, notThere, notThere},
		{"arm", unix.AUDIT_ARCH_ARM, unix.SYS_READ, notThere, notThere},
	} {
		data := make([]byte, 64) // struct seccomp_data, in the byte order of the interpreter
		binary.BigEndian.PutUint32(data[offNumber:], tc.nr)
		binary.BigEndian.PutUint32(data[offArch:], tc.arch)
		for name, c := range map[string]struct {
			program []bpf.Instruction
			want    int
		}{"agent": {agentFilter(nil), tc.agent}, "proxy": {proxyFilter(1), tc.proxy}} {
			vm, err := bpf.NewVM(c.program)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := vm.Run(data); err != nil || got != c.want {
				t.Errorf("%s, %s: %#x, %v, want %#x", name, tc.name, got, err, c.want)
			}
		}
	}
}
