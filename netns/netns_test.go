package netns_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"exitgate/netns"
	"exitgate/netns/netnstest"
)

func TestMain(m *testing.M) {
	netnstest.Main(m, map[string]func([]string) int{"sleep": sleep, "main-thread": mainThread})
}

func sleep([]string) int {
	fmt.Println("ready")
	time.Sleep(time.Hour)
	return 0
}

// current is the namespace of whatever thread runs it.
func current(t *testing.T) netns.ID {
	t.Helper()
	h, err := netns.Current()
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	return h.ID()
}

// noStray fails if any thread of this process is outside the namespace the first one is in.
func noStray(t *testing.T) {
	t.Helper()
	home, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	links, _ := filepath.Glob("/proc/self/task/*/ns/net")
	for _, link := range links {
		if at, err := os.Readlink(link); err == nil && at != home {
			t.Errorf("%s is %s, the process is in %s", link, at, home)
		}
	}
}

func TestDo(t *testing.T) {
	ns := netnstest.New(t)
	home := current(t)
	if ns.ID() == home {
		t.Fatal("a new namespace is the old one")
	}
	var inside netns.ID
	want := errors.New("of the function")
	err := netns.Do(ns.Handle, func() error {
		inside = current(t)
		return want
	})
	if !errors.Is(err, want) || inside != ns.ID() {
		t.Errorf("Do: error %v, ran in %v; want %v, %v", err, inside, want, ns.ID())
	}
	if now := current(t); now != home {
		t.Errorf("after Do in %v, want %v", now, home)
	}
	noStray(t)
}

func TestDoMany(t *testing.T) {
	a, b := netnstest.New(t), netnstest.New(t)
	var wg sync.WaitGroup
	for i := range 200 {
		ns := a
		if i%2 == 0 {
			ns = b
		}
		wg.Go(func() {
			err := netns.Do(ns.Handle, func() error {
				runtime.Gosched()
				if now := current(t); now != ns.ID() {
					return fmt.Errorf("in %v, want %v", now, ns.ID())
				}
				return nil
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	noStray(t)
}

func TestDoGoexit(t *testing.T) {
	ns := netnstest.New(t)
	err := netns.Do(ns.Handle, func() error {
		runtime.Goexit()
		return nil
	})
	if err == nil {
		t.Error("no error from a function that ended its goroutine")
	}
	for range 100 { // the thread ends soon after its goroutine
		if links, _ := filepath.Glob("/proc/self/task/*/ns/net"); !anyIn(links, ns.Inode()) {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Error("a thread stayed in the namespace")
}

func anyIn(links []string, inode uint64) bool {
	for _, link := range links {
		if at, _ := os.Readlink(link); strings.Contains(at, fmt.Sprint(inode)) {
			return true
		}
	}
	return false
}

// mainThread does what LockMainThread is for: it says how often Do showed in /proc/PID/ns/net, which is the first thread's.
func mainThread([]string) int {
	netns.LockMainThread()
	ns, err := netns.New()
	if err != nil {
		println(err.Error())
		return 1
	}
	home, _ := os.Readlink("/proc/self/ns/net")
	for range 50 {
		var seen string
		_ = netns.Do(ns, func() error {
			seen, _ = os.Readlink("/proc/self/ns/net")
			return nil
		})
		if seen != home {
			println("the process moved to", seen)
			return 1
		}
	}
	return 0
}

func TestMainThreadStays(t *testing.T) {
	netnstest.RequireRoot(t)
	if out, err := netnstest.Program("main-thread").CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}

func TestListenInside(t *testing.T) {
	ns := netnstest.New(t)
	listen := func(at string) (l net.Listener, err error) {
		err = netns.Do(ns.Handle, func() error {
			l, err = net.Listen("tcp", at)
			return err
		})
		return l, err
	}
	for _, at := range []string{"127.0.0.1:8080", "[::1]:8080", "127.0.0.1:0"} {
		l, err := listen(at)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		addr := l.Addr().String()
		if c, err := net.DialTimeout("tcp", addr, time.Second); err == nil {
			c.Close()
			t.Errorf("%s answers outside its namespace", addr)
		}
		c := netnstest.In(ns, func() (net.Conn, error) { return net.Dial("tcp", addr) })
		defer c.Close()
		s, err := l.Accept() // here, not inside
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		if _, err := s.Write([]byte("x")); err != nil {
			t.Error(err)
		}
		if n, err := c.Read(make([]byte, 1)); n != 1 {
			t.Errorf("read %d, %v across the namespace", n, err)
		}
	}
	if _, err := listen("127.0.0.1:8080"); !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("a port taken inside: %v, want EADDRINUSE", err)
	}
}

func TestFromPID(t *testing.T) {
	ns := netnstest.New(t)
	cmd := netnstest.Program("sleep")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	ns.Start(cmd)
	if _, err := out.Read(make([]byte, 8)); err != nil {
		t.Fatal(err)
	}
	h, err := netns.FromPID(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	if h.ID() != ns.ID() {
		t.Errorf("namespace of the process is %v, want %v", h.ID(), ns.ID())
	}
	gone := h.Gone(t.Context())
	select {
	case <-gone:
		t.Fatal("gone while the process lives")
	case <-time.After(600 * time.Millisecond):
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	select { // it is a zombie still: nobody has waited for it
	case <-gone:
	case <-time.After(10 * time.Second):
		t.Error("not gone though the process ended")
	}
	_ = cmd.Wait()
	if _, err := netns.FromPID(cmd.Process.Pid); err == nil {
		t.Error("a process that has ended has a namespace")
	}
}

func TestFromPath(t *testing.T) {
	a, b := netnstest.New(t), netnstest.New(t)
	path := filepath.Join(t.TempDir(), "net")
	link := func(ns *netnstest.Namespace) {
		_ = os.Remove(path)
		if err := os.Symlink(fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), ns.Fd()), path); err != nil {
			t.Fatal(err)
		}
	}
	link(a)
	h, err := netns.FromPath(path)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	if h.ID() != a.ID() || h.Inode() != a.Inode() {
		t.Errorf("path names %v, want %v", h.ID(), a.ID())
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	gone := h.Gone(ctx)
	link(a) // the same namespace by a new name
	select {
	case <-gone:
		t.Fatal("gone while the path names it")
	case <-time.After(600 * time.Millisecond):
	}
	link(b)
	select {
	case <-gone:
	case <-time.After(10 * time.Second):
		t.Error("not gone though the path names another namespace")
	}
}

func TestRefused(t *testing.T) {
	file := filepath.Join(t.TempDir(), "plain")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{file, "/proc/self/ns/uts", "/proc/self/ns/none", "/dev/null"} {
		if h, err := netns.FromPath(path); err == nil {
			h.Close()
			t.Errorf("%s was taken for a network namespace", path)
		}
	}
	if _, err := netns.FromPID(1 << 30); err == nil {
		t.Error("a pid that cannot be was taken")
	}
}
