package containers

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"exitgate/integration/prober"
	"exitgate/integration/rig"

	"github.com/creack/pty"
	"go.yaml.in/yaml/v3"
	"golang.org/x/sys/unix"
)

// The README's commands are executed as they stand there, in a directory where its files are and with a stand-in for Claude Code on the
// PATH, which tries what it may and what it may not, says what came of it, and waits for a line.

// hostBin is where programs are put for the stage alone: a layer over the machine's own directory.
const hostBin = "/usr/local/bin"

// anthropic is where the README's policy leads.
var anthropic place

// setReadme puts the README's programs onto the PATH, and its upstream onto the internet.
func setReadme() error {
	for _, dir := range []string{"/run/rig/bin", "/run/rig/bin-work"} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
	}
	if err := unix.Mount("overlay", hostBin, "overlay", 0, "lowerdir="+hostBin+",upperdir=/run/rig/bin,workdir=/run/rig/bin-work"); err != nil {
		return fmt.Errorf("a layer over %s: %w", hostBin, err)
	}
	for _, u := range []struct {
		name string
		at   **rig.Upstream
	}{{"api.anthropic.com", &anthropic.api}, {"elsewhere.example.net", &anthropic.elsewhere}} {
		up, err := internet.HTTPS(u.name, rig.Server{})
		if err != nil {
			return err
		}
		*u.at = up
	}
	claude := "#!/bin/sh\n"
	for _, p := range append([]prober.Probe{get("/v1/models")}, anthropic.direct()...) {
		claude += "probe do '" + p.Encode() + "'\n"
	}
	for name, script := range map[string]string{
		"claude": claude + "echo claude: $# arguments\nread line || true\n",
		"docker": "#!/bin/sh\nexport DOCKER_HOST=unix:///run/rig/docker/socket\n[ \"$1\" != compose ] || { shift; exec /usr/bin/docker-compose \"$@\"; }\nexec /usr/bin/docker \"$@\"\n",
		"sudo":   "#!/bin/sh\nexec \"$@\"\n",
	} {
		if err := os.WriteFile(filepath.Join(hostBin, name), []byte(script), 0o755); err != nil {
			return err
		}
	}
	errs := []error{os.WriteFile(caFile, internet.CA.PEM(), 0o644)}
	for name, from := range map[string]string{"exitgate": binary, "probe": probe} {
		data, err := os.ReadFile(from)
		errs = append(errs, err, os.WriteFile(filepath.Join(hostBin, name), data, 0o755))
	}
	return errors.Join(errs...)
}

var block = regexp.MustCompile("(?ms)^```(\\w+)\n(.*?)^```$")

// blocks are the fenced blocks below a heading of the README, up to the next heading.
func blocks(t testing.TB, heading, language string) (found []string) {
	t.Helper()
	text, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(text), "\n"+heading+"\n")
	if !ok {
		t.Fatalf("the README has no heading %q", heading)
	}
	var section strings.Builder
	fenced := false
	for line := range strings.Lines(rest) {
		if strings.HasPrefix(line, "```") {
			fenced = !fenced
		}
		if !fenced && strings.HasPrefix(line, "#") {
			break
		}
		section.WriteString(line)
	}
	for _, m := range block.FindAllStringSubmatch(section.String(), -1) {
		if m[1] == language {
			found = append(found, m[2])
		}
	}
	if len(found) == 0 {
		t.Fatalf("no %s block below %q", language, heading)
	}
	return found
}

const anthropicKey = "sk-ant-api03-FAKE-readme-0123456789abcdef"

// checkout is a directory as the README's reader has it: the repository's files for others, the README's policy, and a key.
func checkout(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/run/rig", "readme")
	if err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{
		os.Chmod(dir, 0o755), os.MkdirAll(dir+"/integration", 0o755), os.CopyFS(dir+"/integration/deploy", os.DirFS("../deploy")),
		os.WriteFile(dir+"/policy.yaml", []byte(blocks(t, "## Start", "yaml")[0]), 0o644), os.WriteFile(dir+"/anthropic.key", []byte(anthropicKey), 0o400),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// command is a block of the README as bash runs it there.
func command(ctx context.Context, dir, script string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "bash", "-eo", "pipefail", "-c", script)
	cmd.Dir = dir
	cmd.Env = []string{"PATH=" + hostBin + ":/usr/sbin:/usr/bin:/sbin:/bin", "HOME=" + dir, "TERM=xterm", "SSL_CERT_FILE=" + caFile}
	return cmd
}

// caFile has the internet's authority, for an exitgate that runs on the stage itself.
const caFile = "/run/rig/ca.pem"

// wantClaude judges what the stand-in printed: the call arrived with the key, and nothing else left.
func wantClaude(t testing.TB, printed string) {
	t.Helper()
	var rs []prober.Result
	for line := range strings.Lines(printed) {
		var r prober.Result
		at := max(strings.Index(line, "{"), 0) // compose leaves words of its own before the first
		if json.Unmarshal([]byte(strings.TrimSpace(line[at:])), &r) == nil {
			rs = append(rs, r)
		}
	}
	if len(rs) != 1+len(anthropic.direct()) {
		t.Fatalf("the stand-in printed %q", printed)
	}
	if rs[0].Status != 200 {
		t.Errorf("the call: %s %s", rs[0], rs[0].Data)
	}
	seen := anthropic.api.Seen()
	if len(seen) == 0 || seen[len(seen)-1].Header.Get("X-Api-Key") != anthropicKey {
		t.Errorf("the upstream saw %v; want the key", seen)
	}
	for i, r := range rs[1:] {
		if r.OK() {
			t.Errorf("way %d is open: %s", i, r)
		}
	}
}

// atTerminal runs a block at a terminal until the stand-in waits; then does while it does so, and lets it end.
func atTerminal(t testing.TB, dir, script string, while func()) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	defer cancel()
	cmd := command(ctx, dir, script)
	master, err := pty.Start(cmd)
	if err != nil {
		t.Fatal(err)
	}
	defer master.Close()
	person := rig.NewTerminal(master)
	if err := person.Expect("claude: 0 arguments", patience); err != nil {
		t.Fatalf("%s: %v", script, err)
	}
	wantClaude(t, person.Screen())
	while()
	if err := person.Type("\r"); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("%s: %v\n%s", script, err, person.Screen())
	}
}

func TestReadmeDocker(t *testing.T) {
	t.Parallel()
	e := needs(t, "docker")
	dir := checkout(t)
	scripts := blocks(t, "### docker run", "sh")
	t.Cleanup(func() { e.do("", "rm", "-f", "agent") })
	atTerminal(t, dir, strings.Replace(scripts[0], "IMAGE", image, 1), func() {
		for line := range strings.Lines(scripts[1]) {
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			defer cancel()
			line, _, _ := strings.Cut(strings.TrimSpace(line), " #")
			if strings.Contains(line, "-it") {
				line = "script -qec " + "\"" + line + "\" /dev/null <<<'id -u; exit'"
			}
			out, err := command(ctx, dir, line).CombinedOutput()
			// explain answers by its exit code too.
			if err != nil && !(strings.Contains(line, "explain") && strings.Contains(string(out), "pypi.org")) {
				t.Errorf("%s: %v\n%s", line, err, out)
			}
		}
	})
}

func TestReadmeCompose(t *testing.T) {
	t.Parallel()
	needs(t, "docker")
	dir := checkout(t)
	to := dir + "/integration/deploy/compose"
	for _, name := range []string{"policy.yaml", "anthropic.key"} {
		if err := os.Rename(filepath.Join(dir, name), filepath.Join(to, name)); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		if out, err := command(context.Background(), to, "docker compose down -v --timeout 1").CombinedOutput(); err != nil {
			t.Errorf("down: %v: %s", err, out)
		}
	})
	// The embedded resolver of docker 20.10 does not say whom it asks.
	policy, err := os.OpenFile(to+"/policy.yaml", os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(policy, "dns: {servers: [%s]}\n", internet.DNS.Addr4)
	policy.Close()
	atTerminal(t, dir, strings.Replace(blocks(t, "### compose", "sh")[0], "=IMAGE", "="+image, 1), func() {})
}

// onHost makes a policy of the README's for a gate that dials from the stage, where the internet's addresses are its own.
func onHost(t testing.TB, dir string) {
	t.Helper()
	text := anthropic.local(dir)
	text = strings.NewReplacer(dir+"/key", dir+"/anthropic.key", "header: Authorization", "kind: anthropic", "API_URL", "ANTHROPIC_BASE_URL").Replace(text)
	if err := os.WriteFile(dir+"/policy.yaml", []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestReadmeHost(t *testing.T) {
	t.Parallel()
	dir := checkout(t)
	onHost(t, dir)
	scripts := blocks(t, "### A host without containers, or beside one", "sh")
	atTerminal(t, dir, scripts[0], func() {})

	e := needs(t, "docker")
	c := e.start(t, append(with(), "--network", "none"), "sleep", "1000")
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	defer cancel()
	cmd := command(ctx, dir, strings.Replace(scripts[1], "CONTAINER", c.name, 1))
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the attached container's calls arrive", func() bool { return c.as("1000", get("/v1/models"))[0].Status == 200 })
	o, err := c.client(strings.NewReader("\n"), "exec", "-i", "-u", "1000", c.name, "claude")
	if err != nil {
		t.Fatal(err)
	}
	wantClaude(t, o.stdout)
	c.must(t, "kill", c.name)
	if err := cmd.Wait(); err != nil {
		t.Errorf("attach: %v\n%s", err, &log)
	}
}

// step is a step of a job, with no more than the README's has.
type step struct {
	Uses string
	With map[string]string
}

// TestReadmeActions runs the README's step as a runner does: inputs put into the composite action's environment, its script given to bash.
func TestReadmeActions(t *testing.T) {
	t.Parallel()
	dir := checkout(t)
	var steps []step
	strictly(t, []byte(blocks(t, "### GitHub Actions", "yaml")[0]), &steps)
	if len(steps) != 1 || !strings.HasPrefix(steps[0].Uses, "OWNER/exitgate/integration/deploy/action@") {
		t.Fatalf("%+v; want one step that uses the action", steps)
	}
	inputs := steps[0].With
	var action struct {
		Inputs map[string]struct{ Default string }
		Runs   struct {
			Steps []struct {
				If, Run string
				Env     map[string]string
			}
		}
	}
	text, err := os.ReadFile(dir + "/integration/deploy/action/action.yml")
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(text, &action); err != nil {
		t.Fatal(err)
	}
	for name := range inputs {
		if _, known := action.Inputs[name]; !known {
			t.Errorf("the action has no input %s", name)
		}
	}
	onHost(t, dir)
	if err := errors.Join(os.Mkdir(dir+"/.github", 0o755), os.Rename(dir+"/policy.yaml", dir+"/"+inputs["policy"])); err != nil {
		t.Fatal(err)
	}
	// The policy names the file that the action makes, not the one beside it.
	policy, err := os.ReadFile(dir + "/" + inputs["policy"])
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir+"/"+inputs["policy"], bytes.Replace(policy, []byte(dir+"/anthropic.key"), []byte("/run/secrets/"+inputs["credential-name"]), 1), 0o644); err != nil {
		t.Fatal(err)
	}
	inputs["credential"], inputs["binary"] = anthropicKey, binary
	last := action.Runs.Steps[len(action.Runs.Steps)-1]
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	defer cancel()
	cmd := command(ctx, dir, last.Run)
	cmd.Args = []string{"bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", last.Run}
	for name, value := range last.Env {
		input := strings.TrimSuffix(strings.TrimPrefix(value, "${{ inputs."), " }}")
		got, given := inputs[input]
		if !given {
			got = action.Inputs[input].Default
		}
		cmd.Env = append(cmd.Env, name+"="+got)
	}
	out, err := cmd.Output()
	if err != nil {
		t.Errorf("%v: %s", err, out)
	}
	wantClaude(t, string(out))
	if !strings.Contains(string(out), "claude: 2 arguments") {
		t.Errorf("the command came as %s", out)
	}
	if _, err := os.Stat("/run/secrets/" + inputs["credential-name"]); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the credential is left behind: %v", err)
	}
}

// fetch gets a page from the stage.
func fetch(t testing.TB, url string) string {
	t.Helper()
	client := http.Client{Timeout: patience}
	r, err := client.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	text, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func strictly(t testing.TB, text []byte, into any) {
	t.Helper()
	d := yaml.NewDecoder(bytes.NewReader(text))
	d.KnownFields(true)
	if err := d.Decode(into); err != nil {
		t.Fatal(err)
	}
}
