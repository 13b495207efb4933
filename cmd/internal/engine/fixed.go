package engine

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"exitgate/firewall"
	"exitgate/policy"
)

// fixed are the set elements that follow from policy and name servers alone: listeners, published ports, resolvers.
// The pins come and go beside them. They change in two steps, so that at no time less is there than both the old and
// the new generation need: grow before the change, narrow after it.
type fixed struct {
	fence  *firewall.Writer
	direct bool // the proxy dials from outside the fence: nothing that is root's belongs into it

	mu      sync.Mutex // guards the following
	have    firewall.Contents
	policy  *policy.Policy // what narrow leaves; nil before the first one
	servers []netip.AddrPort
	growing bool // between grow and narrow, while nothing is removed
}

// contents compiles the fixed elements of p. The caller holds mu.
func (f *fixed) contents(p *policy.Policy, servers []netip.AddrPort) firewall.Contents {
	if f.direct {
		servers = nil
	}
	c := firewall.Compile(p, servers, nil)
	if f.direct {
		c.RootLoopback = nil
	}
	return c
}

// begin keeps all that is there until narrow.
func (f *fixed) begin() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.growing = true
}

// grow adds what p needs and is not there.
func (f *fixed) grow(p *policy.Policy) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.add(f.contents(p, f.servers))
}

func (f *fixed) add(want firewall.Contents) error {
	add, _ := f.have.Diff(want)
	if err := f.fence.Update(add, firewall.Contents{}); err != nil {
		return err
	}
	f.have = merge(f.have, add)
	return nil
}

// narrow leaves what p needs, from now on. What the fence does not remove, settle may.
func (f *fixed) narrow(p *policy.Policy) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.policy, f.growing = p, false
	return f.shrink()
}

// settle removes what is too much, where no change is under way.
func (f *fixed) settle() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.growing {
		return nil // its narrow removes
	}
	return f.shrink()
}

func (f *fixed) shrink() error {
	want := f.contents(f.policy, f.servers)
	_, del := f.have.Diff(want)
	if err := f.fence.Update(firewall.Contents{}, del); err != nil {
		return err
	}
	f.have = want
	return nil
}

// use is called before other name servers are used: the new ones are opened, the old ones closed.
func (f *fixed) use(servers []netip.AddrPort) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.policy != nil { // the first generation commits them with the rest
		if err := f.add(f.contents(f.policy, servers)); err != nil {
			return err
		}
	}
	before := f.servers
	f.servers = servers
	if f.policy == nil || f.growing {
		return nil
	}
	err := f.shrink()
	if err != nil {
		f.servers = before
	}
	return err
}

func merge(a, b firewall.Contents) firewall.Contents {
	a.Listeners = slices.Concat(a.Listeners, b.Listeners)
	a.Resolvers = slices.Concat(a.Resolvers, b.Resolvers)
	a.Published = slices.Concat(a.Published, b.Published)
	a.OwnLoopback = slices.Concat(a.OwnLoopback, b.OwnLoopback)
	a.RootLoopback = slices.Concat(a.RootLoopback, b.RootLoopback)
	return a
}

// widen commits all that p allows and the sets lack, and lets the resolver answer for p as well as for the policy
// before it. The function returned takes away what p does not allow; on an error that is done here for the policy in force.
func (e *Engine) widen(p *policy.Policy) (narrow func() error, err error) {
	e.fixed.begin()
	removePins, err := e.resolver.SetPolicy(p)
	if err == nil {
		if err = e.fixed.grow(p); err != nil {
			err = errors.Join(err, e.resolveOnly(e.Policy()))
		}
	}
	if err != nil {
		e.narrowTo(e.Policy())
		return nil, fmt.Errorf("the fence refused the change: %w", err)
	}
	return func() error {
		err := removePins() // which the resolver tries again by itself
		return errors.Join(err, e.narrowTo(p))
	}, nil
}

// narrowTo leaves the fixed elements of p, and goes on trying where the fence refuses. A second policy that comes meanwhile
// says itself what is to be left.
func (e *Engine) narrowTo(p *policy.Policy) error {
	err := e.fixed.narrow(p)
	if err != nil {
		go e.settle()
	}
	return err
}

// settlePause is how long a removal that was refused waits.
const settlePause = time.Second

func (e *Engine) settle() {
	for {
		select {
		case <-time.After(settlePause):
		case <-e.proxy.ctx.Done():
			return
		}
		if e.fixed.settle() == nil {
			return
		}
	}
}

// resolveOnly takes back what a failed change let the resolver answer for.
func (e *Engine) resolveOnly(p *policy.Policy) error {
	removePins, err := e.resolver.SetPolicy(p)
	if err != nil {
		return err
	}
	return removePins()
}

// useResolvers is called before a changed list of name servers is used.
func (e *Engine) useResolvers(servers []netip.AddrPort) error {
	err := e.fixed.use(servers)
	if err != nil {
		e.Log("the name servers changed, and the fence did not take the new ones (%v); the old ones are asked", err)
	}
	return err
}
