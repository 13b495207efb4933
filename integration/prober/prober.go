// Package prober is the program that runs inside a box and tries things: as the agent, as another uid, or as root.
//
//	prober serve     reads probes as JSON lines on standard input, runs each at once, writes results as JSON lines
//	prober do JSON   runs one probe, prints its results; - in place of JSON: it comes by standard input
//	prober init COMMAND ARGS                           a bare init, for comparison
//	prober reverse LISTEN UPSTREAM AUTHORIZATION       a bare proxy, for comparison: reverse, and CONNECT to anywhere
//	prober byhand LISTEN HOST:PORT AUTHORIZATION       the least that a reverse proxy can be, for comparison
//
// A result names what was seen, not what was hoped for: the errno by its name, the time it took, the bytes that came. The operations:
//
//	hello                          answers
//	tcp, udp                       connect, send Data, read what comes (Read bytes at most; 0: only connect)
//	socket                         socket(Domain, Type, Protocol), Options, then sendto Address with Data: ICMP, raw, packet, SCTP, vsock ...
//	unix                           connect to a unix socket: a path, or @NAME for an abstract one
//	sweep                          connect to every port of Address (a bare address); counts outcomes by errno
//	fill                           send a datagram to Address, which is on loopback, from Count different loopback sources
//	call                           a system call by name (Call) upon a process (PID): ptrace, pidfd_getfd, unshare_net ...
//	http                           dial, CONNECT to Tunnel if set, TLS to ServerName if set, send Data, read the answer
//	hold                           as http without an answer or tcp: keep sending Data every Every until it fails; one result when up, one at the end
//	connect                        CONNECT to Tunnel, and no more
//	send                           as http, but close as soon as Data is written
//	listen                         listen at Address and report who comes, until Timeout
//	self                           identity, capabilities, descriptors, environment
//	read, write                    a file
//	shell                          Data as a script for /bin/sh
//	flood                          connects, sends or listens (Network tcp, udp, listen) at each of Addresses in turn until Timeout, and
//	                               counts outcomes by address and errno
//	load, streams                  repeat a request, or read server-sent events, on Connections for Timeout after Every to warm up; quantiles
//	transfer                       the same with Size bytes, down or Up, after the request Data; Raw: without HTTP around them
//	pingpong, tunnels              the same with one byte each way, on one connection, or on a new one each time
//	idle                           hold Connections, each after one answer, until Timeout
//
// What it does not do: it judges nothing, and depends on no program or library of the box.
package prober

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Probe is one thing to try.
type Probe struct {
	ID          int           `json:"id,omitempty"`
	Op          string        `json:"op"`
	Address     string        `json:"address,omitempty"` // HOST:PORT with a literal host, or a path for read and write
	Addresses   []string      `json:"addresses,omitempty"`
	Network     string        `json:"network,omitempty"` // flood: tcp (default), udp or listen; listen: tcp (default), udp or unix
	Local       string        `json:"local,omitempty"`   // address to bind before connecting
	Data        []byte        `json:"data,omitempty"`
	Read        int           `json:"read,omitempty"`
	Tunnel      string        `json:"tunnel,omitempty"`      // HOST:PORT for CONNECT
	ServerName  string        `json:"server_name,omitempty"` // TLS to this name, verified against the box's certificate bundle
	Every       time.Duration `json:"every,omitempty"`
	Timeout     time.Duration `json:"timeout,omitempty"` // default 10 s
	Chunks      bool          `json:"chunks,omitempty"`  // http: one result for each piece of body as it comes
	HTTP2       bool          `json:"http2,omitempty"`   // TLS offers h2; only the handshake is of use then
	Keep        bool          `json:"keep,omitempty"`    // http: read to the end of the connection, not of the first answer
	Connections int           `json:"connections,omitempty"`
	Size        int64         `json:"size,omitempty"`  // transfer
	Up          bool          `json:"up,omitempty"`    // transfer: towards the server
	Raw         bool          `json:"raw,omitempty"`   // transfer: no HTTP
	Rate        int           `json:"rate,omitempty"`  // load: requests a second, of all connections together; default: as many as go
	Pause       time.Duration `json:"pause,omitempty"` // pingpong: between two
	Domain      int           `json:"domain,omitempty"`
	Type        int           `json:"type,omitempty"`
	Protocol    int           `json:"protocol,omitempty"`
	Mark        int           `json:"mark,omitempty"`    // socket: SO_MARK to try first
	Options     []Option      `json:"options,omitempty"` // socket: options to set first
	Flags       int           `json:"flags,omitempty"`   // socket: of the sending call
	Method      string        `json:"method,omitempty"`  // socket: sendto (default), sendmsg, sendmmsg, uring
	Call        string        `json:"call,omitempty"`    // call: which
	PID         int           `json:"pid,omitempty"`     // call: upon whom
	Count       int           `json:"count,omitempty"`   // fill: how many flows
}

// Option is a socket option: Data where it is there, else Value as an int.
type Option struct {
	Level, Name, Value int
	Data               []byte
}

// Encode is the probe as one line of JSON.
func (p Probe) Encode() string {
	b, err := json.Marshal(p)
	if err != nil {
		return fmt.Sprintf(`{"op":"%v"}`, err) // no field of Probe can fail to marshal
	}
	return string(b)
}

// Result is what was seen.
type Result struct {
	ID        int                 `json:"id,omitempty"`
	More      bool                `json:"more,omitempty"` // not the last result of this probe
	Errno     string              `json:"errno,omitempty"`
	Err       string              `json:"err,omitempty"`
	Stage     string              `json:"stage,omitempty"` // where it failed: dial, connect, tls, write, read
	Elapsed   time.Duration       `json:"elapsed"`
	At        time.Time           `json:"at"`
	Data      []byte              `json:"data,omitempty"`
	Status    int                 `json:"status,omitempty"`
	Header    map[string][]string `json:"header,omitempty"`
	First     time.Duration       `json:"first,omitempty"` // http: from sending to the first byte of the body
	Count     int                 `json:"count,omitempty"`
	Local     string              `json:"local,omitempty"`
	Tally     map[string]int      `json:"tally,omitempty"` // flood: "ADDRESS outcome" to number
	Quantiles *Quantiles          `json:"quantiles,omitempty"`
	Self      *Self               `json:"self,omitempty"`
}

// OK says that nothing failed.
func (r Result) OK() bool { return r.Err == "" && r.Errno == "" }

// String is the outcome in a few words, for messages.
func (r Result) String() string {
	if r.OK() {
		return fmt.Sprintf("ok after %s (status %d, %d bytes)", r.Elapsed.Round(time.Millisecond), r.Status, len(r.Data))
	}
	return fmt.Sprintf("%s %s at %q after %s", r.Errno, r.Err, r.Stage, r.Elapsed.Round(time.Millisecond))
}

// fail records err: the errno's name where there is one beneath it.
func (r *Result) fail(stage string, err error) {
	r.Stage, r.Err = stage, err.Error()
	var errno unix.Errno
	switch {
	case errors.As(err, &errno):
		r.Errno = unix.ErrnoName(errno)
	case errors.Is(err, os.ErrDeadlineExceeded):
		r.Errno = "timeout"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		r.Errno = "EOF"
	}
}

type emit func(Result)

var ops = map[string]func(Probe, emit) Result{
	"hello":   func(Probe, emit) Result { return Result{} },
	"tcp":     dial("tcp"),
	"udp":     dial("udp"),
	"socket":  socket,
	"http":    request,
	"hold":    hold,
	"send":    send,
	"connect": connectOnly,
	"listen":  listen,
	"self":    self,
	"read":    read,
	"write":   write,
	"shell":   shell,
	"flood":   flood,
	"load":    load,
	"streams": streams,

	"transfer": transfer,
	"pingpong": pingpong,
	"tunnels":  tunnels,
	"idle":     idle,
	"call":     systemCall,
	"unix":     unixConnect,
	"sweep":    sweep,
	"fill":     fill,
}

// Run runs one probe; results before the last go to more.
func Run(p Probe, more func(Result)) Result {
	if p.Timeout == 0 {
		p.Timeout = 10 * time.Second
	}
	start := time.Now()
	stamp := func(r Result) Result {
		r.ID, r.At = p.ID, time.Now()
		if r.Elapsed == 0 {
			r.Elapsed = time.Since(start)
		}
		return r
	}
	op := ops[p.Op]
	if op == nil {
		return stamp(Result{Err: fmt.Sprintf("unknown operation %q", p.Op)})
	}
	return stamp(op(p, func(r Result) {
		r.More = true
		more(stamp(r))
	}))
}

// Main is the program. It returns the exit code.
func Main(args []string) int {
	out := json.NewEncoder(os.Stdout)
	switch {
	case len(args) == 1 && args[0] == "serve":
		return serve(os.Stdin, out)
	case len(args) >= 2 && args[0] == "init":
		return initMain(args[1:])
	case len(args) == 4 && args[0] == "byhand":
		return byHandMain(args[1], args[2], args[3])
	case len(args) == 4 && args[0] == "reverse":
		return reverseMain(args[1], args[2], args[3])
	case len(args) == 2 && args[0] == "do":
		text := io.Reader(strings.NewReader(args[1]))
		if args[1] == "-" {
			text = os.Stdin
		}
		var p Probe
		if err := json.NewDecoder(text).Decode(&p); err != nil {
			fmt.Fprintln(os.Stderr, "prober:", err)
			return 2
		}
		out.Encode(Run(p, func(r Result) { out.Encode(r) }))
		return 0
	}
	fmt.Fprintln(os.Stderr, "usage: prober serve | do JSON | init COMMAND ARGS | reverse LISTEN UPSTREAM AUTHORIZATION | byhand LISTEN HOST:PORT AUTHORIZATION")
	return 2
}

func serve(in io.Reader, out *json.Encoder) int {
	var mu sync.Mutex
	say := func(r Result) {
		mu.Lock()
		defer mu.Unlock()
		out.Encode(r)
	}
	var running sync.WaitGroup
	lines := bufio.NewReader(in)
	for {
		line, err := lines.ReadBytes('\n')
		if err != nil {
			return 0 // whoever asked has gone
		}
		var p Probe
		if err := json.Unmarshal(line, &p); err != nil {
			fmt.Fprintln(os.Stderr, "prober:", err)
			continue
		}
		if p.Op == "exit" {
			running.Wait()
			return p.Read
		}
		running.Add(1)
		go func() {
			defer running.Done()
			say(Run(p, say))
		}()
	}
}
