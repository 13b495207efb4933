package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"exitgate/cmd/internal/control"
	"exitgate/cmd/internal/supervise"
	"exitgate/netns"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// selfExe is this binary, for the processes that PID 1 starts from it.
const selfExe = "/proc/self/exe"

// drainGrace is how long a stop waits for the proxy's last answers.
const drainGrace = 3 * time.Second

func newRunCommand(env *environment) *cobra.Command {
	var r runner
	var isolate bool
	var binds []string
	c := &cobra.Command{
		Use:   "run [--policy FILE] [--agent NAME] [--isolate [--bind PATH[:ro]] ...] [-- COMMAND [ARG ...]]",
		Short: "fence this network namespace, start the proxy, then COMMAND as the agent",
		Long: "Closes the network namespace, starts the proxy that holds the credentials, and runs COMMAND as the agent, which can\n" +
			"reach the proxy and nothing else. Without COMMAND it does so for processes that others start (sidecar), until a signal.\n\n" +
			isolateHelp + "\n\n" +
			"The exit code is COMMAND's; 128+n when a signal ended it; 125 when COMMAND never ran; 126 and 127 when it could not be\n" +
			"executed or was not found.",
		Example: "  exitgate run --policy /etc/exitgate/policy.yaml -- claude\n" +
			"  docker run --cap-add NET_ADMIN --security-opt no-new-privileges IMAGE exitgate run -- npm test\n" +
			"  sudo exitgate run --isolate --bind ~/.claude --policy policy.yaml -- claude",
		Args: notFlagValue,
		RunE: func(_ *cobra.Command, argv []string) error {
			r.argv = argv
			if isolate {
				r.isolate = &sandbox{binds: binds}
			} else if len(binds) > 0 {
				return ours(errors.New("--bind is for --isolate; without it the agent sees all that is here"))
			}
			return r.run(env)
		},
	}
	c.Flags().SetInterspersed(false) // what follows COMMAND is COMMAND's
	c.Flags().StringVar(&r.agent, "agent", "", "which agent COMMAND runs as (default: the first of the policy)")
	c.Flags().BoolVar(&isolate, "isolate", false, "on a plain host: run COMMAND in namespaces of its own, with the working directory and nothing of the host's to write to or talk to")
	c.Flags().StringArrayVar(&binds, "bind", nil, "with --isolate: show COMMAND this file or directory too; read-only with `PATH[:ro]`; repeatable")
	c.Flags().BoolVar(&r.hostNetwork, "host-network", false, "insist on fencing the host's own network namespace")
	return c
}

// notFlagValue refuses `--self-test false -- COMMAND`, in which false is no value of the flag's and would be run as the
// command, a program of that name being everywhere.
func notFlagValue(_ *cobra.Command, argv []string) error {
	if len(argv) > 1 && argv[1] == "--" && (argv[0] == "true" || argv[0] == "false") {
		return fmt.Errorf("%q in front of -- would be the command; give a flag its value with an equals sign, as in --self-test=%[1]s", argv[0])
	}
	return nil
}

// runner is one `exitgate run`, or attach.
type runner struct {
	gate
	agent       string
	argv        []string
	hostNetwork bool
	isolate     *sandbox        // nil: the agent shares our file system and pid namespace
	control     *control.Server // nil until it listens
	gone        <-chan struct{} // closed when there is nothing left to fence; nil: never
}

// run fences this process's own namespace, or a fresh one.
func (r *runner) run(env *environment) error {
	mode := "init"
	switch {
	case r.isolate != nil:
		mode = "isolate"
	case len(r.argv) == 0:
		mode = "sidecar"
	}
	if err := r.begin(env, mode); err != nil {
		return ours(err)
	}
	if r.isolate != nil {
		return r.runIsolated()
	}
	if err := refuseHostNetwork(r.hostNetwork); err != nil {
		return ours(err)
	}
	return r.guard()
}

// begin is for what every mode needs.
func (r *runner) begin(env *environment, mode string) error {
	// PID 1 hands small things from one goroutine to the next: an event, a name, a packet's story. With more than one
	// processor the runtime wakes a thread for each, which takes the processor from the proxy and the agent.
	runtime.GOMAXPROCS(1)
	r.env, r.settings, r.mode, r.lost = env, env.settings, mode, make(chan string, 1)
	r.openLog(env.stderr)
	if builtWithCgo {
		return errors.New("this binary was built with cgo and could not harden its proxy; build it with CGO_ENABLED=0 (`make build`)")
	}
	if os.Geteuid() != 0 {
		return fmt.Errorf("exitgate needs root in mode %s: it programs the firewall and starts processes as another uid; run it as root (in a container: no --user)", mode)
	}
	return nil
}

// guard is the start order of the design: closed before anything slow, the agent last. Whatever fails before the agent
// runs ends with code 125, and the namespace stays closed.
func (r *runner) guard() (err error) {
	// Before anything else: an early HUP or TERM must find somebody who knows what it means.
	r.supervisor = supervise.New(supervise.Options{Grace: r.settings.Grace, Hangup: r.hangup, Log: func(f string, a ...any) { r.logf(f, a...) }})
	if r.fence, err = r.lockdown(); err != nil {
		return ours(err)
	}
	if err := r.place.do(netns.RaiseLoopback); err != nil { // a fresh namespace has it down, and the listeners are there
		return ours(err)
	}
	if err := r.openLogs(len(r.argv) > 0 && r.onTerminal()); err != nil {
		return ours(err)
	}
	defer r.log.Close() // before the error is said
	if err := mayChangeIdentity(); err != nil {
		return ours(err)
	}
	code, err := r.hold(context.Background())
	r.audit.Close()
	if err != nil {
		return ours(err)
	}
	r.parting()
	return exitError{code: code}
}

// mayChangeIdentity says at once what the start of the proxy and of the agent would fail for, after patience and repeats.
func mayChangeIdentity() error {
	facts, err := supervise.Probe()
	if err != nil || facts.Identity {
		return nil // what cannot be read is tried
	}
	return errors.New("neither the proxy nor the agent can be started with an identity of its own: run with --cap-add SETUID --cap-add SETGID")
}

// hold starts the engine and the agent, and waits for the agent's end.
func (r *runner) hold(ctx context.Context) (int, error) {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	r.engine = r.newEngine()
	defer r.drain()
	defer func() {
		if r.control != nil {
			r.control.Close()
		}
	}()
	if err := r.start(ctx); err != nil {
		return 0, err
	}
	go r.engine.Run(ctx)
	if r.isolate != nil {
		defer r.isolate.close()
		if err := r.enclose(); err != nil {
			return 0, err
		}
	}
	r.dropRights()
	if r.settings.SelfTest {
		if err := r.proveFence(ctx); err != nil {
			return 0, err
		}
	}
	r.engine.HearDenied(ctx)
	var agent *supervise.Child
	if len(r.argv) > 0 {
		child, err := r.startAgent()
		if err != nil {
			return 0, err
		}
		agent = child
	}
	r.engine.MarkReady()
	go r.endWhenLost(ctx, stop)
	code := r.supervisor.Run(ctx, agent)
	if err := context.Cause(ctx); agent == nil && errors.As(err, new(lostFence)) {
		return 0, err
	}
	return code, nil
}

// lostFence is why a gate could not go on.
type lostFence string

// Error says it.
func (l lostFence) Error() string { return string(l) }

// start brings up all that the agent will need, control socket and metrics included. A signal ends it.
func (r *runner) start(ctx context.Context) error {
	starting, stop := context.WithCancel(ctx)
	defer stop()
	go func() {
		select {
		case <-r.supervisor.Interrupted():
			stop()
		case <-starting.Done():
		}
	}()
	server := &control.Server{Refuse: r.engine.IsProxy}
	if err := server.Listen(r.settings.Control); err != nil {
		return err
	}
	r.control = server
	if err := r.engine.Start(starting); err != nil {
		return err
	}
	if p := r.engine.Policy(); r.place.elsewhere() && len(p.Root)+len(p.RootLoopback) > 0 {
		r.logf("%s: `root` and `root_loopback` have no effect: root reaches nothing by itself in a namespace that is fenced from outside", p.File)
	}
	r.answer(server)
	go server.Serve(ctx)
	return r.serveMetrics(ctx)
}

// proveFence tests the fence from every agent's uid before any agent is there to use a hole.
func (r *runner) proveFence(ctx context.Context) error {
	for _, a := range r.engine.Policy().Agents {
		v, err := r.selfTest(ctx, a.Name)
		if err == nil {
			err = v.Err()
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// dropRights leaves PID 1 what its work needs from here on: its other capabilities would serve nobody but an attacker.
// What needs those, and what can be seen only while they are there, comes before.
func (r *runner) dropRights() {
	if facts, err := supervise.Probe(); err == nil {
		r.engine.Warn(facts.Gaps()...)
	}
	if p := r.engine.Policy(); !r.place.elsewhere() && len(p.DNS.Servers) == 0 {
		data, _ := os.ReadFile(filepath.Join("/", r.env.root, "etc/resolv.conf")) // the resolver has said so if it cannot be read
		if gap := resolverGap(data); gap != "" {
			r.engine.Warn(gap)
		}
	}
	for _, point := range r.settings.Loosen {
		r.engine.Warn("the agent's hardening is loosened: " + point)
	}
	if a := r.engine.Policy().Agent(r.agent); a != nil && len(r.argv) > 0 {
		supervise.ShareStreams(a.UID)
	}
	err := supervise.KeepOnly(unix.CAP_NET_ADMIN, unix.CAP_SETUID, unix.CAP_SETGID, unix.CAP_SETPCAP, unix.CAP_KILL, unix.CAP_DAC_READ_SEARCH)
	if err != nil {
		r.logf("capabilities that are not needed could not be dropped: %v", err)
	}
}

// startAgent starts COMMAND as the agent, behind everything else.
func (r *runner) startAgent() (*supervise.Child, error) {
	if r.isolate != nil {
		return r.isolate.startAgent(r)
	}
	c, err := r.command(r.agent, r.env.environ())
	if err != nil {
		return nil, err
	}
	c.Argv = r.argv
	return r.supervisor.StartAgent(c)
}

// hangup is SIGHUP's meaning.
func (r *runner) hangup() {
	if e := r.engine; e != nil {
		e.Hangup("SIGHUP")
	}
}

func (r *runner) drain() {
	ctx, cancel := context.WithTimeout(context.Background(), drainGrace)
	defer cancel()
	r.engine.Stop(ctx)
}

// endWhenLost ends the gate, and its agent, when the fence cannot be kept or has nothing left to fence.
func (r *runner) endWhenLost(ctx context.Context, stop context.CancelCauseFunc) {
	select {
	case why := <-r.lost:
		r.logf("the agent has to end: %s", why)
		stop(lostFence(why))
	case <-r.gone:
		r.notef("what was fenced has ended")
		stop(nil)
	case <-ctx.Done():
	}
}

// ours marks an error of ours before COMMAND ran.
func ours(err error) error { return exitError{code: exitOurs, err: err} }
