package resolver

import (
	"net/netip"
	"slices"
	"strings"
	"time"
)

// HostStatus is what is known of one name.
type HostStatus struct {
	Host      string
	Ports     []uint16 // allowed now, sorted
	Addrs     []AddrStatus
	LastError string // of the last lookup; "" if it went well
	Root      bool   // a root entry of the policy: refreshed always
	Degraded  bool   // lookups fail, and an answer past its TTL is in use
}

// AddrStatus is one address of a name.
type AddrStatus struct {
	Addr      netip.Addr
	LeaseLeft time.Duration // 0: only pins keep it; -1: an address written in the policy, which needs no lease
	Pins      int           // connections using it, over all ports
}

// Status lists the names that an entry of the policy lists or that are in use, sorted.
func (r *Resolver) Status() []HostStatus {
	now := r.cfg.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	list := make([]HostStatus, 0, len(r.table.names))
	for _, n := range r.table.names {
		list = append(list, n.status(now))
	}
	slices.SortFunc(list, func(a, b HostStatus) int { return strings.Compare(a.Host, b.Host) })
	return list
}

func (n *name) status(now time.Time) HostStatus {
	s := HostStatus{Host: n.host, Root: n.root, Degraded: n.fails > 0 && len(n.answer) > 0 && !now.Before(n.until)}
	for _, c := range n.claims {
		s.Ports = append(s.Ports, c.port)
	}
	slices.Sort(s.Ports)
	s.Ports = slices.Compact(s.Ports)
	if n.failure != nil {
		s.LastError = n.failure.Msg
	}
	for _, l := range n.leases {
		left := max(0, l.until.Sub(now))
		if n.literal.IsValid() {
			left = -1
		}
		s.Addrs = append(s.Addrs, AddrStatus{Addr: l.addr, LeaseLeft: left, Pins: l.pins})
	}
	slices.SortFunc(s.Addrs, func(a, b AddrStatus) int { return a.Addr.Compare(b.Addr) })
	return s
}
