// Package caller finds the process at the far end of a loopback TCP connection, for the audit.
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
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Unknown is the program of a process that was not found.
const Unknown = "unknown"

// maxLinks bounds one search, in descriptors looked at: about 10 ms.
const maxLinks = 10000

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
	conn *netlink.Conn
	last map[uint32]place // what was found last, by uid: mostly it is the same process again, and a descriptor near by
}

// place is a descriptor of a process.
type place struct{ pid, fd int }

// New opens the netlink socket in the calling thread's network namespace.
func New() (*Finder, error) {
	conn, err := netlink.Dial(unix.NETLINK_SOCK_DIAG, nil)
	if err != nil {
		return nil, fmt.Errorf("sock_diag: %w", err)
	}
	return &Finder{conn: conn, last: make(map[uint32]place)}, nil
}

// Close ends the finder.
func (f *Finder) Close() { f.conn.Close() }

// Find waits for its turn; it takes microseconds where the process is the same as last time.
func (f *Finder) Find(t Tuple, o Owner) (pid int, exe string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	inode, err := inodeOf(f.conn, t)
	if err != nil || inode == 0 {
		return 0, Unknown
	}
	var where place
	as(o, func() {
		link := "socket:[" + strconv.FormatUint(uint64(inode), 10) + "]"
		var ok bool
		if where, ok = f.search(o.UID, link); ok {
			pid, exe = where.pid, program(where.pid)
		}
	})
	if pid == 0 {
		return 0, Unknown
	}
	f.last[o.UID] = where
	return pid, exe
}

// as calls f with the owner's fsuid and fsgid, because the links of another uid's /proc entries need
// PTRACE_MODE_READ_FSCREDS, and PID 1 keeps no CAP_SYS_PTRACE. Nothing else runs on the thread meanwhile, and the runtime
// makes no other after its likeness; the way back to the real uid needs no capability. A thread of its own would cost two
// switches a question.
func as(o Owner, f func()) {
	runtime.LockOSThread()
	_ = unix.Setfsgid(int(o.GID))
	_ = unix.Setfsuid(int(o.UID))
	defer func() {
		_ = unix.Setfsuid(os.Getuid())
		_ = unix.Setfsgid(os.Getgid())
		uid, err := unix.SetfsuidRetUid(-1) // no uid: changes nothing, and tells
		if err == nil && uid == os.Getuid() {
			runtime.UnlockOSThread()
		}
	}()
	f()
}

// search looks where the last one was found, then through the process of that, then through all.
func (f *Finder) search(uid uint32, link string) (place, bool) {
	last := f.last[uid]
	if fd := nearby(last, uid, link); fd >= 0 {
		return place{last.pid, fd}, true
	}
	budget := maxLinks
	if fd := holds(last.pid, uid, link, &budget); fd >= 0 {
		return place{last.pid, fd}, true
	}
	for _, pid := range processes() {
		if budget <= 0 {
			break
		}
		if fd := holds(pid, uid, link, &budget); pid != last.pid && fd >= 0 {
			return place{pid, fd}, true
		}
	}
	return place{}, false
}

// processes lists all, the youngest first: who connects has often been started to do so.
func processes() []int {
	dir, err := os.Open("/proc")
	if err != nil {
		return nil
	}
	defer dir.Close()
	names, _ := dir.Readdirnames(-1)
	pids := make([]int, 0, len(names))
	for _, name := range names {
		if pid, err := strconv.Atoi(name); err == nil {
			pids = append(pids, pid)
		}
	}
	slices.SortFunc(pids, func(a, b int) int { return b - a })
	return pids
}

// table opens the descriptor table of pid, if it is uid's; -1 otherwise. By number: os.File would ask epoll about it.
func table(pid int, uid uint32) int {
	if pid == 0 {
		return -1
	}
	dir, err := unix.Open("/proc/"+strconv.Itoa(pid)+"/fd", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1
	}
	var st unix.Stat_t
	if unix.Fstat(dir, &st) != nil || st.Uid != uid {
		unix.Close(dir)
		return -1
	}
	return dir
}

// near is how far from the last descriptor the next is looked for before the whole table is: a client with a thousand
// connections would otherwise have it read a thousand times.
const near = 8

// nearby returns the descriptor around where that has the link, or -1.
func nearby(where place, uid uint32, link string) int {
	dir := table(where.pid, uid)
	if dir < 0 {
		return -1
	}
	defer unix.Close(dir)
	for step := range near {
		for _, fd := range []int{where.fd + step, where.fd - step} {
			if is(dir, strconv.Itoa(fd), link) {
				return fd
			}
		}
	}
	return -1
}

// holds returns the descriptor of pid that has the link, or -1.
func holds(pid int, uid uint32, link string, budget *int) int {
	dir := table(pid, uid)
	if dir < 0 {
		return -1
	}
	open := os.NewFile(uintptr(dir), "fd")
	defer open.Close()
	names, _ := open.Readdirnames(*budget)
	for _, name := range slices.Backward(names) { // the newest is mostly the last
		*budget--
		if is(dir, name, link) {
			fd, _ := strconv.Atoi(name)
			return fd
		}
	}
	return -1
}

func is(dir int, name, link string) bool {
	var buf [64]byte // longer than any link of a socket
	n, err := unix.Readlinkat(dir, name, buf[:])
	return err == nil && string(buf[:n]) == link
}

// Program is what a process of the owner's runs.
func Program(pid int, o Owner) (exe string) {
	as(o, func() { exe = program(pid) })
	return exe
}

func program(pid int) string {
	exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	if err != nil {
		return Unknown
	}
	return strings.TrimSuffix(exe, " (deleted)")
}

// inodeOf asks for the client's own socket: its source is the client.
func inodeOf(conn *netlink.Conn, t Tuple) (uint32, error) {
	answers, err := conn.Execute(netlink.Message{
		Header: netlink.Header{Type: unix.SOCK_DIAG_BY_FAMILY, Flags: netlink.Request},
		Data:   request(t),
	})
	if err != nil {
		return 0, err
	}
	// struct inet_diag_msg: 4 bytes, 48 of id, expires, rqueue, wqueue, uid, inode.
	const inodeAt = 4 + 48 + 4*4
	if len(answers) != 1 || len(answers[0].Data) < inodeAt+4 {
		return 0, errors.New("sock_diag: no answer")
	}
	return binary.NativeEndian.Uint32(answers[0].Data[inodeAt:]), nil
}

// request is struct inet_diag_req_v2: family, protocol, extensions, padding, states, and the id of one socket.
func request(t Tuple) []byte {
	b := make([]byte, 8, 56)
	b[0], b[1] = unix.AF_INET6, unix.IPPROTO_TCP
	if t.Client.Addr().Unmap().Is4() {
		b[0] = unix.AF_INET
	}
	if t.UDP { // udp_dump_one takes source and destination the other way round "for historical reasons" (net/ipv4/udp_diag.c)
		b[1] = unix.IPPROTO_UDP
		t.Client, t.Server = t.Server, t.Client
	}
	binary.NativeEndian.PutUint32(b[4:], ^uint32(0))
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
