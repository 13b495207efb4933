package supervise

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"exitgate/netns/netnstest"
)

// The agent as the kernel sees it.
func TestAgentStatus(t *testing.T) {
	const show = `cat /proc/self/status; ls -1 /proc/self/fd | wc -l; ls -l /proc/self/fd | grep passwd; grep core /proc/self/limits; pwd; env; [ -t 0 ] || echo no terminal
		cat /proc/$$/stat | cut -d' ' -f5 | grep -qx $$ && echo leader`
	bothWays(t, func(t *testing.T, first bool) {
		c := shell(show)
		c.Dir = "/usr"
		c.Env = append(c.Env, "ONLY=this")
		code, said := run(t, gateConfig{Command: c}, first)
		if code != 0 {
			t.Fatalf("exit code %d, said:\n%s", code, said)
		}
		for _, want := range []string{
			"Uid:\t61000\t61000\t61000\t61000", "Gid:\t61001\t61001\t61001\t61001", "Groups:\t \n",
			"CapInh:\t0000000000000000", "CapPrm:\t0000000000000000", "CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "CapAmb:\t0000000000000000",
			"NoNewPrivs:\t1", "Seccomp:\t2", "SigIgn:\t0000000000000000", "SigBlk:\t0000000000000000",
			"\n4\n", // 0, 1, 2 and that of ls itself
			"Max core file size        0                    0", "\n/usr\n", "ONLY=this", "leader",
		} {
			if !strings.Contains(said, want) {
				t.Errorf("missing %q in:\n%s", want, said)
			}
		}
		if strings.Contains(said, "EXITGATE") || strings.Contains(said, "passwd") {
			t.Errorf("environment or descriptors of the gate in the agent:\n%s", said)
		}
	})
}

// Without privileges to take, as in `docker exec -u`, Become hardens what it can, and that is all but the bounding set.
func TestBecomeUnprivileged(t *testing.T) {
	netnstest.RequireRoot(t)
	cmd := netnstest.As(netnstest.Program("become", "cat", "/proc/self/status"), agentID.UID, agentID.GID)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, want := range []string{"CapPrm:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("missing %q in:\n%s", want, out)
		}
	}
	// Another uid is out of reach then, and says what is missing.
	out, err = netnstest.As(netnstest.Program("become", "true"), agentID.UID+1, agentID.GID).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "--cap-add SETUID") {
		t.Errorf("%v: %s", err, out)
	}
	out, err = netnstest.As(netnstest.Program("become", "true"), agentID.UID, agentID.GID+1).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "--cap-add SETGID") {
		t.Errorf("%v: %s", err, out)
	}
}

// becomeProgram is the core of `exitgate exec`.
func becomeProgram(args []string) int {
	err := Become(Command{Argv: args, Env: agentEnv(), Identity: agentID})
	fmt.Fprintln(os.Stderr, "exitgate:", err)
	return ExitCode(err)
}

func TestBecomeExitCodes(t *testing.T) {
	netnstest.RequireRoot(t)
	for argv0, want := range map[string]int{"true": 0, "false": 1, "/no/such": 127, "/etc/passwd": 126} {
		cmd := netnstest.Program("become", argv0)
		if _ = cmd.Run(); cmd.ProcessState.ExitCode() != want {
			t.Errorf("%s: exit code %d, want %d", argv0, cmd.ProcessState.ExitCode(), want)
		}
	}
}

// Whatever Become is called with, the command has descriptors 0 to 2, and securebits that cannot be undone.
func TestBecomeInherited(t *testing.T) {
	netnstest.RequireRoot(t)
	passwd, err := os.Open("/etc/passwd")
	if err != nil {
		t.Fatal(err)
	}
	defer passwd.Close()
	python := tool(t, "python3")
	cmd := netnstest.Program("become", python, "-c", `
import ctypes, os
print("descriptors", os.listdir("/proc/self/fd"), "securebits", ctypes.CDLL(None).prctl(27, 0, 0, 0, 0))`)
	cmd.ExtraFiles = []*os.File{passwd, passwd}
	out, err := cmd.CombinedOutput()
	if want := fmt.Sprintf("descriptors ['0', '1', '2', '3'] securebits %d\n", lockedSecurebits); err != nil || string(out) != want {
		t.Errorf("%v: %q, want %q", err, out, want)
	}
}

// A setuid program gives the agent nothing.
func TestSetuid(t *testing.T) {
	dir := openDir(t)
	b, err := os.ReadFile("/usr/bin/id")
	if err != nil {
		t.Fatal(err)
	}
	path := script(t, dir, "id", string(b), 0o755)
	if err := os.Chmod(path, 0o755|os.ModeSetuid); err != nil {
		t.Fatal(err)
	}
	control, err := netnstest.As(netnstest.Program("exec", path, "-u"), agentID.UID, agentID.GID).CombinedOutput()
	if err != nil || strings.TrimSpace(string(control)) != "0" {
		t.Fatalf("the program is not setuid outside: %q, %v", control, err)
	}
	if _, said := run(t, gateConfig{Command: shell(path + " -u")}, true); !strings.Contains(said, "61000\n") {
		t.Errorf("said:\n%s", said)
	}
}

// execProgram executes its arguments, with the credentials the test gave it.
func execProgram(args []string) int {
	err := unix.Exec(args[0], args, agentEnv())
	println(err.Error())
	return 1
}

// The streams are pipes of root's, as a container engine makes them, and the agent can open them by name.
func TestStreams(t *testing.T) {
	const reopen = `echo out > /dev/stdout; echo err > /dev/stderr; echo fd > /proc/self/fd/2; cat /dev/stdin`
	bothWays(t, func(t *testing.T, first bool) {
		g := &gate{transcript: &transcript{t: t}, cmd: gateCommand(t, gateConfig{Command: shell(reopen)}, first)}
		// Two pipes: os/exec makes one where Stdout and Stderr are the same.
		other := &transcript{t: t}
		g.cmd.Stdout, g.cmd.Stderr = other, g.transcript
		g.cmd.Stdin = strings.NewReader("from stdin\n")
		g.start()
		if code := g.wait(); code != 0 {
			t.Errorf("exit code %d", code)
		}
		for _, want := range []string{"err\n", "fd\n"} {
			if !strings.Contains(g.String(), want) {
				t.Errorf("missing %q in stderr:\n%s", want, g)
			}
		}
		if other.String() != "out\nfrom stdin\n" {
			t.Errorf("stdout: %q; stderr:\n%s", other, g)
		}
	})
}

// Files and named pipes stay their owner's.
func TestStreamsKept(t *testing.T) {
	dir := openDir(t)
	file, err := os.OpenFile(dir+"/log", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if err := unix.Mkfifo(dir+"/fifo", 0o600); err != nil {
		t.Fatal(err)
	}
	fifo, err := os.OpenFile(dir+"/fifo", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer fifo.Close()
	cmd := gateCommand(t, gateConfig{Command: shell("echo x; echo y >&2")}, true)
	cmd.Stdout, cmd.Stderr = file, fifo
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"log", "fifo"} {
		var st unix.Stat_t
		if err := unix.Stat(filepath.Join(dir, name), &st); err != nil || st.Uid != 0 || st.Mode&0o777 != 0o600 {
			t.Errorf("%s: owner %d, mode %o, %v; want it unchanged", name, st.Uid, st.Mode&0o777, err)
		}
	}
}

// A stream that the agent could take elsewhere is not given to it.
func TestStreamsRefused(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	client, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	tcp, err := client.(*net.TCPConn).File()
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	pair := func(kind int) *os.File {
		fds, err := unix.Socketpair(unix.AF_UNIX, kind|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(fds[1]) })
		f := os.NewFile(uintptr(fds[0]), "pair")
		t.Cleanup(func() { f.Close() })
		return f
	}
	dir, err := os.Open(openDir(t))
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	for _, tc := range []struct {
		name    string
		file    *os.File
		refused bool
	}{
		{"a TCP connection", tcp, true},
		{"a unix datagram socket", pair(unix.SOCK_DGRAM), true},
		{"a directory", dir, true},
		{"a unix connection", pair(unix.SOCK_STREAM), false},
	} {
		for _, stream := range []string{"input", "output"} {
			t.Run(tc.name+", "+stream, func(t *testing.T) {
				cmd := gateCommand(t, gateConfig{Command: shell("echo ran >&2")}, true)
				if stream == "input" {
					cmd.Stdin = tc.file
				} else {
					cmd.Stdout = tc.file
				}
				said := &transcript{t: t}
				cmd.Stderr = said
				_ = cmd.Run()
				code, ran := cmd.ProcessState.ExitCode(), strings.Contains(said.String(), "ran\n")
				if ran == tc.refused || tc.refused && (code != 125 || !strings.Contains(said.String(), "standard "+stream+" is a ")) {
					t.Errorf("exit code %d:\n%s", code, said)
				}
			})
		}
	}
}

// dialProgram connects, and prints the errno.
func dialProgram(args []string) int {
	for _, addr := range args {
		network, addr, _ := strings.Cut(addr, "=")
		c, err := net.Dial(network, addr)
		if err == nil {
			c.Close()
		}
		fmt.Printf("%s %s: %v\n", network, addr, err)
	}
	return 0
}

func TestLandlock(t *testing.T) {
	abi := landlockABI()
	if abi < 6 {
		cannot(t, fmt.Sprintf("Landlock version %d: it cannot limit ports and abstract sockets; Linux 6.12 can", abi))
	}
	abstract := fmt.Sprintf("@exitgate-test-%d", os.Getpid())
	ul, err := net.Listen("unix", abstract)
	if err != nil {
		t.Fatal(err)
	}
	defer ul.Close()
	pathname := filepath.Join(openDir(t), "socket")
	pl, err := net.Listen("unix", pathname)
	if err != nil {
		t.Fatal(err)
	}
	defer pl.Close()
	if err := os.Chmod(pathname, 0o666); err != nil {
		t.Fatal(err)
	}
	var addrs []string
	var ports []uint16
	for _, at := range []string{"127.0.0.1:0", "127.0.0.1:0", "[::1]:0"} {
		l, err := net.Listen("tcp", at)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		addrs = append(addrs, "tcp="+l.Addr().String())
		ports = append(ports, uint16(l.Addr().(*net.TCPAddr).Port))
	}
	args := append(addrs, "unix="+abstract, "unix="+pathname)
	for _, tc := range []struct {
		name    string
		ports   []uint16
		loosen  []string
		refused []bool // as args
	}{
		{"no restriction", nil, nil, []bool{false, false, false, true, false}},
		{"one port", ports[:1], nil, []bool{false, true, true, true, false}},
		{"two ports", []uint16{ports[0], ports[2]}, nil, []bool{false, true, false, true, false}},
		{"no port", []uint16{}, nil, []bool{true, true, true, true, false}},
		{"abstract sockets loosened", ports[:1], []string{LoosenAbstractSockets}, []bool{false, true, true, false, false}},
		{"landlock loosened", ports[:1], []string{LoosenLandlock}, []bool{false, false, false, false, false}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := program("dial", args...)
			c.ConnectPorts, c.Loosen = tc.ports, tc.loosen
			_, said := run(t, gateConfig{Command: c}, true)
			for i, addr := range args {
				network, addr, _ := strings.Cut(addr, "=")
				_, line, found := strings.Cut(said, network+" "+addr+": ")
				line, _, _ = strings.Cut(line, "\n")
				refused := strings.HasSuffix(line, "permission denied") || strings.HasSuffix(line, "operation not permitted")
				if !found || refused != tc.refused[i] || !refused && line != "<nil>" {
					t.Errorf("%s: %q, want refused %v", addr, line, tc.refused[i])
				}
			}
		})
	}
}

// Within its session the agent's own abstract sockets work.
func TestLandlockOwnAbstract(t *testing.T) {
	python := tool(t, "python3")
	const probe = `
import socket, os
l = socket.socket(socket.AF_UNIX); l.bind("\0own-%d" % os.getpid()); l.listen()
if os.fork() == 0:
    c = socket.socket(socket.AF_UNIX); c.connect("\0own-%d" % os.getppid()); os._exit(0)
print("status", os.wait()[1])
`
	c := Command{Argv: []string{python, "-c", probe}, Env: agentEnv(), Identity: agentID}
	if _, said := run(t, gateConfig{Command: c}, true); !strings.Contains(said, "status 0") {
		t.Errorf("said:\n%s", said)
	}
}

func TestCoreLimitLoosened(t *testing.T) {
	c := shell("grep core /proc/self/limits")
	c.Loosen = []string{LoosenCoreDumps}
	_, said := run(t, gateConfig{Command: c}, true)
	var was unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_CORE, &was); err != nil {
		t.Fatal(err)
	}
	if was.Max != 0 && !strings.Contains(said, "unlimited") {
		t.Errorf("limits here %+v, in the agent:\n%s", was, said)
	}
}
