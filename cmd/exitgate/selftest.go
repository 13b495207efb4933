package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"exitgate/cmd/internal/probe"
	"exitgate/cmd/internal/supervise"
	"exitgate/firewall"
	"exitgate/policy"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// testTime bounds a whole self-test. One takes tens of milliseconds, on a machine that is overloaded seconds.
const testTime = 30 * time.Second

// runProbe is the main of the process that the self-test makes an agent of: tests in, results out.
func runProbe() int {
	var tests []probe.Test
	if err := json.NewDecoder(os.Stdin).Decode(&tests); err != nil {
		fmt.Fprintln(os.Stderr, "exitgate probe is started by the self-test; use `exitgate verify`")
		return exitOurs
	}
	if json.NewEncoder(os.Stdout).Encode(probe.Attempt(tests)) != nil {
		return exitOurs
	}
	return 0
}

// selfTest tries the fence from the named agent's uid, with its hardening less Landlock, which would refuse a connection
// before the fence was asked.
func (g *gate) selfTest(ctx context.Context, name string) (probe.Verdict, error) {
	ctx, cancel := context.WithTimeout(ctx, testTime)
	defer cancel()
	agent := g.engine.Policy().Agent(name)
	if agent == nil {
		return probe.Verdict{}, fmt.Errorf("the policy has no agent %q; it has %s", name, agentNames(g.engine.Policy()))
	}
	canaries, err := within(g.place, openCanaries)
	if err != nil {
		return probe.Verdict{}, err
	}
	defer canaries.close()
	tests := probe.Tests(probe.Plan{Listeners: []netip.AddrPort{agent.Listen}, Canaries: canaries.addrs, Resolvers: g.engine.Resolvers()})
	before, err := g.fence.Counters()
	if err != nil {
		return probe.Verdict{}, err
	}
	results, err := g.attempt(ctx, agent, tests)
	if err != nil {
		return probe.Verdict{}, fmt.Errorf("the self-test could not run: %w", err)
	}
	after, err := g.fence.Counters()
	if err != nil {
		return probe.Verdict{}, err
	}
	denied := after[firewall.CounterAgent].Packets - before[firewall.CounterAgent].Packets
	return probe.Judge(tests, results, probe.Seen{Reached: canaries.reached(), Denied: denied}), nil
}

// attempt runs the tests in a process that has become the agent.
func (g *gate) attempt(ctx context.Context, agent *policy.Agent, tests []probe.Test) ([]probe.Result, error) {
	c, err := g.command(agent.Name, nil)
	if err != nil {
		return nil, err
	}
	c.Argv, c.Env, c.ConnectPorts = []string{selfExe, "probe"}, nil, nil
	stdin, err := filled(tests)
	if err != nil {
		return nil, err
	}
	defer stdin.Close()
	command, err := filled(c)
	if err != nil {
		return nil, err
	}
	defer command.Close()
	answers, stdout, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer answers.Close()
	words, stderr, err := os.Pipe()
	if err != nil {
		stdout.Close()
		return nil, err
	}
	defer words.Close()
	child, err := within(g.place, func() (*supervise.Child, error) {
		return g.supervisor.Start(supervise.Process{Name: "self-test", Path: selfExe, Argv: []string{"exitgate", "stage"},
			Files: []*os.File{stdin, stdout, stderr, command}, Setsid: true})
	})
	stdout.Close()
	stderr.Close()
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = child.Signal(unix.SIGKILL) })
	defer stop()
	var results []probe.Result
	err = json.NewDecoder(io.LimitReader(answers, 1<<20)).Decode(&results)
	<-child.Done()
	if err != nil {
		why, _ := io.ReadAll(io.LimitReader(words, 4<<10))
		return nil, fmt.Errorf("the probe ended without an answer (%s): %s", ended(child), strings.TrimSpace(strings.TrimPrefix(string(why), "exitgate: ")))
	}
	return results, nil
}

// filled is a pipe that holds v as JSON, to be read by a child. It fits: a pipe takes 64 KiB without a reader.
func filled(v any) (*os.File, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer w.Close()
	data, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	if len(data) > 60<<10 {
		return nil, errors.New("too much to tell a child process")
	}
	_, err = w.Write(data)
	return r, err
}

// canaries are sockets of root's that an agent must not reach: on loopback, and on each own address.
type canaries struct {
	addrs   []netip.AddrPort
	closers []io.Closer

	mu  sync.Mutex // guards hit
	hit []string
}

func openCanaries() (*canaries, error) {
	c := &canaries{}
	for _, a := range ownAddresses() {
		l, err := net.Listen("tcp", netip.AddrPortFrom(a, 0).String())
		if err != nil {
			continue // an address that cannot be bound, such as a tentative IPv6 one, cannot be reached either
		}
		c.closers = append(c.closers, l)
		addr := l.Addr().(*net.TCPAddr).AddrPort()
		u, err := net.ListenPacket("udp", addr.String())
		if err != nil {
			continue
		}
		c.closers = append(c.closers, u)
		c.addrs = append(c.addrs, addr)
		go c.accept(l, "tcp "+addr.String())
		go c.receive(u, "udp "+addr.String())
	}
	if len(c.addrs) == 0 {
		return nil, errors.New("the self-test found no address of its own to try, not even 127.0.0.1")
	}
	return c, nil
}

func ownAddresses() []netip.Addr {
	addrs := []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("127.0.0.2"), netip.IPv6Loopback()}
	all, err := net.InterfaceAddrs()
	if err != nil {
		return addrs
	}
	for _, a := range all {
		p, err := netip.ParsePrefix(a.String())
		if err == nil && !p.Addr().IsLoopback() && !p.Addr().IsLinkLocalUnicast() {
			addrs = append(addrs, p.Addr())
		}
	}
	return addrs
}

func (c *canaries) accept(l net.Listener, name string) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		conn.Close()
		c.note(name)
	}
}

func (c *canaries) receive(u net.PacketConn, name string) {
	for buf := make([]byte, 64); ; {
		if _, _, err := u.ReadFrom(buf); err != nil {
			return
		}
		c.note(name)
	}
}

func (c *canaries) note(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.hit = append(c.hit, name)
}

func (c *canaries) reached() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.hit
}

func (c *canaries) close() {
	for _, one := range c.closers {
		one.Close()
	}
}

func newVerifyCommand(env *environment) *cobra.Command {
	var agent string
	var asJSON bool
	c := &cobra.Command{
		Use:   "verify [--agent NAME] [--json]",
		Short: "try the live fence from the agent's uid",
		Long: "Makes the attempts of the self-test at start against the running fence: what must be refused, and what must answer.\n" +
			"An attempt that could not have succeeded anyway, such as IPv6 without a route, is shown as unproven.",
		Example: "  docker exec NAME exitgate verify",
		Args:    cobra.NoArgs,
		RunE:    func(*cobra.Command, []string) error { return env.verify(agent, asJSON) },
	}
	c.Flags().StringVar(&agent, "agent", "", "which agent of the policy (default: the first)")
	c.Flags().BoolVar(&asJSON, "json", false, "the verdict, for programs")
	return c
}

func (env *environment) verify(agent string, asJSON bool) error {
	var v probe.Verdict
	if err := env.call("verify", url.Values{"agent": {agent}}, &v); err != nil {
		return err
	}
	if asJSON {
		if err := env.printJSON(v); err != nil {
			return err
		}
		return v.Err()
	}
	t := tabwriter.NewWriter(env.stdout, 0, 8, 2, ' ', 0)
	for _, l := range v.Lines {
		fmt.Fprintf(t, "%s\t%s\t%s\n", l.State, l.Name, l.Why)
	}
	fmt.Fprintf(t, "%d proven\t%d failed\t%d unproven\n", v.Proven, v.Failed, len(v.Lines)-v.Proven-v.Failed)
	if err := t.Flush(); err != nil {
		return err
	}
	return v.Err()
}
