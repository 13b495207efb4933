package rig

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// startRunc brings the box up as a container of runc: created, wired, then started.
func (b *Box) startRunc() error {
	own, err := os.Executable()
	if err != nil {
		return err
	}
	if err := b.writeBundle(own); err != nil {
		return err
	}
	pidFile := filepath.Join(b.bundle(), "pid")
	create := b.runc("create", "--bundle", b.bundle(), "--pid-file", pidFile, b.id())
	theirs, err := b.streams(create)
	if err != nil {
		return err
	}
	err = create.Run()
	for _, f := range theirs {
		f.Close()
	}
	if err != nil {
		return fmt.Errorf("runc create: %w: %s", err, b.Stderr)
	}
	text, err := os.ReadFile(pidFile)
	if err != nil {
		return err
	}
	if _, err := fmt.Sscan(string(text), &b.PID); err != nil {
		return err
	}
	// An orphan now, and so a child of the first process of the rig's namespace: ours.
	if b.process, err = os.FindProcess(b.PID); err != nil {
		return err
	}
	go b.wait()
	if b.Wire, err = newWire(b.PID); err != nil {
		return err
	}
	if b.capture, err = newCapture(b.Wire.index); err != nil {
		return err
	}
	b.Started = time.Now()
	if out, err := b.runc("start", b.id()).CombinedOutput(); err != nil {
		return fmt.Errorf("runc start: %w: %s", err, out)
	}
	return nil
}

func (b *Box) bundle() string { return b.root + "-bundle" }

// id is unlike that of any other process's box: cgroups are named by it, and those are the machine's.
func (b *Box) id() string { return fmt.Sprintf("rig-%s-%s", processID, filepath.Base(b.root)) }

var processID = strconv.FormatUint(rand.Uint64(), 36)

func (b *Box) runc(args ...string) *exec.Cmd {
	return exec.Command("runc", append([]string{"--root", scratch + "/runc"}, args...)...)
}

func (b *Box) deleteRunc() error {
	var err error
	if b.process != nil {
		if out, e := b.runc("delete", "--force", b.id()).CombinedOutput(); e != nil {
			err = fmt.Errorf("runc delete: %w: %s", e, out)
		}
	}
	return errors.Join(err, os.RemoveAll(b.bundle()))
}

// LeastCapabilities is what the documented command line gives a container.
var LeastCapabilities = []uintptr{unix.CAP_NET_ADMIN, unix.CAP_SETUID, unix.CAP_SETGID, unix.CAP_SETPCAP, unix.CAP_KILL}

// writeBundle writes the container's configuration: namespaces and mounts as an engine gives them, and no more rights than asked for.
func (b *Box) writeBundle(own string) error {
	type object = map[string]any
	s := b.orders(own)
	mounts := []object{
		{"destination": "/proc", "type": "proc", "source": "proc", "options": []string{"nosuid", "noexec", "nodev"}},
		{"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"}},
	}
	for _, dir := range []string{"/usr", "/bin", "/sbin", "/lib", "/lib64"} {
		if _, err := os.Stat(dir); err == nil {
			mounts = append(mounts, object{"destination": dir, "type": "bind", "source": dir, "options": []string{"rbind", "ro"}})
		}
	}
	for path, program := range s.Place {
		if program != "" {
			mounts = append(mounts, object{"destination": path, "type": "bind", "source": program, "options": []string{"bind", "ro"}})
		}
	}
	var caps []string
	for _, c := range s.Capabilities {
		caps = append(caps, "CAP_"+capabilityNames[c])
	}
	config := object{
		"ociVersion": "1.0.2", "hostname": "box", "root": object{"path": b.root}, "mounts": mounts,
		"process": object{
			"user": object{"uid": 0, "gid": 0}, "args": s.Argv, "env": s.Env, "cwd": "/", "noNewPrivileges": s.NoNewPrivs,
			"capabilities": object{"bounding": caps, "effective": caps, "permitted": caps},
		},
		"linux": object{
			"namespaces": []object{{"type": "pid"}, {"type": "network"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}},
			"sysctl":     object{"net.ipv4.ping_group_range": "0 2147483647", "net.ipv4.ip_unprivileged_port_start": "0"},
		},
	}
	data, err := json.Marshal(config)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(b.bundle(), 0o700); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(b.bundle(), "config.json"), data, 0o600)
}

// capabilityNames are those of EngineCapabilities.
var capabilityNames = map[uintptr]string{
	unix.CAP_CHOWN: "CHOWN", unix.CAP_DAC_OVERRIDE: "DAC_OVERRIDE", unix.CAP_FSETID: "FSETID", unix.CAP_FOWNER: "FOWNER", unix.CAP_MKNOD: "MKNOD",
	unix.CAP_NET_RAW: "NET_RAW", unix.CAP_SETGID: "SETGID", unix.CAP_SETUID: "SETUID", unix.CAP_SETFCAP: "SETFCAP", unix.CAP_SETPCAP: "SETPCAP",
	unix.CAP_NET_BIND_SERVICE: "NET_BIND_SERVICE", unix.CAP_SYS_CHROOT: "SYS_CHROOT", unix.CAP_KILL: "KILL", unix.CAP_AUDIT_WRITE: "AUDIT_WRITE",
	unix.CAP_NET_ADMIN: "NET_ADMIN",
}
