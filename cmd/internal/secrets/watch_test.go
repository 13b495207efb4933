package secrets

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// fileRig watches one file and keeps every state that it was in.
type fileRig struct {
	*Store
	t       *testing.T
	root    string
	changes chan Secret
	mu      sync.Mutex
	log     strings.Builder
}

func newFileRig(t *testing.T, from string, prepare func(root string)) *fileRig {
	t.Helper()
	asRoot(t)
	r := &fileRig{t: t, root: newRoot(t), changes: make(chan Secret, 64)}
	prepare(r.root)
	log := func(f string, a ...any) {
		r.mu.Lock()
		defer r.mu.Unlock()
		fmt.Fprintf(&r.log, f+"\n", a...)
	}
	r.Store = New(Options{
		Root: r.root, Every: 20 * time.Millisecond,
		Changed: func(m map[string]Secret) { r.changes <- m["anthropic"] },
		Log:     log, Note: log,
	})
	if _, err := r.Load(one(from)); err != nil {
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

// next waits for a change and compares it: a value, or the start of why there is none.
func (r *fileRig) next(value, broken string) {
	r.t.Helper()
	select {
	case s := <-r.changes:
		if string(s.Value.Reveal()) != value || !strings.HasPrefix(s.Broken, broken) || (s.Broken == "") != (broken == "") {
			r.t.Fatalf("changed to broken %q, a value: %v; want value %q, broken %q", s.Broken, !s.Value.IsZero(), value, broken)
		}
		if now := r.Current()["anthropic"]; now.Broken != s.Broken || !now.Value.Equal(s.Value) {
			r.t.Errorf("what is in use differs from what was delivered")
		}
	case <-time.After(20 * time.Second):
		r.t.Fatal("no change was delivered")
	}
}

// last waits for a value that was written in place. On a busy machine the writer may pause for long enough to look
// still, so that something is delivered before it; the whole value comes last.
func (r *fileRig) last(value string) {
	r.t.Helper()
	for end := time.After(20 * time.Second); ; {
		select {
		case s := <-r.changes:
			if string(s.Value.Reveal()) == value {
				return
			}
		case <-end:
			r.t.Fatal("the whole value was never delivered")
		}
	}
}

func (r *fileRig) quiet() {
	r.t.Helper()
	select {
	case s := <-r.changes:
		r.t.Fatalf("changed to broken %q, a value: %v; want no change", s.Broken, !s.Value.IsZero())
	case <-time.After(200 * time.Millisecond):
	}
}

func (r *fileRig) replace(name, content string, mode os.FileMode) {
	r.t.Helper()
	put(r.t, r.root, name+".new", content, 0, 0, mode)
	if err := os.Rename(filepath.Join(r.root, name+".new"), filepath.Join(r.root, name)); err != nil {
		r.t.Fatal(err)
	}
}

func TestFileChanges(t *testing.T) {
	r := newFileRig(t, "file:/run/secret", func(root string) { put(t, root, "run/secret", fakeOne, 0, 0, 0o400) })
	r.quiet()
	r.replace("run/secret", fakeTwo+"\n", 0o400) // by rename
	r.next(fakeTwo, "")
	r.replace("run/secret", fakeTwo, 0o400) // the same value again is no change
	r.quiet()
	put(t, r.root, "run/secret", fakeOne, 0, 0, 0o400) // in place
	r.last(fakeOne)

	own(t, r.root, "run/secret", 0, 0, 0o444)
	r.next("", `/run/secret can be read by agent "claude"`)
	own(t, r.root, "run/secret", 0, 0, 0o400)
	r.next(fakeOne, "")
	own(t, r.root, "run", 0, 0, 0o777)
	r.next("", `directory /run can be written by agent "claude"`)
	own(t, r.root, "run", 0, 0, 0o755)
	r.next(fakeOne, "")

	if err := os.Remove(filepath.Join(r.root, "run/secret")); err != nil {
		t.Fatal(err)
	}
	r.next("", "/run/secret does not exist")
	if err := unix.Mkfifo(filepath.Join(r.root, "run/secret"), 0o400); err != nil {
		t.Fatal(err)
	}
	r.next("", "/run/secret is not a regular file")
	r.replace("run/secret", "a\nb", 0o400)
	r.next("", "/run/secret holds a line break")
	r.replace("run/secret", fakeTwo, 0o400)
	r.next(fakeTwo, "")

	if n := len(r.Retired()); n != 2 {
		t.Errorf("%d values retired, want both", n)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, want := range []string{`policy.yaml:7:5: credential "anthropic": /run/secret does not exist; put the credential`, `credential "anthropic" is there again`, `credential "anthropic" changed`} {
		if !strings.Contains(r.log.String(), want) {
			t.Errorf("the log lacks %q:\n%s", want, r.log.String())
		}
	}
	if strings.Contains(r.log.String(), "FAKE") {
		t.Error("a value is in the log")
	}
}

// TestSecretsVolume swaps the link in the middle of the path, as a kubelet does.
func TestSecretsVolume(t *testing.T) {
	r := newFileRig(t, "file:/run/token", func(root string) {
		put(t, root, "run/..1/token", fakeOne, 0, 0, 0o400)
		link(t, root, "..1", "run/..data")
		link(t, root, "..data/token", "run/token")
	})
	put(t, r.root, "run/..2/token", fakeTwo, 0, 0, 0o400)
	link(t, r.root, "..2", "run/..data_tmp")
	if err := os.Rename(filepath.Join(r.root, "run/..data_tmp"), filepath.Join(r.root, "run/..data")); err != nil {
		t.Fatal(err)
	}
	r.next(fakeTwo, "")
	link(t, r.root, "/elsewhere", "run/..data_tmp")
	put(t, r.root, "elsewhere/token", fakeOne, agentID, agentID, 0o400)
	if err := os.Rename(filepath.Join(r.root, "run/..data_tmp"), filepath.Join(r.root, "run/..data")); err != nil {
		t.Fatal(err)
	}
	r.next("", "/elsewhere/token belongs to agent")
}

// TestWrittenInPlace has a slow writer.
func TestWrittenInPlace(t *testing.T) {
	r := newFileRig(t, "file:/run/secret", func(root string) { put(t, root, "run/secret", fakeOne, 0, 0, 0o400) })
	f, err := os.OpenFile(filepath.Join(r.root, "run/secret"), os.O_WRONLY|os.O_TRUNC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	// One byte a millisecond is faster than two looks can be apart.
	for i := range len(fakeTwo) {
		if _, err := f.WriteString(fakeTwo[i : i+1]); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Millisecond)
	}
	r.last(fakeTwo)
}

func TestFD(t *testing.T) {
	const wait = 300 * time.Millisecond
	for _, c := range []struct {
		name, content string
		hold, foreign bool // the writer stays open; the descriptor was not inherited
		err           string
	}{
		{"pipe", fakeOne + "\n", false, false, ""},
		{"writer stays", fakeOne, true, false, " was not closed by its writer within 300ms; close it after the credential is written"},
		{"writer that stays and wrote nothing", "", true, false, " was not closed by its writer within 300ms; close it after the credential is written"},
		{"empty", "", false, false, " is empty; put the credential there"},
		{"one of our own", fakeOne, false, true, " was not passed to exitgate; start it with `"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			defer w.Close()
			if _, err := w.WriteString(c.content); err != nil {
				t.Fatal(err)
			}
			if !c.hold {
				w.Close()
			}
			fd, err := unix.FcntlInt(r.Fd(), unix.F_DUPFD_CLOEXEC, 200)
			if err != nil {
				t.Fatal(err)
			}
			passed := []int{fd}
			if c.foreign {
				passed = nil
				defer unix.Close(fd)
			}
			v, p := readFD(fmt.Sprint(fd), passed, wait)
			if c.err == "" && (p != nil || string(v.Reveal()) != fakeOne) || c.err != "" && (p == nil || !strings.HasPrefix(p.what+"; "+p.mend, fmt.Sprintf("fd %d", fd)+c.err)) {
				t.Errorf("got %+v, want %q", p, c.err)
			}
			var st syscall.Stat_t
			if open := syscall.Fstat(fd, &st) == nil; open != c.foreign {
				t.Errorf("descriptor still open: %v", open)
			}
		})
	}
	for _, number := range []string{"", "x", "-1", "2", "999999"} {
		if v, p := readFD(number, nil, wait); p == nil || !v.IsZero() {
			t.Errorf("fd %q is taken", number)
		}
	}
}

// TestFDReallyInherited runs itself with two descriptors more, and names a third that it opened itself.
func TestFDReallyInherited(t *testing.T) {
	if os.Getenv("SECRETS_TEST_CHILD") != "" {
		inheritingChild(t)
		return
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := w.WriteString(fakeOne); err != nil {
		t.Fatal(err)
	}
	w.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	c := exec.Command("/proc/self/exe", "-test.run=^TestFDReallyInherited$", "-test.v")
	c.Env = append(os.Environ(), "SECRETS_TEST_CHILD=1")
	c.ExtraFiles = []*os.File{null, r} // 3 and 4
	out, err := c.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: TestFDReallyInherited") {
		t.Errorf("%v\n%s", err, out)
	}
}

func inheritingChild(t *testing.T) {
	// As `exitgate run` does before it reads a policy: nothing may leak into its children.
	if err := unix.CloseRange(3, ^uint(0), unix.CLOSE_RANGE_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	own, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	if got, err := New(Options{}).Load(one("fd:4")); err != nil || string(got["anthropic"].Value.Reveal()) != fakeOne {
		t.Errorf("the pipe that was passed: %v", err)
	}
	if _, err := New(Options{}).Load(one("fd:3")); err == nil || !strings.Contains(err.Error(), "fd 3 is empty") {
		t.Errorf("/dev/null that was passed: %v", err)
	}
	if _, err := New(Options{}).Load(one(fmt.Sprintf("fd:%d", own.Fd()))); err == nil || !strings.Contains(err.Error(), "was not passed to exitgate") {
		t.Errorf("a descriptor of its own: %v", err)
	}
}

// TestFDIsReadOnce: a reload finds the value that was read at start.
func TestFDIsReadOnce(t *testing.T) {
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString(fakeOne); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Seek(0, 0); err != nil {
		t.Fatal(err)
	}
	inherited, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD, 300)
	if err != nil {
		t.Fatal(err)
	}
	store := New(Options{Inherited: []int{inherited}})
	for range 3 {
		got, err := store.Load(one(fmt.Sprintf("fd:%d", inherited)))
		if err != nil || string(got["anthropic"].Value.Reveal()) != fakeOne {
			t.Fatal(err)
		}
		store.Commit()
	}
	if _, err := store.Load(one(fmt.Sprintf("fd:%d", inherited+1))); err == nil || !strings.Contains(err.Error(), "was not passed to exitgate") {
		t.Errorf("another descriptor: %v", err)
	}
}
