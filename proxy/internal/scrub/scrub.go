// Package scrub masks secrets in what an upstream sends to an agent. A Set is made
// once from all current and retired credentials:
//
//	set := scrub.NewSet(current, retired, rendered) // rendered: "Basic ..." and the like
//	body := scrub.NewReader(resp.Body, set, scrub.Events)
//	set.Header(resp.Header)                          // values masked, names that leak dropped
//	line = set.String(line)
//
// Found is a secret as it is; in base64, standard or URL alphabet, at each of the
// three alignments, padded or not; in hex, either case; and any of these with any
// of their bytes written as %XX, \u00XX, \xXX or a JSON escape such as \/, mixed at
// will, the percent signs and backslashes of the escapes themselves escaped again up
// to four times. Each byte of what is found becomes an asterisk, so lengths hold.
// In base64 the characters that the secret shares with its neighbours stay.
//
// Secrets below MinLength bytes are left out: they occur by chance, and masking
// them would let an agent guess them. Let the loader refuse such credentials.
//
// # Time
//
// An agent that makes an upstream echo its guesses must not learn from the clock
// how good they were. So what a Reader holds back is a function of lengths and of
// line ends, never of partial matches; and how long the search takes depends on
// where escapes begin in the text, and on 16 characters in a row being a secret's,
// which nobody will guess: fewer of them change nothing. Stretches that a keyed hash
// shows to be free of either are passed over at eight bytes a step, the others go
// through an automaton that does the same work for every byte. Some twenty secrets
// take no more time than one; each further twenty take as much again.
//
// What this does not do: it does not undo compression or encryption, UTF-16,
// reversal, ROT13, base64 in lines, + for a blank, or encodings of encodings other than those
// above; it does not join what an upstream splits over several SSE events, lines of
// an event, header fields or responses.
package scrub

import (
	"fmt"
	"io"
)

// MinLength is the length in bytes below which a secret is not looked for.
const MinLength = 8

// Set is an immutable set of secrets. A nil Set has none.
type Set struct {
	needles  []needle
	alphabet [256]bool  // bytes of any needle, in any variant of it
	sieve    *sieve     // says where the machines have to look; nil: everywhere
	machines []*machine // each searches a part of the needles; the first also finds escapes
	byLast   [256][]int // needles by their last byte, folded
	hold     int        // bytes that the longest occurrence may have; 0 without needles
}

// NewSet returns the Set of the given secrets. Their order and repetitions do not
// matter; "Bearer", "Basic" or "Token" and a blank in front of one do not belong to
// it. The secrets are copied.
func NewSet(secrets ...[]byte) *Set {
	s := &Set{}
	longest := 0
	for _, secret := range distinct(secrets) {
		longest = max(longest, len(secret))
		s.needles = append(s.needles, encodings(secret)...)
	}
	if longest == 0 {
		return s
	}
	// Twelve bytes for each of the secret's: hex with every digit as \u00XX, or the
	// plain bytes in doubly escaped forms. In steps, since the length is nobody's business.
	s.hold = (12*longest + 1023) &^ 1023
	for i, n := range s.needles {
		n.variants(&s.alphabet)
		last := caseless[n.text[len(n.text)-1]]
		s.byLast[last] = append(s.byLast[last], i)
	}
	s.machines = newMachines(s.needles, &s.alphabet)
	s.sieve = newSieve(s.needles, &s.alphabet)
	return s
}

// empty reports whether there is nothing to look for.
func (s *Set) empty() bool { return s == nil || len(s.needles) == 0 }

// Bytes returns b itself if no secret is in it, else a copy with all of them
// masked. b is not changed.
func (s *Set) Bytes(b []byte) []byte {
	spans := s.find(b, false)
	if len(spans) == 0 {
		return b
	}
	masked := append([]byte(nil), b...)
	for _, sp := range spans {
		mask(masked[sp.from:sp.to])
	}
	return masked
}

// String is Bytes for strings.
func (s *Set) String(in string) string {
	if s.empty() || len(in) < MinLength {
		return in
	}
	b := []byte(in)
	spans := s.find(b, false)
	if len(spans) == 0 {
		return in
	}
	for _, sp := range spans {
		mask(b[sp.from:sp.to])
	}
	return string(b)
}

// ContainsFold reports whether a secret is in text when the case of letters does
// not count, as in the name of a header field, whose case net/http changes.
func (s *Set) ContainsFold(text string) bool {
	return len(text) >= MinLength && len(s.find([]byte(text), true)) > 0
}

// Header masks the secrets in the values of h, an http.Header or trailer, and
// deletes fields whose name contains one.
func (s *Set) Header(h map[string][]string) {
	if s.empty() {
		return
	}
	for name, values := range h {
		if s.ContainsFold(name) {
			delete(h, name)
			continue
		}
		for i, v := range values {
			values[i] = s.String(v)
		}
	}
}

func (s *Set) find(b []byte, fold bool) []span {
	if s.empty() || len(b) < MinLength {
		return nil
	}
	f := newFinder(s, nil)
	f.fold = fold
	f.find(b)
	return f.spans
}

// Format keeps the secrets out of every kind of formatted output.
func (s *Set) Format(f fmt.State, _ rune) { io.WriteString(f, "scrub.Set") }

func mask(b []byte) {
	for i := range b {
		b[i] = '*'
	}
}
