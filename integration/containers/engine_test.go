package containers

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const (
	rootlessUser = "exitgate-rootless"
	rootlessUID  = 4242
	rootlessHome = "/run/rootless"

	image    = "exitgate-test"
	patience = time.Minute // for what takes a second, on a busy machine
)

// engine is a container engine of this run's own.
type engine struct {
	name   string
	argv   []string // its client, with what leads to this engine
	env    []string
	uid    uint32 // whose it is
	podman bool
	turn   *sync.Mutex // of tests that use it; nil: many may at a time
}

// Each engine is started when a test first asks for it.
var engines = map[string]func() (*engine, error){
	"docker":   sync.OnceValues(startDocker),
	"podman":   sync.OnceValues(startPodman),
	"rootless": sync.OnceValues(startRootless),
}

// needs is an engine by its name. Without the programs for it a test fails where CI is set, and is left out elsewhere.
func needs(t testing.TB, name string) *engine {
	t.Helper()
	e, err := engines[name]()
	if errors.Is(err, exec.ErrNotFound) || errors.Is(err, fs.ErrNotExist) {
		if os.Getenv("CI") == "" {
			t.Skipf("%v; apt-get install docker.io podman runc slirp4netns uidmap netavark aardvark-dns busybox-static", err)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	if e.turn != nil {
		e.turn.Lock()
		t.Cleanup(e.turn.Unlock)
	}
	return e
}

// each runs a test under several engines, one after the other within the test and beside other tests.
func each(t *testing.T, names []string, f func(t *testing.T, e *engine)) {
	t.Parallel()
	for _, name := range names {
		t.Run(name, func(t *testing.T) { f(t, needs(t, name)) })
	}
}

var everyEngine = []string{"docker", "podman", "rootless"}

// startDocker starts Debian's dockerd. Its client is named by its path: another docker may come first in PATH, too new for this daemon.
func startDocker() (*engine, error) {
	dir := "/run/rig/docker"
	for _, program := range []string{"/usr/sbin/dockerd", "/usr/bin/docker"} {
		if _, err := os.Stat(program); err != nil {
			return nil, err
		}
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, err
	}
	log, err := os.Create(dir + "/log")
	if err != nil {
		return nil, err
	}
	defer log.Close()
	socket := "unix://" + dir + "/socket"
	daemon := exec.Command("/usr/sbin/dockerd", "--data-root", dir+"/data", "--exec-root", dir+"/exec", "--pidfile", dir+"/pid",
		"--host", socket, "--cgroup-parent", "/"+os.Getenv(cgroupVar), "--exec-opt", "native.cgroupdriver=cgroupfs")
	daemon.Stdout, daemon.Stderr = log, log
	if err := daemon.Start(); err != nil {
		return nil, err
	}
	ended := make(chan error, 1)
	go func() { ended <- daemon.Wait() }()
	e := &engine{name: "docker", argv: []string{"/usr/bin/docker"}, env: []string{"DOCKER_HOST=" + socket, "DOCKER_CONFIG=" + dir}}
	until := time.Now().Add(patience)
	for {
		if _, err := e.do("", "version"); err == nil {
			return e, e.load()
		}
		select {
		case err := <-ended:
			text, _ := os.ReadFile(dir + "/log")
			return nil, fmt.Errorf("dockerd ended: %v\n%s", err, text)
		case <-time.After(50 * time.Millisecond):
		}
		if time.Now().After(until) {
			text, _ := os.ReadFile(dir + "/log")
			return nil, fmt.Errorf("dockerd does not answer\n%s", text)
		}
	}
}

// podmanConf keeps podman to files where no systemd is, and to limits that it may set.
const podmanConf = `[network]
network_backend = "netavark"
network_config_dir = "%[1]s/networks"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "runc"
[engine.runtimes]
runc = ["%[2]s"]
`

// limitless is runc without the resource limits that podman asks for: kube play has no other way than 1048576 open files, which a
// root without CAP_SYS_RESOURCE may not set.
const limitless = `#!/bin/sh
for word; do
	[ "$before" != --bundle ] && [ "$before" != -b ] || sed -i 's/"rlimits":\[[^]]*\],//' "$word/config.json"
	before=$word
done
exec runc "$@"
`

func startPodman() (*engine, error) { return startPodmanAs(0, "/run/rig/podman") }

func startRootless() (*engine, error) {
	// slirp4netns opens it as the user.
	tun := "/run/rig/tun"
	if err := unix.Mknod(tun, unix.S_IFCHR|0o666, int(unix.Mkdev(10, 200))); err != nil {
		return nil, fmt.Errorf("make %s: %w", tun, err)
	}
	if err := errors.Join(os.Chmod(tun, 0o666), unix.Mount(tun, "/dev/net/tun", "", unix.MS_BIND, "")); err != nil {
		return nil, fmt.Errorf("mount /dev/net/tun: %w", err)
	}
	for _, program := range []string{"slirp4netns", "newuidmap"} {
		if _, err := exec.LookPath(program); err != nil {
			return nil, err
		}
	}
	return startPodmanAs(rootlessUID, rootlessHome)
}

func startPodmanAs(uid uint32, dir string) (*engine, error) {
	program, err := exec.LookPath("podman")
	if err != nil {
		return nil, err
	}
	if _, err := exec.LookPath("runc"); err != nil {
		return nil, err
	}
	for _, d := range []string{dir, dir + "/run", dir + "/tmp"} {
		if err := errors.Join(os.MkdirAll(d, 0o700), os.Chown(d, int(uid), int(uid))); err != nil {
			return nil, err
		}
	}
	conf := dir + "/containers.conf"
	if err := errors.Join(os.WriteFile(conf, fmt.Appendf(nil, podmanConf, dir, dir+"/runc"), 0o644), os.WriteFile(dir+"/runc", []byte(limitless), 0o755),
		os.Chown(conf, int(uid), int(uid)), os.Chown(dir+"/runc", int(uid), int(uid))); err != nil {
		return nil, err
	}
	// A container that was started while others of the bridge ended had no road out of it, once in some hundred: one test at a time.
	e := &engine{name: "podman", podman: true, uid: uid, turn: new(sync.Mutex),
		argv: []string{program, "--root", dir + "/root", "--runroot", dir + "/runroot", "--tmpdir", dir + "/tmp"},
		env:  []string{"CONTAINERS_CONF=" + conf, "HOME=" + dir, "XDG_RUNTIME_DIR=" + dir + "/run", "TMPDIR=" + dir + "/tmp"}}
	if uid != 0 {
		e.name = "rootless"
		e.argv = append(e.argv, "--storage-driver", "vfs")
	}
	return e, e.load()
}

// output is what came of a command.
type output struct {
	code           int
	stdout, stderr string
}

func (o output) String() string { return fmt.Sprintf("exit %d, %q, %q", o.code, o.stdout, o.stderr) }

// command is the client with these arguments, as the engine's user.
func (e *engine) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, e.argv[0], append(e.argv[1:len(e.argv):len(e.argv)], args...)...)
	cmd.Env = append([]string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}, e.env...)
	cmd.Dir = "/"
	cmd.WaitDelay = 5 * time.Second
	if e.uid != 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: e.uid, Gid: e.uid}}
	}
	return cmd
}

// client runs the client to its end; a non-zero exit code is no error.
func (e *engine) client(stdin io.Reader, args ...string) (output, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	defer cancel()
	cmd := e.command(ctx, args...)
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, &out, &errs
	err := cmd.Run()
	o := output{cmd.ProcessState.ExitCode(), out.String(), errs.String()}
	if ctx.Err() != nil {
		return o, fmt.Errorf("%s %q: no end within %v: %v", e.name, args, 2*patience, o)
	}
	if err != nil && !errors.As(err, new(*exec.ExitError)) {
		return o, fmt.Errorf("%s %q: %w", e.name, args, err)
	}
	return o, nil
}

// do is client, where a non-zero exit code is an error.
func (e *engine) do(stdin string, args ...string) (string, error) {
	o, err := e.client(strings.NewReader(stdin), args...)
	if err == nil && o.code != 0 {
		err = fmt.Errorf("%s %q: %v", e.name, args, o)
	}
	return strings.TrimSpace(o.stdout), err
}

// must is do for a test.
func (e *engine) must(t testing.TB, args ...string) string {
	t.Helper()
	out, err := e.do("", args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// busybox is the image's shell and tools, as Debian's busybox-static has them.
const busybox = "/bin/busybox"

// load makes the image: busybox, the program under test, the prober (once more as a setuid program), and the internet's authority.
func (e *engine) load() error {
	var archive bytes.Buffer
	if err := writeImage(tar.NewWriter(&archive)); err != nil {
		return err
	}
	_, err := e.do(archive.String(), "import", "--change", "ENV PATH=/usr/local/bin:/bin", "-", image)
	return err
}

func writeImage(w *tar.Writer) error {
	var errs []error
	add := func(h tar.Header, data []byte) {
		h.Size = int64(len(data))
		err := w.WriteHeader(&h)
		if err == nil {
			_, err = w.Write(data)
		}
		errs = append(errs, err)
	}
	for _, dir := range []string{"bin", "dev", "etc", "etc/exitgate", "etc/ssl", "etc/ssl/certs", "home", "proc", "root", "run", "run/secrets", "sys", "usr", "usr/local", "usr/local/bin", "var"} {
		add(tar.Header{Typeflag: tar.TypeDir, Name: dir, Mode: 0o755}, nil)
	}
	add(tar.Header{Typeflag: tar.TypeDir, Name: "tmp", Mode: 0o1777}, nil)
	add(tar.Header{Typeflag: tar.TypeDir, Name: "home/agent", Mode: 0o755, Uid: 1000, Gid: 1000}, nil)
	for path, text := range map[string]string{
		"etc/passwd": "root:x:0:0:root:/root:/bin/sh\nagent:x:1000:1000::/home/agent:/bin/sh\n", "etc/group": "root:x:0:\nagent:x:1000:\n",
		"etc/ssl/certs/ca-certificates.crt": string(internet.CA.PEM()),
	} {
		add(tar.Header{Typeflag: tar.TypeReg, Name: path, Mode: 0o644}, []byte(text))
	}
	for _, file := range []struct {
		name, from string
		mode       int64
	}{{"bin/busybox", busybox, 0o755}, {"usr/local/bin/exitgate", binary, 0o755}, {"usr/local/bin/probe", probe, 0o755}, {"usr/local/bin/setuid-probe", probe, 0o4755}, {"usr/local/bin/claude", hostBin + "/claude", 0o755}} {
		data, err := os.ReadFile(file.from)
		errs = append(errs, err)
		add(tar.Header{Typeflag: tar.TypeReg, Name: file.name, Mode: file.mode}, data)
	}
	for _, name := range []string{"sh", "cat", "sleep", "ls", "id", "env", "grep", "touch", "kill", "true"} {
		add(tar.Header{Typeflag: tar.TypeSymlink, Name: "bin/" + name, Linkname: "busybox"}, nil)
	}
	return errors.Join(append(errs, w.Close())...)
}

// cgroups are where the containers of a run are: a name with the pid of who removes them in the end.
const cgroups = "exitgate-test-"

// cgroupVar tells the stage the name.
const cgroupVar = "EXITGATE_CONTAINERS_CGROUP"

// nameCgroup names it once, outside of the stage's pid namespace.
func nameCgroup() {
	if os.Getenv(cgroupVar) == "" {
		os.Setenv(cgroupVar, fmt.Sprint(cgroups, os.Getpid()))
	}
}

// removeCgroups takes away what killed engines leave in the hierarchies, of this run and of runs that were killed: directories
// without a process in them. podman has a directory of its own for pods, which other podmans may use and so goes only if it is empty.
func removeCgroups() {
	for _, hierarchy := range []string{"/sys/fs/cgroup/", "/sys/fs/cgroup/*/"} {
		tops, _ := filepath.Glob(hierarchy + cgroups + "*")
		for _, top := range tops {
			pid := strings.TrimPrefix(filepath.Base(top), cgroups)
			if _, err := os.Stat("/proc/" + pid); err != nil || filepath.Base(top) == os.Getenv(cgroupVar) {
				removeEmpty(top)
			}
		}
		pods, _ := filepath.Glob(hierarchy + "libpod_parent")
		for _, top := range pods {
			_ = unix.Rmdir(top)
		}
	}
}

// removeEmpty removes a tree of cgroups as far as it is empty; the kernel refuses a directory with processes.
func removeEmpty(dir string) {
	entries, _ := os.ReadDir(dir)
	for _, entry := range entries {
		if entry.IsDir() {
			removeEmpty(filepath.Join(dir, entry.Name()))
		}
	}
	_ = unix.Rmdir(dir)
}
