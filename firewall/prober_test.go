package firewall

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"exitgate/netns/netnstest"
)

// The prober is a process with some uid inside a namespace. It does socket calls
// one by one, as it is told on its standard input, and answers with the errno
// and the time each took.

// call is one socket call. Which fields count depends on Op.
type call struct {
	Op     string // socket, connect, start, bind, listen, accept, send, recv, sendto, close, abort, join, setsockopt, local, flood
	FD     int
	Net    string // tcp4 tcp6 udp4 udp6 ping4 ping6 mptcp4 raw6
	Addr   string // address and port
	Data   []byte
	N      int
	Level  int
	Option int
	Millis int
}

// answer is what came of it. Err is the errno's name, "" for success.
type answer struct {
	Err     string
	FD, N   int
	Refused int // flood: sends the kernel refused
	Data    []byte
	Addr    string
	Micros  int64
}

func (a answer) took() time.Duration { return time.Duration(a.Micros) * time.Microsecond }

// probe is the prober's main.
func probe([]string) int {
	in, out := bufio.NewScanner(os.Stdin), json.NewEncoder(os.Stdout)
	in.Buffer(nil, 1<<20)
	for in.Scan() {
		var c call
		if err := json.Unmarshal(in.Bytes(), &c); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		start := time.Now()
		a, err := c.do()
		a.Micros = time.Since(start).Microseconds()
		if err != nil {
			a.Err = errnoName(err)
		}
		if err := out.Encode(a); err != nil {
			return 1
		}
	}
	return 0
}

func errnoName(err error) string {
	var e syscall.Errno
	if errors.As(err, &e) {
		return unix.ErrnoName(e)
	}
	return err.Error()
}

func (c call) do() (answer, error) {
	switch c.Op {
	case "socket":
		fd, err := c.socket()
		return answer{FD: fd}, err
	case "connect":
		return answer{}, eintr(func() error { return unix.Connect(c.FD, c.sockaddr()) })
	case "start": // to connect, and not wait
		return answer{}, c.start()
	case "bind":
		return answer{}, unix.Bind(c.FD, c.sockaddr())
	case "listen":
		return answer{}, unix.Listen(c.FD, c.N)
	case "accept":
		fd, from, err := unix.Accept(c.FD)
		if err == nil {
			setTimeouts(fd)
		}
		return answer{FD: fd, Addr: sockaddrText(from)}, err
	case "send":
		n, err := unix.SendmsgN(c.FD, c.Data, nil, nil, unix.MSG_NOSIGNAL|c.Option)
		return answer{N: n}, err
	case "sendto":
		n, err := unix.SendmsgN(c.FD, c.Data, nil, c.sockaddr(), unix.MSG_NOSIGNAL|c.Option)
		return answer{N: n}, err
	case "recv":
		buf := make([]byte, c.N)
		n, from, err := unix.Recvfrom(c.FD, buf, 0)
		return answer{N: n, Data: buf[:max(n, 0)], Addr: sockaddrText(from)}, err
	case "close":
		return answer{}, unix.Close(c.FD)
	case "try":
		return answer{}, c.try()
	case "serve":
		fd, err := c.serve()
		return answer{FD: fd}, err
	case "abort":
		return answer{}, errors.Join(unix.SetsockoptLinger(c.FD, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}), unix.Close(c.FD))
	case "setsockopt":
		return answer{}, unix.SetsockoptInt(c.FD, c.Level, c.Option, c.N)
	case "join":
		return answer{}, c.join()
	case "local":
		sa, err := unix.Getsockname(c.FD)
		return answer{Addr: sockaddrText(sa)}, err
	case "flood":
		return c.flood()
	}
	return answer{}, fmt.Errorf("no call %q", c.Op)
}

func eintr(f func() error) error {
	for {
		if err := f(); err != unix.EINTR {
			return err
		}
	}
}

var sockets = map[string][3]int{
	"tcp4": {unix.AF_INET, unix.SOCK_STREAM, 0}, "tcp6": {unix.AF_INET6, unix.SOCK_STREAM, 0},
	"udp4": {unix.AF_INET, unix.SOCK_DGRAM, 0}, "udp6": {unix.AF_INET6, unix.SOCK_DGRAM, 0},
	"ping4": {unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_ICMP}, "ping6": {unix.AF_INET6, unix.SOCK_DGRAM, unix.IPPROTO_ICMPV6},
	"mptcp4": {unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_MPTCP}, "raw6": {unix.AF_INET6, unix.SOCK_RAW, unix.IPPROTO_ICMPV6},
	"raw4": {unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_RAW},
}

func (c call) socket() (int, error) {
	s, ok := sockets[c.Net]
	if !ok {
		return -1, fmt.Errorf("no network %q", c.Net)
	}
	fd, err := unix.Socket(s[0], s[1]|unix.SOCK_CLOEXEC, s[2])
	if err != nil {
		return -1, err
	}
	setTimeouts(fd)
	return fd, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
}

// try connects a new socket, sends a datagram where it is of that kind (connecting
// one sends nothing), and closes.
func (c call) try() error {
	fd, err := c.socket()
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	c.FD = fd
	if strings.HasPrefix(c.Net, "ping") {
		return unix.Sendto(fd, []byte{8, 0, 0, 0, 0, 1, 0, 1}, 0, c.sockaddr())
	}
	if err = eintr(func() error { return unix.Connect(fd, c.sockaddr()) }); err == nil && strings.HasPrefix(c.Net, "udp") {
		_, err = unix.Write(fd, []byte("x"))
	}
	return err
}

func (c call) start() error {
	if err := unix.SetNonblock(c.FD, true); err != nil {
		return err
	}
	if err := unix.Connect(c.FD, c.sockaddr()); err != unix.EINPROGRESS {
		return err
	}
	return unix.SetNonblock(c.FD, false)
}

// serve accepts connections on an address, and closes them, for ever.
func (c call) serve() (int, error) {
	fd, err := c.socket()
	if err == nil {
		err = errors.Join(unix.Bind(fd, c.sockaddr()), unix.Listen(fd, 1000))
	}
	go func() {
		for err == nil {
			peer, _, aerr := unix.Accept(fd)
			switch aerr {
			case nil:
				unix.Close(peer)
			case unix.EAGAIN, unix.EINTR:
			default:
				return
			}
		}
	}()
	return fd, err
}

// patience bounds every call of a prober: a packet that was dropped shows as
// EAGAIN or EINPROGRESS after it.
const patience = 1500 * time.Millisecond

func setTimeouts(fd int) {
	tv := unix.NsecToTimeval(int64(patience))
	unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &tv)
	unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv)
}

func (c call) sockaddr() unix.Sockaddr {
	a, err := netip.ParseAddrPort(c.Addr)
	if err != nil {
		return nil
	}
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Addr: a.Addr().As4(), Port: int(a.Port())}
	}
	zone, _ := strconv.Atoi(a.Addr().Zone())
	return &unix.SockaddrInet6{Addr: a.Addr().As16(), Port: int(a.Port()), ZoneId: uint32(zone)}
}

func sockaddrText(sa unix.Sockaddr) string {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port)).String()
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr), uint16(sa.Port)).String()
	}
	return ""
}

func (c call) join() error {
	a := netip.MustParseAddr(c.Addr)
	if a.Is4() {
		return unix.SetsockoptIPMreqn(c.FD, unix.IPPROTO_IP, unix.IP_ADD_MEMBERSHIP, &unix.IPMreqn{Multiaddr: a.As4(), Ifindex: int32(c.N)})
	}
	return unix.SetsockoptIPv6Mreq(c.FD, unix.IPPROTO_IPV6, unix.IPV6_JOIN_GROUP, &unix.IPv6Mreq{Multiaddr: a.As16(), Interface: uint32(c.N)})
}

// flood sends datagrams on a connected socket for some time, one a call, so that
// each has an answer of its own. N is how many were sent.
func (c call) flood() (answer, error) {
	var a answer
	for end := time.Now().Add(time.Duration(c.Millis) * time.Millisecond); time.Now().Before(end); {
		for range 64 {
			switch _, err := unix.Write(c.FD, c.Data); err {
			case nil:
				a.N++
			case unix.EPERM:
				a.Refused++
			case unix.EINTR, unix.ECONNREFUSED, unix.EHOSTUNREACH, unix.EACCES: // all but the first tell of an earlier refusal
			default:
				return a, err
			}
		}
	}
	return a, nil
}

// prober is the test's end of a prober.
type prober struct {
	t   testing.TB
	in  io.Writer
	out *bufio.Reader
}

// newProber starts a prober as uid inside a namespace.
func newProber(t testing.TB, ns *netnstest.Namespace, uid uint32) *prober {
	t.Helper()
	return newProberOf(t, ns, owner{uid, uid})
}

func newProberOf(t testing.TB, ns *netnstest.Namespace, o owner) *prober {
	t.Helper()
	cmd := netnstest.Program("probe")
	if o != root {
		netnstest.As(cmd, o.uid, o.gid)
	}
	return startProber(t, ns, cmd)
}

func startProber(t testing.TB, ns *netnstest.Namespace, cmd *exec.Cmd) *prober {
	t.Helper()
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	ns.Start(cmd)
	return &prober{t, in, bufio.NewReader(out)}
}

// begin sends a call and returns what waits for its answer.
func (p *prober) begin(c call) func() answer {
	p.t.Helper()
	b, err := json.Marshal(c)
	if err != nil {
		p.t.Fatal(err)
	}
	if _, err := p.in.Write(append(b, '\n')); err != nil {
		p.t.Fatalf("prober: %v", err)
	}
	return func() answer {
		p.t.Helper()
		line, err := p.out.ReadBytes('\n')
		if err != nil {
			p.t.Fatalf("prober: %v", err)
		}
		var a answer
		if err := json.Unmarshal(line, &a); err != nil {
			p.t.Fatal(err)
		}
		return a
	}
}

func (p *prober) do(c call) answer {
	p.t.Helper()
	return p.begin(c)()
}

// must is do for calls that only prepare the ground.
func (p *prober) must(c call) answer {
	p.t.Helper()
	a := p.do(c)
	if a.Err != "" {
		p.t.Fatalf("prober: %s %s %s: %s", c.Op, c.Net, c.Addr, a.Err)
	}
	return a
}

// socket makes one, bound to local unless that is "".
func (p *prober) socket(network, local string) int {
	p.t.Helper()
	fd := p.must(call{Op: "socket", Net: network}).FD
	if local != "" {
		p.must(call{Op: "bind", FD: fd, Addr: local})
	}
	return fd
}

// listen makes a listening TCP socket.
func (p *prober) listen(local string) int {
	p.t.Helper()
	network := "tcp4"
	if strings.HasPrefix(local, "[") {
		network = "tcp6"
	}
	fd := p.socket(network, local)
	p.must(call{Op: "listen", FD: fd, N: 64})
	return fd
}

// dial connects a new socket. The socket stays open.
func (p *prober) dial(network, remote string) (int, answer) {
	p.t.Helper()
	fd := p.socket(network, "")
	return fd, p.do(call{Op: "connect", FD: fd, Addr: remote})
}

// try connects and closes, for the errno.
func (p *prober) try(network, remote string) answer {
	p.t.Helper()
	return p.do(call{Op: "try", Net: network, Addr: remote})
}
