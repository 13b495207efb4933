package rig

import (
	"bytes"
	"io"
	"log"
	"net"
	"sync"
)

var discardLog = log.New(io.Discard, "", 0)

// recording keeps what is read from each connection it accepts.
type recording struct {
	net.Listener
	u *Upstream
}

func (l recording) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	r := &recorder{Conn: c}
	l.u.mu.Lock()
	l.u.raw = append(l.u.raw, r)
	l.u.mu.Unlock()
	return r, nil
}

type recorder struct {
	net.Conn
	mu  sync.Mutex // guards following
	got bytes.Buffer
}

// recordLimit keeps a benchmark or a big upload from filling the memory.
const recordLimit = 1 << 20

func (r *recorder) Read(p []byte) (int, error) {
	n, err := r.Conn.Read(p)
	r.mu.Lock()
	defer r.mu.Unlock()
	(&limited{&r.got, recordLimit}).Write(p[:n])
	return n, err
}

func (r *recorder) bytes() []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	return bytes.Clone(r.got.Bytes())
}

// limited takes the first max bytes and forgets the rest.
type limited struct {
	b   *bytes.Buffer
	max int
}

func (l *limited) Write(p []byte) (int, error) {
	if room := l.max - l.b.Len(); room > 0 {
		l.b.Write(p[:min(room, len(p))])
	}
	return len(p), nil
}
