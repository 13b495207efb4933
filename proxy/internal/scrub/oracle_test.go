package scrub

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"slices"
	"strings"
)

// oracle finds occurrences by the definition, slowly: forwards from every offset,
// where the package goes backwards from a few ends, and with encodings made by the
// standard library from the secret in all surroundings.
type oracle struct{ words []word }

// word is a text that counts as an occurrence if same says so of each byte.
type word struct {
	text string
	same func(a, b byte) bool
}

func newOracle(secrets ...[]byte) *oracle {
	o := &oracle{}
	for _, s := range secrets {
		if len(s) < MinLength {
			continue
		}
		o.words = append(o.words,
			word{string(s), func(a, b byte) bool { return a == b }},
			word{hex.EncodeToString(s), func(a, b byte) bool { return a == b || 'A' <= a && a <= 'F' && a+32 == b }})
		for before := range 3 {
			o.words = append(o.words, word{commonBase64(s, before), sameBase64})
		}
	}
	return o
}

func sameBase64(a, b byte) bool {
	return a == b || a == '+' && b == '-' || a == '/' && b == '_'
}

// commonBase64 is what the encodings of s have in common between all bytes that can
// stand around it.
func commonBase64(s []byte, before int) string {
	encode := func(around byte) string {
		b := bytes.Repeat([]byte{around}, before)
		b = append(append(b, s...), around, around, around)
		return base64.RawURLEncoding.EncodeToString(b)
	}
	zeros, ones := encode(0), encode(0xff)
	// A character in which a bit of the surroundings is differs between the two.
	from := 0
	for before > 0 && (zeros[from] != ones[from] || from < before) {
		from++
	}
	to := from
	for to < len(zeros) && zeros[to] == ones[to] {
		to++
	}
	return zeros[from:to]
}

// masked is in with every byte of every occurrence replaced.
func (o *oracle) masked(in []byte) []byte {
	out := bytes.Clone(in)
	chars := make([]map[int]byte, len(in)+1)
	for q := range chars {
		chars[q] = readings(in, q)
	}
	for from := range in {
		for _, w := range o.words {
			if to := w.longest(chars, from); to > from {
				mask(out[from:to])
			}
		}
	}
	return out
}

// longest is the end of the longest occurrence of w that begins at from, or 0.
func (w *word) longest(chars []map[int]byte, from int) int {
	ends := []int{from}
	for i := range len(w.text) {
		var next []int
		for _, q := range ends {
			for end, c := range chars[q] {
				if w.same(c, w.text[i]) && !slices.Contains(next, end) {
					next = append(next, end)
				}
			}
		}
		if ends = next; len(ends) == 0 {
			return 0
		}
	}
	return slices.Max(ends)
}

// readings are the ends of the characters that may begin at q, with their bytes. No
// two characters end at the same place with different bytes.
func readings(in []byte, q int) map[int]byte {
	m := map[int]byte{}
	if q < len(in) {
		m[q+1] = in[q]
	}
	for end := range openings(in, q, '%', maxEscaped) {
		if b, err := hex.DecodeString(slice(in, end, 2)); err == nil && len(b) == 1 {
			m[end+2] = b[0]
		}
	}
	for end := range openings(in, q, '\\', maxEscaped) {
		for _, form := range []string{"x", "u00"} {
			if slice(in, end, len(form)) == form {
				if b, err := hex.DecodeString(slice(in, end+len(form), 2)); err == nil && len(b) == 1 {
					m[end+len(form)+2] = b[0]
				}
			}
		}
		if c := slice(in, end, 1); c != "" && strings.Contains(`"\/'bfnrt`, c) {
			m[end+1] = map[string]byte{`"`: '"', `\`: '\\', `/`: '/', `'`: '\'', "b": 8, "f": 12, "n": 10, "r": 13, "t": 9}[c]
		}
	}
	return m
}

// openings are the ends of what stands for c, a percent sign or a backslash, at q.
func openings(in []byte, q int, c byte, depth int) map[int]bool {
	ends := map[int]bool{}
	if depth == 0 || q >= len(in) || in[q] != '%' && in[q] != '\\' {
		return ends
	}
	if in[q] == c {
		ends[q+1] = true
	}
	code := map[byte]string{'%': "25", '\\': "5c"}[c]
	follow := func(heads map[int]bool, tail string) {
		for end := range heads {
			if strings.EqualFold(slice(in, end, len(tail)), tail) && slice(in, end, 1)[0] == tail[0] {
				ends[end+len(tail)] = true
			}
		}
	}
	backslashes := openings(in, q, '\\', depth-1)
	follow(openings(in, q, '%', depth-1), code)
	follow(backslashes, "x"+code)
	follow(backslashes, "u00"+code)
	if c == '\\' {
		follow(backslashes, `\`)
	}
	return ends
}

// slice is the n bytes of in from at on, or less at its end.
func slice(in []byte, at, n int) string {
	return string(in[min(at, len(in)):min(at+n, len(in))])
}
