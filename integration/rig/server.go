package rig

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Server says how a stand-in upstream behaves. The zero value speaks TLS with a good certificate, HTTP/1.1 and HTTP/2, on port 443.
type Server struct {
	Port    uint16        // default 443, or 80 where Plain
	Plain   bool          // no TLS
	H1      bool          // HTTP/1.1 only, and the bytes of each connection are kept as they arrived
	TTL     time.Duration // of the name's records; default 300 s
	Handler http.Handler  // default Standard()
	Expired bool          // certificate no longer valid
	Name    string        // certificate for this name, whatever was asked for
	Foreign bool          // certificate by an authority that nobody trusts
	Addr4   netip.Addr    // default: a new pair of addresses
	Addr6   netip.Addr
}

// Seen is one request as it arrived.
type Seen struct {
	Method, URI, Host, Proto string
	Header                   http.Header
	Body                     []byte
	Remote                   netip.AddrPort
	At                       time.Time
}

// Upstream is a running stand-in.
type Upstream struct {
	Name         string
	Addr4, Addr6 netip.Addr
	Port         uint16

	server *http.Server
	mu     sync.Mutex // guards following
	seen   []Seen
	raw    []*recorder
}

// HTTPS starts a stand-in for name on addresses of its own, and makes the name resolve to them.
func (w *World) HTTPS(name string, s Server) (*Upstream, error) {
	u := &Upstream{Name: name, Addr4: s.Addr4, Addr6: s.Addr6, Port: s.Port}
	if !u.Addr4.IsValid() && !u.Addr6.IsValid() {
		var err error
		if u.Addr4, u.Addr6, err = w.Addresses(); err != nil {
			return nil, err
		}
	}
	if u.Port == 0 {
		u.Port = 443
		if s.Plain {
			u.Port = 80
		}
	}
	if s.TTL == 0 {
		s.TTL = 300 * time.Second
	}
	if s.Handler == nil {
		s.Handler = Standard()
	}
	u.server = &http.Server{Handler: u.record(s.Handler), ErrorLog: discardLog, TLSConfig: &tls.Config{GetCertificate: certificates(name, s, w.CA)}}
	var addrs []netip.Addr
	for _, a := range []netip.Addr{u.Addr4, u.Addr6} {
		if !a.IsValid() {
			continue
		}
		addrs = append(addrs, a)
		l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(a, u.Port)))
		if err != nil {
			return nil, err
		}
		go u.serve(l, s)
	}
	w.onClose(u.server.Close)
	w.DNS.Set(name, s.TTL, addrs...)
	return u, nil
}

func (u *Upstream) serve(l net.Listener, s Server) {
	switch {
	case s.Plain:
		u.server.Serve(recording{l, u})
	case s.H1:
		// Behind a listener that is no *tls.Conn net/http speaks HTTP/1.1, and what it reads is the plaintext.
		conf := u.server.TLSConfig.Clone()
		conf.NextProtos = []string{"http/1.1"}
		u.server.Serve(recording{tls.NewListener(l, conf), u})
	default:
		u.server.ServeTLS(l, "", "")
	}
}

func certificates(own string, s Server, ca *CA) func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	issuer := ca
	if s.Foreign {
		issuer, _ = newCA("nobody's CA")
	}
	end := time.Now().Add(12 * time.Hour)
	if s.Expired {
		end = time.Now().Add(-time.Hour)
	}
	return func(h *tls.ClientHelloInfo) (*tls.Certificate, error) {
		name := s.Name
		if name == "" {
			name = h.ServerName
		}
		if name == "" {
			name = own
		}
		return issuer.Issue(name, end)
	}
}

func (u *Upstream) record(next http.Handler) http.Handler {
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		s := Seen{Method: r.Method, URI: r.RequestURI, Host: r.Host, Proto: r.Proto, Header: r.Header.Clone(), At: time.Now()}
		s.Remote, _ = netip.ParseAddrPort(r.RemoteAddr)
		body := &bytes.Buffer{}
		r.Body = io.NopCloser(io.TeeReader(r.Body, &limited{body, 1 << 20}))
		u.mu.Lock()
		u.seen = append(u.seen, s)
		at := len(u.seen) - 1
		u.mu.Unlock()
		defer func() {
			u.mu.Lock()
			defer u.mu.Unlock()
			u.seen[at].Body = body.Bytes()
		}()
		next.ServeHTTP(rw, r)
	})
}

// Seen is every request so far, in order of arrival. A body is complete when its handler has returned, and at most 1 MiB of it is kept.
func (u *Upstream) Seen() []Seen {
	u.mu.Lock()
	defer u.mu.Unlock()
	return append([]Seen(nil), u.seen...)
}

// Raw is what arrived on each connection, byte for byte (H1 and Plain only).
func (u *Upstream) Raw() [][]byte {
	u.mu.Lock()
	defer u.mu.Unlock()
	var all [][]byte
	for _, r := range u.raw {
		all = append(all, r.bytes())
	}
	return all
}

// URL is the upstream's base URL by name.
func (u *Upstream) URL() string {
	if u.Port == 443 {
		return "https://" + u.Name
	}
	return fmt.Sprintf("https://%s:%d", u.Name, u.Port)
}

// Close stops the upstream and resets what it serves; its name still resolves.
func (u *Upstream) Close() error { return u.server.Close() }

// Standard is the usual set of endpoints:
//
//	/reflect        what arrived, as JSON
//	/events?n=&ms=  n server-sent events, one each ms milliseconds, the first at once, each flushed; n=0: until the client leaves
//	/big?n=         n bytes
//	/hang           headers never come
//	/status/CODE    that code, with a body that says so
//
// Every path below /v1/messages streams events as well, the way a model's API does.
func Standard() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/", reflect)
	mux.HandleFunc("/events", events)
	mux.HandleFunc("/v1/messages", events)
	mux.HandleFunc("/big", func(w http.ResponseWriter, r *http.Request) {
		n, _ := strconv.ParseInt(r.FormValue("n"), 10, 64)
		w.Header().Set("Content-Length", strconv.FormatInt(n, 10))
		io.CopyN(w, pattern{}, n)
	})
	mux.HandleFunc("/hang", func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	mux.HandleFunc("/status/", func(w http.ResponseWriter, r *http.Request) {
		code, err := strconv.Atoi(strings.TrimPrefix(r.URL.Path, "/status/"))
		if err != nil {
			code = http.StatusBadRequest
		}
		w.WriteHeader(code)
		fmt.Fprintf(w, "upstream says %d", code)
	})
	return mux
}

func reflect(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(map[string]any{"method": r.Method, "uri": r.RequestURI, "host": r.Host, "header": r.Header, "body": string(body)})
}

func events(w http.ResponseWriter, r *http.Request) {
	io.Copy(io.Discard, r.Body)
	n, _ := strconv.Atoi(r.URL.Query().Get("n"))
	ms, _ := strconv.Atoi(r.URL.Query().Get("ms"))
	if ms == 0 {
		ms = 10
	}
	w.Header().Set("Content-Type", "text/event-stream")
	tick := time.NewTicker(time.Duration(ms) * time.Millisecond)
	defer tick.Stop()
	for i := 0; n == 0 || i < n; i++ {
		fmt.Fprintf(w, "event: tick\ndata: {\"n\":%d,\"sent\":%d}\n\n", i, time.Now().UnixNano())
		http.NewResponseController(w).Flush()
		select {
		case <-tick.C:
		case <-r.Context().Done():
			return
		}
	}
}

// pattern is an endless readable text.
type pattern struct{}

func (pattern) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = 'a' + byte(i%26)
	}
	return len(p), nil
}
