package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"sync/atomic"
	"time"

	"exitgate/cmd/internal/supervise"

	"golang.org/x/sys/unix"
)

// Descriptors of the inner process, besides the agent's standard streams.
const (
	outerFD = 3 // where it reports
	orderFD = 4
)

// runInner is the main of the first process of an isolated agent's namespaces. It makes what is to be seen there, waits to be told,
// starts the agent, and ends when the agent or the outer process does; the kernel ends everything else in there with it.
func runInner() int {
	in, err := newInner()
	if err != nil {
		fmt.Fprintln(os.Stderr, "exitgate inner is started by `exitgate run --isolate`; it is no command of its own")
		return exitOurs
	}
	if err := in.build(); err != nil {
		in.say(message{Failed: err.Error()}, nil)
		return exitOurs
	}
	if !in.await() {
		return exitOurs
	}
	code, err := in.run()
	if err != nil {
		in.say(message{Log: err.Error()}, nil)
		fmt.Fprintf(os.Stderr, "exitgate: %v\n", err)
		return exitOurs
	}
	return code
}

type innerProcess struct {
	conn  *net.UnixConn
	order order
	grace time.Duration
	agent atomic.Int32 // its pid, once there is one
}

func newInner() (*innerProcess, error) {
	file := os.NewFile(orderFD, "order")
	outer := os.NewFile(outerFD, "outer")
	defer file.Close()
	in := &innerProcess{}
	conn, err := unixConn(outer)
	if err != nil {
		return nil, err
	}
	in.conn = conn
	if err := json.NewDecoder(file).Decode(&in.order); err != nil {
		return nil, err
	}
	in.grace, err = time.ParseDuration(in.order.Grace)
	return in, err
}

// say sends a message. Nobody is left to be told where that fails.
func (in *innerProcess) say(m message, file *os.File) {
	var rights []byte
	if file != nil {
		rights = unix.UnixRights(int(file.Fd()))
	}
	if b, err := json.Marshal(m); err == nil {
		_, _, _ = in.conn.WriteMsgUnix(b, rights, nil)
	}
}

func (in *innerProcess) build() error {
	master, err := in.order.Plan.Build(in.order.Terminal)
	if err != nil {
		return err
	}
	in.say(message{Ready: true}, master)
	if master != nil {
		master.Close()
	}
	return nil
}

// await returns true when the outer process says so, and false when it has ended.
func (in *innerProcess) await() bool {
	n, err := in.conn.Read(make([]byte, 16))
	return err == nil && n > 0
}

// run gives up all rights but those to start and end the agent, and does so.
func (in *innerProcess) run() (int, error) {
	c := in.order.Command
	supervise.ShareStreams(c.UID)
	if err := supervise.KeepOnly(unix.CAP_SETUID, unix.CAP_SETGID, unix.CAP_SETPCAP, unix.CAP_KILL); err != nil {
		return 0, err
	}
	s := supervise.New(supervise.Options{
		Grace:   in.grace,
		Hangup:  in.hangUp,
		Log:     func(format string, args ...any) { in.say(message{Log: fmt.Sprintf(format, args...)}, nil) },
		Stopped: func(sig unix.Signal) { in.say(message{Stopped: int(sig)}, nil) },
	})
	child, err := s.StartAgent(c)
	if err != nil {
		return 0, err
	}
	in.agent.Store(int32(child.PID))
	go func() {
		for in.await() {
		}
		os.Exit(128 + int(unix.SIGKILL)) // without the outer process there is no proxy, and nobody to end the agent
	}()
	return s.Run(context.Background(), child), nil
}

// hangUp passes on a HUP that comes from outside: there it was a terminal's.
func (in *innerProcess) hangUp() {
	if pid := in.agent.Load(); pid != 0 {
		_ = unix.Kill(-int(pid), unix.SIGHUP)
	}
}
