// Package control is the road by which the commands reach a running gate: HTTP over a unix socket that only root may
// use.
//
//	s := &control.Server{Refuse: func(pid int) bool { return pid == proxyPID }}
//	s.Handle("status", func(ctx context.Context, q url.Values) (any, error) { return engine.Status(), nil })
//	s.Stream("watch", func(ctx context.Context, q url.Values, line func([]byte) error) error { ... })
//	err := s.Listen("/run/exitgate/control.sock"); go s.Serve(ctx)
//
//	c := control.Client{Path: "/run/exitgate/control.sock"}
//	err := c.Call(ctx, "status", nil, &status)    // control.ErrNotRunning where nothing answers
//
// The kernel says who calls: SO_PEERCRED must be uid 0, and not a process that Refuse names, since the proxy is root too
// and parses hostile bytes. The socket's mode is 0600 and its directory 0711, so that agents can pass to their own sockets.
//
// Not done here: no command is known to this package, and nothing is decided but who may call.
package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Call answers one question with a value that is sent as JSON.
type Call func(ctx context.Context, q url.Values) (any, error)

// Stream sends lines until ctx ends, line fails, or it is done.
type Stream func(ctx context.Context, q url.Values, line func([]byte) error) error

// Server answers on one socket.
type Server struct {
	Refuse func(pid int) bool // root processes that may not call; nil: none

	mux      http.ServeMux
	listener net.Listener
}

// failure is how an error travels.
type failure struct {
	Error string `json:"error"`
}

// Handle answers name by f.
func (s *Server) Handle(name string, f Call) {
	s.mux.HandleFunc("POST /"+name, func(w http.ResponseWriter, r *http.Request) {
		answer, err := f(r.Context(), r.URL.Query())
		if err != nil {
			w.WriteHeader(http.StatusUnprocessableEntity)
			answer = failure{err.Error()}
		}
		_ = json.NewEncoder(w).Encode(answer)
	})
}

// Stream answers name by lines, each sent at once.
func (s *Server) Stream(name string, f Stream) {
	s.mux.HandleFunc("POST /"+name, func(w http.ResponseWriter, r *http.Request) {
		rc := http.NewResponseController(w)
		_ = rc.Flush()
		_ = f(r.Context(), r.URL.Query(), func(line []byte) error {
			if _, err := w.Write(line); err != nil {
				return err
			}
			return rc.Flush()
		})
	})
}

// Listen makes the socket. One that a dead instance left is replaced; a live one is an error.
func (s *Server) Listen(path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o711); err != nil {
		return fmt.Errorf("%s: %w; mount a writable directory there (`--tmpfs /run/exitgate`), or set `control`", filepath.Dir(path), err)
	}
	if c, err := net.Dial("unix", path); err == nil {
		c.Close()
		return fmt.Errorf("%s: another exitgate runs here; set `control` to another path", path)
	}
	l, err := ListenUnix(path, 0o600)
	if err != nil {
		return err
	}
	s.listener = l
	return nil
}

// ListenUnix opens a socket of that mode in the place of one that an earlier instance left.
func ListenUnix(path string, mode os.FileMode) (net.Listener, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	if err := changeMode(path, mode); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

// changeMode changes that of a socket of ours. The directory may be one that an agent can write, for its own socket: what it
// has put in the place of that meanwhile, such as a link to a secret, stays as it is.
func changeMode(path string, mode os.FileMode) error {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return &os.PathError{Op: "stat", Path: path, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFSOCK || int(st.Uid) != os.Geteuid() {
		return fmt.Errorf("%s: somebody has put something else in its place; choose a directory that only root can write", path)
	}
	// fchmod refuses a descriptor of O_PATH, and fchmodat2 came with Linux 6.6.
	return os.Chmod(fmt.Sprintf("/proc/self/fd/%d", fd), mode)
}

// Serve answers until ctx ends, and removes the socket.
func (s *Server) Serve(ctx context.Context) {
	server := &http.Server{
		Handler:           &s.mux,
		ReadHeaderTimeout: 5 * time.Second,
		MaxHeaderBytes:    16 << 10,
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ErrorLog:          log.New(io.Discard, "", 0), // stderr may be the agent's terminal
	}
	stop := context.AfterFunc(ctx, func() { server.Close() })
	defer stop()
	_ = server.Serve(&guarded{s.listener, s.Refuse})
}

// Close stops listening and removes the socket.
func (s *Server) Close() error { return s.listener.Close() }

// guarded drops connections of callers that may not call, before a byte is read.
type guarded struct {
	net.Listener
	refuse func(pid int) bool
}

// Accept returns the next connection of root's.
func (g *guarded) Accept() (net.Conn, error) {
	for {
		c, err := g.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if cred, err := peer(c); err == nil && cred.Uid == 0 && (g.refuse == nil || !g.refuse(int(cred.Pid))) {
			return c, nil
		}
		c.Close()
	}
}

func peer(c net.Conn) (cred *unix.Ucred, err error) {
	s, ok := c.(syscall.Conn)
	if !ok {
		return nil, errors.New("not a socket")
	}
	raw, err := s.SyscallConn()
	if err != nil {
		return nil, err
	}
	if cerr := raw.Control(func(fd uintptr) {
		cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); cerr != nil {
		return nil, cerr
	}
	return cred, err
}

// ErrNotRunning is returned where no gate answers.
var ErrNotRunning = errors.New("no exitgate runs here")

// Client calls a running gate.
type Client struct{ Path string }

// Call asks name and decodes the answer into out. What the gate refuses comes back as an error with its words.
func (c Client) Call(ctx context.Context, name string, q url.Values, out any) error {
	body, err := c.open(ctx, name, q)
	if err != nil {
		return err
	}
	defer body.Close()
	return json.NewDecoder(body).Decode(out)
}

// Open asks name and returns the stream of its lines. It ends with the gate.
func (c Client) Open(ctx context.Context, name string, q url.Values) (io.ReadCloser, error) {
	body, err := c.open(ctx, name, q)
	if err != nil {
		return nil, err
	}
	return lines{body}, nil
}

// lines is a stream whose other end ends when its process does, and closes no chunk before.
type lines struct{ io.ReadCloser }

// Read takes a connection that is gone for the end.
func (l lines) Read(p []byte) (int, error) {
	n, err := l.ReadCloser.Read(p)
	if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) {
		err = io.EOF
	}
	return n, err
}

func (c Client) open(ctx context.Context, name string, q url.Values) (io.ReadCloser, error) {
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", c.Path)
	}}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://exitgate/"+name+"?"+q.Encode(), nil)
	if err != nil {
		return nil, err
	}
	response, err := transport.RoundTrip(request)
	if err != nil {
		return nil, c.explain(err)
	}
	if response.StatusCode == http.StatusOK {
		return response.Body, nil
	}
	defer response.Body.Close()
	var f failure
	if json.NewDecoder(io.LimitReader(response.Body, 1<<20)).Decode(&f) != nil || f.Error == "" {
		f.Error = "the running exitgate is of another version: it does not know " + name
	}
	return nil, errors.New(f.Error)
}

// explain tells apart why nothing answers. A caller that may not call has its connection closed, which net/http words in
// four ways, by how far it had come.
func (c Client) explain(err error) error {
	switch {
	case errors.Is(err, syscall.ENOENT), errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("%w (%s)", ErrNotRunning, c.Path)
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return err
	case os.Geteuid() != 0:
		return fmt.Errorf("%s: only root may ask the gate; run this as root", c.Path)
	case errors.Is(err, syscall.EACCES), errors.Is(err, syscall.EPERM):
		return fmt.Errorf("%s: the gate cannot be reached: %w; run this as root, with CAP_DAC_OVERRIDE", c.Path, err)
	}
	return fmt.Errorf("%s: the gate hung up: it is ending, or this process may not ask it; look at its log", c.Path)
}
