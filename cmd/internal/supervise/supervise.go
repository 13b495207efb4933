// Package supervise is what a container's first process owes the kernel and its children: it starts them, waits
// for them, forwards signals to them, lends them its terminal, and takes every privilege from the agent and from the proxy.
//
//	s := supervise.New(supervise.Options{Grace: 10 * time.Second, Hangup: reload, Log: log})
//	proxy, err := s.Start(supervise.Process{Path: "/proc/self/exe", Argv: []string{"exitgate", "proxy"}, ...})
//	agent, err := s.StartAgent(supervise.Command{Argv: argv, Env: env, Identity: supervise.Identity{UID: 1000, GID: 1000}})
//	os.Exit(s.Run(ctx, agent))
//
// The agent goes through `exitgate stage`, whose main is Stage: a process of its own that hardens itself as the agent and
// becomes it by execve. `exitgate exec` calls Become itself. The proxy calls HardenProxy before it reads its first byte.
//
// What this does not do: nothing here knows a policy, a firewall or a proxy. Nothing else in a process that has a
// Supervisor may wait for children: os/exec would lose statuses to it, and it to os/exec.
package supervise

import (
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Identity is who the agent is. It has no supplementary groups.
type Identity struct {
	UID uint32 `json:"uid"`
	GID uint32 `json:"gid"`
}

// Command is an agent to become.
type Command struct {
	Argv Words  `json:"argv"` // Argv[0] is looked up in the PATH of Env as the agent
	Env  Words  `json:"env"`
	Dir  string `json:"dir,omitempty"` // "": the caller's, even one the agent cannot read
	Identity
	Loosen       []string `json:"loosen,omitempty"` // names of hardening points to leave out
	ConnectPorts []uint16 `json:"connect_ports"`    // Landlock: TCP connect only to these; nil: no restriction
}

// Options of a Supervisor.
type Options struct {
	Grace  time.Duration        // between TERM and KILL for what an agent leaves behind
	Hangup func()               // called for a HUP that is not a terminal's; must not block; may be nil
	Log    func(string, ...any) // printf; must not block; nil: silence
	// Stopped is told of the signal that stopped the agent, where another process decides what follows: whoever holds the
	// terminal that a shell gave us. It must not block. nil: this Supervisor decides.
	Stopped func(sig unix.Signal)
}

// Process is a program to start. An agent's is StartAgent's to fill in.
type Process struct {
	Name       string // for the log
	Path       string
	Argv, Env  []string   // Env is all the environment it gets
	Files      []*os.File // descriptors 0, 1, 2, ...; nil entries are /dev/null. Their modes stay as they are
	Setsid     bool       // own session: never the terminal
	NewGroup   bool       // own process group
	Namespaces uintptr    // CLONE_NEW* of those it is to have for itself
	NoCaps     bool       // its bounding set is empty, so that uid 0 gives it no capability; without CAP_SETPCAP it gets ours
	GID        uint32     // its group, and no others; 0: what this process has
	Foreground bool       // own process group, and the terminal's foreground one where there is a terminal and it is ours to lend
}
