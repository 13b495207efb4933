package proxy

import (
	"context"
	"net"
)

// Server is the proxy. Its methods may be called at any time from any goroutine.
type Server struct{ opt Options }

// New returns a Server that refuses everything until it is configured.
func New(o Options) *Server { return &Server{opt: o} }

// Configure swaps in a new generation.
func (s *Server) Configure(c Config) error { return nil }

// Serve accepts agent's connections from l until l closes.
func (s *Server) Serve(agent string, l net.Listener) error { return nil }

// Shutdown stops accepting, waits for requests under way until ctx ends, then closes them.
func (s *Server) Shutdown(ctx context.Context) error { return nil }

// Stats returns the counters.
func (s *Server) Stats() Stats { return Stats{} }
