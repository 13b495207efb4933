package main

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	"exitgate/integration/prober"
	"exitgate/integration/rig"
)

// portPins is served on every address of the internet, for names whose address no set holds yet.
const portPins = 9001

// pinNames is how many names are pinned for the first time in each box.
const pinNames = 40

// site is a box whose packets are filtered in some way; root sends them.
type site struct {
	name string
	box  *rig.Box
	gate bool
	slow bool
}

// fence is what a packet costs: in no rules, in our sets of several sizes, and in a list of rules for the same addresses.
func (b *bench) fence() error {
	w, err := rig.NewWorld()
	if err != nil {
		return err
	}
	s := &stage{world: w}
	defer w.Close()
	if s.up, err = newUpstream(w); err != nil {
		return err
	}
	defer s.up.close()
	if err := s.up.listen(netip.AddrPortFrom(netip.IPv4Unspecified(), portPins), serveBytes); err != nil {
		return err
	}
	t := newTable("fence", "Fence: root's packets through the ruleset", "no rules",
		column{Name: "byte and back: p50", Unit: "us", Format: "%.1f", Ratio: true, Brief: true}, column{Name: "byte and back: p99", Unit: "us", Format: "%.0f"},
		column{Name: "64 MiB up", Unit: "MiB/s", Format: "%.0f", Ratio: true, Brief: true}, column{Name: "CONNECT, address in the set", Unit: "us", Format: "%.0f"},
		column{Name: "CONNECT, to be pinned first", Unit: "us", Format: "%.0f"}, column{Name: "pin", Unit: "us", Format: "%.0f", Brief: true})
	sites, err := b.sites(s)
	if err != nil {
		return err
	}
	for round := range b.rounds {
		for i := range sites {
			if err := b.packets(t, s, sites[(i+round)%len(sites)]); err != nil {
				return err
			}
		}
	}
	for _, at := range sites {
		if at.gate {
			if err := b.pins(t, at); err != nil {
				return err
			}
		}
	}
	b.show(t)
	return nil
}

func (b *bench) sites(s *stage) (all []site, err error) {
	add := func(name string, cfg rig.Config) {
		if err != nil {
			return
		}
		cfg.World, cfg.Uncaptured = s.world, true
		at := site{name: name, gate: cfg.Binary != "", slow: strings.HasSuffix(name, "60000 rules")}
		if at.box, err = rig.Start(cfg); err == nil {
			err = at.box.Agent().Ready(2 * time.Minute)
		}
		if err != nil {
			err = fmt.Errorf("%s: %w", name, err)
		}
		all = append(all, at)
	}
	add("no rules", rig.Config{Plain: true, Serve: true, Args: serveOnly})
	for _, n := range []int{10, 1000, 60000} {
		hosts, err2 := s.pinHosts(n)
		if err2 != nil {
			return nil, err2
		}
		add(fmt.Sprintf("exitgate, %d elements", n), rig.Config{Binary: b.binary, Policy: addressPolicy(s.up.addr, n), Hosts: hosts})
	}
	for _, n := range []int{10, 1000, 60000} {
		add(fmt.Sprintf("a list of %d rules", n), rig.Config{Plain: true, Serve: true, Args: []string{"/bin/sh", "-c", "nft -f /etc/rules.nft && exec " + strings.Join(serveOnly, " ")},
			Files: map[string]rig.File{"/etc/rules.nft": {Data: addressList(s.up.addr, n)}}})
	}
	return all, err
}

// filler is the i-th of many public addresses.
func filler(i int) netip.Addr {
	return netip.AddrFrom4([4]byte{5, byte(i >> 16), byte(i >> 8), byte(i)})
}

// addressPolicy allows root n addresses and ports; the upstream's is the last.
func addressPolicy(last netip.Addr, n int) string {
	var sb strings.Builder
	sb.WriteString("version: 1\negress:\n  - {host: \"*.pin.example.com\", ports: [9001]}\nroot:\n")
	for i := range n - 1 {
		fmt.Fprintf(&sb, "  - {host: %s, ports: [%d]}\n", filler(i+1), portBytes)
	}
	fmt.Fprintf(&sb, "  - {host: %s, ports: [%d]}\n", last, portBytes)
	return sb.String()
}

// addressList is the same as one rule an address, as scripts write it.
func addressList(last netip.Addr, n int) string {
	var sb strings.Builder
	sb.WriteString("table inet long {\n chain output {\n  type filter hook output priority 0; policy drop;\n")
	for i := range n - 1 {
		fmt.Fprintf(&sb, "  ip daddr %s tcp dport %d accept\n", filler(i+1), portBytes)
	}
	fmt.Fprintf(&sb, "  ip daddr %s tcp dport %d accept\n }\n}\n", last, portBytes)
	return sb.String()
}

// packets measures a byte to and fro, and many in one direction.
func (b *bench) packets(t *table, s *stage, at site) error {
	address := fmt.Sprintf("%s:%d", s.up.addr, portBytes)
	r, err := at.box.Probe(0, b.window(prober.Probe{Op: "pingpong", Address: address}))
	if err == nil && r.Quantiles == nil {
		err = fmt.Errorf("%s: %s", at.name, r)
	}
	if err != nil {
		return err
	}
	t.add(at.name, "byte and back: p50", micros(r.Quantiles.P50))
	t.add(at.name, "byte and back: p99", micros(r.Quantiles.P99))
	if at.slow {
		return nil // a MiB would take seconds
	}
	r, err = at.box.Probe(0, prober.Probe{Op: "transfer", Address: address, Raw: true, Up: true, Size: bulk, Data: fmt.Appendf(nil, "u%d\n", bulk), Timeout: b.length})
	if err == nil && r.Quantiles == nil {
		err = fmt.Errorf("%s: %s", at.name, r)
	}
	if err != nil {
		return err
	}
	t.add(at.name, "64 MiB up", bulk/float64(1<<20)/r.Quantiles.P50.Seconds())
	return nil
}

// pinHosts are names with an address each, in /etc/hosts: no DNS is in what a pin takes.
func (s *stage) pinHosts(set int) (string, error) {
	var sb strings.Builder
	for i := range pinNames {
		v4, _, err := s.world.Addresses()
		if err != nil {
			return "", err
		}
		fmt.Fprintf(&sb, "%s w%d-%d.pin.example.com\n", v4, set, i)
	}
	return sb.String(), nil
}

// pins compares the first CONNECT to a name, whose address has to go into the kernel's set first, with the second, whose address is there:
// the difference is the way to PID 1, the commit, and its acknowledgement.
func (b *bench) pins(t *table, at site) error {
	var set int
	if _, err := fmt.Sscanf(at.name, "exitgate, %d", &set); err != nil {
		return err
	}
	for i := range pinNames {
		var took [2]time.Duration
		for k := range took {
			r := at.box.Agent().Do(prober.Probe{Op: "connect", Address: listener, Tunnel: fmt.Sprintf("w%d-%d.pin.example.com:%d", set, i, portPins)})
			if !r.OK() {
				return fmt.Errorf("%s: CONNECT: %s %s", at.name, r, r.Data)
			}
			took[k] = r.Elapsed
		}
		t.add(at.name, "CONNECT, to be pinned first", micros(took[0]))
		t.add(at.name, "CONNECT, address in the set", micros(took[1]))
		t.add(at.name, "pin", micros(took[0]-took[1]))
	}
	return nil
}
