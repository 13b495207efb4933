package main

import (
	"context"
	"net/url"
	"strconv"

	"exitgate/cmd/internal/control"
)

// answer puts the running gate's answers to the other commands on its control socket.
func (g *gate) answer(s *control.Server) {
	s.Handle("status", func(ctx context.Context, q url.Values) (any, error) {
		if err := g.await(ctx, q.Get("wait")); err != nil {
			return nil, err
		}
		g.engine.Look()
		return g.engine.Status(), nil
	})
	s.Handle("reload", func(ctx context.Context, _ url.Values) (any, error) {
		result, _ := g.engine.Reload(ctx, "exitgate reload") // the result tells what went wrong
		return result, nil
	})
	s.Handle("command", func(_ context.Context, q url.Values) (any, error) {
		if g.place.elsewhere() {
			return nil, errNotHere
		}
		return g.command(q.Get("agent"), g.env.environ())
	})
	s.Handle("environment", func(_ context.Context, q url.Values) (any, error) {
		return g.additions(q.Get("agent"))
	})
	s.Handle("verify", func(ctx context.Context, q url.Values) (any, error) {
		defer g.engine.Hush()()
		return g.selfTest(ctx, q.Get("agent"))
	})
	s.Handle("explain", func(_ context.Context, q url.Values) (any, error) {
		return answerExplain(g.engine.Policy(), g.fence.Contents(), g.mayConnect, g.pinned, q, g.env.now())
	})
	s.Handle("suggest", func(context.Context, url.Values) (any, error) {
		g.engine.TellDenied()
		return g.suggestion(), nil
	})
	s.Handle("report", func(context.Context, url.Values) (any, error) {
		g.engine.TellDenied()
		g.audit.Settle()
		return g.report.page()
	})
	s.Stream("watch", g.watch)
}

// await blocks until the gate is ready, or has come to the generation asked for.
func (g *gate) await(ctx context.Context, what string) error {
	if what == "" {
		return nil
	}
	generation, err := strconv.ParseUint(what, 10, 64)
	return g.engine.Await(ctx, func() bool {
		s := g.engine.Status()
		if err == nil {
			return s.Generation >= generation
		}
		return s.State == "ready"
	})
}

// pinned are the addresses of a host that root may reach now, and what went wrong with the last lookup of it.
func (g *gate) pinned(host string) (addresses []string, why string) {
	for _, h := range g.engine.Status().Hosts {
		if h.Host != host {
			continue
		}
		for _, a := range h.Addresses {
			addresses = append(addresses, a.Address)
		}
		why = h.LastError
	}
	return addresses, why
}

// watch sends every audit line from now on.
func (g *gate) watch(ctx context.Context, _ url.Values, line func([]byte) error) error {
	sub := g.audit.Subscribe(1024)
	defer sub.Close()
	for {
		select {
		case l, ok := <-sub.C:
			if !ok {
				return nil
			}
			if err := line(l); err != nil {
				return err
			}
		case <-ctx.Done():
			return nil
		}
	}
}
