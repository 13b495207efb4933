package supervise

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// checkStreams refuses standard streams that are a way out. Whoever holds a socket of the network, as inetd and systemd
// (StandardInput=socket) hand it on, can connect it anew: from the network namespace in which it was made, and to the fence's rules as the uid
// that made it. So with a unix datagram socket and abstract names. A directory opens what lies beside and above it where it was opened.
// Unix stream sockets cannot be connected anew; many programs give them in place of pipes.
func checkStreams() error {
	for fd, name := range []string{"input", "output", "error"} {
		var st unix.Stat_t
		if unix.Fstat(fd, &st) != nil {
			continue
		}
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFDIR:
			return fmt.Errorf("standard %s is a directory, from which an agent could go on to others; give it a file or a pipe", name)
		case unix.S_IFSOCK:
			domain, derr := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
			kind, kerr := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
			if derr != nil || kerr != nil || domain != unix.AF_UNIX || kind == unix.SOCK_DGRAM {
				return fmt.Errorf("standard %s is a socket that an agent could connect to another place; put a pipe between", name)
			}
		}
	}
	return nil
}

// ShareStreams lets uid open /dev/stdin, /dev/stdout and /dev/stderr, which are links to what descriptors 0 to 2 are.
// A container engine makes these for root. What was not made for this process alone stays as it is: files, named pipes,
// and a terminal that others will go on using. Best effort: what fails costs the reopening, and nothing else. Become does it
// too; a first process does it before KeepOnly, since a terminal takes CAP_CHOWN.
func ShareStreams(uid uint32) {
	for fd := range 3 {
		var st unix.Stat_t
		if unix.Fstat(fd, &st) != nil || st.Uid == uid || int(st.Uid) != unix.Geteuid() {
			continue
		}
		switch {
		case isAnonymousPipe(fd):
			if unix.Fchown(fd, int(uid), -1) != nil {
				// Without CAP_CHOWN. Nobody finds a pipe without a name but by the descriptor of a process he controls.
				_ = unix.Fchmod(fd, 0o666)
			}
		case isTerminal(fd) && forUs():
			_ = unix.Fchown(fd, int(uid), -1)
		}
	}
}

func isAnonymousPipe(fd int) bool {
	var fs unix.Statfs_t
	return unix.Fstatfs(fd, &fs) == nil && fs.Type == unix.PIPEFS_MAGIC
}

func isTerminal(fd int) bool {
	_, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	return err == nil
}

// forUs reports whether an engine started this process, and made its terminal for it: as a container's first process or
// one of its children, or by `docker exec`, whose processes have a parent that cannot be seen from inside.
func forUs() bool { return unix.Getppid() <= 1 }
