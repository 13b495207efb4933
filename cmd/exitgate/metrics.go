package main

import (
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	"exitgate/cmd/internal/control"
	"exitgate/policy"

	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// serveMetrics answers Prometheus at `metrics`: a unix socket that only root may open, or an address, which the fence
// keeps from the agent like every other.
func (g *gate) serveMetrics(ctx context.Context) error {
	where := g.settings.Metrics
	if where == "" || where == "off" {
		return nil
	}
	l, err := listenMetrics(where)
	if err != nil {
		return fmt.Errorf("metrics: %w; set `metrics` to off, unix:PATH or ADDR:PORT", err)
	}
	server := &http.Server{Handler: promhttp.HandlerFor(g.engine.Registry(), promhttp.HandlerOpts{}), ReadHeaderTimeout: 5 * time.Second,
		ErrorLog: log.New(io.Discard, "", 0)} // stderr may be the agent's terminal
	context.AfterFunc(ctx, func() { server.Close() })
	go server.Serve(l)
	if at, ok := l.Addr().(*net.TCPAddr); ok && !g.place.elsewhere() && !scrapable(g.engine.Policy(), at.AddrPort()) {
		g.logf("metrics at %s can be reached by nobody: the fence refuses root's loopback and connections from outside; write `root_loopback: [%d]` in the policy, or `root_inbound: [%[2]d]` and an address that is not loopback's",
			where, at.Port)
	}
	return nil
}

// scrapable reports whether the fence lets anybody reach a listener of root's.
func scrapable(p *policy.Policy, at netip.AddrPort) bool {
	return slices.Contains(p.RootLoopback, at.Port()) || !at.Addr().IsLoopback() && slices.Contains(p.RootInbound, at.Port())
}

func listenMetrics(where string) (net.Listener, error) {
	if path, ok := strings.CutPrefix(where, "unix:"); ok {
		return control.ListenUnix(path, 0o600)
	}
	return net.Listen("tcp", where)
}
