package head

import (
	"bufio"
	"bytes"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
)

// Body is a request body of known length, or in chunks. A chunk line is one to
// eight hex digits and CRLF, nothing else; a trailer is field lines as strict as
// those of the head, each announced in the Trailer field, and ends up in the
// request's Trailer before Read returns io.EOF.
//
// Read returns what has arrived rather than wait for more. A body that ends too
// early is io.ErrUnexpectedEOF, malformed chunks are an *Error, and either stays.
type Body struct {
	br  *bufio.Reader
	req *http.Request
	lim Limits

	closed atomic.Bool

	mu      sync.Mutex // guards the following, and br until err is set
	chunked bool
	left    int64 // bytes of the body, or of the chunk, not yet read
	inChunk bool  // a chunk's data, or the CRLF after it, comes next
	err     error
}

// Close makes further reads fail. It neither reads what is left nor waits for a
// Read that is under way in another goroutine; see Finish.
func (b *Body) Close() error {
	b.closed.Store(true)
	return nil
}

// Read implements io.Reader.
func (b *Body) Read(p []byte) (int, error) {
	if b.closed.Load() {
		return 0, http.ErrBodyReadAfterClose
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.readLocked(p)
}

func (b *Body) readLocked(p []byte) (int, error) {
	if b.err != nil {
		return 0, b.err
	}
	if len(p) == 0 {
		return 0, nil
	}
	var n int
	if b.chunked {
		n, b.err = b.readChunks(p)
	} else {
		n, b.err = b.readData(p)
		if b.left == 0 && b.err == nil {
			b.err = io.EOF
		}
	}
	return n, b.err
}

// readData reads from the b.left bytes that come as they are.
func (b *Body) readData(p []byte) (int, error) {
	n, err := b.br.Read(p[:min(int64(len(p)), b.left)])
	b.left -= int64(n)
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// readChunks fills p with the data of as many chunks as are there, and waits only
// while it has none. io.EOF comes after the trailer.
func (b *Body) readChunks(p []byte) (n int, err error) {
	for n < len(p) && err == nil {
		if n > 0 && !b.ready() {
			break
		}
		if b.left == 0 {
			err = b.nextChunk()
			continue
		}
		var m int
		m, err = b.readData(p[n:])
		n += m
	}
	return n, err
}

// ready reports whether the next step finds its bytes in the buffer.
func (b *Body) ready() bool {
	if b.left > 0 {
		return b.br.Buffered() > 0
	}
	buf, _ := b.br.Peek(b.br.Buffered())
	if len(buf) >= 2 {
		buf = buf[2:] // the CRLF after the data that was read just now
	}
	// Behind the last chunk comes the trailer: have its end there, or wait.
	return bytes.IndexByte(buf, '\n') >= 0 && (buf[0] != '0' || bytes.Contains(buf, []byte("\r\n\r\n")))
}

// nextChunk reads the CRLF after a chunk and the next chunk line; after the last
// one it reads the trailer and returns io.EOF.
func (b *Body) nextChunk() error {
	if b.inChunk {
		line, err := b.line()
		if err != nil {
			return err
		}
		if len(line) != 0 {
			return bad("chunk longer than its size says")
		}
	}
	line, err := b.line()
	if err != nil {
		return err
	}
	if len(line) == 0 || len(line) > 8 || !all(line, isHex) {
		return bad("chunk line is not one to eight hex digits")
	}
	for _, c := range line {
		b.left = b.left<<4 | int64(unhex(c))
	}
	b.inChunk = b.left > 0
	if b.left == 0 {
		return b.readTrailer()
	}
	return nil
}

// line reads up to CRLF and returns what is before it, valid until the next read.
func (b *Body) line() ([]byte, error) {
	line, err := b.br.ReadSlice('\n')
	switch {
	case err == bufio.ErrBufferFull:
		return nil, bad("line in a chunked body too long")
	case err == io.EOF:
		return nil, io.ErrUnexpectedEOF
	case err != nil:
		return nil, err
	case len(line) < 2 || line[len(line)-2] != '\r':
		return nil, bad("line in a chunked body does not end in CRLF")
	}
	return line[:len(line)-2], nil
}

// readTrailer reads field lines up to the empty one and returns io.EOF.
func (b *Body) readTrailer() error {
	for fields, size := 0, 0; ; fields++ {
		line, err := b.line()
		if err != nil {
			return err
		}
		if len(line) == 0 {
			return io.EOF
		}
		size += len(line) + 2
		if len(line) > b.lim.Line || size > b.lim.Header || fields == b.lim.Fields {
			return &Error{http.StatusRequestHeaderFieldsTooLarge, "trailer too large"}
		}
		name, value, refused := fieldLine(line)
		if refused != nil {
			return refused
		}
		key := http.CanonicalHeaderKey(string(name))
		if _, announced := b.req.Trailer[key]; !announced {
			return bad("trailer field that was not announced")
		}
		b.req.Trailer[key] = append(b.req.Trailer[key], string(value))
	}
}

// Finish reads at most max bytes of what is left of the request's body, drops
// them, and reports whether the body is now behind: if so, the next thing on the
// connection is the next request; if not, close the connection. It may be called
// after Close, but not while the body may still be read.
func Finish(req *http.Request, max int64) bool {
	b, ok := req.Body.(*Body)
	if !ok {
		return req.Body == nil || req.Body == http.NoBody
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.left > max {
		return false
	}
	buf := make([]byte, min(max, 8<<10)+1)
	for b.err == nil && max >= 0 {
		n, _ := b.readLocked(buf[:min(int64(len(buf)), max+1)])
		max -= int64(n)
	}
	return b.err == io.EOF
}
