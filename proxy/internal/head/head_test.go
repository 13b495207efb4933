package head

import (
	"bufio"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"
)

// crlf writes a request the way the tables below have it: lines with LF.
func crlf(s string) string { return strings.ReplaceAll(s, "\n", "\r\n") }

func readString(s string, lim Limits) (*http.Request, error) {
	return Read(bufio.NewReader(strings.NewReader(s)), lim)
}

var accepted = map[string]struct {
	in          string // lines end in LF here
	method, uri string
	host        string
	length      int64
	header      http.Header
}{
	"origin form":        {in: "GET / HTTP/1.1\nHost: a\n\n", method: "GET", uri: "/", host: "a"},
	"query as it came":   {in: "GET /v1?a=b;c=d&%zz|\"{} HTTP/1.1\nHost: a\n\n", method: "GET", uri: "/v1?a=b;c=d&%zz|\"{}", host: "a"},
	"second question":    {in: "GET /v1?? HTTP/1.1\nHost: a\n\n", method: "GET", uri: "/v1??", host: "a"},
	"escapes":            {in: "GET /a%20b/%C3%a9 HTTP/1.1\nHost: a\n\n", method: "GET", uri: "/a%20b/%C3%a9", host: "a"},
	"absolute form":      {in: "GET http://A.example:80/x?y HTTP/1.1\nHost: a.example\n\n", method: "GET", uri: "http://A.example:80/x?y", host: "A.example:80"},
	"absolute, no path":  {in: "GET http://a.example?y HTTP/1.1\nHost: a.example:80\n\n", method: "GET", uri: "http://a.example?y", host: "a.example"},
	"absolute, listener": {in: "POST http://127.0.0.1:8080/v1/messages HTTP/1.1\nHost: 127.0.0.1:8080\nContent-Length: 0\n\n", method: "POST", uri: "http://127.0.0.1:8080/v1/messages", host: "127.0.0.1:8080"},
	"absolute, alone":    {in: "GET http://a.example HTTP/1.1\nHost: a.example\n\n", method: "GET", uri: "http://a.example", host: "a.example"},
	"method from A to Z": {in: "AZ / HTTP/1.1\nHost: a\n\n", method: "AZ", uri: "/", host: "a"},
	"method to A from Z": {in: "ZA / HTTP/1.1\nHost: a\n\n", method: "ZA", uri: "/", host: "a"},
	"port 65535":         {in: "CONNECT a.example:65535 HTTP/1.1\nHost: a.example\n\n", method: "CONNECT", uri: "a.example:65535", host: "a.example:65535"},
	"connect":            {in: "CONNECT a.example:443 HTTP/1.1\nHost: a.example:443\n\n", method: "CONNECT", uri: "a.example:443", host: "a.example:443"},
	"connect, no port":   {in: "CONNECT a.example:443 HTTP/1.1\nHost: a.example\n\n", method: "CONNECT", uri: "a.example:443", host: "a.example:443"},
	"connect, 1.0":       {in: "CONNECT a.example:443 HTTP/1.0\n\n", method: "CONNECT", uri: "a.example:443", host: "a.example:443"},
	"connect, IPv6":      {in: "CONNECT [2001:db8::1]:443 HTTP/1.1\nHost: [2001:db8::1]:443\n\n", method: "CONNECT", uri: "[2001:db8::1]:443", host: "[2001:db8::1]:443"},
	"length":             {in: "POST /a HTTP/1.1\nHost: a\nContent-Length: 12\n\n", method: "POST", uri: "/a", host: "a", length: 12},
	"chunked":            {in: "POST /a HTTP/1.1\nHost: a\nTransfer-Encoding: chunked\n\n", method: "POST", uri: "/a", host: "a", length: -1},
	"expect":             {in: "PUT /a HTTP/1.1\nHost: a\nExpect: 100-Continue\nContent-Length: 1\n\n", method: "PUT", uri: "/a", host: "a", length: 1},
	"trailer announced":  {in: "PUT /a HTTP/1.1\nHost: a\nTrailer: X-Sum, Hosts, X-Api\nTransfer-Encoding: chunked\n\n", method: "PUT", uri: "/a", host: "a", length: -1},
	"values, order, obs-text": {in: "GET / HTTP/1.1\nhost: a\nanthropic-beta: b,a\nX-Y:\t two  words \t\nAnthropic-Beta: c\nx-empty:\nx-name: caf\xe9\n\n",
		method: "GET", uri: "/", host: "a",
		header: http.Header{"Anthropic-Beta": {"b,a", "c"}, "X-Y": {"two  words"}, "X-Empty": {""}, "X-Name": {"caf\xe9"}}},
	"connection twice": {in: "GET / HTTP/1.1\nhost: a\nConnection: x-hop\nConnection: close\n\n", method: "GET", uri: "/", host: "a",
		header: http.Header{"Connection": {"x-hop", "close"}}},
	"underscore in a name of no meaning": {in: "GET / HTTP/1.1\nhost: a\nX_Y: 1\n\n", method: "GET", uri: "/", host: "a",
		header: http.Header{"X_y": {"1"}}},
	"pragma in absolute form": {in: "GET http://a/ HTTP/1.1\nhost: a\nPragma: no-cache\n\n", method: "GET", uri: "http://a/", host: "a",
		header: http.Header{"Pragma": {"no-cache"}}},
	"both in absolute form": {in: "GET http://a/ HTTP/1.1\nhost: a\nPragma: no-cache\nCache-Control: no-cache\n\n", method: "GET", uri: "http://a/", host: "a",
		header: http.Header{"Pragma": {"no-cache"}, "Cache-Control": {"no-cache"}}},
	"pragma alone": {in: "GET / HTTP/1.1\nhost: a\nPragma: no-cache\n\n", method: "GET", uri: "/", host: "a",
		header: http.Header{"Pragma": {"no-cache"}}},
	"pragma and cache-control": {in: "GET / HTTP/1.1\nhost: a\nPragma: no-cache\nCache-Control: no-store\n\n", method: "GET", uri: "/", host: "a",
		header: http.Header{"Pragma": {"no-cache"}, "Cache-Control": {"no-store"}}},
}

func TestAccepts(t *testing.T) {
	for name, tt := range accepted {
		t.Run(name, func(t *testing.T) {
			req, err := readString(crlf(tt.in), Limits{})
			if err != nil {
				t.Fatal(err)
			}
			got := []any{req.Method, req.RequestURI, req.Host, req.ContentLength, req.URL == nil, req.Body == http.NoBody}
			if diff := cmp.Diff([]any{tt.method, tt.uri, tt.host, tt.length, true, tt.length == 0}, got); diff != "" {
				t.Error(diff)
			}
			if tt.header != nil {
				if diff := cmp.Diff(tt.header, req.Header); diff != "" {
					t.Error(diff)
				}
			}
		})
	}
}

// okHost is the Host field of requests that fail for another reason.
const okHost = "Host: a\n"

var refused = map[string]struct {
	in     string // LF for CRLF, unless raw
	raw    bool
	status int
	reason string
}{
	"leading CRLF":         {in: "\nGET / HTTP/1.1\n" + okHost + "\n", reason: "begin with"},
	"lower-case method":    {in: "get / HTTP/1.1\n" + okHost + "\n", reason: "begin with"},
	"mixed-case method":    {in: "Get / HTTP/1.1\n" + okHost + "\n", reason: "method"},
	"TLS":                  {in: "\x16\x03\x01\x02\x00\x01", raw: true, reason: "http:// in place of https://"},
	"HTTP/2 preface":       {in: "PRI * HTTP/2.0\n\nSM\n\n", status: 505, reason: "version"},
	"HTTP/0.9":             {in: "GET /\n\n", reason: "request line"},
	"HTTP/1.0":             {in: "GET / HTTP/1.0\n" + okHost + "\n", status: 505, reason: "version"},
	"HTTP/1.2":             {in: "GET / HTTP/1.2\n" + okHost + "\n", status: 505, reason: "version"},
	"no version":           {in: "GET / FTP/1.1\n" + okHost + "\n", reason: "request line"},
	"two spaces":           {in: "GET  / HTTP/1.1\n" + okHost + "\n", reason: "request line"},
	"no target":            {in: "GET  HTTP/1.1\n" + okHost + "\n", reason: "request line"},
	"connect, no target":   {in: "CONNECT  HTTP/1.1\n" + okHost + "\n", reason: "request line"},
	"method too long":      {in: strings.Repeat("A", 33) + " / HTTP/1.1\n" + okHost + "\n", reason: "method"},
	"connect, HTTP/1.2":    {in: "CONNECT a:443 HTTP/1.2\n" + okHost + "\n", status: 505, reason: "version"},
	"space in target":      {in: "GET /a b HTTP/1.1\n" + okHost + "\n", reason: "request line"},
	"space at the end":     {in: "GET / HTTP/1.1 \n" + okHost + "\n", reason: "request line"},
	"tab":                  {in: "GET\t/ HTTP/1.1\n" + okHost + "\n", reason: "method"},
	"asterisk":             {in: "OPTIONS * HTTP/1.1\n" + okHost + "\n", reason: "target"},
	"no slash":             {in: "GET a HTTP/1.1\n" + okHost + "\n", reason: "target"},
	"opaque":               {in: "GET http:a HTTP/1.1\n" + okHost + "\n", reason: "target"},
	"scheme upper case":    {in: "GET HTTP://a/ HTTP/1.1\n" + okHost + "\n", reason: "target"},
	"https absolute":       {in: "GET https://a/ HTTP/1.1\n" + okHost + "\n", reason: "use connect"},
	"userinfo":             {in: "GET http://a@b/ HTTP/1.1\nHost: b\n\n", reason: "HOST"},
	"empty authority":      {in: "GET http:///a HTTP/1.1\n" + okHost + "\n", reason: "HOST"},
	"escape in authority":  {in: "GET http://%61/ HTTP/1.1\n" + okHost + "\n", reason: "HOST"},
	"backslash":            {in: "GET /a\\b HTTP/1.1\n" + okHost + "\n", reason: "escaped"},
	"fragment":             {in: "GET /a#b HTTP/1.1\n" + okHost + "\n", reason: "escaped"},
	"NUL":                  {in: "GET /a\x00b HTTP/1.1\n" + okHost + "\n", reason: "escaped"},
	"non-ASCII":            {in: "GET /\u00e9 HTTP/1.1\n" + okHost + "\n", reason: "escaped"},
	"bad escape":           {in: "GET /%4 HTTP/1.1\n" + okHost + "\n", reason: "percent"},
	"bad first digit":      {in: "GET /%g0 HTTP/1.1\n" + okHost + "\n", reason: "percent"},
	"bad second digit":     {in: "GET /%0g HTTP/1.1\n" + okHost + "\n", reason: "percent"},
	"bad second escape":    {in: "GET /%41%4 HTTP/1.1\n" + okHost + "\n", reason: "percent"},
	"CR in target":         {in: "GET /a\rb HTTP/1.1\r\nHost: a\r\n\r\n", raw: true, reason: "escaped"},
	"connect to path":      {in: "CONNECT /a HTTP/1.1\n" + okHost + "\n", reason: "HOST:PORT"},
	"connect without port": {in: "CONNECT a HTTP/1.1\n" + okHost + "\n", reason: "HOST:PORT"},
	"connect port 0":       {in: "CONNECT a:0 HTTP/1.1\n" + okHost + "\n", reason: "HOST:PORT"},
	"connect port 65536":   {in: "CONNECT a:65536 HTTP/1.1\n" + okHost + "\n", reason: "HOST:PORT"},
	"connect port 0443":    {in: "CONNECT a:0443 HTTP/1.1\n" + okHost + "\n", reason: "HOST:PORT"},
	"connect port wraps":   {in: "CONNECT a:18446744073709552059 HTTP/1.1\n" + okHost + "\n", reason: "HOST:PORT"}, // 1<<64 + 443
	"connect userinfo":     {in: "CONNECT u@a:443 HTTP/1.1\n" + okHost + "\n", reason: "HOST:PORT"},
	"connect zone":         {in: "CONNECT [fe80::1%25eth0]:443 HTTP/1.1\nHost: [fe80::1]:443\n\n", reason: "HOST:PORT"},
	"connect IPv4 bracket": {in: "CONNECT [127.0.0.1]:443 HTTP/1.1\nHost: a\n\n", reason: "HOST:PORT"},
	"connect NUL":          {in: "CONNECT a\x00.b:443 HTTP/1.1\n" + okHost + "\n", reason: "escaped"},
	"connect, other Host":  {in: "CONNECT a:443 HTTP/1.1\nHost: b:443\n\n", reason: "differ"},
	"connect, other port":  {in: "CONNECT a:443 HTTP/1.1\nHost: a:444\n\n", reason: "differ"},
	"connect, no Host":     {in: "CONNECT a:443 HTTP/1.1\n\n", reason: "no host"},
	"connect with body":    {in: "CONNECT a:443 HTTP/1.1\nHost: a\nContent-Length: 1\n\n", reason: "body"},
	"connect chunked":      {in: "CONNECT a:443 HTTP/1.1\nHost: a\nTransfer-Encoding: chunked\n\n", reason: "body"},
	"absolute, other Host": {in: "GET http://a/ HTTP/1.1\nHost: b\n\n", reason: "differ"},
	"absolute, other port": {in: "GET http://a/ HTTP/1.1\nHost: a:81\n\n", reason: "differ"},
	"bare LF":              {in: "GET / HTTP/1.1\nHost: a\n\n", raw: true, reason: "CRLF"},
	"bare LF at the end":   {in: "GET / HTTP/1.1\r\nHost: a\r\n\n", raw: true, reason: "CRLF"},
	"bare LF in a field":   {in: "GET / HTTP/1.1\r\nHost: a\nX: b\r\n\r\n", raw: true, reason: "CRLF"},
	"bare CR in a field":   {in: "GET / HTTP/1.1\r\nHost: a\r\nX: b\rY: c\r\n\r\n", raw: true, reason: "control"},
	"two CR":               {in: "GET / HTTP/1.1\r\nHost: a\r\r\n\r\n", raw: true, reason: "control"},
	"folded field":         {in: "GET / HTTP/1.1\nHost: a\nX: b\n c\n\n", reason: "folded"},
	"folded by a tab":      {in: "GET / HTTP/1.1\nHost: a\nX: b\n\tc\n\n", reason: "folded"},
	"folded first field":   {in: "GET / HTTP/1.1\n Host: a\n\n", reason: "folded"},
	"blank before colon":   {in: "GET / HTTP/1.1\nHost: a\nTransfer-Encoding : chunked\n\n", reason: "token"},
	"no colon":             {in: "GET / HTTP/1.1\nHost: a\nX\n\n", reason: "colon"},
	"no name":              {in: "GET / HTTP/1.1\nHost: a\n: b\n\n", reason: "token"},
	"obs-text in name":     {in: "GET / HTTP/1.1\nHost: a\nX-Caf\xe9: b\n\n", reason: "token"},
	"NUL in value":         {in: "GET / HTTP/1.1\nHost: a\nX: \x00\n\n", reason: "control"},
	"DEL in value":         {in: "GET / HTTP/1.1\nHost: a\nX: \x7f\n\n", reason: "control"},
	"no host":              {in: "GET / HTTP/1.1\n\n", reason: "no host"},
	"two hosts":            {in: "GET / HTTP/1.1\nHost: a\nhost: a\n\n", reason: "twice"},
	"empty host":           {in: "GET / HTTP/1.1\nHost:\n\n", reason: "host"},
	"host with userinfo":   {in: "GET / HTTP/1.1\nHost: a@b\n\n", reason: "host"},
	"host, userinfo, port": {in: "GET / HTTP/1.1\nHost: a:80@b\n\n", reason: "host"},
	"host with path":       {in: "GET / HTTP/1.1\nHost: a/b\n\n", reason: "host"},
	"host list":            {in: "GET / HTTP/1.1\nHost: a, b\n\n", reason: "host"},
	"host empty label":     {in: "GET / HTTP/1.1\nHost: a..b\n\n", reason: "host"},
	"host leading dot":     {in: "GET / HTTP/1.1\nHost: .a\n\n", reason: "host"},
	"host too long":        {in: "GET / HTTP/1.1\nHost: " + strings.Repeat("a.", 128) + "\n\n", reason: "host"},
	"host, open bracket":   {in: "GET / HTTP/1.1\nHost: [2001:db8::1x:443\n\n", reason: "host"},
	"host empty port":      {in: "GET / HTTP/1.1\nHost: a:\n\n", reason: "host"},
	"CL and TE":            {in: "POST / HTTP/1.1\nHost: a\nContent-Length: 3\nTransfer-Encoding: chunked\n\n", reason: "beside"},
	"TE and CL":            {in: "POST / HTTP/1.1\nHost: a\nTransfer-Encoding: chunked\nContent-Length: 0\n\n", reason: "beside"},
	"two CL":               {in: "POST / HTTP/1.1\nHost: a\nContent-Length: 3\nContent-Length: 3\n\n", reason: "twice"},
	"CL list":              {in: "POST / HTTP/1.1\nHost: a\nContent-Length: 3, 3\n\n", reason: "decimal"},
	"CL sign":              {in: "POST / HTTP/1.1\nHost: a\nContent-Length: +3\n\n", reason: "decimal"},
	"CL negative":          {in: "POST / HTTP/1.1\nHost: a\nContent-Length: -3\n\n", reason: "decimal"},
	"CL hex":               {in: "POST / HTTP/1.1\nHost: a\nContent-Length: 0x3\n\n", reason: "decimal"},
	"CL empty":             {in: "POST / HTTP/1.1\nHost: a\nContent-Length:\n\n", reason: "decimal"},
	"CL huge":              {in: "POST / HTTP/1.1\nHost: a\nContent-Length: 9999999999999999999\n\n", reason: "decimal"},
	"CL leading zero":      {in: "POST / HTTP/1.1\nHost: a\nContent-Length: 03\n\n", reason: "decimal"},
	"CL underscore":        {in: "POST / HTTP/1.1\nHost: a\nContent_Length: 3\n\n", reason: "underscore"},
	"TE gzip, chunked":     {in: "POST / HTTP/1.1\nHost: a\nTransfer-Encoding: gzip, chunked\n\n", status: 501, reason: "transfer-encoding"},
	"TE identity":          {in: "POST / HTTP/1.1\nHost: a\nTransfer-Encoding: identity\n\n", status: 501, reason: "transfer-encoding"},
	"TE upper case":        {in: "POST / HTTP/1.1\nHost: a\nTransfer-Encoding: Chunked\n\n", status: 501, reason: "transfer-encoding"},
	"TE vertical tab":      {in: "POST / HTTP/1.1\nHost: a\nTransfer-Encoding: \vchunked\n\n", reason: "control"},
	"two TE":               {in: "POST / HTTP/1.1\nHost: a\nTransfer-Encoding: chunked\nTransfer-Encoding: chunked\n\n", reason: "twice"},
	"two content types":    {in: "POST / HTTP/1.1\nHost: a\nContent-Type: a/b\ncontent-type: c/d\n\n", reason: "twice"},
	"expect":               {in: "POST / HTTP/1.1\nHost: a\nExpect: 200-maybe\n\n", status: 417, reason: "expectation"},
	"connection host":      {in: "GET / HTTP/1.1\nHost: a\nConnection: close, Host\n\n", reason: "connection"},
	"connection empty":     {in: "GET / HTTP/1.1\nHost: a\nConnection:\n\n", reason: "list"},
	"connection comma":     {in: "GET / HTTP/1.1\nHost: a\nConnection: , X-Api-Key\n\n", reason: "list"},
	"connection quoted":    {in: "GET / HTTP/1.1\nHost: a\nConnection: \"close\"\n\n", reason: "list"},
	"trailer credential":   {in: "GET / HTTP/1.1\nHost: a\nTransfer-Encoding: chunked\nTrailer: X-Sum, X_API_Key\n\n", reason: "trailer"},
	"trailer, no chunks":   {in: "GET / HTTP/1.1\nHost: a\nTrailer: X-Sum\n\n", reason: "trailer"},
	"line too long":        {in: "GET /" + strings.Repeat("a", 17<<10) + " HTTP/1.1\nHost: a\n\n", status: 414, reason: "line"},
	"line without end":     {in: "GET /" + strings.Repeat("a", 17<<10), raw: true, status: 414, reason: "line"},
	"field too long":       {in: "GET / HTTP/1.1\nHost: a\nX: " + strings.Repeat("a", 17<<10) + "\n\n", status: 431, reason: "field"},
	"too many fields":      {in: "GET / HTTP/1.1\nHost: a\n" + strings.Repeat("X: y\n", 1000) + "\n", status: 431, reason: "fields"},
	"head too large":       {in: "GET / HTTP/1.1\nHost: a\n" + strings.Repeat("X: "+strings.Repeat("a", 8000)+"\n", 10) + "\n", status: 431, reason: "head"},
}

// The lists of fields that a trailer or a Connection must not name stand here a second time: a field that is lost from
// those of the package is found.
func init() {
	for _, name := range strings.Fields("Host Content-Length Transfer-Encoding Trailer Connection Content-Type") {
		for what, field := range map[string]string{"connection": "Connection: close, ", "trailer": "Transfer-Encoding: chunked\nTrailer: "} {
			c := refused["two hosts"]
			c.in, c.reason = "GET / HTTP/1.1\nHost: a\n"+field+name+"\n\n", what
			refused[what+" names "+name] = c
		}
	}
	for _, name := range strings.Fields("TE Keep-Alive Upgrade Expect Content-Encoding Content-Range Range Max-Forwards Cache-Control Pragma " +
		"AUTHORIZATION Proxy-Authorization Proxy-Connection Cookie X-Api-Key Api-Key X-Goog-Api-Key") {
		c := refused["two hosts"]
		c.in, c.reason = "GET / HTTP/1.1\nHost: a\nTransfer-Encoding: chunked\nTrailer: "+name+"\n\n", "trailer"
		refused["trailer names "+name] = c
	}
}

func TestRefuses(t *testing.T) {
	for name, tt := range refused {
		t.Run(name, func(t *testing.T) {
			in := tt.in
			if !tt.raw {
				in = crlf(in)
			}
			for _, size := range []int{16, 4096, 1 << 17} { // in place, and collected
				req, err := Read(bufio.NewReaderSize(strings.NewReader(in), size), Limits{})
				var e *Error
				if !errors.As(err, &e) {
					t.Fatalf("buffer of %d: got request %v, error %v; want a refusal", size, req, err)
				}
				if tt.status == 0 {
					tt.status = 400
				}
				if e.Status != tt.status || !strings.Contains(e.Reason, tt.reason) {
					t.Errorf("buffer of %d: got %d %q, want %d %q", size, e.Status, e.Reason, tt.status, tt.reason)
				}
			}
		})
	}
}

// A head that is as large as its limits is accepted, and refused by any limit of one less.
func TestLimits(t *testing.T) {
	const in = "GET / HTTP/1.1\r\nHost: a\r\nX-Long: 1234567890\r\n\r\n"
	for _, tt := range []struct {
		lim    Limits
		status int // 0: accepted
	}{
		{Limits{Line: 18, Header: len(in), Fields: 2}, 0},
		{Limits{Line: 17}, 431}, {Limits{Line: 13}, 414}, {Limits{Header: len(in) - 1}, 431}, {Limits{Fields: 1}, 431},
	} {
		for _, size := range []int{16, 4096} {
			_, err := Read(bufio.NewReaderSize(iotest.OneByteReader(strings.NewReader(in)), size), tt.lim)
			var refused *Error
			if errors.As(err, &refused); err != nil && refused == nil || refused != nil && refused.Status != tt.status || err == nil && tt.status != 0 {
				t.Errorf("%+v, buffer of %d: %v, want status %d", tt.lim, size, err, tt.status)
			}
		}
	}
}

func TestReadWaitsForWholeHead(t *testing.T) {
	long := crlf("POST /v1/messages HTTP/1.1\nHost: a\nX-Long: " + strings.Repeat("long ", 3000) + "\nContent-Length: 4\n\n")
	for _, size := range []int{16, 4096, 1 << 17} {
		src := strings.NewReader(long + "bodyGET /next HTTP/1.1\r\nHost: b\r\n\r\n")
		br := bufio.NewReaderSize(iotest.OneByteReader(src), size)
		req, err := Read(br, Limits{})
		if err != nil {
			t.Fatal(err)
		}
		if got := len(req.Header.Get("X-Long")); got != 5*3000-1 {
			t.Errorf("buffer of %d: X-Long has %d bytes", size, got)
		}
		if body, err := io.ReadAll(req.Body); string(body) != "body" || err != nil {
			t.Errorf("buffer of %d: body %q, %v", size, body, err)
		}
		if req, err = Read(br, Limits{}); err != nil || req.RequestURI != "/next" {
			t.Errorf("buffer of %d: next request: %v, %v", size, req, err)
		}
		if _, err = Read(br, Limits{}); err != io.EOF {
			t.Errorf("buffer of %d: after the last request: %v, want io.EOF", size, err)
		}
	}
}

func TestReadReportsHowTheStreamEnds(t *testing.T) {
	broken := errors.New("broken")
	tests := map[string]struct {
		r    io.Reader
		want error
	}{
		"closed":        {strings.NewReader(""), io.EOF},
		"closed inside": {strings.NewReader("GET / HT"), io.ErrUnexpectedEOF},
		"broken":        {iotest.ErrReader(broken), broken},
		"broken inside": {io.MultiReader(strings.NewReader("GET / HT"), iotest.ErrReader(broken)), broken},
		"closed inside a large one": {strings.NewReader("GET / HTTP/1.1\r\nHost: a\r\nX: " + strings.Repeat("a", 5000)),
			io.ErrUnexpectedEOF},
		"broken inside a large one": {io.MultiReader(strings.NewReader("GET / HTTP/1.1\r\nHost: a\r\nX: "+strings.Repeat("a", 5000)), iotest.ErrReader(broken)),
			broken},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if _, err := Read(bufio.NewReader(tt.r), Limits{}); err != tt.want {
				t.Errorf("got %v, want %v", err, tt.want)
			}
		})
	}
}

// A refused line is answered when it is complete, not when the head is.
func TestRefusesEarly(t *testing.T) {
	pr, pw := io.Pipe()
	defer pw.Close()
	go io.WriteString(pw, "GET / HTTP/1.1\r\nHost: a@b\r\n")
	if _, err := Read(bufio.NewReader(pr), Limits{}); err == nil {
		t.Error("accepted")
	}
}

func TestReadAllocatesNoMoreThanNetHTTP(t *testing.T) {
	head := claudeHead + "\r\n"
	allocs := func(read func(*bufio.Reader) (*http.Request, error)) float64 {
		sr := strings.NewReader(head)
		br := bufio.NewReaderSize(sr, 8<<10)
		return testing.AllocsPerRun(100, func() {
			sr.Reset(head)
			br.Reset(sr)
			if _, err := read(br); err != nil {
				t.Fatal(err)
			}
		})
	}
	theirs := allocs(http.ReadRequest)
	ours := allocs(func(br *bufio.Reader) (*http.Request, error) { return Read(br, Limits{}) })
	if ours > theirs {
		t.Errorf("Read allocates %v times, http.ReadRequest %v times", ours, theirs)
	}
}

// claudeHead is the shape of what Claude Code sends, without the final line.
var claudeHead = crlf(`POST /v1/messages?beta=true HTTP/1.1
Host: 127.0.0.1:8080
Connection: keep-alive
Accept: application/json
X-Stainless-Retry-Count: 0
X-Stainless-Timeout: 600
X-Stainless-Lang: js
X-Stainless-Package-Version: 0.74.0
X-Stainless-OS: Linux
X-Stainless-Arch: x64
X-Stainless-Runtime: node
X-Stainless-Runtime-Version: v24.3.0
anthropic-dangerous-direct-browser-access: true
anthropic-version: 2023-06-01
Authorization: Bearer dummy
x-app: cli
User-Agent: claude-cli/2.1.126 (external, cli)
X-Claude-Code-Session-Id: 7b7a3bb2-2f6f-4c1e-9c2d-0d7f7c1c2d3e
content-type: application/json
anthropic-beta: claude-code-20250219,interleaved-thinking-2025-05-14,context-management-2025-06-27
x-stainless-helper-method: stream
accept-language: *
sec-fetch-mode: cors
accept-encoding: gzip, deflate, br, zstd
`)

func BenchmarkRead(b *testing.B) {
	small := crlf("GET / HTTP/1.1\nHost: a\nUser-Agent: x\nAccept: */*\n\n")
	heads := map[string]string{"small": small, "claude": claudeHead + "\r\n", "claude-length": claudeHead + "Content-Length: 100000\r\n\r\n"}
	for _, name := range []string{"small", "claude", "claude-length"} {
		head := heads[name]
		bench := func(read func(*bufio.Reader) (*http.Request, error)) func(*testing.B) {
			return func(b *testing.B) {
				sr := strings.NewReader(head)
				br := bufio.NewReaderSize(sr, 8<<10)
				b.ReportAllocs()
				b.SetBytes(int64(len(head)))
				for b.Loop() {
					sr.Reset(head)
					br.Reset(sr)
					if _, err := read(br); err != nil {
						b.Fatal(err)
					}
				}
			}
		}
		b.Run(name+"/nethttp", bench(http.ReadRequest))
		b.Run(name+"/strict", bench(func(br *bufio.Reader) (*http.Request, error) { return Read(br, Limits{}) }))
	}
}
