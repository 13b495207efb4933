package proxy

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
)

// encodings are the forms in which a secret must not come back.
func encodings(secret string) map[string]string {
	percent := ""
	for _, b := range []byte(secret) {
		percent += fmt.Sprintf("%%%02x", b)
	}
	return map[string]string{
		"plain": secret, "rendered": "Bearer " + secret, "base64": base64.StdEncoding.EncodeToString([]byte(secret)),
		"base64 after one": base64.StdEncoding.EncodeToString([]byte("x" + secret)), "base64 after two": base64.RawURLEncoding.EncodeToString([]byte("xy" + secret)),
		"hex": hex.EncodeToString([]byte(secret)), "HEX": strings.ToUpper(hex.EncodeToString([]byte(secret))),
		"query": url.QueryEscape(secret), "percent": percent, "json": fmt.Sprintf(`\u%04x%s`, secret[0], secret[1:]),
	}
}

// leaks reports whether text holds the middle of the secret in any encoding. The
// ends may be shared with neighbours in base64.
func leaks(text, secret string) bool {
	for _, form := range encodings(secret) {
		core := form[len(form)/4 : len(form)*3/4]
		if strings.Contains(text, core) {
			return true
		}
	}
	return strings.Contains(strings.ToLower(text), strings.ToLower(secret[4:len(secret)-4]))
}

// TestReflection is group D: an upstream that reflects the credential it got, on
// every channel there is, in every encoding. The agent sees asterisks, and all else.
func TestReflection(t *testing.T) {
	channels := map[string]func(w http.ResponseWriter, form string){
		"header":       func(w http.ResponseWriter, form string) { w.Header().Set("X-Echo", "before "+form+" after") },
		"header twice": func(w http.ResponseWriter, form string) { w.Header()["X-Echo"] = []string{form, form} },
		"cookie":       func(w http.ResponseWriter, form string) { w.Header().Set("Set-Cookie", "a="+form+"; Path=/") },
		"location": func(w http.ResponseWriter, form string) {
			w.Header().Set("Location", "https://x.example/?k="+form)
			w.WriteHeader(302)
		},
		"challenge": func(w http.ResponseWriter, form string) {
			w.Header().Set("Www-Authenticate", `Basic realm="`+form+`"`)
			w.WriteHeader(401)
		},
		"content type": func(w http.ResponseWriter, form string) { w.Header().Set("Content-Type", `text/plain; x="`+form+`"`) },
		"early hints": func(w http.ResponseWriter, form string) {
			w.Header().Set("Link", form)
			w.WriteHeader(103)
			w.Header().Del("Link")
		},
		"trailer": func(w http.ResponseWriter, form string) {
			w.Header().Set("Trailer", "X-Sum")
			_, _ = io.WriteString(w, "body")
			w.Header().Set("X-Sum", form)
			w.Header().Set(http.TrailerPrefix+"X-Late", form)
		},
		"body": func(w http.ResponseWriter, form string) { _, _ = io.WriteString(w, "before "+form+" after") },
		"error body": func(w http.ResponseWriter, form string) {
			w.WriteHeader(500)
			_, _ = io.WriteString(w, `{"error":"`+form+`"}`)
		},
		"body in pieces": func(w http.ResponseWriter, form string) {
			for _, b := range []byte("before " + form + " after") {
				_, _ = w.Write([]byte{b})
				_ = http.NewResponseController(w).Flush()
			}
		},
		"event": func(w http.ResponseWriter, form string) {
			w.Header().Set("Content-Type", "text/event-stream")
			for _, piece := range []string{"event: x\ndata: ", form[:len(form)/2], form[len(form)/2:], "\n\n"} {
				_, _ = io.WriteString(w, piece)
				_ = http.NewResponseController(w).Flush()
			}
		},
		"binary": func(w http.ResponseWriter, form string) {
			w.Header().Set("Content-Type", "application/octet-stream")
			_, _ = io.WriteString(w, "\x00\xff"+form+"\x00")
		},
		"large body": func(w http.ResponseWriter, form string) {
			pad := strings.Repeat("x", 200<<10)
			_, _ = io.WriteString(w, pad+form+pad)
		},
	}
	protocols(t, func(t *testing.T, proto string) {
		var say func(http.ResponseWriter, string)
		var form string
		r := newRig(t)
		o := r.origin(func(w http.ResponseWriter, req *http.Request) {
			if !strings.HasSuffix(req.Header.Get("Authorization"), oatKey) {
				t.Errorf("the credential did not arrive")
			}
			say(w, form)
		}, proto)
		r.configure(apiPolicy(o.port), map[string]Secret{"anthropic": {Value: []byte(oatKey)}})
		for channel, f := range channels {
			for encoding, text := range encodings(oatKey) {
				say, form = f, text
				c := r.dial()
				c.send("GET /v1/models HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", r.addr)
				all, err := io.ReadAll(c.br)
				_ = c.nc.Close()
				if err != nil || !bytes.HasPrefix(all, []byte("HTTP/1.1 ")) {
					t.Errorf("%s, %s: %q, %v", channel, encoding, all, err)
				}
				if leaks(string(all), oatKey) {
					t.Errorf("%s, %s: %q", channel, encoding, all)
				}
				if !bytes.Contains(all, []byte("****")) {
					t.Errorf("%s, %s: nothing was masked: the channel was not tested: %q", channel, encoding, all)
				}
			}
		}
		if leaks(r.logs.String(), oatKey) {
			t.Error("the log leaks")
		}
	})
}

// TestNameReflection: the name of a field loses its case on the way, so it is
// dropped rather than masked.
func TestNameReflection(t *testing.T) {
	for _, answer := range []string{
		"HTTP/1.1 200 OK\r\n" + apiKey + ": x\r\nX-Kept: 1\r\nContent-Length: 2\r\n\r\nok",
		"HTTP/1.1 200 " + apiKey + "\r\nX-Kept: 1\r\nContent-Length: 2\r\n\r\nok",
		"HTTP/1.1 200 OK\r\nX-Kept: 1\r\nTransfer-Encoding: chunked\r\nTrailer: " + apiKey + "\r\n\r\n2\r\nok\r\n0\r\n" + apiKey + ": x\r\n\r\n",
		"HTTP/1.1 103 " + apiKey + "\r\n" + apiKey + ": x\r\n\r\nHTTP/1.1 200 OK\r\nX-Kept: 1\r\nContent-Length: 2\r\n\r\nok",
		"HTTP/1.1 200 OK\r\nX-Kept: 1\r\nTransfer-Encoding: chunked\r\n\r\n2;" + apiKey + "\r\nok\r\n0\r\n\r\n",
	} {
		r := newRig(t)
		r.configure(apiPolicy(r.says(answer, false)), apiSecrets())
		c := r.dial()
		c.send("GET /v1/models HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", r.addr)
		all, err := io.ReadAll(c.br)
		if err != nil || leaks(string(all), apiKey) || !strings.Contains(string(all), "X-Kept: 1") || !strings.Contains(string(all), "ok") {
			t.Errorf("%q: %q, %v", answer, all, err)
		}
	}
}

// TestCleanPasses: what holds no secret is not touched, also where it looks like one.
func TestCleanPasses(t *testing.T) {
	var body string
	r := newRig(t)
	r.api(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("X-Note", "sk-ant-api03-FAKEkey")
		_, _ = io.WriteString(w, body)
	})
	for _, body = range []string{"", "sk-ant-", apiKey[:len(apiKey)-1], "sk-ant-api03-" + strings.Repeat("A", 40), "\x00\x01\xfe\xff", strings.Repeat(apiKey[:20], 10000)} {
		resp, got := r.get("GET", "/v1/models")
		if got != body || resp.Header.Get("X-Note") != "sk-ant-api03-FAKEkey" {
			t.Errorf("%.40q became %.40q, %v", body, got, resp.Header)
		}
	}
}

// TestOtherRoutesAreNotSearched: where no credential was sent, bytes pass as they come.
func TestOtherRoutesAreNotSearched(t *testing.T) {
	r := newRig(t)
	o := r.origin(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Encoding", "gzip")
		_, _ = io.WriteString(w, "\x1f\x8b"+apiKey)
	})
	yaml := strings.Replace(apiPolicy(o.port), "    credential: anthropic\n", "", 1)
	r.configure(yaml, apiSecrets())
	if resp, body := r.get("GET", "/v1/models"); resp.StatusCode != 200 || body != "\x1f\x8b"+apiKey {
		t.Errorf("status %d %q", resp.StatusCode, body)
	}
}

// TestPanicSaysNothing: a fault in a handler is counted, answered, and quotes nothing.
func TestPanicSaysNothing(t *testing.T) {
	var fault atomic.Bool
	fault.Store(true)
	r := newRig(t, func(o *Options) {
		o.Refresh = func(string) {
			if fault.Load() {
				panic("the value is " + apiKey)
			}
		}
	})
	r.api(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(401) })
	resp, body := r.get("GET", "/v1/models")
	if resp.StatusCode != 500 {
		t.Errorf("status %d %s", resp.StatusCode, body)
	}
	checkRefusal(t, resp, body)
	e := r.event()
	for _, text := range []string{body, r.logs.String(), fmt.Sprintf("%+v", e)} {
		if strings.Contains(text, "FAKE") || strings.Contains(text, "the value") {
			t.Errorf("the panic was quoted: %s", text)
		}
	}
	if n := r.srv.Stats().Panics; n != 1 || !strings.Contains(r.logs.String(), "proxy.") {
		t.Errorf("%d panics, log %q", n, r.logs.String())
	}
	if e.Status != 500 || e.Decision != "deny" {
		t.Errorf("audit %+v", e)
	}
	fault.Store(false)
	if resp, _ := r.get("GET", "/v1/models"); resp.StatusCode != 401 {
		t.Errorf("afterwards: status %d", resp.StatusCode)
	}
}

func TestSecretsPrintAsRedacted(t *testing.T) {
	secret := Secret{Value: []byte(apiKey)}
	cred := &credential{name: "anthropic", value: apiKey}
	config := Config{Secrets: map[string]Secret{"anthropic": secret}}
	var log bytes.Buffer
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "secret", secret, "config", config)
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "secret", secret, "config", config)
	out, err := json.Marshal(config.Secrets)
	must(t, err)
	for _, text := range []string{
		fmt.Sprint(secret), fmt.Sprintf("%v %+v %#v %s %q %x %d", secret, secret, secret, secret, secret, secret, secret), fmt.Sprintf("%v %+v %#v", &secret, &secret, &secret),
		fmt.Sprintf("%v %+v %#v", config, config, config), string(out), log.String(), fmt.Sprintf("%v %+v %#v %s", cred, cred, cred, cred), fmt.Errorf("x: %v", secret).Error(),
	} {
		if strings.Contains(text, "FAKE") || strings.Contains(text, fmt.Sprintf("%x", apiKey)[:20]) || strings.Contains(text, "115 107 45") {
			t.Errorf("%s", text)
		}
		if !strings.Contains(text, redacted) {
			t.Errorf("it does not say so: %s", text)
		}
	}
}

// TestHostileWords: nothing a client puts into a request can break out of an answer
// or a log line.
func TestHostileWords(t *testing.T) {
	r := newRig(t)
	r.api(func(http.ResponseWriter, *http.Request) {})
	for _, target := range []string{`/v1/"},"x":"`, "/v1/%22%0d%0aX", "/v1/<script>", "/v1/%1b[31m", "/v1/" + strings.Repeat("a", 9000)} {
		resp, body := r.get("DELETE", target)
		if resp.StatusCode != 403 {
			t.Errorf("%.40s: status %d", target, resp.StatusCode)
		}
		checkRefusal(t, resp, body)
		e := r.event()
		line := string(e.Append(nil))
		if strings.Count(line, "\n") != 1 || strings.ContainsAny(line, "\x1b\r") || len(line) > 8<<10 || !json.Valid([]byte(line)) {
			t.Errorf("audit line %q", line)
		}
	}
}
