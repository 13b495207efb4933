package engine

import (
	"net/netip"
	"testing"

	"exitgate/policy"
	"exitgate/proxy"
)

// A flood of connections whose owners take long to find is let pass unsearched: what waits behind it, the proxy's answer
// to a ping among it, must not wait until PID 1 takes the proxy for dead.
func TestSearchesDoNotPileUp(t *testing.T) {
	p, err := policy.Load("policy.yaml", []byte("version: 1\n"))
	if err != nil {
		t.Fatal(err)
	}
	searched, gate := 0, make(chan struct{})
	e := &Engine{Options: Options{Caller: func(netip.AddrPort, netip.AddrPort, policy.Agent) (int, string) {
		<-gate
		searched++
		return 7, "/bin/agent"
	}}}
	e.current.Store(&generation{policy: p})
	c := newCallers(e)
	defer close(c.work)
	const flood = 4096
	for port := range flood {
		c.search("agent", proxy.Conn{Remote: netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(port+1))})
	}
	close(gate)
	c.flush()
	if searched < 1 || searched > maxBehind+2 {
		t.Errorf("%d of %d connections were searched, want at most the last %d", searched, flood, maxBehind)
	}
	c.search("agent", proxy.Conn{Remote: netip.MustParseAddrPort("127.0.0.1:1")})
	c.flush()
	if o := c.owners[client{addr: netip.MustParseAddrPort("127.0.0.1:1")}]; o.pid != 7 {
		t.Errorf("after the flood: %+v, want the owner", o)
	}
}
