package scrub

import "io"

// Mode says at which bytes a Reader lets go of what it holds back.
type Mode int

const (
	// Body is for all bodies but event streams. A blank, a control byte and a byte
	// outside ASCII, as far as no secret contains it, end what is held back, so
	// that a slow text is late by a word, not by a screen.
	Body Mode = iota
	// Events is for text/event-stream. A line end ends what is held back, also
	// for a secret that contains one; so no event is held past its end.
	Events
)

const (
	firstBuffer = 4 << 10  // bytes beside those held; enough for most events
	largeBuffer = 64 << 10 // what it grows to while reads fill it
)

// Reader masks the secrets of a Set in a stream, byte for byte. The Set may be
// followed by another while the stream lasts: what has not been emitted is searched
// anew then.
//
// It emits everything up to the last byte of the Mode's kind, and everything but
// the last 12 bytes for each byte of the longest secret (rounded up to whole KiB),
// whichever is more; the rest waits for more to come, or for the end. When that is
// depends on the stream's lengths and on where those bytes are, on nothing else. At
// io.EOF all is emitted; at any other error what is held back is dropped, since a
// secret could begin in it.
type Reader struct {
	r    io.Reader
	now  func() *Set // nil: it stays set
	set  *Set
	mode Mode
	find *finder   // nil: nothing to look for
	ends [256]bool // bytes at which is let go

	buf   []byte
	held  int // buf[held:] has not been emitted
	ready []byte
	err   error
	grow  bool // the last read filled the buffer
}

// NewReader returns a Reader that reads from r.
func NewReader(r io.Reader, s *Set, mode Mode) *Reader {
	sr := &Reader{r: r, mode: mode}
	if s.empty() {
		return sr
	}
	sr.use(s)
	return sr
}

// Follow has the Reader ask for its Set after each read: secrets may come while a
// stream lasts. A Reader that began without any, or is given none, keeps what it has.
func (r *Reader) Follow(now func() *Set) { r.now = now }

// use makes s the Set, also for what is held. What was found there stays found, and
// no occurrence began before it: it would have ended there.
func (r *Reader) use(s *Set) {
	r.set = s
	for c := range r.ends {
		if r.mode == Events {
			r.ends[c] = c == '\n' || c == '\r'
		} else {
			r.ends[c] = (c <= ' ' || c >= 0x7f) && !s.alphabet[c]
		}
	}
	old := r.find
	if r.find = newFinder(s, &r.ends); old != nil {
		r.find.spans = old.spans
	}
}

// Read implements io.Reader. It returns what can be emitted as soon as it can.
func (r *Reader) Read(p []byte) (int, error) {
	if r.find == nil {
		return r.r.Read(p)
	}
	if len(p) == 0 {
		return 0, nil
	}
	if err := r.next(); err != nil {
		return 0, err
	}
	n := copy(p, r.ready)
	r.ready = r.ready[n:]
	return n, nil
}

// WriteTo implements io.WriterTo: one Write for each piece that can be emitted.
func (r *Reader) WriteTo(w io.Writer) (int64, error) {
	if r.find == nil {
		return io.Copy(w, r.r)
	}
	for n := int64(0); ; {
		if err := r.next(); err == io.EOF {
			return n, nil
		} else if err != nil {
			return n, err
		}
		m, err := w.Write(r.ready)
		n += int64(m)
		r.ready = r.ready[m:]
		if err != nil {
			return n, err
		}
	}
}

// next sees to it that r.ready, what is to be emitted, is not empty.
func (r *Reader) next() error {
	for empty := 0; len(r.ready) == 0; {
		if r.err != nil {
			return r.err
		}
		n := r.fill()
		if r.emit(n); n > 0 {
			empty = 0
		} else if empty++; empty == 100 && r.err == nil {
			r.err = io.ErrNoProgress
		}
	}
	return nil
}

// fill reads once and returns how much.
func (r *Reader) fill() int {
	most := 2*r.set.hold + firstBuffer // of which at most hold is held
	if r.grow {
		most = 2*r.set.hold + largeBuffer
	}
	if cap(r.buf) < most {
		r.buf = append(make([]byte, 0, most), r.buf[r.held:]...)
		r.held = 0
	} else if r.held == len(r.buf) || cap(r.buf)-len(r.buf) < firstBuffer {
		r.buf = append(r.buf[:0], r.buf[r.held:]...)
		r.held = 0
	}
	n, err := r.r.Read(r.buf[len(r.buf):cap(r.buf)])
	r.buf = r.buf[:len(r.buf)+n]
	r.grow = r.grow || len(r.buf) == cap(r.buf)
	r.err = err
	return n
}

// emit searches what is held, of which the last n bytes are new, and makes ready
// what may go.
func (r *Reader) emit(n int) {
	text := r.buf[r.held:]
	if r.now != nil {
		if s := r.now(); s != r.set && !s.empty() {
			r.use(s)
			n = len(text) // what ends a hold may have changed with the alphabet
		}
	}
	r.find.find(text)
	free := len(text)
	if r.err != io.EOF {
		free = max(0, len(text)-r.set.hold)
		// Old bytes need no second look: an end among them would have freed them.
		for i := len(text); i > max(free, len(text)-n); i-- {
			if r.ends[text[i-1]] {
				free = i
			}
		}
	}
	r.find.mask(free)
	r.find.drop(free)
	r.ready = text[:free]
	r.held += free
}
