package main

import (
	"encoding/json"
	"fmt"
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
	hello := []string{rig.ProberPath, "do", prober.Probe{Op: "hello"}.Encode()}
	plain := func(c *rig.Config) { c.Plain, c.Args = true, hello }
	inited := func(c *rig.Config) { c.Plain, c.Args = true, append([]string{rig.ProberPath, "init"}, hello...) }
	gated := func(selfTest string) func(*rig.Config) {
		return func(c *rig.Config) {
			c.Args, c.Env = append([]string{"run", "--"}, hello...), []string{"EXITGATE_SELF_TEST=" + selfTest}
		}
	}
	rows := []struct {
		*series
		change func(*rig.Config)
	}{
		{&series{name: "nothing (the agent itself is PID 1)"}, plain},
		{&series{name: "a bare init in Go"}, inited},
		{&series{name: "exitgate, self-test off"}, gated("false")},
		{&series{name: "exitgate, self-test on"}, gated("true")},
	}
	fence := &series{name: "exitgate, self-test off: the whole ruleset in force"}
	for range b.rounds * 3 {
		for _, r := range rows {
			took, fenced, err := b.once(w, r.change)
			if err != nil {
				return fmt.Errorf("%s: %w", r.name, err)
			}
			r.add(millis(took))
			if r.series == rows[2].series {
				fence.add(millis(fenced))
			}
		}
	}
	show("Start: exec of PID 1 to the agent's first words", "ms", "%.1f", rows[0].series, rows[1].series, rows[2].series, rows[3].series, fence)
	return nil
}

// once starts a box and returns when its agent spoke, and when its ruleset was in force (0: it has none).
func (b *bench) once(w *rig.World, change func(*rig.Config)) (spoke, fenced time.Duration, err error) {
	cfg := rig.Config{World: w, Binary: b.binary, Policy: empty}
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
