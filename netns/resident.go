package netns

import (
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"
)

// Resident is a thread that stays in a namespace. Entering one needs CAP_SYS_ADMIN; once a Resident is there, the
// program can give that up and still have sockets and processes made inside.
type Resident struct{ jobs chan job }

type job struct {
	f    func() error
	done chan<- error
}

// Settle starts a thread in namespace h, which may be closed afterwards.
func Settle(h *Handle) (*Resident, error) {
	r := &Resident{jobs: make(chan job)}
	up := make(chan error, 1)
	go r.live(h, up)
	if err := <-up; err != nil {
		return nil, err
	}
	return r, nil
}

// Do runs f inside the namespace, one f at a time, and returns its error. A process that f starts is in the namespace for
// good. f starts no goroutine that is to be inside, and does not call Do.
func (r *Resident) Do(f func() error) error {
	done := make(chan error, 1)
	r.jobs <- job{f, done}
	return <-done
}

// Close ends the thread. What was made inside stays.
func (r *Resident) Close() { close(r.jobs) }

// live never unlocks its thread: the runtime ends it with the goroutine.
func (r *Resident) live(h *Handle, up chan<- error) {
	runtime.LockOSThread()
	if unix.Gettid() == unix.Getpid() {
		// Not the first thread, which stands for the whole process in /proc. While this goroutine holds it, another gets
		// another.
		again := make(chan error, 1)
		go r.live(h, again)
		up <- <-again
		runtime.UnlockOSThread()
		return
	}
	if err := setns(h); err != nil {
		up <- err
		return
	}
	up <- nil
	for j := range r.jobs {
		j.done <- j.f()
	}
}

// RaiseLoopback brings up lo in the calling thread's namespace, where a fresh one has it down.
func RaiseLoopback() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("bring up lo: %w", err)
	}
	defer unix.Close(fd)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, lo); err != nil {
		return fmt.Errorf("look at lo: %w", err)
	}
	if lo.Uint16()&unix.IFF_UP != 0 {
		return nil
	}
	lo.SetUint16(lo.Uint16() | unix.IFF_UP)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo); err != nil {
		return fmt.Errorf("bring up lo: %w; it needs CAP_NET_ADMIN", err)
	}
	return nil
}
