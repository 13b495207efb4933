package secrets

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"exitgate/cmd/internal/supervise"
	"exitgate/policy"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func TestSplit(t *testing.T) {
	for _, c := range []struct {
		line string
		want []string
		err  string
	}{
		{"/usr/bin/op read op://vault/key", []string{"/usr/bin/op", "read", "op://vault/key"}, ""},
		{`a 'b c' "d e" f\ g`, []string{"a", "b c", "d e", "f g"}, ""},
		{`a '' "" x''y`, []string{"a", "", "", "xy"}, ""},
		{`a 'b"c\' "d'e\"f"`, []string{"a", `b"c\`, `d'e"f`}, ""},
		{"a  \t b ", []string{"a", "b"}, ""},
		{"a $HOME *", []string{"a", "$HOME", "*"}, ""},
		{"  ", nil, ""},
		{"a 'b", nil, "a ' is not closed"},
		{`a \`, nil, "it ends in a backslash"},
	} {
		got, err := split(c.line)
		if diff := cmp.Diff(c.want, got); diff != "" || (err == nil) != (c.err == "") || err != nil && err.Error() != c.err {
			t.Errorf("%s: %v %s", c.line, err, diff)
		}
	}
}

// really runs a helper as os/exec does.
func really(ctx context.Context, argv, env []string, max int) ([]byte, error) {
	c := exec.CommandContext(ctx, argv[0], argv[1:]...)
	c.Env = env
	out, err := c.Output()
	if err == nil && len(out) > max {
		return out[:max], errors.New("too long")
	}
	return out, err
}

// TestHelperReally runs shell scripts. The text of an error must name no byte that a helper wrote.
func TestHelperReally(t *testing.T) {
	asRoot(t)
	for _, c := range []struct{ name, script, value, err string }{
		{"works", "echo $1-$KEPT", "FAKE-kept", ""},
		{"no variable with a credential", "echo \"nothing[$SECRET$LD_X]\"", "nothing[]", ""},
		{"fails, with the credential in stderr", "echo " + fakeOne + " >&2; exit 3", "", "helper DIR/helper failed with exit code 3; run it by hand as root to see why"},
		{"fails, with the credential in stdout", "echo " + fakeOne + "; exit 1", "", "helper DIR/helper failed with exit code 1; run it by hand as root to see why"},
		{"writes nothing", "true", "", "what helper DIR/helper wrote is empty; put the credential there"},
		{"writes two lines", "echo " + fakeOne + "; echo x", "", "what helper DIR/helper wrote holds a line break at byte 22; write the credential alone, on one line (`printf %s ... > FILE`)"},
		{"writes too much", "head -c 70000 /dev/zero | tr '\\0' k", "", "what helper DIR/helper wrote holds more than 64 KiB; is it the right one?"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := newRoot(t)
			put(t, dir, "helper", "#!/bin/sh\n"+c.script+"\n", 0, 0, 0o755)
			p := one("exec:" + dir + "/helper FAKE")
			p.Credentials = append(p.Credentials, policy.Credential{Name: "other", From: policy.Source{Scheme: "env", Value: "SECRET"}})
			env := func() []string { return append(os.Environ(), "KEPT=kept", "SECRET="+fakeOne, "LD_X=x") }
			value, err := load(t, Options{Output: really, Environ: env}, p)
			want := c.err
			if want != "" {
				want = `policy.yaml:7:5: credential "anthropic": ` + strings.ReplaceAll(want, "DIR", dir)
			}
			if diff := cmp.Diff([]string{c.value, want}, []string{value, err}); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestHelperFile(t *testing.T) {
	asRoot(t)
	const who = `agent "claude" (uid 1000)`
	for _, c := range []struct {
		name, command string
		make          func(t *testing.T, root string)
		ran, err      string
	}{
		{"by path", "/opt/helper x", func(t *testing.T, root string) { put(t, root, "opt/helper", "", 0, 0, 0o755) }, "/opt/helper", ""},
		{"by name", "helper x", func(t *testing.T, root string) { put(t, root, "usr/bin/helper", "", 0, 0, 0o755) }, "/usr/bin/helper", ""},
		{"by a link, whose name it keeps", "/opt/applet", func(t *testing.T, root string) {
			put(t, root, "bin/busybox", "", 0, 0, 0o755)
			link(t, root, "../bin/busybox", "opt/applet")
		}, "/opt/applet", ""},
		{"missing", "/opt/helper", func(*testing.T, string) {}, "", `helper "/opt/helper" does not exist; write its whole path, or install it in /usr/local/bin`},
		{"missing name", "helper", func(*testing.T, string) {}, "", `helper "helper" does not exist; write its whole path, or install it in /usr/local/bin`},
		{"relative", "./helper", func(*testing.T, string) {}, "", `helper "./helper" cannot be looked at: its path is relative; write the path of a program that root can run`},
		{"directory", "/opt", func(t *testing.T, root string) { put(t, root, "opt/x", "", 0, 0, 0o755) }, "", `helper "/opt" cannot be looked at: is a directory; write the path of a program that root can run`},
		{"not executable", "/opt/helper", func(t *testing.T, root string) { put(t, root, "opt/helper", "", 0, 0, 0o644) }, "", "helper /opt/helper is not executable; `chmod 0755 /opt/helper`"},
		{"FIFO", "/opt/helper", func(t *testing.T, root string) {
			put(t, root, "opt/x", "", 0, 0, 0o755)
			if err := unix.Mkfifo(filepath.Join(root, "opt/helper"), 0o755); err != nil {
				t.Fatal(err)
			}
		}, "", "helper /opt/helper is not executable; `chmod 0755 /opt/helper`"},
		{"the agent's", "/opt/helper", func(t *testing.T, root string) { put(t, root, "opt/helper", "", agentID, 0, 0o755) }, "", "helper /opt/helper belongs to " + who + ", which could change it; `chown root:root /opt/helper && chmod go-w /opt/helper`, or mount it read-only"},
		{"open to all", "/opt/helper", func(t *testing.T, root string) { put(t, root, "opt/helper", "", 0, 0, 0o777) }, "", "helper /opt/helper can be written by " + who + "; `chown root:root /opt/helper && chmod go-w /opt/helper`, or mount it read-only"},
		{"in the agent's directory", "/opt/helper", func(t *testing.T, root string) {
			put(t, root, "opt/helper", "", 0, 0, 0o755)
			own(t, root, "opt", agentID, 0, 0o755)
		}, "", "helper's directory /opt belongs to " + who + "; keep it in a directory that only root can change"},
		{"quote", "/opt/helper 'x", func(*testing.T, string) {}, "", "command cannot be read: a ' is not closed; quote it as for a shell"},
	} {
		t.Run(c.name, func(t *testing.T) {
			root := newRoot(t)
			c.make(t, root)
			ran := ""
			output := func(_ context.Context, argv, _ []string, _ int) ([]byte, error) {
				ran = strings.TrimPrefix(argv[0], root)
				return []byte(fakeOne), nil
			}
			_, err := load(t, Options{Root: root, Output: output}, one("exec:"+c.command))
			want := c.err
			if want != "" {
				want = `policy.yaml:7:5: credential "anthropic": ` + want
			}
			if diff := cmp.Diff([]string{c.ran, want}, []string{ran, err}); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// exitStatus is an error as of a process.
type exitStatus int

func (e exitStatus) Error() string { return "the words of the helper: " + fakeTwo }
func (e exitStatus) ExitCode() int { return int(e) }

// helperRig runs a made-up helper under a store in a bubble of time.
type helperRig struct {
	*Store
	mu      sync.Mutex
	starts  []time.Duration // since the bubble began
	next    func(ctx context.Context) ([]byte, error)
	changes []Secret
	log     bytes.Buffer
	began   time.Time
}

func newHelperRig(t *testing.T, refresh time.Duration) *helperRig {
	t.Helper()
	root := newRoot(t)
	put(t, root, "opt/helper", "", 0, 0, 0o755)
	r := &helperRig{began: time.Now()}
	r.give(fakeOne)
	p := one("exec:/opt/helper --password FAKE-argument")
	p.Credentials[0].Refresh = refresh
	r.Store = New(Options{
		Root: root,
		Output: func(ctx context.Context, _, _ []string, _ int) ([]byte, error) {
			r.mu.Lock()
			r.starts = append(r.starts, time.Since(r.began))
			next := r.next
			r.mu.Unlock()
			return next(ctx)
		},
		Changed: func(m map[string]Secret) { r.changes = append(r.changes, m["anthropic"]) },
		Log:     func(f string, a ...any) { fmt.Fprintf(&r.log, f+"\n", a...) },
		Note:    func(f string, a ...any) { fmt.Fprintf(&r.log, f+"\n", a...) },
	})
	if _, err := r.Load(p); err != nil {
		t.Fatal(err)
	}
	r.Commit()
	ctx, cancel := context.WithCancel(t.Context())
	var watch sync.WaitGroup
	watch.Go(func() { r.Watch(ctx) })
	t.Cleanup(func() {
		cancel()
		watch.Wait()
	})
	return r
}

func (r *helperRig) do(next func(ctx context.Context) ([]byte, error)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.next = next
}

func (r *helperRig) give(value string) {
	r.do(func(context.Context) ([]byte, error) { return []byte(value + "\n"), nil })
}

func (r *helperRig) fail() {
	r.do(func(context.Context) ([]byte, error) { return []byte(fakeTwo), exitStatus(1) })
}

func (r *helperRig) ran() []time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.starts)
}

func (r *helperRig) value() string { return string(r.Current()["anthropic"].Value.Reveal()) }

// pass lets time go by, and everything that it sets off end.
func pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func TestRefreshAtThreeQuarters(t *testing.T) {
	asRoot(t)
	synctest.Test(t, func(t *testing.T) {
		r := newHelperRig(t, time.Hour)
		r.give(fakeTwo)
		pass(44 * time.Minute)
		if len(r.ran()) != 1 || r.value() != fakeOne {
			t.Errorf("after 44 of 60 minutes: ran at %v", r.ran())
		}
		pass(2 * time.Minute)
		if len(r.ran()) != 2 || r.value() != fakeTwo {
			t.Errorf("after 46 of 60 minutes: ran at %v", r.ran())
		}
		if len(r.changes) != 1 || len(r.Retired()) != 1 || string(r.Retired()[0].Reveal()) != fakeOne {
			t.Errorf("%d changes delivered, %d values retired", len(r.changes), len(r.Retired()))
		}
		pass(46 * time.Minute)
		if len(r.ran()) != 3 || len(r.changes) != 1 {
			t.Errorf("the same value again: ran at %v, %d changes", r.ran(), len(r.changes))
		}
	})
}

func TestFailedRefresh(t *testing.T) {
	asRoot(t)
	synctest.Test(t, func(t *testing.T) {
		r := newHelperRig(t, time.Hour)
		r.fail()
		pass(59 * time.Minute)
		tries := len(r.ran()) - 1
		if r.value() != fakeOne || tries < 10 || tries > 25 {
			t.Errorf("before the end of its time: %d tries", tries)
		}
		pass(time.Minute + 2*time.Second) // between two tries: it is given up when its time ends, not when the next fails
		if s := r.Current()["anthropic"]; s.Broken != "helper gave no new value in time" || !s.Value.IsZero() {
			t.Errorf("after the end of its time: %q", s.Broken)
		}
		r.give(fakeTwo)
		pass(2 * time.Minute)
		if r.value() != fakeTwo {
			t.Error("it is not tried again")
		}
		if log := r.log.String(); strings.Contains(log, fakeTwo) || strings.Contains(log, "FAKE-argument") || !strings.Contains(log, "failed with exit code 1; the value in use is good until") || !strings.Contains(log, "is there again") {
			t.Errorf("log:\n%s", log)
		}
	})
}

func TestRefreshIsOneFetch(t *testing.T) {
	asRoot(t)
	synctest.Test(t, func(t *testing.T) {
		r := newHelperRig(t, 0)
		pass(time.Minute)
		r.do(func(context.Context) ([]byte, error) { time.Sleep(2 * time.Second); return []byte(fakeTwo), nil })
		for range 100 {
			go r.Refresh("anthropic")
			go r.Refresh("unknown")
		}
		pass(time.Second)
		if len(r.ran()) != 2 || r.value() != fakeOne {
			t.Errorf("while it runs: %v", r.ran())
		}
		for range 8 { // a storm of late 401s
			r.Refresh("anthropic")
			pass(time.Second)
		}
		if len(r.ran()) != 2 || r.value() != fakeTwo {
			t.Errorf("within ten seconds: %v", r.ran())
		}
		pass(3 * time.Second)
		r.Refresh("anthropic")
		pass(time.Second)
		if len(r.ran()) != 3 {
			t.Errorf("after ten seconds: %v", r.ran())
		}
		pass(24 * time.Hour)
		if len(r.ran()) != 3 {
			t.Errorf("refresh 0 means on a 401 only: %v", r.ran())
		}
	})
}

// TestFirstValueIsRefused: a 401 right after the start is not one too many.
func TestFirstValueIsRefused(t *testing.T) {
	asRoot(t)
	synctest.Test(t, func(t *testing.T) {
		r := newHelperRig(t, 0)
		r.give(fakeTwo)
		pass(time.Second)
		if len(r.ran()) != 1 || r.value() != fakeOne {
			t.Errorf("control: nobody has asked: %v", r.ran())
		}
		for range 100 {
			go r.Refresh("anthropic")
		}
		pass(time.Second)
		if len(r.ran()) != 2 || r.value() != fakeTwo {
			t.Errorf("ran at %v", r.ran())
		}
	})
}

// TestRefusedAndNoNewOne: the upstream refused the value, and the helper has no other. It is not used any more.
func TestRefusedAndNoNewOne(t *testing.T) {
	asRoot(t)
	synctest.Test(t, func(t *testing.T) {
		r := newHelperRig(t, time.Hour)
		pass(time.Minute)
		r.fail()
		r.Refresh("anthropic")
		pass(time.Second)
		if s := r.Current()["anthropic"]; s.Broken == "" || !s.Value.IsZero() || len(r.changes) != 1 || r.changes[0].Broken == "" {
			t.Errorf("broken: %q, %d changes", s.Broken, len(r.changes))
		}
		r.give(fakeTwo)
		p := one("exec:/opt/helper --password FAKE-argument")
		p.Credentials[0].Refresh = time.Hour
		if got, err := r.Load(p); err != nil || string(got["anthropic"].Value.Reveal()) != fakeTwo {
			t.Errorf("a reload does not try it again: %v", err)
		}
		pass(11 * time.Second)
		if r.value() != fakeTwo {
			t.Error("it is not tried again")
		}
	})
}

func TestHelperThatHangs(t *testing.T) {
	asRoot(t)
	synctest.Test(t, func(t *testing.T) {
		r := newHelperRig(t, 0)
		pass(time.Minute)
		r.do(func(ctx context.Context) ([]byte, error) { <-ctx.Done(); return nil, errors.New("killed " + fakeTwo) })
		r.Refresh("anthropic")
		pass(11 * time.Second)
		if s := r.Current()["anthropic"]; s.Broken != "helper "+r.o.Root+"/opt/helper took longer than 10s" {
			t.Errorf("%q", s.Broken)
		}
	})
}

// TestReloadKeepsTheToken: a reload that leaves a helper as it was does not run it again, and one that happens while
// it runs does not lose what it gives.
func TestReloadKeepsTheToken(t *testing.T) {
	asRoot(t)
	synctest.Test(t, func(t *testing.T) {
		r := newHelperRig(t, time.Hour)
		pass(time.Minute)
		p := one("exec:/opt/helper --password FAKE-argument")
		p.Credentials[0].Refresh = time.Hour
		r.do(func(context.Context) ([]byte, error) { time.Sleep(2 * time.Second); return []byte(fakeTwo), nil })
		r.Refresh("anthropic")
		pass(time.Second)
		if got, err := r.Load(p); err != nil || string(got["anthropic"].Value.Reveal()) != fakeOne {
			t.Fatal(err)
		}
		r.Commit()
		pass(3 * time.Second)
		if len(r.ran()) != 2 || r.value() != fakeTwo {
			t.Errorf("ran at %v", r.ran())
		}
		r.give("FAKE-three")
		p.Credentials[0].From.Value = "/opt/helper other"
		if got, err := r.Load(p); err != nil || string(got["anthropic"].Value.Reveal()) != "FAKE-three" || len(r.ran()) != 3 {
			t.Errorf("another command is run at once: %v, ran at %v", err, r.ran())
		}
	})
}

func TestStatusHidesArguments(t *testing.T) {
	asRoot(t)
	synctest.Test(t, func(t *testing.T) {
		r := newHelperRig(t, time.Hour)
		want := []State{{Name: "anthropic", Source: "exec:/opt/helper", Read: r.began}}
		if diff := cmp.Diff(want, r.Status()); diff != "" {
			t.Error(diff)
		}
	})
}

func TestHelperErrorsInWords(t *testing.T) {
	asRoot(t)
	root := newRoot(t)
	put(t, root, "opt/helper", "", 0, 0, 0o755)
	for _, c := range []struct {
		output func(context.Context, []string, []string, int) ([]byte, error)
		want   string
	}{
		{nil, "cannot be run here"},
		{func(context.Context, []string, []string, int) ([]byte, error) { return nil, fs.ErrPermission }, "cannot be executed"},
		{func(context.Context, []string, []string, int) ([]byte, error) { return nil, unix.ENOEXEC }, "cannot be executed"},
		{func(context.Context, []string, []string, int) ([]byte, error) { return nil, exitStatus(7) }, "failed with exit code 7"},
		{func(context.Context, []string, []string, int) ([]byte, error) {
			return nil, &supervise.OutputError{Name: "helper", Status: supervise.Status{Code: 3}}
		}, "failed with exit code 3"},
		{func(context.Context, []string, []string, int) ([]byte, error) {
			return nil, &supervise.OutputError{Name: "helper", Status: supervise.Status{Signal: unix.SIGKILL}}
		}, "failed"},
		{func(context.Context, []string, []string, int) ([]byte, error) { return nil, exitStatus(-1) }, "failed"},
		{func(context.Context, []string, []string, int) ([]byte, error) { return nil, errors.New(fakeTwo) }, "failed"},
	} {
		_, err := load(t, Options{Root: root, Output: c.output}, one("exec:/opt/helper"))
		want := `policy.yaml:7:5: credential "anthropic": helper ` + root + "/opt/helper " + c.want + "; run it by hand as root to see why"
		if err != want {
			t.Errorf("got  %s\nwant %s", err, want)
		}
	}
}
