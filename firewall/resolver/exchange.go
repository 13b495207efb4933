package resolver

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"time"
)

// udpBuffer is larger than what we ask for; a datagram that fills it may have been cut.
const udpBuffer = 4096

// resendAfter is when a datagram counts as lost. The same query goes out again, so that after an outage, or one packet lost, nobody waits for
// the end of a leg.
const resendAfter = 500 * time.Millisecond

// exchange asks one server one question, each leg within a time: UDP with EDNS0, again without for a server
// that cannot, TCP for what is too long.
func exchange(ctx context.Context, server netip.AddrPort, q question, timeout time.Duration) (reply, error) {
	edns := true
	r, err := overUDP(ctx, server, q, edns, timeout)
	if err == nil && refusesEDNS(r.rcode) {
		edns = false
		r, err = overUDP(ctx, server, q, edns, timeout)
	}
	if err == nil && r.truncated {
		r, err = overTCP(ctx, server, q, edns, timeout)
	}
	return r, err
}

// overUDP sends from a socket of its own, so from a random port, and listens there only to that server.
func overUDP(ctx context.Context, server netip.AddrPort, q question, edns bool, timeout time.Duration) (reply, error) {
	id, query, err := prepare(q, edns)
	if err != nil {
		return reply{}, err
	}
	conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(server))
	if err != nil {
		return reply{}, err
	}
	defer conn.Close()
	for ; ; timeout -= resendAfter {
		r, err := attempt(ctx, conn, query, q, id, min(timeout, resendAfter))
		if timeout <= resendAfter || !errors.Is(err, os.ErrDeadlineExceeded) || ctx.Err() != nil {
			return r, err
		}
	}
}

// attempt sends the query and reads until an answer to it comes.
func attempt(ctx context.Context, conn *net.UDPConn, query []byte, q question, id uint16, timeout time.Duration) (reply, error) {
	defer bound(ctx, conn, timeout)()
	if _, err := conn.Write(query); err != nil {
		return reply{}, err
	}
	buf := make([]byte, udpBuffer)
	for {
		n, err := conn.Read(buf)
		if err != nil {
			return reply{}, err
		}
		r, err := q.parse(buf[:n], id)
		if errors.Is(err, errMismatch) {
			continue // somebody guesses, or an answer comes late: ours may still come
		}
		if n == len(buf) {
			return reply{truncated: true}, nil
		}
		return r, err
	}
}

func overTCP(ctx context.Context, server netip.AddrPort, q question, edns bool, timeout time.Duration) (reply, error) {
	id, query, err := prepare(q, edns)
	if err != nil {
		return reply{}, err
	}
	d := net.Dialer{Timeout: timeout, KeepAlive: -1}
	conn, err := d.DialContext(ctx, "tcp", server.String())
	if err != nil {
		return reply{}, err
	}
	defer conn.Close()
	defer bound(ctx, conn, timeout)()
	if _, err := conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(query))), query...)); err != nil {
		return reply{}, err
	}
	var size [2]byte
	if _, err := io.ReadFull(conn, size[:]); err != nil {
		return reply{}, err
	}
	buf := make([]byte, binary.BigEndian.Uint16(size[:]))
	if _, err := io.ReadFull(conn, buf); err != nil {
		return reply{}, err
	}
	r, err := q.parse(buf, id)
	if err == nil && r.truncated {
		return reply{}, errMalformed
	}
	return r, err
}

func prepare(q question, edns bool) (id uint16, query []byte, err error) {
	var b [2]byte
	if _, err := rand.Read(b[:]); err != nil {
		return 0, nil, err
	}
	id = binary.BigEndian.Uint16(b[:])
	query, err = q.pack(id, edns)
	return id, query, err
}

// bound ends all reading and writing at the timeout, or when the context does.
func bound(ctx context.Context, conn net.Conn, timeout time.Duration) (stop func() bool) {
	conn.SetDeadline(time.Now().Add(timeout))
	return context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
}
