package integration

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"exitgate/integration/prober"
	"exitgate/integration/rig"
	"exitgate/integration/rig/rigtest"
)

// TestHook: as a runtime calls it, with a container's state on standard input.
func TestHook(t *testing.T) {
	t.Parallel()
	w := world(t)
	api := upstream(t, w, "api.example.com", rig.Server{})
	g := host(t, w, basic)
	g.sh("cp /etc/exitgate/policy.yaml /etc/exitgate/agent.yaml")
	pid := g.sh("unshare --net sleep 1000 >/dev/null 2>&1 & echo $!; sleep 0.3")
	ns := "/proc/" + pid + "/ns/net"
	hook := func(state, flags string) string {
		return g.sh("echo '" + state + "' | " + rig.BinaryPath + " hook " + flags + " 2>&1; echo code $?")
	}
	state := func(id, pid, annotations string) string {
		return fmt.Sprintf(`{"ociVersion": "1.0.2", "id": %q, "status": "creating", "pid": %s, "bundle": "/b", "annotations": {%s}}`, id, pid, annotations)
	}
	for _, c := range []struct{ state, flags, says string }{
		{"", "", "no container"},
		{"{", "", "no container"},
		{`{"id": "x"}`, "", "no pid"},
		{state("../x", pid, ""), "", "cannot name a file"},
		{state("own", "1", ""), "", "this very network namespace"},
		{state("none", pid, ""), "--policy /missing", "/missing"},
		{state("wrong", pid, `"exitgate.policy": "/etc/hostname"`), "", "hostname:1"},
		{state("relative", pid, `"exitgate.policy": "agent.yaml"`), "", "not a whole path"},
	} {
		out := hook(c.state, c.flags)
		said, code, _ := strings.Cut(out, "\n")
		if code != "code 1" || !strings.Contains(said, c.says) {
			t.Errorf("%s %s: %q; want one line with %q, and code 1", c.state, c.flags, out, c.says)
		}
	}
	g.nothingLeft()
	out := hook(state("c0ffee", pid, `"exitgate.policy": "/etc/exitgate/agent.yaml"`), "")
	if !strings.HasSuffix(out, "code 0") || !strings.Contains(out, "/run/exitgate/c0ffee.log") {
		t.Fatalf("hook: %s", out)
	}
	// No waiting: it is up when the hook returns.
	if r := g.from(ns, 1000, get("/reflect")); r.Status != 200 {
		t.Errorf("the route: %s %s", r, r.Data)
	}
	if out := hook(state("c0ffee", pid, ""), ""); !strings.HasSuffix(out, "code 1") || !strings.Contains(out, "answers there already") {
		t.Errorf("a second one: %s", out)
	}
	if out := g.exitgate("status", "--control", "/run/exitgate/c0ffee.sock"); out.Code != 0 || !strings.Contains(out.Stdout, "agent.yaml") {
		t.Errorf("status: exit %d, %q", out.Code, out.Stdout)
	}
	g.sh("kill " + pid)
	g.nothingLeft()
	if log := g.sh("cat /run/exitgate/c0ffee.log"); !strings.Contains(log, "has ended") || strings.Contains(log, secret) {
		t.Errorf("log: %s", log)
	}
	g.leaks(places(api)...)
}

// runcWorld is a machine with runc: the namespace that the tests themselves are in.
type runcWorld struct {
	t           testing.TB
	dir, id, ca string
}

// bundle writes a container of the host's programs, with the fragment of integration/deploy for runc in its configuration.
func (r runcWorld) bundle(policy string, argv ...string) {
	r.t.Helper()
	must := func(err error) {
		r.t.Helper()
		if err != nil {
			r.t.Fatal(err)
		}
	}
	own, err := os.Executable()
	must(err)
	must(os.MkdirAll(filepath.Join(r.dir, "rootfs"), 0o755))
	var fragment map[string]any
	data, err := os.ReadFile("deploy/runc/hooks.json")
	must(err)
	must(json.Unmarshal(data, &fragment))
	entry := fragment["hooks"].(map[string]any)["createRuntime"].([]any)[0].(map[string]any)
	entry["path"] = binary
	entry["env"] = []string{"SSL_CERT_FILE=" + r.ca, "PATH=/usr/bin:/bin"}
	fragment["annotations"].(map[string]any)["exitgate.policy"] = policy
	mounts := []map[string]any{{"destination": "/proc", "type": "proc", "source": "proc"}, {"destination": "/rig/prober", "type": "bind", "source": own, "options": []string{"bind", "ro"}}}
	for _, dir := range []string{"/usr", "/bin", "/lib", "/lib64"} {
		if _, err := os.Stat(dir); err == nil {
			mounts = append(mounts, map[string]any{"destination": dir, "type": "bind", "source": dir, "options": []string{"rbind", "ro"}})
		}
	}
	config := map[string]any{
		"ociVersion": "1.0.2", "root": map[string]any{"path": "rootfs"}, "mounts": mounts, "hooks": fragment["hooks"], "annotations": fragment["annotations"],
		"process": map[string]any{"user": map[string]any{"uid": 1000, "gid": 1000}, "args": argv, "cwd": "/", "noNewPrivileges": true,
			"env": []string{"PATH=/usr/bin:/bin"}, "capabilities": map[string]any{}},
		"linux": map[string]any{"namespaces": []map[string]string{{"type": "pid"}, {"type": "network"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}}},
	}
	data, err = json.Marshal(config)
	must(err)
	must(os.WriteFile(filepath.Join(r.dir, "config.json"), data, 0o600))
}

// run runs the container to its end.
func (r runcWorld) run() (stdout, stderr string, code int) {
	r.t.Helper()
	ctx, stop := context.WithTimeout(context.Background(), time.Minute)
	defer stop()
	cmd := exec.CommandContext(ctx, "runc", "--root", filepath.Join(r.dir, "state"), "run", "--bundle", r.dir, r.id)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if err != nil && !errors.As(err, new(*exec.ExitError)) {
		r.t.Fatal(err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// TestHookUnderRunc: a real runtime, a container with an empty network namespace; its first instruction finds the fence.
func TestHookUnderRunc(t *testing.T) {
	rigtest.Program(t, "runc", "runc")
	w := world(t)
	api := upstream(t, w, "api.example.com", rig.Server{})
	dir, err := os.MkdirTemp("/run", "runc") // not below a directory that an agent could write: the key is in it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	r := runcWorld{t: t, dir: dir, id: "exitgate-test-" + filepath.Base(dir), ca: filepath.Join(dir, "ca.pem")}
	policy, key := filepath.Join(dir, "policy.yaml"), filepath.Join(dir, "key")
	for path, text := range map[string]string{
		r.ca: string(w.CA.PEM()), key: secret + "\n",
		policy: strings.NewReplacer("/run/secrets/api", key, "    path: /\n", "    path: /\n    addresses: ["+api.Addr4.String()+"/32, "+api.Addr6.String()+"/128]\n").Replace(basic) +
			"dns: {servers: [" + w.DNS.Addr4.String() + "]}\n", // the upstream's addresses are this machine's own, so they are listed
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	r.bundle(policy, "/rig/prober", "do", get("/reflect").Encode())
	out, errs, code := r.run()
	if code != 0 {
		t.Fatalf("runc: exit %d, %s%s", code, out, errs)
	}
	if got := outcome(t, out); got.Status != 200 {
		t.Errorf("the route: %s %s", got, got.Data)
	}
	if seen := api.Seen(); len(seen) == 0 || seen[0].Header.Get("Authorization") != "Bearer "+secret {
		t.Errorf("the upstream saw %v", seen)
	}
	r.bundle(policy, "/rig/prober", "do", prober.Probe{Op: "shell", Data: []byte("grep Cap /proc/self/status; ls /sys/class/net 2>/dev/null; cat /proc/net/dev")}.Encode())
	out, errs, _ = r.run()
	if got := string(outcome(t, out).Data); strings.Contains(got, "eth") || strings.Contains(strings.ReplaceAll(got, "0000000000000000", ""), "000") || !strings.Contains(got, "lo:") {
		t.Errorf("the container has a network or capabilities of its own: %s %s", got, errs)
	}
	// A fence that cannot be had: the container does not start.
	r.bundle("/missing.yaml", "/rig/prober", "do", prober.Probe{Op: "hello"}.Encode())
	if out, errs, code := r.run(); code == 0 || out != "" || !strings.Contains(errs, "missing.yaml") {
		t.Errorf("without a policy: exit %d, %q %q", code, out, errs)
	}
	eventually(t, "the attach processes have ended with their containers", func() bool {
		_, err := os.Stat("/run/exitgate/" + r.id + ".sock")
		return errors.Is(err, os.ErrNotExist)
	})
}
