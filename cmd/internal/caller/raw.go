package caller

import (
	"encoding/binary"
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// What a search asks the kernel takes a microsecond a call and never waits, so the calls do not leave the scheduler: on a
// busy machine many take the 20 us after which the runtime believes that they wait, and gives the processor to another thread.

// setfs makes uid and gid those by which the kernel judges what the calling thread may see.
func setfs(uid, gid int) {
	unix.RawSyscall(unix.SYS_SETFSGID, uintptr(gid), 0, 0)
	unix.RawSyscall(unix.SYS_SETFSUID, uintptr(uid), 0, 0)
}

// fsuid asks: no uid changes nothing, and tells (setfsuid(2)).
func fsuid() int {
	const none = ^uintptr(0)
	was, _, _ := unix.RawSyscall(unix.SYS_SETFSUID, none, 0, 0)
	return int(was)
}

// readlinkat reads where name, which ends in a zero byte, leads; nil if it does not.
func readlinkat(dir int, name, buf []byte) []byte {
	n, _, errno := unix.RawSyscall6(unix.SYS_READLINKAT, uintptr(dir), uintptr(unsafe.Pointer(unsafe.SliceData(name))),
		uintptr(unsafe.Pointer(unsafe.SliceData(buf))), uintptr(len(buf)), 0, 0)
	if errno != 0 {
		return nil
	}
	return buf[:n]
}

// diag is a NETLINK_SOCK_DIAG socket. The kernel has answered when the question is sent.
type diag struct {
	fd       int
	sequence uint32 // of the last question
}

func openDiag() (*diag, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return nil, fmt.Errorf("sock_diag: %w", err)
	}
	return &diag{fd: fd}, nil
}

func (d *diag) close() { unix.Close(d.fd) }

func (d *diag) next() uint32 {
	d.sequence++
	return d.sequence
}

var errDiag = errors.New("sock_diag: no such socket, or no answer")

// ask sends one request and returns the payload of its answer, which is in buf.
func (d *diag) ask(request, buf []byte) ([]byte, error) {
	_, _, errno := unix.RawSyscall6(unix.SYS_SENDTO, uintptr(d.fd), uintptr(unsafe.Pointer(unsafe.SliceData(request))), uintptr(len(request)), 0, 0, 0)
	for errno == 0 {
		var n uintptr
		n, _, errno = unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(d.fd), uintptr(unsafe.Pointer(unsafe.SliceData(buf))), uintptr(len(buf)), 0, 0, 0)
		if errno != 0 {
			break
		}
		if answer := buf[:n]; n >= unix.SizeofNlMsghdr && binary.NativeEndian.Uint32(answer[8:]) == d.sequence {
			if binary.NativeEndian.Uint16(answer[4:]) != unix.SOCK_DIAG_BY_FAMILY {
				return nil, errDiag // NLMSG_ERROR: the connection is gone
			}
			return answer[unix.SizeofNlMsghdr:], nil
		}
	}
	return nil, fmt.Errorf("sock_diag: %w", errno)
}
