package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"exitgate/cmd/internal/supervise"
	"exitgate/cmd/internal/wire"
	"exitgate/policy"
	"exitgate/proxy"
)

// wireFD is where PID 1 puts the proxy's end of the socketpair.
const wireFD = 3

// runProxy is the main of the proxy process: no capability, no file written, no program started, and every address
// asked of PID 1. It ends when PID 1 does.
func runProxy() int {
	conn, err := wire.FromFile(os.NewFile(wireFD, "wire"))
	if err != nil {
		fmt.Fprintln(os.Stderr, "exitgate proxy is started by `exitgate run`; it is no command of its own")
		return exitOurs
	}
	tuneMemory()
	if err := supervise.HardenProxy(); err != nil {
		fmt.Fprintf(os.Stderr, "the proxy could not give up its rights: %v\n", err)
		return exitOurs
	}
	guest := wire.NewGuest(conn)
	p := &proxyProcess{serving: make(map[wire.Listener]net.Listener), guest: guest, server: proxy.New(proxy.Options{
		Resolver: guest,
		Audit:    guest.Audit,
		Opened:   guest.Opened,
		Refresh:  guest.Refresh,
		Log:      func(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) },
	})}
	_ = guest.Serve(wire.Commands{Configure: p.configure, Stats: p.server.Stats, Drain: p.drain})
	return 0
}

// proxyProcess is what PID 1's messages act upon.
type proxyProcess struct {
	server *proxy.Server
	guest  *wire.Guest

	mu      sync.Mutex // guards serving
	serving map[wire.Listener]net.Listener
}

// configure applies one generation.
func (p *proxyProcess) configure(c *wire.Configure, loaded *policy.Policy, files []*os.File) error {
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	config := proxy.Config{Policy: loaded, Generation: c.Generation, Secrets: make(map[string]proxy.Secret), Retired: c.Retired}
	for name, s := range c.Secrets {
		config.Secrets[name] = proxy.Secret{Value: s.Value, Broken: s.Broken}
	}
	if err := p.server.Configure(config); err != nil {
		return err
	}
	return p.listen(c.Listeners, files)
}

// listen serves the listeners that are new and closes those that are gone. All of them are handed over each time.
func (p *proxyProcess) listen(names []wire.Listener, files []*os.File) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	keep := make(map[wire.Listener]bool)
	for i, name := range names {
		keep[name] = true
		if p.serving[name] != nil {
			continue
		}
		l, err := wire.Listen(files[i])
		if err != nil {
			return err
		}
		p.serving[name] = l
		go p.server.Serve(name.Agent, l)
	}
	for name, l := range p.serving {
		if !keep[name] {
			l.Close()
			delete(p.serving, name)
		}
	}
	return nil
}

// drainTime bounds how long PID 1's stop waits for answers under way; the agent that asked is gone by then.
const drainTime = 2 * time.Second

// drain ends the process when the last answer is out and the last audit line written.
func (p *proxyProcess) drain() {
	ctx, cancel := context.WithTimeout(context.Background(), drainTime)
	defer cancel()
	_ = p.server.Shutdown(ctx)
	p.guest.Flush()
	os.Exit(0)
}
