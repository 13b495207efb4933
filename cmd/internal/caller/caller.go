// Package caller finds whose process holds a socket of the fenced namespace: the far end of a TCP connection over loopback,
// the sender of a refused packet, the listener at an address. The audit and errors name it.
//
//	f, err := caller.New()
//	pid, exe := f.Find(caller.Tuple{Client: remote, Server: local}, caller.Owner{UID: 1000, GID: 1000})
//	f.Close()
//
// The kernel is asked for exactly this connection (INET_DIAG without a dump: 2 us, where a dump by port takes a
// millisecond and has named the wrong owner), which gives the socket's inode; the process is the one whose descriptor
// table holds it. A process that is gone already, or one among too many, is unknown: 0 and "unknown".
//
// Not done here: no decision. A connection can be shared, handed on, or closed while we look; the identity that
// decides is the listener on which it was accepted.
package caller

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
)

// Unknown is the program of a process that was not found.
const Unknown = "unknown"

// maxLinks bounds one search, in descriptors looked at: about 10 ms. A process counts too, by what it takes to open it and its
// table: an agent may have thousands that hold nothing.
const (
	maxLinks     = 10000
	linksProcess = 20
)

// Tuple is a connection as its two ends are called. UDP is asked for by the same two, whether the socket is connected or
// not.
type Tuple struct {
	Client, Server netip.AddrPort
	UDP            bool
}

// Owner is whose processes are searched.
type Owner struct{ UID, GID uint32 }

// Finder answers one question at a time.
type Finder struct {
	mu   sync.Mutex // guards following
	diag *diag
	last map[uint32]place // what was found last, by uid: mostly it is the same process again, and a descriptor near by
}

// place is a descriptor of a process.
type place struct {
	process
	fd int
}

// process is one by its directory in /proc, which never shows another that has got its number.
type process struct{ pid, dir int }

// New opens the netlink socket in the calling thread's network namespace.
func New() (*Finder, error) {
	d, err := openDiag()
	if err != nil {
		return nil, err
	}
	return &Finder{diag: d, last: make(map[uint32]place)}, nil
}

// Close ends the finder.
func (f *Finder) Close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.diag.close()
	for _, p := range f.last {
		unix.Close(p.dir)
	}
	clear(f.last)
}

// Find waits for its turn; it takes microseconds where the process is the same as last time.
func (f *Finder) Find(t Tuple, o Owner) (pid int, exe string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	inode, err := inodeOf(f.diag, t)
	if err != nil || inode == 0 {
		return 0, Unknown
	}
	link := strconv.AppendUint([]byte("socket:["), uint64(inode), 10)
	link = append(link, ']')
	as(o, func() {
		if f.search(o.UID, link) {
			p := f.last[o.UID]
			pid, exe = p.pid, p.program()
		}
	})
	if pid == 0 {
		return 0, Unknown
	}
	return pid, exe
}

// as calls f with the owner's fsuid and fsgid, because the links of another uid's /proc entries need
// PTRACE_MODE_READ_FSCREDS, and PID 1 keeps no CAP_SYS_PTRACE. Nothing else runs on the thread meanwhile, and the runtime
// makes no other after its likeness; the way back to the real uid needs no capability. A thread of its own would cost two
// switches a question.
func as(o Owner, f func()) {
	runtime.LockOSThread()
	setfs(int(o.UID), int(o.GID))
	defer func() {
		setfs(os.Getuid(), os.Getgid())
		if fsuid() == os.Getuid() {
			runtime.UnlockOSThread()
		}
	}()
	f()
}

// search looks where the last one was found, then through the process of that, then through all. What it finds is the
// last one then.
func (f *Finder) search(uid uint32, link []byte) bool {
	budget := maxLinks
	last, known := f.last[uid]
	if known {
		fd := last.nearby(last.fd, link)
		if fd < 0 {
			fd = last.holds(link, &budget)
		}
		if fd >= 0 {
			f.last[uid] = place{last.process, fd}
			return true
		}
	}
	for _, pid := range pids() {
		if budget <= 0 {
			break
		}
		if known && pid == last.pid && !last.ended() {
			continue
		}
		p, ok := open(pid, uid)
		if !ok {
			budget--
			continue
		}
		budget -= linksProcess
		if fd := p.holds(link, &budget); fd >= 0 {
			if known {
				unix.Close(last.dir)
			}
			f.last[uid] = place{p, fd}
			return true
		}
		unix.Close(p.dir)
	}
	return false
}

// pids lists all processes, the youngest first: who connects has often been started to do so.
func pids() []int {
	dir, err := os.Open("/proc")
	if err != nil {
		return nil
	}
	defer dir.Close()
	names, _ := dir.Readdirnames(-1)
	list := make([]int, 0, len(names))
	for _, name := range names {
		if pid, err := strconv.Atoi(name); err == nil {
			list = append(list, pid)
		}
	}
	slices.SortFunc(list, func(a, b int) int { return b - a })
	return list
}

// open opens the directory of pid, if it is uid's.
func open(pid int, uid uint32) (process, bool) {
	dir, err := unix.Open("/proc/"+strconv.Itoa(pid), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return process{}, false
	}
	var st unix.Stat_t
	if unix.Fstat(dir, &st) != nil || st.Uid != uid {
		unix.Close(dir)
		return process{}, false
	}
	return process{pid, dir}, true
}

// near is how far from the last descriptor the next is looked for before the whole table is: a client with a thousand
// connections would otherwise have it read a thousand times.
const near = 8

// nearby returns the descriptor around where that has the link, or -1.
func (p process) nearby(where int, link []byte) int {
	for step := range near {
		for _, fd := range [...]int{where + step, where - step} {
			if p.has(fd, link) {
				return fd
			}
			if step == 0 {
				break
			}
		}
	}
	return -1
}

// holds returns the descriptor that has the link, or -1.
func (p process) holds(link []byte, budget *int) int {
	dir, err := unix.Openat(p.dir, "fd", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1
	}
	table := os.NewFile(uintptr(dir), "fd")
	defer table.Close()
	names, _ := table.Readdirnames(*budget)
	for _, name := range slices.Backward(names) { // the newest is mostly the last
		*budget--
		if fd, err := strconv.Atoi(name); err == nil && p.has(fd, link) {
			return fd
		}
	}
	return -1
}

func (p process) has(fd int, link []byte) bool {
	var name, buf [64]byte // longer than any link of a socket
	return fd >= 0 && bytes.Equal(readlinkat(p.dir, append(strconv.AppendInt(append(name[:0], "fd/"...), int64(fd), 10), 0), buf[:]), link)
}

// ended reports that the process is no more, and its number perhaps another's.
func (p process) ended() bool { return p.program() == Unknown }

// program is what the process runs.
func (p process) program() string {
	var buf [unix.PathMax]byte
	return named(readlinkat(p.dir, []byte("exe\x00"), buf[:]))
}

// Program is what a process of the owner's runs.
func Program(pid int, o Owner) (exe string) {
	as(o, func() { exe = program(pid) })
	return exe
}

func program(pid int) string {
	exe, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	return named([]byte(exe))
}

// named is the program that a link leads to.
func named(link []byte) string {
	if len(link) == 0 {
		return Unknown
	}
	return string(bytes.TrimSuffix(link, []byte(" (deleted)")))
}

// inodeOf asks for the client's own socket: its source is the client.
func inodeOf(d *diag, t Tuple) (uint32, error) {
	var buf [1024]byte
	answer, err := d.ask(request(t, d.next()), buf[:])
	if err != nil {
		return 0, err
	}
	// struct inet_diag_msg: 4 bytes, 48 of id, expires, rqueue, wqueue, uid, inode.
	const inodeAt = 4 + 48 + 4*4
	if len(answer) < inodeAt+4 {
		return 0, errDiag
	}
	return binary.NativeEndian.Uint32(answer[inodeAt:]), nil
}

// request is struct inet_diag_req_v2 behind its header: family, protocol, extensions, padding, states, and the id of one
// socket.
func request(t Tuple, sequence uint32) []byte {
	const size = unix.SizeofNlMsghdr + 56
	b := make([]byte, 0, size)
	b = binary.NativeEndian.AppendUint32(b, size)
	b = binary.NativeEndian.AppendUint16(b, unix.SOCK_DIAG_BY_FAMILY)
	b = binary.NativeEndian.AppendUint16(b, unix.NLM_F_REQUEST)
	b = binary.NativeEndian.AppendUint32(b, sequence)
	b = append(b, 0, 0, 0, 0) // port: the kernel's
	family, protocol := byte(unix.AF_INET6), byte(unix.IPPROTO_TCP)
	if t.Client.Addr().Unmap().Is4() {
		family = unix.AF_INET
	}
	if t.UDP { // udp_dump_one takes source and destination the other way round "for historical reasons" (net/ipv4/udp_diag.c)
		protocol = unix.IPPROTO_UDP
		t.Client, t.Server = t.Server, t.Client
	}
	b = append(b, family, protocol, 0, 0)
	b = binary.NativeEndian.AppendUint32(b, ^uint32(0)) // any state
	b = binary.BigEndian.AppendUint16(b, t.Client.Port())
	b = binary.BigEndian.AppendUint16(b, t.Server.Port())
	b = appendAddr(b, t.Client.Addr())
	b = appendAddr(b, t.Server.Addr())
	b = append(b, 0, 0, 0, 0)                              // any interface
	return binary.NativeEndian.AppendUint64(b, ^uint64(0)) // INET_DIAG_NOCOOKIE
}

func appendAddr(b []byte, a netip.Addr) []byte {
	var field [16]byte
	copy(field[:], a.Unmap().AsSlice())
	return append(b, field[:]...)
}
