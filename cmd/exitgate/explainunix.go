package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"exitgate/cmd/internal/supervise"
	"exitgate/policy"

	"golang.org/x/sys/unix"
)

// socketPath is the path of a question about a unix socket.
func (q question) socketPath() (string, bool) {
	path, _ := strings.CutPrefix(q.target, "unix:")
	return filepath.Clean(path), strings.HasPrefix(path, "/") && q.method == ""
}

// onListener reports whether a path stands for itself on the agent's listener: with a method in front it is what audit
// lines and refusals show, and no socket's.
func (q question) onListener() bool { return q.method != "" && strings.HasPrefix(q.target, "/") }

// reach tells why an agent may not connect to a path; nil: it may.
type reach func(a *policy.Agent, path string) error

// explainSocket answers for a unix socket. The policy decides about its own; about any other the file's permissions do,
// and only a running gate can look at those.
func explainSocket(p *policy.Policy, agent *policy.Agent, path string, may reach) (answer, error) {
	d := policy.Decision{Rule: "permissions", At: policy.Position{File: p.File}}
	owner := socketOwner(p, path)
	switch {
	case owner != nil && owner != agent:
		d.Rule, d.At = "listener", owner.At
		d.Reason = fmt.Sprintf("it is the socket of agent %s, which takes nobody but uid %d", owner.Name, owner.UID)
		d.Mend = "to give this agent one write `socket: /run/exitgate/" + agent.Name + ".sock` in it"
		if agent.Socket != "" {
			d.Mend = "this agent's own is " + agent.Socket
		}
	case owner != nil:
		d.Allow, d.Rule, d.At, d.Reason = true, "listener", agent.At, "it is the agent's own way to the proxy, as "+agent.Listen.String()+" is"
	case may == nil:
		return answer{}, fmt.Errorf("%s is no socket of the policy's; its permissions decide: ask the running gate (without a policy file), where the file is", path)
	default:
		d.Allow, d.Reason, d.Mend = true, "a path is no address of the network: the fence has no rule for it, and its permissions let the agent in",
			"to deny it take the permission away (chmod 0600, or a directory that the agent may not enter), or run the agent with --isolate"
	}
	if d.Allow && may != nil {
		if err := may(agent, path); err != nil {
			d.Allow, d.Reason, d.Mend = false, err.Error(), "what is offered there, and to whom, is for the program that listens; the policy cannot open it"
		}
	}
	a := newAnswer(agent, policy.RoadPacket, d)
	a.Road, a.Asked = "unix", "unix "+path
	a.Via = fmt.Sprintf("connected to by uid %d itself", agent.UID)
	return a, nil
}

func socketOwner(p *policy.Policy, path string) *policy.Agent {
	for i := range p.Agents {
		if p.Agents[i].Socket == path {
			return &p.Agents[i]
		}
	}
	return nil
}

// mayConnect asks the kernel, as the agent.
func (g *gate) mayConnect(a *policy.Agent, path string) error {
	if g.place.elsewhere() {
		return errors.New("the agent's files are not those that the gate sees")
	}
	if st, err := os.Stat(path); err != nil {
		return inner(err)
	} else if st.Mode().Type() != os.ModeSocket {
		return errors.New("it is no socket")
	}
	if err := accessAs(g.identity(a), path); err != nil {
		return fmt.Errorf("its permissions keep uid %d out (%w)", a.UID, err)
	}
	return nil
}

// accessAs tells whether who may write to path, which is what connect(2) asks for. A file system's uid of a thread that
// is not root's brings no capability over files; a thread so used is not given back to the runtime.
func accessAs(who supervise.Identity, path string) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if _, _, errno := unix.RawSyscall(unix.SYS_SETGROUPS, 0, 0, 0); errno != 0 {
			result <- errno
			return
		}
		_ = unix.Setfsgid(int(who.GID))
		_ = unix.Setfsuid(int(who.UID))
		result <- unix.Faccessat(unix.AT_FDCWD, path, unix.W_OK, unix.AT_EACCESS)
	}()
	return <-result
}
