package proxy

import (
	"math"
	"net/http"
	"strconv"
	"time"
	"unicode/utf8"

	"exitgate/policy"
	"exitgate/proxy/internal/head"
)

// refusal is an answer of our own in place of an upstream's. Every word in it is
// ours or the policy's; what a peer sent is never quoted.
type refusal struct {
	event   string // of the audit line; "": that of the request
	status  int
	rule    string // "": default
	reason  string // for the audit line
	message string // for the agent; "" makes "exitgate: " + reason
	retry   time.Duration
	failed  bool   // allowed, and then the upstream failed
	fields  string // further field lines, each with its CRLF
	close   bool   // the connection cannot be used again
}

func (r *refusal) text() string {
	if r.message != "" {
		return r.message
	}
	return "exitgate: " + r.reason
}

// deny is the refusal of a decision.
func deny(d policy.Decision) *refusal {
	return &refusal{status: http.StatusForbidden, rule: d.Rule, reason: d.Reason, message: d.Message()}
}

// denied is a refusal by a check that comes before any rule.
func denied(reason string) *refusal {
	return &refusal{status: http.StatusForbidden, reason: reason}
}

// limited is a 429. A client is told to come back only where that is soon.
func limited(reason string, retry time.Duration) *refusal {
	return &refusal{event: "limit", status: http.StatusTooManyRequests, reason: reason, retry: max(retry, time.Second)}
}

// refuse answers with r, notes it in the audit line, and reports whether the
// connection can serve another request. req is nil where there was none.
func (c *conn) refuse(r *refusal, req *http.Request) (again bool) {
	f := &c.flow
	f.event.Status, f.event.Reason = r.status, r.reason
	if r.rule != "" {
		f.event.Rule = r.rule
	}
	if r.event != "" {
		f.event.Event = r.event
	}
	if why := c.wasCut(); why != cutNone && why != cutStalled {
		f.event.Status, f.event.Reason = statusGone, cutReason(why)
		return false // nobody is there to hear it
	}
	if !r.failed {
		f.event.Decision = "deny"
	}
	f.answered = true
	f.close = f.close || r.close || req == nil || req.Close || c.srv.closed.Load()
	if req != nil && !f.close {
		f.close = (req.ContentLength > lingerSmall || len(req.Header["Expect"]) > 0) && !head.Finish(req, 0)
	}
	r.close = f.close
	if _, err := c.nc.Write(appendRefusal(nil, r, f.event.ID, f.event.Method)); err != nil {
		return false
	}
	return req != nil && c.finishBody(req)
}

// errorType is the Anthropic API's name for a status, by which its clients
// decide what to show.
func errorType(status int) string {
	switch status {
	case http.StatusForbidden:
		return "permission_error"
	case http.StatusTooManyRequests:
		return "rate_limit_error"
	case http.StatusRequestEntityTooLarge, http.StatusRequestHeaderFieldsTooLarge:
		return "request_too_large"
	}
	if status >= 500 {
		return "api_error"
	}
	return "invalid_request_error"
}

// appendRefusal appends the whole answer to a method. Where clients show no body, the status line says what is in it:
// of a refused CONNECT, net/http, Python's http.client, wget and Java tell their user that line and nothing else.
func appendRefusal(b []byte, r *refusal, id, method string) []byte {
	body := refusalBody(r)
	rule := r.rule
	if rule == "" {
		rule = "default"
	}
	b = append(b, "HTTP/1.1 "...)
	b = strconv.AppendInt(b, int64(r.status), 10)
	b = append(b, ' ')
	b = append(b, http.StatusText(r.status)...)
	if method == http.MethodConnect || method == http.MethodHead {
		b = append(b, ": "...)
		b = appendPrintable(b, r.text())
	}
	b = append(b, "\r\nContent-Type: application/json\r\nExitgate-Decision: deny; rule="...)
	b = appendPrintable(b, rule)
	b = append(b, "\r\nExitgate-Request-Id: "...)
	b = append(b, id...)
	b = append(b, "\r\nContent-Length: "...)
	b = strconv.AppendInt(b, int64(len(body)), 10)
	b = append(b, "\r\n"...)
	b = appendRetry(b, r)
	b = append(b, r.fields...)
	if r.close {
		b = append(b, "Connection: close\r\n"...)
	}
	b = append(b, "\r\n"...)
	if method == http.MethodHead {
		return b
	}
	return append(b, body...)
}

// retrySoon is how long a client may be asked to wait and repeat by itself;
// what takes longer is for its user to see.
const retrySoon = 2 * time.Minute

func appendRetry(b []byte, r *refusal) []byte {
	if r.status == http.StatusTooManyRequests {
		b = append(b, "Retry-After: "...)
		b = strconv.AppendInt(b, int64(math.Ceil(r.retry.Seconds())), 10)
		if r.retry <= retrySoon {
			return append(b, "\r\nX-Should-Retry: true\r\n"...)
		}
		return append(b, "\r\nX-Should-Retry: false\r\n"...)
	}
	if r.status == http.StatusForbidden || r.status == http.StatusServiceUnavailable {
		return append(b, "X-Should-Retry: false\r\n"...)
	}
	return b
}

func refusalBody(r *refusal) []byte {
	b := append(make([]byte, 0, 256), `{"type":"error","error":{"type":"`...)
	b = append(b, errorType(r.status)...)
	b = append(b, `","message":`...)
	b = appendJSONString(b, r.text())
	return append(b, "}}\n"...)
}

// appendJSONString escapes what JSON must and control characters, and nothing
// that would hide a quote or a backquote from the reader of a message.
func appendJSONString(b []byte, s string) []byte {
	const hex = "0123456789abcdef"
	b = append(b, '"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b = append(b, '\\', byte(r))
		case r < ' ' || r == 0x7f:
			b = append(b, `\u00`...)
			b = append(b, hex[r>>4], hex[r&15])
		default:
			b = utf8.AppendRune(b, r)
		}
	}
	return append(b, '"')
}

// appendPrintable appends s with everything but visible ASCII and spaces as '?'.
func appendPrintable(b []byte, s string) []byte {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c > '~' {
			b = append(b, '?')
		} else {
			b = append(b, c)
		}
	}
	return b
}
