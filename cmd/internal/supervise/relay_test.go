package supervise

import (
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// relayProgram is a hardened proxy at work: it gets its listener by descriptor 3, relays TCP, and fetches over TLS.
// args: an https URL, a TCP address, a directory that Landlock closes. It prints one line and serves until its listener closes.
func relayProgram(args []string) int {
	if err := HardenProxy(); err != nil {
		fmt.Println(err)
		return 1
	}
	l, err := receiveListener()
	if err == nil {
		err = strain()
	}
	if err == nil {
		err = sameThreads()
	}
	if err == nil {
		_, err = os.ReadFile("/etc/hosts")
	}
	if err != nil {
		fmt.Println(err)
		return 1
	}
	_, closed := os.ReadFile(args[2])
	fmt.Println("ready", errors.Is(closed, unix.EACCES))
	for {
		c, err := l.Accept()
		if err != nil {
			return 0
		}
		go relay(c, args[0], args[1])
	}
}

// relay answers h with what the URL gives, and s with a tunnel to the address.
func relay(c net.Conn, url, addr string) {
	defer c.Close()
	kind := make([]byte, 1)
	if _, err := io.ReadFull(c, kind); err != nil {
		return
	}
	if kind[0] == 'h' {
		resp, err := http.Get(url)
		if err != nil {
			fmt.Fprint(c, err)
			return
		}
		defer resp.Body.Close()
		_, _ = io.Copy(c, resp.Body)
		return
	}
	up, err := net.Dial("tcp", addr)
	if err != nil {
		fmt.Fprint(c, err)
		return
	}
	defer up.Close()
	go func() { _, _ = io.Copy(up, c); _ = up.(*net.TCPConn).CloseWrite() }()
	_, _ = io.Copy(c, up) // by splice
}

func receiveListener() (net.Listener, error) {
	f := os.NewFile(3, "wire")
	defer f.Close()
	conn, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	oob := make([]byte, 64)
	_, n, _, _, err := conn.(*net.UnixConn).ReadMsgUnix(make([]byte, 1), oob)
	if err != nil {
		return nil, err
	}
	msgs, err := syscall.ParseSocketControlMessage(oob[:n])
	if err != nil {
		return nil, err
	}
	fds, err := syscall.ParseUnixRights(&msgs[0])
	if err != nil {
		return nil, err
	}
	lf := os.NewFile(uintptr(fds[0]), "listener")
	defer lf.Close()
	return net.FileListener(lf)
}

// strain has the runtime do what it does under load: preempt, make threads, collect garbage, give memory back.
func strain() error {
	var wg sync.WaitGroup
	stop := time.Now().Add(200 * time.Millisecond)
	for range 2 * runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for n := 0; time.Now().Before(stop); n++ {
				for range 1000 {
					n *= 3
				}
			}
		})
	}
	for range 20 {
		wg.Go(func() {
			runtime.LockOSThread() // a thread each, that ends with the goroutine
			time.Sleep(10 * time.Millisecond)
		})
	}
	for time.Now().Before(stop) {
		_ = make([]byte, 1<<20)
		runtime.GC()
	}
	debug.FreeOSMemory()
	wg.Wait()
	return nil
}

// sameThreads checks every thread of a proxy, those made since it was hardened included.
func sameThreads() error {
	for _, want := range []string{"CapInh:\t0000000000000000", "CapPrm:\t0000000000000000", "CapEff:\t0000000000000000",
		"CapBnd:\t0000000000000000", "CapAmb:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"} {
		if err := everyThread(want); err != nil {
			return err
		}
	}
	return nil
}

// everyThread fails unless the status of each thread of the process has the line.
func everyThread(line string) error {
	files, err := filepath.Glob("/proc/self/task/*/status")
	if err != nil || len(files) < 3 {
		return fmt.Errorf("%d threads: %v", len(files), err)
	}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err == nil && !strings.Contains(string(b), line) {
			return fmt.Errorf("%s: no %q in %s", file, line, b)
		}
	}
	return nil
}

// A hardened proxy proxies.
func TestProxyWorks(t *testing.T) {
	body := strings.Repeat("from the upstream ", 100_000)
	web := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, body) }))
	defer web.Close()
	dir := openDir(t)
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: web.Certificate().Raw})
	if err := errors.Join(os.WriteFile(dir+"/ca.pem", ca, 0o600), os.WriteFile(dir+"/other", ca, 0o600)); err != nil {
		t.Fatal(err)
	}
	echo, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer echo.Close()
	go func() {
		for {
			c, err := echo.Accept()
			if err != nil {
				return
			}
			go func() { defer c.Close(); _, _ = io.Copy(c, c) }()
		}
	}()
	addr, said := startRelay(t, web.URL, echo.Addr().String(), dir)
	if want := fmt.Sprintf("ready %v\n", landlockABI() > 0); said != want {
		t.Fatalf("the proxy says %q, want %q", said, want)
	}
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if got := ask(t, addr, "h", ""); got != body {
				t.Errorf("over TLS: %d bytes %.100q, want %d", len(got), got, len(body))
			}
		})
		wg.Go(func() {
			if got := ask(t, addr, "s", body); got != body {
				t.Errorf("through the tunnel: %d bytes %.100q, want %d", len(got), got, len(body))
			}
		})
	}
	wg.Wait()
}

// startRelay starts a relay and hands it a listener, whose address it returns with the first line the relay said.
func startRelay(t *testing.T, url, addr, dir string) (string, string) {
	t.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "ours"), os.NewFile(uintptr(pair[1]), "theirs")
	defer theirs.Close()
	defer ours.Close()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() // the relay's stays open
	conn, err := l.(*net.TCPListener).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	_ = conn.Control(func(fd uintptr) {
		err = unix.Sendmsg(pair[0], []byte("l"), unix.UnixRights(int(fd)), nil, 0)
	})
	if err != nil {
		t.Fatal(err)
	}
	cmd := proxyCommand(t, "relay", url, addr, dir+"/other")
	cmd.Env = append(cmd.Env, "SSL_CERT_FILE="+dir+"/ca.pem", "GODEBUG=")
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	b := make([]byte, 4096)
	n, err := out.Read(b)
	if err != nil {
		t.Fatal(err)
	}
	return l.Addr().String(), string(b[:n])
}

func ask(t *testing.T, addr, kind, send string) string {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Error(err)
		return ""
	}
	defer c.Close()
	go func() {
		_, _ = io.WriteString(c, kind+send)
		_ = c.(*net.TCPConn).CloseWrite()
	}()
	b, err := io.ReadAll(c)
	if err != nil {
		t.Error(err)
	}
	return string(b)
}
