// Package hello reads the server name out of the ClientHello that opens a TLS
// connection, without answering it:
//
//	conn.SetReadDeadline(...)
//	raw, name, err := hello.ServerName(conn) // or a bufio.Reader in front of it
//	if err != nil { ... }                    // errors.Is(err, hello.ErrNoSNI) ...
//	if normal(name) != connectHost { ... }
//	upstream.Write(raw)                      // then relay
//
// Exactly one ClientHello is consumed, however it is spread over TLS records and
// TCP segments, and its bytes are handed back for replay. What is accepted is
// narrow (one server_name extension with one host_name that is a DNS name), and
// crypto/tls must read the same name out of the same bytes: two parsers agree, or
// the connection is refused. That second look costs about 5 us a connection.
//
// What this does not do: it sets no deadline, does not decrypt an Encrypted Client
// Hello (the outer name is the one a network sees, and it is what counts here), and
// leaves the name's case to the caller.
package hello

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"slices"
	"time"
)

// MaxSize bounds the ClientHello message. A post-quantum one has 1.8 KiB, one that
// resumes with a large ticket some more. On the wire at most twice as much is read,
// record headers included.
const MaxSize = 16 << 10

// The ways in which what came is not a ClientHello that names a server. ServerName
// may also return the reader's error, io.EOF if nothing came, and io.ErrUnexpectedEOF.
var (
	ErrNotTLS         = errors.New("not a TLS handshake")
	ErrSSLv2          = errors.New("SSLv2 ClientHello")
	ErrNotClientHello = errors.New("TLS handshake that does not begin with a ClientHello")
	ErrTooLarge       = errors.New("ClientHello too large")
	ErrTrailing       = errors.New("bytes after the ClientHello in its record")
	ErrMalformed      = errors.New("malformed ClientHello")
	ErrNoSNI          = errors.New("ClientHello without a server name")
	ErrIPLiteral      = errors.New("IP address for a server name in the ClientHello")
	ErrInvalidName    = errors.New("invalid server name in the ClientHello")
)

// ServerName reads exactly one ClientHello. It returns all bytes it consumed, with
// or without an error, and the name of the server the client asks for as it came:
// ASCII, a DNS name without a closing dot; "" with an error.
func ServerName(r io.Reader) (raw []byte, name string, err error) {
	raw, msg, err := readMessage(r)
	if err != nil {
		return raw, "", err
	}
	name, err = parse(msg)
	if err != nil {
		return raw, "", err
	}
	if theirs, asked := nameForCryptoTLS(raw); !asked || theirs != name {
		return raw, "", ErrMalformed
	}
	return raw, name, nil
}

const (
	recordHeader    = 5
	handshakeHeader = 4
	recordHandshake = 22
	maxRecord       = 1 << 14 // RFC 8446 5.1: length of a plaintext record
)

// readMessage reads the records of one handshake message; msg is without its
// header and may share memory with raw.
func readMessage(r io.Reader) (raw, msg []byte, err error) {
	raw = make([]byte, 0, 2<<10)
	for {
		var payload []byte
		if raw, payload, err = readRecord(r, raw); err != nil {
			return raw, nil, err
		}
		if msg == nil {
			msg = slices.Clip(payload) // so that append leaves raw alone
		} else {
			msg = append(msg, payload...)
		}
		if msg[0] != 1 {
			return raw, nil, ErrNotClientHello
		}
		if len(msg) < handshakeHeader {
			continue
		}
		want := handshakeHeader + int(msg[1])<<16 + int(msg[2])<<8 + int(msg[3])
		switch {
		case want > MaxSize:
			return raw, nil, ErrTooLarge
		case len(msg) > want:
			return raw, nil, ErrTrailing
		case len(msg) == want:
			return raw, msg[handshakeHeader:], nil
		}
	}
}

// readRecord appends the next record to raw and returns its payload, which is in
// raw's memory.
func readRecord(r io.Reader, raw []byte) (_, payload []byte, err error) {
	at := len(raw)
	if raw, err = readFull(r, raw, recordHeader); err != nil {
		return raw, nil, err
	}
	h := raw[at:]
	n := int(h[3])<<8 | int(h[4])
	switch {
	case at == 0 && h[0]&0x80 != 0 && h[2] == 1:
		return raw, nil, ErrSSLv2
	case h[0] != recordHandshake && at > 0:
		return raw, nil, ErrMalformed // handshake messages are not interleaved, RFC 8446 5.1
	case h[0] != recordHandshake || h[1] != 3 || h[2] > 3:
		return raw, nil, ErrNotTLS
	case n == 0 || n > maxRecord:
		return raw, nil, ErrMalformed
	case len(raw)+n > 2*MaxSize:
		return raw, nil, ErrTooLarge
	}
	raw, err = readFull(r, raw, n)
	return raw, raw[at+recordHeader:], err
}

// readFull appends n bytes of r to raw.
func readFull(r io.Reader, raw []byte, n int) ([]byte, error) {
	at := len(raw)
	raw = slices.Grow(raw, n)
	got, err := io.ReadFull(r, raw[at:at+n])
	if err == io.EOF && at > 0 {
		err = io.ErrUnexpectedEOF
	}
	return raw[:at+got], err
}

var errSeen = errors.New("seen")

// nameForCryptoTLS is the name that a crypto/tls server would be asked for by raw,
// and whether it would get as far as being asked.
func nameForCryptoTLS(raw []byte) (name string, asked bool) {
	tls.Server(&replay{bytes.NewReader(raw)}, &tls.Config{
		GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
			name, asked = h.ServerName, true
			return nil, errSeen // which ends the handshake
		},
	}).Handshake()
	return name, asked
}

// replay is a connection on which r has come in and nothing goes out.
type replay struct{ r io.Reader }

func (c *replay) Read(p []byte) (int, error)     { return c.r.Read(p) }
func (*replay) Write(p []byte) (int, error)      { return len(p), nil }
func (*replay) Close() error                     { return nil }
func (*replay) LocalAddr() net.Addr              { return nil }
func (*replay) RemoteAddr() net.Addr             { return nil }
func (*replay) SetDeadline(time.Time) error      { return nil }
func (*replay) SetReadDeadline(time.Time) error  { return nil }
func (*replay) SetWriteDeadline(time.Time) error { return nil }
