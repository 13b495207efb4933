package containers

import (
	"context"
	"os"
	"slices"
	"strings"
	"testing"

	"exitgate/integration/prober"
	"exitgate/integration/rig"

	"github.com/creack/pty"
)

// TestExec: what the engine starts in a gate's container beside the agent.
func TestExec(t *testing.T) {
	each(t, everyEngine, func(t *testing.T, e *engine) {
		p := somewhere(t)
		c := e.gate(t, p.policy())
		p.wantFence(t, c.as("1000", p.tries()...))
		p.wantFence(t, c.through(nil, []string{"exitgate", "exec", "--", "probe", "serve"}, p.tries()...))
		rs := c.as("0", append(p.tries(), prober.Probe{Op: "self"})...)
		if !rs[1].OK() {
			t.Errorf("root to an address that the policy's host has: %s", rs[1])
		}
		wantRefused(t, []prober.Result{rs[2]})
		if o := c.exec("exitgate", "exec", "--", "env"); !strings.Contains(o.stdout, "API_URL=http://"+listener+"\n") || !strings.Contains(o.stdout, "HTTPS_PROXY=http://"+listener+"\n") {
			t.Errorf("the agent's environment: %v", o)
		}
		if o := c.exec("exitgate", "exec", "--", "sh", "-c", "exit 7"); o.code != 7 {
			t.Errorf("exit code: %v; want 7", o)
		}
	})
}

// TestHangup: kill -s HUP brings a changed policy into force, and a broken one not.
func TestHangup(t *testing.T) {
	each(t, []string{"docker", "podman"}, func(t *testing.T, e *engine) {
		p := somewhere(t)
		c := e.gate(t, p.policy())
		p.wantCall(t, c.as("1000", get("/reflect"))[0])
		change := func(policy string) {
			t.Helper()
			// In place: an engine mounts the file, not its name.
			if err := os.WriteFile(c.policy, []byte(policy), 0o644); err != nil {
				t.Fatal(err)
			}
			c.must(t, "kill", "-s", "HUP", c.name)
		}
		narrower := strings.Replace(p.policy(), "GET /**", "GET /v1/models", 1)
		change(narrower)
		eventually(t, "the changed policy is in force", func() bool { return c.as("1000", get("/reflect"))[0].Status == 403 })
		change(p.policy() + "nonsense: true\n")
		eventually(t, "status tells of the broken policy", func() bool {
			o := c.exec("exitgate", "status")
			return o.code == 1 && strings.Contains(o.stdout, "nonsense")
		})
		if r := c.as("1000", get("/reflect"))[0]; r.Status != 403 {
			t.Errorf("after a broken policy: %s; want what was in force before it", r)
		}
	})
}

// TestStopAndRestart: the agent gets TERM and time; its end is the container's.
func TestStopAndRestart(t *testing.T) {
	each(t, everyEngine, func(t *testing.T, e *engine) {
		p := somewhere(t)
		c := e.gate(t, p.policy())
		c.must(t, "restart", c.name)
		c.ready()
		p.wantFence(t, c.as("1000", p.tries()...))
		c.must(t, "stop", "-t", "30", c.name)
		if code := c.must(t, "inspect", "--format", "{{.State.ExitCode}}", c.name); code != "143" {
			t.Errorf("exit code %s after stop; want 143, of an agent that TERM ended", code)
		}
		_, mounts := e.files(t, p.policy())
		polite := e.start(t, append(usual(), mounts...), "exitgate", "run", "--", "sh", "-c", "trap 'echo agent heard TERM; exit 7' TERM; echo up; while :; do sleep 0.05; done")
		polite.ready()
		eventually(t, "the agent is up", func() bool { return strings.Contains(polite.logs(), "up") })
		polite.must(t, "stop", "-t", "30", polite.name)
		if code := polite.must(t, "inspect", "--format", "{{.State.ExitCode}}", polite.name); code != "7" || !strings.Contains(polite.logs(), "agent heard TERM") {
			t.Errorf("exit code %s after stop; want 7, and the agent's word", code)
		}
	})
}

// TestReadOnly: with a root file system that nobody can write to; what exitgate writes goes where it says.
func TestReadOnly(t *testing.T) {
	each(t, []string{"docker", "podman"}, func(t *testing.T, e *engine) {
		p := somewhere(t)
		flags := append(usual(), "--read-only")
		if e.podman {
			flags = append(flags, "--read-only-tmpfs=false")
		}
		_, mounts := e.files(t, p.policy())
		o, err := e.client(nil, e.arguments(slices.Concat(flags, mounts, []string{"--rm"}), []string{"exitgate", "run", "--", "sh", "-c", "echo agent"})...)
		if err != nil || o.code != 125 || o.stdout != "" || !strings.Contains(o.stderr, "--tmpfs /run/exitgate") {
			t.Errorf("with nowhere to write: %v %v; want exit 125, no agent, and what to mount", o, err)
		}
		wrote := prober.Probe{Op: "shell", Data: []byte("touch /run/x || touch /etc/x || touch /tmp/x")}
		rs := e.once(t, p.policy(), append(flags, "--tmpfs", "/run/exitgate"), append(p.tries(), wrote)...)
		p.wantFence(t, rs[:len(rs)-1])
		if last := rs[len(rs)-1]; last.Status == 0 {
			t.Errorf("the file system can be written to: %s", last.Data)
		}
	})
}

// TestTerminal: a person at the terminal of run -it, and of exec -it.
func TestTerminal(t *testing.T) {
	each(t, everyEngine, func(t *testing.T, e *engine) {
		p := somewhere(t)
		_, mounts := e.files(t, p.policy())
		flags := slices.Concat(with(append(least, "CHOWN")...), mounts, []string{"--security-opt", "no-new-privileges", "--rm", "-it"})
		e.talk(t, e.arguments(flags, []string{"exitgate", "run", "--", "sh"})...)
		c := e.gate(t, p.policy())
		e.talk(t, "exec", "-it", c.name, "exitgate", "exec", "--", "sh")
	})
}

// talk has a shell at a terminal answer, be interrupted, and end with code 3.
func (e *engine) talk(t *testing.T, args ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	defer cancel()
	cmd := e.command(ctx, args...)
	cmd.Env = append(cmd.Env, "TERM=xterm")
	master, err := pty.StartWithSize(cmd, &pty.Winsize{Rows: 33, Cols: 101})
	if err != nil {
		t.Fatal(err)
	}
	defer master.Close()
	person := rig.NewTerminal(master)
	for _, turn := range []struct{ keys, shows string }{
		{"", "$ "},
		{"echo $((40+2))-$(id -u)\r", "42-1000"},
		{"echo again >/dev/stderr; echo $((50+2))\r", "52"},
		{"busybox stty size\r", "33 101"},
		{"sh -c 'echo wai\"\"ting; sleep 1000'\r", "waiting"}, // said by the job itself, so the terminal is the job's
		{"\x03", "$ "},
		{"echo $((60+2))\r", "62"},
		{"exit 3\r", ""},
	} {
		if err := person.Type(turn.keys); err != nil {
			t.Fatal(err)
		}
		if err := person.Expect(turn.shows, patience); err != nil {
			t.Fatalf("%s %q, after %q: %v", e.name, args, turn.keys, err)
		}
	}
	if err := cmd.Wait(); cmd.ProcessState.ExitCode() != 3 {
		t.Errorf("%s %q ended with %v; want exit 3, the shell's", e.name, args, err)
	}
}
