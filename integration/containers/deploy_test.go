package containers

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netns"
)

// TestDevcontainerFeature installs the feature as a dev container's build does, and starts its container as the dev container tool does:
// entrypoints first, then a command that waits.
func TestDevcontainerFeature(t *testing.T) {
	t.Parallel()
	e := needs(t, "docker")
	p := somewhere(t)
	dir, mounts := e.files(t, p.policy())
	var feature struct {
		CapAdd, SecurityOpt []string
		Entrypoint          string
	}
	text, err := os.ReadFile("../deploy/devcontainer/devcontainer-feature.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &feature); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(dir+"/feature", os.DirFS("../deploy/devcontainer")); err != nil {
		t.Fatal(err)
	}
	install := func(flags ...string) output {
		t.Helper()
		o, err := e.client(nil, e.arguments(append(flags, "-v", dir+"/feature:/feature:ro"), []string{"sh", "/feature/install.sh"})...)
		if err != nil {
			t.Fatal(err)
		}
		return o
	}
	if o := install("--rm"); o.code == 0 || !strings.Contains(o.stderr, "binary is missing") {
		t.Errorf("without the binary: %v", o)
	}
	program, err := os.ReadFile(binary)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir+"/feature/exitgate", program, 0o644); err != nil {
		t.Fatal(err)
	}
	const built = "exitgate-devcontainer"
	t.Cleanup(func() { e.do("", "rm", "-f", built) })
	if o := install("--name", built); o.code != 0 {
		t.Fatalf("install.sh: %v", o)
	}
	e.must(t, "commit", built, built)
	flags := slices.Clone(mounts)
	for _, c := range feature.CapAdd {
		flags = append(flags, "--cap-add", c)
	}
	for _, o := range feature.SecurityOpt {
		flags = append(flags, "--security-opt", o)
	}
	run := func(name string, flags []string) *container {
		t.Helper()
		c := &container{engine: e, t: t, name: name}
		t.Cleanup(func() {
			if t.Failed() {
				t.Logf("logs of %s: %s", name, c.logs())
			}
			e.do("", "rm", "-f", name)
		})
		e.must(t, slices.Concat([]string{"run", "-d", "--name", name}, flags, []string{"--entrypoint", "/bin/sh", built, "-c",
			"trap 'exit 0' 15\n" + feature.Entrypoint + "\necho started\nwhile sleep 1 & wait $!; do :; done"})...)
		return c
	}
	c := run("devcontainer", flags)
	eventually(t, "the container has started", func() bool { return strings.Contains(c.logs(), "started") })
	p.wantFence(t, c.as("1000", p.tries()...))
	if o, err := c.client(nil, "exec", "-u", "1000", c.name, "sh", "-c", ". /etc/profile.d/exitgate.sh && env"); err != nil || !strings.Contains(o.stdout, "API_URL=http://"+listener) {
		t.Errorf("the user's environment: %v %v", o, err)
	}
	// Without a policy there is no gate, and no container.
	closed := run("devcontainer-closed", flags[4:])
	eventually(t, "the container has ended", func() bool {
		return closed.must(t, "inspect", "--format", "{{.State.Running}}", closed.name) == "false"
	})
	if logs := closed.logs(); strings.Contains(logs, "started") || !strings.Contains(logs, "policy.yaml") {
		t.Errorf("without a policy: %q; want the reason, and no start", logs)
	}
}

// TestUnit runs what the systemd unit's lines say, with the capabilities that it leaves and no_new_privs.
func TestUnit(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../deploy/systemd/exitgate-attach@.service")
	if err != nil {
		t.Fatal(err)
	}
	settings := map[string]string{}
	for line := range strings.Lines(strings.ReplaceAll(string(text), "%i", "unit")) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok {
			settings[name] = value
		}
	}
	p := somewhere(t)
	dir, err := os.MkdirTemp("/run/rig", "unit")
	if err != nil {
		t.Fatal(err)
	}
	for path, data := range map[string]string{dir + "/key": secret, dir + "/policy.yaml": p.local(dir)} {
		if err := os.WriteFile(path, []byte(data), 0o400); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := exec.Command("ip", "netns", "add", "unit").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	t.Cleanup(func() { netns.DeleteNamed("unit") })
	if out, err := exec.Command("ip", "-n", "unit", "link", "set", "lo", "up").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	bounding := "-all"
	for _, c := range strings.Fields(settings["CapabilityBoundingSet"]) {
		bounding += ",+" + strings.ToLower(strings.TrimPrefix(c, "CAP_"))
	}
	here := func(line string) []string {
		return strings.Fields(strings.NewReplacer("/etc/exitgate/unit.yaml", dir+"/policy.yaml").Replace(line))
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	defer cancel()
	argv := append([]string{"--no-new-privs", "--inh-caps=-all", "--bounding-set=" + bounding, "--"}, here(settings["ExecStart"])...)
	cmd := exec.CommandContext(ctx, "setpriv", argv...)
	cmd.Env = append(os.Environ(), "SSL_CERT_FILE="+caFile)
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "ExecStartPost is content", func() bool {
		post := here(settings["ExecStartPost"])
		return exec.CommandContext(ctx, post[0], post[1:]...).Run() == nil
	})
	o, err := exec.CommandContext(ctx, "nsenter", "--net=/run/netns/unit", "setpriv", "--reuid=1000", "--regid=1000", "--clear-groups", probe, "do", get("/reflect").Encode()).Output()
	if err != nil {
		t.Fatal(err)
	}
	r := results(t, output{stdout: strings.Replace(string(o), "{", `{"id":1,`, 1)}, 1)[0]
	p.wantCall(t, r)
	reload := here(settings["ExecReload"])
	if out, err := exec.CommandContext(ctx, reload[0], reload[1:]...).CombinedOutput(); err != nil {
		t.Errorf("ExecReload: %v: %s", err, out)
	}
	cmd.Process.Signal(os.Interrupt)
	if err := cmd.Wait(); err != nil {
		t.Errorf("its end: %v\n%s", err, &log)
	}
}
