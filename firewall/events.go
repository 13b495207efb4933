package firewall

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"os"
	"syscall"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// groupNftables is NFNLGRP_NFTABLES: every committed change of the namespace.
const groupNftables = 7

// subscribe opens the connection that hears of other sockets' changes. The
// kernel stamps each notice with the port of the socket whose transaction it
// was; a socket filter drops those of our own before they cost a wake-up.
func (k *Netlink) subscribe() (*netlink.Conn, error) {
	port, err := k.conn.GetPortID()
	if err != nil {
		return nil, err
	}
	filter, err := bpf.Assemble([]bpf.Instruction{
		bpf.LoadAbsolute{Off: 12, Size: 4}, // nlmsg_pid, in host order; the load turns it
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: binary.BigEndian.Uint32(native(port)), SkipFalse: 1},
		bpf.RetConstant{Val: 0},
		bpf.RetConstant{Val: 1 << 30},
	})
	if err != nil {
		return nil, err
	}
	c, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return nil, err
	}
	if err := cmp.Or(c.SetReadBuffer(1<<20), c.SetBPF(filter), c.JoinGroup(groupNftables)); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// wait returns true when another socket has changed our table (or so much that
// notices were lost), false after d or when ctx ends.
func (k *Netlink) wait(ctx context.Context, d time.Duration) (bool, error) {
	if err := k.events.SetReadDeadline(time.Now().Add(d)); err != nil {
		return false, err
	}
	defer context.AfterFunc(ctx, func() { k.events.SetReadDeadline(time.Unix(1, 0)) })()
	raw, err := k.events.SyscallConn()
	if err != nil {
		return false, err
	}
	buf := make([]byte, 64<<10)
	for {
		// A transaction is told of after it took effect, so that one look at the
		// table covers all the notices that are there.
		touched := false
		lost, err := receive(raw, buf, func(b []byte) { touched = touched || ours(b) })
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			return false, nil
		case err != nil || touched || lost:
			return true, err
		}
	}
}

// receive waits for a datagram, and hands it and all others that are there to f.
// It tells whether the kernel had to drop some, or one did not fit into buf.
func receive(raw syscall.RawConn, buf []byte, f func([]byte)) (lost bool, err error) {
	some := false
	rerr := raw.Read(func(fd uintptr) bool {
		for {
			n, _, e := unix.Recvfrom(int(fd), buf, unix.MSG_DONTWAIT|unix.MSG_TRUNC)
			switch {
			case e == unix.EINTR:
			case e == unix.EAGAIN:
				return some // false: wait until there is something
			case e == unix.ENOBUFS || e == nil && n > len(buf):
				some, lost = true, true
			case e != nil:
				err = os.NewSyscallError("recvfrom", e)
				return true
			default:
				some = true
				f(buf[:n])
			}
		}
	})
	return lost, cmp.Or(rerr, err)
}

// eachMessage takes a datagram apart. It returns false for bytes that are no
// message.
func eachMessage(b []byte, f func(typ uint16, body []byte)) bool {
	for len(b) >= unix.SizeofNlMsghdr {
		size := int(binary.NativeEndian.Uint32(b))
		if size < unix.SizeofNlMsghdr || size > len(b) {
			return false
		}
		f(binary.NativeEndian.Uint16(b[4:]), b[unix.SizeofNlMsghdr:size])
		b = b[min(len(b), (size+3)&^3):]
	}
	return len(b) == 0
}

// ours says whether a datagram of notices speaks of our table. What cannot be
// read counts as such.
func ours(b []byte) bool {
	touched := false
	whole := eachMessage(b, func(typ uint16, body []byte) {
		touched = touched || typ != uint16(nftType(unix.NFT_MSG_NEWGEN)) && namesTable(body)
	})
	return touched || !whole
}

// namesTable says whether a message is about inet exitgate. In every nf_tables
// message the first attribute is the table's name.
func namesTable(body []byte) bool {
	if len(body) < 4 || body[0] != unix.NFPROTO_INET {
		return false
	}
	found := false
	err := decode(body[4:], func(ad *netlink.AttributeDecoder) error {
		for ad.Next() {
			if ad.Type() == unix.NFTA_TABLE_NAME {
				found = found || ad.String() == TableName
			}
		}
		return nil
	})
	return found || err != nil
}

// moved says whether others committed anything, to any table, since the last
// time it was asked. It is the backstop for notices that never came. Callers
// see to it that no batch of ours is under way.
func (k *Netlink) moved() (bool, error) {
	now, err := k.generation()
	if err != nil {
		return false, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	moved := now != k.seen+k.own.Swap(0)
	k.seen = now
	return moved, nil
}
