package proxy

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"exitgate/policy"
)

func TestMain(m *testing.M) {
	code := m.Run()
	http.DefaultTransport.(*http.Transport).CloseIdleConnections()
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

// The secrets of the tests. None is real.
const (
	apiKey   = "sk-ant-api03-FAKEkeyFAKEkeyFAKEkey-0123456789"
	oatKey   = "sk-ant-oat01-FAKEoatFAKEoatFAKEoat-0123456789"
	otherKey = "ghp_FAKEtokenFAKEtokenFAKEtoken0123456789"
)

// authority is a certificate authority of a test.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	must(t, err)
	cert, err := x509.ParseCertificate(der)
	must(t, err)
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	return &authority{cert, key, pool}
}

func (a *authority) issue(t testing.TB, notAfter time.Time, names ...string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: notAfter,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for _, n := range names {
		if ip := net.ParseIP(n); ip != nil {
			tmpl.IPAddresses = append(tmpl.IPAddresses, ip)
		} else {
			tmpl.DNSNames = append(tmpl.DNSNames, n)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, &key.PublicKey, a.key)
	must(t, err)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// names resolves what the test says, and counts.
type names struct {
	mu       sync.Mutex
	addrs    map[string][]netip.Addr
	fail     map[string]error
	asked    []string
	pinned   int
	released int
}

func newNames(hosts ...string) *names {
	n := &names{addrs: map[string][]netip.Addr{}, fail: map[string]error{}}
	for _, h := range hosts {
		n.addrs[h] = []netip.Addr{netip.MustParseAddr("127.0.0.1")}
	}
	return n
}

func (n *names) Resolve(_ context.Context, agent, _, host string, port uint16) (Pinned, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.asked = append(n.asked, fmt.Sprintf("%s %s:%d", agent, host, port))
	if err := n.fail[host]; err != nil {
		return Pinned{}, err
	}
	addrs, ok := n.addrs[host]
	if !ok {
		return Pinned{}, &Failure{Kind: "nxdomain", Msg: "no such name"}
	}
	n.pinned++
	return Pinned{Addrs: addrs, Release: func() {
		n.mu.Lock()
		n.released++
		n.mu.Unlock()
	}}, nil
}

func (n *names) held() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.pinned - n.released
}

func (n *names) count() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.asked)
}

// rig is a proxy on loopback with its surroundings.
type rig struct {
	t      testing.TB
	ca     *authority
	names  *names
	srv    *Server
	addr   string // of agent "claude"'s listener
	gen    uint64
	events chan policy.Event
	conns  chan Conn
	logs   logs
	served sync.WaitGroup
}

type logs struct {
	mu    sync.Mutex
	lines []string
}

func (l *logs) add(format string, args ...any) {
	l.mu.Lock()
	l.lines = append(l.lines, fmt.Sprintf(format, args...))
	l.mu.Unlock()
}

func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Join(l.lines, "\n")
}

// newRig starts a proxy without a policy. change may alter its options.
func newRig(t testing.TB, change ...func(*Options)) *rig {
	t.Helper()
	r := &rig{t: t, ca: newAuthority(t), names: newNames("api.example.test", "other.example.test", "plain.example.test"), events: make(chan policy.Event, 10000), conns: make(chan Conn, 10000)}
	opt := Options{
		Resolver: r.names, RootCAs: r.ca.pool, Log: r.logs.add,
		Audit: func(e policy.Event, c Conn) {
			select {
			case r.events <- e:
				r.conns <- c
			default:
			}
		},
	}
	for _, f := range change {
		f(&opt)
	}
	r.srv = New(opt)
	r.addr = r.listen("claude").Addr().String()
	t.Cleanup(r.close)
	return r
}

func (r *rig) listen(agent string) net.Listener {
	r.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(r.t, err)
	r.serve(agent, l)
	return l
}

func (r *rig) serve(agent string, l net.Listener) {
	r.served.Add(1)
	go func() {
		defer r.served.Done()
		if err := r.srv.Serve(agent, l); err != nil {
			r.t.Errorf("Serve: %v", err)
		}
	}()
}

func (r *rig) close() {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := r.srv.Shutdown(ctx); err != nil {
		r.t.Errorf("Shutdown: %v", err)
	}
	r.served.Wait()
	eventually(r.t, "every pin to be released", func() bool { return r.names.held() == 0 })
}

// load makes a policy from YAML without its version line.
func load(t testing.TB, yaml string) *policy.Policy {
	t.Helper()
	p, err := policy.Load("policy.yaml", []byte("version: 1\n"+yaml))
	if err != nil {
		t.Fatalf("policy: %v\n%s", err, yaml)
	}
	return p
}

// configure loads a policy and its secrets.
func (r *rig) configure(yaml string, secrets map[string]Secret) {
	r.t.Helper()
	r.gen++
	must(r.t, r.srv.Configure(Config{Policy: load(r.t, yaml), Generation: r.gen, Secrets: secrets}))
}

const oneAgent = `
agents:
  - name: claude
    uid: 1000
    listen: 127.0.0.1:8080
`

const oneCredential = `
credentials:
  - name: anthropic
    from: file:/run/secrets/anthropic
    kind: anthropic
`

// apiPolicy is one credentialed route to an upstream on port.
func apiPolicy(port int, allow ...string) string {
	if len(allow) == 0 {
		allow = []string{"GET /**", "POST /**", "HEAD /**", "HEAD /", "GET /", "PUT /**", "OPTIONS /**"}
	}
	return oneAgent + oneCredential + fmt.Sprintf(`
routes:
  - name: anthropic
    path: /
    upstream: https://api.example.test:%d
    credential: anthropic
    addresses: [127.0.0.0/8]
    allow:
      - %s
`, port, strings.Join(allow, "\n      - "))
}

func apiSecrets() map[string]Secret {
	return map[string]Secret{"anthropic": {Value: []byte(apiKey)}}
}

// api starts an upstream and configures apiPolicy for it.
func (r *rig) api(h http.HandlerFunc, protos ...string) *origin {
	r.t.Helper()
	o := r.origin(h, protos...)
	r.configure(apiPolicy(o.port), apiSecrets())
	return o
}

// origin is an upstream: net/http's server behind TLS.
type origin struct {
	port int
	srv  *http.Server
	ln   *countingListener
}

// countingListener remembers the connections it accepted.
type countingListener struct {
	net.Listener
	mu    sync.Mutex
	conns []net.Conn
}

func (l *countingListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err == nil {
		l.mu.Lock()
		l.conns = append(l.conns, c)
		l.mu.Unlock()
	}
	return c, err
}

func (l *countingListener) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.conns)
}

// origin starts an HTTPS upstream for api.example.test; protos are its ALPN.
func (r *rig) origin(h http.HandlerFunc, protos ...string) *origin {
	r.t.Helper()
	if len(protos) == 0 {
		protos = []string{"http/1.1"}
	}
	cert := r.ca.issue(r.t, time.Now().Add(time.Hour), "api.example.test", "other.example.test", "*.wild.example.test", "127.0.0.1")
	return r.originWith(h, &tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: protos})
}

func (r *rig) originWith(h http.HandlerFunc, conf *tls.Config) *origin {
	r.t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must(r.t, err)
	o := &origin{port: ln.Addr().(*net.TCPAddr).Port, ln: &countingListener{Listener: ln}}
	o.srv = &http.Server{Handler: h, ErrorLog: quiet()}
	o.srv.Protocols = new(http.Protocols)
	l := net.Listener(o.ln)
	o.srv.Protocols.SetHTTP1(true)
	if conf != nil {
		o.srv.TLSConfig = conf
		o.srv.Protocols.SetHTTP1(contains(conf.NextProtos, "http/1.1"))
		o.srv.Protocols.SetHTTP2(contains(conf.NextProtos, "h2"))
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if conf != nil {
			_ = o.srv.ServeTLS(l, "", "")
		} else {
			_ = o.srv.Serve(l)
		}
	}()
	r.t.Cleanup(func() {
		_ = o.srv.Close()
		<-done
	})
	return o
}

// rawOrigin starts a TLS upstream whose connections f serves byte by byte.
func (r *rig) rawOrigin(f func(net.Conn, *bufio.Reader)) int {
	r.t.Helper()
	cert := r.ca.issue(r.t, time.Now().Add(time.Hour), "api.example.test")
	return r.rawTCP(func(c net.Conn) {
		tc := tls.Server(c, &tls.Config{Certificates: []tls.Certificate{cert}})
		defer tc.Close()
		f(tc, bufio.NewReader(tc))
	})
}

func (r *rig) rawTCP(f func(net.Conn)) int {
	r.t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must(r.t, err)
	var wg sync.WaitGroup
	var mu sync.Mutex
	var open []net.Conn
	wg.Add(1)
	go func() {
		defer wg.Done()
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			open = append(open, c)
			mu.Unlock()
			wg.Add(1)
			go func() {
				defer wg.Done()
				defer c.Close()
				f(c)
			}()
		}
	}()
	r.t.Cleanup(func() {
		_ = ln.Close()
		mu.Lock()
		for _, c := range open {
			_ = c.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	return ln.Addr().(*net.TCPAddr).Port
}

// raw is a client of bytes.
type raw struct {
	t  testing.TB
	nc *net.TCPConn
	br *bufio.Reader
}

func (r *rig) dial() *raw {
	r.t.Helper()
	nc, err := net.Dial("tcp", r.addr)
	must(r.t, err)
	r.t.Cleanup(func() { _ = nc.Close() })
	_ = nc.SetDeadline(time.Now().Add(60 * time.Second))
	return &raw{r.t, nc.(*net.TCPConn), bufio.NewReader(nc)}
}

func (c *raw) send(format string, args ...any) {
	c.t.Helper()
	if len(args) > 0 {
		format = fmt.Sprintf(format, args...)
	}
	_, err := io.WriteString(c.nc, format)
	must(c.t, err)
}

// answer reads one answer, its body included.
func (c *raw) answer(method string) (*http.Response, string) {
	c.t.Helper()
	resp, body, err := c.tryAnswer(method)
	if err != nil {
		c.t.Fatalf("no answer: %v", err)
	}
	return resp, body
}

func (c *raw) tryAnswer(method string) (*http.Response, string, error) {
	resp, err := http.ReadResponse(c.br, &http.Request{Method: method})
	for err == nil && resp.StatusCode < 200 {
		resp, err = http.ReadResponse(c.br, &http.Request{Method: method})
	}
	if err != nil {
		return nil, "", err
	}
	body, err := io.ReadAll(resp.Body)
	return resp, string(body), err
}

// closed reports whether the proxy ends the connection.
func (c *raw) closed() bool {
	_ = c.nc.SetReadDeadline(time.Now().Add(10 * time.Second))
	_, err := c.br.ReadByte()
	return err != nil && !os.IsTimeout(err)
}

// get makes one request on a connection of its own.
func (r *rig) get(method, target string, fields ...string) (*http.Response, string) {
	r.t.Helper()
	c := r.dial()
	defer c.nc.Close()
	c.send("%s", method+" "+target+" HTTP/1.1\r\nHost: "+r.addr+"\r\n"+join(fields)+"\r\n")
	return c.answer(method)
}

func join(fields []string) string {
	var b strings.Builder
	for _, f := range fields {
		b.WriteString(f + "\r\n")
	}
	return b.String()
}

// event returns the next audit line.
func (r *rig) event() policy.Event {
	r.t.Helper()
	select {
	case e := <-r.events:
		<-r.conns
		return e
	case <-time.After(10 * time.Second):
		r.t.Fatal("no audit line")
		return policy.Event{}
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func eventually(t testing.TB, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if f() {
			return
		}
	}
	t.Errorf("waited in vain for %s", what)
}

func contains(list []string, s string) bool {
	for _, have := range list {
		if have == s {
			return true
		}
	}
	return false
}

// redirect dials loopback at *port whatever port was meant: tests cannot listen on 443.
func redirect(port *int) func(context.Context, netip.AddrPort) (net.Conn, error) {
	return func(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
		var d net.Dialer
		return d.DialTCP(ctx, "tcp", netip.AddrPort{}, netip.AddrPortFrom(to.Addr(), uint16(*port)))
	}
}
