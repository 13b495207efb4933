package enclosure

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"
)

// noResolver is the agent's /etc/resolv.conf.
const noResolver = "# Names are looked up by exitgate's proxy, after the policy. There is no name server here.\n"

// shown is something of the host, held by a descriptor from before its path was gone.
type shown struct {
	path     string
	file     *os.File
	readOnly bool
	device   bool
}

// Build makes the file system of the calling process, which has namespaces of its own and is their first. With a
// terminal it makes a pty that is the controlling one, puts it in place of those standard streams that are terminals, and
// returns its master. The process is of no use after an error.
func (p *Plan) Build(terminal bool) (master *os.File, err error) {
	all, err := p.hold()
	defer func() {
		for _, s := range all {
			s.file.Close()
		}
	}()
	if err != nil {
		return nil, err
	}
	links := systemLinks()
	for _, step := range []func() error{
		newRoot, func() error { return link(links) }, freshKernel, p.freshDirs, func() error { return show(all) },
		// The old root lies on top of the new one, from where it can be taken off.
		func() error { return explain("leave the host's file system", unix.Unmount(".", unix.MNT_DETACH)) },
		func() error { return os.Chdir("/") },
		p.coverSockets, hideResolver,
		func() error { return restrict("/", 0, unix.MOUNT_ATTR_RDONLY) },
	} {
		if err := step(); err != nil {
			return nil, err
		}
	}
	if !terminal {
		return nil, nil
	}
	return takeTerminal()
}

// devices are those without which programs do not run.
var devices = []string{"null", "zero", "full", "random", "urandom", "tty"}

// hold opens all that will be shown.
func (p *Plan) hold() (all []shown, err error) {
	add := func(s shown) error {
		// No symbolic link anywhere: between the plan and now the way may have been changed.
		fd, err := unix.Openat2(unix.AT_FDCWD, s.path, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_SYMLINKS})
		if err != nil {
			return &fs.PathError{Op: "show", Path: s.path, Err: err}
		}
		s.file = os.NewFile(uintptr(fd), s.path)
		all = append(all, s)
		return nil
	}
	for _, path := range system {
		if st, err := os.Lstat(path); err != nil || !st.IsDir() {
			continue // a link is made anew, of those that systemLinks found
		}
		if err := add(shown{path: path, readOnly: true}); err != nil {
			return all, err
		}
	}
	for _, name := range devices {
		if err := add(shown{path: "/dev/" + name, device: true}); err != nil {
			return all, err
		}
	}
	for _, b := range p.Binds {
		if err := add(shown{path: b.Path, readOnly: b.ReadOnly}); err != nil {
			return all, err
		}
	}
	for _, path := range p.Sockets {
		if err := add(shown{path: path}); err != nil {
			return all, err
		}
	}
	return all, nil
}

// systemLinks are the links among the system's directories, such as /bin to usr/bin.
func systemLinks() map[string]string {
	links := make(map[string]string)
	for _, path := range system {
		if to, err := os.Readlink(path); err == nil {
			links[path] = to
		}
	}
	return links
}

// newRoot makes an empty tmpfs the root directory. /proc serves as its mount point because every host has it.
func newRoot() error {
	const point = "/proc"
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("part from the host's mounts: %w; it needs CAP_SYS_ADMIN", err)
	}
	if err := unix.Mount("exitgate", point, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755"); err != nil {
		return fmt.Errorf("mount a root directory: %w", err)
	}
	if err := os.Chdir(point); err != nil {
		return err
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("change the root directory: %w", err)
	}
	return nil
}

func link(links map[string]string) error {
	for path, to := range links {
		if err := os.Symlink(to, path); err != nil {
			return err
		}
	}
	return nil
}

// freshKernel mounts what the kernel makes up for these namespaces.
func freshKernel() error {
	const plain = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	if err := mount("proc", "/proc", "proc", plain, ""); err != nil {
		return err
	}
	// A container's seccomp filter or a masked /sys may refuse it; few programs look there.
	_ = mount("sysfs", "/sys", "sysfs", plain|unix.MS_RDONLY, "")
	if err := mount("tmpfs", "/dev", "tmpfs", unix.MS_NOSUID|unix.MS_NOEXEC, "mode=755"); err != nil {
		return err
	}
	if err := mount("devpts", "/dev/pts", "devpts", unix.MS_NOSUID|unix.MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620"); err != nil {
		return err
	}
	return link(map[string]string{"/dev/fd": "/proc/self/fd", "/dev/stdin": "/proc/self/fd/0", "/dev/stdout": "/proc/self/fd/1",
		"/dev/stderr": "/proc/self/fd/2", "/dev/ptmx": "pts/ptmx"})
}

// freshDirs are empty at the start and gone at the end.
func (p *Plan) freshDirs() error {
	for _, t := range []struct{ path, options string }{
		{"/dev/shm", "mode=1777"}, {"/tmp", "mode=1777"}, {"/run", "mode=755"}, {"/var", "mode=755"}, {"/var/tmp", "mode=1777"},
	} {
		if err := mount("tmpfs", t.path, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, t.options); err != nil {
			return err
		}
	}
	for _, dir := range []string{"/run/lock", "/var/cache", "/var/lib", "/var/log", "/var/spool"} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
	}
	if err := link(map[string]string{"/var/run": "/run", "/var/lock": "/run/lock"}); err != nil {
		return err
	}
	if p.Home == "" || slices.ContainsFunc(system, func(s string) bool { return below(p.Home, s) }) {
		return nil
	}
	return mount("tmpfs", p.Home, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, fmt.Sprintf("mode=700,uid=%d,gid=%d", p.UID, p.GID))
}

func mount(source, target, kind string, flags uintptr, options string) error {
	if err := os.MkdirAll(target, 0o755); err != nil {
		return err
	}
	return explain("mount "+target, unix.Mount(source, target, kind, flags, options))
}

func explain(what string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", what, err)
}

// show binds what is held to its path.
func show(all []shown) error {
	for _, s := range all {
		if err := s.bind(); err != nil {
			return fmt.Errorf("show %s: %w", s.path, err)
		}
	}
	return nil
}

func (s shown) bind() error {
	if err := s.makeTarget(); err != nil {
		return err
	}
	if err := unix.Mount("/proc/self/fd/"+strconv.Itoa(int(s.file.Fd())), s.path, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return err
	}
	attributes := uint64(unix.MOUNT_ATTR_NOSUID)
	if !s.device {
		attributes |= unix.MOUNT_ATTR_NODEV
	}
	if s.readOnly {
		attributes |= unix.MOUNT_ATTR_RDONLY
	}
	return restrict(s.path, unix.AT_RECURSIVE, attributes)
}

// makeTarget makes the mount point, where what is mounted already has none.
func (s shown) makeTarget() error {
	var st unix.Stat_t
	if err := unix.Fstat(int(s.file.Fd()), &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return os.MkdirAll(s.path, 0o755)
	}
	if _, err := os.Lstat(s.path); err == nil {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(s.path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(s.path, nil, 0o644)
}

// restrict adds attributes to the mount at path, or with AT_RECURSIVE to all below it too.
func restrict(path string, flags uint, attributes uint64) error {
	err := unix.MountSetattr(unix.AT_FDCWD, path, flags, &unix.MountAttr{Attr_set: attributes})
	if errors.Is(err, unix.ENOSYS) {
		return errors.New("this kernel cannot make a tree of mounts read-only at once; isolate needs Linux 5.12")
	}
	return err
}

// coverSockets puts /dev/null on sockets. One that is gone needs none.
func (p *Plan) coverSockets() error {
	for _, path := range p.Covered {
		st, err := os.Lstat(path)
		if err != nil || st.Mode()&fs.ModeSocket == 0 {
			continue
		}
		if err := unix.Mount("/dev/null", path, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("cover the socket %s: %w", path, err)
		}
	}
	return nil
}

// hideResolver gives the agent a resolv.conf of its own: in the place of the host's, or where that is a link to, mostly in /run.
func hideResolver() error {
	const name = "/etc/resolv.conf"
	to, err := os.Readlink(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil { // no link: a file
		to = "/run/resolv.conf"
	} else if !filepath.IsAbs(to) {
		to = filepath.Join("/etc", to)
	}
	if merr := os.MkdirAll(filepath.Dir(to), 0o755); merr != nil {
		return nil // read-only: the link leads nowhere
	}
	if werr := os.WriteFile(to, []byte(noResolver), 0o644); werr != nil || err == nil {
		return nil
	}
	return explain("hide "+name, unix.Mount(to, name, "", unix.MS_BIND, ""))
}
