package rig

import (
	"crypto/tls"
	"net"
	"net/netip"
	"time"
)

// Fault is what a broken upstream does with a connection after the TLS handshake (before it, where plain).
type Fault func(net.Conn)

// The faults that upstreams have.
var (
	Reset   Fault = func(c net.Conn) { c.Read(make([]byte, 1)); reset(c) }
	Hang    Fault = func(c net.Conn) { time.Sleep(time.Hour) }
	Garbage Fault = func(c net.Conn) {
		c.Read(make([]byte, 4096))
		c.Write([]byte("\x00\xffnot http at all\r\n\r\n"))
		c.Close()
	}
	HangUp   Fault = func(c net.Conn) { c.Read(make([]byte, 4096)); c.Close() }
	Truncate Fault = func(c net.Conn) {
		c.Read(make([]byte, 4096))
		c.Write([]byte("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 1000\r\n\r\nonly this"))
		c.Close()
	}
)

// Say is a fault that answers whatever comes with these bytes.
func Say(response string) Fault {
	return func(c net.Conn) {
		c.Read(make([]byte, 64<<10))
		c.Write([]byte(response))
		time.Sleep(50 * time.Millisecond) // let them be read before the end
		c.Close()
	}
}

// reset closes with RST instead of FIN.
func reset(c net.Conn) {
	if t, ok := c.(*tls.Conn); ok {
		c = t.NetConn()
	}
	if t, ok := c.(*net.TCPConn); ok {
		t.SetLinger(0)
	}
	c.Close()
}

// Faulty starts an upstream for name that behaves like f with every connection. Port 0: 443.
func (w *World) Faulty(name string, port uint16, plain bool, f Fault) (v4, v6 netip.Addr, err error) {
	if v4, v6, err = w.Addresses(); err != nil {
		return v4, v6, err
	}
	if port == 0 {
		port = 443
	}
	w.DNS.Set(name, 300*time.Second, v4, v6)
	var conf *tls.Config
	if !plain {
		conf = &tls.Config{GetCertificate: certificates(name, Server{}, w.CA)}
	}
	for _, a := range []netip.Addr{v4, v6} {
		l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(a, port)))
		if err != nil {
			return v4, v6, err
		}
		w.onClose(l.Close)
		go f.serve(l, conf)
	}
	return v4, v6, nil
}

func (f Fault) serve(l net.Listener, conf *tls.Config) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			if conf == nil {
				f(c)
				return
			}
			if t := tls.Server(c, conf); t.Handshake() == nil {
				f(t)
			}
		}()
	}
}

// Nowhere makes name resolve to an address at which connections are refused.
func (w *World) Nowhere(name string) (netip.Addr, error) {
	v4, _, err := w.Addresses()
	if err == nil {
		w.DNS.Set(name, 300*time.Second, v4)
	}
	return v4, err
}
