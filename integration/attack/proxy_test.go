package attack

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"exitgate/integration/prober"
)

// say is a request to the listener, byte for byte, with \n for CRLF.
func say(lines ...string) prober.Probe {
	return prober.Probe{Op: "http", Address: listener, Data: []byte(strings.Join(lines, "\r\n") + "\r\n\r\n"), Timeout: 3 * time.Second}
}

func connect(target string) prober.Probe { return say("CONNECT "+target+" HTTP/1.1", "Host: "+target) }

// within is what is said inside a tunnel to an allowed host, without or with TLS to a name.
func within(tunnel, name string, lines ...string) prober.Probe {
	p := say(lines...)
	p.Tunnel, p.ServerName = tunnel, name
	return p
}

// proxied is one thing said to the proxy.
type proxied struct {
	name string
	bad  prober.Probe
	want string
	good prober.Probe // the same form with what the policy allows
}

// answered is what the proxy says: 400 what it cannot read, 403 what policy has not, EOF and tls what breaks a tunnel's own rules.
func proxyAttempts(s *scene) []proxied {
	const files = "files.example.com:443"
	open := prober.Probe{Op: "connect", Address: listener, Tunnel: files}
	get := func(extra ...string) prober.Probe {
		return say(append([]string{"GET /reflect HTTP/1.1", "Host: " + listener}, extra...)...)
	}
	post := func(path string, extra ...string) prober.Probe {
		return say(append([]string{"POST " + path + " HTTP/1.1", "Host: " + listener, "Content-Length: 0"}, extra...)...)
	}
	absolute := func(method, url, host string) prober.Probe { return say(method+" "+url+" HTTP/1.1", "Host: "+host) }
	plain := absolute("GET", "http://plain.example.com/reflect", "plain.example.com")
	tls := within(files, "files.example.com", "GET /reflect HTTP/1.1", "Host: files.example.com")
	var all []proxied
	for _, target := range []string{"1.1.1.1:443", "45.0.1.1:443", "0x7f.1:443", "0177.0.0.1:443", "2130706433:443", "127.1:443", "127.0.0.1:8080", "127.0.0.1:9999", "[::1]:443", "[::ffff:7f00:1]:443",
		"[fe80::1%25eth0]:443", "169.254.169.254:80", "metadata.google.internal:80", "host.docker.internal:443", "host.containers.internal:443", "localhost:8080", "0:443", "0.0.0.0:8080",
		at(s.deb.Addr4, 443), "deb.example.org:443", "api.example.com:443", "leak.attacker.example:443", "files.example.com.attacker.example:443", "xfiles.example.com:443", "wild.example.com:443",
		"files.example.com:22", "files.example.com:80", "files.example.com:8443", "mirror.example.com:25", "dns.google:443", "cloudflare-dns.com:853"} {
		all = append(all, proxied{"CONNECT " + target, connect(target), "403|400", open})
	}
	for _, target := range []string{"files.example.com\x00.attacker.example:443", "files.example.com:443\x00", "user@files.example.com:443", "user:pw@files.example.com:443", "f\u0456les.example.com:443", "files.example.com:0443x", "files.example.com:99999",
		"files.example.com", "files.example.com:443/", "https://files.example.com/", "files..example.com:443", ".files.example.com:443", "files_.example.com:443", strings.Repeat("a", 300) + ".example.com:443", "%66iles.example.com:443", "files.example.com:443#x"} {
		all = append(all, proxied{fmt.Sprintf("CONNECT %.60q", target), connect(target), "400|403", open})
	}
	return append(append(all, smuggling(get, post)...), []proxied{
		{"CONNECT inside CONNECT", within(files, "", "CONNECT deb.example.org:443 HTTP/1.1", "Host: deb.example.org:443"), "broken", tls},
		{"plain HTTP inside a tunnel", within(files, "", "GET / HTTP/1.1", "Host: files.example.com"), "broken", tls},
		{"ssh inside a tunnel", within(files, "", "SSH-2.0-OpenSSH_9.2"), "broken", tls},
		{"SNI of another allowed host", within(files, "mirror.example.com", "GET / HTTP/1.1", "Host: mirror.example.com"), "broken", tls},
		{"SNI of a denied host", within(files, "attacker.example", "GET / HTTP/1.1", "Host: attacker.example"), "broken", tls},
		{"absolute form to a denied host", absolute("GET", "http://attacker.example/", "attacker.example"), "403", plain},
		{"absolute form, https", absolute("GET", "https://files.example.com/", "files.example.com"), "400|403", plain},
		{"absolute form to metadata", absolute("GET", "http://169.254.169.254/latest/meta-data/", "169.254.169.254"), "403", plain},
		{"absolute form to a denied port", absolute("GET", "http://plain.example.com:8080/", "plain.example.com:8080"), "403", plain},
		{"absolute form, user info", absolute("GET", "http://plain.example.com@attacker.example/", "attacker.example"), "400|403", plain},
		{"absolute form, Host of another", absolute("GET", "http://plain.example.com/", "attacker.example"), "400|403", plain},
		{"absolute form, ftp", absolute("GET", "ftp://plain.example.com/", "plain.example.com"), "400|403", plain},
		{"absolute form, credential's host by its name", absolute("GET", "http://api.example.com/reflect", "api.example.com"), "403", plain},
	}...)
}

func smuggling(get func(...string) prober.Probe, post func(string, ...string) prober.Probe) []proxied {
	ok, fine := get(), post("/v1/messages?n=1")
	var all []proxied
	for name, bad := range map[string]prober.Probe{
		"Content-Length with Transfer-Encoding": say("POST /v1/messages HTTP/1.1", "Host: x", "Content-Length: 4", "Transfer-Encoding: chunked", "", "0"),
		"two Content-Length":                    post("/v1/messages", "Content-Length: 5"), "two Host": get("Host: other"), "folded field": get("X-A: 1", " GET /"),
		"Transfer-Encoding twice": say("POST /v1/messages HTTP/1.1", "Host: x", "Transfer-Encoding: chunked", "Transfer-Encoding: identity", "", "0"),
		"bare LF":                 {Op: "http", Address: listener, Timeout: 3 * time.Second, Data: []byte("GET /reflect HTTP/1.1\nHost: x\n\n")}, "space before colon": get("X-A : 1"), "NUL in a field": get("X-A: a\x00b"),
		"HTTP/2 preface": say("PRI * HTTP/2.0", "", "SM"), "HTTP/0.9": {Op: "http", Address: listener, Timeout: 3 * time.Second, Data: []byte("GET /reflect\r\n\r\n")}, "space in the target": say("GET /reflect /x HTTP/1.1", "Host: x"),
		"endless head": get("X: " + strings.Repeat("a", 2<<20)), "no Host": say("GET /reflect HTTP/1.1"), "bytes that are no HTTP": {Op: "http", Address: listener, Timeout: 3 * time.Second, Data: []byte("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n")},
	} {
		all = append(all, proxied{name, bad, "400|431|505|EOF|ECONNRESET", ok})
	}
	for name, bad := range map[string]prober.Probe{
		"another method": say("DELETE /v1/messages HTTP/1.1", "Host: x"), "another path": post("/v1/files"), "a longer path": post("/v1/messages/batches"), "dot segments": post("/v1/messages/../files"),
		"encoded dot segments": post("/v1/messages/%2e%2e/files"), "encoded slash": post("/v1%2fmessages"), "double slash": post("//v1/messages"), "upper case": post("/V1/messages"), "semicolon": post("/v1/messages;x"),
		"backslash": post("/v1\\messages"), "TRACE": say("TRACE / HTTP/1.1", "Host: x"), "OPTIONS *": say("OPTIONS * HTTP/1.1", "Host: x"),
		"X-HTTP-Method-Override is no method": say("PUT /v1/messages HTTP/1.1", "Host: x", "X-HTTP-Method-Override: POST", "Content-Length: 0"),
	} {
		all = append(all, proxied{name, bad, "400|403", fine})
	}
	for name, bad := range map[string]prober.Probe{
		"h2c upgrade": get("Upgrade: h2c", "Connection: Upgrade, HTTP2-Settings", "HTTP2-Settings: AAMAAABkAAQAAP__"), "WebSocket": get("Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="),
	} {
		all = append(all, proxied{name, bad, "426|400", ok})
	}
	return all
}

// TestProxy says to the proxy what it must refuse. The upstreams judge: they may see only what the controls sent.
func TestProxy(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	agent := s.fenced.agents["agent"]
	count := func() string {
		return fmt.Sprint(len(s.api.Seen()), len(s.files.Seen()), len(s.plain.Seen()), len(s.deb.Seen()))
	}
	for _, a := range proxyAttempts(s) {
		before := count()
		got := seen(a.bad, agent.Do(a.bad))
		if after := count(); after != before && got != "200" {
			t.Errorf("%s: %s, but an upstream saw a request", a.name, got)
		}
		good := agent.Do(a.good)
		if good.Status != 200 {
			t.Errorf("%s: control: %s %s", a.name, good, good.Data)
		}
		judge(t, row{"proxy", a.name, "agent", a.want, got, fmt.Sprintf("the same form, allowed: %d", good.Status)})
	}
	for name := range s.w.DNS.Asked() {
		if !strings.HasSuffix(name, "example.com") && name != "deb.example.org" || strings.HasPrefix(name, "x") || strings.Contains(name, "attacker") {
			t.Errorf("the resolver was asked for %s, which no policy names", name)
		}
	}
	judge(t, row{"proxy", "names that the resolver was asked for", "wire", "policy's only", map[bool]string{true: "others", false: "policy's only"}[t.Failed()], fmt.Sprintf("%d names asked", len(s.w.DNS.Asked()))})
	s.oracle(t, "the proxy's table", s.fenced)
}
