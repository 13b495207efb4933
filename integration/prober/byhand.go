package prober

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"sync"
)

// byHand forwards HTTP/1.1 with nothing that a gate is for: no check, no limit, no audit, no search of the answer, heads passed on as
// they came but for the credential. One goroutine does it all for a connection. What it costs is the least that a proxy in Go can cost
// on this machine: two TCP connections, one TLS, and the runtime's way to wait for them.
type byHand struct {
	upstream, name string
	authorization  []byte // the field, with its line end
	mu             sync.Mutex
	idle           []*byHandLink // guarded by mu
}

type byHandLink struct {
	nc net.Conn
	br *bufio.Reader
}

// byHandMain serves on listen and forwards to upstream, a host and port that speaks TLS.
func byHandMain(listen, upstream, authorization string) int {
	name, _, _ := net.SplitHostPort(upstream)
	p := &byHand{upstream: upstream, name: name, authorization: []byte("Authorization: " + authorization + "\r\n")}
	l, err := net.Listen("tcp", listen)
	for err == nil {
		var nc net.Conn
		if nc, err = l.Accept(); err == nil {
			go p.serve(nc)
		}
	}
	fmt.Fprintln(os.Stderr, "prober:", err)
	return 1
}

func (p *byHand) link() (*byHandLink, error) {
	p.mu.Lock()
	if n := len(p.idle); n > 0 {
		l := p.idle[n-1]
		p.idle = p.idle[:n-1]
		p.mu.Unlock()
		return l, nil
	}
	p.mu.Unlock()
	nc, err := tls.Dial("tcp", p.upstream, &tls.Config{ServerName: p.name, NextProtos: []string{"http/1.1"}, ClientSessionCache: tls.NewLRUClientSessionCache(1)})
	if err != nil {
		return nil, err
	}
	return &byHandLink{nc: nc, br: bufio.NewReaderSize(nc, 4<<10)}, nil
}

// serve is a connection's goroutine.
func (p *byHand) serve(nc net.Conn) {
	defer nc.Close()
	br, buf := bufio.NewReaderSize(nc, 4<<10), make([]byte, 0, 64<<10)
	for {
		out, length, err := copyHead(buf[:0], br, p.authorization)
		if err != nil {
			return
		}
		l, err := p.link()
		if err != nil {
			return
		}
		if err := forwardBody(l.nc, br, out, length); err != nil {
			l.nc.Close()
			return
		}
		if out, length, err = copyHead(buf[:0], l.br, nil); err == nil {
			err = forwardBody(nc, l.br, out, length)
		}
		if err != nil || length < 0 {
			l.nc.Close()
			return
		}
		p.mu.Lock()
		p.idle = append(p.idle, l)
		p.mu.Unlock()
	}
}

// copyHead appends a head to out, with authorization in the place of the one that came, if there is one to put there. length is that of
// the body, -1 where only its end shows it.
func copyHead(out []byte, br *bufio.Reader, authorization []byte) (_ []byte, length int64, err error) {
	for {
		line, err := br.ReadSlice('\n')
		if err != nil {
			return nil, 0, err
		}
		if len(line) <= 2 {
			return append(out, line...), length, nil
		}
		name, value, _ := bytes.Cut(line, []byte(":"))
		switch {
		case bytes.EqualFold(name, []byte("content-length")):
			length, err = strconv.ParseInt(string(bytes.TrimSpace(value)), 10, 64)
		case bytes.EqualFold(name, []byte("transfer-encoding")):
			length = -1
		case authorization != nil && bytes.EqualFold(name, []byte("authorization")):
			line = authorization
		}
		if err != nil {
			return nil, 0, err
		}
		out = append(out, line...)
	}
}

// forwardBody sends the head and length bytes of br, the first of them in one write with it; to the end of br where length is below zero.
func forwardBody(to net.Conn, br *bufio.Reader, head []byte, length int64) error {
	first := min(int64(br.Buffered()), int64(cap(head)-len(head)))
	if length >= 0 {
		first = min(first, length)
	}
	b, err := br.Peek(int(first))
	if err != nil {
		return err
	}
	_, err = to.Write(append(head, b...))
	br.Discard(int(first))
	buf := head[:cap(head)]
	for length -= first; err == nil && length != 0; {
		room := buf
		if length > 0 {
			room = buf[:min(int64(len(buf)), length)]
		}
		var n int
		if n, err = br.Read(room); err == nil {
			_, err = to.Write(room[:n])
			length -= int64(n)
		}
	}
	if err == io.EOF && length < 0 {
		return nil
	}
	return err
}
