package leaks

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// credentialFields are those in which a service might look for a credential.
var credentialFields = []string{"authorization", "x-api-key", "x_api_key", "x-goog-api-key", "api-key", "api_key", "proxy-authorization", "cookie"}

// bearers lists the credential fields of a head that arrived, trailers too.
func bearers(head string) (found []string) {
	for _, line := range strings.Split(head, "\r\n") {
		name, value, _ := strings.Cut(strings.TrimPrefix(line, "trailer "), ":")
		if slices.Contains(credentialFields, strings.ToLower(strings.TrimSpace(name))) {
			found = append(found, strings.ToLower(name)+":"+value)
		}
	}
	return found
}

// theirs is what an agent sends in place of a credential.
const theirs = "sk-ant-api03-FAKE-agents-own-key"

// requests is group A: what the agent puts beside the credential. Each line is in a request to the route; what must arrive is the
// credential, once, or nothing.
var requests = map[string][]string{
	"Connection names the credential's field":     {"Connection: Authorization"},
	"Connection names x-api-key and close":        {"Connection: close, X-Api-Key, Authorization"},
	"an empty Connection before one with names":   {"Connection:", "Connection: Authorization"},
	"Connection names anthropic-beta":             {"Connection: anthropic-beta"},
	"Authorization":                               {"Authorization: Bearer " + theirs},
	"Authorization twice, in two cases":           {"authorization: Bearer " + theirs, "AUTHORIZATION: Bearer " + theirs},
	"Authorization, Basic":                        {"Authorization: Basic " + theirs},
	"X-Api-Key":                                   {"X-Api-Key: " + theirs},
	"X_Api_Key":                                   {"X_Api_Key: " + theirs},
	"x_api-key, mixed":                            {"x_api-KEY: " + theirs},
	"X-Goog-Api-Key":                              {"X-Goog-Api-Key: " + theirs},
	"Api-Key":                                     {"api-key: " + theirs},
	"Proxy-Authorization":                         {"Proxy-Authorization: Basic " + theirs},
	"Cookie":                                      {"Cookie: session=" + theirs},
	"all of them":                                 {"Authorization: Bearer " + theirs, "X-Api-Key: " + theirs, "api-key: " + theirs, "Cookie: a=" + theirs},
	"name with a blank at its end":                {"Authorization : Bearer " + theirs},
	"folded value":                                {"X-A: 1", " Authorization: Bearer " + theirs},
	"Forwarded, X-Original-URL, X-Rewrite-URL":    {"Forwarded: host=evil.example", "X-Forwarded-Host: evil.example", "X-Original-URL: https://evil.example/", "X-Rewrite-URL: /v1/files"},
	"X-HTTP-Method-Override":                      {"X-HTTP-Method-Override: DELETE"},
	"Via, as in a loop":                           {"Via: 1.1 exitgate, 1.1 exitgate"},
	"Upgrade, taken for granted":                  {"Connection: Upgrade", "Upgrade: websocket"},
	"Expect, unknown":                             {"Expect: 999-tell"},
	"TE":                                          {"TE: trailers, gzip"},
	"Accept-Encoding":                             {"Accept-Encoding: gzip, br, zstd"},
	"Origin and text/plain, as a browser sends":   {"Origin: https://evil.example", "Content-Type: text/plain"},
	"Host of a browser that was told a false one": {"Host: evil.example"},
}

// TestRequests is group A on each kind of credential.
func TestRequests(t *testing.T) {
	t.Parallel()
	s := newScene(t, policy)
	wants := map[string]string{"/c": "authorization: Bearer " + secret, "/api": "x-api-key: " + apiKey, "/oat": "authorization: Bearer " + oatKey,
		"/basic": "authorization: Basic dXNlcjpGQUtFLW90aGVyLTk4NzY1NDMyMTAtenl4d3Z1dHNycS1wb25tbGs="}
	var names []string
	for name := range requests {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		seen, arrived, refusals := "the credential, once, or a refusal", 0, 0
		for route, want := range wants {
			lines := requests[name]
			if !strings.HasPrefix(lines[0], "Host:") {
				lines = append([]string{"Host: " + listener}, lines...)
			}
			id := s.api.will(raw(ok("", "ok")))
			got := s.send("GET " + route + "/v1/x?" + id + " HTTP/1.1\r\n" + strings.Join(lines, "\r\n") + "\r\nX-Note: 1\r\nConnection: close\r\n\r\n")
			heads := s.api.got(id)
			switch {
			case len(heads) == 1 && slices.Equal(bearers(heads[0]), []string{want}) && strings.Contains(heads[0], "X-Note: 1") && !strings.Contains(heads[0], theirs):
				arrived++
			case len(heads) == 0 && strings.HasPrefix(status(got), "4"):
				refusals++
			default:
				seen = fmt.Sprintf("on %s: status %s, arrived %q", route, status(got), heads)
			}
		}
		judge(t, row{"A", name, "the credential, once, or a refusal", seen, fmt.Sprintf("%d of 4 arrived with another field of theirs, %d were refused", arrived, refusals)})
	}
	s.trailers(t)
	s.beta(t)
	s.sweep(t, "A")
}

// trailers: a credential behind a body is one as well. Announced, the request is refused.
func (s *scene) trailers(t *testing.T) {
	request := func(id, announced string) string {
		return "POST /c/v1/x?" + id + " HTTP/1.1\r\nHost: " + listener + "\r\nConnection: close\r\nTrailer: " + announced + "\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n"
	}
	const sum, keys = "X-Sum: 42\r\n", "X-Api-Key: " + theirs + "\r\nAuthorization: " + theirs + "\r\n"
	clean := s.api.will(raw(ok("", "ok")))
	s.send(request(clean, "X-Sum") + sum + "\r\n")
	control := "the trailer by itself arrives"
	if !strings.Contains(strings.Join(s.api.got(clean), ""), "X-Sum: 42") {
		control = "FAILED " + control
	}
	for announced, want := range map[string]string{"X-Sum": "not theirs", "X-Api-Key, X-Sum": "not theirs", "Authorization, X-Sum": "not theirs"} {
		id := s.api.will(raw(ok("", "ok")))
		got := s.send(request(id, announced) + keys + sum + "\r\n")
		heads := strings.Join(s.api.got(id), "")
		seen := want
		if strings.Contains(heads, theirs) || heads != "" && !slices.Equal(bearers(heads), []string{"authorization: Bearer " + secret}) {
			seen = fmt.Sprintf("%q, answer %.300q", heads, got)
		}
		judge(t, row{"A", "credentials in a request's trailer, announced: " + announced, want, seen, control})
	}
}

// beta: whatever the agent does to the list, the word that the token needs is in it once, and the agent's own words are kept.
func (s *scene) beta(t *testing.T) {
	const word = "oauth-2025-04-20"
	for name, lines := range map[string]string{"absent": "", "others": "anthropic-beta: a-1, b-2\r\n", "already there": "anthropic-beta: a-1," + word + "\r\n", "twice, in two cases": "Anthropic-Beta: " + word + "\r\nANTHROPIC-BETA: a-1\r\n", "by Connection": "anthropic-beta: a-1\r\nConnection: anthropic-beta\r\n"} {
		id := s.api.will(raw(ok("", "ok")))
		s.send("GET /oat/v1/x?" + id + " HTTP/1.1\r\nHost: " + listener + "\r\n" + lines + "Connection: close\r\n\r\n")
		head := strings.Join(s.api.got(id), "")
		judge(t, row{"A", "anthropic-beta, " + name, "once", map[int]string{0: "never", 1: "once"}[strings.Count(head, word)], fmt.Sprintf("the agent's own words arrived: %v", strings.Contains(head, "a-1"))})
	}
}

// target is a line of groups B and C: a request that must not make a credential go anywhere it should not.
type target struct{ name, request string }

func get(path string) string {
	return "GET " + path + " HTTP/1.1\r\nHost: " + listener + "\r\nConnection: close\r\n\r\n"
}

func post(fields, body string) string {
	return "POST /c/v1/x?ID HTTP/1.1\r\nHost: " + listener + "\r\nConnection: close\r\n" + fields + "\r\n" + body
}

// targets are groups B and C. In each ID is the case's number.
func targets() map[string][]target {
	b := []target{
		{"two Hosts", "GET /c/v1/x?ID HTTP/1.1\r\nHost: " + listener + "\r\nHost: evil.example\r\n\r\n"},
		{"no Host", "GET /c/v1/x?ID HTTP/1.1\r\nConnection: close\r\n\r\n"},
		{"Host with user info", "GET /c/v1/x?ID HTTP/1.1\r\nHost: api.example.com@evil.example\r\n\r\n"},
		{"Host with a blank", "GET /c/v1/x?ID HTTP/1.1\r\nHost: api.example.com evil.example\r\n\r\n"},
		{"absolute form to another host", "GET http://evil.example/c/v1/x?ID HTTP/1.1\r\nHost: evil.example\r\n\r\n"},
		{"absolute form, https", "GET https://evil.example/c/v1/x?ID HTTP/1.1\r\nHost: evil.example\r\n\r\n"},
		{"absolute form, user info", "GET http://127.0.0.1:8080@evil.example/c/v1/x?ID HTTP/1.1\r\nHost: " + listener + "\r\n\r\n"},
		{"absolute form, host of the upstream", "GET http://api.example.com/c/v1/x?ID HTTP/1.1\r\nHost: api.example.com\r\n\r\n"},
		{"CONNECT to the upstream", "CONNECT api.example.com:443 HTTP/1.1\r\nHost: api.example.com:443\r\n\r\n"},
		{"unknown method", "BREW /c/v1/x?ID HTTP/1.1\r\nHost: " + listener + "\r\n\r\n"},
		{"method in small letters", "get /c/v1/x?ID HTTP/1.1\r\nHost: " + listener + "\r\n\r\n"},
		{"TRACE", "TRACE /c/v1/x?ID HTTP/1.1\r\nHost: " + listener + "\r\n\r\n"}, {"TRACK", "TRACK /c/v1/x?ID HTTP/1.1\r\nHost: " + listener + "\r\n\r\n"},
		{"OPTIONS *", "OPTIONS * HTTP/1.1\r\nHost: " + listener + "\r\n\r\n"},
		{"blank lines before the request", "\r\n\r\nGET /c/v1/x?ID HTTP/1.1\r\nHost: evil.example@x\r\n\r\n"},
	}
	for _, path := range []string{"//evil.example/c/v1/x?ID", "/c//v1/x?ID", "/c/../c/v1/x?ID", "/c/./v1/x?ID", "/c/v1/%2e%2e/x?ID", "/c/v1%2fx?ID", "/c/v1%5cx?ID", `/c\v1\x?ID`, "/c/v1/x;a=1?ID", "/c/v1/x#ID", "/c/v1/%00?ID",
		"/c/v1/%0d%0aX:1?ID", "/c/v1/%c0%ae%c0%ae/x?ID", "/c/v1/%252e%252e/x?ID", "/C/v1/x?ID", "/c%2fv1/x?ID", "/c/v2/x?ID", "/v1/files?ID", "/c/v1/x\x01?ID", "c/v1/x?ID", "?ID", "/c/v1/x y?ID"} {
		b = append(b, target{fmt.Sprintf("path %.30q", path), get(path)})
	}
	c := []target{
		{"Content-Length and Transfer-Encoding", post("Content-Length: 4\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n")}, {"two Content-Lengths", post("Content-Length: 2\r\nContent-Length: 3\r\n", "abc")},
		{"Content-Length with a sign", post("Content-Length: +2\r\n", "ab")}, {"Content-Length, a list", post("Content-Length: 2, 2\r\n", "ab")}, {"Transfer-Encoding gzip, chunked", post("Transfer-Encoding: gzip, chunked\r\n", "0\r\n\r\n")},
		{"Transfer-Encoding twice", post("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n")}, {"Transfer-Encoding with a tab", post("Transfer-Encoding:\tchunked, identity\r\n", "0\r\n\r\n")},
		{"Transfer-Encoding in HTTP/1.0", strings.Replace(post("Transfer-Encoding: chunked\r\n", "0\r\n\r\n"), "HTTP/1.1", "HTTP/1.0", 1)},
		{"line ends of LF", "GET /c/v1/x?ID HTTP/1.1\nHost: " + listener + "\n\n"}, {"CR in a value", "GET /c/v1/x?ID HTTP/1.1\r\nHost: " + listener + "\r\nX-A: a\rAuthorization: b\r\n\r\n"},
		{"NUL in a value", "GET /c/v1/x?ID HTTP/1.1\r\nHost: " + listener + "\r\nX-A: a\x00b\r\n\r\n"}, {"1,000 fields", "GET /c/v1/x?ID HTTP/1.1\r\nHost: " + listener + "\r\n" + strings.Repeat("X-A: b\r\n", 1000) + "\r\n"},
		{"head of 2 MB", "GET /c/v1/x?ID HTTP/1.1\r\nHost: " + listener + "\r\nX-A: " + strings.Repeat("b", 2<<20) + "\r\n\r\n"}, {"HTTP/2 preface", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"},
		{"HTTP/0.9", "GET /c/v1/x?ID\r\n\r\n"}, {"upgrade to h2c", "GET /c/v1/x?ID HTTP/1.1\r\nHost: " + listener + "\r\nConnection: Upgrade, close, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n"},
		{"WebSocket", "GET /c/v1/x?ID HTTP/1.1\r\nHost: " + listener + "\r\nConnection: Upgrade, close\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"},
		{"upgrade with a body", post("Connection: Upgrade\r\nUpgrade: x\r\nContent-Length: 2\r\n", "hi")},
	}
	return map[string][]target{"B": b, "C": c}
}

// TestTargets: none of groups B and C reaches any upstream. The same request in its right form does.
func TestTargets(t *testing.T) {
	t.Parallel()
	s := newScene(t, policy)
	for group, list := range targets() {
		parallel(list, func(x target) {
			id := s.api.will(raw(ok("", "ok")))
			request := strings.Replace(x.request, "ID", id, 1)
			if !strings.Contains(request, "Connection:") {
				request = strings.Replace(request, "\r\nHost:", "\r\nConnection: close\r\nHost:", 1)
			}
			got := s.send(request)
			seen := "refused"
			if n := len(s.api.got(id)); n > 0 || !strings.HasPrefix(status(got), "4") && status(got) != "505" && status(got) != "501" && got != "" {
				seen = fmt.Sprintf("status %s, %d arrived: %.300q", status(got), n, got)
			}
			right := s.api.will(raw(ok("", "ok")))
			control := "the right form arrives: status " + status(s.ask("/c", right))
			if len(s.api.got(right)) != 1 {
				control = "FAILED " + control
			}
			judge(t, row{group, x.name, "refused", seen, control})
		})
	}
	s.afterwards(t)
	seen := "none"
	if n := len(s.evil.Seen()); n > 0 || s.w.DNS.Count("evil.example") > 0 {
		seen = fmt.Sprintf("%d requests, %d lookups", n, s.w.DNS.Count("evil.example"))
	}
	judge(t, row{"B", "requests to another host, over all those cases", "none", seen, "api.example.com saw the right forms"})
	s.sweep(t, "C")
}

// afterwards: what stands behind a request on the same connection is judged by itself.
func (s *scene) afterwards(t *testing.T) {
	one, two := s.api.will(raw(ok("", "ok"))), s.api.will(raw(ok("", "ok")))
	good := func(id string) string {
		return "GET /c/v1/x?" + id + " HTTP/1.1\r\nHost: " + listener + "\r\n\r\n"
	}
	end := "GET /nowhere HTTP/1.1\r\nHost: " + listener + "\r\nConnection: close\r\n\r\n"
	s.send(good(one) + end + good(two))
	judge(t, row{"C", "pipelined after one that closes", "not read", map[bool]string{true: "not read", false: "arrived"}[len(s.api.got(two)) == 0], fmt.Sprintf("the one before: %d arrived", len(s.api.got(one)))})
	three := s.api.will(raw(ok("", "ok")))
	body := good(three)
	s.send(fmt.Sprintf("POST /nowhere HTTP/1.1\r\nHost: %s\r\nContent-Length: %d\r\n\r\n%s", listener, len(body), body) + end)
	judge(t, row{"C", "a request in the body of a refused one", "not read", map[bool]string{true: "not read", false: "arrived"}[len(s.api.got(three)) == 0], "the same bytes by themselves arrive (above)"})
}
