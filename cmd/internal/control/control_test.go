package control

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/iotest"
	"time"

	"go.uber.org/goleak"
)

// TestMain is also the caller of another identity: the program runs itself, and tells what it was told.
func TestMain(m *testing.M) {
	if path := os.Getenv("CONTROL_TEST_CALL"); path != "" {
		var answer string
		err := Client{path}.Call(context.Background(), "echo", url.Values{"word": {"hello"}}, &answer)
		fmt.Printf("answer %q error %v\n", answer, err)
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

// serve starts a server that echoes, streams and fails.
func serve(t *testing.T, refuse func(pid int) bool) Client {
	t.Helper()
	path := filepath.Join(t.TempDir(), "exitgate", "control.sock")
	s := &Server{Refuse: refuse}
	s.Handle("echo", func(_ context.Context, q url.Values) (any, error) { return q.Get("word"), nil })
	s.Handle("fail", func(context.Context, url.Values) (any, error) { return nil, errors.New("policy.yaml:3: no; write yes") })
	s.Stream("count", func(ctx context.Context, _ url.Values, line func([]byte) error) error {
		for i := 0; ctx.Err() == nil; i++ {
			if err := line(fmt.Appendf(nil, "%d\n", i)); err != nil {
				return err
			}
			time.Sleep(time.Millisecond)
		}
		return nil
	})
	if err := s.Listen(path); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		s.Serve(ctx)
		close(done)
	}()
	t.Cleanup(func() {
		stop()
		<-done
		if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the socket is left behind: %v", err)
		}
	})
	return Client{path}
}

func TestCall(t *testing.T) {
	needRoot(t)
	c := serve(t, nil)
	var answer string
	if err := c.Call(context.Background(), "echo", url.Values{"word": {"a&b=c ü"}}, &answer); err != nil || answer != "a&b=c ü" {
		t.Errorf("%q, %v", answer, err)
	}
	if err := c.Call(context.Background(), "fail", nil, &answer); err == nil || err.Error() != "policy.yaml:3: no; write yes" {
		t.Errorf("a refusal comes back as %v", err)
	}
	if err := c.Call(context.Background(), "other", nil, &answer); err == nil || !strings.Contains(err.Error(), "of another version: it does not know other") {
		t.Errorf("what it does not know: %v", err)
	}
}

// TestStreamEndsWithTheGate: a gate that ends closes its connections in the middle of an answer; for who watches that is the end
// and no error.
func TestStreamEndsWithTheGate(t *testing.T) {
	needRoot(t)
	s := &Server{}
	s.Stream("count", func(ctx context.Context, _ url.Values, line func([]byte) error) error {
		err := line([]byte("1\n"))
		for <-ctx.Done(); err == nil; time.Sleep(time.Millisecond) { // not until the connection is closed under it
			err = line([]byte("2\n"))
		}
		return err
	})
	path := filepath.Join(t.TempDir(), "control.sock")
	if err := s.Listen(path); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	done := make(chan struct{})
	go func() {
		s.Serve(ctx)
		close(done)
	}()
	stream, err := Client{path}.Open(context.Background(), "count", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	r := bufio.NewReader(stream)
	if line, err := r.ReadString('\n'); line != "1\n" || err != nil {
		t.Fatalf("control: %q, %v", line, err)
	}
	stop()
	if rest, err := io.ReadAll(r); err != nil {
		t.Errorf("after %q: %v", rest, err)
	}
	<-done
	for err, want := range map[error]error{io.ErrUnexpectedEOF: io.EOF, syscall.ECONNRESET: io.EOF, os.ErrDeadlineExceeded: os.ErrDeadlineExceeded} {
		if _, got := (lines{io.NopCloser(iotest.ErrReader(err))}).Read(nil); got != want {
			t.Errorf("%v is taken for %v", err, got)
		}
	}
}

// TestStream: lines come as they are made, and the server's side ends when nobody reads any more.
func TestStream(t *testing.T) {
	needRoot(t)
	c := serve(t, nil)
	stream, err := c.Open(context.Background(), "count", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	lines := bufio.NewScanner(stream)
	for i := range 5 {
		if !lines.Scan() || lines.Text() != fmt.Sprint(i) {
			t.Fatalf("line %d is %q (%v)", i, lines.Text(), lines.Err())
		}
	}
}

// TestNotRunning: no socket, and one that a dead instance left.
func TestNotRunning(t *testing.T) {
	path := filepath.Join(t.TempDir(), "c.sock")
	if err := (Client{path}).Call(context.Background(), "echo", nil, nil); !errors.Is(err, ErrNotRunning) || !strings.Contains(err.Error(), path) {
		t.Errorf("no socket: %v", err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	if err := (Client{path}).Call(context.Background(), "echo", nil, nil); !errors.Is(err, ErrNotRunning) {
		t.Errorf("a dead one's socket: %v", err)
	}
	s := &Server{}
	if err := s.Listen(path); err != nil {
		t.Errorf("a dead one's socket is not replaced: %v", err)
	}
	if err := (&Server{}).Listen(path); err == nil || !strings.Contains(err.Error(), "another exitgate runs here") {
		t.Errorf("beside a live one: %v", err)
	}
	s.Close()
}

// TestPermissions: the socket is root's alone, and its directory is one that agents may pass.
func TestPermissions(t *testing.T) {
	needRoot(t)
	c := serve(t, nil)
	for path, want := range map[string]os.FileMode{c.Path: os.ModeSocket | 0o600, filepath.Dir(c.Path): os.ModeDir | 0o711} {
		if st, err := os.Stat(path); err != nil || st.Mode() != want {
			t.Errorf("%s: %v, %v", path, st.Mode(), err)
		}
	}
}

// TestCallers: the peer's uid decides, even where the socket's mode would let it in, and so does its pid where it is the proxy's.
func TestCallers(t *testing.T) {
	needRoot(t)
	for _, c := range []struct {
		name   string
		uid    uint32
		open   bool // the mode lets everybody in
		refuse bool // as the proxy
		want   string
	}{
		{"root", 0, false, false, `answer "hello" error <nil>`},
		{"the agent", 1000, false, false, "only root may ask the gate"},
		{"the agent, by a mode that lets it", 1000, true, false, "only root may ask the gate"},
		{"the proxy, which is root too", 0, false, true, "the gate hung up"},
	} {
		t.Run(c.name, func(t *testing.T) {
			client := serve(t, func(int) bool { return c.refuse })
			reachable(t, client.Path)
			if c.open {
				if err := os.Chmod(client.Path, 0o666); err != nil {
					t.Fatal(err)
				}
			}
			if got := callAs(t, c.uid, client.Path); !strings.Contains(got, c.want) {
				t.Errorf("%s, want %s", got, c.want)
			}
		})
	}
}

// TestRefuseIsAskedForThePid: it is the caller's own.
func TestRefuseIsAskedForThePid(t *testing.T) {
	needRoot(t)
	var asked []int
	c := serve(t, func(pid int) bool { asked = append(asked, pid); return false })
	var answer string
	if err := c.Call(context.Background(), "echo", nil, &answer); err != nil || len(asked) != 1 || asked[0] != os.Getpid() {
		t.Errorf("asked for %v, this is %d (%v)", asked, os.Getpid(), err)
	}
}

// TestBounds: a question is bounded in size, whoever asks.
func TestBounds(t *testing.T) {
	needRoot(t)
	c := serve(t, nil)
	var answer string
	if err := c.Call(context.Background(), "echo", url.Values{"word": {strings.Repeat("x", 8<<10)}}, &answer); err != nil || len(answer) != 8<<10 {
		t.Errorf("control: %d bytes, %v", len(answer), err)
	}
	if err := c.Call(context.Background(), "echo", url.Values{"word": {strings.Repeat("x", 1<<20)}}, &answer); err == nil {
		t.Error("a question of a mebibyte is answered")
	}
	conn, err := net.Dial("unix", c.Path)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "POST /echo?word=a HTTP/1.1\r\nHost: x\r\n")
	sent := 0
	conn.SetDeadline(time.Now().Add(time.Minute))
	for line := []byte("X-Filler: " + strings.Repeat("y", 1000) + "\r\n"); sent < 1<<20; sent += len(line) {
		if _, err = conn.Write(line); err != nil {
			break
		}
	}
	if reply, _ := io.ReadAll(conn); sent >= 1<<20 && !strings.Contains(string(reply), " 431 ") {
		t.Errorf("%d bytes of headers are taken: %q", sent, reply)
	}
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 && os.Getenv("CI") == "" {
		t.Skip("the server answers root only")
	}
}

// reachable opens the directories of a test's socket, which t.TempDir keeps to root.
func reachable(t *testing.T, path string) {
	t.Helper()
	for dir := filepath.Dir(filepath.Dir(path)); dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
}

// callAs is what another process of that uid is told. The test's own binary is where only root may go: a copy is run.
func callAs(t *testing.T, uid uint32, path string) string {
	t.Helper()
	data, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(filepath.Dir(filepath.Dir(path)), "caller")
	if err := os.WriteFile(program, data, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program)
	cmd.Env = []string{"CONTROL_TEST_CALL=" + path}
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return string(out)
}

// TestModeOfASocketAlone: what an agent has put in the place of a socket keeps its mode.
func TestModeOfASocketAlone(t *testing.T) {
	dir := t.TempDir()
	socket, secret, link := filepath.Join(dir, "s"), filepath.Join(dir, "secret"), filepath.Join(dir, "link")
	l, err := ListenUnix(socket, 0o640)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := errors.Join(os.WriteFile(secret, nil, 0o600), os.Symlink(secret, link)); err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(socket); err != nil || st.Mode().Perm() != 0o640 {
		t.Errorf("control: the socket has mode %v, %v", st.Mode(), err)
	}
	for _, path := range []string{link, secret} {
		if err := changeMode(path, 0o666); err == nil {
			t.Errorf("the mode of %s was changed", path)
		}
	}
	if st, err := os.Stat(secret); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("the secret has mode %v, %v", st.Mode(), err)
	}
}
