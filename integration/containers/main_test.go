// Package containers tries the built binary under the container engines that people use: docker, and podman with and without root.
//
//	EXITGATE_BINARY=.build/exitgate go test ./integration/containers     # as root; without the variable it builds the binary itself
//
// The engines are Debian's (docker.io, podman, runc, slirp4netns, uidmap, netavark, aardvark-dns), started once for the run in
// namespaces of their own, with their files on a tmpfs in there; the only image is made here, of busybox and the binary. The internet
// is the rig's, in the engine's network namespace: the far side of each bridge. When the run ends, however it ends, the kernel takes
// the engines, containers, mounts, networks and files away with the pid namespace; what is left, empty cgroups, is removed after it.
//
// No test here asks an image registry or leaves the namespaces, and no engine of the machine's own is touched.
package containers

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"exitgate/integration/rig"
	"exitgate/integration/rig/rigtest"

	"golang.org/x/sys/unix"
)

// stageVar is set where the namespaces have been entered.
const stageVar = "EXITGATE_CONTAINERS_STAGE"

func TestMain(m *testing.M) {
	rig.Main()
	if os.Getenv(stageVar) != "" {
		os.Unsetenv(stageVar)
		os.Exit(onStage(m))
	}
	nameCgroup()
	if err := keepMachineNet(); err != nil {
		fmt.Fprintln(os.Stderr, "integration/containers:", err)
		os.Exit(1)
	}
	inside, code, err := rig.Enter()
	if inside && err == nil {
		os.Exit(initMain())
	}
	removeCgroups()
	rigtest.Exit(code, err)
}

// initMain runs the tests as a child and collects whatever else ends: shims and monitors of containers are left to PID 1, and an
// engine takes a zombie for alive.
func initMain() int {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), stageVar+"=1")
	if err := cmd.Start(); err != nil {
		fmt.Fprintln(os.Stderr, "integration/containers:", err)
		return 1
	}
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			fmt.Fprintln(os.Stderr, "integration/containers: wait:", err)
			return 1
		case pid == cmd.Process.Pid && status.Exited():
			return status.ExitStatus()
		case pid == cmd.Process.Pid:
			fmt.Fprintln(os.Stderr, "integration/containers: ended by", status.Signal())
			return 1
		}
	}
}

// binary is the program under test, probe the prober.
var binary, probe string

// internet is the world that all tests share; each has names of its own in it.
var internet *rig.World

func onStage(m *testing.M) int {
	err := prepare()
	if err != nil {
		fmt.Fprintln(os.Stderr, "integration/containers:", err)
		return 1
	}
	return m.Run()
}

func prepare() (err error) {
	if internet, err = rig.NewWorld(); err != nil {
		return err
	}
	if binary, err = rig.Binary(); err != nil {
		return err
	}
	if probe, err = rig.Build("exitgate/integration/containers/probe"); err != nil {
		return err
	}
	if err := setReadme(); err != nil {
		return err
	}
	return errors.Join(
		showMachineNet(),
		cover("/etc/resolv.conf", fmt.Sprintf("nameserver %s\n", internet.DNS.Addr4), false),
		cover("/etc/passwd", fmt.Sprintf("%s:x:%d:%d::%s:/bin/sh\n", rootlessUser, rootlessUID, rootlessUID, rootlessHome), true),
		cover("/etc/subuid", rootlessUser+":200000:65536\n", false),
		cover("/etc/subgid", rootlessUser+":200000:65536\n", false),
	)
}

// cover lays other text over a file of the machine, or more text, in these namespaces only.
func cover(path, text string, more bool) error {
	if more {
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		text = string(data) + text
	}
	over := filepath.Join("/run/rig", filepath.Base(path))
	if err := os.WriteFile(over, []byte(text), 0o644); err != nil {
		return err
	}
	if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
		// Nothing to lie on: an empty file, which says the same as none.
		if err := os.WriteFile(path, nil, 0o644); err != nil {
			return err
		}
	}
	if err := unix.Mount(over, path, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("cover %s: %w", path, err)
	}
	return nil
}
