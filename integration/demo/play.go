package main

import (
	"context"
	_ "embed"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"time"

	"exitgate/integration/prober"
	"exitgate/integration/rig"

	"golang.org/x/sys/unix"
)

//go:embed agent.sh
var script string

const (
	credential = "sk-ant-api03-FAKE-demo-credential-0123456789"
	scriptPath = "/home/agent/agent.sh"
	public4    = "1.1.1.1"
	public6    = "2606:4700:4700::1111"
	tunnelled  = "secrets.attacker.example" // the name that the script's DNS queries carry out
)

const policyText = `version: 1
agents:
  - name: claude
credentials:
  - name: anthropic
    from: file:/run/secrets/anthropic
routes:
  - name: anthropic
    path: /
    upstream: https://api.anthropic.com
    credential: anthropic
    allow:
      - POST /v1/messages
    env:
      - ANTHROPIC_BASE_URL={url}
      - ANTHROPIC_AUTH_TOKEN={dummy}
egress:
  - host: registry.npmjs.org
`

// revocable is the grant that the operator takes back.
const revocable = "  - host: files.example.com\n"

// outcome is what the script said about one try: what came on the way, and what came last.
type outcome struct {
	parts []prober.Result
	prober.Result
}

type demo struct {
	binary string
	screen *screen
	world  *rig.World
	box    *rig.Box
	api    *rig.Upstream

	seen    map[string]outcome
	control map[string]outcome
	dumps   map[string]string
	looked  int // how often the control run had the world's DNS server asked
	revoked time.Time
}

func (d *demo) close() error {
	if d.world == nil {
		return nil
	}
	return d.world.Close()
}

func (d *demo) play() error {
	if err := d.setUp(); err != nil {
		return err
	}
	if err := d.withoutExitgate(); err != nil {
		return fmt.Errorf("the control run without exitgate: %w", err)
	}
	if err := d.start(); err != nil {
		return err
	}
	if err := d.follow(d.box.Stdout, d.seen); err != nil {
		return fmt.Errorf("%w; PID 1 says:\n%s", err, d.box.Stderr)
	}
	return d.leave()
}

// setUp makes the internet: a DNS server, the API, a package registry, a file host, and somebody at a public address.
func (d *demo) setUp() (err error) {
	if d.world, err = rig.NewWorld(); err != nil {
		return err
	}
	four, six := netip.MustParseAddr(public4), netip.MustParseAddr(public6)
	if err := d.world.Own(four, six); err != nil {
		return err
	}
	if _, err := d.world.EchoUDP(netip.AddrPortFrom(four, 53)); err != nil {
		return err
	}
	if d.api, err = d.world.HTTPS("api.anthropic.com", rig.Server{H1: true}); err != nil {
		return err
	}
	if _, err := d.world.HTTPS("one.one.one.one", rig.Server{Addr4: four, Addr6: six}); err != nil {
		return err
	}
	for _, name := range []string{"registry.npmjs.org", "files.example.com", "telemetry.example.com"} {
		if _, err := d.world.HTTPS(name, rig.Server{H1: true}); err != nil {
			return err
		}
	}
	d.screen.say("An internet in namespaces of its own: a DNS server, and TLS servers under a CA made a moment ago. In it a box in which exitgate is PID 1; UID 1000 there is the agent, a shell script.")
	return nil
}

func (d *demo) config() rig.Config {
	return rig.Config{
		World: d.world, Binary: d.binary, Policy: policyText + revocable,
		Args: []string{"run", "--", "/bin/sh", scriptPath},
		Env:  []string{"UPSTREAM=" + d.api.Addr4.String(), "RESOLVER=" + d.world.DNS.Addr4.String()},
		Files: map[string]rig.File{
			scriptPath:               {Data: script, Mode: 0o755},
			"/run/secrets/anthropic": {Data: credential + "\n", Mode: 0o400},
		},
	}
}

// withoutExitgate runs the direct part of the script in a box that has no fence, so that what is refused later is known to be there.
func (d *demo) withoutExitgate() error {
	cfg := d.config()
	cfg.Plain, cfg.Args, cfg.Serve = true, []string{rig.ProberPath, "serve"}, true
	box, err := rig.Start(cfg)
	if err != nil {
		return err
	}
	defer box.Close()
	if err := neighbours(box); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	out, err := box.Run(ctx, rig.Command{UID: 1000, Args: []string{"/bin/sh", scriptPath, "direct"}, Env: cfg.Env})
	if err != nil {
		return err
	}
	d.control = map[string]outcome{}
	for line := range strings.Lines(out.Stdout) {
		if err := d.hear(strings.TrimSpace(line), d.control); err != nil {
			return err
		}
	}
	d.looked = d.world.DNS.Count(tunnelled)
	for _, w := range directWays {
		if r, ok := d.control[w.name]; !ok || !r.OK() {
			return fmt.Errorf("%s does not work even there: %s%s", w.what, r, out.Stderr)
		}
	}
	return nil
}

// neighbours starts services of root on the box's loopback, which an agent might find useful.
func neighbours(b *rig.Box) error {
	for _, at := range []string{"127.0.0.1:9999", "[::1]:9999"} {
		go b.Probe(0, prober.Probe{Op: "listen", Address: at, Timeout: 30 * time.Second})
		if err := eventually(func() bool { return listens(b, at) }); err != nil {
			return fmt.Errorf("root's listener at %s: %w", at, err)
		}
	}
	return nil
}

// listens looks at the kernel's table rather than connecting: in a fenced box root may not connect either.
func listens(b *rig.Box, at string) bool {
	file := "/proc/net/tcp"
	if strings.HasPrefix(at, "[") {
		file = "/proc/net/tcp6"
	}
	r, err := b.Probe(0, prober.Probe{Op: "read", Address: file})
	return err == nil && strings.Contains(string(r.Data), ":270F ") // port 9999
}

func eventually(f func() bool) error {
	if !rig.Eventually(10*time.Second, f) {
		return errors.New("not within ten seconds")
	}
	return nil
}

func (d *demo) start() (err error) {
	d.box, err = rig.Start(d.config())
	return err
}

// follow listens to the script until its end, and does what it pauses for.
func (d *demo) follow(out *rig.Stream, into map[string]outcome) error {
	for from := 0; ; from++ {
		line, at, err := out.Wait(from, 15*time.Second, func(l string) bool { return strings.HasPrefix(l, "::") })
		if err != nil {
			return fmt.Errorf("listening to the agent: %w", err)
		}
		from = at
		if line == "::end" {
			d.tellRevocation()
			return nil
		}
		if what, ok := strings.CutPrefix(line, "::pause "); ok {
			if err := d.chapter(what); err != nil {
				return err
			}
			if _, err := d.box.Stdin().WriteString("\n"); err != nil {
				return err
			}
			continue
		}
		if err := d.hear(line, into); err != nil {
			return err
		}
		if err := d.revokeWhenReady(); err != nil {
			return err
		}
	}
}

// hear takes one line of the script: "::result NAME JSON" or "::dump NAME BASE64".
func (d *demo) hear(line string, into map[string]outcome) error {
	f := strings.SplitN(line, " ", 3)
	if len(f) < 3 {
		return fmt.Errorf("the agent said %q", line)
	}
	if f[0] == "::dump" {
		b, err := base64.StdEncoding.DecodeString(f[2])
		d.dumps[f[1]] = string(b)
		return err
	}
	var r prober.Result
	if err := json.Unmarshal([]byte(f[2]), &r); err != nil {
		return fmt.Errorf("the agent said %q: %w", line, err)
	}
	o := into[f[1]]
	o.Result = r
	if r.More {
		o.parts = append(o.parts, r)
	}
	into[f[1]] = o
	return nil
}

// revokeWhenReady takes a host out of the policy once both flows are up.
func (d *demo) revokeWhenReady() error {
	if !d.revoked.IsZero() || len(d.seen["revoked"].parts) == 0 || len(d.seen["kept"].parts) == 0 {
		return nil
	}
	time.Sleep(300 * time.Millisecond) // let them exchange something
	if err := d.box.SetPolicy(policyText); err != nil {
		return err
	}
	d.revoked = time.Now()
	return d.box.Signal(unix.SIGHUP)
}

// leave waits for PID 1 to end with the script's exit code.
func (d *demo) leave() error {
	code, err := d.box.Wait(15 * time.Second)
	if err != nil {
		return err
	}
	d.screen.check(code == 0, "PID 1's exit code", "the script's", fmt.Sprint(code))
	if code != 0 {
		fmt.Fprintln(os.Stderr, d.box.Stderr)
	}
	return nil
}
