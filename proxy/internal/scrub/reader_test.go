package scrub

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"
)

func readAll(r io.Reader) (string, error) {
	b, err := io.ReadAll(r)
	return string(b), err
}

// chunks is a reader that returns one of its elements a time.
type chunks [][]byte

func (c *chunks) Read(p []byte) (int, error) {
	if len(*c) == 0 {
		return 0, io.EOF
	}
	n := copy(p, (*c)[0])
	if (*c)[0] = (*c)[0][n:]; len((*c)[0]) == 0 {
		*c = (*c)[1:]
	}
	return n, nil
}

// split cuts in at the given offsets.
func split(in string, at ...int) *chunks {
	var c chunks
	last := 0
	for _, n := range append(at, len(in)) {
		if n > last {
			c = append(c, []byte(in[last:n]))
			last = n
		}
	}
	return &c
}

// A secret is found wherever the stream is cut in two, and byte by byte.
func TestReaderSplits(t *testing.T) {
	set := NewSet([]byte(fakeKey))
	for _, mode := range []Mode{Body, Events} {
		for name, form := range forms(fakeKey) {
			in := "data: {\"text\":\"" + form + "\"}\n\n"
			want := set.String(in)
			if want == in {
				t.Fatalf("%s: not found at all", name)
			}
			for at := 1; at < len(in); at += 1 + rand.Intn(8) {
				if got, err := readAll(NewReader(split(in, at), set, mode)); got != want || err != nil {
					t.Fatalf("%s, mode %v, cut at %d: %v\n%s", name, mode, at, err, got)
				}
			}
			if got, err := readAll(NewReader(iotest.OneByteReader(strings.NewReader(in)), set, mode)); got != want || err != nil {
				t.Fatalf("%s, mode %v, byte by byte: %v\n%s", name, mode, err, got)
			}
		}
	}
}

func TestReaderLongStreams(t *testing.T) {
	rng := rand.New(rand.NewSource(4))
	set := NewSet(append(fakeKeys(3), []byte(fakeKey))...)
	all := forms(fakeKey)
	for _, mode := range []Mode{Body, Events} {
		for _, kind := range []string{"json", "sse", "binary", "percent"} {
			in := corpus(kind, 60<<10)
			clean, err := readAll(NewReader(&inPieces{in, 16 << 10}, set, mode))
			if err != nil || clean != string(in) {
				t.Fatalf("%s: clean traffic changed, or %v", kind, err)
			}
			for _, form := range all {
				copy(in[rng.Intn(len(in)):], "  "+form)
			}
			want := string(set.Bytes(in))
			if n := strings.Count(want, "*"); n < 1000 {
				t.Fatalf("%s: only %d bytes masked", kind, n)
			}
			for _, n := range []int{100, 16 << 10, 1 << 20} {
				if got, err := readAll(NewReader(&inPieces{in, n}, set, mode)); got != want || err != nil {
					t.Errorf("%s, pieces of %d: differs from Bytes, or %v", kind, n, err)
				}
				var out bytes.Buffer
				if m, err := io.Copy(&out, NewReader(&inPieces{in, n}, set, mode)); out.String() != want || m != int64(len(want)) || err != nil {
					t.Errorf("%s, pieces of %d, WriteTo: differs from Bytes, or %v", kind, n, err)
				}
			}
		}
	}
}

// stepper is a stream driven by hand: it has the pieces it was given, and then
// nothing yet.
type stepper struct{ chunks }

var errNothingYet = errors.New("nothing yet")

func (s *stepper) Read(p []byte) (int, error) {
	n, err := s.chunks.Read(p)
	if err == io.EOF {
		err = errNothingYet
	}
	return n, err
}

// emitted feeds the pieces to a Reader and returns the size of everything that came
// out of it after each, and all of it.
func emitted(set *Set, mode Mode, pieces ...string) (sizes [][]int, out string) {
	src := &stepper{}
	r := NewReader(src, set, mode)
	buf := make([]byte, 64<<10)
	for _, p := range pieces {
		src.chunks = chunks{[]byte(p)}
		var after []int
		for {
			n, err := r.Read(buf)
			if err != nil {
				break
			}
			after = append(after, n)
			out += string(buf[:n])
		}
		r.err = nil // an error is the end of a stream, but not of this one
		sizes = append(sizes, after)
	}
	return sizes, out
}

// What is emitted when is the same however much of a secret a stream contains: an
// agent that sees its guesses echoed learns nothing from the flushes.
func TestEmissionDoesNotDependOnSecret(t *testing.T) {
	set := NewSet([]byte(fakeKey), []byte("another-FAKE-secret-value"))
	filler := func(n int) string { return strings.Repeat("~", n) }
	for _, mode := range []Mode{Body, Events} {
		for name, form := range forms(fakeKey) {
			var want [][]int
			for k, done := 0, false; !done; k = min(k+1+rand.Intn(60), len(form)) {
				done = k == len(form)
				guess := form[:k] + filler(len(form)-k)
				stream := "data: x\n\n" + "data: " + filler(3000) + guess + filler(10) + "\n\n" + "data: " + guess + "\n\n"
				// Cut right behind the guess, in it, in the filler, and behind lines.
				at := 9 + 6 + 3000
				sizes, _ := emitted(set, mode, stream[:5], stream[5:9], stream[9:at], stream[at:at+k/2], stream[at+k/2:at+k],
					stream[at+k:at+len(form)], stream[at+len(form):at+len(form)+12], stream[at+len(form)+12:])
				// Where it is cut depends on k; what it comes to must not.
				total := make([][]int, 0, 4)
				for _, i := range []int{0, 1, 2, 5, 6, 7} {
					total = append(total, []int{sum(sizes[:i+1])})
				}
				if want == nil {
					want = total
				}
				if diff := cmp.Diff(want, total); diff != "" {
					t.Fatalf("%s, mode %v: with %d bytes of it:\n%s", name, mode, k, diff)
				}
			}
		}
	}
}

// The same, call by call, with cuts that do not depend on the guess.
func TestEmissionSequence(t *testing.T) {
	set := NewSet([]byte(fakeKey))
	for _, mode := range []Mode{Body, Events} {
		for _, piece := range []int{1, 50, 1000} {
			var want [][]int
			for _, k := range []int{0, 1, 2, 13, 16, 30, len(fakeKey) - 16, len(fakeKey) - 2, len(fakeKey) - 1, len(fakeKey)} {
				guess := fakeKey[:k] + strings.Repeat("~", len(fakeKey)-k)
				stream := strings.Repeat("{\"echo\":\""+guess+"\"},", 15) + "\n" + guess
				var pieces []string
				for s := stream; s != ""; s = s[min(piece, len(s)):] {
					pieces = append(pieces, s[:min(piece, len(s))])
				}
				sizes, _ := emitted(set, mode, pieces...)
				if want == nil {
					want = sizes
				}
				if diff := cmp.Diff(want, sizes); diff != "" {
					t.Fatalf("mode %v, pieces of %d, %d bytes of the secret:\n%s", mode, piece, k, diff)
				}
			}
		}
	}
}

func sum(sizes [][]int) (n int) {
	for _, s := range sizes {
		for _, m := range s {
			n += m
		}
	}
	return n
}

func TestEventsAreNotHeld(t *testing.T) {
	set := NewSet([]byte(fakeKey))
	for _, end := range []string{"\n\n", "\r\n\r\n", "\r\r"} {
		pieces := []string{"event: ping" + end, ": comment" + end, "data: sk-ant-api03-" + end, "data: " + strings.Repeat("x", 1<<20) + end, "data: " + fakeKey + end}
		sizes, out := emitted(set, Events, pieces...)
		for i := range sizes {
			if got := sum(sizes[i : i+1]); got != len(pieces[i]) {
				t.Errorf("%q: of %d bytes of event %d, %d came out at its end", end, len(pieces[i]), i, got)
			}
		}
		if want := set.String(strings.Join(pieces, "")); out != want {
			t.Errorf("%q: not what Bytes makes of it", end)
		}
	}
}

func TestHoldBack(t *testing.T) {
	set := NewSet([]byte(fakeKey))
	tests := map[string]struct {
		mode   Mode
		pieces []string
		want   []int // in all, after each piece
	}{
		"words":           {Body, []string{"Hello wor", "ld, how", " ", "are you\t", "?"}, []int{6, 13, 17, 25, 25}},
		"words in events": {Events, []string{"data: wor", "ld\n", "\ndata"}, []int{0, 12, 13}},
		"no blanks":       {Body, []string{strings.Repeat("x", 1000), strings.Repeat("x", 5000)}, []int{0, 6000 - set.hold}},
		"binary":          {Body, []string{"\x00\x01\x02abc", "\xff\xfe"}, []int{3, 8}},
		"not ASCII":       {Body, []string{"\u4f60\u597d", "ab", "\u00e9t"}, []int{6, 6, 10}},
		"multi-line JSON": {Body, []string{"[{\n  \"text\": \"some\"\n}\n", ",\r\n{"}, []int{22, 25}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			sizes, out := emitted(set, tt.mode, tt.pieces...)
			var got []int
			for i := range sizes {
				got = append(got, sum(sizes[:i+1]))
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Error(diff)
			}
			if !strings.HasPrefix(strings.Join(tt.pieces, ""), out) {
				t.Errorf("clean text changed: %q", out)
			}
		})
	}
}

// A blank, or a byte outside ASCII, in a secret is none at which a Body is let go. A
// line end is one in Events, but there it comes escaped.
func TestSecretWithBlanks(t *testing.T) {
	phrase := "correct\thorse battery st\xe4ple"
	set := NewSet([]byte(phrase))
	for at := 1; at < len(phrase); at++ {
		if got, err := readAll(NewReader(split("x "+phrase+" y", 2+at), set, Body)); got != "x "+strings.Repeat("*", len(phrase))+" y" || err != nil {
			t.Fatalf("cut at %d: %q, %v", at, got, err)
		}
	}
}

func TestSecretWithLines(t *testing.T) {
	set := NewSet([]byte("-----BEGIN FAKE KEY-----\nMIGHAgEA\n-----END FAKE KEY-----\n"))
	in := `data: {"key":"-----BEGIN FAKE KEY-----\nMIGHAgEA\n-----END FAKE KEY-----\n"}` + "\n\n"
	want := `data: {"key":"` + strings.Repeat("*", len(in)-14-4) + `"}` + "\n\n"
	for _, mode := range []Mode{Body, Events} {
		if got, err := readAll(NewReader(iotest.OneByteReader(strings.NewReader(in)), set, mode)); got != want || err != nil {
			t.Errorf("mode %v: %q, %v", mode, got, err)
		}
	}
}

func TestReaderEnds(t *testing.T) {
	broken := errors.New("broken")
	set := NewSet([]byte(fakeKey))
	half := fakeKey[:len(fakeKey)/2]
	// At the end of the stream everything comes out.
	if got, err := readAll(NewReader(strings.NewReader("a word "+half), set, Body)); got != "a word "+half || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	for _, wrap := range []func(io.Reader) io.Reader{func(r io.Reader) io.Reader { return r }, iotest.DataErrReader, iotest.HalfReader} {
		// Where it breaks, what might become a secret does not.
		src := io.MultiReader(strings.NewReader("a word "+half), iotest.ErrReader(broken))
		if got, err := readAll(NewReader(wrap(src), set, Body)); got != "a word " || err != broken {
			t.Errorf("%q, %v", got, err)
		}
		if got, err := readAll(NewReader(wrap(strings.NewReader("data: "+fakeKey)), set, Events)); got != "data: "+strings.Repeat("*", len(fakeKey)) || err != nil {
			t.Errorf("%q, %v", got, err)
		}
	}
	if _, err := readAll(NewReader(onlyZero{}, set, Body)); err != io.ErrNoProgress {
		t.Errorf("a reader that returns nothing: %v", err)
	}
	if n, err := NewReader(strings.NewReader("a"), set, Body).Read(nil); n != 0 || err != nil {
		t.Errorf("empty read: %d, %v", n, err)
	}
}

type onlyZero struct{}

func (onlyZero) Read([]byte) (int, error) { return 0, nil }

// TestReaderFollows: a secret that comes while a stream lasts is masked in what follows, and wherever in the stream
// that is, the old one stays masked. The longer one needs more to be held back.
func TestReaderFollows(t *testing.T) {
	long := "FAKE-long-" // it has no period: that would be many near matches
	for i := range 60 {
		long += fmt.Sprint(i*i*7919, "-")
	}
	for _, fresh := range []string{"FAKE-new-secret-of-later", long} {
		before, after := NewSet([]byte(fakeKey)), NewSet([]byte(fakeKey), []byte(fresh))
		for _, mode := range []Mode{Body, Events} {
			first := "data: \"" + fakeKey + "\" and "
			in := first + fresh + "\n\ndata: " + fresh + fakeKey + "\n\n"
			want := after.String(in)
			for at := 1; at <= len(first); at += 3 {
				r, reads := NewReader(split(in, at), before, mode), 0
				r.Follow(func() *Set {
					if reads++; reads > 1 {
						return after
					}
					return before
				})
				if got, err := readAll(r); got != want || err != nil {
					t.Fatalf("mode %v, cut at %d: %v\n%s", mode, at, err, got)
				}
			}
			if got, _ := readAll(NewReader(split(in, len(first)), before, mode)); !strings.Contains(got, fresh) {
				t.Fatalf("mode %v: control: the new one is masked by the old set", mode)
			}
		}
	}
}

func TestReaderMemoryIsBounded(t *testing.T) {
	set := NewSet([]byte(fakeKey))
	r := NewReader(io.LimitReader(endless{}, 10<<20), set, Body)
	if n, err := io.Copy(io.Discard, r); n != 10<<20 || err != nil {
		t.Fatal(n, err)
	}
	if got, limit := cap(r.buf), 2*set.hold+largeBuffer; got > limit {
		t.Errorf("the buffer grew to %d bytes, beyond %d", got, limit)
	}
}

type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }
