package proxy

import (
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func quiet() *log.Logger { return log.New(io.Discard, "", 0) }

// seen is what an upstream got.
type seen struct {
	mu   sync.Mutex
	list []*got
}

type got struct {
	Method, Target, Host, Body string
	Header, Trailer            http.Header
	Encoding                   []string
	Length                     int64
	Proto                      string
}

// record is a handler that notes the request and answers 200.
func (s *seen) record(w http.ResponseWriter, req *http.Request) {
	body, err := io.ReadAll(req.Body)
	if err != nil {
		body = append(body, " error"...)
	}
	s.mu.Lock()
	s.list = append(s.list, &got{req.Method, req.RequestURI, req.Host, string(body), req.Header, req.Trailer, req.TransferEncoding, req.ContentLength, req.Proto})
	s.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	_, _ = io.WriteString(w, "{}")
}

func (s *seen) last(t testing.TB) *got {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.list) == 0 {
		t.Fatal("the upstream got no request")
	}
	return s.list[len(s.list)-1]
}

func (s *seen) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.list)
}

// protocols runs a test against an HTTP/1.1 and an HTTP/2 upstream.
func protocols(t *testing.T, f func(t *testing.T, proto string)) {
	for _, p := range []string{"http/1.1", "h2"} {
		t.Run(p, func(t *testing.T) { f(t, p) })
	}
}

func TestRequestPassesAsItCame(t *testing.T) {
	protocols(t, func(t *testing.T, proto string) {
		var s seen
		r := newRig(t)
		o := r.api(s.record, proto)
		long := strings.Repeat("x", 50<<10)
		for _, tc := range []struct {
			name   string
			method string
			target string
			fields []string
			body   string
			want   map[string][]string
		}{
			{name: "query unparsed", method: "GET", target: "/v1/models?a=b;c=d&beta=true;api_base=http://evil&%zz&&=&x=%41"},
			{name: "empty query", method: "GET", target: "/v1/models?"},
			{name: "two question marks", method: "GET", target: "/v1/models??x"},
			{name: "escapes", method: "GET", target: "/v1/a%20b%C3%A9"},
			{name: "head", method: "HEAD", target: "/"},
			{name: "get with body", method: "GET", target: "/v1/models", fields: []string{"Content-Length: 3"}, body: "abc"},
			{name: "empty post", method: "POST", target: "/v1/messages", fields: []string{"Content-Length: 0"}},
			{name: "post without length", method: "POST", target: "/v1/messages"},
			{name: "json body", method: "POST", target: "/v1/messages?beta=true", fields: []string{"Content-Length: 42"}, body: `{"api_base":"http://evil",  "cch":"\u00e9"}`[:42]},
			{
				name: "open lists, order and duplicates", method: "POST", target: "/v1/messages",
				fields: []string{
					"Content-Length: 0", "anthropic-version: 2023-06-01", "X-Claude-Code-Session-Id: 0b7c", "anthropic-beta: a,b", "Anthropic-Beta: c ,  d",
					"anthropic-new-thing:   spaced \t", "x-claude-code-x: 1", "X-Claude-Code-X: 2", "x-claude-code-x: 1", "x-stainless-lang: js", "x-app: cli",
					"User-Agent: claude-cli/2.1 (external, cli)", "anthropic-dangerous-direct-browser-access: true", "Accept: */*", "X-Empty:", "Pragma: no-cache",
					"X-Obs: caf\xe9", "X_Under: y", "X-Long: " + long[:15<<10], "Via: 1.1 mine", "X-Forwarded-For: 1.2.3.4", "Cache-Control: no-store",
				},
				want: map[string][]string{
					"Anthropic-Version": {"2023-06-01"}, "X-Claude-Code-Session-Id": {"0b7c"}, "Anthropic-Beta": {"a,b", "c ,  d"},
					"Anthropic-New-Thing": {"spaced"}, "X-Claude-Code-X": {"1", "2", "1"}, "X-Stainless-Lang": {"js"}, "X-App": {"cli"},
					"User-Agent": {"claude-cli/2.1 (external, cli)"}, "Anthropic-Dangerous-Direct-Browser-Access": {"true"}, "Accept": {"*/*"}, "X-Empty": {""},
					"Pragma": {"no-cache"}, "X-Obs": {"caf\xe9"}, "X_under": {"y"}, "X-Long": {long[:15<<10]}, "Via": {"1.1 mine"}, "X-Forwarded-For": {"1.2.3.4"},
					"Cache-Control": {"no-store"},
				},
			},
		} {
			t.Run(tc.name, func(t *testing.T) {
				c := r.dial()
				c.send("%s", tc.method+" "+tc.target+" HTTP/1.1\r\nHost: "+r.addr+"\r\n"+join(tc.fields)+"\r\n"+tc.body)
				resp, _ := c.answer(tc.method)
				if resp.StatusCode != 200 {
					t.Fatalf("status %d", resp.StatusCode)
				}
				g := s.last(t)
				want := http.Header{"X-Api-Key": {apiKey}, "Accept-Encoding": {"identity"}}
				for name, values := range tc.want {
					want[name] = values
				}
				if len(tc.body) > 0 || proto == "http/1.1" && contains(tc.fields, "Content-Length: 0") {
					want["Content-Length"] = []string{fmt.Sprint(len(tc.body))}
				}
				delete(g.Header, "Content-Length")
				delete(want, "Content-Length")
				if diff := cmp.Diff(want, g.Header); diff != "" {
					t.Errorf("header (-want +got):\n%s", diff)
				}
				if g.Method != tc.method || g.Target != tc.target || g.Body != tc.body || g.Host != fmt.Sprintf("api.example.test:%d", o.port) {
					t.Errorf("got %s %s host %s body %q", g.Method, g.Target, g.Host, g.Body)
				}
			})
		}
	})
}

// TestBodies sends bodies of every size around the limits, with a length and in
// chunks, in one piece and in many.
func TestBodies(t *testing.T) {
	protocols(t, func(t *testing.T, proto string) {
		var s seen
		r := newRig(t)
		r.api(s.record, proto)
		for _, size := range []int{1, 4095, 4096, 4097, 8191, 8192, 8193, 65536, bigBufferSize - 100, bigBufferSize, bigBufferSize + 1, 300 << 10, 2 << 20} {
			body := strings.Repeat("0123456789abcdef", size/16+1)[:size]
			c := r.dial()
			for _, chunk := range []int{0, size, size/3 + 1, 1000} {
				if chunk == 1000 && size > 100<<10 {
					continue
				}
				head := fmt.Sprintf("POST /v1/messages HTTP/1.1\r\nHost: %s\r\n", r.addr)
				if chunk == 0 {
					c.send("%sContent-Length: %d\r\n\r\n%s", head, size, body)
				} else {
					c.send("%sTransfer-Encoding: chunked\r\n\r\n%s", head, chunks(body, chunk))
				}
				if resp, _ := c.answer("POST"); resp.StatusCode != 200 {
					t.Fatalf("size %d in chunks of %d: status %d", size, chunk, resp.StatusCode)
				}
				g := s.last(t)
				if g.Body != body {
					t.Errorf("size %d in chunks of %d: %d bytes arrived", size, chunk, len(g.Body))
				}
				if proto == "http/1.1" && (chunk > 0) != contains(g.Encoding, "chunked") {
					t.Errorf("size %d in chunks of %d: encoding %v, length %d", size, chunk, g.Encoding, g.Length)
				}
			}
			_ = c.nc.Close()
		}
	})
}

func chunks(body string, size int) string {
	var b strings.Builder
	for part := range slices.Chunk([]byte(body), size) {
		fmt.Fprintf(&b, "%x\r\n%s\r\n", len(part), part)
	}
	return b.String() + "0\r\n\r\n"
}

func TestRequestTrailer(t *testing.T) {
	protocols(t, func(t *testing.T, proto string) {
		var s seen
		r := newRig(t)
		r.api(s.record, proto)
		for _, size := range []int{10, 300 << 10} {
			c := r.dial()
			body := chunks(strings.Repeat("b", size), size)
			c.send("POST /v1/messages HTTP/1.1\r\nHost: %s\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n%sX-Sum: 42\r\n\r\n", r.addr, strings.TrimSuffix(body, "\r\n"))
			if resp, _ := c.answer("POST"); resp.StatusCode != 200 {
				t.Fatalf("status %d", resp.StatusCode)
			}
			if g := s.last(t); len(g.Body) != size || g.Trailer.Get("X-Sum") != "42" {
				t.Errorf("%d bytes, trailer %v", len(g.Body), g.Trailer)
			}
		}
	})
}

// TestClientCredentials is group A of the leak table: whatever the client brings,
// the upstream sees the route's credential once and no other.
func TestClientCredentials(t *testing.T) {
	var s seen
	r := newRig(t)
	r.api(s.record)
	for _, fields := range [][]string{
		{},
		{"X-Api-Key: attacker"},
		{"x-api-key: attacker", "X-API-KEY: attacker2"},
		{"X_Api_Key: attacker"},
		{"x-api_key: attacker"},
		{"Authorization: Bearer attacker", "X-Api-Key: attacker"},
		{"Authorization: Basic YTphdHRhY2tlcg=="},
		{"Proxy-Authorization: Basic attacker"},
		{"Cookie: session=attacker", "Cookie2: attacker"},
		{"x-goog-api-key: attacker", "api-key: attacker", "Api_Key: attacker"},
		{"Connection: X-Api-Key"},
		{"Connection: close, X-Api-Key"},
		{"Connection: Authorization", "Connection: anthropic-beta", "anthropic-beta: attacker"},
		{"Connection: keep-alive, x-drop", "X-Drop: attacker"},
		{"Keep-Alive: attacker", "Proxy-Connection: attacker", "TE: trailers, attacker", "HTTP2-Settings: attacker"},
	} {
		t.Run(strings.Join(fields, "|"), func(t *testing.T) {
			before := s.count()
			resp, _ := r.get("GET", "/v1/models", append(fields, "X-Kept: yes")...)
			if resp.StatusCode != 200 || s.count() != before+1 {
				t.Fatalf("status %d, %d requests", resp.StatusCode, s.count()-before)
			}
			g := s.last(t)
			if diff := cmp.Diff([]string{apiKey}, g.Header["X-Api-Key"]); diff != "" {
				t.Errorf("credential (-want +got):\n%s", diff)
			}
			if g.Header.Get("X-Kept") != "yes" {
				t.Error("an ordinary field was lost")
			}
			for name, values := range g.Header {
				if strings.Contains(strings.Join(values, " "), "attacker") {
					t.Errorf("%s: %q got through", name, values)
				}
			}
		})
	}
}

func TestCredentialForms(t *testing.T) {
	for _, tc := range []struct {
		name, credential, secret string
		fields                   []string
		want                     http.Header
		status                   int
		message                  string
	}{
		{name: "anthropic key", credential: "kind: anthropic", secret: apiKey, want: http.Header{"X-Api-Key": {apiKey}}},
		{name: "anthropic token", credential: "kind: anthropic", secret: oatKey, want: http.Header{"Authorization": {"Bearer " + oatKey}, "Anthropic-Beta": {oauthBeta}}},
		{
			name: "beta is merged", credential: "kind: anthropic", secret: oatKey, fields: []string{"anthropic-beta: one,two", "anthropic-beta: three", "x-api-key: mine"},
			want: http.Header{"Authorization": {"Bearer " + oatKey}, "Anthropic-Beta": {"one,two", "three," + oauthBeta}},
		},
		{
			name: "beta is there", credential: "kind: anthropic", secret: oatKey, fields: []string{"anthropic-beta: one, " + oauthBeta + " ,two"},
			want: http.Header{"Authorization": {"Bearer " + oatKey}, "Anthropic-Beta": {"one, " + oauthBeta + " ,two"}},
		},
		{
			name: "beta is there twice", credential: "kind: anthropic", secret: oatKey, fields: []string{"anthropic-beta: " + oauthBeta + ",one", "anthropic-beta: " + oauthBeta},
			want: http.Header{"Authorization": {"Bearer " + oatKey}, "Anthropic-Beta": {oauthBeta + ",one"}},
		},
		{
			name: "beta in another case is another word", credential: "kind: anthropic", secret: oatKey, fields: []string{"anthropic-beta: OAuth-2025-04-20"},
			want: http.Header{"Authorization": {"Bearer " + oatKey}, "Anthropic-Beta": {"OAuth-2025-04-20," + oauthBeta}},
		},
		{
			name: "beta hidden behind connection", credential: "kind: anthropic", secret: oatKey, fields: []string{"Connection: anthropic-beta", "anthropic-beta: one"},
			want: http.Header{"Authorization": {"Bearer " + oatKey}, "Anthropic-Beta": {oauthBeta}},
		},
		{name: "neither", credential: "kind: anthropic", secret: "sk-FAKE-openai-0123456789", status: 503, message: "neither an sk-ant-oat nor an sk-ant-api"},
		{name: "bearer", credential: "header: Authorization", secret: otherKey, want: http.Header{"Authorization": {"Bearer " + otherKey}}},
		{name: "raw", credential: "header: Private-Token", secret: otherKey, fields: []string{"private_token: mine"}, want: http.Header{"Private-Token": {otherKey}}},
		{name: "format", credential: "header: Authorization\n    format: \"token {}\"", secret: otherKey, want: http.Header{"Authorization": {"token " + otherKey}}},
		{
			name: "basic", credential: "header: Authorization\n    format: \"basic:x-access-token\"", secret: otherKey,
			want: http.Header{"Authorization": {"Basic eC1hY2Nlc3MtdG9rZW46Z2hwX0ZBS0V0b2tlbkZBS0V0b2tlbkZBS0V0b2tlbjAxMjM0NTY3ODk="}},
		},
		{name: "empty", credential: "header: Authorization", secret: "", status: 503, message: "empty"},
		{name: "short", credential: "header: Authorization", secret: "secret7", status: 503, message: "less than 8 bytes"},
		{name: "line break", credential: "header: Authorization", secret: "abc\r\nX-Evil: 1", status: 503, message: "control character"},
		{name: "nul", credential: "header: Authorization", secret: "abcd\x00efgh", status: 503, message: "control character"},
		{name: "trailing newline", credential: "header: Authorization", secret: "abcdefgh\n", status: 503, message: "space at an end"},
		{name: "not ascii", credential: "header: Authorization", secret: "abcd\xefefgh", status: 503, message: "not ASCII"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var s seen
			r := newRig(t)
			o := r.origin(s.record)
			yaml := strings.Replace(apiPolicy(o.port), "kind: anthropic", tc.credential, 1)
			r.configure(yaml, map[string]Secret{"anthropic": {Value: []byte(tc.secret)}})
			resp, body := r.get("GET", "/v1/models", tc.fields...)
			if tc.status == 0 {
				tc.status = 200
			}
			if resp.StatusCode != tc.status || !strings.Contains(body, tc.message) {
				t.Fatalf("status %d, %s", resp.StatusCode, body)
			}
			if tc.status != 200 {
				if s.count() > 0 {
					t.Error("the request was forwarded all the same")
				}
				return
			}
			g := s.last(t)
			delete(g.Header, "Accept-Encoding")
			if diff := cmp.Diff(tc.want, g.Header); diff != "" {
				t.Errorf("header (-want +got):\n%s", diff)
			}
		})
	}
}

// TestBetaOnce: the client, the route and the token want the same word; the upstream reads it once.
func TestBetaOnce(t *testing.T) {
	for client, want := range map[string]string{"": "two," + oauthBeta, "one": "one," + oauthBeta + ",two", "two, " + oauthBeta: "two, " + oauthBeta} {
		var s seen
		r := newRig(t)
		o := r.origin(s.record)
		r.configure(apiPolicy(o.port)+"    headers: [{add: \"anthropic-beta: "+oauthBeta+", two\"}]\n", map[string]Secret{"anthropic": {Value: []byte(oatKey)}})
		var fields []string
		if client != "" {
			fields = append(fields, "anthropic-beta: "+client)
		}
		r.get("GET", "/v1/models", fields...)
		got := strings.Join(s.last(t).Header["Anthropic-Beta"], ",")
		if client == "" && got == oauthBeta+",two" {
			got = want // either order
		}
		if got != want {
			t.Errorf("%q became %q, want %q", client, got, want)
		}
	}
}

func TestBrokenCredential(t *testing.T) {
	var s seen
	r := newRig(t)
	o := r.origin(s.record)
	for _, secrets := range []map[string]Secret{nil, {"anthropic": {Broken: "its file is missing"}}, {"anthropic": {Value: []byte(apiKey), Broken: "its file is missing"}}} {
		r.configure(apiPolicy(o.port), secrets)
		resp, body := r.get("GET", "/v1/models")
		if resp.StatusCode != 503 || !strings.Contains(body, `credential \"anthropic\"`) {
			t.Errorf("%v: status %d, %s", secrets, resp.StatusCode, body)
		}
		if e := r.event(); e.Decision != "deny" || e.Rule != "route/anthropic" || e.Status != 503 {
			t.Errorf("audit %+v", e)
		}
	}
	if s.count() != 0 {
		t.Error("a request was forwarded without its credential")
	}
	r.configure(apiPolicy(o.port), apiSecrets())
	if resp, _ := r.get("GET", "/v1/models"); resp.StatusCode != 200 {
		t.Errorf("with its credential: status %d", resp.StatusCode)
	}
}

func TestRouteHeadersAndBase(t *testing.T) {
	var s seen
	r := newRig(t)
	o := r.origin(s.record)
	r.configure(oneAgent+fmt.Sprintf(`
routes:
  - name: deep
    path: /deep
    upstream: https://api.example.test:%d/base/path
    addresses: [127.0.0.0/8]
    headers:
      - add: "anthropic-beta: one, two"
      - add: "X-Fixed: yes"
    allow: [GET /**]
`, o.port), nil)
	resp, _ := r.get("GET", "/deep/x/y?q=1", "anthropic-beta: two", "Accept-Encoding: gzip", "Range: bytes=0-3", "Authorization: Bearer mine")
	if resp.StatusCode != 200 {
		t.Fatalf("status %d", resp.StatusCode)
	}
	g := s.last(t)
	want := http.Header{"Anthropic-Beta": {"two,one"}, "X-Fixed": {"yes"}, "Accept-Encoding": {"gzip"}, "Range": {"bytes=0-3"}}
	if diff := cmp.Diff(want, g.Header); diff != "" {
		t.Errorf("header (-want +got):\n%s", diff)
	}
	if g.Target != "/base/path/x/y?q=1" {
		t.Errorf("target %s", g.Target)
	}
}

// TestRefused is groups B and C: what is refused, with which status, and that the
// upstream hears nothing. The last row of each kind is the positive control.
func TestRefused(t *testing.T) {
	var s seen
	r := newRig(t)
	o := r.api(s.record)
	host := "Host: " + r.addr + "\r\n"
	for _, tc := range []struct {
		name, request string
		status        int
		says          string
	}{
		{"not in the table", "DELETE /v1/files HTTP/1.1\r\n" + host, 403, "DELETE /v1/files is not in route"},
		{"lower-case method", "get /v1/models HTTP/1.1\r\n" + host, 400, "method"},
		{"unknown method", "BREW /v1/models HTTP/1.1\r\n" + host, 403, "BREW"},
		{"trace", "TRACE /v1/models HTTP/1.1\r\n" + host, 403, "TRACE"},
		{"track", "TRACK /v1/models HTTP/1.1\r\n" + host, 403, "TRACK"},
		{"options star", "OPTIONS * HTTP/1.1\r\n" + host, 400, ""},
		{"connect to a path", "CONNECT /v1/models HTTP/1.1\r\n" + host, 400, ""},
		{"connect to the upstream", fmt.Sprintf("CONNECT api.example.test:%d HTTP/1.1\r\nHost: api.example.test:%d\r\n", o.port, o.port), 403, "not in egress"},
		{"host of another", "GET /v1/models HTTP/1.1\r\nHost: evil.example\r\n", 403, "Host"},
		{"host with userinfo", "GET /v1/models HTTP/1.1\r\nHost: 127.0.0.1@evil.example\r\n", 400, ""},
		{"host with other port", "GET /v1/models HTTP/1.1\r\nHost: 127.0.0.1:1\r\n", 403, "Host"},
		{"two hosts", "GET /v1/models HTTP/1.1\r\n" + host + host, 400, ""},
		{"no host", "GET /v1/models HTTP/1.1\r\n", 400, "host"},
		{"absolute to another", "GET http://evil.example/v1/models HTTP/1.1\r\nHost: evil.example\r\n", 403, "not in egress"},
		{"absolute to the upstream", fmt.Sprintf("GET http://api.example.test:%d/ HTTP/1.1\r\nHost: api.example.test:%d\r\n", o.port, o.port), 403, "not in egress"},
		{"absolute, other host", "GET http://" + r.addr + "/v1/models HTTP/1.1\r\nHost: evil.example\r\n", 400, ""},
		{"absolute https", "GET https://api.anthropic.com/ HTTP/1.1\r\nHost: api.anthropic.com\r\n", 400, "connect"},
		{"absolute with userinfo", "GET http://u:p@" + r.addr + "/v1/models HTTP/1.1\r\n" + host, 400, ""},
		{"ftp", "GET ftp://evil.example/ HTTP/1.1\r\nHost: evil.example\r\n", 400, ""},
		{"double slash", "GET //evil.example/v1/models HTTP/1.1\r\n" + host, 403, "empty segment"},
		{"dot segments", "GET /v1/../v1/files HTTP/1.1\r\n" + host, 403, "dot segment"},
		{"dot", "GET /v1/./models HTTP/1.1\r\n" + host, 403, "dot segment"},
		{"encoded dots", "GET /v1/%2e%2e/files HTTP/1.1\r\n" + host, 403, "encoded dot"},
		{"encoded slash", "GET /v1%2Fmodels HTTP/1.1\r\n" + host, 403, "encoded slash"},
		{"encoded backslash", "GET /v1%5cmodels HTTP/1.1\r\n" + host, 403, "backslash"},
		{"backslash", "GET /v1\\models HTTP/1.1\r\n" + host, 400, ""},
		{"path parameter", "GET /v1/models;x=1 HTTP/1.1\r\n" + host, 403, "semicolon"},
		{"fragment", "GET /v1/models#x HTTP/1.1\r\n" + host, 400, ""},
		{"nul", "GET /v1/models%00 HTTP/1.1\r\n" + host, 403, "control byte"},
		{"crlf", "GET /v1/models%0d%0aX:%20y HTTP/1.1\r\n" + host, 403, "control byte"},
		{"overlong", "GET /v1/%c0%afmodels HTTP/1.1\r\n" + host, 403, "UTF-8"},
		{"double escape", "GET /v1/%252e%252e HTTP/1.1\r\n" + host, 403, "percent"},
		{"method override", "POST /v1/messages HTTP/1.1\r\n" + host + "X-HTTP-Method-Override: DELETE\r\nContent-Length: 0\r\n", 403, "X-Http-Method-Override"},
		{"url override", "GET /v1/models HTTP/1.1\r\n" + host + "x-original_url: /v1/files\r\n", 403, "another method or path"},
		{"malformed chunk", "POST /v1/messages HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\nzz\r\n", 400, "hex digits"},
		{"web page", "POST /v1/messages HTTP/1.1\r\n" + host + "Origin: https://evil.example\r\nContent-Length: 0\r\n", 403, "web page"},
		{"sandboxed web page", "POST /v1/messages HTTP/1.1\r\n" + host + "Origin: null\r\nContent-Length: 0\r\n", 403, "web page"},
		{"websocket", "GET /v1/responses HTTP/1.1\r\n" + host + "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\n", 426, "upgraded"},
		{"h2c", "GET /v1/models HTTP/1.1\r\n" + host + "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: x\r\n", 426, ""},
		{"http/2 preface", "PRI * HTTP/2.0\r\n", 505, ""},
		{"http/1.0", "GET /v1/models HTTP/1.0\r\n" + host, 505, ""},
		{"length and chunked", "POST /v1/messages HTTP/1.1\r\n" + host + "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n", 400, ""},
		{"two lengths", "POST /v1/messages HTTP/1.1\r\n" + host + "Content-Length: 3\r\nContent-Length: 3\r\n", 400, ""},
		{"gzip, chunked", "POST /v1/messages HTTP/1.1\r\n" + host + "Transfer-Encoding: gzip, chunked\r\n", 501, ""},
		{"folded field", "GET /v1/models HTTP/1.1\r\n" + host + "X-A: b\r\n c\r\n", 400, ""},
		{"space before colon", "GET /v1/models HTTP/1.1\r\n" + host + "X-A : b\r\n", 400, ""},
		{"bare lf", "GET /v1/models HTTP/1.1\nHost: " + r.addr + "\n", 400, ""},
		{"leading crlf", "\r\nGET /v1/models HTTP/1.1\r\n" + host, 400, ""},
		{"expectation", "POST /v1/messages HTTP/1.1\r\n" + host + "Expect: 200-maybe\r\nContent-Length: 1\r\n", 417, ""},
		{"too large", "GET /v1/models HTTP/1.1\r\n" + host + "X-A: " + strings.Repeat("a", 70<<10) + "\r\n", 431, ""},
		{"too many fields", "GET /v1/models HTTP/1.1\r\n" + host + strings.Repeat("X-A: b\r\n", 1000), 431, ""},
		{"tls", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, ""},
		{"trailer with a credential", "POST /v1/messages HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\nTrailer: Authorization\r\n", 400, ""},

		{"control: plain", "GET /v1/models HTTP/1.1\r\n" + host, 200, "{}"},
		{"control: localhost", "GET /v1/models HTTP/1.1\r\nHost: localhost:8080\r\n", 200, "{}"},
		{"control: absolute to the listener", "GET http://" + r.addr + "/v1/models HTTP/1.1\r\n" + host, 200, "{}"},
		{"control: the listener's name in the policy", "GET http://127.0.0.1:8080/v1/models HTTP/1.1\r\nHost: 127.0.0.1:8080\r\n", 200, "{}"},
		{"control: local page", "POST /v1/messages HTTP/1.1\r\n" + host + "Origin: http://localhost:3000\r\nContent-Length: 0\r\n", 200, "{}"},
		{"control: large head", "GET /v1/models HTTP/1.1\r\n" + host + "X-A: " + strings.Repeat("a", 60<<10) + "\r\n", 200, "{}"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			before := s.count()
			c := r.dial()
			c.send("%s", tc.request+"\r\n")
			method, _, _ := strings.Cut(tc.request, " ")
			resp, body := c.answer(method)
			if resp.StatusCode != tc.status || !strings.Contains(body, tc.says) {
				t.Errorf("status %d, want %d, says %q: %s", resp.StatusCode, tc.status, tc.says, body)
			}
			e := r.event()
			if (e.Decision == "allow") != (tc.status == 200) || e.Status != tc.status || e.Agent != "claude" {
				t.Errorf("audit %+v", e)
			}
			if forwarded := s.count() - before; (tc.status == 200) != (forwarded == 1) {
				t.Errorf("%d requests were forwarded", forwarded)
			}
			if tc.status != 200 {
				checkRefusal(t, resp, body)
			}
		})
	}
	if n := r.names.count(); n > 20 {
		t.Errorf("%d names were resolved; refused requests cause no lookup: %v", n, r.names.asked)
	}
}

// TestFieldKinds: what each field is taken for, however it is spelled. The lists stand here a second time, so that a name that is
// lost from them is found.
func TestFieldKinds(t *testing.T) {
	kinds := newFieldKinds([]string{"Private-Token", strings.Repeat("X-Long-", 10)})
	answer := http.Header{"X-Plain": {"1"}}
	for kind, names := range map[fieldKind]string{
		fieldCredential: "Authorization Proxy-Authorization X-Api-Key X-Goog-Api-Key Api-Key Cookie Cookie2 Private-Token " + strings.Repeat("X-Long-", 10),
		fieldOverride:   "X-Http-Method-Override X-Http-Method X-Method-Override X-Original-Url X-Rewrite-Url X-Original-Uri",
		fieldHop:        "Connection Proxy-Connection Keep-Alive Proxy-Authenticate Te Trailer Transfer-Encoding Upgrade Http2-Settings",
		fieldPlain:      "Content-Type X-Api-Keys X-Plain Content-Length Host " + strings.Repeat("X-Longs", 10),
	} {
		for _, name := range strings.Fields(names) {
			for _, spelled := range []string{name, strings.ToUpper(name), strings.ReplaceAll(name, "-", "_")} {
				if got := kinds.of(spelled); got != kind {
					t.Errorf("%s is of kind %d, want %d", spelled, got, kind)
				}
			}
			if kind == fieldHop {
				answer[name] = []string{"1"}
			}
		}
	}
	answer["Proxy-Authorization"] = []string{"1"}
	if removeHopByHop(answer); len(answer) != 1 || answer["X-Plain"] == nil {
		t.Errorf("an answer keeps %v", answer)
	}
}

// checkRefusal holds a refusal to POLICY's shape.
func checkRefusal(t *testing.T, resp *http.Response, body string) {
	t.Helper()
	var v struct {
		Type  string
		Error struct{ Type, Message string }
	}
	if err := json.Unmarshal([]byte(body), &v); err != nil || v.Type != "error" || v.Error.Type == "" || !strings.HasPrefix(v.Error.Message, "exitgate: ") {
		t.Errorf("body %s: %v", body, err)
	}
	if d := resp.Header.Get("Exitgate-Decision"); !strings.HasPrefix(d, "deny; rule=") {
		t.Errorf("Exitgate-Decision: %q", d)
	}
	if ct := resp.Header.Get("Content-Type"); ct != "application/json" {
		t.Errorf("Content-Type: %q", ct)
	}
}

// TestAfterRefusal: a connection is good for another request after a refusal, and
// what followed a refused body is never taken for one.
func TestAfterRefusal(t *testing.T) {
	var s seen
	r := newRig(t)
	r.api(s.record)
	c := r.dial()
	ok := func() {
		t.Helper()
		c.send("GET /v1/models HTTP/1.1\r\nHost: %s\r\n\r\n", r.addr)
		if resp, _ := c.answer("GET"); resp.StatusCode != 200 {
			t.Fatalf("status %d", resp.StatusCode)
		}
	}
	for _, body := range []string{"", "hello", strings.Repeat("GET /v1/smuggled HTTP/1.1\r\n\r\n", 1000)} {
		c.send("DELETE /v1/files HTTP/1.1\r\nHost: %s\r\nContent-Length: %d\r\n\r\n%s", r.addr, len(body), body)
		if resp, _ := c.answer("DELETE"); resp.StatusCode != 403 {
			t.Fatalf("status %d", resp.StatusCode)
		}
		ok()
		c.send("DELETE /v1/files HTTP/1.1\r\nHost: %s\r\nTransfer-Encoding: chunked\r\n\r\n%s", r.addr, chunks(body+"x", 100))
		if resp, _ := c.answer("DELETE"); resp.StatusCode != 403 {
			t.Fatalf("status %d", resp.StatusCode)
		}
		ok()
	}
	// Pipelined behind a refusal.
	c.send("%s", strings.Repeat("DELETE /v1/files HTTP/1.1\r\nHost: "+r.addr+"\r\n\r\nGET /v1/models HTTP/1.1\r\nHost: "+r.addr+"\r\n\r\n", 3))
	for range 3 {
		if resp, _ := c.answer("DELETE"); resp.StatusCode != 403 {
			t.Fatalf("status %d", resp.StatusCode)
		}
		if resp, _ := c.answer("GET"); resp.StatusCode != 200 {
			t.Fatalf("status %d", resp.StatusCode)
		}
	}
	// A body too large to be read for nothing ends the connection, after the answer.
	c.send("DELETE /v1/files HTTP/1.1\r\nHost: %s\r\nContent-Length: %d\r\n\r\n", r.addr, 8<<20)
	go func() { _, _ = io.WriteString(c.nc, strings.Repeat("x", 8<<20)) }()
	if resp, _ := c.answer("DELETE"); resp.StatusCode != 403 || !resp.Close {
		t.Errorf("status %d, close %v", resp.StatusCode, resp.Close)
	}
	if !c.closed() {
		t.Error("the connection stayed open")
	}
}
