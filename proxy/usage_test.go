package proxy

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"exitgate/policy"
)

const sse = `event: message_start
data: {"type":"message_start","message":{"usage":{"input_tokens":25,"cache_creation_input_tokens":7,"cache_read_input_tokens":9,"output_tokens":1}}}

event: content_block_delta
data: {"type":"content_block_delta","delta":{"text":"\"usage\":{\"output_tokens\":999}"}}

event: message_delta
data: {"type":"message_delta","usage":{"output_tokens":15}}

`

func TestUsage(t *testing.T) {
	for _, tc := range []struct {
		name, kind, body string
		want             *policy.Tokens
	}{
		{"events", "text/event-stream", sse, &policy.Tokens{Input: 25, Output: 15, CacheRead: 9, CacheCreation: 7}},
		{"aborted", "text/event-stream", sse[:300], &policy.Tokens{Input: 25, Output: 1, CacheRead: 9, CacheCreation: 7}},
		{"crlf", "text/event-stream", "data:{\"usage\":{\"input_tokens\":3}}\r\n\r\n", &policy.Tokens{Input: 3}},
		{"openai events", "text/event-stream", `data: {"response":{"usage":{"input_tokens":3,"output_tokens":4,"input_tokens_details":{"cached_tokens":2}}}}` + "\n", &policy.Tokens{Input: 3, Output: 4, CacheRead: 2}},
		{"gemini events", "text/event-stream", `data: {"usageMetadata":{"promptTokenCount":3,"candidatesTokenCount":4}}` + "\n", &policy.Tokens{Input: 3, Output: 4}},
		{"json", "application/json", `{"content":[{"text":"x \" y","usage":{"input_tokens":1}}], "usage" : {"input_tokens":11,"nested":{"a":[1]},"output_tokens":12},"z":1}`, &policy.Tokens{Input: 11, Output: 12}},
		{"openai json", "application/json", `{"usage":{"prompt_tokens":1,"completion_tokens":2,"prompt_tokens_details":{"cached_tokens":1}}}`, &policy.Tokens{Input: 1, Output: 2, CacheRead: 1}},
		{"count_tokens is free", "application/json", `{"input_tokens":2095}`, nil},
		{"error", "application/json", `{"type":"error","error":{"usage":{"input_tokens":5}}}`, nil},
		{"value, not key", "application/json", `{"a":"usage","b":{"input_tokens":5}}`, nil},
		{"null", "application/json", `{"usage":null,"b":{"input_tokens":5}}`, nil},
		{"negative", "application/json", `{"usage":{"input_tokens":-5,"output_tokens":2}}`, &policy.Tokens{Output: 2}},
		{"overflow", "application/json", `{"usage":{"input_tokens":99999999999999999999}}`, nil},
		{"unbelievable", "application/json", `{"usage":{"input_tokens":9000000000000000000}}`, nil},
		{"nan", "application/json", `{"usage":{"input_tokens":NaN}}`, nil},
		{"text", "application/json", `{"usage":{"input_tokens":"5"}}`, nil},
		{"not json", "application/json", `usage":{]]]}}}}"\\"`, nil},
		{"other type", "text/plain", `{"usage":{"input_tokens":5}}`, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for size := 1; size <= len(tc.body); size = size*3 + 1 {
				u := newUsage(tc.kind)
				if u == nil {
					if tc.want != nil {
						t.Fatal("not read")
					}
					return
				}
				for rest := []byte(tc.body); len(rest) > 0; {
					n := min(size, len(rest))
					u.feed(rest[:n])
					rest = rest[n:]
				}
				if diff := cmp.Diff(tc.want, u.tokens()); diff != "" {
					t.Errorf("in pieces of %d (-want +got):\n%s", size, diff)
				}
			}
		})
	}
}

func TestUsageGivesUp(t *testing.T) {
	u := newUsage("application/json")
	u.feed([]byte(`{"content":"`))
	for range 5 {
		u.feed(bytes.Repeat([]byte("x"), 1<<20))
	}
	u.feed([]byte(`","usage":{"input_tokens":5}}`))
	if u.tokens() != nil {
		t.Error("it looked for longer than it should")
	}
}

func FuzzUsage(f *testing.F) {
	f.Add([]byte(sse), 7)
	f.Add([]byte(`{"usage":{"input_tokens":11}}`), 1)
	f.Fuzz(func(t *testing.T, body []byte, size int) {
		for _, kind := range []string{"text/event-stream", "application/json"} {
			whole, parts := newUsage(kind), newUsage(kind)
			whole.feed(body)
			for rest := body; len(rest) > 0; {
				n := min(max(1, size%64), len(rest))
				parts.feed(rest[:n])
				rest = rest[n:]
			}
			if kind == "text/event-stream" && cmp.Diff(whole.tokens(), parts.tokens()) != "" {
				t.Errorf("%s: %v whole, %v in pieces", kind, whole.tokens(), parts.tokens())
			}
			if len(parts.line) > maxUsageLine || len(parts.json.capture) > maxUsage {
				t.Error("it keeps too much")
			}
		}
	})
}

func TestUsageIsReported(t *testing.T) {
	protocols(t, func(t *testing.T, proto string) {
		r := newRig(t)
		r.api(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/event-stream; charset=utf-8")
			_, _ = io.WriteString(w, sse)
		}, proto)
		for range 2 {
			if _, body := r.get("POST", "/v1/messages", "Content-Length: 0"); body != sse {
				t.Errorf("body %q", body)
			}
			want := policy.Tokens{Input: 25, Output: 15, CacheRead: 9, CacheCreation: 7}
			if diff := cmp.Diff(&want, r.event().Tokens); diff != "" {
				t.Errorf("audit (-want +got):\n%s", diff)
			}
		}
	})
}

// TestUsageOfAborted: what a stream told before it broke off counts, whoever broke it off.
func TestUsageOfAborted(t *testing.T) {
	told := sse[:strings.Index(sse, "event: content_block_delta")]
	protocols(t, func(t *testing.T, proto string) {
		s := newScripted()
		r := newRig(t)
		r.api(func(w http.ResponseWriter, req *http.Request) {
			if req.URL.Path == "/v1/left" {
				s.serve(w, req)
				return
			}
			w.Header().Set("Content-Type", "text/event-stream")
			_, _ = io.WriteString(w, told)
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		}, proto)
		c := r.dial()
		c.send("GET /v1/cut HTTP/1.1\r\nHost: %s\r\n\r\n", r.addr)
		if _, _, err := c.tryAnswer("GET"); err == nil {
			t.Error("control: the stream looks whole")
		}
		one := policy.Tokens{Input: 25, Output: 1, CacheRead: 9, CacheCreation: 7}
		if diff := cmp.Diff(&one, r.event().Tokens); diff != "" {
			t.Errorf("audit of the one that was cut (-want +got):\n%s", diff)
		}
		c = r.dial()
		c.send("GET /v1/left HTTP/1.1\r\nHost: %s\r\n\r\n", r.addr)
		<-s.begin
		resp, err := http.ReadResponse(c.br, nil)
		must(t, err)
		s.say <- told
		_, err = io.ReadFull(resp.Body, make([]byte, len(told)))
		must(t, err)
		_ = c.nc.Close()
		within(t, 15*time.Second, s.gone)
		if diff := cmp.Diff(&one, r.event().Tokens); diff != "" {
			t.Errorf("audit of the one that was left (-want +got):\n%s", diff)
		}
	})
}

func TestStats(t *testing.T) {
	var s seen
	r := newRig(t)
	r.api(s.record)
	r.get("POST", "/v1/messages", "Content-Length: 0")
	r.get("DELETE", "/v1/files")
	r.event()
	r.event()
	got := r.srv.Stats()
	if got.Generation != 1 || got.Pooled != 1 || got.Pins != 1 || got.Tunnels != 0 || len(got.Agents) != 1 || got.Agents[0].BytesIn != 2 {
		t.Errorf("%+v", got)
	}
	var n uint64
	for _, c := range got.Upstream.Counts {
		n += c
	}
	if n != 1 || got.Upstream.Sum <= 0 || len(got.Upstream.Counts) != len(got.Upstream.Bounds)+1 {
		t.Errorf("histogram %+v", got.Upstream)
	}
	if fmt.Sprint(got.Upstream.Bounds[0]) != "0.001" {
		t.Errorf("bounds %v", got.Upstream.Bounds)
	}
}
