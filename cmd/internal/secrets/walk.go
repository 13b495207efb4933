package secrets

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// maxLinks is the kernel's own limit of symbolic links in one path (path_resolution(7)).
const maxLinks = 40

// node is a file system object that a walk met. The directories it was reached by are its parents, so that what an
// agent could do to a path can be judged afterwards from what was really there.
type node struct {
	path string // for messages: without symbolic links, as seen below the root of the walk
	dir  *node  // nil for the root
	meta meta
}

// meta is what decides who may use a node.
type meta struct {
	stat unix.Stat_t
	acl  []byte // the extended attribute system.posix_acl_access, nil for none
	ro   bool   // on a mount, or a file system, that is read-only
}

func (m *meta) kind() uint32 { return m.stat.Mode & unix.S_IFMT }
func (m *meta) sticky() bool { return m.stat.Mode&unix.S_ISVTX != 0 }

func (m *meta) changed() time.Time { return time.Unix(m.stat.Ctim.Unix()) }

// trail is the outcome of a walk: every lookup that led to the last node. It holds the last node's directory open, so
// that the file can be opened without another walk.
type trail struct {
	lookups []*node // what each lookup found: directories, symbolic links, at the end the target
	parent  int     // descriptor of the target's directory (O_PATH)
	name    string  // the target's name in it
}

func (t *trail) target() *node { return t.lookups[len(t.lookups)-1] }
func (t *trail) close()        { unix.Close(t.parent) }

// walker resolves one path. It keeps every directory between the root and where it stands open: `..` goes back to the
// directory it came from, never to one that was moved there meanwhile.
type walker struct {
	stack []place
	links int
	trail trail
}

type place struct {
	fd   int
	node *node
}

// walk resolves name below root as the kernel would, and remembers what it met. Nothing is opened for reading: a FIFO
// on the way does not hang, a device is not touched.
func walk(root, name string) (*trail, error) {
	if root == "" {
		root = "/"
	}
	fd, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: root, Err: err}
	}
	top := &node{path: "/"}
	w := &walker{stack: []place{{fd, top}}}
	defer w.leave(0)
	if top.meta, err = inspect(fd); err != nil {
		return nil, err
	}
	if err := w.follow(strings.Split(name, "/")); err != nil {
		return nil, err
	}
	if len(w.trail.lookups) == 0 {
		return nil, &fs.PathError{Op: "open", Path: name, Err: unix.EISDIR}
	}
	return w.finish()
}

func (w *walker) here() place { return w.stack[len(w.stack)-1] }

// leave closes every directory from depth on.
func (w *walker) leave(depth int) {
	for _, p := range w.stack[depth:] {
		unix.Close(p.fd)
	}
	w.stack = w.stack[:depth]
}

func (w *walker) follow(parts []string) error {
	for i, part := range parts {
		switch part {
		case "", ".":
			continue
		case "..":
			if len(w.stack) > 1 {
				w.leave(len(w.stack) - 1)
			}
			continue
		}
		if err := w.enter(part, i == len(parts)-1); err != nil {
			return err
		}
	}
	return nil
}

// enter looks one name up where the walker stands, and goes into it when it is a directory or a symbolic link.
func (w *walker) enter(name string, last bool) error {
	at := w.here()
	full := path.Join(at.node.path, name)
	fd, err := unix.Openat(at.fd, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return &fs.PathError{Op: "open", Path: full, Err: err}
	}
	found := &node{path: full, dir: at.node}
	if found.meta, err = inspect(fd); err != nil {
		unix.Close(fd)
		return &fs.PathError{Op: "stat", Path: full, Err: err}
	}
	w.trail.lookups = append(w.trail.lookups, found)
	switch found.meta.kind() {
	case unix.S_IFDIR:
		w.stack = append(w.stack, place{fd, found})
		return nil
	case unix.S_IFLNK:
		defer unix.Close(fd)
		return w.link(fd, full)
	}
	unix.Close(fd)
	if !last {
		return &fs.PathError{Op: "open", Path: full, Err: unix.ENOTDIR}
	}
	w.trail.name = name
	return nil
}

func (w *walker) link(fd int, full string) error {
	if w.links++; w.links > maxLinks {
		return &fs.PathError{Op: "open", Path: full, Err: unix.ELOOP}
	}
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(fd, "", buf)
	if err != nil {
		return &fs.PathError{Op: "readlink", Path: full, Err: err}
	}
	target := string(buf[:n])
	if strings.HasPrefix(target, "/") {
		w.leave(1)
	}
	return w.follow(strings.Split(target, "/"))
}

// finish hands the directory of the target over to the trail.
func (w *walker) finish() (*trail, error) {
	t := &w.trail
	if t.target().meta.kind() == unix.S_IFDIR {
		return nil, &fs.PathError{Op: "open", Path: t.target().path, Err: unix.EISDIR}
	}
	fd, err := unix.FcntlInt(uintptr(w.here().fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("keep %s open: %w", t.target().path, err)
	}
	t.parent = fd
	return t, nil
}

// open opens the target for reading. It must be a regular file, and the very one that the walk met.
func (t *trail) open() (*os.File, error) {
	want := t.target()
	if want.meta.kind() != unix.S_IFREG {
		return nil, errNotRegular
	}
	fd, err := unix.Openat(t.parent, t.name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: want.path, Err: err}
	}
	f := os.NewFile(uintptr(fd), want.path)
	var got unix.Stat_t
	if err := unix.Fstat(fd, &got); err != nil {
		f.Close()
		return nil, &fs.PathError{Op: "stat", Path: want.path, Err: err}
	}
	if got.Dev != want.meta.stat.Dev || got.Ino != want.meta.stat.Ino {
		f.Close()
		return nil, errMoved
	}
	return f, nil
}

var (
	errNotRegular = errors.New("not a regular file")
	errMoved      = errors.New("replaced while it was being opened")
)

// inspect reads what decides who may use the object behind an O_PATH descriptor. fgetxattr(2) refuses such
// descriptors, so the attribute is read through /proc.
func inspect(fd int) (meta, error) {
	var m meta
	if err := unix.Fstat(fd, &m.stat); err != nil {
		return m, err
	}
	if m.kind() == unix.S_IFLNK {
		return m, nil // a link has no access list, and its mode means nothing
	}
	var fs unix.Statfs_t
	m.ro = unix.Fstatfs(fd, &fs) == nil && fs.Flags&unix.ST_RDONLY != 0
	buf := make([]byte, 4096)
	n, err := unix.Getxattr(fmt.Sprintf("/proc/self/fd/%d", fd), "system.posix_acl_access", buf)
	switch {
	case err == nil:
		m.acl = buf[:n]
	case !errors.Is(err, unix.ENODATA) && !errors.Is(err, unix.EOPNOTSUPP):
		return m, fmt.Errorf("read its access list: %w", err)
	}
	return m, nil
}

// print is the same as long as nothing that a reader could notice has changed, on the whole way to the target.
func (t *trail) print() string {
	var b strings.Builder
	for _, n := range t.lookups {
		s := &n.meta.stat
		fmt.Fprintf(&b, "%d:%d:%o:%d:%d:%x;", s.Dev, s.Ino, s.Mode, s.Uid, s.Gid, n.meta.acl)
	}
	s := &t.target().meta.stat
	fmt.Fprintf(&b, "%d:%d.%d:%d.%d", s.Size, s.Mtim.Sec, s.Mtim.Nsec, s.Ctim.Sec, s.Ctim.Nsec)
	return b.String()
}
