package main

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"exitgate/integration/rig"
)

// Names and ports of the upstream. All are on one address.
const (
	upstreamName = "api.example.com"
	h2Name       = "h2.example.com"
	portHTTPS    = 443
	portHTTP     = 80
	portBytes    = 9000
	portH2       = 8443
	portH1       = 8445 // the same server as portH2's
	portOpen     = 8444 // HTTPS that wants no credential
	credential   = "sk-FAKE-bench-0123456789abcdef"
	listener     = "127.0.0.1:8080"
)

// upstream is the far end of every measurement: HTTP/1.1 by hand, over TLS and plain, so that it costs little beside what is measured;
// both versions by net/http; and a port for bytes without a protocol. It refuses requests without the credential.
type upstream struct {
	addr   netip.Addr
	closes []io.Closer
}

func newUpstream(w *rig.World) (*upstream, error) {
	v4, _, err := w.Addresses()
	if err != nil {
		return nil, err
	}
	u := &upstream{addr: v4}
	for _, name := range []string{upstreamName, h2Name} {
		w.DNS.Set(name, time.Hour, v4)
	}
	until := time.Now().Add(12 * time.Hour)
	conf := &tls.Config{MinVersion: tls.VersionTLS13, DynamicRecordSizingDisabled: true}
	conf.GetCertificate = func(h *tls.ClientHelloInfo) (*tls.Certificate, error) {
		return w.CA.Issue(h.ServerName, until)
	}
	h1 := conf.Clone()
	h1.NextProtos = []string{"http/1.1"}
	secret := "Bearer " + credential
	for port, serve := range map[uint16]func(net.Conn){
		portHTTPS: func(c net.Conn) { serveHTTP(tls.Server(c, h1), secret) },
		portOpen:  func(c net.Conn) { serveHTTP(tls.Server(c, h1), "") },
		portHTTP:  func(c net.Conn) { serveHTTP(c, "") },
		portBytes: serveBytes,
	} {
		if err := u.listen(netip.AddrPortFrom(u.addr, port), serve); err != nil {
			return nil, err
		}
	}
	var h1Only, h2Only http.Protocols
	h1Only.SetHTTP1(true)
	h2Only.SetHTTP2(true)
	return u, errors.Join(u.listenLibrary(portH1, conf, &h1Only, secret), u.listenLibrary(portH2, conf, &h2Only, secret))
}

func (u *upstream) listen(on netip.AddrPort, serve func(net.Conn)) error {
	l, err := net.ListenTCP("tcp4", net.TCPAddrFromAddrPort(on))
	if err != nil {
		return err
	}
	u.closes = append(u.closes, l)
	go func() {
		for {
			c, err := l.Accept()
			switch {
			case errors.Is(err, net.ErrClosed):
				return
			case err != nil: // no descriptor is left: who waits goes on waiting, until one is
				time.Sleep(10 * time.Millisecond)
				continue
			}
			go func() {
				defer c.Close()
				serve(c)
			}()
		}
	}()
	return nil
}

// listenLibrary serves one version by net/http.
func (u *upstream) listenLibrary(port uint16, conf *tls.Config, only *http.Protocols, secret string) error {
	l, err := net.ListenTCP("tcp4", net.TCPAddrFromAddrPort(netip.AddrPortFrom(u.addr, port)))
	if err != nil {
		return err
	}
	quiet := log.New(io.Discard, "", 0) // of the connections that are reset when a run ends
	srv := &http.Server{ErrorLog: quiet, TLSConfig: conf.Clone(), Protocols: only, HTTP2: &http.HTTP2Config{MaxConcurrentStreams: 2000}, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != secret {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		if strings.HasSuffix(r.URL.Path, "/small") {
			w.Header().Set("Content-Type", "application/json")
			_, _ = w.Write(small[len(small)-1024:])
			return
		}
		if n := r.URL.Query().Get("n"); strings.HasPrefix(r.URL.Path, "/bytes") {
			size, _ := strconv.ParseInt(n, 10, 64)
			w.Header().Set("Content-Length", n)
			writeBytes(w, size)
			return
		}
		w.Header().Set("Content-Type", "text/event-stream")
		_ = sendEvents(r.URL.RawQuery, func(event []byte) error {
			if _, err := w.Write(event); err != nil {
				return err
			}
			return http.NewResponseController(w).Flush()
		})
	})}
	u.closes = append(u.closes, srv)
	go srv.ServeTLS(l, "", "")
	return nil
}

func (u *upstream) close() {
	for _, c := range u.closes {
		c.Close()
	}
}

// request is as much of one as the upstream looks at.
type request struct {
	target, authorization string
	length                int64 // -1: in chunks
}

func readRequest(br *bufio.Reader) (r request, err error) {
	line, err := br.ReadSlice('\n')
	if err != nil {
		return r, err
	}
	if words := bytes.Fields(line); len(words) == 3 {
		r.target = string(words[1])
	}
	for {
		line, err := br.ReadSlice('\n')
		if err != nil || len(line) <= 2 {
			return r, err
		}
		name, value, _ := bytes.Cut(line, []byte(":"))
		switch value = bytes.TrimSpace(value); {
		case bytes.EqualFold(name, []byte("content-length")):
			r.length, err = strconv.ParseInt(string(value), 10, 64)
		case bytes.EqualFold(name, []byte("transfer-encoding")):
			r.length = -1
		case bytes.EqualFold(name, []byte("authorization")):
			r.authorization = string(value)
		}
		if err != nil {
			return r, err
		}
	}
}

const answerFields = "Date: Mon, 01 Jan 2024 00:00:00 GMT\r\nContent-Type: application/json\r\nRequest-Id: req_0123456789abcdef\r\nCache-Control: no-store\r\n"

var small = []byte("HTTP/1.1 200 OK\r\n" + answerFields + "Content-Length: 1024\r\n\r\n" + `{"text":"` + strings.Repeat("x", 1024-11) + `"}`)

func serveHTTP(c net.Conn, secret string) {
	br := bufio.NewReaderSize(c, 4<<10)
	for {
		r, err := readRequest(br)
		if err != nil {
			return
		}
		if r.authorization != secret {
			io.WriteString(c, "HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
			return
		}
		if err := discardBody(c, br, r.length); err != nil {
			return
		}
		path, query, _ := strings.Cut(r.target, "?")
		switch {
		case strings.HasSuffix(path, "/events"):
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
			_ = sendEvents(query, chunked(c))
			return
		case strings.HasSuffix(path, "/bytes"):
			n, _ := strconv.ParseInt(strings.TrimPrefix(query, "n="), 10, 64)
			fmt.Fprintf(c, "HTTP/1.1 200 OK\r\n%sContent-Length: %d\r\n\r\n", answerFields, n)
			err = writeBytes(c, n)
		default:
			_, err = c.Write(small)
		}
		if err != nil {
			return
		}
	}
}

// chunked writes each event as a chunk, by one call.
func chunked(c net.Conn) func([]byte) error {
	var out []byte
	return func(event []byte) error {
		out = fmt.Appendf(out[:0], "%x\r\n%s\r\n", len(event), event)
		_, err := c.Write(out)
		return err
	}
}

func discardBody(c net.Conn, br *bufio.Reader, length int64) error {
	if length < 0 {
		for {
			line, err := br.ReadSlice('\n')
			if err != nil {
				return err
			}
			n, err := strconv.ParseInt(string(bytes.TrimSpace(line)), 16, 64)
			if err != nil {
				return err
			}
			if _, err := br.Discard(int(n) + 2); err != nil || n == 0 {
				return err
			}
		}
	}
	n, err := br.Discard(int(min(length, int64(br.Buffered()))))
	if err != nil || int64(n) == length {
		return err
	}
	_, err = io.CopyBuffer(io.Discard, struct{ io.Reader }{io.LimitReader(c, length-int64(n))}, make([]byte, 64<<10))
	return err
}

var zeros = bytes.Repeat([]byte("0123456789abcde\n"), 64<<10/16)

func writeBytes(w io.Writer, n int64) error {
	for n > 0 {
		m, err := w.Write(zeros[:min(n, int64(len(zeros)))])
		if err != nil {
			return err
		}
		n -= int64(m)
	}
	return nil
}

// sendEvents writes an event of 220 bytes each ms milliseconds, n/of of that after the full one: streams of many connections are spread
// evenly, whenever they were opened.
func sendEvents(query string, write func([]byte) error) error {
	var n, of, ms int64
	if _, err := fmt.Sscanf(query, "ms=%d&n=%d&of=%d", &ms, &n, &of); err != nil || ms*of == 0 {
		return fmt.Errorf("query %q: %v", query, err)
	}
	every := time.Duration(ms) * time.Millisecond
	phase := every * time.Duration(n%of) / time.Duration(of)
	event := []byte("event: content_block_delta\ndata: {\"text\":\"" + strings.Repeat("x", 149) + "\",\"sent\":0000000000000000000}\n\n")
	stamp := event[len(event)-len("0000000000000000000}\n\n"):]
	for next := time.Now().Truncate(every).Add(phase); ; next = next.Add(every) {
		time.Sleep(time.Until(next))
		strconv.AppendInt(stamp[:0], time.Now().UnixNano(), 10) // 19 digits until the year 2286
		if err := write(event); err != nil {
			return err
		}
	}
}

// serveBytes obeys one letter at a time: e echoes it, dN\n sends N bytes, uN\n takes N bytes and sends one.
func serveBytes(c net.Conn) {
	br := bufio.NewReaderSize(c, 4<<10)
	for {
		op, err := br.ReadByte()
		if err != nil {
			return
		}
		if op == 'e' {
			if _, err := c.Write([]byte("e")); err != nil {
				return
			}
			continue
		}
		line, err := br.ReadString('\n')
		if err != nil {
			return
		}
		n, err := strconv.ParseInt(strings.TrimSpace(line), 10, 64)
		if err != nil {
			return
		}
		if op == 'd' {
			err = writeBytes(c, n)
		} else if err = discardBody(c, br, n); err == nil {
			_, err = c.Write([]byte("."))
		}
		if err != nil {
			return
		}
	}
}
