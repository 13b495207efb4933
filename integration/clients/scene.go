package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"exitgate/integration/rig"
)

// Paths in the box at which a run leaves what the judge reads.
const (
	agentHome = "/home/agent"
	envPath   = "/home/agent/.environment"
	callsPath = "/home/agent/.calls"
	auditPath = "/var/log/audit.jsonl"
	wrapPath  = "/home/agent/.wrap"
	listener  = "127.0.0.1:8080"
)

// wrap keeps the environment and every address that the program, or a child of it, connects or sends to.
const wrap = "#!/bin/sh\ncd " + agentHome + " || exit\nenv >" + envPath + "\nexec strace --seccomp-bpf -f -qq -s 256 -e trace=connect,sendto,sendmsg,sendmmsg -o " + callsPath + ` "$@"` + "\n"

// patience is far more than any of them takes; a client that waits for a person or retries for ever ends here.
const patience = 2 * time.Minute

// scene is a mode being tried.
type scene struct {
	mode
	world     *rig.World
	box       *rig.Box
	upstreams map[string]*rig.Upstream
	outside   *rig.Upstream // stands for every name that nothing else stands for
	out       string        // what the program wrote
	code      int
	env       map[string]string
	calls     []call
	audit     []decision
	cleanup   []func() error
}

// fill plays a mode and judges it.
func (r *row) fill(m mode, binary string, verbose bool) {
	start := time.Now()
	s := &scene{mode: m, upstreams: map[string]*rig.Upstream{}}
	r.err = s.play(binary)
	if verbose || r.err != nil {
		s.dump()
	}
	r.took = time.Since(start)
	r.requests, r.denied, r.reached = s.requests(), s.refused(), s.reached()
	if s.world != nil {
		r.err = errors.Join(r.err, s.world.Close())
	}
	for _, f := range s.cleanup {
		r.err = errors.Join(r.err, f())
	}
}

func (s *scene) play(binary string) (err error) {
	if s.world, err = rig.NewWorld(); err != nil {
		return err
	}
	if s.outside, err = s.world.HTTPS("outside.example", rig.Server{}); err != nil {
		return err
	}
	s.world.DNS.SetOthers(5*time.Minute, s.outside.Addr4, s.outside.Addr6)
	if err := s.stand(s); err != nil {
		return err
	}
	if s.box, err = rig.Start(s.config(binary)); err != nil {
		return err
	}
	if err := s.perform(); err != nil {
		return err
	}
	if err := s.collect(); err != nil {
		return err
	}
	return errors.Join(s.judgeCommon(), s.judge(s))
}

// serve adds a service.
func (s *scene) serve(name string, server rig.Server) error {
	u, err := s.world.HTTPS(name, server)
	s.upstreams[name] = u
	return err
}

func (s *scene) config(binary string) rig.Config {
	cfg := rig.Config{
		World: s.world, Binary: binary, Policy: s.policy, Place: s.place, Terminal: s.talk != nil, Hosts: "127.0.1.1 box\n",
		Args: append([]string{"run", "--", wrapPath}, s.argv...),
		Env:  append([]string{"EXITGATE_AUDIT=file:" + auditPath, "TERM=xterm-256color", "LANG=C.UTF-8", "NODE_EXTRA_CA_CERTS=/etc/ssl/certs/ca-certificates.crt"}, s.mode.env...),
		Files: map[string]rig.File{
			wrapPath: {Data: wrap, Mode: 0o755},
			// A child of the agent's might read them; a real image has them.
			"/etc/passwd": {Data: "root:x:0:0:root:/root:/bin/sh\n_apt:x:42:65534::/nonexistent:/usr/sbin/nologin\nagent:x:1000:1000::/home/agent:/bin/bash\nnobody:x:65534:65534::/:/bin/false\n"},
		},
	}
	if s.root { // the agent waits for what root does
		cfg.Args, cfg.Serve = []string{"run", "--", rig.ProberPath, "serve"}, true
	}
	if s.open {
		cfg.Plain, cfg.Args, cfg.Serve = true, []string{rig.ProberPath, "serve"}, true
	}
	for name, value := range s.secrets {
		cfg.Files["/run/secrets/"+name] = rig.File{Data: value + "\n", Mode: 0o400}
	}
	for path, f := range s.files {
		cfg.Files[path] = f
	}
	return cfg
}

// perform runs the program to its end.
func (s *scene) perform() (err error) {
	if s.root || s.open {
		return s.beside()
	}
	if s.talk == nil {
		s.box.Stdin().Close() // some wait for it
	} else {
		if err := s.talk(s); err != nil {
			return fmt.Errorf("%w; the screen shows %q", err, tail(plain(s.box.Terminal.Screen()), 2000))
		}
	}
	s.code, err = s.box.Wait(patience)
	if s.talk != nil {
		s.out = s.box.Terminal.Screen()
	} else {
		s.out = s.box.Stdout.String() + s.box.Stderr.String()
	}
	return err
}

// beside runs the program next to the prober, as root or without a fence.
func (s *scene) beside() error {
	if err := s.box.Agent().Ready(patience); err != nil {
		return err
	}
	c := rig.Command{UID: 1000, Args: append([]string{wrapPath}, s.argv...), Env: s.config("").Env}
	c.Env = append(c.Env, "HOME="+agentHome, "USER=agent", "SHELL=/bin/sh")
	if s.root {
		c.UID, c.Args = 0, s.argv
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	out, err := s.box.Run(ctx, c)
	s.out, s.code = out.Stdout+out.Stderr, out.Code
	return err
}

func (s *scene) collect() error {
	if s.root {
		return s.readAudit()
	}
	data, err := os.ReadFile(s.box.Path(envPath))
	if err != nil {
		return fmt.Errorf("the program never ran: %w; output: %s", err, tail(s.out, 2000))
	}
	s.env = map[string]string{}
	for line := range strings.Lines(string(data)) {
		name, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
		s.env[name] = value
	}
	calls, err := os.ReadFile(s.box.Path(callsPath))
	if err != nil {
		return err
	}
	s.calls = parseCalls(string(calls))
	if s.open {
		return nil
	}
	return s.readAudit()
}

func (s *scene) requests() int {
	n := 0
	for _, u := range s.upstreams {
		n += len(u.Seen())
	}
	return n
}

func tail(text string, n int) string {
	if len(text) > n {
		return "... " + text[len(text)-n:]
	}
	return text
}

// dump shows what there is to see of a run, for whoever has to mend something.
func (s *scene) dump() {
	fmt.Fprintf(os.Stderr, "---- %s: exit %d, output:\n%s\n", s.name, s.code, tail(plain(s.out), 6000))
	if s.box != nil && s.box.Terminal != nil {
		fmt.Fprintf(os.Stderr, "---- screen:\n%s\n", tail(plain(s.box.Terminal.Screen()), 3000))
	}
	for _, d := range s.audit {
		fmt.Fprintln(os.Stderr, "audit:", d)
	}
	for name, u := range s.upstreams {
		for _, seen := range u.Seen() {
			fmt.Fprintf(os.Stderr, "%s got %s %s (%d bytes)\n", name, seen.Method, seen.URI, len(seen.Body))
		}
	}
	if s.outside != nil {
		for _, seen := range s.outside.Seen() {
			fmt.Fprintf(os.Stderr, "OUTSIDE got %s %s%s\n", seen.Method, seen.Host, seen.URI)
		}
	}
}
