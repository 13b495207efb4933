package report

import (
	"fmt"
	"io"
	"math"
	"regexp"
	"strings"
	"testing"
	"time"

	"exitgate/policy"
)

func TestReport(t *testing.T) {
	start := time.Date(2026, 11, 22, 10, 0, 0, 0, time.UTC)
	var r Report
	for i := range 100 {
		r.Add(policy.Event{Time: start.Add(time.Duration(i) * time.Second), Event: "request", Agent: "claude", Decision: "allow", Method: "POST",
			Host: "api.anthropic.com", Path: "/v1/messages", Rule: "route/anthropic", BytesIn: 4096, BytesOut: 1024, Tokens: &policy.Tokens{Input: 10, Output: 2}})
	}
	for range 14 {
		r.Add(policy.Event{Time: start.Add(time.Minute), Event: "connect", Decision: "deny", Host: "statsig.anthropic.com", Port: 443, Exe: "/opt/claude", Reason: "not in egress"})
	}
	r.Add(policy.Event{Time: start, Event: "start", Decision: "allow", Reason: "generation 1"})
	r.Add(policy.Event{Time: start.Add(time.Minute), Event: "reload", Decision: "deny", Reason: "policy.yaml:3: unknown key"})
	r.Add(policy.Event{Time: start, Event: "denied_lookup", Decision: "deny", Host: `<script>alert("x")</script>`, Exe: "/tmp/<b>"})
	var b strings.Builder
	if err := r.Write(&b); err != nil {
		t.Fatal(err)
	}
	page := b.String()
	text := strings.Join(strings.Fields(regexp.MustCompile(`<[^>]*>`).ReplaceAllString(page, " ")), " ")
	for _, want := range []string{"allowed 100 ", "denied 15 ", "statsig.anthropic.com telemetry tunnel /opt/claude not in egress 10:01:00 14 ",
		"api.anthropic.com 100 0 400.0 KiB 100.0 KiB", "claude route/anthropic 100 1 000 200 0 0", "tokens 1 200 ",
		"policy refused policy.yaml:3: unknown key", "&lt;script&gt;", ", 14 denied "} {
		if !strings.Contains(text, want) {
			t.Errorf("the page lacks %q:\n%s", want, text)
		}
	}
	for _, never := range []string{"<script", "http://", "https://", "url(", "src="} {
		if strings.Contains(page, never) {
			t.Errorf("the page has %q", never)
		}
	}
}

func TestEmptyReport(t *testing.T) {
	var r Report
	var b strings.Builder
	if err := r.Write(&b); err != nil || !strings.Contains(b.String(), "The audit is empty") {
		t.Errorf("%v\n%s", err, b.String())
	}
}

// TestAnyTime: a proxy that was taken over says when its decisions were made, and the report is kept in PID 1.
func TestAnyTime(t *testing.T) {
	now := time.Date(2026, 11, 22, 10, 0, 0, 0, time.UTC)
	far := []time.Time{now, time.Unix(0, math.MinInt64), time.Unix(0, math.MaxInt64), {}, time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)}
	for _, first := range far {
		for _, second := range far {
			var r Report
			for _, at := range []time.Time{first, second, now} {
				r.Add(policy.Event{Time: at, Event: "request", Decision: "deny"})
			}
			counted := 0
			for _, b := range r.times.bins {
				counted += b.deny
			}
			if err := r.Write(io.Discard); err != nil || counted != 3 {
				t.Errorf("%v, %v: %d of 3 counted, %v", first, second, counted, err)
			}
		}
	}
}

// TestBounded: a report of very much is no bigger than one of much, and loses no count.
func TestBounded(t *testing.T) {
	start := time.Date(2026, 11, 22, 10, 0, 0, 0, time.UTC)
	var r Report
	const n = 3 * maxKept
	for i := range n {
		at := start.Add(time.Duration(i) * time.Minute)
		r.Add(policy.Event{Time: at, Event: "connect", Agent: fmt.Sprint("a", i), Decision: "deny", Host: fmt.Sprintf("h%d.example", i), Count: 2})
		r.Add(policy.Event{Time: at, Event: "request", Decision: "allow", Host: fmt.Sprintf("h%d.example", i), Rule: fmt.Sprint(i), Tokens: &policy.Tokens{Input: 1}})
		r.Add(policy.Event{Time: at, Event: "reload", Decision: "allow"})
	}
	for name, size := range map[string]int{"hosts": len(r.hosts), "denials": len(r.denials), "agents": len(r.agents), "tokens": len(r.tokens), "life": len(r.life)} {
		if size > maxKept+1 || size < maxEvents {
			t.Errorf("%d %s are kept", size, name)
		}
	}
	if r.denials[denialKey{what: others}].Count != 2*(n-maxKept) || r.total.Count != 3*n || r.forgotten != n-maxEvents {
		t.Errorf("counts are lost: %+v, %d, %d", r.denials[denialKey{what: others}], r.total.Count, r.forgotten)
	}
	var allow, deny int
	for _, b := range r.times.bins {
		allow, deny = allow+b.allow, deny+b.deny
	}
	if allow != n || deny != 2*n {
		t.Errorf("the timeline has %d and %d of %d and %d", allow, deny, n, 2*n)
	}
	if c := r.times.chart(r.last, nil); c.Span != time.Hour || c.From.Minute() != 0 || len(c.Bars) != n/60 {
		t.Errorf("%v from %v in %d bars", c.Span, c.From, len(c.Bars))
	}
}

// TestClean: what is kept went through Clean.
func TestClean(t *testing.T) {
	r := Report{Clean: func(s string) string { return strings.ReplaceAll(s, "FAKE", "****") }}
	for _, event := range []string{"request", "connect", "denied_lookup", "denied_packet", "reload"} {
		r.Add(policy.Event{Time: time.Unix(1, 0), Event: event, Decision: "deny", Host: "FAKE.example", Method: "FAKE", Path: "/FAKE", Exe: "/FAKE", Reason: "FAKE", Address: "FAKE", Proto: "FAKE"})
	}
	var b strings.Builder
	if err := r.Write(&b); err != nil || strings.Contains(b.String(), "FAKE") || !strings.Contains(b.String(), "****") {
		t.Errorf("%v\n%s", err, b.String())
	}
}
