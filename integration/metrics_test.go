package integration

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"exitgate/integration/prober"
	"exitgate/integration/rig"
)

// metricsHost is the name that the probes of this file ask for.
const metricsHost = "metrics"

// TestMetrics: each of the documented metrics is served, with its labels, and counts what happened.
func TestMetrics(t *testing.T) {
	t.Parallel()
	w := world(t)
	model := http.NewServeMux()
	model.Handle("/", rig.Standard())
	model.HandleFunc("POST /v1/messages", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		io.WriteString(w, `{"type":"message","usage":{"input_tokens":7,"output_tokens":5,"cache_read_input_tokens":3,"cache_creation_input_tokens":2}}`)
	})
	upstream(t, w, "api.example.com", rig.Server{Handler: model})
	upstream(t, w, "files.example.com", rig.Server{})
	const where = "/run/exitgate/metrics.sock"
	g := up(t, w, basic, env("EXITGATE_METRICS=unix:"+where, "EXITGATE_DRIFT_INTERVAL=100ms"))
	ask := web(where, "GET", "/metrics", metricsHost)
	if r := g.do(ask); r.Errno != "EACCES" {
		t.Errorf("the agent at the metrics' socket: %s", r)
	}
	g.do(get("/big?n=1000"))
	g.do(prober.Probe{Op: "http", Address: listener, Data: append(head("POST", "/v1/messages", listener, "Content-Length: 2"), "{}"...)})
	g.do(tunnel("denied.example.com"))
	g.do(prober.Probe{Op: "tcp", Address: "1.1.1.1:443"})
	if out := g.reload(basic + "nonsense\n"); out.Code != 1 {
		t.Errorf("a bad reload: %d", out.Code)
	}
	held := g.Agent().Start(busy("files.example.com", 5*time.Minute))
	<-held
	before := g.status().Proxy.PID
	text := g.scrape(ask, `exitgate_connections{agent="agent"} [1-9]`)
	if out := g.kill9(before); out.Code != 0 {
		t.Fatal(out.Stderr)
	}
	eventually(t, "another proxy runs", func() bool { s := g.status(); return s.Proxy.PID != 0 && s.Proxy.PID != before })
	g.nft("insert rule inet exitgate output accept") // refused where the kernel lets a table have an owner
	eventually(t, "repairs are counted as in status", func() bool {
		return strings.Contains(g.scrape(ask, "exitgate_drift_repairs_total"), fmt.Sprintf("exitgate_drift_repairs_total %d\n", g.status().Drift.Repairs))
	})
	if out := g.reload(basic); out.Code != 0 {
		t.Errorf("a good reload: %s", out.Stderr)
	}
	text += g.scrape(ask, `exitgate_config_last_reload_successful 1`)
	for _, want := range []string{
		`exitgate_decisions_total\{agent="agent",decision="allow",event="request",rule="route/api"\} 2`,
		`exitgate_decisions_total\{agent="agent",decision="deny",event="connect",rule="default"\} 1`,
		`exitgate_decisions_total\{agent="agent",decision="deny",event="denied_packet",rule="fence/deny_agent"\} [1-9]`,
		`exitgate_denied_packets_total\{chain="agent_denied"\} [1-9]`, `exitgate_denied_packets_total\{chain="root_denied"\} \d`, `exitgate_denied_packets_total\{chain="inbound_denied"\} \d`,
		`exitgate_pins\{host="api.example.com"\} 2`, `exitgate_lookups_total\{result="[a-z_ ]+"\} [1-9]`,
		`exitgate_upstream_seconds_bucket\{le="[^"]+"\} \d`, `exitgate_upstream_seconds_count 2`,
		`exitgate_bytes_total\{agent="agent",direction="in"\} [1-9]`, `exitgate_bytes_total\{agent="agent",direction="out"\} [1-9]`,
		`exitgate_proxy_restarts_total 1`, `exitgate_config_last_reload_successful 0`, `exitgate_config_last_reload_success_timestamp_seconds 1[.\d]+e\+09`,
		`exitgate_usage_tokens_total\{agent="agent",kind="input",route="api"\} 7`, `exitgate_usage_tokens_total\{agent="agent",kind="output",route="api"\} 5`,
		`exitgate_usage_tokens_total\{agent="agent",kind="cache_read",route="api"\} 3`, `exitgate_usage_tokens_total\{agent="agent",kind="cache_creation",route="api"\} 2`,
	} {
		if !regexp.MustCompile(`(?m)^` + want).MatchString(text) {
			t.Errorf("no line %s in\n%s", want, text)
		}
	}
	if strings.Contains(text, secret) {
		t.Error("the metrics have the credential in them")
	}
}

// scrape reads the metrics as root until a line matches.
func (g *gate) scrape(ask prober.Probe, want string) (text string) {
	g.t.Helper()
	match := regexp.MustCompile(`(?m)^` + strings.NewReplacer("{", `\{`, "}", `\}`).Replace(want))
	eventually(g.t, want, func() bool {
		text = string(g.as(0, ask).Data)
		return match.MatchString(text)
	})
	return text
}

// TestMetricsAddressIsRoots: by TCP too, with an agent that may use its own loopback listeners, the metrics are root's.
func TestMetricsAddressIsRoots(t *testing.T) {
	t.Parallel()
	for _, loopback := range []string{"deny", "own"} {
		for _, address := range []string{"127.0.0.1:9090", "0.0.0.0:9090", "[::1]:9090"} {
			t.Run(loopback+" "+address, func(t *testing.T) {
				t.Parallel()
				g := up(t, world(t), "version: 1\nagents:\n  - name: agent\n    loopback: "+loopback+"\nroot_loopback: [9090]\n", env("EXITGATE_METRICS="+address))
				at := strings.Replace(address, "0.0.0.0", "127.0.0.1", 1)
				ask := web(at, "GET", "/metrics", metricsHost)
				if r := g.as(0, ask); r.Status != 200 || !strings.Contains(string(r.Data), "exitgate_config_last_reload_successful 1") {
					t.Errorf("control: root: %s %s", r, r.Data)
				}
				if r := g.do(ask); r.OK() {
					t.Errorf("the agent reads the metrics: %s", r)
				}
			})
		}
	}
}

// auditIn is a gate whose audit goes to a file in a directory of that size.
func auditIn(t *testing.T, size string) *gate {
	t.Helper()
	w := world(t)
	upstream(t, w, "api.example.com", rig.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "ok") })})
	return up(t, w, basic, everything, func(c *rig.Config) {
		c.Plain, c.Serve = true, true
		c.Args = []string{"/bin/sh", "-c", "mkdir -p /tmp/audit && mount -t tmpfs -o mode=0700,size=" + size + " none /tmp/audit && exec " + rig.BinaryPath + " run --audit file:/tmp/audit/log -- " + rig.ProberPath + " serve"}
	})
}

// TestAuditSurvivesAFullDisk: nothing waits for the disk, nobody who watches misses a line, and all lines are there once there is room.
func TestAuditSurvivesAFullDisk(t *testing.T) {
	t.Parallel()
	g := auditIn(t, "64k")
	watch := g.watching("--event", "connect")
	eventually(t, "the watcher watches", func() bool { g.do(tunnel("first.example.org")); return watch.has("first.example.org") })
	for i := range 300 {
		g.do(prober.Probe{Op: "connect", Address: listener, Tunnel: fmt.Sprintf("h%d.example.org:443", i)})
	}
	if r := g.do(get("/v1/models")); r.Status != 200 {
		t.Errorf("a request while the disk is full: %s", r)
	}
	eventually(t, "who watches has seen all", func() bool { return watch.has("h299.example.org") })
	if s := string(g.read("/tmp/audit/log")); strings.Contains(s, "h299.example.org") {
		t.Fatalf("the disk is not full: %d bytes", len(s))
	}
	if out := g.onTerminal("mount -o remount,size=8m /tmp/audit"); strings.TrimSpace(out) != "" {
		t.Fatal(out)
	}
	eventually(t, "the file has all lines", func() bool { return strings.Contains(string(g.read("/tmp/audit/log")), "h299.example.org") })
	log := g.read("/tmp/audit/log")
	for i := range 300 {
		if n := strings.Count(log, fmt.Sprintf(`"host":"h%d.example.org"`, i)); n != 1 {
			t.Errorf("host %d is there %d times", i, n)
		}
	}
	wellFormed(t, log)
}

// read is a file of the box as root sees it, in its own mounts; "": none.
func (g *gate) read(path string) string {
	g.t.Helper()
	out, err := g.Run(context.Background(), rig.Command{Args: []string{"cat", path}})
	if err != nil {
		g.t.Fatal(err)
	}
	return out.Stdout
}

func wellFormed(t *testing.T, log string) (lines int) {
	t.Helper()
	for line := range strings.Lines(log) {
		lines++
		if !json.Valid([]byte(line)) || !strings.HasSuffix(line, "}\n") {
			t.Fatalf("not a whole line: %q", line)
		}
	}
	return lines
}

// TestAuditRotates: at 16 MiB the file becomes .1, no line is broken or lost by that, and both are root's alone.
func TestAuditRotates(t *testing.T) {
	t.Parallel()
	g := auditIn(t, "64m")
	long := prober.Probe{Op: "load", Address: listener, Data: head("GET", "/v1/"+strings.Repeat("x", 1000), listener), Connections: 4, Timeout: time.Second}
	made := 0
	for until := time.Now().Add(90 * time.Second); g.read("/tmp/audit/log.1") == "" && time.Now().Before(until); {
		r := g.do(long)
		if made += r.Count; r.Count == 0 {
			t.Fatalf("no load: %s", r)
		}
	}
	var first, second string
	eventually(t, "every request is in a file", func() bool {
		first, second = g.read("/tmp/audit/log.1"), g.read("/tmp/audit/log")
		return strings.Count(first+second, `"event":"request"`) >= made && !strings.Contains(first+second, `"event":"lost"`)
	})
	if len(first) < 15<<20 || len(first) > 17<<20 {
		t.Errorf("the rotated file has %d bytes", len(first))
	}
	lines := wellFormed(t, first) + wellFormed(t, second)
	stat, err := g.Run(context.Background(), rig.Command{Args: []string{"stat", "-c", "%a %u", "/tmp/audit/log", "/tmp/audit/log.1"}})
	if err != nil || strings.TrimSpace(stat.Stdout) != "600 0\n600 0" {
		t.Errorf("%v: %q", err, stat.Stdout)
	}
	page := g.exitgate("report", "--audit", "/tmp/audit/log").Stdout
	if m := regexp.MustCompile(`, ([\d\x{202f}]+) audit lines`).FindStringSubmatch(page); m == nil {
		t.Error("no report of both files")
	} else if n, _ := strconv.Atoi(strings.ReplaceAll(m[1], "\u202f", "")); n < lines {
		t.Errorf("the report has %d lines, the files %d", n, lines)
	}
	t.Logf("%d requests, %d lines", made, lines)
}

// TestMetricsReach: an address for the metrics that the fence lets nobody reach is told of at the start, and one that it does is not.
func TestMetricsReach(t *testing.T) {
	t.Parallel()
	w := world(t)
	for _, c := range []struct{ where, policy, says string }{
		{"127.0.0.1:9100", basic, "write `root_loopback: [9100]`"},
		{"0.0.0.0:9100", basic, "write `root_loopback: [9100]`"},
		{"127.0.0.1:9100", basic + "root_inbound: [9100]\n", "write `root_loopback: [9100]`"},
		{"127.0.0.1:9100", basic + "root_loopback: [9100]\n", ""},
		{"0.0.0.0:9100", basic + "root_inbound: [9100]\n", ""},
	} {
		g := up(t, w, c.policy, env("EXITGATE_METRICS="+c.where))
		var at []string
		for _, l := range g.Stderr.Lines() {
			if strings.Contains(l, "metrics at ") {
				at = append(at, l)
			}
		}
		r, err := g.Probe(0, prober.Probe{Op: "tcp", Address: "127.0.0.1:9100"})
		if err != nil {
			t.Fatal(err)
		}
		if reached := r.Errno == ""; reached != strings.Contains(c.policy, "root_loopback") {
			t.Errorf("control: root at 127.0.0.1:9100: %s", r)
		}
		if got := strings.Join(at, "\n"); (got == "") != (c.says == "") || !strings.Contains(got, c.says) {
			t.Errorf("%s with %q says %q", c.where, strings.TrimPrefix(c.policy, basic), got)
		}
	}
}
