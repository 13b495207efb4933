package attack

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"exitgate/integration/prober"
	"exitgate/integration/rig"

	"golang.org/x/sys/unix"
)

// attempt is one way out, up or in.
type attempt struct {
	name  string
	probe func(p *place) prober.Probe
	roads []string // on which it is tried; default everyone
	want  string   // what a refusal looks like; alternatives are separated by |
	agent string   // the same for the hardened agent where its hardening speaks before the fence does; default want
	control
}

// control says how it is shown that the attempt would succeed. The default: in the box without a fence a packet arrives.
type control struct {
	kind  kind                          // arrives, works, root, granted, why
	as    string                        // road in the box without a fence, or in the fenced one; default exec
	probe func(p *place) prober.Probe   // what is tried there; default the attempt itself
	to    func(p *place) netip.AddrPort // where it arrives; default the probe's address
	why   string                        // why there is none of the usual kinds
}

// kind says where a control is run.
type kind int

const (
	arrives kind = iota // without the fence: a packet comes to the far side
	works               // without the fence: it succeeds
	granted             // in the fenced box: it succeeds for another identity, or in the form that the policy has
	because             // of another kind, which why names
)

var (
	everyone  = []string{"agent", "exec", "gid 0", "nobody"}
	agentOnly = []string{"agent"}
	uid1000   = []string{"agent", "exec", "gid 0"}
	rootOnly  = []string{"root"}
)

// tcp, datagram and their like are what the fence answers.
const (
	refused    = "ECONNREFUSED"
	prohibited = "EPERM|EACCES|EHOSTUNREACH"
	hardened   = "EPERM|EACCES|EAFNOSUPPORT|EPROTONOSUPPORT|ESOCKTNOSUPPORT"
)

// addresses gives attempt number i two addresses of its own, which belong to nobody: what arrives for them is this attempt's.
func (s *scene) addresses(family, i int) (v4, v6 netip.Addr) {
	v4 = netip.AddrFrom4([4]byte{46, byte(s.w.Number()), byte(family), byte(i + 1)})
	v6 = netip.AddrFrom16([16]byte{0x2a, 0x0e, 0, 0x46, 0, byte(s.w.Number()), 13: byte(family), 15: byte(i + 1)})
	return v4, v6
}

func (p place) with(family, i int) *place {
	p.v4, p.v6 = p.s.addresses(family, i)
	return &p
}

// try runs a table: each road by itself, and beside them the controls.
func (s *scene) try(t *testing.T, family string, number int, attempts []attempt) {
	t.Helper()
	controls := make([]chan string, len(attempts))
	for i := range attempts {
		controls[i] = make(chan string, 1)
	}
	go func() {
		for i, a := range attempts {
			controls[i] <- a.check(s, number, i)
		}
	}()
	got := make([]map[string]chan string, len(attempts))
	byRoad := map[string][]func(){}
	for i, a := range attempts {
		got[i] = map[string]chan string{}
		for _, road := range a.on() {
			c := make(chan string, 1)
			got[i][road] = c
			byRoad[road] = append(byRoad[road], func() {
				probe := a.probe(s.fenced.with(number, i))
				c <- seen(probe, s.fenced.agents[road].Do(probe))
			})
		}
	}
	for _, list := range byRoad {
		go func() {
			for _, f := range list {
				f()
			}
		}()
	}
	for i, a := range attempts {
		control := <-controls[i]
		if strings.HasPrefix(control, "FAILED") {
			t.Errorf("%s: control of %s: %s", family, a.name, control)
		}
		for _, road := range a.on() {
			if s.fenced.agents[road] == nil {
				t.Fatalf("%s: no road %q", a.name, road)
			}
			judge(t, row{family, a.name, road, a.expect(road), <-got[i][road], control})
		}
	}
}

func (a attempt) on() []string {
	if a.roads == nil {
		return everyone
	}
	return a.roads
}

func (a attempt) expect(road string) string {
	if road == "agent" && a.agent != "" {
		return a.agent
	}
	return a.want
}

// check runs an attempt's control and says what came of it.
func (a attempt) check(s *scene, family, i int) string {
	c := a.control
	if c.as == "" {
		c.as = "exec"
	}
	if c.probe == nil {
		c.probe = a.probe
	}
	switch c.kind {
	case works:
		p := s.bare.with(family, i)
		return succeeded("without a fence, "+c.as, c.probe(p), p.agents[c.as])
	case granted:
		p := s.fenced.with(family, i)
		return succeeded("fenced, "+c.as, c.probe(p), p.agents[c.as])
	case because:
		return c.why
	}
	return c.arrival(s.bare.with(family, i))
}

func succeeded(where string, probe prober.Probe, by *rig.Agent) string {
	r := by.Do(probe)
	got := seen(probe, r)
	if got == "ok" || got == "200" {
		return where + ": " + got
	}
	if missing(got) {
		return "this kernel cannot: " + got
	}
	return "FAILED " + where + ": " + got + " " + r.Err + " " + string(r.Data)
}

// arrival waits until the far side sees a packet of the attempt. A protocol that this kernel was built without cannot send one.
func (c control) arrival(p *place) string {
	probe := c.probe(p)
	to := c.target(p, probe)
	count := func() (n int) {
		for _, flows := range []map[rig.Flow]int{p.Capture().Flows(), p.Capture().Link()} {
			for f, k := range flows {
				if (f.Dst == to.Addr() || f.Port == 135 && f.Dst == solicited(to.Addr())) && (to.Port() == 0 || f.Port == to.Port()) {
					n += k
				}
			}
		}
		return n
	}
	before := count()
	answer := p.agents[c.as].Start(probe)
	var got *prober.Result
	for until := time.Now().Add(patience); time.Now().Before(until); time.Sleep(200 * time.Microsecond) {
		if n := count() - before; n > 0 {
			return fmt.Sprintf("without a fence, %s: %d packets arrived", c.as, n)
		}
		select {
		case r, ok := <-answer:
			if ok && !r.More && got == nil {
				got = &r
			}
		default:
		}
		if got != nil && missing(got.Errno) {
			return fmt.Sprintf("this kernel cannot: %s", got.Errno)
		}
		if got != nil && time.Since(got.At) > 2*time.Second {
			break
		}
	}
	return fmt.Sprintf("FAILED without a fence, %s: nothing arrived at %s: %v", c.as, to, got)
}

// target is where the packet should come: without a port where the protocol has none that the capture reads.
func (c control) target(p *place, probe prober.Probe) netip.AddrPort {
	if c.to != nil {
		return c.to(p)
	}
	to, err := netip.ParseAddrPort(probe.Address)
	if err != nil {
		addr, _ := netip.ParseAddr(probe.Address)
		to = netip.AddrPortFrom(addr, 0)
	}
	addr := to.Addr().WithZone("").Unmap()
	switch probe.Protocol {
	case 0, unix.IPPROTO_TCP, unix.IPPROTO_UDP:
		return netip.AddrPortFrom(addr, to.Port())
	}
	return netip.AddrPortFrom(addr, 0)
}

// missing says that a kernel has no such protocol.
func missing(errno string) bool {
	return errno == "EPROTONOSUPPORT" || errno == "EAFNOSUPPORT" || errno == "ESOCKTNOSUPPORT" || errno == "ENOSYS"
}
