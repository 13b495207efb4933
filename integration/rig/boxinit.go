package rig

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// stage is what the init stage of a box is told on fd 3 once its network is there.
type stage struct {
	Root         string            // directory that becomes /
	Place        map[string]string // programs and directories of the host by their path in the box
	Argv, Env    []string
	Capabilities []uintptr // bounding set of the box
	NoNewPrivs   bool
	NoNetfilter  bool
	Terminal     bool // make a pty, hand its master back on fd 4, and take the slave as standard streams
	Hostname     string
}

// initBox is PID 1 of a new box: it makes the mounts and gives way to the binary by execve, so that the binary is PID 1 itself.
func initBox() {
	fmt.Fprintln(os.Stderr, "rig:", runStage())
	os.Exit(120)
}

func runStage() error {
	var s stage
	orders := os.NewFile(3, "orders")
	if err := json.NewDecoder(orders).Decode(&s); err != nil {
		return fmt.Errorf("read orders: %w", err)
	}
	orders.Close()
	if err := unix.Sethostname([]byte(s.Hostname)); err != nil {
		return fmt.Errorf("set hostname: %w", err)
	}
	// As docker sets them: any uid may ping and may bind any port, so a fence must not rely on the kernel's own defaults.
	for name, value := range map[string]string{"ping_group_range": "0 2147483647", "ip_unprivileged_port_start": "0"} {
		if err := os.WriteFile("/proc/sys/net/ipv4/"+name, []byte(value), 0); err != nil {
			return err
		}
	}
	for path, program := range s.Place {
		if err := place(program, s.Root+path); err != nil {
			return err
		}
	}
	if err := changeRoot(s.Root); err != nil {
		return err
	}
	if _, err := unix.Setsid(); err != nil && !errors.Is(err, unix.EPERM) {
		return fmt.Errorf("setsid: %w", err)
	}
	if s.Terminal {
		if err := takeTerminal(); err != nil {
			return fmt.Errorf("terminal: %w", err)
		}
	}
	unix.CloseOnExec(4)
	if s.NoNetfilter {
		if err := hideNetfilter(); err != nil {
			return err
		}
	}
	if err := limitCapabilities(s.Capabilities); err != nil {
		return err
	}
	if s.NoNewPrivs {
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			return err
		}
	}
	// The last word before the program's first: when it was started.
	if _, err := unix.Write(4, binary.BigEndian.AppendUint64(nil, uint64(time.Now().UnixNano()))); err != nil {
		return fmt.Errorf("report the start: %w", err)
	}
	return fmt.Errorf("exec %s: %w", s.Argv[0], unix.Exec(s.Argv[0], s.Argv, s.Env))
}

// changeRoot makes root the file system of the box: the host's programs read-only, everything else its own.
func changeRoot(root string) error {
	if err := unix.Mount(root, root, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("bind %s: %w", root, err)
	}
	if err := hostPrograms(root); err != nil {
		return err
	}
	if err := unix.Mount("proc", root+"/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	if err := devices(root + "/dev"); err != nil {
		return err
	}
	if err := os.Chdir(root); err != nil {
		return err
	}
	// The old root ends up on top of the new one, from where it can be taken off.
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot_root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("leave the old root: %w", err)
	}
	return os.Chdir("/")
}

// place bind-mounts a program or a directory of the host at path.
func place(what, path string) error {
	if what == "" {
		return nil
	}
	info, err := os.Stat(what)
	if err != nil {
		return err
	}
	if info.IsDir() {
		if err := os.MkdirAll(path, 0o755); err != nil {
			return err
		}
		return bindReadOnly(what, path)
	}
	if err := os.WriteFile(path, nil, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(what, path, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("place %s: %w", what, err)
	}
	return nil
}

func bindReadOnly(dir, path string) error {
	if err := unix.Mount(dir, path, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("bind %s: %w", dir, err)
	}
	if err := unix.Mount("", path, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""); err != nil {
		return fmt.Errorf("make %s read-only: %w", dir, err)
	}
	return nil
}

func hostPrograms(root string) error {
	for _, dir := range []string{"/usr", "/bin", "/sbin", "/lib", "/lib64"} {
		info, err := os.Lstat(dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if info.Mode()&fs.ModeSymlink != 0 {
			to, err := os.Readlink(dir)
			if err != nil {
				return err
			}
			if err := os.Symlink(to, root+dir); err != nil {
				return err
			}
			continue
		}
		if err := os.MkdirAll(root+dir, 0o755); err != nil {
			return err
		}
		if err := bindReadOnly(dir, root+dir); err != nil {
			return err
		}
	}
	return nil
}

func devices(dev string) error {
	for _, name := range []string{"null", "zero", "full", "random", "urandom", "tty"} {
		f, err := os.OpenFile(filepath.Join(dev, name), os.O_CREATE, 0o666)
		if err != nil {
			return err
		}
		f.Close()
		if err := unix.Mount("/dev/"+name, filepath.Join(dev, name), "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("bind /dev/%s: %w", name, err)
		}
	}
	for name, to := range map[string]string{"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2", "ptmx": "pts/ptmx"} {
		if err := os.Symlink(to, filepath.Join(dev, name)); err != nil {
			return err
		}
	}
	for _, dir := range []string{"pts", "shm"} {
		if err := os.Mkdir(filepath.Join(dev, dir), 0o755); err != nil {
			return err
		}
	}
	if err := os.Chmod(filepath.Join(dev, "shm"), 0o777|os.ModeSticky); err != nil {
		return err
	}
	if err := unix.Mount("devpts", filepath.Join(dev, "pts"), "devpts", unix.MS_NOSUID|unix.MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620"); err != nil {
		return fmt.Errorf("mount devpts: %w", err)
	}
	return nil
}

// takeTerminal makes a pty of the box's own, as a container engine does, so that the slave has a name in the box.
func takeTerminal() error {
	master, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
	if err != nil {
		return fmt.Errorf("open /dev/ptmx: %w", err)
	}
	if err := unix.IoctlSetPointerInt(master, unix.TIOCSPTLCK, 0); err != nil {
		return fmt.Errorf("unlock pty: %w", err)
	}
	n, err := unix.IoctlGetInt(master, unix.TIOCGPTN)
	if err != nil {
		return fmt.Errorf("number of pty: %w", err)
	}
	slave, err := unix.Open("/dev/pts/"+strconv.Itoa(n), unix.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return fmt.Errorf("open slave: %w", err)
	}
	if err := unix.IoctlSetInt(slave, unix.TIOCSCTTY, 0); err != nil {
		return fmt.Errorf("make it the controlling terminal: %w", err)
	}
	// A name for the console as under a container engine.
	if err := os.WriteFile("/dev/console", nil, 0o600); err != nil {
		return err
	}
	if err := unix.Mount("/dev/pts/"+strconv.Itoa(n), "/dev/console", "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind /dev/console: %w", err)
	}
	if err := sendFile(4, master); err != nil {
		return err
	}
	for fd := range 3 {
		if err := unix.Dup3(slave, fd, 0); err != nil {
			return err
		}
	}
	unix.Close(slave)
	return unix.Close(master)
}

func sendFile(socket, fd int) error {
	if err := unix.Sendmsg(socket, []byte{0}, unix.UnixRights(fd), nil, 0); err != nil {
		return fmt.Errorf("hand over the pty: %w", err)
	}
	return nil
}

func receiveFile(c *net.UnixConn, name string) (*os.File, error) {
	buf, oob := make([]byte, 1), make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := c.ReadMsgUnix(buf, oob)
	if err != nil {
		return nil, err
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(msgs) != 1 {
		return nil, fmt.Errorf("no file arrived: %v", err)
	}
	fds, err := unix.ParseUnixRights(&msgs[0])
	if err != nil || len(fds) != 1 {
		return nil, fmt.Errorf("no file arrived: %v", err)
	}
	unix.SetNonblock(fds[0], true)
	return os.NewFile(uintptr(fds[0]), name), nil
}

// limitCapabilities leaves the calling thread, and what it executes as root, no more than these.
func limitCapabilities(keep []uintptr) error {
	kept := map[uintptr]bool{}
	for _, c := range keep {
		kept[c] = true
	}
	for c := uintptr(0); c <= unix.CAP_LAST_CAP; c++ {
		if kept[c] {
			continue
		}
		err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0)
		if err != nil && !errors.Is(err, unix.EINVAL) { // EINVAL: this kernel knows fewer
			return fmt.Errorf("drop capability %d: %w", c, err)
		}
	}
	return nil
}
