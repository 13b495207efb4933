package supervise

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// inAgent runs a script as the hardened agent, in a directory that is its home, with Landlock's port list as in a real one.
func inAgent(t *testing.T, dir, script string, cfg gateConfig, want ...string) {
	t.Helper()
	cfg.Command = shell(script)
	cfg.Command.Dir = dir
	cfg.Command.ConnectPorts = []uint16{8080}
	cfg.Command.Env = []string{"PATH=" + filepath.Dir(cfg.Tool) + ":/usr/local/go/bin:/usr/bin:/bin", "HOME=" + dir, "LC_ALL=C", "TERM=dumb"}
	code, said := run(t, cfg, true)
	if code != 0 {
		t.Errorf("exit code %d; said:\n%s", code, said)
	}
	for _, w := range want {
		if !strings.Contains(said, w) {
			t.Errorf("no %q in:\n%s", w, said)
		}
	}
}

// A debugger traces what it starts, and attaches where the kernel lets anybody do so.
func TestGDB(t *testing.T) {
	gdb := tool(t, "gdb")
	inAgent(t, openDir(t), `gdb -nx -batch -ex 'catch syscall exit_group' -ex run -ex 'info registers' -ex continue --args /bin/true </dev/null 2>&1`,
		gateConfig{Tool: gdb}, "Catchpoint 1 (call to syscall exit_group", "exited normally")
	if scope, err := os.ReadFile("/proc/sys/kernel/yama/ptrace_scope"); err == nil && string(scope) != "0\n" {
		t.Logf("attaching is refused to everybody here: ptrace_scope %s", scope)
		return
	}
	inAgent(t, openDir(t), `sleep 1000 & gdb -nx -batch -p $! -ex 'info inferiors' -ex detach </dev/null 2>&1; kill $!`,
		gateConfig{Tool: gdb}, "detached]")
}

func TestNode(t *testing.T) {
	node := tool(t, "node")
	dir := openDir(t)
	script(t, dir, "probe.js", `
const { Worker } = require('worker_threads'), { execFileSync } = require('child_process'), os = require('os'), net = require('net')
const fs = require('fs'), crypto = require('crypto')
console.log('interfaces', Object.keys(os.networkInterfaces()).length > 0)
console.log('child', execFileSync('echo', ['works']).toString().trim())
fs.writeFileSync('f', 'x'); fs.readFile('f', () => console.log('file works'))
crypto.scrypt('a', 'b', 16, () => console.log('threads work'))
new Worker("require('worker_threads').parentPort.postMessage('x')", { eval: true }).on('message', () => console.log('worker works'))
const s = net.createServer(c => c.end()).listen(os.tmpdir() + '/s' + process.pid, () => {
  net.connect(os.tmpdir() + '/s' + process.pid).on('close', () => { console.log('socket works'); s.close() }).resume()
})
`, 0o644)
	inAgent(t, dir, "TMPDIR=$PWD node probe.js", gateConfig{Tool: node},
		"interfaces true", "child works", "file works", "threads work", "worker works", "socket works")
}

func TestPython(t *testing.T) {
	python := tool(t, "python3")
	dir := openDir(t)
	script(t, dir, "test_probe.py", `
import ctypes, multiprocessing, os, pty, signal, socket, subprocess, tempfile, threading, unittest
def square(n): return n * n
class Probe(unittest.TestCase):
    def test_subprocess(self): self.assertEqual(subprocess.check_output(["echo", "x"]), b"x\n")
    def test_pool(self):
        with multiprocessing.Pool(2) as p: self.assertEqual(p.map(square, [1, 2, 3]), [1, 4, 9])
    def test_thread(self):
        got = []
        t = threading.Thread(target=lambda: got.append(1)); t.start(); t.join()
        self.assertEqual(got, [1])
    def test_sockets(self):
        for family in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX): socket.socket(family).close()
        a, b = socket.socketpair(); a.send(b"x"); self.assertEqual(b.recv(1), b"x")
        socket.if_nameindex(); socket.getaddrinfo("localhost", 80)
    def test_terminal(self):
        pid, fd = pty.fork()
        if pid == 0: os.execvp("echo", ["echo", "x"])
        self.assertEqual(os.read(fd, 9), b"x\r\n"); os.waitpid(pid, 0)
    def test_temporary(self):
        with tempfile.TemporaryDirectory() as d: open(d + "/f", "w").close()
    def test_signal(self):
        hit = []
        signal.signal(signal.SIGALRM, lambda *a: hit.append(1)); signal.setitimer(signal.ITIMER_REAL, 0.01); signal.pause()
        self.assertEqual(hit, [1])
if __name__ == "__main__": unittest.main()
`, 0o644)
	inAgent(t, dir, "TMPDIR=$PWD python3 test_probe.py 2>&1", gateConfig{Tool: python}, "Ran 7 tests", "OK")
	if exec.Command(python, "-c", "import pytest").Run() == nil {
		inAgent(t, dir, "TMPDIR=$PWD python3 -m pytest -p no:cacheprovider -q test_probe.py", gateConfig{Tool: python}, "7 passed")
	}
}

// The Go tool compiles, links and runs a test. It is given a copy of root's build cache: compiling the standard library is a minute.
func TestGoTest(t *testing.T) {
	goTool := tool(t, "go")
	dir := openDir(t)
	script(t, dir, "go.mod", "module probe\n\ngo 1.26\n", 0o644)
	script(t, dir, "probe_test.go", `package probe

import (
	"os"
	"testing"
)

func TestProbe(t *testing.T) {
	if err := os.WriteFile(t.TempDir()+"/f", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Logf("uid %d", os.Getuid())
}
`, 0o644)
	if err := os.Mkdir(dir+"/cache", 0o755); err != nil {
		t.Fatal(err)
	}
	inAgent(t, dir, "GOCACHE=$PWD/cache GOTOOLCHAIN=local GOFLAGS=-buildvcs=false CGO_ENABLED=0 go test -v . 2>&1",
		gateConfig{Tool: goTool, Bind: [2]string{linkedCache(t, goTool), dir + "/cache"}}, "uid 61000", "ok  \tprobe")
}

// linkedCache links root's build cache into directories of the agent's, beside it since links do not cross file systems.
func linkedCache(t *testing.T, goTool string) string {
	t.Helper()
	out, err := exec.Command(goTool, "env", "GOCACHE").Output()
	if err != nil {
		t.Fatal(err)
	}
	from := strings.TrimSpace(string(out))
	to, err := os.MkdirTemp(filepath.Dir(from), "supervise")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(to) })
	err = filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil // another build trims it
		}
		dst := to + strings.TrimPrefix(path, from)
		if !d.IsDir() {
			_ = os.Link(path, dst)
			return nil
		}
		if err := os.MkdirAll(dst, 0o755); err != nil {
			return err
		}
		return unix.Chown(dst, int(agentID.UID), int(agentID.GID))
	})
	if err != nil {
		t.Fatal(err)
	}
	return to
}
