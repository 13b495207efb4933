package secrets

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// atStart are the descriptors that were inherited. They are noted before anything else is opened, since a number that a
// policy names by mistake could be a pipe or a file of our own by the time the policy is read.
var atStart = inherited()

// inherited finds descriptors that do not close on exec: those of the Go runtime and of our own always do.
func inherited() []int {
	names, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return nil
	}
	var fds []int
	for _, n := range names {
		fd, err := strconv.Atoi(n.Name())
		if err != nil || fd < 3 {
			continue
		}
		if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err == nil && flags&unix.FD_CLOEXEC == 0 {
			fds = append(fds, fd)
		}
	}
	return fds
}

// readFD reads one of the inherited descriptors to its end and closes it. A writer that never closes is given up after
// wait.
func readFD(number string, inherited []int, wait time.Duration) (Value, *problem) {
	subject := "fd " + number
	no := func(what, mend string) (Value, *problem) { return Value{}, &problem{subject + " " + what, mend} }
	fd, err := strconv.Atoi(number)
	if err != nil || !slices.Contains(inherited, fd) {
		return no("was not passed to exitgate", fmt.Sprintf("start it with `%s< FILE`; a descriptor is read once, at start", number))
	}
	if _, err := unix.IoctlGetTermios(fd, unix.TCGETS); err == nil {
		return no("is a terminal", "pass the credential through a pipe or a file")
	}
	defer unix.Close(fd)
	raw, err := drain(fd, wait)
	switch {
	case errors.Is(err, unix.ETIMEDOUT):
		return no(fmt.Sprintf("was not closed by its writer within %s", wait), "close it after the credential is written")
	case errors.Is(err, unix.EISDIR):
		return no("is a directory", "pass a file or a pipe")
	case err != nil:
		return no("cannot be read: "+err.Error(), "pass a file or a pipe open for reading")
	}
	return clean(subject, raw)
}

// drain reads fd to its end, at most a little more than a value can hold.
func drain(fd int, wait time.Duration) ([]byte, error) {
	buf := make([]byte, MaxValue+3)
	n := 0
	for end := time.Now().Add(wait); n < len(buf); {
		left := time.Until(end)
		if left <= 0 {
			return nil, unix.ETIMEDOUT
		}
		ready, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(left/time.Millisecond)+1)
		if errors.Is(err, unix.EINTR) || err == nil && ready == 0 {
			continue
		}
		if err != nil {
			return nil, err
		}
		got, err := unix.Read(fd, buf[n:])
		switch {
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.EAGAIN):
			continue
		case err != nil:
			return nil, err
		case got == 0:
			return buf[:n], nil
		}
		n += got
	}
	return buf[:n], nil
}

// readEnv takes a value from the environment that exitgate was started with.
func readEnv(name string, environ []string) (Value, *problem) {
	for _, kv := range environ {
		if value, ok := strings.CutPrefix(kv, name+"="); ok {
			return clean("variable "+name, []byte(value))
		}
	}
	return Value{}, &problem{fmt.Sprintf("variable %s is not set", name), fmt.Sprintf("set it for exitgate, or better use `from: file:/run/secrets/%s`", strings.ToLower(name))}
}
