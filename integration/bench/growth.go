package main

import (
	"errors"
	"fmt"
	"math"
	"os"
	"strings"
	"time"

	"exitgate/integration/prober"
	"exitgate/integration/rig"
)

// steps are the sizes of the growth table, up to what breaks first.
var steps = []int{1, 10, 100, 1000, 4000, 8000, 12000}

// growth is what one more connection, stream, tunnel, host or agent costs, and how many there can be on this machine.
func (b *bench) growth() error {
	t := newTable("growth", "Growth: memory of both processes, MiB, by number", "",
		column{Name: "idle connections", Format: "%.1f"}, column{Name: "streams", Format: "%.1f"}, column{Name: "tunnels", Format: "%.1f"},
		column{Name: "hosts", Format: "%.1f"}, column{Name: "hosts: start", Unit: "ms", Format: "%.0f"},
		column{Name: "agents", Format: "%.1f"}, column{Name: "agents: start", Unit: "ms", Format: "%.0f"})
	for _, g := range []struct {
		column string
		run    func(t *table, column string) (per float64, most int, stop error)
	}{
		{"idle connections", b.holding}, {"streams", b.holding}, {"tunnels", b.holding}, {"hosts", b.hosted}, {"agents", b.agents},
	} {
		per, most, stop := g.run(t, g.column)
		note := fmt.Sprintf("%s: %.1f KiB each, up to %d", g.column, per, most)
		if stop != nil {
			note += fmt.Sprintf("; then: %v", stop)
		}
		t.Notes = append(t.Notes, note)
		fmt.Fprintln(os.Stderr, "bench:", note)
	}
	b.show(t)
	return nil
}

// slope is what each of n costs, in KiB, from the memory at nothing.
func slope(from, to float64, n int) float64 { return (to - from) * 1024 / float64(n) }

// holding opens connections, streams or tunnels and holds them.
func (b *bench) holding(t *table, column string) (per float64, most int, stop error) {
	for _, n := range steps {
		before, after, err := b.held(column, n)
		if err != nil {
			return per, most, err
		}
		t.add(fmt.Sprint(n), column, after)
		per, most = slope(before, after, n), n
	}
	return per, most, nil
}

// held is the memory with none of them and with n. Each size has a box of its own: a heap that was larger once stays so for a while.
func (b *bench) held(column string, n int) (before, after float64, err error) {
	alone := *b
	alone.withPeers = false
	s, err := alone.only(gatePolicy)
	if err != nil {
		return 0, 0, err
	}
	defer s.close()
	c := s.all[0]
	var p prober.Probe
	switch column {
	case "streams":
		p = c.request("streams", fmt.Sprintf("/events?ms=1000&n={n}&of=%d", n), 0)
	case "tunnels":
		p = c.bytes(s, "pingpong")
		p.Pause = time.Second
	default:
		p = c.request("idle", "/small", 0)
	}
	p.Connections, p.Every, p.Timeout = n, time.Second, 2*time.Second
	pids, err := servers(c.box)
	if err != nil {
		return 0, 0, err
	}
	idle, err := account(pids)
	if err != nil {
		return 0, 0, err
	}
	_, used, err := c.measure(p)
	if err != nil {
		err = fmt.Errorf("%w%s", err, c.restarts())
	}
	return float64(idle.rss) / (1 << 20), float64(used.rss) / (1 << 20), err
}

// restarts tells of a proxy that was started again, for the reason of a failure.
func (c *candidate) restarts() string {
	status, err := c.box.Status()
	if err != nil {
		return "; " + err.Error()
	}
	process, _ := status["proxy"].(map[string]any)
	if n, _ := process["restarts"].(float64); n > 0 {
		return fmt.Sprintf("; the proxy was started again %v times: %v", n, process["last_end"])
	}
	return ""
}

// only is a stage with one gate before the upstream.
func (b *bench) only(policy string) (*stage, error) {
	w, err := rig.NewWorld()
	if err != nil {
		return nil, err
	}
	s := &stage{world: w}
	if s.up, err = newUpstream(w); err != nil {
		w.Close()
		return nil, err
	}
	c, err := b.gate(s, gateName, b.binary, policy)
	if err == nil {
		err = c.ready(s, reverse)
	}
	if err != nil {
		s.close()
		return nil, err
	}
	s.all = []*candidate{c}
	return s, nil
}

// hosted starts with policies of many hosts.
func (b *bench) hosted(t *table, column string) (float64, int, error) {
	return b.started(t, column, []int{1, 10, 100, 1000, 10000, 60000}, func(n int) string {
		var sb strings.Builder
		sb.WriteString(gatePolicy)
		for i := range n {
			fmt.Fprintf(&sb, "  - {host: h%d.example.com}\n", i)
		}
		return sb.String()
	})
}

// agents starts with policies of many agents.
func (b *bench) agents(t *table, column string) (float64, int, error) {
	return b.started(t, column, []int{1, 10, 64, 65}, func(n int) string {
		var sb strings.Builder
		sb.WriteString("version: 1\nagents:\n")
		for i := range n {
			fmt.Fprintf(&sb, "  - {name: a%d, uid: %d, listen: \"127.0.0.1:%d\"}\n", i, 1000+i, 8080+i)
		}
		return sb.String() + gatePolicy[strings.Index(gatePolicy, "credentials:"):]
	})
}

// started is the memory of gates that run, and how long they took to start their agent.
func (b *bench) started(t *table, column string, sizes []int, policy func(n int) string) (per float64, most int, stop error) {
	first := math.NaN()
	for _, n := range sizes {
		begin := time.Now()
		s, err := b.only(policy(n))
		if err != nil {
			return per, most, shorten(err)
		}
		took := time.Since(begin)
		time.Sleep(time.Second)
		pids, err := servers(s.all[0].box)
		var used usage
		if err == nil {
			used, err = account(pids)
		}
		s.close()
		if err != nil {
			return per, most, err
		}
		mib := float64(used.rss) / (1 << 20)
		if math.IsNaN(first) {
			first = mib
		}
		t.add(fmt.Sprint(n), column, mib)
		t.add(fmt.Sprint(n), column+": start", millis(took))
		per, most = slope(first, mib, n), n
	}
	return per, most, nil
}

// shorten keeps the end of an error, which is where the reason stands.
func shorten(err error) error {
	lines := strings.Split(strings.TrimSpace(err.Error()), "\n")
	return errors.New(lines[len(lines)-1])
}
