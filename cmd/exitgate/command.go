package main

import (
	"fmt"
	"strings"

	"exitgate/cmd/internal/supervise"
	"exitgate/policy"
)

// command is how a process becomes the named agent: its ids, and the environment that the policy gives it.
// Argv and Dir are the caller's to fill in. It is the one source of that for run, exec and env.
func (g *gate) command(name string, inherited []string) (supervise.Command, error) {
	p := g.engine.Policy()
	agent := p.Agent(name)
	if agent == nil {
		return supervise.Command{}, fmt.Errorf("the policy has no agent %q; it has %s", name, agentNames(p))
	}
	who, _ := account(g.env.root, agent.UID)
	c := supervise.Command{
		Env:      p.Environ(agent.Name, inherited, who.User, g.engine.SecretValues()),
		Identity: g.identity(agent),
		Loosen:   g.settings.Loosen,
	}
	// A second fence, which would hold without nftables. Not the default: a connect that Landlock refuses sends no packet,
	// so nobody would learn what the agent tried.
	if g.settings.StrictConnect && agent.Loopback == policy.LoopbackDeny {
		c.ConnectPorts = []uint16{agent.Listen.Port()}
	}
	return c, nil
}

func agentNames(p *policy.Policy) string {
	var names []string
	for _, a := range p.Agents {
		names = append(names, fmt.Sprintf("%q", a.Name))
	}
	return strings.Join(names, ", ")
}

// additions are the variables that exitgate adds, for a process that somebody else starts.
func (g *gate) additions(name string) ([]string, error) {
	p := g.engine.Policy()
	agent := p.Agent(name)
	if agent == nil {
		return nil, fmt.Errorf("the policy has no agent %q; it has %s", name, agentNames(p))
	}
	who, known := account(g.env.root, agent.UID)
	added := p.Environ(agent.Name, nil, who.User, nil)
	if !known { // the other container may know better
		added = without(added, "HOME", "USER", "LOGNAME", "SHELL")
	}
	return added, nil
}

// identity is the agent's uid and gid: by the policy, else its primary group by passwd, else the uid's number.
func (g *gate) identity(a *policy.Agent) supervise.Identity {
	if a.GID != nil {
		return supervise.Identity{UID: a.UID, GID: *a.GID}
	}
	who, _ := account(g.env.root, a.UID)
	return supervise.Identity{UID: a.UID, GID: who.gid}
}
