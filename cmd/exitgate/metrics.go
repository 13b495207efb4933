package main

import (
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

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
	return nil
}

func listenMetrics(where string) (net.Listener, error) {
	path, isUnix := strings.CutPrefix(where, "unix:")
	if !isUnix {
		return net.Listen("tcp", where)
	}
	if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
		return nil, err
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}
