package policy

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// EventKinds are what an Event's Event may be.
var EventKinds = []string{"request", "connect", "denied_packet", "denied_lookup", "pin", "reload", "start", "child", "drift", "limit", "lost"}

// Event is one line of the audit. The kinds request, connect and limit are
// decisions and are written with every field; the others with those that are set.
type Event struct {
	Time       time.Time
	Event      string // one of EventKinds
	Agent      string
	UID        uint32
	PID        int    // 0: unknown
	Exe        string // "unknown" where the process is gone
	Method     string
	Host       string
	Port       uint16
	Path       string // carries no query: Append cuts one off
	Rule       string
	Decision   string // allow, deny
	Reason     string
	Status     int
	BytesIn    int64 // bodies and tunnels, to the agent
	BytesOut   int64 // bodies and tunnels, from the agent: what leaves
	Duration   time.Duration
	Upstream   string // the address dialled
	ID         string
	Generation uint64
	Proto      string // denied_packet
	Address    string // denied_packet
	Count      int    // how many alike the line stands for; 0 and 1: itself
	Tokens     *Tokens
}

// Times is how often the event happened.
func (e *Event) Times() int { return max(1, e.Count) }

// Tokens is a model's usage, as the upstream reported it.
type Tokens struct{ Input, Output, CacheRead, CacheCreation int64 }

// maxField bounds each text of an event, in bytes before escaping.
const maxField = 1024

// timeForm has a fixed width, so that lines sort as text.
const timeForm = "2006-01-02T15:04:05.000000Z"

// Append writes the event as one line of JSON. Control bytes, invalid UTF-8 and
// characters that reorder or break a line on a terminal are escaped, and each
// text is cut at 1 KiB.
func (e *Event) Append(b []byte) []byte {
	b = append(e.Time.UTC().AppendFormat(append(b, `{"time":"`...), timeForm), '"')
	w := eventWriter{b: b, all: true}
	w.text("event", e.Event)
	w.all = e.Event == "request" || e.Event == "connect" || e.Event == "limit"
	path, _, _ := strings.Cut(e.Path, "?")
	w.text("agent", e.Agent)
	w.number("uid", int64(e.UID))
	w.number("pid", int64(e.PID))
	w.text("exe", e.Exe)
	w.text("method", e.Method)
	w.text("host", e.Host)
	w.number("port", int64(e.Port))
	w.text("path", path)
	w.text("rule", e.Rule)
	w.text("decision", e.Decision)
	w.text("reason", e.Reason)
	w.number("status", int64(e.Status))
	w.number("bytes_in", e.BytesIn)
	w.number("bytes_out", e.BytesOut)
	w.milliseconds("duration_ms", e.Duration)
	w.text("upstream", e.Upstream)
	w.text("id", e.ID)
	w.number("generation", int64(e.Generation))
	w.all = false
	w.text("proto", e.Proto)
	w.text("address", e.Address)
	if e.Count > 1 {
		w.number("count", int64(e.Count))
	}
	if t := e.Tokens; t != nil {
		w.b = fmt.Appendf(w.b, `,"tokens":{"input":%d,"output":%d,"cache_read":%d,"cache_creation":%d}`, t.Input, t.Output, t.CacheRead, t.CacheCreation)
	}
	return append(w.b, "}\n"...)
}

// eventWriter leaves out what is not set, unless all is wanted.
type eventWriter struct {
	b   []byte
	all bool
}

func (w *eventWriter) key(k string) { w.b = append(append(append(w.b, `,"`...), k...), `":`...) }

func (w *eventWriter) number(k string, v int64) {
	if v != 0 || w.all {
		w.key(k)
		w.b = strconv.AppendInt(w.b, v, 10)
	}
}

func (w *eventWriter) milliseconds(k string, d time.Duration) {
	if d != 0 || w.all {
		w.key(k)
		w.b = strconv.AppendFloat(w.b, float64(d.Microseconds())/1000, 'f', -1, 64)
	}
}

func (w *eventWriter) text(k, v string) {
	if v == "" && !w.all {
		return
	}
	w.key(k)
	w.b = append(w.b, '"')
	cut := len(v) > maxField
	if cut {
		n := maxField - len("...")
		for back := 0; back < utf8.UTFMax-1 && !utf8.RuneStart(v[n]); back++ {
			n--
		}
		v = v[:n]
	}
	for i := 0; i < len(v); {
		r, size := utf8.DecodeRuneInString(v[i:])
		switch {
		case r == utf8.RuneError && size == 1:
			w.b = append(w.b, `\ufffd`...)
		case r == '"' || r == '\\':
			w.b = append(w.b, '\\', byte(r))
		case UnsafeOnTerminal(r):
			w.b = fmt.Appendf(w.b, `\u%04x`, r)
		default:
			w.b = append(w.b, v[i:i+size]...)
		}
		i += size
	}
	if cut {
		w.b = append(w.b, "..."...)
	}
	w.b = append(w.b, '"')
}

// UnsafeOnTerminal says that a character starts a control sequence, breaks a
// line or reorders text. All of them fit in four hex digits.
func UnsafeOnTerminal(r rune) bool {
	switch {
	case r < ' ', 0x7f <= r && r < 0xa0:
		return true
	case 0x200b <= r && r <= 0x200f, 0x2028 <= r && r <= 0x202e, 0x2060 <= r && r <= 0x206f, r == 0xfeff, r == 0x061c:
		return true
	}
	return false
}

// ParseEvent reads a line that Append wrote. Fields it does not know are left
// out, so that a newer file can be read.
func ParseEvent(line []byte) (Event, error) {
	var v struct {
		Time                                                  time.Time
		Event, Agent, Exe, Method, Host, Path, Rule, Decision string
		Reason, Upstream, ID, Proto, Address                  string
		UID                                                   uint32
		PID, Status, Count                                    int
		Port                                                  uint16
		BytesIn                                               int64   `json:"bytes_in"`
		BytesOut                                              int64   `json:"bytes_out"`
		Duration                                              float64 `json:"duration_ms"`
		Generation                                            uint64
		Tokens                                                *struct {
			Input, Output int64
			CacheRead     int64 `json:"cache_read"`
			CacheCreation int64 `json:"cache_creation"`
		}
	}
	if err := json.Unmarshal(line, &v); err != nil {
		return Event{}, fmt.Errorf("not an audit line: %w", err)
	}
	if v.Event == "" {
		return Event{}, fmt.Errorf("not an audit line: it has no event")
	}
	e := Event{Time: v.Time, Event: v.Event, Agent: v.Agent, UID: v.UID, PID: v.PID, Exe: v.Exe, Method: v.Method, Host: v.Host, Port: v.Port,
		Path: v.Path, Rule: v.Rule, Decision: v.Decision, Reason: v.Reason, Status: v.Status, BytesIn: v.BytesIn, BytesOut: v.BytesOut,
		Duration: time.Duration(v.Duration * float64(time.Millisecond)).Round(time.Microsecond), Upstream: v.Upstream, ID: v.ID,
		Generation: v.Generation, Proto: v.Proto, Address: v.Address, Count: v.Count}
	if v.Tokens != nil {
		e.Tokens = &Tokens{v.Tokens.Input, v.Tokens.Output, v.Tokens.CacheRead, v.Tokens.CacheCreation}
	}
	return e, nil
}
