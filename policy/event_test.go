package policy

import (
	"encoding/json"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
)

var fullEvent = Event{
	Time: time.Date(2026, 5, 1, 12, 0, 0, 123456789, time.FixedZone("", 7200)), Event: "request", Agent: "claude", UID: 1000, PID: 42, Exe: "/usr/bin/node",
	Method: "POST", Host: "api.anthropic.com", Port: 443, Path: "/v1/messages?key=value", Rule: "route/anthropic", Decision: "allow", Reason: "allowed by POST /v1/messages",
	Status: 200, BytesIn: 10, BytesOut: 20, Duration: 1234567 * time.Nanosecond, Upstream: "192.0.2.1:443", ID: "r1", Generation: 3,
	Tokens: &Tokens{1, 2, 3, 4},
}

const twenty = "time event agent uid pid exe method host port path rule decision reason status bytes_in bytes_out duration_ms upstream id generation"

func TestEventAppend(t *testing.T) {
	got := string(fullEvent.Append([]byte("before\n")))
	want := "before\n" + `{"time":"2026-05-01T10:00:00.123456Z","event":"request","agent":"claude","uid":1000,"pid":42,"exe":"/usr/bin/node","method":"POST","host":"api.anthropic.com","port":443,"path":"/v1/messages","rule":"route/anthropic","decision":"allow","reason":"allowed by POST /v1/messages","status":200,"bytes_in":10,"bytes_out":20,"duration_ms":1.234,"upstream":"192.0.2.1:443","id":"r1","generation":3,"tokens":{"input":1,"output":2,"cache_read":3,"cache_creation":4}}` + "\n"
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	for _, kind := range []string{"request", "connect", "limit"} {
		line := (&Event{Event: kind}).Append(nil)
		var fields map[string]any
		if err := json.Unmarshal(line, &fields); err != nil {
			t.Fatal(err)
		}
		for name := range strings.FieldsSeq(twenty) {
			if _, ok := fields[name]; !ok {
				t.Errorf("%s has no %s: %s", kind, name, line)
			}
		}
		if len(fields) != 20 {
			t.Errorf("%s has %d fields: %s", kind, len(fields), line)
		}
	}
	sparse := Event{Event: "denied_packet", Proto: "udp", Address: "1.1.1.1", Port: 53, Decision: "deny"}
	want = `{"time":"0001-01-01T00:00:00.000000Z","event":"denied_packet","port":53,"decision":"deny","proto":"udp","address":"1.1.1.1"}` + "\n"
	if got := string(sparse.Append(nil)); got != want {
		t.Errorf("got %s want %s", got, want)
	}
	many := Event{Event: "lost", Duration: time.Second, Count: 3}
	want = `{"time":"0001-01-01T00:00:00.000000Z","event":"lost","duration_ms":1000,"count":3}` + "\n"
	if got := string(many.Append(nil)); got != want {
		t.Errorf("got %s want %s", got, want)
	}
	if got := strings.Join(EventKinds, " "); got != "request connect denied_packet denied_lookup pin reload start child drift limit lost" {
		t.Errorf("the kinds are %s", got)
	}
}

func TestEventEscapes(t *testing.T) {
	e := Event{Event: "request", Exe: "a\"b\\c\n\r\t\x00\x1b[2J\x7f\xff\u0085\u202e\u2028\u200b\ufeff\u2066\u061cé😀"}
	line := string(e.Append(nil))
	want := `"exe":"a\"b\\c\u000a\u000d\u0009\u0000\u001b[2J\u007f\ufffd\u0085\u202e\u2028\u200b\ufeff\u2066\u061cé😀"`
	if !strings.Contains(line, want) {
		t.Errorf("%q has no %s", line, want)
	}
	if strings.Count(line, "\n") != 1 {
		t.Errorf("%q is not one line", line)
	}
	for _, cut := range []string{strings.Repeat("a", 5000), strings.Repeat("é", 5000), strings.Repeat("😀", 5000), strings.Repeat("\xff", 5000), "a" + strings.Repeat("😀", 300), strings.Repeat("\x80", 5000)} {
		e.Exe = cut
		got, err := ParseEvent(e.Append(nil))
		if err != nil {
			t.Fatal(err)
		}
		if n := utf8.RuneCountInString(got.Exe); !strings.HasSuffix(got.Exe, "...") || n < 250 || len(strings.ReplaceAll(got.Exe, "\ufffd", "x")) > maxField || strings.Contains(got.Exe, "\ufffd") && utf8.ValidString(cut) {
			t.Errorf("%d bytes are cut to %d bytes, %d characters", len(cut), len(got.Exe), n)
		}
	}
	e.Exe = strings.Repeat("a", maxField)
	if got, _ := ParseEvent(e.Append(nil)); got.Exe != e.Exe {
		t.Error("a text of the allowed length is cut")
	}
}

func TestParseEvent(t *testing.T) {
	want := fullEvent
	want.Path = "/v1/messages"
	want.Time = time.Date(2026, 5, 1, 10, 0, 0, 123456000, time.UTC)
	want.Duration = 1234 * time.Microsecond
	got, err := ParseEvent(fullEvent.Append(nil))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if _, err := ParseEvent([]byte(`{"time":"2026-05-01T10:00:00Z","event":"pin","new_field":1}`)); err != nil {
		t.Errorf("a field of a newer version: %v", err)
	}
	for _, bad := range []string{"", "{}", "x", `{"event":1}`, `{"time":"x","event":"pin"}`, `{"event":"pin","port":-1}`, `[]`} {
		if _, err := ParseEvent([]byte(bad)); err == nil {
			t.Errorf("%q is an event", bad)
		}
	}
}

// FuzzEvent: whatever bytes come in, one line of JSON goes out that reads back.
func FuzzEvent(f *testing.F) {
	f.Add("/usr/bin/node", "/v1/messages?x", "evil\n{\"event\":\"request\"}")
	f.Add("\x1b]0;x\x07", "\xff\xfe", "\u202e")
	f.Fuzz(func(t *testing.T, a, b, c string) {
		e := Event{Event: "connect", Exe: a, Path: b, Reason: c}
		line := e.Append(nil)
		if n := len(line); line[n-1] != '\n' || strings.Count(string(line), "\n") != 1 || !utf8.Valid(line) || !json.Valid(line) {
			t.Fatalf("%q", line)
		}
		for _, r := range string(line[:len(line)-1]) {
			if UnsafeOnTerminal(r) {
				t.Fatalf("%q has %U", line, r)
			}
		}
		got, err := ParseEvent(line)
		if err != nil || strings.Contains(got.Path, "?") {
			t.Fatalf("%q: %v", line, err)
		}
		if utf8.ValidString(a) && len(a) <= maxField && got.Exe != a {
			t.Fatalf("%q is read back as %q", a, got.Exe)
		}
	})
}

func BenchmarkEventAppend(b *testing.B) {
	var buf []byte
	b.ReportAllocs()
	for b.Loop() {
		buf = fullEvent.Append(buf[:0])
	}
}
