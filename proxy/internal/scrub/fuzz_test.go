package scrub

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"testing"
)

// fuzzSecrets are chosen to collide with escapes, with each other and with
// themselves.
var fuzzSecrets = [][]byte{
	[]byte("k3y/FAKE+a"), []byte(`%41s\c"r%`), []byte("u0041u005"), []byte("25252525"), []byte("5cu00255"), []byte(`\\u0025\`), []byte("FAKE+a25"), []byte("aaaaaaaaa"),
}

// longSecrets are those for which there is a sieve.
var longSecrets = [][]byte{[]byte("sk-FAKE+long/secret_0123456789-AbC"), []byte("aaaaaaaaaaaaaaaaaaaaaaaaaaaaa"), []byte(`u0041%25\x41u0041%25\x41u00`)}

// pieces are what the scripts below are made of besides letters and secrets.
var pieces = []string{
	"%", `\`, "%25", `\u00`, "u00", `\u0025`, "%5c", `\x`, "25", "5C", `\\`, `\/`, `\u005C`, "%2541", `\"`, "\n", " ", "=", "%%", "u", "x5c",
}

// expand makes a text of a script. A byte from 0xe0 on is a needle, with the forms
// of its characters taken from the bytes that follow; from 0xc0 on a piece.
func expand(script []byte, words []word) []byte {
	var b bytes.Buffer
	for i := 0; i < len(script) && b.Len() < 300; i++ {
		c := script[i]
		switch {
		case c >= 0xe0:
			word := words[int(c-0xe0)%len(words)].text
			if i+1 < len(script) && script[i+1] >= 0x80 { // cut it off, or drop one
				word = word[:int(script[i+1])%len(word)]
			}
			for k := range len(word) {
				i = writeForm(&b, word[k], script, i)
			}
		case c >= 0xc0:
			b.WriteString(pieces[int(c-0xc0)%len(pieces)])
		default:
			b.WriteByte(c)
		}
	}
	return b.Bytes()
}

// writeForm writes c in the form that the script says behind i, if it says one.
func writeForm(b *bytes.Buffer, c byte, script []byte, i int) int {
	formats := []string{"%%%02x", "%%%02X", `\u%04x`, `\x%02x`, "%%25%02x", `\\u%04x`, `\u0025%02X`, "%%5Cu%04x", `%%255cx%02x`}
	if i+1 < len(script) && script[i+1] < 32 {
		i++
		if n := int(script[i]); n < len(formats) {
			fmt.Fprintf(b, formats[n], c)
			return i
		}
	}
	b.WriteByte(c)
	return i
}

// cutter is a reader of data in pieces of the sizes in cuts, over and over.
type cutter struct {
	data, cuts []byte
	next       int
}

func (c *cutter) Read(p []byte) (int, error) {
	if len(c.data) == 0 {
		return 0, io.EOF
	}
	n := len(c.data)
	if len(c.cuts) > 0 {
		n = min(n, 1+int(c.cuts[c.next%len(c.cuts)]))
		c.next++
	}
	n = copy(p, c.data[:n])
	c.data = c.data[n:]
	return n, nil
}

// FuzzScrub: what comes out is what went in with every occurrence masked and
// nothing else changed, whole or in pieces of any size; and no needle is left in it.
func FuzzScrub(f *testing.F) {
	f.Add([]byte("nothing here"), []byte{3})
	for i := range byte(len(fuzzSecrets) * 5) {
		f.Add([]byte{'a', 0xe0 + i, 'b'}, []byte{i})
		f.Add([]byte{0xe0 + i, i % 9, 40, i % 7, i % 5, i % 3, 50, 0xc0 + i%20, 0xe0 + i}, []byte{0, i})
		f.Add([]byte{0xc0 + i%20, 0xe0 + i, 0x90 + i, 0xe0 + i, 4, 5, 6, 7, 8, 1, 2, 3}, []byte{})
	}
	short, long := NewSet(fuzzSecrets...), NewSet(longSecrets...)
	if short.sieve != nil || long.sieve == nil {
		f.Fatal("one of the two has a sieve")
	}
	f.Fuzz(func(t *testing.T, script, cuts []byte) {
		checkScrub(t, script, cuts, short, newOracle(fuzzSecrets...))
		checkScrub(t, script, cuts, long, newOracle(longSecrets...))
	})
}

func checkScrub(t *testing.T, script, cuts []byte, set *Set, oracle *oracle) {
	in := expand(script, oracle.words)
	before := string(in)
	want := string(oracle.masked(in))
	if got := string(set.Bytes(in)); got != want {
		t.Fatalf("%q:\ngot  %q\nwant %q", in, got, want)
	}
	if contains(set, in) != (want != before) || string(in) != before {
		t.Fatalf("%q: Contains says otherwise, or it changed", in)
	}
	if contains(set, in) && !set.ContainsFold(before) {
		t.Fatalf("%q: not found without case", in)
	}
	if again := oracle.masked([]byte(want)); string(again) != want {
		t.Fatalf("%q: left in %q", in, want)
	}
	for _, mode := range []Mode{Body, Events} {
		got, err := readAll(NewReader(&cutter{data: in, cuts: cuts}, set, mode))
		if got != want || err != nil {
			t.Fatalf("%q, mode %v, in pieces of %v: %v\ngot  %q\nwant %q", in, mode, cuts, err, got, want)
		}
	}
	// A stream as above has no more than the automaton's block, or its lanes.
	long := strings.Repeat("clean ", 100) + before + strings.Repeat(" clean", 20)
	if got, err := readAll(NewReader(&cutter{data: []byte(long), cuts: cuts}, set, Body)); err != nil || got != strings.Replace(long, before, want, 1) {
		t.Fatalf("%q in a long text: %v", in, err)
	}
}
