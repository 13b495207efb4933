package audit

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// asRoot skips a test that needs root on a laptop; where CI is set it fails instead.
func asRoot(t *testing.T) {
	t.Helper()
	switch {
	case os.Geteuid() == 0:
	case os.Getenv("CI") != "":
		t.Fatal("needs root")
	default:
		t.Skip("needs root")
	}
}

// must is for steps of a test that cannot fail but by a broken test.
func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	must(t, err)
	return b
}

func TestWhatIsNoPlaceForALog(t *testing.T) {
	asRoot(t)
	const other = "; remove it, or choose another"
	for _, c := range []struct {
		name string
		make func(t *testing.T, dir string)
		err  string
	}{
		{"nothing there", func(*testing.T, string) {}, ""},
		{"symbolic link", func(t *testing.T, dir string) { must(t, os.Symlink("/etc/passwd", dir+"/log/a")) }, "audit file DIR/log/a is a symbolic link; name the file itself"},
		{"dangling link", func(t *testing.T, dir string) { must(t, os.Symlink(dir+"/x", dir+"/log/a")) }, "audit file DIR/log/a is a symbolic link; name the file itself"},
		{"hard link", func(t *testing.T, dir string) {
			must(t, os.WriteFile(dir+"/x", nil, 0o600))
			must(t, os.Link(dir+"/x", dir+"/log/a"))
		}, "audit file DIR/log/a has another name (a hard link)" + other},
		{"FIFO", func(t *testing.T, dir string) { must(t, unix.Mkfifo(dir+"/log/a", 0o600)) }, "audit file DIR/log/a is not a regular file" + other},
		{"directory", func(t *testing.T, dir string) { must(t, os.Mkdir(dir+"/log/a", 0o700)) }, "audit file DIR/log/a: is a directory"},
		{"the agent's file", func(t *testing.T, dir string) {
			must(t, os.WriteFile(dir+"/log/a", nil, 0o600))
			must(t, os.Chown(dir+"/log/a", 1000, 1000))
		}, "audit file DIR/log/a belongs to uid 1000" + other},
		{"the agent's directory", func(t *testing.T, dir string) { must(t, os.Chown(dir+"/log", 1000, 0)) },
			"audit directory DIR/log can be changed by others than root; choose one that is owned by root, mode 0755 or less"},
		{"directory open to all", func(t *testing.T, dir string) { must(t, os.Chmod(dir+"/log", 0o777)) },
			"audit directory DIR/log can be changed by others than root; choose one that is owned by root, mode 0755 or less"},
		{"sticky directory", func(t *testing.T, dir string) { must(t, os.Chmod(dir+"/log", 0o777|os.ModeSticky)) }, ""},
		{"no directory", func(t *testing.T, dir string) { must(t, os.Remove(dir+"/log")) }, "audit directory DIR/log: no such file or directory; create it, owned by root, mode 0700"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			must(t, os.Mkdir(dir+"/log", 0o755))
			c.make(t, dir)
			l, err := Open(Options{Sink: "file:" + dir + "/log/a"})
			got := ""
			if err != nil {
				got = strings.ReplaceAll(err.Error(), dir, "DIR")
			} else {
				l.Close()
			}
			if got != c.err {
				t.Errorf("got  %s\nwant %s", got, c.err)
			}
		})
	}
}

func TestExistingFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a")
	old := event(1)
	must(t, os.WriteFile(path, old.Append(nil), 0o644))
	l := open(t, Options{Sink: "file:" + path})
	l.Write(event(2))
	must(t, l.Close())
	// A crash in the middle of a line.
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	must(t, err)
	_, err = f.WriteString(`{"torn`)
	must(t, err)
	must(t, f.Close())
	l = open(t, Options{Sink: "file:" + path})
	l.Write(event(3))
	must(t, l.Close())
	got, _ := numbers(t, bytes.Replace(read(t, path), []byte("{\"torn\n"), nil, 1))
	if fmt.Sprint(got) != "[1 2 3]" {
		t.Errorf("events %v", got)
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("mode %o", st.Mode().Perm())
	}
}

// held checks how many of this process's descriptors lead into dir, removed files included.
func held(t *testing.T, dir string, want int) {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	var all []string
	for _, fd := range fds {
		if to, err := os.Readlink("/proc/self/fd/" + fd.Name()); err == nil && (to == dir || strings.HasPrefix(to, dir+"/")) {
			all = append(all, to)
		}
	}
	if len(all) != want {
		t.Errorf("held open: %v, want %d of them", all, want)
	}
}

func TestRotation(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "a")
	l := open(t, Options{Sink: "file:" + path, Size: 4000, Keep: 3})
	const total = 200
	for n := range total {
		l.Write(event(n + 1))
		eventually(t, "the line is written", func() bool { return l.Stats().Written == uint64(n+1) })
	}
	held(t, filepath.Dir(path), 2) // the file and its directory
	must(t, l.Close())
	held(t, filepath.Dir(path), 0)
	var all []byte
	for _, name := range []string{".3", ".2", ".1", ""} {
		data := read(t, path+name)
		if len(data) > 4000 || len(data) == 0 {
			t.Errorf("%s has %d bytes", name, len(data))
		}
		if st, err := os.Stat(path + name); err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %o", name, st.Mode().Perm())
		}
		all = append(all, data...)
	}
	got, _ := numbers(t, all)
	ascending(t, got)
	if got[len(got)-1] != total || got[len(got)-1]-got[0]+1 != len(got) {
		t.Errorf("kept %d events, from %d to %d: there is a gap", len(got), got[0], got[len(got)-1])
	}
	if _, err := os.Stat(path + ".4"); err == nil {
		t.Error("more files are kept than asked for")
	}
}

// TestTakenAway has others move and remove the file, and put a link in its place.
func TestTakenAway(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := dir + "/a"
	var mu sync.Mutex
	var told []string
	l := open(t, Options{Sink: "file:" + path, Log: func(f string, a ...any) {
		mu.Lock()
		defer mu.Unlock()
		told = append(told, fmt.Sprintf(f, a...))
	}})
	write := func(n int) {
		l.Write(event(n))
		eventually(t, "the line is written", func() bool { return l.Stats().Written == uint64(n) })
	}
	write(1)
	must(t, os.Rename(path, dir+"/moved"))
	write(2)
	must(t, os.Remove(path))
	write(3)
	must(t, os.Remove(path))
	must(t, os.WriteFile(dir+"/victim", []byte("untouched"), 0o600))
	must(t, os.Symlink(dir+"/victim", path))
	l.Write(event(4))
	eventually(t, "the link is told of", func() bool { mu.Lock(); defer mu.Unlock(); return len(told) == 1 })
	must(t, os.Remove(path))
	eventually(t, "the line is written", func() bool { return l.Stats().Written == 4 })
	held(t, dir, 2)
	must(t, l.Close())
	if string(read(t, dir+"/victim")) != "untouched" {
		t.Error("a link was followed")
	}
	moved, _ := numbers(t, read(t, dir+"/moved"))
	last, _ := numbers(t, read(t, path))
	if fmt.Sprint(moved, last) != "[1] [4]" || !strings.Contains(told[0], "is a symbolic link") {
		t.Errorf("files hold %v and %v; told %q", moved, last, told)
	}
}

// inMountNamespace runs the calling test again, in a mount namespace of its own, and reports whether this is that run.
func inMountNamespace(t *testing.T) bool {
	t.Helper()
	asRoot(t)
	if os.Getenv("AUDIT_TEST_NAMESPACE") != "" {
		return true
	}
	c := exec.Command("/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v")
	c.Env = append(os.Environ(), "AUDIT_TEST_NAMESPACE=1")
	c.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL} // Go makes / private with it
	out, err := c.CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte("--- PASS: "+t.Name())) {
		t.Errorf("%v\n%s", err, out)
	}
	return false
}

// TestFullDisk fills a small disk, goes on, and makes room again.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	if !inMountNamespace(t) {
		return
	}
	dir := t.TempDir()
	must(t, unix.Mount("tmpfs", dir, "tmpfs", 0, "size=128k,mode=0755"))
	defer unix.Unmount(dir, unix.MNT_DETACH)
	must(t, os.WriteFile(dir+"/ballast", make([]byte, 100<<10), 0o600))
	var mu sync.Mutex
	var told []string
	const total = 5000 // more than may wait
	l := open(t, Options{Sink: "file:" + dir + "/a", Queue: total, Log: func(f string, a ...any) {
		mu.Lock()
		defer mu.Unlock()
		told = append(told, fmt.Sprintf(f, a...))
	}})
	sub := l.Subscribe(total)
	for n := range total {
		l.Write(long(n + 1))
	}
	eventually(t, "the full disk is told of", func() bool { mu.Lock(); defer mu.Unlock(); return len(told) == 1 })
	eventually(t, "the queue is worked off", func() bool { return len(sub.C) == total })
	if got, _ := numbers(t, read(t, dir+"/a")); len(got) == 0 || len(got) >= total {
		t.Errorf("%d events on the full disk", len(got))
	}
	must(t, unix.Mount("", dir, "", unix.MS_REMOUNT, "size=64m"))
	must(t, os.Remove(dir+"/ballast"))
	eventually(t, "the recovery is told of", func() bool { mu.Lock(); defer mu.Unlock(); return len(told) == 2 })
	l.Write(long(total + 1))
	l.Close()
	if !strings.Contains(told[0], "no space left on device") || told[1] != "audit: lines are being written again" {
		t.Errorf("told %q", told)
	}
	got, lost := numbers(t, read(t, dir+"/a"))
	ascending(t, got)
	if len(got)+lost != total+1 || lost == 0 {
		t.Errorf("%d events written and %d said to be lost, of %d", len(got), lost, total+1)
	}
}

// TestMountedFile cannot be renamed, so it goes on growing.
func TestMountedFile(t *testing.T) {
	t.Parallel()
	if !inMountNamespace(t) {
		return
	}
	dir := t.TempDir()
	must(t, os.WriteFile(dir+"/source", nil, 0o600))
	must(t, os.WriteFile(dir+"/a", nil, 0o600))
	must(t, unix.Mount(dir+"/source", dir+"/a", "", unix.MS_BIND, ""))
	defer unix.Unmount(dir+"/a", unix.MNT_DETACH)
	var mu sync.Mutex
	var told []string
	l := open(t, Options{Sink: "file:" + dir + "/a", Size: 4000, Log: func(f string, a ...any) {
		mu.Lock()
		defer mu.Unlock()
		told = append(told, fmt.Sprintf(f, a...))
	}})
	const total = 100
	for n := range total {
		l.Write(event(n + 1))
		eventually(t, "the line is written", func() bool { return l.Stats().Written == uint64(n+1) })
	}
	must(t, l.Close())
	got, lost := numbers(t, read(t, dir+"/source"))
	if len(got) != total || lost != 0 {
		t.Errorf("%d events written, %d lost", len(got), lost)
	}
	if len(told) == 0 || len(told) > 8 || !strings.Contains(told[0], "device or resource busy; it goes on growing (mount its directory, not the file)") {
		t.Errorf("told %q", told)
	}
}
