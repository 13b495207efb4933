package prober

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"
)

// road is a connection to speak on: plain, or through a tunnel, or under TLS.
type road struct {
	net.Conn
	br *bufio.Reader
}

// open makes the connection. A CONNECT that is refused is no error of the road: its answer is in r.
func open(p Probe, r *Result) (*road, bool) {
	d, err := dialer(p, "tcp")
	if err != nil {
		r.fail("dial", err)
		return nil, false
	}
	network := "tcp"
	if strings.HasPrefix(p.Address, "/") {
		network = "unix"
	}
	c, err := d.Dial(network, p.Address)
	if err != nil {
		r.fail("dial", err)
		return nil, false
	}
	c.SetDeadline(time.Now().Add(p.Timeout))
	r.Local = c.LocalAddr().String()
	rd := &road{c, bufio.NewReader(c)}
	if p.Tunnel != "" && !rd.connect(p, r) {
		c.Close()
		return nil, false
	}
	if p.ServerName == "" {
		return rd, true
	}
	conf := &tls.Config{ServerName: p.ServerName}
	if p.HTTP2 {
		conf.NextProtos = []string{"h2", "http/1.1"}
	}
	t := tls.Client(rd.Conn, conf)
	if err := t.Handshake(); err != nil {
		r.fail("tls", err)
		c.Close()
		return nil, false
	}
	return &road{t, bufio.NewReader(t)}, true
}

func (rd *road) connect(p Probe, r *Result) bool {
	if _, err := fmt.Fprintf(rd, "CONNECT %s HTTP/1.1\r\nHost: %s\r\n\r\n", p.Tunnel, p.Tunnel); err != nil {
		r.fail("connect", err)
		return false
	}
	res, err := http.ReadResponse(rd.br, &http.Request{Method: "CONNECT"})
	if err != nil {
		r.fail("connect", err)
		return false
	}
	r.Status, r.Header = res.StatusCode, res.Header
	if res.StatusCode == http.StatusOK {
		return true
	}
	r.Stage, r.Err = "connect", res.Status
	n := res.ContentLength
	if n < 0 {
		n = 1 << 20
	}
	r.Data, _ = io.ReadAll(io.LimitReader(rd.br, n))
	return false
}

func request(p Probe, more emit) (r Result) {
	rd, ok := open(p, &r)
	if !ok {
		return r
	}
	defer rd.Close()
	sent := time.Now()
	// What is refused may be refused before all of it is read; the answer counts, not the failure to send the rest.
	_, werr := rd.Write(p.Data)
	if p.Keep {
		var err error
		r.Data, err = io.ReadAll(rd.br)
		if err != nil {
			r.fail("read", err)
		}
		return r
	}
	method, _, _ := bytes.Cut(p.Data, []byte(" "))
	res, err := http.ReadResponse(rd.br, &http.Request{Method: string(method)})
	if err != nil {
		if werr != nil {
			err = werr
		}
		r.fail("read", err)
		return r
	}
	r.Status, r.Header = res.StatusCode, res.Header
	if err := r.body(p, res.Body, sent, more); err != nil {
		r.fail("body", err)
	}
	return r
}

// body reads the answer's body, or Read bytes of it and leaves, and notes when its pieces came. At most 4 MiB of it is handed on; Count is its whole length.
func (r *Result) body(p Probe, body io.Reader, sent time.Time, more emit) error {
	buf := make([]byte, 64<<10)
	for {
		n, err := body.Read(buf)
		if n > 0 && r.First == 0 {
			r.First = time.Since(sent)
		}
		r.Count += n
		if r.Count <= 4<<20 {
			r.Data = append(r.Data, buf[:n]...)
		}
		if p.Chunks && n > 0 {
			more(Result{Data: bytes.Clone(buf[:n])})
		}
		if err == io.EOF || p.Read > 0 && r.Count >= p.Read {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// hold keeps a flow busy until it breaks. What comes back is read and dropped; the first failure of either direction ends it.
func hold(p Probe, more emit) (r Result) {
	rd, ok := open(p, &r)
	if !ok {
		return r
	}
	defer rd.Close()
	rd.SetDeadline(time.Time{})
	until := time.Now().Add(p.Timeout)
	broken := make(chan error, 2)
	go func() {
		_, err := io.Copy(io.Discard, rd.br)
		if err == nil {
			err = io.EOF
		}
		broken <- err
	}()
	if p.Every == 0 {
		p.Every = time.Millisecond
	}
	more(Result{Local: rd.LocalAddr().String()})
	tick := time.NewTicker(p.Every)
	defer tick.Stop()
	for time.Now().Before(until) {
		select {
		case err := <-broken:
			r.fail("read", err)
			return r
		case <-tick.C:
			if _, err := rd.Write(p.Data); err != nil {
				r.fail("write", err)
				return r
			}
			r.Count++
		}
	}
	return r
}

// send leaves what the kernel has not sent yet to the kernel.
func send(p Probe, _ emit) (r Result) {
	rd, ok := open(p, &r)
	if !ok {
		return r
	}
	n, err := rd.Write(p.Data)
	if r.Count = n; err != nil {
		r.fail("write", err)
	}
	rd.Close()
	return r
}

func connectOnly(p Probe, _ emit) (r Result) {
	if rd, ok := open(p, &r); ok {
		rd.Close()
	}
	return r
}
