package rig

import (
	"fmt"
	"os"
	"os/exec"
	"syscall"

	"golang.org/x/sys/unix"
)

// As starts a prober in the box beside PID 1's children, as `docker exec -u` does: with the box's capabilities where it is root, with none
// else, and without any hardening. It lives as long as the box.
func (b *Box) As(uid, gid uint32) (*Agent, error) {
	in, give, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer in.Close()
	out, outW, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer outW.Close()
	errs, errW, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer errW.Close()
	cmd := exec.Command(ProberPath, "serve")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = in, outW, errW
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/rig"}
	cmd.Dir = "/"
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	if uid != 0 {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uid, Gid: gid}
	}
	err = b.Enter(func() error {
		if err := limitCapabilities(b.orders("").Capabilities); err != nil {
			return err
		}
		return cmd.Start()
	})
	if err != nil {
		return nil, fmt.Errorf("prober as uid %d: %w", uid, err)
	}
	go cmd.Wait()
	go func() {
		<-b.ended
		give.Close()
	}()
	return newAgent(give, newStream(out), newStream(errs)), nil
}
