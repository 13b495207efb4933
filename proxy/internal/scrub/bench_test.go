package scrub

import (
	"bytes"
	"fmt"
	"io"
	"math/rand"
	"testing"
)

// fakeKeys are n secrets of the shape and length of Anthropic's.
func fakeKeys(n int) [][]byte {
	rng := rand.New(rand.NewSource(1))
	const chars = upper + lower + "0123456789-_"
	keys := make([][]byte, n)
	for i := range keys {
		keys[i] = []byte("sk-ant-api03-FAKE")
		for len(keys[i]) < 108 {
			keys[i] = append(keys[i], chars[rng.Intn(len(chars))])
		}
	}
	return keys
}

// corpus is n bytes of clean traffic of a kind.
func corpus(kind string, n int) []byte {
	rng := rand.New(rand.NewSource(2))
	var b bytes.Buffer
	for i := 0; b.Len() < n; i++ {
		switch kind {
		case "sse":
			fmt.Fprintf(&b, "event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":0,\"delta\":{\"type\":\"text_delta\",\"text\":\" word%d and\\n\\\"some\\\" more of it\"}}\n\n", rng.Intn(1e6))
		case "json":
			fmt.Fprintf(&b, "{\"id\":\"msg_%x\",\"type\":\"message\",\"role\":\"assistant\",\"content\":[{\"type\":\"text\",\"text\":\"func main() {\\n\\tfmt.Println(\\\"%d, see https://example.com/a%%20b\\\")\\n}\"}],\"usage\":{\"input_tokens\":%d}},", rng.Int63(), i, rng.Intn(1e5))
		case "percent":
			fmt.Fprintf(&b, "%%%02x", 'a'+rng.Intn(26))
		case "binary":
			var chunk [4096]byte
			rng.Read(chunk[:])
			b.Write(chunk[:])
		}
	}
	return b.Bytes()[:n]
}

// BenchmarkReader is the throughput on clean traffic in reads of 16 KiB, a TLS
// record; secrets=-1 is a plain copy by the same loop. percent is the worst case:
// nothing but escapes of letters.
func BenchmarkReader(b *testing.B) {
	for _, kind := range []string{"json", "sse", "binary", "percent"} {
		data := corpus(kind, 4<<20)
		mode := Body
		if kind == "sse" {
			mode = Events
		}
		for _, secrets := range []int{-1, 0, 1, 4, 16, 64} {
			b.Run(fmt.Sprintf("%s/secrets=%d", kind, secrets), func(b *testing.B) {
				set := NewSet(fakeKeys(max(0, secrets))...)
				buf := make([]byte, 32<<10)
				b.SetBytes(int64(len(data)))
				for b.Loop() {
					var r io.Reader = &inPieces{data, 16 << 10}
					if secrets >= 0 {
						r = NewReader(r, set, mode)
					}
					n := 0
					for {
						m, err := r.Read(buf)
						if n += m; err == io.EOF {
							break
						}
					}
					if n != len(data) {
						b.Fatalf("%d bytes of %d came out", n, len(data))
					}
				}
			})
		}
	}
}

// inPieces is a reader of data that returns n bytes a time.
type inPieces struct {
	data []byte
	n    int
}

func (r *inPieces) Read(p []byte) (int, error) {
	if len(r.data) == 0 {
		return 0, io.EOF
	}
	n := copy(p[:min(len(p), r.n)], r.data)
	r.data = r.data[n:]
	return n, nil
}

// BenchmarkEvent is what one event of 220 bytes costs in a stream of them.
func BenchmarkEvent(b *testing.B) {
	event := append(bytes.Repeat([]byte("x"), 218), "\n\n"...)
	for _, secrets := range []int{0, 1, 16} {
		b.Run(fmt.Sprintf("secrets=%d", secrets), func(b *testing.B) {
			src := &repeat{event}
			r := NewReader(src, NewSet(fakeKeys(secrets)...), Events)
			buf := make([]byte, 4096)
			b.SetBytes(int64(len(event)))
			b.ReportAllocs()
			for b.Loop() {
				if n, err := r.Read(buf); n != len(event) || err != nil {
					b.Fatal(n, err)
				}
			}
		})
	}
}

type repeat struct{ b []byte }

func (r *repeat) Read(p []byte) (int, error) { return copy(p, r.b), nil }

func BenchmarkString(b *testing.B) {
	set := NewSet(fakeKeys(1)...)
	b.ReportAllocs()
	for b.Loop() {
		set.String("application/json; charset=utf-8")
	}
}
