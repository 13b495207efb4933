package report

import (
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
	for _, want := range []string{"<b>100</b>allowed", "<b>15</b>denied", "statsig.anthropic.com<td>/opt/claude<td>not in egress<td class=\"n\">14",
		"api.anthropic.com<td class=\"n\">100<td class=\"n\">0<td class=\"n\">400.0 KiB<td class=\"n\">100.0 KiB", "<td class=\"n\">1000<td class=\"n\">200",
		"refused<td>policy.yaml:3: unknown key", "&lt;script&gt;", ", 14 denied</title>"} {
		if !strings.Contains(page, want) {
			t.Errorf("the page lacks %q", want)
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
