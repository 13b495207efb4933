// Package enclosure makes the file system, the pid namespace and the terminal of an agent on a plain host.
//
//	plan, err := enclosure.Draw(enclosure.Wish{Dir: dir, Home: home, UID: uid, GID: gid})    // outside; what will be seen
//	inner, err := supervisor.Start(supervise.Process{..., Namespaces: enclosure.Namespaces}) // fresh namespaces
//	master, err := plan.Build(terminal)        // inside, as their first process, before the agent
//	relay, err := enclosure.NewRelay(master)   // outside: the user's terminal and the agent's are one
//	relay.Start()
//
// The agent sees the system's programs and settings read-only, its working directory and what was named as they are, and
// everything else empty and fresh: its home, /tmp, /run, /var, /dev/shm, /proc. A read-only mount does not stop a connect to a
// unix socket in it, so what may hold one is not there at all, and the sockets that somebody has bound below what is
// there are covered.
//
// Not done here: no policy and no firewall; the network namespace is the caller's. A socket that somebody outside makes in the working
// directory later can be reached.
package enclosure

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// Namespaces are those that the first process of an enclosure gets by clone. The network's is another matter.
const Namespaces = unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS | unix.CLONE_NEWCGROUP

// system is what everybody sees, read-only; those that a machine does not have are left out. /nix and /gnu hold the
// programs of NixOS and Guix.
var system = []string{"/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/etc", "/opt", "/nix", "/gnu"}

// hidden is replaced by something fresh. A directory that would show one of these again is not taken for the working directory.
var hidden = []string{"/dev", "/proc", "/sys", "/run", "/tmp", "/var", "/home", "/root"}

// Bind is a file or directory of the host that the agent sees under the same path.
type Bind struct {
	Path     string
	ReadOnly bool
}

// ParseBind reads PATH or PATH:ro.
func ParseBind(s string) (Bind, error) {
	path, readOnly := strings.CutSuffix(s, ":ro")
	b := Bind{filepath.Clean(path), readOnly}
	if !filepath.IsAbs(path) {
		return b, fmt.Errorf("--bind %q is not a whole path; write /PATH, or /PATH:ro", s)
	}
	return b, b.check()
}

// check refuses a symbolic link on the way: a former agent may have put it there.
func (b Bind) check() error {
	real, err := filepath.EvalSymlinks(b.Path)
	switch {
	case err != nil:
		return fmt.Errorf("%s cannot be shown to the agent: %w", b.Path, err)
	case real != b.Path:
		return fmt.Errorf("%s leads to %s by a symbolic link; name that", b.Path, real)
	case real == "/":
		return errors.New("all of / cannot be shown to the agent; name directories")
	}
	return nil
}

// Wish is what is asked for.
type Wish struct {
	Dir      string // the working directory
	Home     string // the agent's home
	UID, GID uint32 // the agent's
	Binds    []Bind
	Sockets  []string // the agent's own, of the policy
}

// Plan is what an enclosure will be made of. It crosses to the inner process as JSON.
type Plan struct {
	Home     string // "": none
	UID, GID uint32
	Binds    []Bind   // the working directory among them; parents first
	Sockets  []string // shown
	Covered  []string // sockets of others that nobody shall reach
}

// Draw makes a plan, or says why not. It looks at the file system and at the kernel's list of unix sockets.
func Draw(w Wish) (*Plan, error) {
	dir := Bind{Path: w.Dir}
	if err := dir.check(); err != nil {
		return nil, err
	}
	p := &Plan{Home: w.Home, UID: w.UID, GID: w.GID, Sockets: w.Sockets}
	if !filepath.IsAbs(p.Home) || p.Home == "/" {
		p.Home = ""
	}
	for _, h := range append(hidden, p.Home) {
		if h != "" && below(h, dir.Path) && !slices.Contains(w.Binds, dir) {
			return nil, fmt.Errorf("the working directory %s holds %s, which the agent shall not see; go to a directory of its own, or insist with --bind %s", dir.Path, h, dir.Path)
		}
	}
	for _, kernels := range []string{"/proc", "/sys"} {
		if below(dir.Path, kernels) { // /proc/PID/root and cwd are doors to all that there is
			return nil, fmt.Errorf("the working directory %s is the kernel's, of this host; go to a directory of files", dir.Path)
		}
	}
	p.Binds = append(slices.Clone(w.Binds), dir) // last among equals: the working directory can be written
	slices.SortStableFunc(p.Binds, func(a, b Bind) int { return len(a.Path) - len(b.Path) })
	for _, path := range append([]string{p.Home}, p.paths()...) {
		if !utf8.ValidString(path) { // JSON would change it on the way to the inner process
			return nil, fmt.Errorf("%q cannot be shown to the agent: its name is not UTF-8; rename it", path)
		}
	}
	table, err := os.ReadFile("/proc/thread-self/net/unix")
	if err != nil {
		return nil, fmt.Errorf("unix sockets: %w", err)
	}
	p.Covered, err = p.cover(string(table))
	return p, err
}

// paths are those of the binds.
func (p *Plan) paths() (paths []string) {
	for _, b := range p.Binds {
		paths = append(paths, b.Path)
	}
	return paths
}

// cover lists the sockets that are bound below what is shown, less those that were named.
//
// The kernel tells a socket's name as whoever bound it spelled it: relative to a directory that nobody knows any more, by way of a
// link, with a slash too many; and tells those of this network namespace only, where a container's may be in a directory that it
// shares. So what the agent works in is searched. The system's directories are too large for that (seconds), and hold no sockets
// but by full names: there the kernel's table serves, like /proc/net/unix.
func (p *Plan) cover(table string) (paths []string, err error) {
	add := func(path string) {
		if !slices.Contains(paths, path) && !slices.Contains(p.Sockets, path) && !slices.Contains(p.Binds, Bind{Path: path}) {
			paths = append(paths, path)
		}
	}
	for line := range strings.Lines(table) {
		_, path, ok := strings.Cut(strings.TrimSuffix(line, "\n"), " /")
		path = filepath.Clean("/" + path)
		if ok && slices.ContainsFunc(system, func(s string) bool { return below(path, s) }) {
			add(path)
		}
	}
	for _, b := range p.Binds {
		_ = filepath.WalkDir(b.Path, func(path string, d fs.DirEntry, problem error) error {
			switch {
			case problem != nil || d.Type()&fs.ModeSocket == 0 || !bound(path):
				return nil // what cannot be read, or is gone: the rest of it is searched
			case !utf8.ValidString(path):
				err = fmt.Errorf("the socket %q cannot be covered: its name is not UTF-8; remove it, or rename it", path)
			}
			add(path)
			return nil
		})
	}
	return paths, err
}

// bound reports whether somebody has the socket at path open, and it is not the remains of one. A datagram socket asks: to be
// connected sends nothing, and one of another kind is refused as that.
func bound(path string) bool {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return !errors.Is(err, fs.ErrNotExist)
	}
	defer unix.Close(fd)
	asker, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return true
	}
	defer unix.Close(asker)
	err = unix.Connect(asker, &unix.SockaddrUnix{Name: "/proc/self/fd/" + strconv.Itoa(fd)}) // path may be too long for a name
	return !errors.Is(err, unix.ECONNREFUSED)
}

// below reports whether path is dir or in it.
func below(path, dir string) bool {
	return path == dir || strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/")
}
