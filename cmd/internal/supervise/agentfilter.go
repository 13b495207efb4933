package supervise

import (
	"fmt"
	"slices"
	"strings"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// Names of hardening points that Command.Loosen may leave out, each for the agent alone and each at its own risk.
const (
	LoosenUserNamespaces  = "user-namespaces"  // nested sandboxes (bubblewrap, Chromium's): the kernel's largest attack surface
	LoosenIOUring         = "io-uring"         // io_uring
	LoosenPerf            = "perf"             // perf_event_open: perf, rr
	LoosenBPF             = "bpf"              // bpf
	LoosenUserfaultfd     = "userfaultfd"      // userfaultfd
	LoosenKeyring         = "keyring"          // add_key, request_key, keyctl
	LoosenSocketFamilies  = "socket-families"  // any socket the kernel has; AF_VSOCK is a way out that no firewall sees
	LoosenLandlock        = "landlock"         // all of Landlock: TCP connect by port, abstract sockets, and tracing across sessions
	LoosenAbstractSockets = "abstract-sockets" // connecting to abstract unix sockets made outside the agent's session
	LoosenCoreDumps       = "core-dumps"       // RLIMIT_CORE as it was
)

// LoosenNames returns every name Command.Loosen knows. Capabilities, no_new_privs, supplementary groups, descriptors,
// terminal injection (TIOCSTI, TIOCLINUX) and foreign system calls are not among them: they are never loosened.
func LoosenNames() []string {
	return []string{LoosenUserNamespaces, LoosenIOUring, LoosenPerf, LoosenBPF, LoosenUserfaultfd, LoosenKeyring,
		LoosenSocketFamilies, LoosenLandlock, LoosenAbstractSockets, LoosenCoreDumps}
}

func checkLoosen(names []string) error {
	known := LoosenNames()
	for _, name := range names {
		if !slices.Contains(known, name) {
			return fmt.Errorf("unknown hardening point %q; the names are %s", name, strings.Join(known, ", "))
		}
	}
	return nil
}

// agentPoints are the parts of the agent's filter, by the name that loosens each; "" is never loosened.
// Debuggers, test runners and build tools need all that is not here.
func agentPoints() map[string][]rule {
	return map[string][]rule{
		"": {
			// The loader of keystrokes into another program's terminal, and the console's paste.
			{unix.SYS_IOCTL, join([]bpf.Instruction{argLow(1)},
				when(unix.TIOCSTI, refuse(unix.EPERM)), when(unix.TIOCLINUX, refuse(unix.EPERM)), []bpf.Instruction{allow})},
		},
		LoosenUserNamespaces: append([]rule{
			{unix.SYS_UNSHARE, noNewUser()},
			{unix.SYS_CLONE, noNewUser()},
			// Its flags are in memory, out of a filter's sight. ENOSYS makes libc use clone.
			{unix.SYS_CLONE3, []bpf.Instruction{refuse(unix.ENOSYS)}},
		}, always(refuse(unix.EPERM), unix.SYS_SETNS)...),
		LoosenIOUring:        always(refuse(unix.EPERM), unix.SYS_IO_URING_SETUP, unix.SYS_IO_URING_ENTER, unix.SYS_IO_URING_REGISTER),
		LoosenPerf:           always(refuse(unix.EPERM), unix.SYS_PERF_EVENT_OPEN),
		LoosenBPF:            always(refuse(unix.EPERM), unix.SYS_BPF),
		LoosenUserfaultfd:    always(refuse(unix.EPERM), unix.SYS_USERFAULTFD),
		LoosenKeyring:        always(refuse(unix.EPERM), unix.SYS_ADD_KEY, unix.SYS_REQUEST_KEY, unix.SYS_KEYCTL),
		LoosenSocketFamilies: {{unix.SYS_SOCKET, agentSockets()}, {unix.SYS_SOCKETPAIR, unixOnly()}},
	}
}

func noNewUser() []bpf.Instruction {
	return join([]bpf.Instruction{argLow(0)}, whenAny(unix.CLONE_NEWUSER, refuse(unix.EPERM)), []bpf.Instruction{allow})
}

func unixOnly() []bpf.Instruction {
	return join([]bpf.Instruction{argLow(0)}, when(unix.AF_UNIX, allow), []bpf.Instruction{refuse(unix.EAFNOSUPPORT)})
}

// agentSockets allows local and IP sockets, and the netlink that getaddrinfo lists interfaces with.
func agentSockets() []bpf.Instruction {
	netlink := join([]bpf.Instruction{argLow(2)}, when(unix.NETLINK_ROUTE, allow), []bpf.Instruction{refuse(unix.EAFNOSUPPORT)})
	// Landlock does not see connects of MPTCP and SMC sockets. Programs take the refusal as a kernel without them, and use TCP.
	ip := join([]bpf.Instruction{argLow(2)},
		when(unix.IPPROTO_MPTCP, refuse(unix.EPROTONOSUPPORT)), when(ipprotoSMC, refuse(unix.EPROTONOSUPPORT)),
		[]bpf.Instruction{allow})
	return join([]bpf.Instruction{argLow(0)},
		when(unix.AF_UNIX, allow),
		[]bpf.Instruction{bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.AF_NETLINK, SkipTrue: uint8(len(netlink))}}, netlink,
		[]bpf.Instruction{
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.AF_INET, SkipTrue: 2},
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.AF_INET6, SkipTrue: 1},
			refuse(unix.EAFNOSUPPORT),
		}, ip)
}

// ipprotoSMC is IPPROTO_SMC of linux/smc.h, since Linux 6.11.
const ipprotoSMC = 256

// agentFilter is the agent's system call filter without the points of loosen. It answers with errors and never kills: a
// program that probes for a feature takes its other road.
func agentFilter(loosen []string) []bpf.Instruction {
	points := agentPoints()
	var rules []rule
	for _, name := range append([]string{""}, LoosenNames()...) {
		if !slices.Contains(loosen, name) {
			rules = append(rules, points[name]...)
		}
	}
	return filter(rules, allow)
}
