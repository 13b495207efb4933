package engine

import (
	"net/netip"
	"sync"

	"exitgate/firewall"
)

// protoTCP is IPPROTO_TCP: whatever the proxy dials is TCP.
const protoTCP = 6

// egress counts who wants each element of the egress sets. Two sources write them, the resolver's pins and the fixed
// elements (a resolver on an odd port), and neither may take away what the other still wants.
type egress struct {
	fence *firewall.Writer

	mu   sync.Mutex // guards want, and keeps commits in the order in which the counts changed
	want map[firewall.Endpoint]int
}

func newEgress(fence *firewall.Writer) *egress {
	return &egress{fence: fence, want: make(map[firewall.Endpoint]int)}
}

// change commits before it returns. On an error the counts are as they were; what the kernel holds is then the
// writer's to find out.
func (e *egress) change(add, del []firewall.Endpoint) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	var appear, vanish []firewall.Endpoint
	for _, p := range add {
		if e.want[p]++; e.want[p] == 1 {
			appear = append(appear, p)
		}
	}
	for _, p := range del {
		if e.want[p]--; e.want[p] <= 0 {
			delete(e.want, p)
			vanish = append(vanish, p)
		}
	}
	if len(appear)+len(vanish) == 0 {
		return nil
	}
	err := e.fence.Update(firewall.Contents{Egress: appear}, firewall.Contents{Egress: vanish})
	if err != nil {
		e.undo(add, del)
	}
	return err
}

func (e *egress) undo(add, del []firewall.Endpoint) {
	for _, p := range del {
		e.want[p]++
	}
	for _, p := range add {
		if e.want[p]--; e.want[p] <= 0 {
			delete(e.want, p)
		}
	}
}

func tcp(addrs []netip.AddrPort) []firewall.Endpoint {
	out := make([]firewall.Endpoint, len(addrs))
	for i, a := range addrs {
		out[i] = firewall.Endpoint{Proto: protoTCP, Addr: a.Addr(), Port: a.Port()}
	}
	return out
}
