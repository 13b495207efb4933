package firewall

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// DenyLog hears of refused packets, once Writer.EnableDenyLog has put the
// statements in place that tell of them. The counters stay exact; the log is a
// sample, of up to 50 packets a second and chain.
type DenyLog struct {
	conn   *netlink.Conn
	raw    syscall.RawConn
	closed atomic.Bool
}

// Parts of linux/netfilter/nfnetlink_log.h, which package unix lacks.
const (
	nflogPacket = 0 // messages
	nflogConfig = 1

	nflogConfigCommand = 1 // attributes of a config message
	nflogConfigMode    = 2
	nflogConfigQueue   = 5

	nflogBind       = 1 // a command
	nflogCopyPacket = 2 // a mode

	nflogPayload = 9 // attributes of a packet message
	nflogPrefix  = 10
	nflogUID     = 11
	nflogGID     = 14
)

// OpenDenyLog takes the deny log's group in the calling thread's network
// namespace.
func OpenDenyLog() (*DenyLog, error) {
	c, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return nil, fmt.Errorf("deny log: %w", err)
	}
	l := &DenyLog{conn: c}
	if err := l.prepare(); err != nil {
		c.Close()
		if errors.Is(err, unix.EPERM) {
			return nil, fmt.Errorf("deny log: NFLOG group %d is in use by another process, or CAP_NET_ADMIN is missing (run with --cap-add NET_ADMIN): %w", denyGroup, err)
		}
		return nil, fmt.Errorf("deny log: %w", explain(err))
	}
	return l, nil
}

func (l *DenyLog) prepare() (err error) {
	if l.raw, err = l.conn.SyscallConn(); err != nil {
		return err
	}
	if err = l.conn.SetReadBuffer(1 << 20); err != nil {
		return err
	}
	for _, a := range []netlink.Attribute{
		{Type: nflogConfigCommand, Data: []byte{nflogBind}},
		{Type: nflogConfigMode, Data: append(binary.BigEndian.AppendUint32(nil, snapLength), nflogCopyPacket, 0)},
		// Each packet by itself: the kernel would gather a hundred, or wait a second.
		{Type: nflogConfigQueue, Data: binary.BigEndian.AppendUint32(nil, 1)},
	} {
		if err = l.configure(a); err != nil {
			return err
		}
	}
	return nil
}

func (l *DenyLog) configure(a netlink.Attribute) error {
	body, err := netlink.MarshalAttributes([]netlink.Attribute{a})
	if err != nil {
		return err
	}
	_, err = l.conn.Execute(netlink.Message{
		Header: netlink.Header{Type: unix.NFNL_SUBSYS_ULOG<<8 | nflogConfig, Flags: netlink.Request | netlink.Acknowledge},
		Data:   append([]byte{unix.AF_UNSPEC, unix.NFNETLINK_V0, denyGroup >> 8, denyGroup & 0xff}, body...),
	})
	return err
}

// Close gives the group back, and ends a Read.
func (l *DenyLog) Close() error {
	l.closed.Store(true)
	return l.conn.Close()
}

// Read hands each refused packet to f until ctx ends or the log is closed; then
// it returns nil. What comes while f runs is kept in a buffer of a megabyte, and
// lost beyond.
func (l *DenyLog) Read(ctx context.Context, f func(Denied)) error {
	defer context.AfterFunc(ctx, func() { l.conn.SetReadDeadline(time.Unix(1, 0)) })()
	buf := make([]byte, 64<<10)
	for {
		_, err := receive(l.raw, buf, func(b []byte) {
			eachMessage(b, func(typ uint16, body []byte) {
				if d, ok := parseDenied(typ, body); ok {
					f(d)
				}
			})
		})
		switch {
		case ctx.Err() != nil || l.closed.Load():
			return nil
		case err != nil:
			return fmt.Errorf("deny log: %w", err)
		}
	}
}

// parseDenied reads one message of the log.
func parseDenied(typ uint16, body []byte) (d Denied, ok bool) {
	if typ != unix.NFNL_SUBSYS_ULOG<<8|nflogPacket || len(body) < 4 {
		return d, false
	}
	err := decode(body[4:], func(ad *netlink.AttributeDecoder) error {
		for ad.Next() {
			switch ad.Type() {
			case nflogPrefix:
				d.Chain, _ = strings.CutPrefix(ad.String(), logPrefix)
			case nflogUID:
				d.UID, d.Owned = ad.Uint32(), true
			case nflogGID:
				d.GID = ad.Uint32()
			case nflogPayload:
				ok = d.parse(ad.Bytes())
			}
		}
		return nil
	})
	return d, ok && err == nil
}
