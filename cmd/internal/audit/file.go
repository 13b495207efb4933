package audit

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// file is a log file that only root can read, replaced by a new one when it is full. No library for it here: those to
// be had follow a symbolic link, and leave half a line behind when a disk is full. It belongs to one goroutine.
type file struct {
	dir      int // descriptor of its directory: a rename of that directory does not lead us elsewhere
	path     string
	name     string
	step     int64 // bytes in a file before it is rotated
	max      int64 // the same for this file: more than step after a rotation failed
	keep     int
	log      func(string, ...any)
	fd       int // -1 when it could not be opened again
	size     int64
	dev, ino uint64
}

// openFile opens the log and checks that nobody but root can change its directory.
func openFile(o Options, path string) (*file, error) {
	f := &file{path: filepath.Join("/", o.Root, path), name: filepath.Base(path), step: o.Size, max: o.Size, keep: o.Keep, log: o.Log, fd: -1}
	if !filepath.IsAbs(path) || f.name == "/" {
		return nil, fmt.Errorf("audit %q is not a file's whole path; write file:/var/log/exitgate/audit.jsonl", "file:"+path)
	}
	parent := filepath.Dir(f.path)
	dir, err := unix.Open(parent, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("audit directory %s: %w; create it, owned by root, mode 0700", parent, err)
	}
	f.dir = dir
	var st unix.Stat_t
	if err := unix.Fstat(dir, &st); err != nil {
		f.close()
		return nil, fmt.Errorf("audit directory %s: %w", parent, err)
	}
	if others := st.Mode&0o022 != 0 && st.Mode&unix.S_ISVTX == 0; others || int(st.Uid) != unix.Geteuid() {
		f.close()
		return nil, fmt.Errorf("audit directory %s can be changed by others than root; choose one that is owned by root, mode 0755 or less", parent)
	}
	if err := f.open(); err != nil {
		f.close()
		return nil, err
	}
	return f, nil
}

// open opens or creates the file. O_NONBLOCK keeps a FIFO of that name from hanging us, O_NOFOLLOW a link from leading
// us to a file that is not ours.
func (f *file) open() error {
	fd, err := unix.Openat(f.dir, f.name, unix.O_RDWR|unix.O_APPEND|unix.O_CREAT|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0o600)
	if errors.Is(err, unix.ELOOP) {
		return fmt.Errorf("audit file %s is a symbolic link; name the file itself", f.path)
	}
	if err != nil {
		return fmt.Errorf("audit file %s: %w", f.path, err)
	}
	if err := f.adopt(fd); err != nil {
		unix.Close(fd)
		return fmt.Errorf("audit file %s %w", f.path, err)
	}
	return nil
}

func (f *file) adopt(fd int) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("cannot be looked at: %w", err)
	}
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		return errors.New("is not a regular file; remove it, or choose another")
	case int(st.Uid) != unix.Geteuid():
		return fmt.Errorf("belongs to uid %d; remove it, or choose another", st.Uid)
	case st.Nlink > 1:
		return errors.New("has another name (a hard link); remove it, or choose another")
	}
	if st.Mode&0o077 != 0 {
		if err := unix.Fchmod(fd, 0o600); err != nil {
			return fmt.Errorf("cannot be closed to others: %w", err)
		}
	}
	f.fd, f.size, f.dev, f.ino = fd, st.Size, st.Dev, st.Ino
	return f.endLine()
}

// endLine ends a line that a crash left unfinished.
func (f *file) endLine() error {
	var last [1]byte
	if f.size == 0 {
		return nil
	}
	if _, err := unix.Pread(f.fd, last[:], f.size-1); err != nil || last[0] == '\n' {
		return nil
	}
	if n, err := unix.Write(f.fd, newline); err != nil || n != 1 {
		return nil // a full disk: the first line will tell
	}
	f.size++
	return nil
}

// write appends whole lines. When the disk is full it takes back the part of a line that still went in, so that what
// is there is always lines.
func (f *file) write(lines []byte) (int, error) {
	if err := f.current(); err != nil {
		return 0, err
	}
	if f.size > 0 && f.size+int64(len(lines)) > f.max {
		if err := f.rotate(); err != nil {
			return 0, err
		}
	}
	n, err := unix.Write(f.fd, lines)
	if err == nil && n == len(lines) {
		f.size += int64(n)
		return n, nil
	}
	whole := bytes.LastIndexByte(lines[:max(n, 0)], '\n') + 1
	f.size += int64(whole)
	if n > whole {
		if cut := unix.Ftruncate(f.fd, f.size); cut != nil {
			f.drop() // opening it again ends the line
		}
	}
	if err == nil {
		err = unix.ENOSPC // a short write to a regular file has no other cause that lasts
	}
	return whole, fmt.Errorf("write %s: %w", f.path, err)
}

// current opens the file again when its name is gone or is another file's: rotated by someone else, or removed.
func (f *file) current() error {
	var st unix.Stat_t
	err := unix.Fstatat(f.dir, f.name, &st, unix.AT_SYMLINK_NOFOLLOW)
	if f.fd >= 0 && err == nil && st.Dev == f.dev && st.Ino == f.ino {
		return nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("audit file %s: %w", f.path, err)
	}
	f.drop()
	return f.open()
}

// rotate moves every file one number up and starts a new one. The oldest is overwritten. A file that cannot be renamed
// (a container engine mounted it: EBUSY) goes on growing, which is better than a log that stops.
func (f *file) rotate() error {
	for i := f.keep; i > 0; i-- {
		from := f.name
		if i > 1 {
			from += "." + strconv.Itoa(i-1)
		}
		err := unix.Renameat(f.dir, from, f.dir, f.name+"."+strconv.Itoa(i))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			f.max = f.size + f.step
			f.log("audit: rotate %s: %v; it goes on growing (mount its directory, not the file)", f.path, err)
			return nil
		}
	}
	f.max = f.step
	f.drop()
	return f.open()
}

func (f *file) drop() {
	if f.fd >= 0 {
		unix.Close(f.fd)
	}
	f.fd = -1
}

func (f *file) close() error {
	f.drop()
	return unix.Close(f.dir)
}
