package integration

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"exitgate/integration/prober"
	"exitgate/integration/rig"
)

// absolute is a request in absolute form, as a client sends it to a proxy for plain http.
func absolute(method, url string, header ...string) prober.Probe {
	host := strings.Split(strings.TrimPrefix(url, "http://"), "/")[0]
	return prober.Probe{Op: "http", Address: listener, Data: head(method, url, host, header...)}
}

func TestForwardHTTP(t *testing.T) {
	t.Parallel()
	w := world(t)
	plain := upstream(t, w, "plain.example.com", rig.Server{Plain: true})
	api := upstream(t, w, "api.example.com", rig.Server{})
	g := up(t, w, basic+"  - host: plain.example.com\n    ports: [80]\n    methods: [GET, HEAD]\n")
	if r := g.do(absolute("GET", "http://plain.example.com/reflect?a=b;c", "Proxy-Connection: keep-alive", "X-Kept: 1")); r.Status != 200 {
		t.Errorf("%s %s", r, r.Data)
	} else if s := plain.Seen()[0]; s.URI != "/reflect?a=b;c" || s.Host != "plain.example.com" || s.Header.Get("X-Kept") != "1" || s.Header.Get("Proxy-Connection") != "" {
		t.Errorf("arrived: %+v", s)
	}
	for what, p := range map[string]prober.Probe{
		"another method": absolute("POST", "http://plain.example.com/"),
		"another port":   absolute("GET", "http://plain.example.com:8080/"),
		"another host":   absolute("GET", "http://denied.example.com/"),
		"a host for TLS": absolute("GET", "http://files.example.com/"),
	} {
		if r := g.do(p); r.Status != 403 {
			t.Errorf("%s: %s %s", what, r, r.Data)
		} else {
			refusal(t, r)
		}
	}
	if n := len(plain.Seen()); n != 1 {
		t.Errorf("%d requests arrived, want one", n)
	}
	// A client that has a proxy and no NO_PROXY sends the base URL's requests in absolute form: they are the route's.
	if r := g.do(absolute("GET", "http://"+listener+"/reflect")); r.Status != 200 || len(api.Seen()) != 1 {
		t.Errorf("absolute form of the listener: %s %s", r, r.Data)
	}
	if r := g.do(absolute("DELETE", "http://"+listener+"/reflect")); r.Status != 403 {
		t.Errorf("absolute form of the listener, not allowed: %s %s", r, r.Data)
	}
	g.leaks(places(plain, api)...)
}

// TestConnectIsWhatItSays: the name of CONNECT, the ClientHello and the policy are one; anything else ends before it reaches the upstream.
func TestConnectIsWhatItSays(t *testing.T) {
	t.Parallel()
	w := world(t)
	files := upstream(t, w, "files.example.com", rig.Server{H1: true})
	upstream(t, w, "mirror.example.com", rig.Server{H1: true})
	g := up(t, w, basic)
	if r := g.do(tunnel("files.example.com")); r.Status != 200 {
		t.Fatalf("control: %s %s", r, r.Data)
	}
	seen := len(files.Seen())
	inside := func(name string, data []byte) prober.Probe {
		return prober.Probe{Op: "http", Address: listener, Tunnel: "files.example.com:443", ServerName: name, Data: data, Timeout: 5 * time.Second}
	}
	for what, p := range map[string]prober.Probe{
		"another allowed name":   inside("mirror.example.com", head("GET", "/", "mirror.example.com")),
		"a name that is refused": inside("denied.example.com", head("GET", "/", "denied.example.com")),
		"an address":             inside(files.Addr4.String(), head("GET", "/", "files.example.com")),
		"no TLS":                 inside("", head("GET", "/", "files.example.com")),
		"ssh":                    inside("", []byte("SSH-2.0-prober\r\n")),
	} {
		if r := g.do(p); r.OK() {
			t.Errorf("%s in the tunnel: %s %q", what, r, r.Data)
		}
	}
	if n := len(files.Seen()) - seen; n != 0 {
		t.Errorf("%d requests arrived by such tunnels", n)
	}
	for _, target := range []string{
		"files.example.com:22", "files.example.com:80", "files.example.com", "FILES.example.com:443x", files.Addr4.String() + ":443",
		"[" + files.Addr6.String() + "]:443", "0x2d000102:443", "755:443", "127.1:443", "[::ffff:7f00:1]:443", "user@files.example.com:443", "files.example.com:443@evil.example:443",
		"files.example.com.evil.example:443", "xfiles.example.com:443", "localhost:8080", "127.0.0.1:8080", "[::1]:8080", "169.254.169.254:80", "*.example.com:443",
	} {
		r := g.do(prober.Probe{Op: "connect", Address: listener, Tunnel: target})
		if r.Status != 403 && r.Status != 400 {
			t.Errorf("CONNECT %s: %s %q", target, r, r.Data)
		}
	}
	for _, target := range []string{"FILES.Example.COM:443", "files.example.com.:443"} {
		if r := g.do(prober.Probe{Op: "connect", Address: listener, Tunnel: target}); r.Status != 200 {
			t.Errorf("CONNECT %s, which is the same name: %s %q", target, r, r.Data)
		}
	}
	g.leaks(places(files)...)
}

// TestWildcards: one or more labels, never the apex; nothing is looked up that does not match.
func TestWildcards(t *testing.T) {
	t.Parallel()
	w := world(t)
	for _, name := range []string{"a.wild.example.com", "b.a.wild.example.com", "wild.example.com", "awild.example.com"} {
		upstream(t, w, name, rig.Server{})
	}
	g := up(t, w, "version: 1\negress:\n  - host: \"*.wild.example.com\"\n")
	for name, want := range map[string]int{"a.wild.example.com": 200, "b.a.wild.example.com": 200, "wild.example.com": 403, "awild.example.com": 403} {
		r := g.do(tunnel(name))
		if r.Status != want {
			t.Errorf("%s: %s", name, r)
		}
		if asked := w.DNS.Count(name); (asked > 0) != (want == 200) {
			t.Errorf("%s was looked up %d times", name, asked)
		}
	}
}

// TestBadRequests: what is not HTTP, or is ambiguous, is answered with a 400 and the connection's end, and reaches nobody.
func TestBadRequests(t *testing.T) {
	t.Parallel()
	w := world(t)
	api := upstream(t, w, "api.example.com", rig.Server{H1: true})
	g := up(t, w, basic)
	if r := g.do(get("/reflect")); r.Status != 200 {
		t.Fatalf("control: %s", r)
	}
	post := "POST /v1/messages HTTP/1.1\r\nHost: " + listener + "\r\n"
	for what, text := range map[string]string{
		"length and chunks": post + "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n",
		"two lengths":       post + "Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
		"two hosts":         "GET / HTTP/1.1\r\nHost: " + listener + "\r\nHost: evil.example\r\n\r\n",
		"no host":           "GET / HTTP/1.1\r\n\r\n",
		"folded header":     "GET / HTTP/1.1\r\nHost: " + listener + "\r\nX: a\r\n b\r\n\r\n",
		"bare LF":           "GET / HTTP/1.1\nHost: " + listener + "\n\n",
		"NUL in a header":   "GET / HTTP/1.1\r\nHost: " + listener + "\r\nX: a\x00b\r\n\r\n",
		"space before name": "GET / HTTP/1.1\r\nHost: " + listener + "\r\n X: a\r\n\r\n",
		"TLS on the port":   "\x16\x03\x01\x00\x05hello",
		"h2 preface":        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
		"huge header":       "GET / HTTP/1.1\r\nHost: " + listener + "\r\nX: " + strings.Repeat("a", 2<<20) + "\r\n\r\n",
	} {
		r := g.do(prober.Probe{Op: "http", Keep: true, Address: listener, Data: []byte(text), Timeout: 5 * time.Second})
		first, _, _ := strings.Cut(string(r.Data), "\r\n")
		if !strings.HasPrefix(first, "HTTP/1.1 4") && !strings.HasPrefix(first, "HTTP/1.1 5") && r.Errno != "ECONNRESET" && r.Errno != "EPIPE" {
			t.Errorf("%s: %s, answered %q", what, r, first)
		}
	}
	for what, p := range map[string]prober.Probe{
		"dot segments": get("/v1/../secret"), "encoded dots": get("/v1/%2e%2e/secret"), "encoded slash": get("/v1%2fmessages"), "backslash": get("/v1\\messages"),
		"double slash": get("//v1/messages"), "semicolon": get("/v1;x=1/messages"), "NUL": get("/v1/%00"), "overlong": get("/v1/%c0%af"),
		"TRACE":   {Op: "http", Address: listener, Data: head("TRACE", "/", listener)},
		"OPTIONS": {Op: "http", Address: listener, Data: head("OPTIONS", "*", listener)},
	} {
		if r := g.do(p); r.Status < 400 || r.Status >= 500 {
			t.Errorf("%s: %s %s", what, r, r.Data)
		}
	}
	if r := g.do(get("/reflect", "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: AAAA")); r.Status != 426 {
		t.Errorf("upgrade: %s %s; want 426", r, r.Data)
	}
	for _, raw := range api.Raw() {
		if strings.Contains(string(raw), "smuggled") || strings.Contains(string(raw), "secret") {
			t.Errorf("arrived: %q", raw)
		}
	}
	if n := len(api.Seen()); n != 1 {
		t.Errorf("%d requests arrived, want the control's", n)
	}
}

// TestTenThousandHosts: a policy of that size starts, decides and reloads.
func TestTenThousandHosts(t *testing.T) {
	t.Parallel()
	w := world(t)
	files := upstream(t, w, "files.example.com", rig.Server{})
	var sb strings.Builder
	sb.WriteString(basic)
	for i := range 10000 {
		fmt.Fprintf(&sb, "  - host: h%d.many.example.com\n", i)
		w.DNS.Set(fmt.Sprintf("h%d.many.example.com", i), time.Hour, files.Addr4, files.Addr6)
	}
	big := sb.String()
	g := start(t, w, big)
	if err := g.Agent().Ready(time.Minute); err != nil {
		t.Fatal(err)
	}
	for _, host := range []string{"files.example.com", "h0.many.example.com", "h9999.many.example.com"} {
		if r := g.do(tunnel(host)); r.Status != 200 {
			t.Errorf("%s: %s %s", host, r, r.Data)
		}
	}
	if r := g.do(tunnel("h10000.many.example.com")); r.Status != 403 {
		t.Errorf("one too many: %s", r)
	}
	if out := g.reload(strings.Replace(big, "  - host: h5000.many.example.com\n", "", 1)); out.Code != 0 || !strings.Contains(out.Stdout, "h5000.many") {
		t.Errorf("reload: exit %d, %q, %q", out.Code, out.Stdout, out.Stderr)
	}
	if r := g.do(tunnel("h5000.many.example.com")); r.Status != 403 {
		t.Errorf("revoked: %s", r)
	}
	g.leaks(places(files)...)
}
