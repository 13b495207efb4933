package proxy

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"time"
)

// pair is a connection, one end as a socket and the other as net made it.
func pair(t *testing.T) (*socket, *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer l.Close()
	there, err := net.Dial("tcp", l.Addr().String())
	must(t, err)
	here, err := l.Accept()
	must(t, err)
	t.Cleanup(func() { _, _ = here.Close(), there.Close() })
	return direct(here).(*socket), there.(*net.TCPConn)
}

// TestSocket: a socket reads and writes as a connection of net's does.
func TestSocket(t *testing.T) {
	s, peer := pair(t)
	sent := bytes.Repeat([]byte("0123456789abcdef"), 1<<20) // more than the kernel takes at once
	wrote := make(chan error, 1)
	go func() {
		n, err := s.Write(sent)
		if err == nil && n != len(sent) {
			err = io.ErrShortWrite
		}
		wrote <- errors.Join(err, s.CloseWrite())
	}()
	time.Sleep(10 * time.Millisecond) // until it waits
	got, err := io.ReadAll(peer)
	must(t, err)
	must(t, <-wrote)
	if !bytes.Equal(got, sent) {
		t.Errorf("%d bytes came, which are not the %d that were sent", len(got), len(sent))
	}
	_, err = peer.Write([]byte("word"))
	must(t, err)
	buf := make([]byte, 16)
	if n, err := s.Read(buf); string(buf[:n]) != "word" || err != nil {
		t.Errorf("read %q, %v", buf[:n], err)
	}
	must(t, s.SetReadDeadline(time.Now().Add(10*time.Millisecond)))
	if n, err := s.Read(buf); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("after the deadline: %d, %v", n, err)
	}
	must(t, s.SetReadDeadline(time.Time{}))
	must(t, peer.CloseWrite())
	if n, err := s.Read(buf); n != 0 || err != io.EOF {
		t.Errorf("at the end: %d, %v", n, err)
	}
}

func TestSocketErrors(t *testing.T) {
	s, peer := pair(t)
	waiting := make(chan error, 1)
	go func() {
		_, err := s.Read(make([]byte, 1))
		waiting <- err
	}()
	time.Sleep(10 * time.Millisecond)
	must(t, peer.SetLinger(0))
	must(t, peer.Close())
	if err := <-waiting; !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("reading while the peer resets: %v", err)
	}
	if _, err := s.Write(make([]byte, 1<<20)); !errors.Is(err, syscall.EPIPE) {
		t.Errorf("writing after it: %v", err)
	}
	must(t, s.Close())
	if _, err := s.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("reading what is closed: %v", err)
	}
	if _, err := s.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("writing what is closed: %v", err)
	}
}
