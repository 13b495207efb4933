package caller

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"testing"
)

// TestMain is also the client: a process of another uid that holds one connection open until its stdin ends.
func TestMain(m *testing.M) {
	if addr := os.Getenv("CALLER_TEST_DIAL"); addr != "" {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		defer c.Close()
		fmt.Println("connected")
		bufio.NewReader(os.Stdin).ReadString('\n')
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("needs root")
		}
		t.Skip("needs root")
	}
}

func TestFind(t *testing.T) {
	needRoot(t)
	f, err := New()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, network := range []string{"127.0.0.1:0", "[::1]:0"} {
		t.Run(network, func(t *testing.T) { testFind(t, f, network) })
	}
}

func testFind(t *testing.T, f *Finder, network string) {
	l, err := net.Listen("tcp", network)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	client := exec.Command("/proc/self/exe", "-test.run=^$")
	client.Env = []string{"CALLER_TEST_DIAL=" + l.Addr().String()}
	client.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 1000, Gid: 1000}}
	stdin, err := client.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := client.Start(); err != nil {
		t.Fatal(err)
	}
	defer client.Wait()
	defer stdin.Close()
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	tuple := Tuple{Client: c.RemoteAddr().(*net.TCPAddr).AddrPort(), Server: c.LocalAddr().(*net.TCPAddr).AddrPort()}

	for range 2 { // the second time it is the one found last
		if pid, got := f.Find(tuple, Owner{1000, 1000}); pid != client.Process.Pid || got != exe {
			t.Errorf("Find = %d, %s; want %d, %s", pid, got, client.Process.Pid, exe)
		}
	}
	if pid, got := f.Find(tuple, Owner{1001, 1001}); pid != 0 || got != Unknown {
		t.Errorf("among another uid's processes: %d, %s", pid, got)
	}
	swapped := Tuple{Client: tuple.Server, Server: tuple.Client}
	if pid, got := f.Find(swapped, Owner{1000, 1000}); pid != 0 || got != Unknown {
		t.Errorf("the accepted end is not the client's: %d, %s", pid, got)
	}
	stdin.Close()
	client.Wait()
	if pid, got := f.Find(tuple, Owner{1000, 1000}); pid != 0 || got != Unknown {
		t.Errorf("after its end: %d, %s", pid, got)
	}
}

// A UDP socket is found connected or not, while it is there.
func TestFindUDP(t *testing.T) {
	f, err := New()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	server, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	to := server.LocalAddr().(*net.UDPAddr).AddrPort()
	for name, open := range map[string]func() (net.PacketConn, error){
		"connected": func() (net.PacketConn, error) { return net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to)) },
		"any":       func() (net.PacketConn, error) { return net.ListenPacket("udp", "127.0.0.1:0") },
	} {
		c, err := open()
		if err != nil {
			t.Fatal(err)
		}
		tuple := Tuple{Client: c.LocalAddr().(*net.UDPAddr).AddrPort(), Server: to, UDP: true}
		me := Owner{uint32(os.Getuid()), uint32(os.Getgid())}
		if pid, _ := f.Find(tuple, me); pid != os.Getpid() {
			t.Errorf("%s: found %d, want %d", name, pid, os.Getpid())
		}
		c.Close()
		if pid, _ := f.Find(tuple, me); pid != 0 {
			t.Errorf("%s: found %d after its end", name, pid)
		}
	}
}

// However many processes there are, a search comes to an end, and those that are looked at first are found.
func TestSearchIsBounded(t *testing.T) {
	needRoot(t)
	runtime.LockOSThread() // whose end would be that of the processes it started
	defer runtime.UnlockOSThread()
	const idle = maxLinks/linksProcess + 1
	const uid = 61500
	connected := func(before int) (found int) {
		t.Helper()
		f, err := New()
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		as := &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}, Pdeathsig: syscall.SIGKILL}
		client := exec.Command("/proc/self/exe", "-test.run=^$")
		client.Env, client.SysProcAttr = []string{"CALLER_TEST_DIAL=" + l.Addr().String()}, as
		stdin, err := client.StdinPipe()
		if err == nil {
			err = client.Start()
		}
		if err != nil {
			t.Fatal(err)
		}
		defer client.Wait()
		defer stdin.Close()
		c, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		for range before {
			sleeper := exec.Command("/bin/sleep", "1000")
			sleeper.SysProcAttr = as
			if err := sleeper.Start(); err != nil {
				t.Fatal(err)
			}
			defer sleeper.Wait()
			defer sleeper.Process.Kill()
		}
		found, _ = f.Find(Tuple{Client: c.RemoteAddr().(*net.TCPAddr).AddrPort(), Server: c.LocalAddr().(*net.TCPAddr).AddrPort()}, Owner{uid, uid})
		if found != 0 && found != client.Process.Pid {
			t.Errorf("found %d, want %d", found, client.Process.Pid)
		}
		return found
	}
	if connected(10) == 0 {
		t.Error("control: not found behind ten others")
	}
	if connected(idle) != 0 {
		t.Errorf("%d processes were looked at in one search", idle)
	}
}
