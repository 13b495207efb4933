package rig

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"exitgate/integration/prober"

	"golang.org/x/sys/unix"
)

// EngineCapabilities is what docker gives a container by default, with NET_ADMIN added: what the documented command line leads to.
var EngineCapabilities = []uintptr{
	unix.CAP_CHOWN, unix.CAP_DAC_OVERRIDE, unix.CAP_FSETID, unix.CAP_FOWNER, unix.CAP_MKNOD, unix.CAP_NET_RAW, unix.CAP_SETGID, unix.CAP_SETUID,
	unix.CAP_SETFCAP, unix.CAP_SETPCAP, unix.CAP_NET_BIND_SERVICE, unix.CAP_SYS_CHROOT, unix.CAP_KILL, unix.CAP_AUDIT_WRITE, unix.CAP_NET_ADMIN,
}

// Paths inside a box.
const (
	BinaryPath = "/rig/exitgate"
	ProberPath = "/rig/prober"
	PolicyPath = "/etc/exitgate/policy.yaml"
)

// File is a file of a box. The zero mode is 0644.
type File struct {
	Data     string
	Mode     os.FileMode
	UID, GID int
}

// Config describes a box. Binary and World are needed; the rest has the defaults given.
type Config struct {
	World        *World
	Binary       string            // the program under test, on the host
	Args         []string          // its arguments; default: run -- prober serve, which makes Agent work
	Policy       string            // contents of /etc/exitgate/policy.yaml; "": no such file
	Files        map[string]File   // more files, by path
	Place        map[string]string // programs and directories of the host, by their path in the box; a directory stands there read-only
	Env          []string          // besides PATH and HOME
	Capabilities []uintptr         // default EngineCapabilities
	NoNewPrivs   bool              // as by --security-opt no-new-privileges
	NoNetfilter  bool              // a kernel without nf_tables, as far as the box can tell
	Terminal     bool              // a pty as standard streams
	Fenced       bool              // report the first change of the ruleset
	Resolv       string            // contents of /etc/resolv.conf; default: the world's DNS server
	Hosts        string            // added to /etc/hosts
	Plain        bool              // Args is the whole command line, and the program under test is not started by itself
	Serve        bool              // with Args: they end in `prober serve`, so Agent works
	Runc         bool              // made by runc instead of the rig itself; Place, NoNetfilter, Terminal, Fenced and Uncaptured are the rig's alone
	Uncaptured   bool              // no Capture: a copy of each packet would be part of what a benchmark measures
}

// Box is a running container in all but name.
type Box struct {
	PID            int // of the box's PID 1, seen from outside
	Stdout, Stderr *Stream
	Terminal       *Terminal // nil without one
	Wire           *Wire
	Started        time.Time        // when the init stage gave way to PID 1
	Fenced         <-chan time.Time // when the box's ruleset was there; nil unless asked for

	cfg     Config
	root    string
	process *os.Process // PID 1
	stdin   *os.File
	agent   *Agent
	capture *Capture
	ended   chan struct{}
	state   *os.ProcessState
	once    sync.Once
	err     error
}

// Start makes a box and starts the program under test as its PID 1; it does not wait for it to become ready.
func Start(cfg Config) (*Box, error) {
	b := &Box{cfg: cfg, root: fmt.Sprintf("%s/box%d", scratch, serial()), ended: make(chan struct{})}
	serve := cfg.Serve
	if cfg.Args == nil {
		serve = true
		b.cfg.Args = []string{"run", "--", ProberPath, "serve"}
	}
	if err := b.layOut(); err != nil {
		return nil, errors.Join(err, os.RemoveAll(b.root))
	}
	begin := b.start
	if cfg.Runc {
		begin = b.startRunc
	}
	if err := begin(); err != nil {
		return nil, errors.Join(err, b.Close())
	}
	if serve {
		b.agent = newAgent(b.stdin, b.Stdout, b.Stderr)
	}
	cfg.World.mu.Lock()
	defer cfg.World.mu.Unlock()
	cfg.World.boxes = append(cfg.World.boxes, b)
	cfg.World.last = b.capture
	return b, nil
}

// start brings up the namespaces, the wire and the capture before it lets the init stage go on.
func (b *Box) start() error {
	own, err := os.Executable() // by its path: the file behind /proc/self/exe is of a mount namespace that cannot be bound from
	if err != nil {
		return err
	}
	orders, give, err := os.Pipe()
	if err != nil {
		return err
	}
	defer give.Close()
	here, there, err := socketPair()
	if err != nil {
		return err
	}
	defer here.Close()
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = []string{roleInit}
	cmd.ExtraFiles = []*os.File{orders, there}
	cmd.SysProcAttr = &unix.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS,
	}
	theirs, err := b.streams(cmd)
	if err != nil {
		return err
	}
	err = cmd.Start()
	for _, f := range append(theirs, orders, there) {
		f.Close()
	}
	if err != nil {
		return fmt.Errorf("start box: %w", err)
	}
	b.process, b.PID = cmd.Process, cmd.Process.Pid
	go b.wait()
	if b.Wire, err = newWire(b.PID); err != nil {
		return err
	}
	if !b.cfg.Uncaptured {
		if b.capture, err = newCapture(b.Wire.index); err != nil {
			return err
		}
	}
	if b.cfg.Fenced {
		if b.Fenced, err = watchRuleset(b.PID); err != nil {
			return err
		}
	}
	if err := json.NewEncoder(give).Encode(b.orders(own)); err != nil {
		return err
	}
	here.SetReadDeadline(time.Now().Add(time.Minute))
	if b.cfg.Terminal {
		if err := b.takeMaster(here); err != nil {
			return err
		}
	}
	// The other end says when, and closes when the init stage executes the program, or ends.
	word, err := io.ReadAll(here)
	if err != nil || len(word) != 8 {
		return fmt.Errorf("the box's init stage failed (%v): %s", err, b.Stderr)
	}
	b.Started = time.Unix(0, int64(binary.BigEndian.Uint64(word)))
	return nil
}

func (b *Box) orders(own string) stage {
	s := stage{
		Root: b.root, Capabilities: b.cfg.Capabilities, NoNewPrivs: b.cfg.NoNewPrivs, NoNetfilter: b.cfg.NoNetfilter, Terminal: b.cfg.Terminal, Hostname: "box",
		Argv:  append([]string{BinaryPath}, b.cfg.Args...),
		Place: map[string]string{BinaryPath: b.cfg.Binary, ProberPath: own},
		Env:   append([]string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/rig", "HOME=/root"}, b.cfg.Env...),
	}
	maps.Copy(s.Place, b.cfg.Place)
	if s.Capabilities == nil {
		s.Capabilities = EngineCapabilities
	}
	if b.cfg.Plain {
		s.Argv = b.cfg.Args
	}
	return s
}

// streams gives PID 1 pipes, as an engine does; theirs are the ends to close after the start.
func (b *Box) streams(cmd *exec.Cmd) (theirs []*os.File, err error) {
	if b.cfg.Terminal {
		return nil, nil
	}
	in, give, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	b.stdin = give
	out, outW, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	errs, errW, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = in, outW, errW
	b.Stdout, b.Stderr = newStream(out), newStream(errs)
	return []*os.File{in, outW, errW}, nil
}

func (b *Box) takeMaster(here *net.UnixConn) error {
	master, err := receiveFile(here, "pty")
	if err != nil {
		return fmt.Errorf("pty of the box: %w", err)
	}
	b.Terminal = NewTerminal(master)
	return nil
}

func (b *Box) wait() {
	b.state, _ = b.process.Wait()
	for _, s := range []*Stream{b.Stdout, b.Stderr} { // with PID 1 all who could still write are dead
		if s != nil {
			<-s.done
		}
	}
	close(b.ended)
}

// ErrRunning says that PID 1 still runs.
var ErrRunning = errors.New("PID 1 still runs")

// Wait waits for PID 1 to end and returns its exit code, 128+n where a signal killed it.
func (b *Box) Wait(limit time.Duration) (int, error) {
	select {
	case <-b.ended:
	case <-time.After(limit):
		return -1, ErrRunning
	}
	if ws := b.state.Sys().(syscall.WaitStatus); ws.Signaled() {
		return 128 + int(ws.Signal()), nil
	}
	return b.state.ExitCode(), nil
}

// Ended is closed when PID 1 has ended.
func (b *Box) Ended() <-chan struct{} { return b.ended }

// Signal sends a signal to PID 1 from outside, as `docker kill -s` does.
func (b *Box) Signal(sig unix.Signal) error { return b.process.Signal(sig) }

// Agent drives the prober that runs as the agent.
func (b *Box) Agent() *Agent { return b.agent }

// Capture is every packet that arrived from this box.
func (b *Box) Capture() *Capture { return b.capture }

// Stdin is the box's standard input; nil with a terminal.
func (b *Box) Stdin() *os.File { return b.stdin }

// Path is where a file of the box lies for the rig.
func (b *Box) Path(inside string) string { return filepath.Join(b.root, inside) }

// Write replaces a file of the box by rename, so that no reader sees half of it.
func (b *Box) Write(inside string, f File) error { return writeFile(b.root, inside, f) }

// SetPolicy replaces the policy file; a signal makes it count.
func (b *Box) SetPolicy(text string) error { return b.Write(PolicyPath, File{Data: text}) }

// Close ends the box and everything in it, and removes its wire and files. It may be called more than once.
func (b *Box) Close() error {
	b.once.Do(func() {
		if b.process != nil {
			b.process.Kill()
			<-b.ended
		}
		if b.stdin != nil {
			b.stdin.Close()
		}
		if b.Terminal != nil {
			b.Terminal.close()
		}
		var errs []error
		if b.capture != nil {
			errs = append(errs, b.capture.close())
		}
		if b.Wire != nil {
			errs = append(errs, b.Wire.cut())
		}
		if b.cfg.Runc {
			errs = append(errs, b.deleteRunc())
		}
		b.err = errors.Join(append(errs, os.RemoveAll(b.root))...)
	})
	return b.err
}

// Probe runs one probe in the box as another identity than the agent, root (0) included.
func (b *Box) Probe(uid uint32, p prober.Probe) (prober.Result, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	out, err := b.Run(ctx, Command{UID: uid, Args: []string{ProberPath, "do", "-"}, Stdin: p.Encode()})
	if err != nil {
		return prober.Result{}, err
	}
	r := prober.Result{More: true}
	for d := json.NewDecoder(strings.NewReader(out.Stdout)); r.More; {
		r = prober.Result{}
		if err := d.Decode(&r); err != nil {
			return r, fmt.Errorf("probe said %q, %q: %w", out.Stdout, out.Stderr, err)
		}
	}
	return r, nil
}
