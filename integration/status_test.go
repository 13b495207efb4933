package integration

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"

	"exitgate/integration/prober"
	"exitgate/integration/rig"
)

// onTerminal runs a shell command line as root on a terminal of its own, 80 columns wide.
func (g *gate) onTerminal(line string, env ...string) string {
	g.t.Helper()
	out, err := g.Run(context.Background(), rig.Command{Args: []string{"script", "-qec", "stty cols 80; " + line, "/dev/null"}, Env: append([]string{"TERM=xterm"}, env...)})
	if err != nil {
		g.t.Fatal(err)
	}
	return out.Stdout + out.Stderr
}

// TestStatusOnATerminal: colour is for a terminal, unless it is not wanted; 80 columns are enough.
func TestStatusOnATerminal(t *testing.T) {
	t.Parallel()
	w := world(t)
	for _, name := range []string{"api.example.com", "files.example.com"} {
		upstream(t, w, name, rig.Server{})
	}
	g := up(t, w, basic)
	eventually(t, "hosts are resolved", func() bool { return len(g.status().addresses("files.example.com")) == 2 })
	const status = rig.BinaryPath + " status"
	screen := g.onTerminal(status)
	if !strings.Contains(screen, "\x1b[1;32mREADY") {
		t.Errorf("no colour on a terminal:\n%q", screen)
	}
	for name, plain := range map[string]string{
		"NO_COLOR": g.onTerminal(status, "NO_COLOR=1"), "a dumb terminal": g.onTerminal("TERM=dumb " + status), "a pipe": g.exitgate("status").Stdout, "a pipe on a terminal": g.onTerminal(status + " | cat"),
	} {
		if strings.Contains(plain, "\x1b") || !strings.Contains(plain, "READY") {
			t.Errorf("%s: %q", name, plain)
		}
		for line := range strings.Lines(strings.ReplaceAll(plain, "\r", "")) {
			if n := len([]rune(strings.TrimRight(line, "\n"))); n > 80 {
				t.Errorf("%s: %d columns: %q", name, n, line)
			}
		}
		for _, want := range []string{"policy", "proxy", "pid", "api.example.com", "credentials", "ok from file:/run/secrets/api", "resolvers", "egress 4", "hardening", "warnings"} {
			if !strings.Contains(plain, want) {
				t.Errorf("%s: the status lacks %q:\n%s", name, want, plain)
			}
		}
	}
}

// watcher is a `watch` that runs.
type watcher struct {
	mu    sync.Mutex // guards the following
	lines []string
}

func (w *watcher) read(from io.Reader) {
	for lines := bufio.NewScanner(from); lines.Scan(); {
		w.mu.Lock()
		w.lines = append(w.lines, lines.Text())
		w.mu.Unlock()
	}
}

func (w *watcher) has(words ...string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, line := range w.lines {
		all := true
		for _, word := range words {
			all = all && strings.Contains(line, word)
		}
		if all {
			return true
		}
	}
	return false
}

func (w *watcher) all() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]string(nil), w.lines...)
}

// watching starts `watch` in the box as root.
func (g *gate) watching(args ...string) *watcher {
	g.t.Helper()
	w := &watcher{}
	var cmd *exec.Cmd
	err := g.Enter(func() error {
		cmd = exec.Command(rig.BinaryPath, append([]string{"watch"}, args...)...)
		out, err := cmd.StdoutPipe()
		if err != nil {
			return err
		}
		cmd.Stderr = &bytes.Buffer{}
		if err := cmd.Start(); err != nil {
			return err
		}
		go w.read(out)
		return nil
	})
	if err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	return w
}

// TestWatchGoesOn: whoever watches sees decisions as they are made, through its filter, before and after the proxy has been killed.
func TestWatchGoesOn(t *testing.T) {
	t.Parallel()
	w := world(t)
	upstream(t, w, "api.example.com", rig.Server{})
	g := up(t, w, basic)
	all, denied, some, asJSON := g.watching(), g.watching("--denied"), g.watching("--host", "*.example.org", "--event", "connect"), g.watching("--json", "--agent", "agent")
	// A watcher that has not been let in yet sees nothing: go on until each has seen something.
	round := func(name string) {
		eventually(t, name+": all watchers have seen it", func() bool {
			g.do(get("/v1/" + name))
			g.do(tunnel(name + ".example.org"))
			return all.has("allow", "/v1/"+name) && all.has("deny", name+".example.org") && denied.has(name+".example.org") &&
				some.has(name+".example.org") && asJSON.has(`"path":"/v1/`+name+`"`)
		})
	}
	round("before")
	before := g.status().Proxy
	if out := g.kill9(before.PID); out.Code != 0 {
		t.Fatalf("kill: %s", out.Stderr)
	}
	eventually(t, "another proxy runs", func() bool {
		s := g.status()
		return s.Proxy.PID != 0 && s.Proxy.PID != before.PID && s.State == "ready"
	})
	round("after")
	if !all.has("child", "killed") {
		t.Errorf("the proxy's end is not shown: %q", all.all())
	}
	for _, line := range append(denied.all(), some.all()...) {
		if !strings.Contains(line, " deny ") {
			t.Errorf("not what the filter takes: %s", line)
		}
	}
	for _, line := range asJSON.all() {
		var e event
		if json.Unmarshal([]byte(line), &e) != nil || e.Agent != "agent" {
			t.Errorf("not an audit line of that agent: %s", line)
		}
	}
}

// kill9 kills a process of the box.
func (g *gate) kill9(pid int) rig.Output {
	g.t.Helper()
	out, err := g.Run(context.Background(), rig.Command{Args: []string{"/bin/sh", "-c", "kill -9 $0", strconv.Itoa(pid)}})
	if err != nil {
		g.t.Fatal(err)
	}
	return out
}

// TestSuggestIsTakenByCheck: what was denied comes back as a policy that check accepts, by name, number and program; telemetry is marked and
// nothing is a wildcard.
func TestSuggestIsTakenByCheck(t *testing.T) {
	t.Parallel()
	w := world(t)
	upstream(t, w, "api.example.com", rig.Server{})
	g := up(t, w, basic)
	lookup := prober.Probe{Op: "shell", Data: []byte(`python3 -c '
import socket, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for i in range(14):
    try: s.sendto(b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x07statsig\x09anthropic\x03com\x00\x00\x01\x00\x01", ("10.9.9.9", 53))
    except OSError: pass
    time.sleep(0.02)
time.sleep(0.3)'`)}
	g.do(lookup)
	g.do(refusedTunnels)
	g.do(web(listener, "POST", "http://plain.example.org/x", "plain.example.org"))
	g.do(web(listener, "DELETE", "/v1/x", listener))
	g.do(prober.Probe{Op: "tcp", Address: "1.1.1.1:443"})
	var text string
	eventually(t, "all is suggested", func() bool {
		text = g.exitgate("suggest").Stdout
		return strings.Contains(text, "14 times") && strings.Contains(text, "1.1.1.1")
	})
	for _, want := range []string{"  - {host: files.example.org, ports: [443, 8443]} # 4 times, by /usr/bin/python3", "  - {host: plain.example.org, ports: [80], methods: [POST]} # once",
		"# known telemetry: host: statsig.anthropic.com # 14 times, by /usr/bin/python3", "DELETE /v1/x", "tcp to 1.1.1.1:443"} {
		if !strings.Contains(text, want) {
			t.Errorf("the suggestion lacks %q:\n%s", want, text)
		}
	}
	if strings.Contains(text, "*") {
		t.Errorf("a wildcard is suggested:\n%s", text)
	}
	if err := g.Write("/tmp/addition.yaml", rig.File{Data: text}); err != nil {
		t.Fatal(err)
	}
	if out := g.exitgate("check", "--strict", "/tmp/addition.yaml"); out.Code != 0 {
		t.Errorf("check does not accept it: %s\n%s", out.Stderr, text)
	}
}

// refusedTunnels is a program that asks four times and stays: one that is gone within the millisecond may remain unknown.
var refusedTunnels = prober.Probe{Op: "shell", Data: []byte(`python3 -c '
import socket, time
held = []
for port in (443, 443, 443, 8443):
    s = socket.create_connection(("127.0.0.1", 8080))
    s.sendall(b"CONNECT files.example.org:%d HTTP/1.1\r\nHost: files.example.org:%d\r\n\r\n" % (port, port))
    s.recv(4096)
    held.append(s)
time.sleep(0.5)'`)}

// TestSuggestOnceAtTheEnd: at the end of `run` on a terminal; never where standard error is no terminal, or nothing was denied.
func TestSuggestOnceAtTheEnd(t *testing.T) {
	t.Parallel()
	g, term := person(t, "/bin/sh", "-c", "curl -s -o /dev/null https://files.example.org/; echo done")
	typed(t, term, "", "done", "add to the policy what you agree with", "host: files.example.org")
	if code := g.code(); code != 0 || strings.Count(term.Screen(), "files.example.org") != 1 {
		t.Errorf("exit %d, %s", code, term.Screen())
	}
	g, term = person(t, "/bin/sh", "-c", "echo done")
	typed(t, term, "", "done")
	if code := g.code(); code != 0 || strings.Contains(term.Screen(), "add to the policy") {
		t.Errorf("exit %d, %s", code, term.Screen())
	}
	g = start(t, g.w, nothing, running("run", "--", "/bin/sh", "-c", "curl -s -o /dev/null https://files.example.org/; echo done"))
	if code := g.code(); code != 0 || strings.Contains(g.Stderr.String(), "add to the policy") {
		t.Errorf("exit %d, %s", code, g.Stderr.Tail(60))
	}
}
