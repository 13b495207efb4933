package supervise

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Landlock is used by its three system calls: a library for it restricts all threads of the process, and the agent's
// rules are for the one thread that becomes the agent.

// landlockABI returns the version of Landlock the kernel offers this process, 0 for none (not built, not enabled, or
// refused by the container's own filter). Network rules came with 4 (Linux 6.7), scopes with 6 (6.12).
func landlockABI() int {
	v, _, errno := unix.RawSyscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	if errno != 0 {
		return 0
	}
	return int(v)
}

// landlockPort is struct landlock_net_port_attr, and landlockRulePort its rule type.
type landlockPort struct{ access, port uint64 }

const landlockRulePort = 2

// ruleset is a Landlock ruleset in the making. The kernel refuses what a ruleset handles and no rule of it allows.
type ruleset struct{ fd int }

func newRuleset(attr unix.LandlockRulesetAttr) (*ruleset, error) {
	// Fields that an older kernel does not know are zero; it accepts the longer struct then.
	fd, _, errno := unix.RawSyscall(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr), 0)
	if errno != 0 {
		return nil, fmt.Errorf("landlock: %w", errno)
	}
	return &ruleset{int(fd)}, nil
}

func (r *ruleset) close() { _ = unix.Close(r.fd) }

func (r *ruleset) allowPort(access uint64, port uint16) error {
	attr := landlockPort{access, uint64(port)}
	_, _, errno := unix.RawSyscall6(unix.SYS_LANDLOCK_ADD_RULE, uintptr(r.fd), landlockRulePort, uintptr(unsafe.Pointer(&attr)), 0, 0, 0)
	if errno != 0 {
		return fmt.Errorf("landlock: port %d: %w", port, errno)
	}
	return nil
}

// allowBeneath allows access to a file or all that is below a directory. A path that is not there needs no rule.
func (r *ruleset) allowBeneath(access uint64, path string) error {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err == nil && st.Mode&unix.S_IFMT != unix.S_IFDIR {
		access &= unix.LANDLOCK_ACCESS_FS_READ_FILE // others make no sense of a file: EINVAL
	}
	attr := unix.LandlockPathBeneathAttr{Allowed_access: access, Parent_fd: int32(fd)}
	_, _, errno := unix.RawSyscall6(unix.SYS_LANDLOCK_ADD_RULE, uintptr(r.fd), unix.LANDLOCK_RULE_PATH_BENEATH, uintptr(unsafe.Pointer(&attr)), 0, 0, 0)
	if errno != 0 {
		return fmt.Errorf("landlock: %s: %w", path, errno)
	}
	return nil
}

// enforce restricts the threads of the scope, for good. They have no_new_privs.
func (r *ruleset) enforce(s scope) error {
	if err := s.call(unix.SYS_LANDLOCK_RESTRICT_SELF, uintptr(r.fd), 0, 0, 0); err != nil {
		return fmt.Errorf("landlock: %w", err)
	}
	return nil
}

// restrictAgent limits TCP connects to the command's ports, and abstract unix sockets to those of the agent's own session:
// they belong to the network namespace, so in a pod they lead into other containers. Signals are not scoped: a second
// session of the same agent may end what the first one started.
func restrictAgent(c Command) error {
	if slices.Contains(c.Loosen, LoosenLandlock) {
		return nil
	}
	abi := landlockABI()
	var attr unix.LandlockRulesetAttr
	if abi >= 4 && c.ConnectPorts != nil {
		attr.Handled_access_net = unix.LANDLOCK_ACCESS_NET_CONNECT_TCP
	}
	if abi >= 6 && !slices.Contains(c.Loosen, LoosenAbstractSockets) {
		attr.Scoped = unix.LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET
	}
	if attr == (unix.LandlockRulesetAttr{}) {
		return nil
	}
	r, err := newRuleset(attr)
	if err != nil {
		return err
	}
	defer r.close()
	if attr.Handled_access_net != 0 {
		for _, port := range c.ConnectPorts {
			if err := r.allowPort(unix.LANDLOCK_ACCESS_NET_CONNECT_TCP, port); err != nil {
				return err
			}
		}
	}
	return r.enforce(oneThread)
}

const landlockRead = unix.LANDLOCK_ACCESS_FS_READ_FILE | unix.LANDLOCK_ACCESS_FS_READ_DIR

// fileAccess is every access to files that a kernel of the given ABI can refuse, but for ioctl on devices, which
// seccomp refuses.
func fileAccess(abi int) uint64 {
	access := uint64(unix.LANDLOCK_ACCESS_FS_MAKE_SYM<<1 - 1) // version 1: the first 13 bits
	if abi >= 2 {
		access |= unix.LANDLOCK_ACCESS_FS_REFER
	}
	if abi >= 3 {
		access |= unix.LANDLOCK_ACCESS_FS_TRUNCATE
	}
	return access
}

// proxyReads is what a Go program reads while it proxies: certificates where the distributions keep them, and the
// kernel's settings. Devices, home directories, secrets and sockets' directories are elsewhere.
func proxyReads() []string {
	paths := []string{"/etc", "/usr", "/opt", "/nix/store", "/system/etc/security", "/var/lib/ca-certificates",
		"/proc/self", "/proc/sys", "/sys/kernel/mm", "/sys/fs/cgroup"}
	if file := os.Getenv("SSL_CERT_FILE"); file != "" {
		paths = append(paths, file)
	}
	if dirs := os.Getenv("SSL_CERT_DIR"); dirs != "" {
		paths = append(paths, strings.Split(dirs, ":")...)
	}
	return paths
}

// restrictProxy leaves the process files to read and none to write, make, remove or execute; on a kernel without Landlock it
// does nothing.
func restrictProxy() error {
	abi := landlockABI()
	if abi == 0 {
		return nil
	}
	r, err := newRuleset(unix.LandlockRulesetAttr{Handled_access_fs: fileAccess(abi)})
	if err != nil {
		return err
	}
	defer r.close()
	for _, path := range proxyReads() {
		if !filepath.IsAbs(path) {
			err = errors.Join(err, fmt.Errorf("landlock: %q is not an absolute path", path))
			continue
		}
		err = errors.Join(err, r.allowBeneath(landlockRead, path))
	}
	if err != nil {
		return err
	}
	return r.enforce(allThreads)
}
