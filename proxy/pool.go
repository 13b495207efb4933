package proxy

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"net"
	"net/http"
	"sync"
	"time"
)

// maxIdle bounds the unused connections to one upstream under one rule.
const maxIdle = 128

// maxAnswerHead bounds an answer's head, the interim ones before it included.
const maxAnswerHead = 1 << 20

var errHeadTooLarge = errors.New("proxy: answer head too large")

// pool holds the upstream connections of generations with the same policy. A
// connection never outlives its policy: a reload that changes one retires the
// pool, and what comes back to it is closed.
type pool struct {
	srv *Server

	mu      sync.Mutex // guards the fields below
	idle    map[upstream][]*link
	h2      map[upstream]*h2Upstream
	count   int
	retired bool
}

func newPool(s *Server) *pool {
	return &pool{srv: s, idle: map[upstream][]*link{}, h2: map[upstream]*h2Upstream{}}
}

// link is an HTTP/1.1 connection to an upstream.
type link struct {
	to    upstream
	wire  *wire
	nc    net.Conn // wire, or TLS over it
	addr  string
	in    budget
	br    *bufio.Reader
	since time.Time // when it became idle
	used  bool      // has answered before
	quiet *probe    // asked by whoever took it from the pool, or holds the pool's mu
}

// budget bounds what is read while a head is awaited.
type budget struct {
	nc      net.Conn
	left    int // bytes; less than zero is no bound
	bounded bool
}

// Read reads from the connection.
func (b *budget) Read(p []byte) (int, error) {
	if !b.bounded {
		return b.nc.Read(p)
	}
	if b.left <= 0 {
		return 0, errHeadTooLarge
	}
	n, err := b.nc.Read(p[:min(len(p), b.left)])
	b.left -= n
	return n, err
}

// abort ends the connection from any goroutine.
func (l *link) abort() { l.wire.abort() }

func (l *link) close() { _ = l.nc.Close() }

// get takes the idle connection that was used last and is still quiet. What has
// something to say without being asked is closed: an end, an alert, an answer to
// nobody.
func (p *pool) get(up upstream) *link {
	for {
		l := p.pop(up)
		if l == nil || !l.quiet.readable() {
			return l
		}
		l.close()
	}
}

func (p *pool) pop(up upstream) *link {
	p.mu.Lock()
	defer p.mu.Unlock()
	links := p.idle[up]
	if len(links) == 0 {
		return nil
	}
	l := links[len(links)-1]
	links[len(links)-1] = nil
	p.idle[up] = links[:len(links)-1]
	p.count--
	return l
}

// put keeps a connection for the next request to the same upstream.
func (p *pool) put(l *link) {
	l.used, l.since = true, time.Now()
	p.mu.Lock()
	keep := !p.retired && len(p.idle[l.to]) < maxIdle
	if keep {
		p.idle[l.to] = append(p.idle[l.to], l)
		p.count++
	}
	p.mu.Unlock()
	if keep {
		p.srv.wakeSweep()
	} else {
		l.close()
	}
}

// reap closes what has been idle too long or has ended, and returns how many
// connections are left.
func (p *pool) reap(now time.Time) int {
	var old []*link
	p.mu.Lock()
	for up, links := range p.idle {
		kept := links[:0]
		for _, l := range links {
			if now.Sub(l.since) > p.srv.opt.Timeouts.UpstreamIdle || l.quiet.readable() {
				old = append(old, l)
			} else {
				kept = append(kept, l)
			}
		}
		clear(links[len(kept):])
		p.idle[up] = kept
		if len(kept) == 0 {
			delete(p.idle, up)
		}
	}
	p.count -= len(old)
	left := p.count + len(p.h2)
	p.mu.Unlock()
	for _, l := range old {
		l.close()
	}
	return left
}

func (p *pool) idleCount() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.count
}

// retire closes the idle connections, and the others as they come back.
func (p *pool) retire() {
	p.mu.Lock()
	idle, h2 := p.idle, p.h2
	p.idle, p.h2, p.count, p.retired = nil, nil, 0, true
	p.mu.Unlock()
	for _, links := range idle {
		for _, l := range links {
			l.abort()
		}
	}
	for _, h := range h2 {
		h.retire()
	}
}

// dial opens a new connection for HTTP/1.1.
func (p *pool) dial(ctx context.Context, up upstream) (*link, error) {
	l := &link{to: up}
	if up.tls {
		tc, w, err := p.srv.dialHTTP1(ctx, up)
		if err != nil {
			return nil, err
		}
		l.wire, l.nc = w, tc
	} else {
		w, err := p.srv.dialTCP(ctx, up)
		if err != nil {
			return nil, err
		}
		l.wire, l.nc = w, w
	}
	l.addr = l.wire.addr.String()
	l.in.nc = l.nc
	l.quiet = newProbe(l.wire.raw)
	l.br = bufio.NewReaderSize(&l.in, readerSize)
	return l, nil
}

// readAnswer reads the next answer's head, interim or final. begun tells whether
// any byte of it came.
func (l *link) readAnswer(req *http.Request) (resp *http.Response, begun bool, err error) {
	if _, err := l.br.Peek(1); err != nil {
		return nil, false, err
	}
	raw, _ := l.br.Peek(l.br.Buffered())
	raw = raw[:max(0, bytes.Index(raw, []byte("\r\n\r\n")))]
	resp, err = http.ReadResponse(l.br, req)
	if err != nil {
		return nil, true, err
	}
	pragmaAdded(resp.Header, raw)
	return resp, true, nil
}
