package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"

	"exitgate/cmd/internal/audit"
	"exitgate/cmd/internal/caller"
	"exitgate/cmd/internal/control"
	"exitgate/cmd/internal/engine"
	"exitgate/cmd/internal/secrets"
	"exitgate/cmd/internal/supervise"
	"exitgate/firewall"
	"exitgate/policy"

	"golang.org/x/sys/unix"
)

// gate is one running exitgate: the fence, the engine, and the processes under it.
type gate struct {
	env        *environment
	settings   *settings
	mode       string
	place      place
	supervisor *supervise.Supervisor
	fence      *firewall.Writer
	engine     *engine.Engine
	audit      *audit.Log
	log        *logWriter
	report     ownReport
	sink       string                           // where the audit goes, as the setting has it
	logf       func(format string, args ...any) // what went wrong, or may
	notef      func(format string, args ...any) // what came to pass
	lost       chan string                      // why the fence cannot be kept
	owners     sync.Map                         // who agents are, by uid
}

// lockdown closes the namespace: the whole ruleset with empty sets, in one batch, read back. Nothing slow comes before
// it, and the netlink connection is the first descriptor that this process opens (google/nftables reads it with
// select(2), which fails from descriptor 1024 on).
func (g *gate) lockdown() (*firewall.Writer, error) {
	kernel, err := within(g.place, firewall.OpenNetlink)
	if err != nil {
		return nil, err
	}
	fence := firewall.NewWriter(kernel)
	if err := fence.Install(firewall.Contents{}); err != nil {
		return nil, err
	}
	return fence, nil
}

// newEngine wires the engine to the processes, files and namespaces of this machine.
func (g *gate) newEngine() *engine.Engine {
	find := g.finder()
	return engine.New(engine.Options{
		Mode:       g.mode,
		PolicyFile: g.settings.Policy,
		ReadPolicy: g.env.readPolicy,
		Fence:      g.fence,
		Secrets:    secrets.Options{Output: g.helper, Log: g.logf, Note: g.notef, Environ: g.env.environ},
		Audit:      g.audit.Write,
		Spawn:      g.spawnProxy,
		Listen:     g.listen,
		Holder:     g.holder,
		Caller: func(client, server netip.AddrPort, a policy.Agent) (int, string) {
			return find(caller.Tuple{Client: client, Server: server}, a)
		},
		Program: func(pid int, a policy.Agent) string { return caller.Program(pid, g.owner(a)) },
		DenyLog: func() (*firewall.DenyLog, error) { return within(g.place, firewall.OpenDenyLog) },
		Sender: func(d firewall.Denied, a policy.Agent) (int, string) {
			return find(caller.Tuple{Client: d.Src, Server: netip.AddrPortFrom(d.Addr, d.Port), UDP: d.Proto == unix.IPPROTO_UDP}, a)
		},
		Log:        g.logf,
		Note:       g.notef,
		Lost:       func(why string) { g.lost <- why },
		FileRoot:   g.env.root,
		InReach:    g.mode != "attach", // whose agents have a file system of their own
		Follow:     g.settings.Watch,
		Drift:      g.settings.DriftInterval,
		DirectDial: g.place.elsewhere(),
	})
}

// finder answers who holds a socket of an agent's. A kernel without sock_diag leaves it unknown.
func (g *gate) finder() func(caller.Tuple, policy.Agent) (int, string) {
	finder, err := within(g.place, caller.New)
	if err != nil {
		g.logf("the audit will not name processes: %v", err)
		return func(caller.Tuple, policy.Agent) (int, string) { return 0, caller.Unknown }
	}
	return func(t caller.Tuple, a policy.Agent) (int, string) { return finder.Find(t, g.owner(a)) }
}

// owner is who an agent was when it was first asked about, not a look into passwd for each connection.
func (g *gate) owner(a policy.Agent) caller.Owner {
	o, ok := g.owners.Load(a.UID)
	if !ok {
		o, _ = g.owners.LoadOrStore(a.UID, caller.Owner(g.identity(&a)))
	}
	return o.(caller.Owner)
}

// helper runs a credential's command under the one reaper. What it prints to stderr may hold the secret: not logged.
func (g *gate) helper(ctx context.Context, argv, env []string, max int) ([]byte, error) {
	return supervise.Output(ctx, g.supervisor, argv, env, max)
}

// listen opens an agent's listener in the fenced namespace: its loopback address, or where addr is not valid its unix
// socket, which anybody may connect to since SO_PEERCRED decides.
func (g *gate) listen(a policy.Agent, addr netip.AddrPort) (net.Listener, error) {
	if !addr.IsValid() {
		return control.ListenUnix(a.Socket, 0o666)
	}
	var lc net.ListenConfig
	// Go listens on MPTCP sockets by default. Their subflows send packets that carry no owner, which a rule by uid cannot
	// match.
	lc.SetMultipathTCP(false)
	return within(g.place, func() (net.Listener, error) {
		return lc.Listen(context.Background(), "tcp", addr.String())
	})
}

// holder says whose listener occupies an address in the fenced namespace.
func (g *gate) holder(addr netip.AddrPort) string {
	h, err := within(g.place, func() (caller.Holder, error) { return caller.FindHolder(addr) })
	if err != nil {
		return ""
	}
	return h.String()
}

// proxyProc is the proxy as the engine sees it.
type proxyProc struct{ *supervise.Child }

func (p proxyProc) PID() int       { return p.Child.PID }
func (p proxyProc) Kill()          { _ = p.Signal(unix.SIGKILL) } // fails only where it has ended already
func (p proxyProc) String() string { return ended(p.Child) }

// ended says how a process ended.
func ended(c *supervise.Child) string {
	if st := c.Status(); st.Signal != 0 {
		return "killed by " + unix.SignalName(st.Signal)
	}
	return fmt.Sprintf("exit code %d", c.Status().Code)
}

// proxyVariables are all that the proxy inherits: where the system's CA certificates are, and the Go runtime's knobs.
var proxyVariables = []string{"SSL_CERT_FILE", "SSL_CERT_DIR", "GOMAXPROCS", "GOMEMLIMIT", "GOGC", "TZ"}

// spawnProxy starts the proxy process in a session of its own, with nothing of the terminal: null, null, and for its
// last words a pipe to the log.
func (g *gate) spawnProxy(guest *os.File) (engine.Process, error) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	words, stderr, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer stderr.Close()
	var env []string
	for _, name := range proxyVariables {
		if v := g.env.getenv(name); v != "" {
			env = append(env, name+"="+v)
		}
	}
	child, err := g.supervisor.Start(supervise.Process{
		Name: "proxy", Path: selfExe, Argv: []string{"exitgate", "proxy"}, Env: env,
		Files: []*os.File{null, null, stderr, guest}, Setsid: true, NoCaps: true, GID: firewall.ProxyGID,
	})
	if err != nil {
		words.Close()
		return nil, fmt.Errorf("the proxy could not be started in its group, %d: %w; run with --cap-add SETGID, in a user namespace that maps it", firewall.ProxyGID, err)
	}
	go g.relay(words)
	return proxyProc{child}, nil
}

// maxWords bounds what a dying proxy may write to the log: a Go panic's first lines say enough.
const maxWords = 40

// relay logs what the proxy writes to stderr, with every credential taken out.
func (g *gate) relay(words *os.File) {
	defer words.Close()
	lines := bufio.NewScanner(words)
	for n := 0; lines.Scan(); n++ {
		if line := strings.TrimSpace(lines.Text()); n < maxWords && line != "" {
			g.logf("proxy: %s", g.scrub(line))
		}
	}
}

// scrub takes every credential out of a text of ours.
func (g *gate) scrub(text string) string { return string(g.scrubLine([]byte(text))) }

// scrubLine is the last look at a line before anybody sees it. Nothing of ours writes a credential; an upstream's or an
// agent's words that are quoted somewhere may.
func (g *gate) scrubLine(line []byte) []byte {
	if g.engine == nil {
		return line
	}
	for _, v := range g.engine.SecretValues() {
		if v != "" {
			line = bytes.ReplaceAll(line, []byte(v), bytes.Repeat([]byte("*"), len(v)))
		}
	}
	return line
}
