// Package rig is the stage on which the built binary is tried as a black box: a small internet in namespaces of its own, and
// boxes (containers without an engine) in which the binary is PID 1.
//
//	func TestMain(m *testing.M) {
//		rig.Main()                                  // the program is also the box's init stage and the prober
//		inside, code, err := rig.Enter()            // runs itself again in fresh net, mount, pid, ipc and uts namespaces
//		...
//	}
//	w, _ := rig.NewWorld()                              // a small internet: addresses, DNS, CA
//	up, _ := w.HTTPS("api.example.com", rig.Server{})   // a TLS server by that name, which keeps what arrived
//	box, _ := rig.Start(rig.Config{World: w, Binary: bin, Policy: policy})
//	res := box.Agent().Do(prober.Probe{Op: "tcp", Address: "1.1.1.1:443"})
//	w.Capture().Flows()                                 // every packet that left the box
//
// The kernel cleans up: the program that called Enter is PID 1 of a pid namespace and dies with its parent, boxes die with it,
// and with them go veth pairs, mounts and files, which all live in those namespaces (files on a private tmpfs).
// Addresses look public on purpose, because the binary refuses special-purpose ranges; no packet leaves the namespaces.
//
// What it does not do: it looks into no internals of the binary, needs no container engine and no ip, nft or openssl program,
// and is no sandbox for hostile code (a box shares the kernel and sees the host's /usr, read-only).
package rig

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"time"

	"exitgate/integration/prober"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The main goroutine stays on the main thread: Go parks a main thread whose goroutine left it in another namespace, and Pdeathsig
// is bound to the thread that forked.
func init() { runtime.LockOSThread() }

const insideVar = "EXITGATE_RIG_INSIDE"

// Names under which the program is started again for another role.
const (
	roleInit   = "rig-init"
	roleProber = "prober"
)

// Main takes over where the program was started in one of the rig's other roles; otherwise it returns at once. Call it first.
func Main() {
	switch filepath.Base(os.Args[0]) {
	case roleInit:
		initBox()
	case roleProber:
		os.Exit(prober.Main(os.Args[1:]))
	}
}

// Inside says, before Enter is called, whether this is the second run. The first still has the machine's own network.
func Inside() bool { return os.Getenv(insideVar) != "" }

// Eventually waits until f holds, and reports whether it did within the time.
func Eventually(within time.Duration, f func() bool) bool {
	for until := time.Now().Add(within); time.Now().Before(until); time.Sleep(10 * time.Millisecond) {
		if f() {
			return true
		}
	}
	return false
}

// ErrNeedsRoot says that namespaces cannot be made here.
var ErrNeedsRoot = errors.New("namespaces need root (CAP_SYS_ADMIN, CAP_NET_ADMIN); run as root")

// Enter runs the program again, with the same arguments, as PID 1 of namespaces of its own, waits for it and returns its exit code.
// In that second run inside is true and the surroundings are ready: private mounts, loopback up, a tmpfs on /run that is also TMPDIR.
func Enter() (inside bool, code int, err error) {
	if Inside() {
		os.Unsetenv(insideVar)
		return true, 0, settle()
	}
	if os.Geteuid() != 0 {
		return false, 1, ErrNeedsRoot
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), insideVar+"=1")
	cmd.SysProcAttr = &unix.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS,
		Pdeathsig:  unix.SIGKILL,
	}
	err = cmd.Run()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		return false, exit.ExitCode(), nil
	case errors.Is(err, unix.EPERM):
		return false, 1, fmt.Errorf("%w: %v", ErrNeedsRoot, err)
	}
	return false, 0, err
}

// scratch is where the rig keeps its files; it exists only in the namespaces that Enter made.
const scratch = "/run/rig"

func settle() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	if err := unix.Mount("rig", "/run", "tmpfs", 0, "mode=755"); err != nil {
		return fmt.Errorf("mount /run: %w", err)
	}
	if err := os.MkdirAll(scratch+"/tmp", 0o755); err != nil {
		return err
	}
	if err := os.Chmod(scratch+"/tmp", 0o777|os.ModeSticky); err != nil {
		return err
	}
	os.Setenv("TMPDIR", scratch+"/tmp")
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find lo: %w", err)
	}
	return netlink.LinkSetUp(lo)
}

var counter atomic.Int32

// serial numbers worlds and boxes of this process.
func serial() int { return int(counter.Add(1)) }
