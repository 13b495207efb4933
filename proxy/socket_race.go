//go:build race

package proxy

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// transferCall tells the race detector that what was done before a write is seen
// after the read at the other end, as package syscall does.
func transferCall(nr, fd uintptr, p []byte) (n int, errno syscall.Errno) {
	var err error
	if nr == unix.SYS_READ {
		n, err = syscall.Read(int(fd), p)
	} else {
		n, err = syscall.Write(int(fd), p)
	}
	errno, _ = err.(syscall.Errno)
	return n, errno
}
