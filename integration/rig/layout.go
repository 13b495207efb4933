package rig

import (
	"fmt"
	"net"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// layOut makes the box's root directory. It stays reachable from outside, which is how files are changed at run time.
func (b *Box) layOut() error {
	for _, dir := range []string{"dev", "proc", "run", "root", "etc/exitgate", "etc/ssl/certs", "home/agent", "rig", "var/log", "var/lib"} {
		if err := os.MkdirAll(filepath.Join(b.root, dir), 0o755); err != nil {
			return err
		}
	}
	for _, dir := range []string{"tmp", "var/tmp"} {
		if err := os.Mkdir(filepath.Join(b.root, dir), 0o755); err != nil {
			return err
		}
		if err := os.Chmod(filepath.Join(b.root, dir), 0o777|os.ModeSticky); err != nil {
			return err
		}
	}
	if err := os.Chown(filepath.Join(b.root, "home/agent"), 1000, 1000); err != nil {
		return err
	}
	for path, f := range b.files() {
		if err := writeFile(b.root, path, f); err != nil {
			return err
		}
	}
	return nil
}

func (b *Box) files() map[string]File {
	w := b.cfg.World
	resolv := b.cfg.Resolv
	if resolv == "" {
		resolv = fmt.Sprintf("nameserver %s\n", w.DNS.Addr4)
	}
	files := map[string]File{
		"/etc/passwd":                        {Data: "root:x:0:0:root:/root:/bin/sh\nagent:x:1000:1000::/home/agent:/bin/sh\nother:x:1001:1001::/:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n"},
		"/etc/group":                         {Data: "root:x:0:\nagent:x:1000:\nother:x:1001:\nnogroup:x:65534:\nextra:x:2000:agent\n"},
		"/etc/nsswitch.conf":                 {Data: "passwd: files\ngroup: files\nhosts: files dns\n"},
		"/etc/hostname":                      {Data: "box\n"},
		"/etc/hosts":                         {Data: "127.0.0.1 localhost\n::1 localhost\n" + b.cfg.Hosts},
		"/etc/resolv.conf":                   {Data: resolv},
		"/etc/ssl/certs/ca-certificates.crt": {Data: string(w.CA.PEM())},
	}
	if b.cfg.Policy != "" {
		files[PolicyPath] = File{Data: b.cfg.Policy}
	}
	for path, f := range b.cfg.Files {
		files[path] = f
	}
	return files
}

func writeFile(root, inside string, f File) error {
	if f.Mode == 0 {
		f.Mode = 0o644
	}
	path := filepath.Join(root, inside)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	part := path + ".part"
	if err := os.WriteFile(part, []byte(f.Data), f.Mode); err != nil {
		return err
	}
	if err := os.Chmod(part, f.Mode); err != nil { // whatever the umask is
		return err
	}
	if err := os.Chown(part, f.UID, f.GID); err != nil {
		return err
	}
	return os.Rename(part, path)
}

func socketPair() (*net.UnixConn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socketpair: %w", err)
	}
	mine := os.NewFile(uintptr(fds[0]), "rig")
	defer mine.Close()
	c, err := net.FileConn(mine)
	if err != nil {
		return nil, nil, err
	}
	return c.(*net.UnixConn), os.NewFile(uintptr(fds[1]), "box"), nil
}
