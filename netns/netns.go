// Package netns enters network namespaces and opens sockets inside them.
//
// A socket belongs to the namespace it was created in, for as long as it lives and whoever uses it. So a
// program outside a namespace can open a listener inside it, and accept and dial from where it is:
//
//	ns, err := netns.FromPID(4711)             // or FromPath, Current, New
//	defer ns.Close()
//	err = netns.Do(ns, func() (err error) {
//		l, err = net.Listen("tcp", "127.0.0.1:8080")
//		return err
//	})
//	<-ns.Gone(ctx)                             // process 4711 ended, or the path names another namespace
//
// A program that uses this package calls LockMainThread from an init function.
//
// What this does not do: it keeps no goroutine inside a namespace after Do returns, changes no other
// kind of namespace, and follows no goroutine that the function given to Do starts: such a goroutine runs
// on another thread, which is in the namespace the program started in.
package netns

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// ID identifies a namespace: the device and inode of its file in nsfs. Two handles are of the same
// namespace if and only if their IDs are equal while either is open.
type ID struct{ Dev, Inode uint64 }

// Handle is an open reference to a network namespace. It keeps the namespace alive until Close.
type Handle struct {
	file *os.File
	id   ID
	path string   // "" unless opened by FromPath
	proc *os.File // pidfd; nil unless opened by FromPID
}

// Current returns the namespace of the calling thread.
func Current() (*Handle, error) { return open("/proc/thread-self/ns/net") }

// FromPID returns the namespace process pid is in. The process is held by a pidfd, so that a pid that is
// given to another process meanwhile is an error and never the wrong namespace.
func FromPID(pid int) (*Handle, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, fmt.Errorf("process %d: %w", pid, err)
	}
	proc := os.NewFile(uintptr(fd), "pidfd:"+strconv.Itoa(pid))
	h, err := open("/proc/" + strconv.Itoa(pid) + "/ns/net")
	if err == nil {
		if ended, perr := readable(fd, 0); ended || perr != nil {
			err = errors.Join(fmt.Errorf("process %d: %w", pid, unix.ESRCH), perr, h.Close())
		}
	}
	if err != nil {
		proc.Close()
		return nil, err
	}
	h.proc = proc
	return h, nil
}

// FromPath returns the namespace a file names: a bind mount as `ip netns add` makes it, or a link below /proc.
func FromPath(path string) (*Handle, error) {
	h, err := open(path)
	if err != nil {
		return nil, err
	}
	h.path = path
	return h, nil
}

// New returns a fresh namespace, which has one interface, lo, that is down. It needs CAP_SYS_ADMIN.
func New() (h *Handle, err error) {
	home, err := Current()
	if err != nil {
		return nil, err
	}
	defer home.Close()
	// Entering the namespace one is in already changes nothing, and gives a thread that Do brings back.
	err = Do(home, func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("new network namespace: %w", err)
		}
		h, err = Current()
		return err
	})
	return h, err
}

func open(path string) (*Handle, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("network namespace: %w", err)
	}
	id, err := identify(f)
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("network namespace %s: %w", path, err)
	}
	return &Handle{file: f, id: id}, nil
}

// OfOurUsers reports whether the namespace belongs to the user namespace that this process is in. In another one's nftables
// reads the uids of sockets as that one maps them, and ours may not be among those.
func (h *Handle) OfOurUsers() (bool, error) {
	fd, err := unix.IoctlRetInt(int(h.file.Fd()), unix.NS_GET_USERNS)
	if errors.Is(err, unix.EPERM) {
		return false, nil // it is above or beside ours
	}
	if err != nil {
		return false, fmt.Errorf("network namespace %d: its user namespace: %w", h.id.Inode, err)
	}
	defer unix.Close(fd)
	var theirs, ours unix.Stat_t
	if err := errors.Join(unix.Fstat(fd, &theirs), unix.Stat("/proc/self/ns/user", &ours)); err != nil {
		return false, err
	}
	return theirs.Dev == ours.Dev && theirs.Ino == ours.Ino, nil
}

// identify refuses what is not a network namespace: setns would, but later and less clearly.
func identify(f *os.File) (ID, error) {
	fd := int(f.Fd())
	kind, err := unix.IoctlRetInt(fd, unix.NS_GET_NSTYPE)
	if err != nil || kind != unix.CLONE_NEWNET {
		return ID{}, errors.New("is not a network namespace")
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return ID{}, err
	}
	return ID{Dev: st.Dev, Inode: st.Ino}, nil
}

// Inode returns the number `ls -L -i` and /proc/PID/ns/net show for the namespace.
func (h *Handle) Inode() uint64 { return h.id.Inode }

// ID returns the identity of the namespace.
func (h *Handle) ID() ID { return h.id }

// Fd returns the descriptor of the namespace, valid until Close.
func (h *Handle) Fd() int { return int(h.file.Fd()) }

// Close releases the namespace.
func (h *Handle) Close() error {
	err := h.file.Close()
	if h.proc != nil {
		err = errors.Join(err, h.proc.Close())
	}
	return err
}

// goneInterval bounds how long after the fact Gone notices a changed path, for which nsfs has no event, and a done context.
const goneInterval = 250 * time.Millisecond

// Gone returns a channel that is closed when what named the namespace is gone: the process of FromPID has
// ended, or the path of FromPath names nothing or another namespace. The namespace itself can outlive both, since
// open sockets and this handle keep it. For Current and New, and once ctx is done, it is never closed. The handle
// stays open until the channel is closed or ctx is done.
func (h *Handle) Gone(ctx context.Context) <-chan struct{} {
	gone := make(chan struct{})
	if h.proc == nil && h.path == "" {
		return gone
	}
	go func() {
		for ctx.Err() == nil {
			if h.lost() {
				close(gone)
				return
			}
		}
	}()
	return gone
}

// lost waits for up to goneInterval.
func (h *Handle) lost() bool {
	if h.proc != nil {
		ended, err := readable(int(h.proc.Fd()), int(goneInterval.Milliseconds()))
		return ended || err != nil
	}
	time.Sleep(goneInterval)
	now, err := open(h.path)
	if err != nil {
		return true
	}
	defer now.Close()
	return now.id != h.id
}

// readable reports whether fd can be read within timeout (milliseconds); a pidfd can once its process ended.
func readable(fd, timeout int) (bool, error) {
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(fds, timeout)
		if err != unix.EINTR {
			return n > 0, err
		}
	}
}

// LockMainThread keeps the main goroutine on the process's first thread, and thereby every other goroutine off
// it. Called from an init function of package main. Otherwise Do may run on the first thread, and
// /proc/PID/ns/net, which is the first thread's, shows the wrong namespace meanwhile; for ever if coming back fails.
func LockMainThread() { runtime.LockOSThread() }

// Do runs f on a thread that has entered namespace h and returns f's error. The thread comes back to the namespace it was in;
// if that fails it is destroyed, and nothing else ever runs on it. A panic in f ends the program.
func Do(h *Handle, f func() error) error {
	result := make(chan error, 1)
	go enter(h, f, result)
	return <-result
}

// enter sends one result. It unlocks its thread only where that is in the namespace it came from; a thread that is
// still locked when its goroutine ends is ended by the runtime.
func enter(h *Handle, f func() error, result chan<- error) {
	err := errors.New("the function given to netns.Do ended its goroutine") // runtime.Goexit, as t.FailNow does
	defer func() { result <- err }()
	runtime.LockOSThread()
	if unix.Gettid() == unix.Getpid() {
		// The first thread stands for the whole process in /proc. While this goroutine holds it, another gets another.
		err = Do(h, f)
		runtime.UnlockOSThread()
		return
	}
	home, herr := Current()
	if herr != nil {
		err = herr
		runtime.UnlockOSThread()
		return
	}
	defer home.Close()
	if herr := setns(h); herr != nil {
		err = herr
		runtime.UnlockOSThread()
		return
	}
	ferr := f()
	if back := setns(home); back != nil {
		err = errors.Join(ferr, fmt.Errorf("leave network namespace %d: %w", h.id.Inode, back))
		return
	}
	runtime.UnlockOSThread()
	err = ferr
}

func setns(h *Handle) error {
	if err := unix.Setns(h.Fd(), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter network namespace %d: %w; it needs CAP_SYS_ADMIN", h.id.Inode, err)
	}
	return nil
}
