package prober

import (
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// prepare sets a socket's options and binds it.
func prepare(fd int, p Probe) error {
	for _, o := range p.Options {
		var err error
		if o.Data != nil {
			err = unix.SetsockoptString(fd, o.Level, o.Name, string(o.Data))
		} else {
			err = unix.SetsockoptInt(fd, o.Level, o.Name, o.Value)
		}
		if err != nil {
			return fmt.Errorf("option %d of level %d: %w", o.Name, o.Level, err)
		}
	}
	if p.Local == "" {
		return nil
	}
	local := p
	local.Address = p.Local
	from, err := sockaddr(local)
	if err != nil {
		return err
	}
	if err := unix.Bind(fd, from); err != nil {
		return fmt.Errorf("bind %s: %w", p.Local, err)
	}
	return nil
}

// mmsghdr is the kernel's struct.
type mmsghdr struct {
	header unix.Msghdr
	sent   uint32
	_      uint32
}

// transmit sends one datagram by the call that the probe names.
func transmit(fd int, p Probe, to unix.Sockaddr) error {
	switch p.Method {
	case "sendmsg":
		return unix.Sendmsg(fd, p.Data, nil, to, p.Flags)
	case "sendmmsg":
		return sendmmsg(fd, p)
	}
	return unix.Sendto(fd, p.Data, p.Flags, to)
}

// sendmmsg sends a datagram twice by one call.
func sendmmsg(fd int, p Probe) error {
	at, err := netip.ParseAddrPort(p.Address)
	if err != nil {
		return err
	}
	addr := rawAddress(at)
	iov := unix.Iovec{Base: &p.Data[0]}
	iov.SetLen(len(p.Data))
	msgs := make([]mmsghdr, 2)
	for i := range msgs {
		msgs[i].header.Name, msgs[i].header.Namelen = &addr[0], uint32(len(addr))
		msgs[i].header.Iov, msgs[i].header.Iovlen = &iov, 1
	}
	_, _, errno := unix.Syscall6(unix.SYS_SENDMMSG, uintptr(fd), uintptr(unsafe.Pointer(&msgs[0])), 2, 0, 0, 0)
	runtime.KeepAlive(addr)
	if errno != 0 {
		return errno
	}
	return nil
}

// rawAddress is a struct sockaddr_in or sockaddr_in6.
func rawAddress(at netip.AddrPort) []byte {
	port := []byte{byte(at.Port() >> 8), byte(at.Port())}
	if at.Addr().Is4() {
		a := at.Addr().As4()
		return append(append([]byte{unix.AF_INET, 0}, port...), append(a[:], make([]byte, 8)...)...)
	}
	a := at.Addr().As16()
	return append(append(append([]byte{unix.AF_INET6, 0}, port...), 0, 0, 0, 0), append(a[:], 0, 0, 0, 0)...)
}

// unixConnect connects to a unix socket.
func unixConnect(p Probe, _ emit) (r Result) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		r.fail("socket", err)
		return r
	}
	defer unix.Close(fd)
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: p.Address}); err != nil {
		r.fail("connect", err)
	}
	return r
}

// sweep connects to every port of an address, on four threads. Count is how many ports answered.
func sweep(p Probe, _ emit) (r Result) {
	addr, err := netip.ParseAddr(p.Address)
	if err != nil {
		r.fail("address", err)
		return r
	}
	r.Tally = map[string]int{}
	var mu sync.Mutex
	var all sync.WaitGroup
	for first := range 4 {
		all.Go(func() {
			mine := map[string]int{}
			for port := first + 1; port < 1<<16; port += 4 {
				mine[connectTo(p, netip.AddrPortFrom(addr, uint16(port)))]++
			}
			mu.Lock()
			defer mu.Unlock()
			for k, n := range mine {
				r.Tally[k] += n
			}
		})
	}
	all.Wait()
	r.Count = r.Tally["ok"]
	if r.Count == 0 {
		for k := range r.Tally {
			r.Errno = k
		}
		r.Err = fmt.Sprint(r.Tally)
	}
	return r
}

// fill makes flows: each source address and port is another one to the kernel.
func fill(p Probe, _ emit) (r Result) {
	to, err := sockaddr(p)
	if err != nil {
		r.fail("address", err)
		return r
	}
	for ; r.Count < p.Count; r.Count++ {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			r.fail("socket", err)
			return r
		}
		from := unix.SockaddrInet4{Port: 1024 + r.Count%60000, Addr: [4]byte{127, 1, byte(r.Count / 60000), 1}}
		if err = unix.Bind(fd, &from); err == nil {
			err = unix.Sendto(fd, []byte("x"), 0, to)
		}
		unix.Close(fd)
		if err != nil {
			r.fail("sendto", err)
			return r
		}
	}
	return r
}

func connectTo(p Probe, at netip.AddrPort) string {
	q := Probe{Op: "socket", Domain: unix.AF_INET, Type: unix.SOCK_STREAM, Address: at.String(), Timeout: p.Timeout}
	if at.Addr().Is6() {
		q.Domain = unix.AF_INET6
	}
	q.Options = []Option{{Level: unix.SOL_SOCKET, Name: unix.SO_LINGER, Data: []byte{1, 0, 0, 0, 0, 0, 0, 0}}} // no TIME_WAIT: ports would run out
	r := socket(q, nil)
	if r.OK() {
		return "ok"
	}
	return r.Errno
}

// io_uring's numbers, from linux/io_uring.h.
const (
	uringEnter     = 1 // IORING_ENTER_GETEVENTS
	uringOpConnect = 16
	uringSQ        = 0
	uringCQ        = 0x8000000
	uringSQEs      = 0x10000000
)

type uringOffsets struct{ head, tail, ringMask, ringEntries, a, b, c, d, userLo, userHi uint32 }

// uringParams is struct io_uring_params: in both offsets a..d are flags, dropped, array, resv or overflow, cqes, flags, resv.
type uringParams struct {
	sqEntries, cqEntries, flags, cpu, idle, features, wq uint32
	_                                                    [3]uint32
	sq, cq                                               uringOffsets
}

// uringConnect connects by a ring instead of the system call.
func uringConnect(fd int, to unix.Sockaddr) error {
	var addr []byte
	switch a := to.(type) {
	case *unix.SockaddrInet4:
		addr = rawAddress(netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port)))
	case *unix.SockaddrInet6:
		addr = rawAddress(netip.AddrPortFrom(netip.AddrFrom16(a.Addr), uint16(a.Port)))
	default:
		return errors.New("io_uring: not an IP address")
	}
	if err := unix.SetNonblock(fd, false); err != nil {
		return err
	}
	var params uringParams
	ring, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, 1, uintptr(unsafe.Pointer(&params)), 0)
	if errno != 0 {
		return errno
	}
	defer unix.Close(int(ring))
	var maps [3][]byte
	for i, offset := range []int64{uringSQ, uringCQ, uringSQEs} {
		m, err := unix.Mmap(int(ring), offset, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
		if err != nil {
			return err
		}
		defer unix.Munmap(m)
		maps[i] = m
	}
	sq, cq, entry := maps[0], maps[1], maps[2]
	word := func(m []byte, at uint32) *uint32 { return (*uint32)(unsafe.Pointer(&m[at])) }
	entry[0] = uringOpConnect
	*word(entry, 4) = uint32(fd)
	*(*uint64)(unsafe.Pointer(&entry[8])) = uint64(len(addr))
	*(*uint64)(unsafe.Pointer(&entry[16])) = uint64(uintptr(unsafe.Pointer(&addr[0])))
	*word(sq, params.sq.c) = 0 // array[0]: the first entry
	*word(sq, params.sq.tail)++
	if _, _, errno := unix.Syscall6(unix.SYS_IO_URING_ENTER, ring, 1, 1, uringEnter, 0, 0); errno != 0 {
		return errno
	}
	runtime.KeepAlive(addr)
	if result := int32(*word(cq, params.cq.b+8)); result < 0 { // struct io_uring_cqe: user_data, res, flags
		return unix.Errno(-result)
	}
	return nil
}
