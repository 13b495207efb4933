package wire

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// Pair makes the socketpair. Both ends are close-on-exec; the guest's is given to the child by number.
func Pair() (host *net.UnixConn, guest *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socketpair: %w", err)
	}
	guest = os.NewFile(uintptr(fds[1]), "proxy wire")
	host, err = FromFile(os.NewFile(uintptr(fds[0]), "wire"))
	if err != nil {
		guest.Close()
		return nil, nil, err
	}
	return host, guest, nil
}

// FromFile turns an inherited end into a connection; f is closed.
func FromFile(f *os.File) (*net.UnixConn, error) {
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("wire: %w", err)
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		c.Close()
		return nil, errors.New("wire: not a unix socket")
	}
	return u, nil
}

// link frames messages on one end. Reads belong to one goroutine; writes may come from any.
type link struct {
	conn  *net.UnixConn
	limit uint32 // bytes of one incoming frame
	takes bool   // descriptors come with frames; to the other end nobody may give any

	in    []byte // read; from at on not yet framed
	at    int
	words words // of the messages that came
	files []*os.File

	writing sync.Mutex
}

// write sends one message, with sockets beside its first byte.
func (l *link) write(m *Message, sockets ...syscall.Conn) error {
	frame := appendMessage(nil, m)
	if len(sockets) == 0 {
		return l.send(frame)
	}
	l.writing.Lock()
	defer l.writing.Unlock()
	return l.writeWithSockets(frame, sockets)
}

// appendJSON adds a message as a whole frame.
func appendJSON(b []byte, m *Message) []byte {
	body, _ := json.Marshal(m) // every field is plain data: it does not fail
	return append(binary.BigEndian.AppendUint32(b, uint32(len(body))), body...)
}

// send writes whole frames.
func (l *link) send(frames []byte) error {
	l.writing.Lock()
	defer l.writing.Unlock()
	_, err := l.conn.Write(frames)
	return err
}

// writeWithSockets attaches the descriptors to the first four bytes, so that they are there before the body is read.
// The numbers are taken by SyscallConn: File().Fd() would set the description, which both processes share, to blocking.
func (l *link) writeWithSockets(frame []byte, sockets []syscall.Conn) error {
	err := withDescriptors(sockets, nil, func(fds []int) error {
		_, _, err := l.conn.WriteMsgUnix(frame[:4], unix.UnixRights(fds...), nil)
		return err
	})
	if err == nil {
		_, err = l.conn.Write(frame[4:])
	}
	return err
}

// withDescriptors calls do with the sockets' numbers. Until it returns, none of them can be closed and its number be that of
// another file, which the proxy would get.
func withDescriptors(sockets []syscall.Conn, fds []int, do func(fds []int) error) error {
	if len(sockets) == 0 {
		return do(fds)
	}
	raw, err := sockets[0].SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	err = raw.Control(func(fd uintptr) { inner = withDescriptors(sockets[1:], append(fds, int(fd)), do) })
	return errors.Join(err, inner)
}

// read returns the next message. Descriptors that came with it wait in take.
func (l *link) read() (*Message, error) {
	if err := l.fill(4); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(l.in[l.at:])
	if n > l.limit {
		return nil, fmt.Errorf("a frame of %d bytes is over the limit of %d", n, l.limit)
	}
	if err := l.fill(4 + int(n)); err != nil {
		return nil, err
	}
	m, err := decode(l.in[l.at+4:][:n], &l.words)
	l.at += 4 + int(n)
	return m, err
}

// fill reads until n bytes are there. What is there moves to the front only when more has to be read.
func (l *link) fill(n int) error {
	if len(l.in)-l.at >= n {
		return nil
	}
	l.in = l.in[:copy(l.in, l.in[l.at:])]
	l.at = 0
	var oob []byte
	if l.takes {
		oob = make([]byte, unix.CmsgSpace(4*maxFiles))
	}
	for len(l.in) < n {
		buf := l.in[len(l.in):cap(l.in)]
		if len(buf) < 4096 {
			l.in = append(make([]byte, 0, max(2*cap(l.in), 16<<10)), l.in...)
			continue
		}
		got, oobn, flags, _, err := l.conn.ReadMsgUnix(buf, oob)
		if oobn > 0 {
			l.keep(oob[:oobn])
		}
		if err != nil {
			return err
		}
		if flags&unix.MSG_CTRUNC != 0 && !l.takes {
			return errFiles // which the kernel has closed, since there was no room for them
		}
		l.in = l.in[:len(l.in)+got]
	}
	return nil
}

var errFiles = errors.New("the proxy sent descriptors")

// maxFiles is SCM_MAX_FD, the kernel's limit for one message.
const maxFiles = 253

// keep files the descriptors of one control message. They are close-on-exec: net asks for them by MSG_CMSG_CLOEXEC.
func (l *link) keep(oob []byte) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return
	}
	for _, m := range messages {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			continue
		}
		for _, fd := range fds {
			l.files = append(l.files, os.NewFile(uintptr(fd), "listener"))
		}
	}
}

// take hands over the first n descriptors that arrived.
func (l *link) take(n int) ([]*os.File, error) {
	if n > len(l.files) {
		return nil, fmt.Errorf("%d listeners announced, %d arrived", n, len(l.files))
	}
	got := l.files[:n:n]
	l.files = l.files[n:]
	return got, nil
}
