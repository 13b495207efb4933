package engine

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"

	"exitgate/firewall"
	"exitgate/policy"
)

// fixed are the set elements that follow from policy and name servers alone: listeners, published ports, resolvers.
// The pins come and go beside them. They change in two steps, so that at no time less is there than both the old and
// the new generation need: grow before the change, shrink after it.
type fixed struct {
	fence *firewall.Writer

	mu   sync.Mutex // guards have
	have firewall.Contents
}

// grow adds what want has more than there is.
func (f *fixed) grow(want firewall.Contents) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	add, _ := f.have.Diff(want)
	if err := f.fence.Update(add, firewall.Contents{}); err != nil {
		return err
	}
	f.have = merge(f.have, add)
	return nil
}

// shrink removes what want does not have.
func (f *fixed) shrink(want firewall.Contents) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	_, del := f.have.Diff(want)
	if err := f.fence.Update(firewall.Contents{}, del); err != nil {
		return err
	}
	f.have = want
	return nil
}

func merge(a, b firewall.Contents) firewall.Contents {
	a.Listeners = slices.Concat(a.Listeners, b.Listeners)
	a.Resolvers = slices.Concat(a.Resolvers, b.Resolvers)
	a.Published = slices.Concat(a.Published, b.Published)
	a.OwnLoopback = slices.Concat(a.OwnLoopback, b.OwnLoopback)
	a.RootLoopback = slices.Concat(a.RootLoopback, b.RootLoopback)
	return a
}

// contents compiles the fixed elements of p. Where the proxy dials from outside the fence nothing that is root's
// belongs into it.
func (e *Engine) contents(p *policy.Policy, servers []netip.AddrPort) firewall.Contents {
	if e.DirectDial {
		servers = nil
	}
	c := firewall.Compile(p, servers, nil)
	if e.DirectDial {
		c.RootLoopback = nil
	}
	return c
}

// widen commits all that p allows and the sets lack, and lets the resolver answer for p as well as for the policy
// before it. The function returned takes away what p does not allow.
func (e *Engine) widen(p *policy.Policy) (narrow func() error, err error) {
	e.widened.Store(true)
	removePins, err := e.resolver.SetPolicy(p)
	if err == nil {
		if err = e.fixed.grow(e.contents(p, e.resolver.Servers())); err != nil {
			err = errors.Join(err, e.resolveOnly(e.Policy()))
		}
	}
	if err != nil {
		e.widened.Store(false)
		return nil, fmt.Errorf("the fence refused the change: %w", err)
	}
	return func() error {
		defer e.widened.Store(false)
		if err := removePins(); err != nil {
			return err
		}
		return e.fixed.shrink(e.contents(p, e.resolver.Servers()))
	}, nil
}

// resolveOnly takes back what a failed change let the resolver answer for.
func (e *Engine) resolveOnly(p *policy.Policy) error {
	removePins, err := e.resolver.SetPolicy(p)
	if err != nil {
		return err
	}
	return removePins()
}

// useResolvers is called before a changed list of name servers is used: the new ones are opened, the old ones closed.
func (e *Engine) useResolvers(servers []netip.AddrPort) error {
	p := e.Policy()
	if p == nil || e.DirectDial {
		return nil // the first generation commits them with the rest
	}
	want := e.contents(p, servers)
	if err := e.fixed.grow(want); err != nil {
		e.Log("the name servers changed, and the fence did not take the new ones (%v); the old ones are asked", err)
		return err
	}
	if e.widened.Load() {
		return nil // the reload under way removes
	}
	return e.fixed.shrink(want)
}
