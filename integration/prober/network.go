package prober

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

func dialer(p Probe, network string) (*net.Dialer, error) {
	d := &net.Dialer{Timeout: p.Timeout}
	d.SetMultipathTCP(false)
	if p.Local == "" {
		return d, nil
	}
	at, err := netip.ParseAddrPort(p.Local)
	if err != nil {
		return nil, err
	}
	if network == "udp" {
		d.LocalAddr = net.UDPAddrFromAddrPort(at)
	} else {
		d.LocalAddr = net.TCPAddrFromAddrPort(at)
	}
	return d, nil
}

func dial(network string) func(Probe, emit) Result {
	return func(p Probe, _ emit) (r Result) {
		d, err := dialer(p, network)
		if err != nil {
			r.fail("dial", err)
			return r
		}
		c, err := d.Dial(network, p.Address)
		if err != nil {
			r.fail("dial", err)
			return r
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(p.Timeout))
		r.Local = c.LocalAddr().String()
		if len(p.Data) > 0 {
			if _, err := c.Write(p.Data); err != nil {
				r.fail("write", err)
				return r
			}
		}
		if p.Read == 0 {
			return r
		}
		r.Data = make([]byte, p.Read)
		n, err := c.Read(r.Data)
		r.Data = r.Data[:n]
		if err != nil {
			r.fail("read", err)
		}
		return r
	}
}

// socket tries what the net package has no word for. Timeout bounds a connect only by the kernel's own limits; such sockets do not block here.
func socket(p Probe, _ emit) (r Result) {
	fd, err := unix.Socket(p.Domain, p.Type|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, p.Protocol)
	if err != nil {
		r.fail("socket", err)
		return r
	}
	defer unix.Close(fd)
	if p.Mark != 0 {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, p.Mark); err != nil {
			r.fail("mark", err)
			return r
		}
	}
	if err := prepare(fd, p); err != nil {
		r.fail("option", err)
		return r
	}
	if p.Address == "" {
		return r
	}
	to, err := sockaddr(p)
	if err != nil {
		r.fail("address", err)
		return r
	}
	if p.Method == "uring" {
		if err := uringConnect(fd, to); err != nil {
			r.fail("connect", err)
		}
		return r
	}
	if p.Type == unix.SOCK_STREAM && p.Flags == 0 {
		err = unix.Connect(fd, to)
		if errors.Is(err, unix.EINPROGRESS) {
			err = established(fd, p.Timeout)
		}
		if err != nil {
			r.fail("connect", err)
		}
		return r
	}
	if err := transmit(fd, p, to); err != nil {
		r.fail("sendto", err)
		return r
	}
	if p.Read > 0 {
		r.Data, err = receive(fd, p.Read, p.Timeout)
		if err != nil {
			r.fail("read", err)
		}
	}
	return r
}

func sockaddr(p Probe) (unix.Sockaddr, error) {
	if p.Domain == unix.AF_PACKET {
		lo, err := net.InterfaceByName(p.Address)
		if err != nil {
			return nil, err
		}
		return &unix.SockaddrLinklayer{Ifindex: lo.Index, Protocol: 0x0008, Halen: 6}, nil
	}
	if p.Domain == unix.AF_VSOCK {
		return &unix.SockaddrVM{CID: unix.VMADDR_CID_HOST, Port: 53}, nil
	}
	at, err := netip.ParseAddrPort(p.Address)
	if err != nil {
		return nil, err
	}
	if at.Addr().Is4() && p.Domain != unix.AF_INET6 {
		return &unix.SockaddrInet4{Port: int(at.Port()), Addr: at.Addr().As4()}, nil
	}
	to := &unix.SockaddrInet6{Port: int(at.Port()), Addr: at.Addr().As16()}
	if zone := at.Addr().Zone(); zone != "" {
		link, err := net.InterfaceByName(zone)
		if err != nil {
			return nil, err
		}
		to.ZoneId = uint32(link.Index)
	}
	return to, nil
}

func established(fd int, limit time.Duration) error {
	if err := poll(fd, unix.POLLOUT, limit); err != nil {
		return err
	}
	errno, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err == nil && errno != 0 {
		err = unix.Errno(errno)
	}
	return err
}

func receive(fd, most int, limit time.Duration) ([]byte, error) {
	if err := poll(fd, unix.POLLIN, limit); err != nil {
		return nil, err
	}
	buf := make([]byte, most)
	n, _, err := unix.Recvfrom(fd, buf, 0)
	return buf[:max(n, 0)], err
}

func poll(fd int, what int16, limit time.Duration) error {
	until := time.Now().Add(limit)
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: what}}, int(time.Until(until).Milliseconds())+1)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return err
		case n == 0:
			return unix.ETIMEDOUT
		}
		return nil
	}
}

// listen accepts connections and answers each with a line, so that the other side knows that it got through.
func listen(p Probe, more emit) (r Result) {
	if p.Network == "udp" {
		return listenUDP(p, more)
	}
	network := p.Network
	if network == "" {
		network = "tcp"
	}
	l, err := net.Listen(network, p.Address)
	if err != nil {
		r.fail("listen", err)
		return r
	}
	defer l.Close()
	time.AfterFunc(p.Timeout, func() { l.Close() })
	more(Result{Local: l.Addr().String()})
	for {
		c, err := l.Accept()
		if err != nil {
			return r
		}
		r.Count++
		more(Result{Data: []byte(c.RemoteAddr().String()), Count: r.Count})
		go func() {
			defer c.Close()
			c.SetDeadline(time.Now().Add(p.Timeout))
			io.WriteString(c, "hello from the listener\n")
			io.Copy(c, c)
		}()
	}
}

func listenUDP(p Probe, more emit) (r Result) {
	c, err := net.ListenPacket("udp", p.Address)
	if err != nil {
		r.fail("listen", err)
		return r
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(p.Timeout))
	more(Result{Local: c.LocalAddr().String()})
	for buf := make([]byte, 2048); ; {
		n, from, err := c.ReadFrom(buf)
		if err != nil {
			return r
		}
		r.Count++
		more(Result{Data: bytes.Clone(buf[:n]), Local: from.String(), Count: r.Count})
	}
}

// flood tries each address in turn as fast as it can, on four threads of its own.
func flood(p Probe, _ emit) (r Result) {
	ctx, cancel := context.WithTimeout(context.Background(), p.Timeout)
	defer cancel()
	r.Tally = map[string]int{}
	var mu sync.Mutex
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			mine := map[string]int{}
			for ctx.Err() == nil {
				for _, a := range p.Addresses {
					mine[a+" "+once(p, a)]++
				}
			}
			mu.Lock()
			defer mu.Unlock()
			for k, n := range mine {
				r.Tally[k] += n
			}
		})
	}
	all.Wait()
	return r
}

// once is one connect, one datagram or one listener; it returns "ok" or the errno.
func once(p Probe, address string) string {
	network := p.Network
	if network == "" {
		network = "tcp"
	}
	var r Result
	if network == "listen" {
		l, err := net.Listen("tcp", address)
		if err == nil {
			l.Close()
			return "ok"
		}
		r.fail("", err)
		return r.Errno
	}
	c, err := (&net.Dialer{Timeout: 2 * time.Second}).Dial(network, address)
	if err == nil {
		if t, ok := c.(*net.TCPConn); ok {
			t.SetLinger(0) // no TIME_WAIT: ports would run out
		} else {
			_, err = c.Write([]byte("flood"))
		}
		c.Close()
	}
	if err == nil {
		return "ok"
	}
	r.fail("", err)
	if r.Errno == "" {
		return fmt.Sprintf("%.40s", r.Err)
	}
	return r.Errno
}
