package leaks

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"exitgate/integration/prober"
)

// channel is a place in an answer.
type channel struct {
	name  string
	say   func(form string) answer
	want  string // of the route with the credential: "masked", or "refused" where the whole answer is
	never string // why no route lets it through, which is then the control: the upstream did send it
	token bool   // only forms that can be a field's name
	all   bool   // every form, not one of each family
}

func field(name string) channel {
	return channel{name: name, say: func(f string) answer { return raw(ok(name+": a "+f+" b\r\n", "ok")) }}
}

func body(name, fields, before, after string) channel {
	return channel{name: name, say: func(f string) answer { return raw(ok(fields, before+f+after)) }}
}

func every(c channel) channel {
	c.all = true
	return c
}

// channels is group D: wherever an upstream can put bytes.
func channels() []channel {
	all := []channel{
		{name: "reason phrase", never: "exitgate writes its own", say: func(f string) answer { return raw("HTTP/1.1 200 " + f + "\r\nContent-Length: 0\r\n\r\n") }},
		{name: "field's name", token: true, say: func(f string) answer { return raw(ok(f+": x\r\n", "ok")) }},
		{name: "same field twice", say: func(f string) answer { return raw(ok("X-A: 1\r\nX-A: "+f+"\r\nX-A: "+f+"\r\n", "ok")) }},
		{name: "trailer, announced", all: true, say: func(f string) answer {
			return raw("HTTP/1.1 200 OK\r\nTrailer: X-T\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX-T: " + f + "\r\n\r\n")
		}},
		{name: "trailer, not announced", say: func(f string) answer {
			return raw("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX-T: " + f + "\r\n\r\n")
		}},
		{name: "trailer's name", token: true, say: func(f string) answer {
			return raw("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n" + f + ": x\r\n\r\n")
		}},
		{name: "chunk extension", never: "a matter between neighbours", say: func(f string) answer {
			return raw("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;a=\"" + f + "\"\r\nok\r\n0\r\n\r\n")
		}},
		{name: "100 with a field", never: "none was asked for", say: func(f string) answer { return raw("HTTP/1.1 100 Continue\r\nX-A: " + f + "\r\n\r\n" + ok("", "ok")) }},
		{name: "102 with a field", say: func(f string) answer { return raw("HTTP/1.1 102 Processing\r\nX-A: " + f + "\r\n\r\n" + ok("", "ok")) }},
		{name: "103 with a field", all: true, say: func(f string) answer {
			return raw("HTTP/1.1 103 Early Hints\r\nLink: " + f + "\r\n\r\n" + ok("", "ok"))
		}},
		{name: "101 and the tunnel after it", want: "refused", never: "no upgrade is asked for", say: func(f string) answer {
			return answer{pieces: []string{"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\nX-A: " + f + "\r\n\r\n" + f}, end: true}
		}},
		every(body("body", "", "before ", " after")), every(field("X-Any")), body("JSON body", "Content-Type: application/json\r\n", `{"error":{"message":"key \"`, `\" is bad"}}`),
		body("multipart", "Content-Type: multipart/form-data; boundary=b\r\n", "--b\r\n\r\n", "\r\n--b--\r\n"), body("binary", "Content-Type: application/octet-stream\r\n", "\x00\xff\xfe", "\x00"),
		body("large body", "", strings.Repeat("x", 200<<10)+" ", " "+strings.Repeat("y", 200<<10)), body("first bytes of a body", "", "", " after"), body("last bytes of a body", "", "before ", ""),
		{name: "body until the end of the connection", say: func(f string) answer {
			return answer{pieces: []string{"HTTP/1.1 200 OK\r\n\r\nbefore " + f}, end: true}
		}},
		{name: "body, a chunk for each byte", all: true, say: func(f string) answer { return answer{pieces: chunked("", strings.Split("a "+f+" b", "")...)} }},
		{name: "event, in two pieces", say: func(f string) answer {
			return answer{pieces: chunked("Content-Type: text/event-stream\r\n", "event: x\ndata: "+f[:len(f)/2], f[len(f)/2:]+"\n\n"), pause: 20 * time.Millisecond}
		}},
		{name: "event in JSON", all: true, say: func(f string) answer {
			return answer{pieces: chunked("Content-Type: text/event-stream\r\n", "data: {\"type\":\"ping\"}\n\n", "data: {\"text\":\""+f+"\"}\n\n")}
		}},
		{name: "comment and id of an event", say: func(f string) answer {
			return answer{pieces: chunked("Content-Type: text/event-stream\r\n", ": "+f+"\nid: "+f+"\ndata: 1\n\n")}
		}},
	}
	for _, name := range []string{"X-Echo", "Set-Cookie", "Location", "Content-Location", "Refresh", "Link", "Server-Timing", "Alt-Svc", "Etag", "Content-Disposition", "Content-Type", "Warning", "Server", "Vary", "Request-Id"} {
		all = append(all, field(name))
	}
	for _, code := range []string{"301 Moved", "302 Found", "303 See Other", "307 Temporary", "308 Permanent"} {
		all = append(all, channel{name: code + ", Location to another host", say: func(f string) answer {
			return raw("HTTP/1.1 " + code + "\r\nLocation: https://evil.example/?k=" + f + "\r\nContent-Length: 0\r\n\r\n")
		}})
	}
	for _, code := range []string{"400 Bad", "401 Unauthorized", "403 Forbidden", "404 Missing", "429 Slow", "500 Wrong", "529 Overloaded"} {
		all = append(all, channel{name: code + ", challenge and body", say: func(f string) answer {
			return raw(strings.Replace(ok("WWW-Authenticate: Basic realm=\""+f+"\"\r\n", `{"error":"`+f+`"}`), "200 OK", code, 1))
		}})
	}
	for _, coding := range []string{"gzip", "deflate", "br", "zstd", "identity, gzip", "x-unknown"} {
		all = append(all, channel{name: "body in " + coding + ", though identity was asked for", want: "refused", say: func(f string) answer {
			return raw(ok("Content-Encoding: "+coding+"\r\n", f))
		}})
	}
	return all
}

// token says whether a form can be the name of a field.
func token(f string) bool {
	return !strings.ContainsAny(f, " ,;:\\\"/[]?={}()<>@~")
}

// TestReflection is group D: each channel with each form, with the route of the credential and with the one of none.
func TestReflection(t *testing.T) {
	t.Parallel()
	s := newScene(t, policy)
	parallel(channels(), func(c channel) { s.reflect(t, c) })
	judge(t, row{"D", "redirects followed, over all those cases", "none", map[bool]string{true: "none", false: "some"}[len(s.evil.Seen()) == 0 && s.w.DNS.Count("evil.example") == 0], "the Location fields above arrived"})
	s.sweep(t, "D")
}

func (s *scene) reflect(t *testing.T, c channel) {
	if c.want == "" {
		c.want = "masked"
	}
	seen, tried, passed := c.want, 0, 0
	list := someForms(secret)
	if c.all || c.token {
		list = forms(secret)
	}
	for _, f := range list {
		if c.token && !token(f.text) {
			continue
		}
		tried++
		id := s.api.will(c.say(f.text))
		got := s.ask("/c", id)
		switch code := status(got); {
		case holds(got, secret) || holds(read(got), secret):
			seen = "LEAKS as " + f.name + fmt.Sprintf(": %.300q", got)
		case (code == "502") != (c.want == "refused"):
			seen = "status " + code + " for " + f.name
		}
		if len(s.api.got(id)) != 1 || !strings.Contains(s.api.got(id)[0], "Bearer "+secret) {
			t.Errorf("%s: the upstream did not get the credential", c.name)
		}
		// The field's name loses its case on the way.
		if open := s.ask("/o", id); strings.Contains(strings.ToLower(open), strings.ToLower(f.text)) || strings.Contains(read(open), f.text) {
			passed++
		}
	}
	control := fmt.Sprintf("without a credential %d of %d forms pass", passed, tried)
	switch {
	case c.never != "":
		control = fmt.Sprintf("no route passes it: %s; the upstream sent %d", c.never, tried)
	case passed < tried || tried == 0:
		control = "FAILED " + control
	}
	judge(t, row{"D", c.name, c.want, seen, control})
}

// TestEveryOffset cuts the credential at each of its bytes, by chunks, by records and by events.
func TestEveryOffset(t *testing.T) {
	t.Parallel()
	s := newScene(t, policy)
	var mu sync.Mutex
	whole, leaked := 0, "masked"
	var offsets []int
	for i := 1; i < len(secret); i++ {
		offsets = append(offsets, i)
	}
	parallel(offsets, func(i int) {
		for _, kind := range []string{"", "Content-Type: text/event-stream\r\n"} {
			id := s.api.will(answer{pieces: chunked(kind, "data: "+secret[:i], secret[i:]+"\n\n"), pause: 5 * time.Millisecond})
			got, open := s.ask("/c", id), s.ask("/o", id)
			mu.Lock()
			if holds(got, secret) || holds(read(got), secret) || !strings.Contains(got, "data: ") {
				leaked = fmt.Sprintf("cut at %d: %q", i, got)
			}
			if strings.Contains(read(open), secret) {
				whole++
			}
			mu.Unlock()
		}
	})
	control := fmt.Sprintf("without a credential %d of %d pass", whole, 2*len(offsets))
	if whole != 2*len(offsets) {
		control = "FAILED " + control
	}
	judge(t, row{"D", "body and event, cut at every byte of the credential", "masked", leaked, control})
}

// TestLimits shows what is stated as a limit: these forms do come through.
func TestLimits(t *testing.T) {
	t.Parallel()
	s := newScene(t, policy)
	reversed, rotated, wide := "", "", ""
	for _, b := range []byte(secret) {
		reversed = string(b) + reversed
		wide += string(b) + "\x00"
		if b|32 >= 'a' && b|32 <= 'z' {
			b = (b&31-1+13)%26 + 1 | b&^31
		}
		rotated += string(b)
	}
	var z bytes.Buffer
	w := gzip.NewWriter(&z)
	io.WriteString(w, secret)
	w.Close()
	half := len(secret) / 2
	for name, text := range map[string]string{"upper case": strings.ToUpper(secret), "reversed": reversed, "rot13": rotated, "UTF-16": wide, "gzip that says it is something else": z.String(), "split over two events": "data: " + secret[:half] + "\n\ndata: " + secret[half:] + "\n\n"} {
		got := s.ask("/c", s.api.will(raw(ok("", text))))
		judge(t, row{"D", "limit: " + name, "passes", map[bool]string{true: "passes", false: "does not pass"}[strings.HasSuffix(got, text)], "the forms above are masked"})
	}
}

// TestCleanPasses: what holds no credential comes as it was, and with no delay that depends on it.
func TestCleanPasses(t *testing.T) {
	t.Parallel()
	s := newScene(t, policy)
	all := make([]byte, 256)
	for i := range all {
		all[i] = byte(i)
	}
	for name, text := range map[string]string{"every byte": strings.Repeat(string(all), 100), "prefixes of the credential": strings.Repeat(secret[:len(secret)-1]+" ", 300), "a secret of nobody": "FAKE-nobody-0123456789-abcdef", "a benign mention": "keys begin with sk-ant-api03- and FAKE-", "nothing": ""} {
		id := s.api.will(raw(ok("X-Note: "+secret[:9]+"\r\n", text)))
		got := s.ask("/c", id)
		_, got, _ = strings.Cut(got, "\r\n\r\n")
		judge(t, row{"D", "clean body passes byte for byte: " + name, "same", map[bool]string{true: "same", false: "DIFFERS"}[got == text], fmt.Sprintf("%d bytes", len(text))})
	}
}

// TestTimingOracle: an upstream that echoes guesses must not tell by what is held back how good they are.
func TestTimingOracle(t *testing.T) {
	t.Parallel()
	s := newScene(t, policy)
	parallel([]int{4, 8, 12, 20, len(secret) - 1}, func(n int) {
		right, wrong := s.early(secret[:n]), s.early(strings.Repeat("q", n))
		judge(t, row{"D", fmt.Sprintf("timing: a guess with %d right bytes", n), fmt.Sprintf("%d bytes before its end", wrong), fmt.Sprintf("%d bytes before its end", right),
			map[bool]string{true: "the event before the guess had come", false: "FAILED nothing came early"}[wrong >= len(oneEvent)]})
	})
}

const oneEvent = "data: one\n\n"

// early counts the bytes that the agent gets of an event and the beginning of another, a guess, before the other goes on: what
// is not among them is held back. The most of three times, because a busy machine may take its time to pass a byte on.
func (s *scene) early(guess string) (most int) {
	for range 3 {
		a := answer{pieces: chunked("Content-Type: text/event-stream\r\n", oneEvent, "data: "+guess), gate: make(chan struct{})}
		came := 0
		settled := time.NewTimer(patience)
		pieces := s.Agent().Start(prober.Probe{Op: "http", Address: listener, Chunks: true, Timeout: 2 * patience,
			Data: []byte("GET /c/v1/x?" + s.api.will(a) + " HTTP/1.1\r\nHost: " + listener + "\r\nConnection: close\r\n\r\n")})
		for more := true; more; {
			select {
			case r := <-pieces:
				came += len(r.Data)
				settled.Reset(300 * time.Millisecond)
				more = r.More
			case <-settled.C:
				more = false
			}
		}
		close(a.gate)
		most = max(most, came)
	}
	return most
}
