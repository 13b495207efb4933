package scrub

import (
	"bytes"
	"encoding/binary"
	"math/bits"
	"math/rand/v2"
)

// sieve tells of a stretch of text, at eight bytes a step, that no needle ends in it and no escape begins, so that the
// machines need not go over it byte for byte.
//
// It knows every 16 bytes in a row of each needle's last 23, and looks at every 16 that begin at a multiple of 8: one of
// those lies within any 23. They are compared by a hash whose key is random, so that what passes tells as little as with
// the machines: 16 characters have to be guessed at once.
type sieve struct {
	keys  [2]uint64
	set   [1 << 16 / 64]uint64
	opens [256]bool // behind a backslash begins an escape of a needle's byte
}

const (
	window   = anchor
	step     = 8
	sieved   = window + step - 1 // characters of a needle's end
	maxSpell = 1 << 10           // spellings of a window, which has two for each - and _

	// stretch is how much is looked at in one go.
	stretch = 1 << 10
	// behind is how far before a stretch an escape may begin that is the last among the last characters of an occurrence
	// in it: what follows are characters that stand as they are.
	behind = maxEscape + sieved
)

// newSieve returns nil where the needles do not suit: one is too short, or has too many spellings.
func newSieve(needles []needle, inAlphabet *[256]bool) *sieve {
	s := &sieve{keys: [2]uint64{rand.Uint64(), rand.Uint64()}}
	for _, e := range escapes(inAlphabet) {
		if e[0] == '\\' {
			s.opens[e[1]] = true
		}
	}
	for _, n := range needles {
		if len(n.loose) < sieved {
			return nil
		}
		tail := n.loose[len(n.loose)-sieved:]
		for at := range step {
			w := tail[at : at+window]
			if 1<<(bytes.Count(w, []byte("-"))+bytes.Count(w, []byte("_"))) > maxSpell {
				return nil
			}
			s.add(bytes.Clone(w), 0)
		}
	}
	return s
}

// spelled is the other byte of each pair of which caseless has made one.
var spelled = map[byte]byte{'-': '+', '_': '/'}

// add adds w with all spellings of its bytes from i on. It leaves w as it was.
func (s *sieve) add(w []byte, i int) {
	if i == len(w) {
		one, other := s.hash(lowered(w), lowered(w[8:]))
		s.set[one>>6] |= 1 << (one & 63)
		s.set[other>>6] |= 1 << (other & 63)
		return
	}
	s.add(w, i+1)
	if c, ok := spelled[w[i]]; ok {
		was := w[i]
		w[i] = c
		s.add(w, i+1)
		w[i] = was
	}
}

func (s *sieve) has(h uint16) bool { return s.set[h>>6]&(1<<(h&63)) != 0 }

// lowered is eight bytes with upper-case letters as lower-case ones, and some others as others.
func lowered(b []byte) uint64 { return binary.LittleEndian.Uint64(b) | 0x2020202020202020 }

// hash is two at once: with one, a kilobyte of clean text would pass at every tenth time.
func (s *sieve) hash(a, b uint64) (one, other uint16) {
	hi, lo := bits.Mul64(a^s.keys[0], b^s.keys[1])
	h := hi ^ lo
	return uint16(h >> 48), uint16(h >> 32)
}

// escape reports whether one of escapes begins in text[from:to].
func (s *sieve) escape(text []byte, from, to int) bool {
	for _, first := range []byte(`\%`) {
		for q := from; ; q++ {
			n := bytes.IndexByte(text[q:to], first)
			if n < 0 {
				break
			}
			if q += n; s.begins(text[q:]) {
				return true
			}
		}
	}
	return false
}

// begins reports whether an escape begins rest. Where too little of it is there, it
// is asked again when more is.
func (s *sieve) begins(rest []byte) bool {
	if len(rest) < 2 {
		return false
	}
	switch second := caseless[rest[1]]; {
	case rest[0] == '%':
		return '0' <= second && second <= '9' || 'a' <= second && second <= 'f'
	case second == 'u':
		return len(rest) >= 4 && rest[2] == '0' && rest[3] == '0'
	default:
		return s.opens[second]
	}
}

// passes reports whether text[from:to] has to be searched. What was before text cannot be part of an occurrence.
func (s *sieve) passes(text []byte, from, to int) bool {
	if s == nil || s.escape(text, max(0, from-behind), to) {
		return true
	}
	at := from - window
	if at < 0 {
		at = from % step
	}
	if to-at < window {
		return false
	}
	rest := text[at:to]
	a := lowered(rest)
	for rest = rest[8:]; len(rest) >= 8; rest = rest[8:] {
		b := lowered(rest)
		if one, other := s.hash(a, b); s.has(one) && s.has(other) {
			return true
		}
		a = b
	}
	return false
}
