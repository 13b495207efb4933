package leaks

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"unicode/utf8"

	"exitgate/integration/prober"
)

// auditLines are the decisions on requests so far.
func (s *scene) auditLines() (all []map[string]any) {
	for _, line := range s.Stderr.Lines() {
		var e map[string]any
		if json.Unmarshal([]byte(line), &e) == nil && e["event"] == "request" {
			all = append(all, e)
		}
	}
	return all
}

func events(parts ...string) answer {
	return answer{pieces: chunked("Content-Type: text/event-stream\r\n", parts...)}
}

const started = "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"usage\":{\"input_tokens\":1234,\"output_tokens\":1,\"cache_read_input_tokens\":55}}}\n\n"

// TestStreams is group I as far as it is about what is told, and of whom.
func TestStreams(t *testing.T) {
	t.Parallel()
	s := newScene(t, policy)
	tokens := func(path string) string {
		found := ""
		eventually(func() bool {
			for _, e := range s.auditLines() {
				if e["path"] == path {
					found = fmt.Sprint(e["tokens"])
				}
			}
			return found != ""
		})
		return found
	}
	ask := func(path string, a answer) {
		id := s.api.will(a)
		s.Agent().Do(prober.Probe{Op: "http", Address: listener, Data: []byte(get("/c/v1/" + path + "?" + id)), Timeout: patience})
	}
	const want = "map[cache_creation:0 cache_read:55 input:1234 output:1]"
	ask("whole", events(started, "event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n"))
	judge(t, row{"I", "usage of a stream", want, tokens("/c/v1/whole"), "sent by the upstream"})
	ask("cut", answer{pieces: []string{chunked("Content-Type: text/event-stream\r\n", started)[0], fmt.Sprintf("%x\r\n%s\r\n", len(started), started)}, end: true})
	judge(t, row{"I", "usage of a stream that the upstream cuts", want, tokens("/c/v1/cut"), "the whole one has the same"})
	left := events(started, ": ping\n\n")
	left.gate = make(chan struct{})
	defer close(left.gate)
	id := s.api.will(left)
	s.Agent().Do(prober.Probe{Op: "http", Address: listener, Data: []byte(get("/c/v1/left?" + id)), Read: len(started), Timeout: patience})
	judge(t, row{"I", "usage of a stream that the agent leaves", want, tokens("/c/v1/left"), "the whole one has the same"})
	for name, usage := range map[string]string{"negative": `{"input_tokens":-5}`, "too large": `{"input_tokens":99999999999999999999}`, "no number": `{"input_tokens":"x"}`, "NaN": `{"input_tokens":NaN}`} {
		path := strings.ReplaceAll(name, " ", "-")
		ask(path, events("event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"usage\":"+usage+"}}\n\n"))
		judge(t, row{"I", "usage that is " + name, "<nil>|map[cache_creation:0 cache_read:0 input:0 output:0]", tokens("/c/v1/" + path), "the whole one is counted"})
	}
	got := s.ask("/c", s.api.will(raw(ok("Exitgate-Decision: allow; rule=evil\r\nexitgate-request-id: evil\r\n", "ok"))))
	judge(t, row{"I", "a decision that the upstream forges", "taken out", map[bool]string{true: "taken out", false: "PASSES"}[!strings.Contains(got, "evil")], fmt.Sprintf("the answer itself comes: status %s", status(got))})
	s.sweep(t, "I")
}

// TestLogs is group K: nothing that an agent says makes a line of its own, and a query is never told.
func TestLogs(t *testing.T) {
	t.Parallel()
	s := newScene(t, policy)
	const marker = "FAKE-query-marker-0123456789"
	for name, request := range map[string]string{
		"query, allowed":            get("/c/v1/x?key=" + marker),
		"query, refused":            get("/c/v2/x?key=" + marker),
		"line break in the path":    get("/c/v1/%0a{\"event\":\"forged\"}"),
		"escape sequence in a path": get("/c/v1/%1b[2J\x1b[2J"),
		"quotes in the path":        get(`/c/v1/","event":"forged`),
		"not UTF-8":                 get("/c/v1/\xff\xfe"),
		"user agent":                strings.Replace(get("/c/v1/x"), "Connection:", "User-Agent: "+marker+"\x1b[31m\r\nX-Claude-Code-Session-Id: "+marker+"\r\nConnection:", 1),
		"very long path":            get("/c/v2/" + strings.Repeat("a", 20000)),
		"CONNECT with a long name":  "CONNECT " + strings.Repeat("a.", 2000) + ":443 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
	} {
		before := len(s.Stderr.Lines())
		got := s.send(request)
		told := eventually(func() bool { return len(s.Stderr.Lines()) > before })
		seen := "one sound line"
		for _, line := range s.Stderr.Lines()[before:] {
			var e map[string]any
			if err := json.Unmarshal([]byte(line), &e); err != nil || e["event"] == "forged" || strings.Contains(line, marker) || strings.Contains(line, "\x1b") || !utf8.ValidString(line) || len(line) > 8<<10 {
				seen = fmt.Sprintf("%.300q", line)
			}
		}
		if !told {
			seen = "no line"
		}
		judge(t, row{"K", name, "one sound line", seen, "answered with " + status(got)})
	}
	before, err := s.Status()
	if err != nil {
		t.Fatal(err)
	}
	for name, bad := range map[string]string{"with a secret in it": policy + "  - {name: z, path: /z, upstream: \"https://" + secret[:9] + ".example.com\", env: [\"A=" + apiKey + "\"]}\n", "not YAML": "version: 1\n  " + secret + ": [", "empty": ""} {
		if err := s.SetPolicy(bad); err != nil {
			t.Fatal(err)
		}
		out, err := s.Exitgate("reload")
		if err != nil {
			t.Fatal(err)
		}
		now, err := s.Status()
		if err != nil {
			t.Fatal(err)
		}
		seen := "refused, the old one stays"
		if out.Code == 0 || now["digest"] != before["digest"] || holds(out.Stdout+out.Stderr, apiKey) {
			seen = fmt.Sprintf("exit %d, %v, %.300q", out.Code, now["digest"], out.Stderr)
		}
		judge(t, row{"K", "reload of a policy that is " + name, "refused, the old one stays", seen, "the route works: " + status(s.ask("/c", s.api.will(raw(ok("", "ok")))))})
	}
}
