package attack

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"exitgate/integration/prober"
	"exitgate/integration/rig"

	"golang.org/x/sys/unix"
)

// disturbance is something that happens to a running gate.
type disturbance struct {
	family, name string
	do           func(s *scene) error
	route        string // what the agent's route answers then
}

func (s *scene) reload(text string, code int) error {
	if err := s.fenced.SetPolicy(text); err != nil {
		return err
	}
	out, err := s.fenced.Exitgate("reload")
	if err == nil && out.Code != code {
		err = fmt.Errorf("reload: exit %d, %s", out.Code, out.Stderr)
	}
	return err
}

// asRootDo runs a script in the fenced box as root.
func (s *scene) asRootDo(text string) error {
	r := s.fenced.agents["root"].Do(prober.Probe{Op: "shell", Data: []byte(text)})
	if r.Status != 0 || !r.OK() {
		return fmt.Errorf("%s: %s %s", text, r, r.Data)
	}
	return nil
}

func (s *scene) hangUp(times int) error {
	for range times {
		if err := s.fenced.Signal(unix.SIGHUP); err != nil {
			return err
		}
	}
	return nil
}

func disturbances(t *testing.T) []disturbance {
	reload := func(text string, code int) func(*scene) error {
		return func(s *scene) error { return s.reload(text, code) }
	}
	signal := func(sig string) func(*scene) error {
		return func(s *scene) error {
			// While none runs its pid is 0, by which kill means everybody of its own group.
			var pid int
			if !rig.Eventually(patience, func() bool { pid = s.fenced.status(t).Proxy.PID; return pid != 0 }) {
				return errors.New("no proxy runs")
			}
			return s.asRootDo(fmt.Sprintf("kill -%s %d", sig, pid))
		}
	}
	return []disturbance{
		{"reload", "bad syntax", reload("version: 1\negress: [", 1), "200"},
		{"reload", "unknown key", reload(policy+"allow_all: true\n", 1), "200"},
		{"reload", "a policy that is no text", reload(string(make([]byte, 4096)), 1), "200"},
		{"reload", "a huge file", reload(policy+strings.Repeat("# "+strings.Repeat("x", 1022)+"\n", 32<<10), 1), "200"},
		{"reload", "no file", func(s *scene) error {
			if err := s.asRootDo("rm /etc/exitgate/policy.yaml"); err != nil {
				return err
			}
			out, err := s.fenced.Exitgate("reload")
			if err == nil && out.Code != 1 {
				err = fmt.Errorf("exit %d", out.Code)
			}
			return err
		}, "200"},
		{"reload", "empty lists", reload("version: 1\n", 0), "403"},
		{"reload", "the policy again", reload(policy, 0), "200"},
		{"reload", "300 SIGHUPs, the policy changing between", func(s *scene) error {
			for i := range 3 {
				if err := s.fenced.SetPolicy(policy + fmt.Sprintf("  - host: h%d.example.org\n    ports: [443]\n", i)); err != nil {
					return err
				}
				if err := s.hangUp(100); err != nil {
					return err
				}
			}
			return s.reload(policy, 0)
		}, "200"},
		{"crash", "kill -9 of the proxy", signal("KILL"), "200"},
		{"crash", "kill -ABRT of the proxy", signal("ABRT"), "200"},
		{"crash", "kill -9 of the proxy in a reload", func(s *scene) error {
			if err := s.fenced.SetPolicy(policy + "  - host: another.example.org\n    ports: [443]\n"); err != nil {
				return err
			}
			if err := s.hangUp(1); err != nil {
				return err
			}
			return signal("KILL")(s)
		}, "200"},
		{"crash", "second instance in the same namespace", func(s *scene) error {
			out, err := s.fenced.Run(context.Background(), rig.Command{Args: []string{rig.BinaryPath, "run", "--control", "/run/exitgate/second.sock", "--", "/bin/true"}})
			if err == nil && out.Code != 125 {
				err = fmt.Errorf("exit %d, %s", out.Code, out.Stderr)
			}
			return err
		}, "200"},
		{"drift", "nft flush ruleset", func(s *scene) error { return s.asRootDo("nft flush ruleset; true") }, "200"},
		{"drift", "nft delete table", func(s *scene) error { return s.asRootDo("nft delete table inet exitgate; true") }, "200"},
	}
}

// TestLife disturbs a gate while two of the agent's uid hammer at addresses that no policy names; the capture sees all of it.
func TestLife(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	v4, v6 := s.addresses(100, 0)
	stop := make(chan struct{})
	tally := make(chan map[string]int, 1)
	go func() {
		all := map[string]int{}
		for {
			select {
			case <-stop:
				tally <- all
				return
			default:
			}
			for _, network := range []string{"tcp", "udp"} {
				r := s.fenced.agents["exec"].Do(prober.Probe{Op: "flood", Network: network, Addresses: []string{at(v4, 443), at(v6, 443)}, Timeout: 100 * time.Millisecond})
				for outcome, n := range r.Tally {
					_, errno, _ := strings.Cut(outcome, " ")
					all[network+" "+errno] += n
				}
			}
		}
	}()
	agent := s.fenced.agents["agent"]
	for _, d := range disturbances(t) {
		if err := d.do(s); err != nil {
			t.Errorf("%s: %v", d.name, err)
			continue
		}
		route, got := say("GET /reflect HTTP/1.1", "Host: "+listener), ""
		for until := time.Now().Add(patience); time.Now().Before(until) && got != d.route; time.Sleep(5 * time.Millisecond) {
			got = seen(route, agent.Do(route))
		}
		direct := stream4(at(v4, 443))
		judge(t, row{d.family, d.name, "agent", "ECONNREFUSED, route " + d.route, seen(direct, agent.Do(direct)) + ", route " + got, "the route itself; the flood below, all the while"})
		if _, err := s.fenced.Wait(0); err != rig.ErrRunning {
			t.Fatalf("%s: PID 1 has ended: %v", d.name, err)
		}
	}
	close(stop)
	s.floodVerdict(t, <-tally)
	s.oracle(t, "reload, crash and drift", s.fenced)
}

// floodVerdict judges what the hammering got, and has the box without a fence show that it would have got through.
func (s *scene) floodVerdict(t *testing.T, got map[string]int) {
	t.Helper()
	v4, v6 := s.addresses(100, 1)
	s.bare.agents["exec"].Do(prober.Probe{Op: "flood", Network: "udp", Addresses: []string{at(v4, 443), at(v6, 443)}, Timeout: 50 * time.Millisecond})
	time.Sleep(50 * time.Millisecond)
	arrived := s.bare.Capture().To(v4, 443) + s.bare.Capture().To(v6, 443)
	total := 0
	for _, n := range got {
		total += n
	}
	if arrived == 0 || total < 1000 {
		t.Errorf("%d attempts, and %d datagrams arrived without a fence: this proves nothing", total, arrived)
	}
	for _, outcome := range slices.Sorted(maps.Keys(got)) {
		want := "tcp ECONNREFUSED"
		if strings.HasPrefix(outcome, "udp") {
			want = "udp EPERM|udp EACCES|udp EHOSTUNREACH"
		}
		judge(t, row{"crash", fmt.Sprintf("%d attempts all the while", got[outcome]), "exec", want, outcome, fmt.Sprintf("without a fence %d datagrams arrived in 50 ms", arrived)})
	}
}

// boot is one way to start, and what must come of it.
type boot struct {
	name   string
	change func(*rig.Config)
	code   int
	stdout string
}

func boots() []boot {
	sh := func(text string) func(*rig.Config) {
		return func(c *rig.Config) { c.Args = []string{"run", "--", "/bin/sh", "-c", text} }
	}
	both := func(fs ...func(*rig.Config)) func(*rig.Config) {
		return func(c *rig.Config) {
			sh("echo ran")(c)
			for _, f := range fs {
				f(c)
			}
		}
	}
	less := func(caps ...uintptr) func(*rig.Config) {
		return func(c *rig.Config) {
			c.Capabilities = slices.DeleteFunc(slices.Clone(rig.EngineCapabilities), func(c uintptr) bool { return slices.Contains(caps, c) })
		}
	}
	text := func(p string) func(*rig.Config) { return func(c *rig.Config) { c.Policy = p } }
	return []boot{
		{"all is there", both(), 0, "ran"},
		{"no CAP_NET_ADMIN", both(less(unix.CAP_NET_ADMIN)), 125, ""},
		{"no CAP_SETUID", both(less(unix.CAP_SETUID)), 125, ""},
		{"no CAP_SETGID", both(less(unix.CAP_SETGID)), 125, ""},
		{"no nf_tables", both(func(c *rig.Config) { c.NoNetfilter = true }), 125, ""},
		{"no policy", both(text("")), 125, ""},
		{"bad policy", both(text("version: 1\negress: [")), 125, ""},
		{"agent with uid 0", both(text("version: 1\nagents:\n  - name: a\n    uid: 0\n")), 125, ""},
		{"credential that the agent could read", both(func(c *rig.Config) { c.Files["/run/secrets/api"] = rig.File{Data: secret, Mode: 0o444} }), 125, ""},
		{"required name that does not resolve", both(text("version: 1\negress:\n  - host: nowhere.example.org\n    required: true\n")), 125, ""},
		{"exit code of the agent", sh("exit 7"), 7, ""},
		{"agent killed by a signal", sh("kill -KILL $$"), 137, ""},
		{"command not found", func(c *rig.Config) { c.Args = []string{"run", "--", "/no/such"} }, 127, ""},
		{"command not executable", func(c *rig.Config) { c.Args = []string{"run", "--", "/etc/passwd"} }, 126, ""},
		{"orphans and zombies", sh("for i in 1 2 3 4 5; do (true & sleep 0.01 &) & done; echo ran"), 0, "ran"},
	}
}

// TestBoot starts gates in every state of disrepair: the agent runs behind a fence or never.
func TestBoot(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	for _, b := range boots() {
		cfg := rig.Config{World: s.w, Binary: program, Policy: policy, Files: boxFiles()}
		b.change(&cfg)
		box, err := rig.Start(cfg)
		if err != nil {
			t.Fatal(err)
		}
		code, err := box.Wait(patience)
		if err != nil {
			t.Fatalf("%s: %v", b.name, err)
		}
		got := fmt.Sprintf("exit %d, %q", code, box.Stdout)
		judge(t, row{"boot", b.name, "box", fmt.Sprintf("exit %d, %q", b.code, b.stdout), got, "the first row: it ran, exit 0"})
		if bad := box.Capture().Except(s.allowed); len(bad) > 0 {
			t.Errorf("%s: left the box: %v", b.name, bad)
		}
		if err := box.Close(); err != nil {
			t.Error(err)
		}
	}
	s.firstInstruction(t)
}

// firstInstruction has the agent begin with a flood.
func (s *scene) firstInstruction(t *testing.T) {
	v4, v6 := s.addresses(101, 0)
	for _, network := range []string{"tcp", "udp"} {
		flood := prober.Probe{Op: "flood", Network: network, Addresses: []string{at(v4, 443), at(v6, 443)}, Timeout: short}.Encode()
		argv := []string{rig.ProberPath, "do", flood}
		var counts []int
		for _, fenced := range []bool{true, false} {
			cfg := rig.Config{World: s.w, Binary: program, Policy: policy, Files: boxFiles(), Args: append([]string{"run", "--"}, argv...)}
			if !fenced {
				cfg.Plain, cfg.Args = true, argv
			}
			b, err := rig.Start(cfg)
			if err != nil {
				t.Fatal(err)
			}
			if code, err := b.Wait(patience); err != nil || code != 0 {
				t.Fatalf("exit %d, %v: %s", code, err, b.Stderr)
			}
			time.Sleep(20 * time.Millisecond)
			counts = append(counts, b.Capture().To(v4, 443)+b.Capture().To(v6, 443))
		}
		judge(t, row{"boot", "flood from the first instruction, " + network, "agent", "0 packets", fmt.Sprintf("%d packets", counts[0]), fmt.Sprintf("without a fence: %d packets", counts[1])})
		if counts[1] == 0 {
			t.Error("control: nothing arrived without a fence")
		}
	}
}
