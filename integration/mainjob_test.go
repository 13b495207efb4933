package integration

import (
	"bytes"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"exitgate/integration/prober"
	"exitgate/integration/rig"
)

func TestMainJob(t *testing.T) {
	t.Parallel()
	w := world(t)
	api := upstream(t, w, "api.example.com", rig.Server{})
	files := upstream(t, w, "files.example.com", rig.Server{})
	denied := upstream(t, w, "denied.example.com", rig.Server{})
	g := up(t, w, basic)

	t.Run("the upstream receives the credential", func(t *testing.T) {
		r := g.do(get("/reflect", "Authorization: Bearer mine", "x-api-key: mine", "Proxy-Authorization: Basic bWluZQ==", "Cookie: mine=1"))
		if r.Status != 200 {
			t.Fatalf("%s: %s", r, r.Data)
		}
		seen := api.Seen()
		h := seen[len(seen)-1].Header
		if got := h.Values("Authorization"); !slices.Equal(got, []string{"Bearer " + secret}) {
			t.Errorf("Authorization arrived as %q", got)
		}
		for _, name := range []string{"X-Api-Key", "Proxy-Authorization", "Cookie"} {
			if got := h.Values(name); got != nil {
				t.Errorf("the agent's %s arrived: %q", name, got)
			}
		}
	})
	t.Run("an answer that reflects what arrived does not show the credential", func(t *testing.T) {
		if r := g.do(get("/reflect")); r.Status != 200 || bytes.Contains(r.Data, []byte(secret)) || !bytes.Contains(r.Data, []byte(`"Authorization"`)) {
			t.Errorf("%s: %s", r, r.Data)
		}
	})
	t.Run("an allowed host by CONNECT", func(t *testing.T) {
		if r := g.do(tunnel("files.example.com")); r.Status != 200 || !r.OK() {
			t.Errorf("%s: %s", r, r.Data)
		}
		if n := len(files.Seen()); n != 1 {
			t.Errorf("%d requests arrived", n)
		}
	})
	t.Run("another host is refused and not looked up", func(t *testing.T) {
		r := g.do(tunnel("denied.example.com"))
		if r.Status != 403 || r.Stage != "connect" {
			t.Errorf("%s", r)
		}
		if msg := refusal(t, r); !strings.Contains(msg, "denied.example.com") {
			t.Errorf("the refusal does not name the host: %q", msg)
		}
		if got := strings.Join(http.Header(r.Header).Values("Exitgate-Decision"), "|"); !strings.HasPrefix(got, "deny; rule=") {
			t.Errorf("Exitgate-Decision: %q", got)
		}
		if n := w.DNS.Count("denied.example.com"); n != 0 {
			t.Errorf("it was looked up %d times", n)
		}
		if n := len(denied.Seen()); n != 0 {
			t.Errorf("%d requests arrived", n)
		}
	})
	t.Run("a request that the route does not allow", func(t *testing.T) {
		before := len(api.Seen())
		r := g.do(prober.Probe{Op: "http", Address: listener, Data: head("DELETE", "/v1/files", listener)})
		if r.Status != 403 {
			t.Errorf("%s", r)
		}
		want := regexp.MustCompile("^exitgate: DELETE /v1/files is not in route \"api\" \\((/etc/exitgate/)?policy\\.yaml:7\\); to allow it add `- DELETE /v1/files`$")
		if msg := refusal(t, r); !want.MatchString(msg) {
			t.Errorf("message: %s", msg)
		}
		if len(api.Seen()) != before {
			t.Error("it arrived at the upstream")
		}
	})
	g.leaks(places(api, files)...)
}

func TestEnvironmentOfTheAgent(t *testing.T) {
	t.Parallel()
	w := world(t)
	g := up(t, w, basic, func(c *rig.Config) {
		c.Env = []string{"KEPT=1", "CARRIES=x" + secret + "y", "LD_PRELOAD=/nothing", "ALL_PROXY=http://elsewhere", "all_proxy=http://elsewhere", "HOME=/root"}
	})
	s := g.do(prober.Probe{Op: "self"}).Self
	if s == nil {
		t.Fatal("no answer")
	}
	env := map[string]string{}
	for _, kv := range s.Environ {
		k, v, _ := strings.Cut(kv, "=")
		if _, twice := env[k]; twice {
			t.Errorf("%s is set twice", k)
		}
		env[k] = v
	}
	proxy := "http://" + listener
	for name, want := range map[string]string{
		"KEPT": "1", "HTTP_PROXY": proxy, "http_proxy": proxy, "HTTPS_PROXY": proxy, "https_proxy": proxy,
		"NO_PROXY": "localhost,127.0.0.1,::1", "no_proxy": "localhost,127.0.0.1,::1",
		"HOME": "/home/agent", "USER": "agent", "LOGNAME": "agent", "SHELL": "/bin/sh", "API_URL": proxy,
	} {
		if env[name] != want {
			t.Errorf("%s=%q, want %q", name, env[name], want)
		}
	}
	for _, name := range []string{"CARRIES", "LD_PRELOAD", "ALL_PROXY", "all_proxy"} {
		if v, ok := env[name]; ok {
			t.Errorf("%s=%q is there", name, v)
		}
	}
	if env["API_TOKEN"] == "" || strings.Contains(env["API_TOKEN"], secret) {
		t.Errorf("placeholder: %q", env["API_TOKEN"])
	}
	for _, kv := range s.Environ {
		if strings.Contains(kv, secret) {
			t.Errorf("the credential is in %q", kv)
		}
	}
}

func TestStreamingIsPerEvent(t *testing.T) {
	t.Parallel()
	for _, h1 := range []bool{true, false} {
		t.Run(fmt.Sprintf("h1=%v", h1), func(t *testing.T) {
			t.Parallel()
			w := world(t)
			upstream(t, w, "api.example.com", rig.Server{H1: h1})
			g := up(t, w, basic)
			g.do(get("/reflect")) // the first request pays for lookup, handshake and the rest
			p := get("/events?n=6&ms=100")
			p.Chunks = true
			var text string
			var at []time.Time
			var last prober.Result
			for r := range g.Agent().Start(p) {
				if last = r; r.More {
					text += string(r.Data)
					for range strings.Count(string(r.Data), "\n\n") {
						at = append(at, r.At)
					}
				}
			}
			if !last.OK() || last.Status != 200 || len(at) != 6 {
				t.Fatalf("%s, %d events: %q", last, len(at), text)
			}
			// Sent 100 ms apart. Were they held until the end, or gathered by two, the gaps would show it.
			if spread := at[5].Sub(at[0]); spread < 300*time.Millisecond {
				t.Errorf("six events came within %s", spread)
			}
			for i := range 5 {
				if at[i+1].Equal(at[i]) {
					t.Errorf("events %d and %d came as one", i, i+1)
				}
			}
		})
	}
}

// TestPassThrough: what is neither a credential nor hop-by-hop arrives as it was sent.
func TestPassThrough(t *testing.T) {
	t.Parallel()
	w := world(t)
	api := upstream(t, w, "api.example.com", rig.Server{H1: true})
	g := up(t, w, basic)
	body := "{\"a\": [1,2 , 3],\t\"cch\":\"\\u00e9\"}\n\x00\xff"
	target := "/v1/messages?beta=true&a=b;c=d&x=%7e%2F%20+&empty&n=1&n=2"
	lines := []string{
		"anthropic-version: 2023-06-01", "anthropic-beta: one,two", "Anthropic-Beta: three", "X-Claude-Code-Session-Id: 11111111-2222-3333-4444-555555555555",
		"anthropic-future-thing: kept", "x-odd: first", "X-Odd:   second  ", "x-odd: third", "x-stainless-lang: js", "Content-Type: application/json",
		fmt.Sprintf("Content-Length: %d", len(body)), "User-Agent: prober/1", "Connection: x-hop", "x-hop: gone",
	}
	r := g.do(prober.Probe{Op: "http", Address: listener, Data: append(head("POST", target, listener, lines...), body...)})
	if r.Status != 200 {
		t.Fatalf("%s: %s", r, r.Data)
	}
	seen := api.Seen()
	got := seen[len(seen)-1]
	if got.URI != target {
		t.Errorf("target: got %q, want %q", got.URI, target)
	}
	if string(got.Body) != body {
		t.Errorf("body: got %q, want %q", got.Body, body)
	}
	if got.Host != "api.example.com" {
		t.Errorf("Host: %q", got.Host)
	}
	for name, want := range map[string][]string{
		"Anthropic-Version": {"2023-06-01"}, "Anthropic-Beta": {"one,two", "three"}, "X-Claude-Code-Session-Id": {"11111111-2222-3333-4444-555555555555"},
		"Anthropic-Future-Thing": {"kept"}, "X-Odd": {"first", "second", "third"}, "X-Stainless-Lang": {"js"}, "User-Agent": {"prober/1"}, "X-Hop": nil,
		"X-Forwarded-For": nil, "Forwarded": nil, "Via": nil,
	} {
		if !slices.Equal(want, got.Header.Values(name)) {
			t.Errorf("%s: got %q, want %q", name, got.Header.Values(name), want)
		}
	}
}

func TestAuditLine(t *testing.T) {
	t.Parallel()
	w := world(t)
	upstream(t, w, "api.example.com", rig.Server{})
	g := up(t, w, basic)
	g.do(get("/reflect?token=" + "private"))
	g.do(tunnel("denied.example.com"))
	eventually(t, "an audit line for each", func() bool { return len(g.audit("request")) == 1 && len(g.audit("connect")) == 1 })
	lines := append(g.audit("request"), g.audit("connect")...)
	if len(lines) != 2 {
		t.Fatalf("%d lines", len(lines))
	}
	fields := strings.Fields("time event agent uid pid exe method host port path rule decision reason status bytes_in bytes_out duration_ms upstream id generation")
	for _, e := range lines {
		for _, f := range fields {
			if _, ok := e.raw[f]; !ok {
				t.Errorf("%s: no field %q", e.Event, f)
			}
		}
		// Who is refused may be gone before it was looked for: unknown then, and never somebody else.
		gone := e.Event == "connect" && e.PID == 0 && e.Exe == "unknown"
		found := e.PID > 1 && strings.HasSuffix(e.Exe, "/prober")
		if e.Agent != "agent" || e.UID != 1000 || e.Generation != 1 || !found && !gone {
			t.Errorf("who: %+v", e)
		}
	}
	if e := lines[0]; e.Decision != "allow" || e.Rule != "route/api" || e.Path != "/reflect" || e.Host != "api.example.com" || e.Status != 200 || e.BytesIn == 0 {
		t.Errorf("request: %+v", e)
	}
	if e := lines[1]; e.Decision != "deny" || e.Host != "denied.example.com" || e.Port != 443 || e.Status != 403 || e.Reason == "" {
		t.Errorf("connect: %+v", e)
	}
	if all := g.Stderr.String(); strings.Contains(all, secret) || strings.Contains(all, "private") {
		t.Error("the audit holds the credential, or a query")
	}
}
