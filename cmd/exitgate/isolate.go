package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"

	"exitgate/cmd/internal/enclosure"
	"exitgate/cmd/internal/supervise"
	"exitgate/netns"

	"golang.org/x/sys/unix"
)

const isolateHelp = "With --isolate it needs no container: COMMAND gets network, pid, mount, ipc and uts namespaces of its own, with no interface but\n" +
	"lo, and the proxy dials from here. It sees /usr, /etc, /opt and the like read-only, the working directory as it is, and what\n" +
	"--bind names. Its home, /tmp, /run, /var and /dev/shm are empty, and gone at the end: the sockets of other programs (D-Bus,\n" +
	"docker.sock, tmux, ssh-agent) are not there. On a terminal it gets one of its own. It needs root and Linux 5.12; the\n" +
	"control socket is /run/exitgate/isolate-PID.sock."

// sandbox is what an isolated agent runs in: an inner process of ours that is the first of fresh namespaces, makes what is to
// be seen in there, and starts the agent. It gets no secret, no policy, and no capability but those that it starts
// and ends the agent with.
type sandbox struct {
	binds []string // as on the command line

	dir    string
	named  []enclosure.Bind
	inner  *supervise.Child
	conn   *net.UnixConn
	master *os.File // of the agent's terminal; nil without one
	relay  *enclosure.Relay
}

// runIsolated fences a fresh network namespace and runs the agent in it, and in others.
func (r *runner) runIsolated() error {
	if len(r.argv) == 0 {
		return ours(errors.New("--isolate makes namespaces for a command; write it after --"))
	}
	if err := r.isolate.read(); err != nil {
		return ours(err)
	}
	if err := r.nameControl("isolate-" + strconv.Itoa(os.Getpid())); err != nil {
		return ours(err)
	}
	fresh, err := netns.New()
	if err != nil {
		return ours(err)
	}
	r.place, err = enter(fresh)
	fresh.Close()
	if err != nil {
		return ours(err)
	}
	return r.guard()
}

// read makes sense of the command line before anything is made.
func (s *sandbox) read() error {
	for _, text := range s.binds {
		b, err := enclosure.ParseBind(text)
		if err != nil {
			return err
		}
		s.named = append(s.named, b)
	}
	buf := make([]byte, unix.PathMax)
	n, err := unix.Getcwd(buf) // the kernel's word, not that of the variable PWD
	if err != nil || n < 2 || buf[0] != '/' {
		return fmt.Errorf("the working directory has no path (%v); go to one that has", err)
	}
	s.dir = string(buf[:n-1])
	return nil
}

// order is all that the inner process is told.
type order struct {
	Plan     *enclosure.Plan
	Terminal bool
	Grace    string
	Command  supervise.Command
}

// message is what the inner process tells. The first one has Ready, with the master of the agent's terminal beside it, or Failed.
type message struct {
	Ready   bool   `json:",omitempty"`
	Failed  string `json:",omitempty"`
	Log     string `json:",omitempty"`
	Stopped int    `json:",omitempty"` // the signal that stopped the agent
}

// elsewhereVariables name sockets and directories of the host that an isolated agent does not have.
var elsewhereVariables = []string{
	"DBUS_SESSION_BUS_ADDRESS", "DISPLAY", "DOCKER_HOST", "GPG_AGENT_INFO", "OLDPWD", "SSH_AGENT_PID", "SSH_AUTH_SOCK", "STY",
	"TMPDIR", "TMUX", "TMUX_PANE", "WAYLAND_DISPLAY", "XAUTHORITY", "XDG_RUNTIME_DIR",
}

// enclose starts the inner process and waits until everything in there is made. The agent does not run yet.
func (r *runner) enclose() error {
	s := r.isolate
	c, err := r.command(r.agent, without(slices.Clone(r.env.environ()), elsewhereVariables...))
	if err != nil {
		return err
	}
	c.Argv, c.Dir = r.argv, s.dir
	agent := r.engine.Policy().Agent(r.agent)
	who, _ := account(r.env.root, c.UID)
	wish := enclosure.Wish{Dir: s.dir, Home: who.Home, UID: c.UID, GID: c.GID, Binds: s.named}
	if agent.Socket != "" {
		wish.Sockets = []string{agent.Socket}
	}
	plan, err := enclosure.Draw(wish)
	if err != nil {
		return err
	}
	o := order{Plan: plan, Terminal: enclosure.HasTerminal(), Grace: r.settings.Grace.String(), Command: c}
	if err := s.start(r, o); err != nil {
		return err
	}
	return s.awaitReady()
}

// start starts the inner process: its namespaces by clone, the network's by the thread that it is started from.
func (s *sandbox) start(r *runner, o order) error {
	told, err := memoryFile(o)
	if err != nil {
		return err
	}
	defer told.Close()
	conn, theirs, err := packetPair()
	if err != nil {
		return err
	}
	defer theirs.Close()
	s.conn = conn
	s.inner, err = within(r.place, func() (*supervise.Child, error) {
		return r.supervisor.Start(supervise.Process{
			Name: "inner process", Path: selfExe, Argv: []string{"exitgate", "inner"}, Setsid: true, Namespaces: enclosure.Namespaces,
			Files: []*os.File{os.Stdin, os.Stdout, os.Stderr, theirs, told},
		})
	})
	if err != nil {
		return fmt.Errorf("%w; --isolate needs CAP_SYS_ADMIN", err)
	}
	return nil
}

// awaitReady takes the first message.
func (s *sandbox) awaitReady() error {
	first, file, err := receive(s.conn)
	switch {
	case err != nil:
		<-s.inner.Done()
		return fmt.Errorf("the inner process ended before it was ready (%s)", ended(s.inner))
	case !first.Ready:
		return fmt.Errorf("isolate: %s", first.Failed)
	}
	s.master = file
	return nil
}

// startAgent lets the inner process start the agent.
func (s *sandbox) startAgent(r *runner) (*supervise.Child, error) {
	if err := r.supervisor.Adopt(s.inner); err != nil {
		return nil, err
	}
	if s.master != nil {
		relay, err := enclosure.NewRelay(s.master)
		if err != nil {
			return nil, err
		}
		s.relay = relay
		relay.Start()
	}
	go s.listen(r)
	_, err := s.conn.Write([]byte("start"))
	return s.inner, err
}

// listen acts on what the inner process tells, until it ends.
func (s *sandbox) listen(r *runner) {
	for {
		said, _, err := receive(s.conn)
		if err != nil {
			return
		}
		if said.Log != "" {
			r.logf("inner process: %s", said.Log)
		}
		if said.Stopped != 0 {
			s.relayDo((*enclosure.Relay).Pause)
			if !r.supervisor.AgentStopped(unix.Signal(said.Stopped)) {
				s.relayDo((*enclosure.Relay).Resume)
			}
		}
	}
}

func (s *sandbox) relayDo(f func(*enclosure.Relay)) {
	if s.relay != nil {
		f(s.relay)
	}
}

// close ends what is left. The inner process ends when nobody listens to it any more, and with it all that it is the first of.
func (s *sandbox) close() {
	s.relayDo((*enclosure.Relay).Close)
	if s.conn != nil {
		s.conn.Close()
	}
	if s.inner != nil {
		<-s.inner.Done()
	}
}

// memoryFile holds v as JSON, to be read by a child.
func memoryFile(v any) (*os.File, error) {
	fd, err := unix.MemfdCreate("order", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "order")
	err = json.NewEncoder(f).Encode(v)
	if err == nil {
		_, err = f.Seek(0, 0)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// packetPair is a connection of whole messages to a child.
func packetPair() (*net.UnixConn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	theirs := os.NewFile(uintptr(fds[1]), "inner")
	conn, err := unixConn(os.NewFile(uintptr(fds[0]), "outer"))
	if err != nil {
		theirs.Close()
	}
	return conn, theirs, err
}

// unixConn takes f over.
func unixConn(f *os.File) (*net.UnixConn, error) {
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	conn, ok := c.(*net.UnixConn)
	if !ok {
		c.Close()
		return nil, errors.New("not a unix socket")
	}
	return conn, nil
}

// receive takes one message, and the file beside it.
func receive(c *net.UnixConn) (m message, file *os.File, err error) {
	buf, oob := make([]byte, 64<<10), make([]byte, unix.CmsgSpace(4))
	n, oobn, _, _, err := c.ReadMsgUnix(buf, oob)
	if err == nil {
		err = json.Unmarshal(buf[:n], &m) // of nothing, at the end: an error too
	}
	if err != nil || oobn == 0 {
		return m, nil, err
	}
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil || len(messages) != 1 {
		return m, nil, fmt.Errorf("a message with %d control messages: %v", len(messages), err)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return m, nil, fmt.Errorf("a message with %d files: %v", len(fds), err)
	}
	_ = unix.SetNonblock(fds[0], true) // so that closing it wakes a reader
	return m, os.NewFile(uintptr(fds[0]), "terminal"), nil
}
