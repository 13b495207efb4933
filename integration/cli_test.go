package integration

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"exitgate/integration/rig"

	"github.com/rogpeppe/go-internal/testscript"
)

// TestScripts runs the command line's scripts: stdout is the answer, stderr everything else, and each exit code means what it should.
func TestScripts(t *testing.T) {
	bin := t.TempDir()
	if err := os.Symlink(binary, filepath.Join(bin, "exitgate")); err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(e *testscript.Env) error {
			e.Setenv("PATH", bin+string(os.PathListSeparator)+e.Getenv("PATH"))
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"code": code},
	})
}

// code runs a command and wants a certain exit code: code N COMMAND ARGS.
func code(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: code N COMMAND ARGS")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	err = ts.Exec(args[1], args[2:]...)
	got := 0
	if exit, ok := err.(*exec.ExitError); ok {
		got = exit.ExitCode()
	} else if err != nil {
		ts.Fatalf("%v", err)
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}

// TestHelpHasAnExample: each command explains itself, with an example that begins with the program's name.
func TestHelpHasAnExample(t *testing.T) {
	for _, c := range []string{"run", "exec", "env", "check", "rules", "diff", "explain", "presets", "status", "reload", "version"} {
		out, err := exec.Command(binary, c, "--help").Output()
		if err != nil {
			t.Errorf("%s --help: %v", c, err)
		}
		_, example, ok := strings.Cut(string(out), "Examples:")
		if !ok || !strings.Contains(example, "exitgate "+c) {
			t.Errorf("%s --help has no example:\n%s", c, out)
		}
	}
}

// TestWhereNothingRuns: each command that needs a running gate says that there is none, by its exit code too.
func TestWhereNothingRuns(t *testing.T) {
	t.Parallel()
	w := world(t)
	g := start(t, w, basic, func(c *rig.Config) { c.Plain, c.Args, c.Serve = true, []string{rig.ProberPath, "serve"}, true })
	for _, c := range []struct {
		args string
		want int
	}{
		{"status", 3}, {"status --json", 3}, {"exec -- true", 125}, {"env", 125}, {"reload", 125}, {"explain api.example.com:443", 125},
		{"watch", 125}, {"verify", 125},
	} {
		out := g.exitgate(strings.Fields(c.args)...)
		if out.Code != c.want || out.Stdout != "" && c.args != "status --json" || !strings.HasPrefix(out.Stderr, "exitgate: ") {
			t.Errorf("%s: exit %d, want %d; stdout %q, stderr %q", c.args, out.Code, c.want, out.Stdout, out.Stderr)
		}
	}
}

// TestLiveCommands: what a running gate says about itself.
func TestLiveCommands(t *testing.T) {
	t.Parallel()
	w := world(t)
	api := upstream(t, w, "api.example.com", rig.Server{})
	g := up(t, w, basic)
	if out := g.exitgate("status", "--wait", "ready"); out.Code != 0 {
		t.Errorf("status --wait ready: exit %d, %q %q", out.Code, out.Stdout, out.Stderr)
	}
	eventually(t, "the upstream is resolved", func() bool { return len(g.status().addresses("api.example.com")) == 2 })
	for _, c := range []struct {
		args string
		want int
		says string
	}{
		{"status", 0, "api.example.com"},
		{"explain GET http://127.0.0.1:8080/v1/models", 0, "route"},
		{"explain DELETE http://127.0.0.1:8080/v1/models", 1, "DELETE"},
		{"explain files.example.com:443", 0, "egress"},
		{"explain https://denied.example.com/", 1, "denied.example.com"},
		{"explain packet udp 1.1.1.1:53", 1, "udp"},
		{"env", 0, "API_URL='http://127.0.0.1:8080'"},
		{"env", 0, "HOME='/home/agent'"},
		{"env --format docker", 0, "API_URL=http://127.0.0.1:8080"},
		{"env --format k8s", 0, "API_URL"},
		{"reload", 0, ""},
	} {
		out := g.exitgate(strings.Fields(c.args)...)
		if out.Code != c.want || !strings.Contains(out.Stdout+out.Stderr, c.says) {
			t.Errorf("%s: exit %d, want %d and %q; stdout %q, stderr %q", c.args, out.Code, c.want, c.says, out.Stdout, out.Stderr)
		}
		if strings.Contains(out.Stdout+out.Stderr, secret) {
			t.Errorf("%s shows the credential", c.args)
		}
	}
	if got := g.status().addresses("api.example.com"); !strings.Contains(strings.Join(got, " "), api.Addr4.String()) {
		t.Errorf("addresses in status: %v", got)
	}
}
