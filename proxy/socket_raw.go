//go:build !race

package proxy

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// transferCall is read(2) or write(2).
func transferCall(nr, fd uintptr, p []byte) (int, syscall.Errno) {
	n, _, errno := unix.RawSyscall(nr, fd, uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)))
	return int(n), errno
}
