package attack

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"exitgate/integration/prober"
	"exitgate/integration/rig"
	"exitgate/integration/rig/rigtest"

	"golang.org/x/sys/unix"
)

const (
	secret   = "sk-ant-api03-FAKE-attack-0123456789abcdef"
	listener = "127.0.0.1:8080"
	patience = 20 * time.Second // for what should happen at once, on a busy machine
)

// policy is the one under attack: a route with a credential, a tunnel host, a host of root's.
const policy = `version: 1
credentials:
  - name: api
    from: file:/run/secrets/api
routes:
  - name: api
    path: /
    upstream: https://api.example.com
    credential: api
    allow:
      - POST /v1/messages
      - GET /reflect
egress:
  - host: files.example.com
  - host: mirror.example.com
  - host: "*.wild.example.com"
  - host: plain.example.com
    ports: [80]
    methods: [GET]
root:
  - host: deb.example.org
    ports: [443]
`

// services are what other than the agent listens to on a box's loopback and on its own address: whose, and where.
func services(b *rig.Box) map[string]uint32 {
	return map[string]uint32{
		"127.0.0.1:9999": 0, "[::1]:9999": 0, "127.0.0.2:9998": 0, "127.0.0.11:53": 0, "127.0.0.53:53": 0, "127.0.0.11:40053": 0,
		at(b.Wire.Box4(), 9996): 0, at(b.Wire.Box6(), 9996): 0, "127.0.0.1:9997": 1001,
	}
}

// scene is a world with a fenced box and one without a fence, alike in everything else.
type scene struct {
	w                      *rig.World
	api, files, plain, deb *rig.Upstream
	fenced, bare           *place
}

// place is a box as an attempt sees it.
type place struct {
	*rig.Box
	s      *scene
	gate   bool                  // a fence is up
	agents map[string]*rig.Agent // by road
	proxy  int                   // pid of a process of root's that holds secrets: the proxy, or in the bare box some other
	v4, v6 netip.Addr            // addresses of the attempt's own, that nobody else sends to

	own     []netip.Addr // that the box's kernel asks the link about by itself
	reports int          // multicast listener reports until the fence was up
}

func at(a netip.Addr, port uint16) string { return netip.AddrPortFrom(a, port).String() }

func newScene(t *testing.T, change ...func(*rig.Config)) *scene {
	t.Helper()
	w := rigtest.World(t)
	s := &scene{w: w}
	for name, u := range map[string]**rig.Upstream{"api.example.com": &s.api, "files.example.com": &s.files, "deb.example.org": &s.deb} {
		*u = rigtest.HTTPS(t, w, name, rig.Server{})
	}
	s.plain = rigtest.HTTPS(t, w, "plain.example.com", rig.Server{Plain: true})
	w.DNS.Set("mirror.example.com", time.Hour, s.files.Addr4)
	cfg := rig.Config{World: w, Binary: program, Policy: policy, Files: boxFiles()}
	for _, c := range change {
		c(&cfg)
	}
	s.fenced = s.place(t, cfg, true)
	// Without a fence, and with what an engine gives by default: it shows what could be sent.
	cfg.Runc, cfg.NoNewPrivs, cfg.Capabilities = false, false, nil
	cfg.Plain, cfg.Serve, cfg.Args = true, true, []string{rig.ProberPath, "serve"}
	s.bare = s.place(t, cfg, false)
	return s
}

func boxFiles() map[string]rig.File {
	return map[string]rig.File{
		"/run/secrets/api": {Data: secret + "\n", Mode: 0o400},
		"/run/mine/x":      {Mode: 0o600},
	}
}

func (s *scene) place(t *testing.T, cfg rig.Config, gate bool) *place {
	t.Helper()
	b := rigtest.Start(t, cfg)
	p := &place{Box: b, s: s, gate: gate, agents: map[string]*rig.Agent{}}
	if err := b.Agent().Ready(patience); err != nil {
		t.Fatal(err)
	}
	if err := stage(b); err != nil {
		t.Fatal(err)
	}
	if gate {
		p.agents["agent"] = b.Agent()
	}
	for road, id := range map[string][2]uint32{"exec": {1000, 1000}, "gid 0": {1000, 0}, "nobody": {65534, 65534}, "root": {0, 0}, "uid 1001": {1001, 1001}} {
		a, err := b.As(id[0], id[1])
		if err != nil {
			t.Fatal(err)
		}
		p.agents[road] = a
	}
	p.serve(t)
	p.reports = p.listenerReports()
	return p
}

// stage leaves files in the box that a careless image might have.
func stage(b *rig.Box) error {
	for _, f := range []struct{ path, from, attr string }{{"/var/lib/suid", "/usr/bin/id", ""}, {"/var/lib/fcap", "/usr/bin/id", "security.capability"}} {
		if err := copyProgram(f.from, b.Path(f.path), f.attr); err != nil {
			return err
		}
	}
	return nil
}

// serve starts the services, and finds or starts the process that holds secrets.
func (p *place) serve(t *testing.T) {
	t.Helper()
	for where, uid := range services(p.Box) {
		road := map[uint32]string{0: "root", 1001: "uid 1001"}[uid]
		if r := <-p.agents[road].Start(prober.Probe{Op: "listen", Address: where, Timeout: time.Hour}); !r.OK() {
			t.Fatalf("%s listens at %s: %s", road, where, r)
		}
	}
	for _, name := range []string{"/run/root.sock", "@root"} {
		if r := <-p.agents["root"].Start(prober.Probe{Op: "listen", Network: "unix", Address: name, Timeout: time.Hour}); !r.OK() {
			t.Fatalf("root listens at %s: %s", name, r)
		}
	}
	if !p.gate {
		p.proxy = 1
		return
	}
	p.proxy = p.status(t).Proxy.PID
	if p.proxy == 0 {
		t.Fatal("no proxy runs")
	}
}

type status struct {
	State string
	Proxy struct{ PID, Restarts int }
	Hosts []struct {
		Host      string
		Addresses []struct{ Address string }
	}
}

func (p *place) status(t testing.TB) (s status) {
	t.Helper()
	out, err := p.Exitgate("status", "--json")
	if err == nil {
		err = json.Unmarshal([]byte(out.Stdout), &s)
	}
	if err != nil {
		t.Fatalf("status: %v (%q)", err, out.Stderr)
	}
	return s
}

// seen is a result in a word: the errno, an HTTP status, the exit code of a script, ok.
func seen(p prober.Probe, r prober.Result) string {
	switch {
	case p.Tunnel != "" && r.Status == 200 && r.Err != "":
		return "broken" // after the tunnel was there
	case r.Errno != "":
		return r.Errno
	case r.Status == 0 && r.Err != "":
		return r.Err
	case p.Op == "shell" && r.Status == 0:
		return "ok"
	case p.Op == "shell":
		return "exit " + strconv.Itoa(r.Status)
	case r.Status != 0:
		return strconv.Itoa(r.Status)
	}
	return "ok"
}

// allowed says what may arrive from the fenced box: the addresses that the policy's names have, and its resolver.
func (s *scene) allowed(f rig.Flow) bool {
	if f.Port == 53 && (f.Proto == unix.IPPROTO_UDP || f.Proto == unix.IPPROTO_TCP) {
		return f.Dst == s.w.DNS.Addr4
	}
	for _, u := range []*rig.Upstream{s.api, s.files, s.plain, s.deb} {
		if f.Proto == unix.IPPROTO_TCP && f.Port == u.Port && (f.Dst == u.Addr4 || f.Dst == u.Addr6) {
			return true
		}
	}
	return false
}

// oracle is the far side's verdict on a box. Call it last: it says how many packets came that the policy does not allow.
func (s *scene) oracle(t *testing.T, what string, p *place) {
	t.Helper()
	time.Sleep(50 * time.Millisecond) // what was sent last has to arrive
	p.own = []netip.Addr{p.Wire.Gate6(), p.Wire.Box6(), rig.Gate6Link, p.linkLocal(t)}
	bad := p.Capture().Except(s.allowed)
	for f, n := range p.Capture().Link() {
		if !s.link(p, f) {
			bad = append(bad, fmt.Sprintf("%s (%d packets)", f, n))
		}
	}
	if n, err := p.Capture().Lost(); err != nil || n > 0 {
		t.Errorf("the capture lost %d packets (%v)", n, err)
	}
	all := 0
	for _, n := range p.Capture().Flows() {
		all += n
	}
	got := fmt.Sprintf("%d of %d packets", len(bad), all)
	control := s.oracleSees(t)
	judge(t, row{"oracle", what, "wire", fmt.Sprintf("0 of %d packets", all), got, control})
	for _, b := range bad {
		t.Errorf("%s: left the box: %s", what, b)
	}
	if all == 0 {
		t.Errorf("%s: no packet at all arrived: the capture proves nothing", what)
	}
}

// oracleSees is the oracle's own control: it sees what the box without a fence sends, of either family, of TCP and of a protocol without a name.
func (s *scene) oracleSees(t *testing.T) string {
	t.Helper()
	p := s.bare.with(200, 0)
	for _, probe := range []prober.Probe{stream4(at(p.v4, 443)), stream6(at(p.v6, 443)), socket(unix.AF_INET, unix.SOCK_RAW, 253, at(p.v4, 0)), socket(unix.AF_INET6, unix.SOCK_RAW, 253, at(p.v6, 0))} {
		before := len(s.bare.Capture().Except(s.allowed))
		s.bare.agents["root"].Start(probe)
		for until := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
			if len(s.bare.Capture().Except(s.allowed)) > before {
				break
			}
			if time.Now().After(until) {
				t.Errorf("the oracle does not see %s without a fence", probe.Encode())
				break
			}
		}
	}
	return fmt.Sprintf("without a fence it sees tcp and protocol 253 of both families, and %d flows in all", len(s.bare.Capture().Except(s.allowed)))
}

// link says which housekeeping of the link is the kernel's own: it asks for its gateway and for its own addresses. Listener reports are
// the kernel's too until the fence is up, and nobody's afterwards.
func (s *scene) link(p *place, f rig.Flow) bool {
	switch {
	case f.Port == 143:
		return p.listenerReports() == p.reports
	case f.Port != 135:
		return true
	}
	return slices.ContainsFunc(p.own, func(a netip.Addr) bool { return f.Dst == a || f.Dst == solicited(a) })
}

// solicited is the multicast group that an address is asked for by.
func solicited(a netip.Addr) netip.Addr {
	b := a.As16()
	return netip.AddrFrom16([16]byte{0xff, 0x02, 11: 1, 12: 0xff, 13: b[13], 14: b[14], 15: b[15]})
}

func (p *place) listenerReports() (n int) {
	for f, k := range p.Capture().Link() {
		if f.Port == 143 {
			n += k
		}
	}
	return n
}

// linkLocal is the address that the box's kernel gave itself.
func (p *place) linkLocal(t *testing.T) netip.Addr {
	t.Helper()
	for until := time.Now().Add(patience); time.Now().Before(until); time.Sleep(10 * time.Millisecond) { // it comes with the carrier
		r := p.agents["root"].Do(prober.Probe{Op: "read", Address: "/proc/net/if_inet6"})
		for line := range strings.Lines(string(r.Data)) {
			f := strings.Fields(line)
			if len(f) == 6 && f[5] == "eth0" && f[3] == "20" {
				if b, err := hex.DecodeString(f[0]); err == nil {
					return netip.AddrFrom16([16]byte(b))
				}
			}
		}
	}
	t.Fatal("the box has no link-local address")
	return netip.Addr{}
}

// copyProgram puts a copy of a program into a box as an image might have it: setuid root, or with every file capability.
func copyProgram(from, to, attr string) error {
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	if err := os.WriteFile(to, data, 0o755); err != nil {
		return err
	}
	if attr == "" {
		return os.Chmod(to, 0o755|os.ModeSetuid)
	}
	all := []byte{1, 0, 0, 2} // struct vfs_cap_data: revision 2, effective
	for range 4 {
		all = append(all, 0xff, 0xff, 0xff, 0xff)
	}
	return unix.Setxattr(to, attr, all, 0)
}
