package proxy

import (
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// socket is a TCP connection whose reads and writes do not leave the scheduler. They
// never wait in the kernel, but on a busy machine they often take the 20 us after
// which the runtime believes that they do: it gives the processor to another thread
// then, and the way back costs two switches.
type socket struct {
	*net.TCPConn
	raw syscall.RawConn

	tryRead, tryWrite func(fd uintptr) bool // made once: a closure for each call would be garbage

	reading sync.Mutex // held by Read; guards in
	in      transfer
	writing sync.Mutex // held by Write; guards out
	out     transfer
}

// transfer is one call's bytes and outcome.
type transfer struct {
	p   []byte
	n   int
	err error
}

// direct is nc as a socket, or as it is.
func direct(nc net.Conn) net.Conn {
	t, ok := nc.(*net.TCPConn)
	if !ok {
		return nc
	}
	raw, err := t.SyscallConn()
	if err != nil {
		return nc
	}
	s := &socket{TCPConn: t, raw: raw}
	s.tryRead = func(fd uintptr) bool { return s.in.once(unix.SYS_READ, fd) }
	s.tryWrite = func(fd uintptr) bool {
		for len(s.out.p) > 0 {
			if !s.out.once(unix.SYS_WRITE, fd) {
				return false
			}
			if s.out.err != nil {
				return true
			}
			s.out.p = s.out.p[s.out.n:]
		}
		return true
	}
	return s
}

// kernel is nc as io.Copy knows it, which splices between TCP connections.
func kernel(nc net.Conn) net.Conn {
	if s, ok := nc.(*socket); ok {
		return s.TCPConn
	}
	return nc
}

// once makes the call, and reports whether it need not wait.
func (t *transfer) once(nr, fd uintptr) bool {
	t.n, t.err = call(nr, fd, t.p)
	return t.err != unix.EAGAIN
}

// call reads or writes without leaving the scheduler.
func call(nr, fd uintptr, p []byte) (int, error) {
	for {
		n, errno := transferCall(nr, fd, p)
		switch errno {
		case 0:
			return n, nil
		case unix.EINTR:
		default:
			return 0, errno
		}
	}
}

// look polls fd without waiting, in the same way.
func look(fd uintptr, events int16) (revents int16, err error) {
	fds := unix.PollFd{Fd: int32(fd), Events: events}
	var now unix.Timespec
	_, _, errno := unix.RawSyscall6(unix.SYS_PPOLL, uintptr(unsafe.Pointer(&fds)), 1, uintptr(unsafe.Pointer(&now)), 0, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return fds.Revents, nil
}

// Read implements net.Conn.
func (s *socket) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	s.reading.Lock()
	defer s.reading.Unlock()
	s.in = transfer{p: p}
	err := s.raw.Read(s.tryRead)
	n, failed := s.in.n, s.in.err
	s.in.p = nil
	switch {
	case err != nil:
		return 0, err
	case failed != nil:
		return 0, os.NewSyscallError("read", failed)
	case n == 0:
		return 0, io.EOF
	}
	return n, nil
}

// Write implements net.Conn.
func (s *socket) Write(p []byte) (int, error) {
	s.writing.Lock()
	defer s.writing.Unlock()
	s.out = transfer{p: p}
	err := s.raw.Write(s.tryWrite)
	n, failed := len(p)-len(s.out.p), s.out.err
	s.out.p = nil
	if err == nil && failed != nil {
		err = os.NewSyscallError("write", failed)
	}
	return n, err
}
