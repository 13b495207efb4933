package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"exitgate/cmd/internal/control"
	"exitgate/cmd/internal/engine"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// policyAnnotation names a container's policy file, where the command line does not.
const policyAnnotation = "exitgate.policy"

// hookTime bounds how long a container's start waits for its fence. It takes a tenth of a second; an engine's own limit
// may be shorter.
const hookTime = 30 * time.Second

func newHookCommand(env *environment) *cobra.Command {
	return &cobra.Command{
		Use:   "hook [--policy FILE]",
		Short: "as an OCI createRuntime hook: fence a container before its first instruction",
		Long: "Reads the container's state from standard input, as a runtime gives it to a hook of the stage createRuntime, and starts\n" +
			"`exitgate attach` for it. Returns 0 once fence and listeners are up; the attach process goes on until the container ends.\n" +
			"Its log is /run/exitgate/ID.log, its control socket /run/exitgate/ID.sock. Whatever fails: code 1 and one line, and the\n" +
			"runtime does not start the container.\n\n" +
			"The policy is that of --policy, else of the container's annotation " + policyAnnotation + " (whoever may set that chooses among the\n" +
			"files of this machine), else the default one.",
		Example: "  podman run --hooks-dir /etc/containers/oci/hooks.d --annotation exitgate.policy=/etc/exitgate/agent.yaml --network none IMAGE\n" +
			"  {\"hooks\": {\"createRuntime\": [{\"path\": \"/usr/local/bin/exitgate\", \"args\": [\"exitgate\", \"hook\"]}]}}    # config.json: runs exitgate hook",
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return env.hook(c.Flags()) },
	}
}

// containerState is what the runtime specification calls State, as far as it matters here.
type containerState struct {
	ID          string            `json:"id"`
	PID         int               `json:"pid"`
	Annotations map[string]string `json:"annotations"`
}

// readState takes the state of a container that exists and does not run yet.
func readState(r io.Reader) (s containerState, err error) {
	data, err := io.ReadAll(io.LimitReader(r, 1<<20))
	if err == nil {
		err = json.Unmarshal(data, &s)
	}
	switch {
	case err != nil:
		return s, fmt.Errorf("standard input holds no container's state: %w; the hook is started by a container runtime", err)
	case s.PID <= 0:
		return s, errors.New("the container's state has no pid; use the hook in the stage createRuntime")
	}
	return s, nil
}

// hook attaches to a container and returns when that stands.
func (env *environment) hook(flags *pflag.FlagSet) error {
	s, err := readState(env.stdin)
	if err != nil {
		return err
	}
	a, err := env.attachment(s, flags)
	if err != nil {
		return err
	}
	if err := unanswered(a.control); err != nil { // whose "ready" would be taken for ours
		return err
	}
	if err := a.start(); err != nil {
		return err
	}
	if err := a.await(); err != nil {
		_ = a.process.Process.Kill()
		return fmt.Errorf("container %s is not fenced: %w (log: %s)", s.ID, err, a.log.Name())
	}
	_, err = fmt.Fprintf(env.stdout, "container %s is fenced; log: %s; the other commands take --control %s\n", s.ID, a.log.Name(), a.control)
	return err
}

// attachment is a detached `exitgate attach`.
type attachment struct {
	args    []string
	environ []string
	control string
	log     *os.File
	from    int64 // where in the log this one begins
	process *exec.Cmd
	ended   chan struct{}
}

// attachment makes the command line: what the hook was told by flags, and what follows from the container.
func (env *environment) attachment(s containerState, flags *pflag.FlagSet) (*attachment, error) {
	control, err := targetFile(s.ID, ".sock")
	if err != nil {
		return nil, err
	}
	log, err := targetFile(s.ID, ".log")
	if err != nil {
		return nil, err
	}
	a := &attachment{control: control, environ: env.environ(), ended: make(chan struct{}), args: []string{"exitgate", "attach", "--pid", strconv.Itoa(s.PID)}}
	flags.Visit(func(f *pflag.Flag) { a.args = append(a.args, "--"+f.Name+"="+f.Value.String()) })
	if env.settings.isSet("control") {
		a.control = env.settings.Control
	} else {
		a.args = append(a.args, "--control="+a.control)
	}
	if policy := s.Annotations[policyAnnotation]; policy != "" && !env.settings.isSet("policy") {
		if !filepath.IsAbs(policy) {
			return nil, fmt.Errorf("annotation %s=%q is not a whole path; write /etc/exitgate/NAME.yaml", policyAnnotation, policy)
		}
		a.args = append(a.args, "--policy="+policy)
	}
	if err := os.MkdirAll(runDir, 0o711); err != nil {
		return nil, err
	}
	a.log, err = os.OpenFile(log, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600)
	if err == nil {
		a.from, err = a.log.Seek(0, io.SeekEnd)
	}
	return a, err
}

// start starts the process in a session of its own, with nothing of the runtime's but the environment.
func (a *attachment) start() error {
	a.process = &exec.Cmd{Path: selfExe, Args: a.args, Env: a.environ, Dir: "/", Stdout: a.log, Stderr: a.log,
		SysProcAttr: &syscall.SysProcAttr{Setsid: true}}
	if err := a.process.Start(); err != nil {
		return err
	}
	go func() {
		_ = a.process.Wait()
		close(a.ended)
	}()
	return nil
}

// await returns when the fence stands, or says why it does not.
func (a *attachment) await() error {
	ctx, stop := context.WithTimeout(context.Background(), hookTime)
	defer stop()
	for {
		var s engine.Status
		err := control.Client{Path: a.control}.Call(ctx, "status", url.Values{"wait": {"ready"}}, &s)
		select {
		case <-a.ended:
			return errors.New(a.lastWords())
		default:
		}
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("not within %v", hookTime)
		case <-a.ended:
		case <-time.After(startPoll):
		}
	}
}

// lastWords is the last line of the process that is no audit.
func (a *attachment) lastWords() string {
	data, _ := io.ReadAll(io.NewSectionReader(a.log, a.from, 1<<20))
	lines := bytes.Split(bytes.TrimSpace(data), []byte("\n"))
	words := string(bytes.TrimPrefix(lines[len(lines)-1], []byte("exitgate: ")))
	if strings.TrimSpace(words) == "" {
		return a.process.ProcessState.String()
	}
	return words
}
