package integration

import (
	"strings"
	"testing"
	"time"

	"exitgate/integration/rig"
)

// person is somebody at the terminal of a box whose agent is this command.
func person(t testing.TB, command ...string) (*gate, *rig.Terminal) {
	t.Helper()
	g := start(t, world(t), nothing, running(append([]string{"run", "--"}, command...)...), func(c *rig.Config) {
		c.Terminal = true
		c.Env = append(c.Env, "TERM=dumb", "EXITGATE_GRACE=1s", "PS1=ready> ")
	})
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("screen:\n%s", g.Terminal.Screen())
		}
	})
	return g, g.Terminal
}

// typed sends keys and expects texts on the screen, in this order.
func typed(t testing.TB, term *rig.Terminal, keys string, texts ...string) {
	t.Helper()
	if err := term.Type(keys); err != nil {
		t.Fatal(err)
	}
	for _, text := range texts {
		if err := term.Expect(text, patience); err != nil {
			t.Fatalf("after %q: %v", keys, err)
		}
	}
}

// TestShellWithJobControl: an interactive shell under the gate is like one without it.
func TestShellWithJobControl(t *testing.T) {
	t.Parallel()
	g, term := person(t, "/bin/bash", "--norc", "--noprofile", "-i")
	typed(t, term, "", "ready> ")
	if strings.Contains(term.Screen(), "no job control") || strings.Contains(term.Screen(), "cannot set terminal process group") {
		t.Errorf("no job control: %s", term.Screen())
	}
	typed(t, term, "id -u\n", "1000")
	typed(t, term, "tty\n", "/dev/pts/0")
	typed(t, term, "echo again > /dev/stderr; echo and > /dev/tty\n", "again", "and")
	typed(t, term, "sleep 1000\n", "sleep 1000")
	time.Sleep(200 * time.Millisecond)
	typed(t, term, "\x1a", "Stopped")
	typed(t, term, "jobs\n", "Stopped", "sleep 1000")
	typed(t, term, "fg\n", "sleep 1000")
	time.Sleep(200 * time.Millisecond)
	typed(t, term, "\x03", "ready> ")
	typed(t, term, "echo code $?\n", "code 130")
	typed(t, term, "sleep 0.1 & wait; echo waited $?\n", "waited 0")
	if err := term.Resize(33, 111); err != nil {
		t.Fatal(err)
	}
	typed(t, term, "stty size\n", "33 111")
	typed(t, term, "exit 6\n")
	if code := g.code(); code != 6 {
		t.Errorf("exit %d", code)
	}
	if s := term.Screen(); strings.Contains(s, `{"time"`) || strings.Contains(s, "exitgate:") {
		t.Errorf("the gate drew over the terminal: %s", s)
	}
}

// TestCtrlZOnTheAgentItself: nobody could continue an agent that is the box's only foreground program, so it is continued at once.
func TestCtrlZOnTheAgentItself(t *testing.T) {
	t.Parallel()
	g, term := person(t, "/bin/cat")
	typed(t, term, "one\n", "one", "one")
	typed(t, term, "\x1a")
	time.Sleep(300 * time.Millisecond)
	typed(t, term, "two\n", "two", "two")
	typed(t, term, "\x04")
	if code := g.code(); code != 0 {
		t.Errorf("exit %d", code)
	}
}

func TestCtrlCReachesTheAgent(t *testing.T) {
	t.Parallel()
	g, term := person(t, "/bin/sh", "-c", "trap 'echo interrupted; exit 4' INT; echo up; while :; do sleep 0.05; done")
	typed(t, term, "", "up")
	typed(t, term, "\x03", "interrupted")
	if code := g.code(); code != 4 {
		t.Errorf("exit %d", code)
	}
}

// TestHangUpEndsTheAgent: a terminal that goes away is no reload.
func TestHangUpEndsTheAgent(t *testing.T) {
	t.Parallel()
	g, term := person(t, "/bin/sh", "-c", "echo up; while :; do sleep 0.05; done")
	typed(t, term, "", "up")
	if err := term.HangUp(); err != nil {
		t.Fatal(err)
	}
	if code := g.code(); code != 129 {
		t.Errorf("exit %d, want 129 (HUP)", code)
	}
}

// TestBackgroundWriteToTheTerminal: with TOSTOP set, which programs do, neither side hangs.
func TestBackgroundWriteToTheTerminal(t *testing.T) {
	t.Parallel()
	g, term := person(t, "/bin/sh", "-c", "stty tostop; echo up; read line; echo got $line; exit 2")
	typed(t, term, "", "up")
	if out := g.exitgate("reload"); out.Code != 0 {
		t.Errorf("reload: exit %d, %q", out.Code, out.Stderr)
	}
	typed(t, term, "hello\n", "got hello")
	if code := g.code(); code != 2 {
		t.Errorf("exit %d", code)
	}
}

// TestPartingSuggestion: what was denied is suggested once, when the program has ended and not over it.
func TestPartingSuggestion(t *testing.T) {
	t.Parallel()
	_, term := person(t, "/bin/bash", "--norc", "--noprofile", "-i")
	typed(t, term, "", "ready> ")
	typed(t, term, "exec 3<>/dev/tcp/127.0.0.1/8080; printf 'CONNECT denied.example.com:443 HTTP/1.1\\r\\nHost: denied.example.com:443\\r\\n\\r\\n' >&3; head -1 <&3\n", "403 Forbidden")
	if strings.Contains(term.Screen(), "some of what was tried was denied") {
		t.Errorf("suggested over the running program:\n%s", term.Screen())
	}
	typed(t, term, "exit\n", "some of what was tried was denied", "- host: denied.example.com # once")
}
