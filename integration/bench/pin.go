package main

import (
	"fmt"
	"strings"
	"time"

	"exitgate/integration/prober"
	"exitgate/integration/rig"
)

// pin compares the first CONNECT to a name, whose address has to go into the kernel's set first, with the second, whose address is
// there. Names come from /etc/hosts, so no DNS is in it; the difference is the way to PID 1, the commit, and its acknowledgement.
func (b *bench) pin() error {
	w, err := rig.NewWorld()
	if err != nil {
		return err
	}
	defer w.Close()
	const names = 150
	var hosts, policy strings.Builder
	policy.WriteString("version: 1\negress:\n")
	for i := range names {
		up, err := w.HTTPS(fmt.Sprintf("n%d.example.com", i), rig.Server{})
		if err != nil {
			return err
		}
		fmt.Fprintf(&hosts, "%s w%d.pin.example.com\n", up.Addr4, i)
	}
	policy.WriteString("  - host: \"*.pin.example.com\"\n") // a wildcard cannot be resolved before it is asked for
	box, err := rig.Start(rig.Config{World: w, Binary: b.binary, Policy: policy.String(), Hosts: hosts.String()})
	if err != nil {
		return err
	}
	if err := box.Agent().Ready(time.Minute); err != nil {
		return err
	}
	first, second, difference := &series{name: "address not in the set"}, &series{name: "address in the set"}, &series{name: "difference: resolve, commit, acknowledge"}
	for i := range names {
		var took [2]time.Duration
		for k := range took {
			r := box.Agent().Do(prober.Probe{Op: "connect", Address: listener, Tunnel: fmt.Sprintf("w%d.pin.example.com:443", i)})
			if !r.OK() {
				return fmt.Errorf("CONNECT: %s %s", r, r.Data)
			}
			took[k] = r.Elapsed
		}
		first.add(micros(took[0]))
		second.add(micros(took[1]))
		difference.add(micros(took[0] - took[1]))
	}
	show(fmt.Sprintf("Pin: CONNECT to its answer, %d names", names), "us", "%.0f", second, first, difference)
	return nil
}
