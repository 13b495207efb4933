package main

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"runtime/debug"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"exitgate/cmd/internal/supervise"
	"exitgate/policy"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// desk is an environment whose settings file and variables are made up.
type desk struct {
	environment
	out, err bytes.Buffer
}

func newDesk(t *testing.T, file string, variables map[string]string, args ...string) *desk {
	t.Helper()
	d := &desk{}
	d.environment = environment{
		args: append([]string{}, args...), stdin: strings.NewReader(""), stdout: &d.out, stderr: &d.err,
		getenv: func(name string) string { return variables[name] }, environ: os.Environ,
		root: t.TempDir(), now: func() time.Time { return time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC) },
	}
	if file != "" {
		path := filepath.Join(d.root, settingsFile)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(file), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return d
}

// read is what readSettings makes of flags, given as they stand on a command line.
func (d *desk) read(t *testing.T, flags ...string) (*settings, error) {
	t.Helper()
	c := &cobra.Command{}
	addSettings(c.Flags())
	if err := c.ParseFlags(flags); err != nil {
		t.Fatal(err)
	}
	return d.readSettings(c.Flags())
}

func standard() settings {
	return settings{
		Policy: "/etc/exitgate/policy.yaml", LogLevel: "info", LogFormat: "json", Audit: "stderr", Metrics: "off",
		Control: "/run/exitgate/control.sock", Grace: 10 * time.Second, SelfTest: true, DriftInterval: 5 * time.Second,
	}
}

func TestSettings(t *testing.T) {
	with := func(change func(*settings)) settings {
		s := standard()
		change(&s)
		return s
	}
	for _, c := range []struct {
		name, file string
		variables  map[string]string
		flags      []string
		want       settings
		set        string // a key that somebody chose
	}{
		{"defaults", "", nil, nil, standard(), ""},
		{"empty file", "# nothing\n", nil, nil, standard(), ""},
		{"file", "policy: /p\nlog:\n  level: debug\n  format: text\ngrace: 1m30s\nself_test: false\nwatch: true\n", nil, nil, with(func(s *settings) {
			s.Policy, s.LogLevel, s.LogFormat, s.Grace, s.SelfTest, s.Watch = "/p", "debug", "text", 90*time.Second, false, true
		}), "log.level"},
		{"dotted keys", "log.level: debug\n", nil, nil, with(func(s *settings) { s.LogLevel = "debug" }), "log.level"},
		{"chosen as it was", "audit: stderr\n", nil, nil, standard(), "audit"},
		{"variable over file", "log:\n  level: debug\ncontrol: /c\n", map[string]string{"EXITGATE_LOG_LEVEL": "warn"}, nil,
			with(func(s *settings) { s.LogLevel, s.Control = "warn", "/c" }), "control"},
		{"flag over variable", "grace: 1s\n", map[string]string{"EXITGATE_GRACE": "2s", "EXITGATE_AUDIT": "none"}, []string{"--grace", "3s"},
			with(func(s *settings) { s.Grace, s.Audit = 3*time.Second, "none" }), "grace"},
		{"flag back to the default", "audit: none\n", nil, []string{"--audit=stderr"}, standard(), "audit"},
		{"flags without a value", "", nil, []string{"--watch", "--self-test=false"}, with(func(s *settings) { s.Watch, s.SelfTest = true, false }), "watch"},
		{"list", "loosen: [perf, landlock]\n", nil, nil, with(func(s *settings) { s.Loosen = []string{"perf", "landlock"} }), "loosen"},
		{"list in a variable", "", map[string]string{"EXITGATE_LOOSEN": "perf, io-uring"}, nil, with(func(s *settings) { s.Loosen = []string{"perf", "io-uring"} }), "loosen"},
		{"others", "metrics: unix:/run/m.sock\naudit: file:/var/log/a\ndrift_interval: 500ms\n", nil, nil,
			with(func(s *settings) {
				s.Metrics, s.Audit, s.DriftInterval = "unix:/run/m.sock", "file:/var/log/a", 500*time.Millisecond
			}), "metrics"},
		{"foreign variables", "", map[string]string{"EXITGATE_SERVICE_HOST": "10.0.0.1", "EXITGATE_PORT": "tcp://x"}, nil, standard(), ""},
		{"text that YAML would change", "policy: 1.10\n", nil, nil, with(func(s *settings) { s.Policy = "1.10" }), "policy"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := newDesk(t, c.file, c.variables).read(t, c.flags...)
			if err != nil {
				t.Fatal(err)
			}
			for _, s := range settingTable {
				mine := strings.Contains(c.file, strings.ReplaceAll(s.key, "log.", "")) || c.variables[s.variable()] != "" || strings.Contains(strings.Join(c.flags, " "), "--"+s.flag())
				if got.isSet(s.key) != mine {
					t.Errorf("isSet(%q) is %v", s.key, got.isSet(s.key))
				}
			}
			if c.set != "" && !got.isSet(c.set) {
				t.Errorf("isSet(%q) is false", c.set)
			}
			got.chosen = nil
			if diff := cmp.Diff(c.want, *got, cmp.AllowUnexported(settings{})); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestSettingsMistakes(t *testing.T) {
	const file = "/etc/exitgate/exitgate.yaml"
	var known []string
	for _, s := range settingTable {
		known = append(known, s.key)
	}
	for _, c := range []struct {
		name, file string
		variables  map[string]string
		flags      []string
		want       []string
	}{
		{"unknown key", "adit: none\n", nil, nil, []string{file + `:1:1: unknown key "adit"; did you mean "audit"?`}},
		{"unknown key in a group", "log:\n  levle: debug\n", nil, nil, []string{file + `:2:3: unknown key "log.levle"; did you mean "log.level"?`}},
		{"policy in the settings", "egress: []\n", nil, nil, []string{file + `:1:1: unknown key "egress"; known are ` + strings.Join(known, ", ") + `; what is allowed is written in the policy`}},
		{"twice", "audit: none\ngrace: 1s\naudit: stderr\n", nil, nil, []string{file + `:3:1: key "audit" is there twice; keep one`}},
		{"twice, once dotted", "log.level: debug\nlog: {level: info}\n", nil, nil, []string{file + `:2:7: key "log.level" is there twice; keep one`}},
		{"a list", "audit: [none]\n", nil, nil, []string{file + ":1:8: audit has a value of the wrong kind; write one word after the colon"}},
		{"a word for a group", "log: debug\n", nil, nil, []string{file + ":1:6: here stands no mapping; write `key: value` lines"}},
		{"no mapping", "- audit\n", nil, nil, []string{file + ":1:1: here stands no mapping; write `key: value` lines"}},
		{"not YAML", "audit: 'x\n", nil, nil, []string{file + ": "}},
		{"values", "grace: 10\nwatch: maybe\ndrift_interval: 0s\nlog: {level: loud}\n", nil, nil, []string{
			file + `: log.level: "loud" is not known; write debug, info, warn, error`,
			file + `: grace: "10" is not a time; write 500ms, 10s or 1m30s`,
			file + `: watch: "maybe" is neither true nor false`,
			file + `: drift_interval: "0s" is too short; write at least 1ms`}},
		{"variable", "", map[string]string{"EXITGATE_SELF_TEST": "off"}, nil, []string{`EXITGATE_SELF_TEST: "off" is neither true nor false`}},
		{"the flag is named, not what it hides", "grace: x\n", map[string]string{"EXITGATE_GRACE": "y"}, []string{"--grace=z"}, []string{`--grace: "z" is not a time; write 500ms, 10s or 1m30s`}},
		{"metrics", "", nil, []string{"--metrics=:http"}, []string{`--metrics: ":http" is not known; write off, unix:PATH or ADDR:PORT such as 127.0.0.1:9090`}},
		{"metrics path", "", nil, []string{"--metrics=unix:m.sock"}, []string{`--metrics: "unix:m.sock" has no whole path; write unix:/run/exitgate/metrics.sock`}},
		{"audit path", "", nil, []string{"--audit=file:audit"}, []string{`--audit: "file:audit" has no whole path; write file:/var/log/exitgate/audit.jsonl`}},
		{"control path", "", nil, []string{"--control=c.sock"}, []string{`--control: "c.sock" is not a whole path; write /run/exitgate/control.sock`}},
		{"control too long", "", nil, []string{"--control=/" + strings.Repeat("x", 200)}, []string{`--control: the path has 201 bytes; a socket's has at most 107`}},
		{"negative", "", nil, []string{"--grace=-1s"}, []string{`--grace: "-1s" is too short; write at least 0s`}},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := newDesk(t, c.file, c.variables).read(t, c.flags...)
			if err == nil {
				t.Fatal("taken")
			}
			got := strings.Split(err.Error(), "\n")
			if len(got) != len(c.want) || !strings.HasPrefix(got[0], c.want[0]) || len(got) > 1 && !cmp.Equal(got, c.want) {
				t.Errorf("%s", cmp.Diff(c.want, got))
			}
		})
	}
}

func TestSettingsFileThatIsNone(t *testing.T) {
	d := newDesk(t, "", nil)
	if err := os.MkdirAll(filepath.Join(d.root, "etc/exitgate"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(filepath.Join(d.root, settingsFile), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := d.read(t)
	if err == nil || err.Error() != settingsFile+": is not a regular file; write it to one, or pass it as - on standard input" {
		t.Error(err)
	}
}

// TestEverySettingIsRead: a field that nothing fills in would be a setting that does nothing.
func TestEverySettingIsRead(t *testing.T) {
	examples := map[string]string{
		"policy": "/x", "log.level": "error", "log.format": "text", "audit": "none", "metrics": "127.0.0.1:1", "control": "/x",
		"grace": "1s", "drift_interval": "1s", "loosen": strings.Join(supervise.LoosenNames(), ","),
	}
	for _, s := range settingTable {
		example := examples[s.key]
		switch s.standard {
		case "true":
			example = "false"
		case "false":
			example = "true"
		}
		got, err := newDesk(t, "", map[string]string{s.variable(): example}).read(t)
		if err != nil {
			t.Fatal(err)
		}
		got.chosen = nil
		if cmp.Equal(standard(), *got, cmp.AllowUnexported(settings{})) {
			t.Errorf("%s changes nothing", s.key)
		}
	}
}

// TestHelp: each command has an example and one line about it, and each flag says what it is for.
func TestHelp(t *testing.T) {
	root := newRoot(&newDesk(t, "", nil).environment)
	var walk func(c *cobra.Command)
	walk = func(c *cobra.Command) {
		if c.Example == "" || c.Short == "" {
			t.Errorf("%s: example %q, short %q", c.CommandPath(), c.Example, c.Short)
		}
		if !c.HasParent() || c.Parent() == root {
			for _, line := range strings.Split(c.Example, "\n") {
				if !strings.Contains(line, "exitgate") || !strings.HasPrefix(line, "  ") {
					t.Errorf("%s: the example %q is no command line", c.CommandPath(), line)
				}
			}
		}
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	walk(root)
	for _, c := range commands {
		if name := c(&environment{}).Name(); !strings.Contains(root.UsageString(), "  "+name+" ") {
			t.Errorf("%s is not in the help", name)
		}
	}
}

func TestPrintable(t *testing.T) {
	d := newDesk(t, "", nil)
	d.complain(errors.New("a\x1b[2Jb\r\x00\u009bc\u2028d\te\nsecond \xff line"))
	want := "exitgate: a\ufffd[2Jb\ufffd\ufffd\ufffdc\ufffdd\te\nexitgate: second \ufffd line\n"
	if diff := cmp.Diff(want, d.err.String()); diff != "" {
		t.Error(diff)
	}
}

// TestExitCodes: an error of ours is 1, or 125 where the code could be taken for that of a program of the user's.
func TestExitCodes(t *testing.T) {
	const broken = "adit: none\n"
	for _, c := range []struct {
		args []string
		file string
		want int
	}{
		{[]string{"check", "/none.yaml"}, "", 1},
		{[]string{"check", "/none.yaml"}, broken, 1},
		{[]string{"check", "--x"}, "", 2},
		{[]string{"env", "--format", "xml"}, "", 1},
		{[]string{"env", "--format", "k8s"}, "", 125},
		{[]string{"version"}, broken, 0},
		{[]string{"presets"}, broken, 0},
		{[]string{"completion", "bash"}, broken, 0},
		{[]string{"help"}, broken, 0},
		{[]string{"--help"}, broken, 0},
		{[]string{"run", "--x"}, "", 125},
		{[]string{"run", "--", "true"}, broken, 125},
		{[]string{"exec"}, "", 125},
		{[]string{"exec", "true"}, broken, 125},
	} {
		d := newDesk(t, c.file, nil, c.args...)
		if got := execute(&d.environment); got != c.want {
			t.Errorf("%v: exit code %d, want %d\n%s", c.args, got, c.want, d.err.String())
		}
		if c.want != 0 && !strings.HasPrefix(d.err.String(), "exitgate: ") {
			t.Errorf("%v: %q", c.args, d.err.String())
		}
	}
}

// TestWaitForNobody: what waits for a gate to come up does not do so for ever.
func TestWaitForNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(t, "", nil, "status", "--wait", "ready", "--control", t.TempDir()+"/control.sock")
		begin := time.Now()
		code := execute(&d.environment)
		if took := time.Since(begin); code != exitNotRunning || took < 20*time.Second || took > time.Minute {
			t.Errorf("exit code %d after %v\n%s", code, took, d.err.String())
		}
	})
}

func TestDescribeBuild(t *testing.T) {
	info := func(version string, settings ...string) *debug.BuildInfo {
		b := &debug.BuildInfo{Main: debug.Module{Version: version}}
		for i := 0; i < len(settings); i += 2 {
			b.Settings = append(b.Settings, debug.BuildSetting{Key: settings[i], Value: settings[i+1]})
		}
		return b
	}
	for _, c := range []struct {
		info            *debug.BuildInfo
		version, commit string
	}{
		{nil, "devel", "unknown"},
		{info("(devel)"), "devel", "unknown"},
		{info("", "-buildmode", "exe"), "devel", "unknown"},
		{info("v0.1.0", "vcs.revision", "0123456789abcdef0123", "vcs.modified", "false"), "v0.1.0", "0123456789ab"},
		{info("v0.1.0", "vcs.revision", "0123", "vcs.modified", "true"), "v0.1.0", "0123+modified"},
		{info("v0.1.0", "vcs.modified", "true", "vcs.revision", "0123"), "v0.1.0", "0123+modified"},
	} {
		if got := describe(c.info); got.Version != c.version || got.Commit != c.commit {
			t.Errorf("%+v", got)
		}
	}
	version, commit = "v1.2.3", "fedcba987654"
	defer func() { version, commit = "", "" }()
	for info, want := range map[*debug.BuildInfo]string{
		info("(devel)"): "fedcba987654",
		info("v0.1.0", "vcs.revision", "0123", "vcs.modified", "true"): "0123+modified",
	} {
		if got := describe(info); got.Version != "v1.2.3" || got.Commit != want {
			t.Errorf("told by the linker: %+v, want commit %s", got, want)
		}
	}
}

// TestLinkerVariables: what the builds set is there. The linker says nothing of a name that it does not know.
func TestLinkerVariables(t *testing.T) {
	known := map[string]*string{"main.version": &version, "main.commit": &commit}
	for _, file := range []string{"Makefile", "Dockerfile"} {
		text, err := os.ReadFile("../../" + file)
		if err != nil {
			t.Fatal(err)
		}
		found := regexp.MustCompile(`-X (\S+?)=`).FindAllSubmatch(text, -1)
		if len(found) == 0 {
			t.Errorf("%s sets none", file)
		}
		for _, m := range found {
			if known[string(m[1])] == nil {
				t.Errorf("%s sets %s, which is no variable", file, m[1])
			}
		}
	}
}

// TestLocation: every byte of path and query stays as it was written.
func TestLocation(t *testing.T) {
	for s, want := range map[string]location{
		"https://a.example":                   {"https", "a.example", 443, "/", ""},
		"HTTP://a.example:8080":               {"http", "a.example", 8080, "/", ""},
		"https://a.example?x=%2F;y":           {"https", "a.example", 443, "/", "x=%2F;y"},
		"https://a.example/%2e%2E//b;c?d?e#f": {"https", "a.example", 443, "/%2e%2E//b;c", "d?e"},
		"https://[2001:db8::1]/":              {"https", "2001:db8::1", 443, "/", ""},
		"https://[2001:db8::1]:8443/x":        {"https", "2001:db8::1", 8443, "/x", ""},
		"https://a.example:/":                 {"https", "a.example", 443, "/", ""},
		"a.example:443":                       {"", "a.example", 443, "", ""},
		"[::1]:1":                             {"", "::1", 1, "", ""},
	} {
		got, err := parseLocation(s)
		if diff := cmp.Diff(want, got, cmp.AllowUnexported(location{})); diff != "" || err != nil {
			t.Errorf("%s: %v %s", s, err, diff)
		}
	}
	for _, s := range []string{"", "a", "a:", "a:0", "a:65536", "a:x", ":443", "::1:443", "https://", "https:///x", "https://a:b@c/", "ws://a/", "https://a:-1/", "a:+1"} {
		if got, err := parseLocation(s); err == nil {
			t.Errorf("%q is taken as %+v", s, got)
		}
	}
}

// FuzzLocation: what is taken has a host and a port, and nothing is lost of path and query.
func FuzzLocation(f *testing.F) {
	for _, s := range []string{"https://a.example/%2e?x#y", "a:1", "[::1]:2", "http://[::1", "x://y", "https://@/"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		l, err := parseLocation(s)
		if err != nil {
			return
		}
		if l.host == "" || l.port == 0 || l.scheme != "" && (l.path == "" || l.path[0] != '/') {
			t.Errorf("%q is taken as %+v", s, l)
		}
		if !strings.Contains(s, l.query) || l.path != "/" && !strings.Contains(s, l.path) {
			t.Errorf("%q: path %q or query %q is not what was written", s, l.path, l.query)
		}
	})
}

// TestExplainIsDecide: for every kind of question the answer is the policy's, word for word.
func TestExplainIsDecide(t *testing.T) {
	p, err := policy.Load("policy.yaml", []byte(`
version: 1
routes:
  - name: api
    path: /
    upstream: https://api.example.com/v2
    allow: [GET /models]
egress:
  - host: files.example.com
    ports: [80, 443]
    methods: [GET]
`))
	if err != nil {
		t.Fatal(err)
	}
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for words, r := range map[string]policy.Request{
		"https://api.example.com/v2/models":      {Road: policy.RoadRoute, Method: "GET", Path: "/models"},
		"GET https://api.example.com/v2/models?": {Road: policy.RoadRoute, Method: "GET", Path: "/models"},
		"PUT https://api.example.com/v2":         {Road: policy.RoadRoute, Method: "PUT", Path: "/"},
		"http://127.0.0.1:8080/models":           {Road: policy.RoadRoute, Method: "GET", Path: "/models"},
		"http://127.0.0.1:8080/%2e%2e/models":    {Road: policy.RoadRoute, Method: "GET", Path: "/%2e%2e/models"},
		"https://api.example.com/v22/models":     {Road: policy.RoadConnect, Method: "CONNECT", Host: "api.example.com", Port: 443},
		"https://files.example.com/x":            {Road: policy.RoadConnect, Method: "CONNECT", Host: "files.example.com", Port: 443},
		"CONNECT files.example.com:22":           {Road: policy.RoadConnect, Method: "CONNECT", Host: "files.example.com", Port: 22},
		"http://files.example.com/x?y":           {Road: policy.RoadForward, Method: "GET", Host: "files.example.com", Port: 80, Path: "/x", Query: "y"},
		"DELETE http://files.example.com/x":      {Road: policy.RoadForward, Method: "DELETE", Host: "files.example.com", Port: 80, Path: "/x"},
		"http://127.0.0.1:8081/models":           {Road: policy.RoadForward, Method: "GET", Host: "127.0.0.1", Port: 8081, Path: "/models"},
		"packet tcp 127.0.0.1:8080":              {Road: policy.RoadPacket, Method: "tcp", Host: "127.0.0.1", Port: 8080},
		"packet udp 192.0.2.1:53":                {Road: policy.RoadPacket, Method: "udp", Host: "192.0.2.1", Port: 53},
	} {
		q, err := parseQuestion("", strings.Fields(words))
		if err != nil {
			t.Fatal(err)
		}
		got, err := explain(p, offlineContents(p, now), nil, q, now)
		if err != nil {
			t.Fatal(err)
		}
		r.Agent, r.Now = p.Agents[0].Name, now
		d := p.Decide(r)
		want := answer{Road: roads[r.Road], Decision: map[bool]string{true: "allow", false: "deny"}[d.Allow], Rule: d.Rule, Reason: d.Reason, Mend: d.Mend, File: d.At.File, Line: d.At.Line}
		if diff := cmp.Diff(want, answer{Road: got.Road, Decision: got.Decision, Rule: got.Rule, Reason: got.Reason, Mend: got.Mend, File: got.File, Line: got.Line}, cmp.AllowUnexported(answer{})); diff != "" {
			t.Errorf("%s: %s", words, diff)
		}
	}
}
