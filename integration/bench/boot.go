package main

import (
	"encoding/json"
	"fmt"
	"os"
	"time"

	"exitgate/integration/prober"
	"exitgate/integration/rig"
)

const empty = "version: 1\n"

// boot is the time from the execution of PID 1 to the agent's first words. The agent is the same program everywhere, and its own start is
// what the first row consists of.
func (b *bench) boot() error {
	w, err := rig.NewWorld()
	if err != nil {
		return err
	}
	defer w.Close()
	const fenced = "exitgate, self-test off: the whole ruleset in force"
	t := newTable("boot", "Start: exec of PID 1 to the agent's first words", "nothing (the agent itself is PID 1)",
		column{Name: "median", Unit: "ms", Format: "%.1f", Ratio: true, Brief: true}, column{Name: "low", Unit: "ms", Format: "%.1f"}, column{Name: "high", Unit: "ms", Format: "%.1f"})
	samples := map[string][]time.Duration{}
	var order []string
	for range b.rounds * 3 {
		for _, r := range b.inits() {
			if samples[r.name] == nil {
				order = append(order, r.name)
			}
			spoke, at, err := b.once(w, r.change)
			if err != nil {
				return fmt.Errorf("%s: %w", r.name, err)
			}
			samples[r.name] = append(samples[r.name], spoke)
			if r.name == "exitgate, self-test off" {
				samples[fenced] = append(samples[fenced], at)
			}
		}
	}
	for _, name := range append(order, fenced) {
		low, high := samples[name][0], samples[name][0]
		for _, d := range samples[name] {
			t.add(name, "median", millis(d))
			low, high = min(low, d), max(high, d)
		}
		t.add(name, "low", millis(low))
		t.add(name, "high", millis(high))
	}
	b.show(t)
	return nil
}

// starter is a way to run a program as PID 1's child.
type starter struct {
	name   string
	change func(*rig.Config)
}

func (b *bench) inits() []starter {
	hello := []string{rig.ProberPath, "do", prober.Probe{Op: "hello"}.Encode()}
	plain := func(before ...string) func(*rig.Config) {
		return func(c *rig.Config) { c.Plain, c.Args = true, append(before, hello...) }
	}
	gated := func(selfTest string) func(*rig.Config) {
		return func(c *rig.Config) {
			c.Args, c.Env = append([]string{"run", "--"}, hello...), []string{"EXITGATE_SELF_TEST=" + selfTest}
		}
	}
	all := []starter{{"nothing (the agent itself is PID 1)", plain()}}
	for _, p := range []string{"/usr/bin/tini", "/usr/bin/catatonit", "/usr/bin/dumb-init"} {
		if _, err := os.Stat(p); err == nil && b.withPeers {
			all = append(all, starter{p[len("/usr/bin/"):], plain(p, "--")})
		}
	}
	return append(all, starter{"a bare init in Go", plain(rig.ProberPath, "init")},
		starter{"exitgate, self-test off", gated("false")}, starter{"exitgate, self-test on", gated("true")})
}

// once starts a box and returns when its agent spoke, and when its ruleset was in force (0: it has none).
func (b *bench) once(w *rig.World, change func(*rig.Config)) (spoke, fenced time.Duration, err error) {
	cfg := rig.Config{World: w, Binary: b.binary, Policy: empty, Uncaptured: true}
	change(&cfg)
	cfg.Fenced = !cfg.Plain
	box, err := rig.Start(cfg)
	if err != nil {
		return 0, 0, err
	}
	defer box.Close()
	line, err := box.Stdout.WaitText(`"at"`, 20*time.Second)
	if err != nil {
		return 0, 0, fmt.Errorf("%w; standard error: %s", err, box.Stderr)
	}
	var r prober.Result
	if err := json.Unmarshal([]byte(line), &r); err != nil {
		return 0, 0, err
	}
	if cfg.Fenced {
		fenced = (<-box.Fenced).Sub(box.Started)
	}
	return r.At.Sub(box.Started), fenced, nil
}
