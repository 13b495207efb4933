package hello

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
)

// capture is a connection that keeps what is written and answers with the end.
type capture struct {
	replay
	sent bytes.Buffer
}

func (c *capture) Write(p []byte) (int, error) { return c.sent.Write(p) }

// clientHello is what a crypto/tls client sends first: one record.
func clientHello(t testing.TB, cfg *tls.Config) []byte {
	t.Helper()
	c := &capture{replay: replay{strings.NewReader("")}}
	if err := tls.Client(c, cfg).Handshake(); err == nil {
		t.Fatal("handshake without a server succeeded")
	}
	if c.sent.Len() == 0 {
		t.Fatal("crypto/tls sent nothing")
	}
	return c.sent.Bytes()
}

// fragment puts the message of the record in raw into records of size bytes.
func fragment(raw []byte, size int) []byte {
	var out []byte
	for part := range slices.Chunk(raw[recordHeader:], size) {
		out = append(out, raw[0], raw[1], raw[2], byte(len(part)>>8), byte(len(part)))
		out = append(out, part...)
	}
	return out
}

func TestRealHellos(t *testing.T) {
	configs := map[string]*tls.Config{
		"default":         {ServerName: "api.anthropic.com"},
		"TLS 1.2":         {ServerName: "api.anthropic.com", MaxVersion: tls.VersionTLS12},
		"ALPN":            {ServerName: "api.anthropic.com", NextProtos: []string{"h2", "http/1.1"}},
		"no post-quantum": {ServerName: "api.anthropic.com", CurvePreferences: []tls.CurveID{tls.X25519}},
	}
	for name, cfg := range configs {
		t.Run(name, func(t *testing.T) {
			whole := clientHello(t, cfg)
			for _, size := range []int{1, 3, 4, 5, 100, 1000, 1 << 14} {
				raw := fragment(whole, size)
				for _, wrap := range []func(io.Reader) io.Reader{iotest.OneByteReader, iotest.HalfReader, iotest.DataErrReader} {
					src := io.MultiReader(bytes.NewReader(raw), strings.NewReader("early data"))
					got, sni, err := ServerName(wrap(src))
					if err != nil || sni != "api.anthropic.com" {
						t.Fatalf("records of %d: %q, %v", size, sni, err)
					}
					if !bytes.Equal(got, raw) {
						t.Fatalf("records of %d: consumed %d bytes, not the %d of the hello", size, len(got), len(raw))
					}
				}
			}
		})
	}
}

// The bytes that are handed back open a real TLS connection.
func TestReplay(t *testing.T) {
	raw, sni, err := ServerName(bytes.NewReader(fragment(clientHello(t, &tls.Config{ServerName: "a.example"}), 50)))
	if err != nil || sni != "a.example" {
		t.Fatal(sni, err)
	}
	if theirs, asked := nameForCryptoTLS(raw); !asked || theirs != "a.example" {
		t.Errorf("crypto/tls reads %q, %v out of the bytes consumed", theirs, asked)
	}
}

func TestStopsAtTheEndOfTheHello(t *testing.T) {
	client, server := net.Pipe()
	defer client.Close()
	defer server.Close()
	raw := clientHello(t, &tls.Config{ServerName: "a.example"})
	go client.Write(raw) // and nothing more: a Read beyond would hang
	if _, sni, err := ServerName(server); err != nil || sni != "a.example" {
		t.Error(sni, err)
	}
}

// message builds hellos that no client sends. Its fields are the parts of a
// ClientHello; extensions are kind and body.
type message struct {
	kind       byte
	version    uint16
	session    int
	suites     []byte
	extensions [][2]any
	tail       []byte // after the extensions, inside the message
}

func newMessage(extensions ...[2]any) message {
	return message{kind: 1, version: 0x303, session: 32, suites: []byte{0x13, 1}, extensions: extensions}
}

func ext(kind int, body []byte) [2]any { return [2]any{kind, body} }

func serverName(names ...string) [2]any {
	var list []byte
	for _, n := range names {
		list = append(list, 0)
		list = append(binary.BigEndian.AppendUint16(list, uint16(len(n))), n...)
	}
	return ext(extServerName, vector16(list))
}

func vector16(b []byte) []byte {
	return append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...)
}

func (m message) bytes() []byte {
	b := binary.BigEndian.AppendUint16(nil, m.version)
	b = append(b, make([]byte, 32)...)
	b = append(b, byte(m.session))
	b = append(b, make([]byte, m.session)...)
	b = append(b, vector16(m.suites)...)
	b = append(b, 1, 0)
	if m.extensions != nil {
		var exts []byte
		for _, e := range m.extensions {
			exts = binary.BigEndian.AppendUint16(exts, uint16(e[0].(int)))
			exts = append(exts, vector16(e[1].([]byte))...)
		}
		b = append(b, vector16(exts)...)
	}
	b = append(b, m.tail...)
	return append([]byte{m.kind, byte(len(b) >> 16), byte(len(b) >> 8), byte(len(b))}, b...)
}

// record puts msg into one record, or as many as it takes.
func record(msg []byte) []byte {
	return fragment(append([]byte{recordHandshake, 3, 1, 0, 0}, msg...), maxRecord)
}

func TestMadeHellos(t *testing.T) {
	ok := serverName("a.example")
	with := func(m message, change func(*message)) message { change(&m); return m }
	long := strings.Repeat("a.", 130) + "example"
	longest := strings.Repeat(strings.Repeat("a", 63)+".", 3) + strings.Repeat("b", 61)
	filled := func(size int) []byte { // a message of so many bytes
		return newMessage(ok, ext(21, make([]byte, size-len(newMessage(ok, ext(21, nil)).bytes())))).bytes()
	}
	tests := map[string]struct {
		in   []byte
		name string // accepted, or
		err  error
	}{
		"plain":                  {in: record(newMessage(ok).bytes()), name: "a.example"},
		"upper case":             {in: record(newMessage(serverName("A.Example")).bytes()), name: "A.Example"},
		"single label":           {in: record(newMessage(serverName("localhost")).bytes()), name: "localhost"},
		"A-label":                {in: record(newMessage(serverName("xn--bcher-kva.example")).bytes()), name: "xn--bcher-kva.example"},
		"every kind of byte":     {in: record(newMessage(serverName("az-AZ_09.example")).bytes()), name: "az-AZ_09.example"},
		"hex digits alone":       {in: record(newMessage(serverName("www.face")).bytes()), name: "www.face"},
		"longest label and name": {in: record(newMessage(serverName(longest)).bytes()), name: longest},
		"record version 3.3":     {in: append([]byte{22, 3, 3}, record(newMessage(ok).bytes())[3:]...), name: "a.example"},
		"number in the middle":   {in: record(newMessage(serverName("1.2.example")).bytes()), name: "1.2.example"},
		"unknown extension":      {in: record(newMessage(ext(0x1a1a, nil), ok).bytes()), name: "a.example"},
		"nothing":                {err: io.EOF},
		"cut in the header":      {in: []byte{22, 3}, err: io.ErrUnexpectedEOF},
		"cut in the message":     {in: record(newMessage(ok).bytes())[:40], err: io.ErrUnexpectedEOF},
		"cut between records":    {in: fragment(record(newMessage(ok).bytes()), 20)[:25], err: io.ErrUnexpectedEOF},
		"HTTP":                   {in: []byte("GET / HTTP/1.1\r\nHost: a\r\n\r\n"), err: ErrNotTLS},
		"SSH":                    {in: []byte("SSH-2.0-OpenSSH_10.0\r\n"), err: ErrNotTLS},
		"alert":                  {in: []byte{21, 3, 1, 0, 2, 1, 0}, err: ErrNotTLS},
		"application data":       {in: []byte{23, 3, 3, 0, 2, 1, 0}, err: ErrNotTLS},
		"record version 3.4":     {in: []byte{22, 3, 4, 0, 2, 1, 0}, err: ErrNotTLS},
		"high bit, not SSLv2":    {in: []byte{0x80, 0x2e, 2, 3, 1}, err: ErrNotTLS},
		"version 4":              {in: []byte{22, 4, 1, 0, 2, 1, 0}, err: ErrNotTLS},
		"DTLS":                   {in: []byte{22, 0xfe, 0xfd, 0, 0, 0, 0}, err: ErrNotTLS},
		"SSLv2":                  {in: []byte{0x80, 0x2e, 1, 3, 1, 0, 0x15}, err: ErrSSLv2},
		"ServerHello":            {in: record([]byte{2, 0, 0, 1, 0}), err: ErrNotClientHello},
		"HelloRequest":           {in: record([]byte{0, 0, 0, 0}), err: ErrNotClientHello},
		"empty record":           {in: []byte{22, 3, 1, 0, 0}, err: ErrMalformed},
		"empty record between":   {in: append([]byte{22, 3, 1, 0, 1, 1}, 22, 3, 1, 0, 0), err: ErrMalformed},
		"alert between":          {in: append([]byte{22, 3, 1, 0, 1, 1}, 21, 3, 1, 0, 2, 1, 0), err: ErrMalformed},
		"record too long":        {in: []byte{22, 3, 1, 0x40, 1}, err: ErrMalformed},
		"message too long":       {in: record([]byte{1, 0, 0x40, 0}), err: ErrTooLarge},
		"message much too long":  {in: record([]byte{1, 0xff, 0xff, 0xff}), err: ErrTooLarge},
		"too many small records": {in: fragment(record(newMessage(ok, ext(21, make([]byte, 10000))).bytes()), 1), err: ErrTooLarge},
		"padded to the limit":    {in: record(filled(MaxSize)), name: "a.example"},
		"padded over the limit":  {in: record(filled(MaxSize + 1)), err: ErrTooLarge},
		"second message behind":  {in: record(append(newMessage(ok).bytes(), 1, 0, 0, 0)), err: ErrTrailing},
		"byte behind":            {in: record(append(newMessage(ok).bytes(), 0)), err: ErrTrailing},
		"byte in the message":    {in: record(with(newMessage(ok), func(m *message) { m.tail = []byte{0} }).bytes()), err: ErrMalformed},
		"SSL 2 inside":           {in: record(with(newMessage(ok), func(m *message) { m.version = 0x200 }).bytes()), err: ErrMalformed},
		"long session":           {in: record(with(newMessage(ok), func(m *message) { m.session = 33 }).bytes()), err: ErrMalformed},
		"no suites":              {in: record(with(newMessage(ok), func(m *message) { m.suites = nil }).bytes()), err: ErrMalformed},
		"half a suite":           {in: record(with(newMessage(ok), func(m *message) { m.suites = []byte{1, 2, 3} }).bytes()), err: ErrMalformed},
		"empty":                  {in: record([]byte{1, 0, 0, 0}), err: ErrMalformed},
		"no extensions":          {in: record(newMessage().bytes()), err: ErrNoSNI},
		"no server name":         {in: record(newMessage(ext(43, []byte{2, 3, 4})).bytes()), err: ErrNoSNI},
		"two server names":       {in: record(newMessage(ok, ok).bytes()), err: ErrMalformed},
		"two in one":             {in: record(newMessage(serverName("a.example", "b.example")).bytes()), err: ErrMalformed},
		"another type of name":   {in: record(newMessage(ext(0, vector16([]byte{1, 0, 1, 'a'}))).bytes()), err: ErrMalformed},
		"empty list":             {in: record(newMessage(ext(0, vector16(nil))).bytes()), err: ErrMalformed},
		"empty extension":        {in: record(newMessage(ext(0, nil)).bytes()), err: ErrMalformed},
		"byte behind the list":   {in: record(newMessage(ext(0, append(vector16([]byte{0, 0, 1, 'a'}), 0))).bytes()), err: ErrMalformed},
		"a hundred extensions":   {in: record(newMessage(append(many(100), ok)...).bytes()), name: "a.example"},
		"many extensions":        {in: record(newMessage(append(many(200), ok)...).bytes()), err: ErrMalformed},
		"bad other extension":    {in: record(newMessage(ok, ext(43, []byte{3, 3, 4})).bytes()), err: ErrMalformed},
		"empty name":             {in: record(newMessage(serverName("")).bytes()), err: ErrInvalidName},
		"closing dot":            {in: record(newMessage(serverName("a.example.")).bytes()), err: ErrInvalidName},
		"empty label":            {in: record(newMessage(serverName("a..example")).bytes()), err: ErrInvalidName},
		"NUL":                    {in: record(newMessage(serverName("a\x00.example")).bytes()), err: ErrInvalidName},
		"not ASCII":              {in: record(newMessage(serverName("b\u00fccher.example")).bytes()), err: ErrInvalidName},
		"with port":              {in: record(newMessage(serverName("a.example:443")).bytes()), err: ErrInvalidName},
		"wildcard":               {in: record(newMessage(serverName("*.example")).bytes()), err: ErrInvalidName},
		"long label":             {in: record(newMessage(serverName(strings.Repeat("a", 64) + ".example")).bytes()), err: ErrInvalidName},
		"long name":              {in: record(newMessage(serverName(long)).bytes()), err: ErrInvalidName},
		"IPv4":                   {in: record(newMessage(serverName("192.0.2.1")).bytes()), err: ErrIPLiteral},
		"IPv6":                   {in: record(newMessage(serverName("2001:db8::1")).bytes()), err: ErrIPLiteral},
		"IPv4 short":             {in: record(newMessage(serverName("127.1")).bytes()), err: ErrIPLiteral},
		"IPv4 as a number":       {in: record(newMessage(serverName("2130706433")).bytes()), err: ErrIPLiteral},
		"IPv4 in lower hex":      {in: record(newMessage(serverName("127.0.0.0x1")).bytes()), err: ErrIPLiteral},
		"IPv4 in hex":            {in: record(newMessage(serverName("0x7f.0.0.0X1f")).bytes()), err: ErrIPLiteral},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			src := bytes.NewReader(tt.in)
			raw, sni, err := ServerName(src)
			if !errors.Is(err, tt.err) || sni != tt.name {
				t.Errorf("got %q, %v; want %q, %v", sni, err, tt.name, tt.err)
			}
			if !bytes.Equal(tt.in[:len(tt.in)-src.Len()], raw) {
				t.Error("raw is not what was consumed")
			}
			// Each of the two parsers refuses by itself, but for the body of an extension that ours does not read.
			if _, msg, none := readMessage(bytes.NewReader(tt.in)); none == nil && name != "bad other extension" {
				if sni, err := parse(msg); err != tt.err || sni != tt.name && err == nil {
					t.Errorf("our parser alone: %q, %v", sni, err)
				}
			}
		})
	}
}

// A message that its header ends early is refused wherever that is, by our parser alone too.
func TestCutMessages(t *testing.T) {
	msg := newMessage(serverName("a.example"), ext(43, []byte{2, 3, 4})).bytes()[handshakeHeader:]
	for n := range msg {
		if sni, err := parse(msg[:n]); err == nil {
			t.Errorf("%d bytes of %d: %q", n, len(msg), sni)
		}
	}
	if sni, err := parse(msg); sni != "a.example" || err != nil {
		t.Errorf("control: %q, %v", sni, err)
	}
}

func many(n int) (exts [][2]any) {
	for i := range n {
		exts = append(exts, ext(0x1000+i, nil))
	}
	return exts
}

const extECH = 0xfe0d // RFC 9849

// The outer name counts.
func TestECH(t *testing.T) {
	outer := []byte{0, 0, 1, 0, 1, 9, 0, 1, 7, 0, 1, 7} // HKDF-SHA256, AES-128-GCM, config 9
	_, sni, err := ServerName(bytes.NewReader(record(newMessage(serverName("outer.example"), ext(extECH, outer)).bytes())))
	if err != nil || sni != "outer.example" {
		t.Errorf("got %q, %v", sni, err)
	}
}

func TestReaderError(t *testing.T) {
	broken := errors.New("broken")
	raw := record(newMessage(serverName("a.example")).bytes())
	for _, n := range []int{0, 3, 5, 50} {
		_, _, err := ServerName(io.MultiReader(bytes.NewReader(raw[:n]), iotest.ErrReader(broken)))
		if err != broken {
			t.Errorf("after %d bytes: %v", n, err)
		}
	}
}

// FuzzServerName: whatever comes, raw is a prefix of it, an error comes without a name,
// and crypto/tls never reads another name than our parser by itself.
func FuzzServerName(f *testing.F) {
	whole := clientHello(f, &tls.Config{ServerName: "a.example", NextProtos: []string{"h2"}})
	f.Add(whole)
	f.Add(fragment(whole, 100))
	f.Add(clientHello(f, &tls.Config{ServerName: "a.example", MaxVersion: tls.VersionTLS12}))
	f.Add(record(newMessage(ext(0x1a1a, nil), serverName("a.example")).bytes()))
	f.Add(record(newMessage(serverName("a.example"), ext(extECH, []byte{0, 0, 1, 0, 1, 9, 0, 0, 0, 0})).bytes()))
	f.Add(record(newMessage(serverName("127.0.0.1")).bytes()))
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"))
	f.Fuzz(func(t *testing.T, in []byte) {
		raw, sni, err := ServerName(bytes.NewReader(in))
		if !bytes.HasPrefix(in, raw) {
			t.Fatal("raw is not what came first")
		}
		againRaw, again, againErr := ServerName(iotest.OneByteReader(bytes.NewReader(in)))
		if !errors.Is(againErr, err) || again != sni || !bytes.Equal(againRaw, raw) {
			t.Fatalf("byte by byte: %q, %v; at once: %q, %v", again, againErr, sni, err)
		}
		if err != nil && sni != "" {
			t.Fatalf("name %q beside error %v", sni, err)
		}
		whole, msg, msgErr := readMessage(bytes.NewReader(in))
		if msgErr != nil {
			return
		}
		// What our parser accepts by itself, before crypto/tls is asked.
		name, parseErr := parse(msg)
		theirs, asked := nameForCryptoTLS(in)
		if parseErr == nil && asked && theirs != name {
			t.Fatalf("crypto/tls reads %q, our parser %q", theirs, name)
		}
		if (err == nil) != (parseErr == nil && asked) || err == nil && (name != sni || !bytes.Equal(raw, whole)) {
			t.Fatalf("ServerName: %q, %v; parser: %q, %v; crypto/tls: %q, %v", sni, err, name, parseErr, theirs, asked)
		}
	})
}

func BenchmarkServerName(b *testing.B) {
	raw := clientHello(b, &tls.Config{ServerName: "api.anthropic.com", NextProtos: []string{"h2", "http/1.1"}})
	b.SetBytes(int64(len(raw)))
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := ServerName(bytes.NewReader(raw)); err != nil {
			b.Fatal(err)
		}
	}
}
