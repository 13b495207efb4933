package integration

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"exitgate/integration/prober"
	"exitgate/integration/rig"
)

// draft is a policy as it is made up, and changed as `explain` advises.
type draft struct {
	loopback string
	socket   bool
	egress   []*draftEgress
	routes   []*draftRoute
	extra    []string // egress entries that were advised, as they stand
}

type draftEgress struct {
	host             string
	ports            []int
	methods          []string
	expired, foreign bool // foreign: another agent's
}

type draftRoute struct {
	name, path string
	allow      []string
	expired    bool
}

const ended = "2020-01-01T00:00:00Z"

// text is the policy file.
func (d *draft) text() string {
	var b strings.Builder
	b.WriteString("version: 1\nagents:\n  - name: one\n")
	fmt.Fprintf(&b, "    loopback: %s\n", d.loopback)
	if d.socket {
		b.WriteString("    socket: /run/exitgate/one.sock\n")
	}
	b.WriteString("  - name: two\n    uid: 1001\n    listen: 127.0.0.1:8081\n    socket: /run/exitgate/two.sock\nroutes:\n")
	for _, r := range d.routes {
		fmt.Fprintf(&b, "  - name: %s\n    path: %s\n    upstream: https://h0.example.com\n    agents: [one]\n    allow: [%s]\n", r.name, r.path, strings.Join(r.allow, ", "))
		if r.expired {
			fmt.Fprintf(&b, "    expires: %s\n", ended)
		}
	}
	b.WriteString("egress:\n")
	for _, e := range d.egress {
		fmt.Fprintf(&b, "  - host: %q\n    ports: %s\n", e.host, strings.ReplaceAll(fmt.Sprint(e.ports), " ", ", "))
		if len(e.methods) > 0 {
			fmt.Fprintf(&b, "    methods: [%s]\n", strings.Join(e.methods, ", "))
		}
		if e.expired {
			fmt.Fprintf(&b, "    expires: %s\n", ended)
		}
		if e.foreign {
			b.WriteString("    agents: [two]\n")
		}
	}
	for _, e := range d.extra {
		fmt.Fprintf(&b, "  - %s\n", e)
	}
	return b.String()
}

// TestExplainRunning: a running gate says of an allowed host that it has no address and why, as a request is told, and a method with a path
// is a request on the listener, as the audit shows it.
func TestExplainRunning(t *testing.T) {
	t.Parallel()
	w := world(t)
	upstream(t, w, "api.example.com", rig.Server{})
	w.DNS.Set("files.example.com", time.Minute, netip.MustParseAddr("10.1.2.3"))
	g := up(t, w, basic)
	const why = "every address it resolves to is special-purpose: private (10.0.0.0/8); to allow one, list it under the entry's `addresses`"
	if r := g.do(tunnel("files.example.com")); r.Status != 502 || !strings.Contains(string(r.Data), "files.example.com has no address that is allowed: "+why) {
		t.Errorf("the request: %s %s", r, r.Data)
	}
	if out := g.exitgate("explain", "files.example.com:443").Stdout; !strings.Contains(out, "addresses  none: "+why) {
		t.Errorf("explain of a name without address:\n%s", out)
	}
	if r := g.do(web(listener, "GET", "/v1/models", listener)); r.Status != 200 {
		t.Fatalf("control: %s %s", r, r.Data)
	}
	if out := g.exitgate("explain", "https://api.example.com/v1/models").Stdout; !strings.Contains(out, "addresses  ") || strings.Contains(out, "none: ") {
		t.Errorf("control: explain of a name with address:\n%s", out)
	}
	for method, code := range map[string]int{"GET": 0, "DELETE": 1} {
		if out := g.exitgate("explain", method, "/v1/models"); out.Code != code || !strings.Contains(out.Stdout, method+" http://"+listener+"/v1/models") {
			t.Errorf("explain %s /v1/models: %d\n%s%s", method, out.Code, out.Stdout, out.Stderr)
		}
	}
}

// some takes each of from with an even chance, and one at least.
func some[T any](r *rand.Rand, from ...T) (all []T) {
	for _, x := range from {
		if r.IntN(2) == 0 {
			all = append(all, x)
		}
	}
	if len(all) == 0 {
		all = append(all, from[r.IntN(len(from))])
	}
	return all
}

func randomDraft(r *rand.Rand) *draft {
	d := &draft{loopback: []string{"deny", "own"}[r.IntN(2)], socket: r.IntN(2) == 0}
	for i := range 4 {
		host := fmt.Sprintf("h%d.example.com", i)
		if i == 3 {
			host = "*.example.net"
		}
		if r.IntN(4) > 0 {
			d.egress = append(d.egress, &draftEgress{host, some(r, 80, 443, 8443), some(r, "GET", "HEAD", "POST"), r.IntN(5) == 0, r.IntN(5) == 0})
		}
	}
	for i, path := range some(r, "/", "/v1", "/v1/deep") {
		patterns := some(r, "GET /**", "GET /models/*", "POST /messages", "GET /search?kind=a", "DELETE /a/**/z")
		d.routes = append(d.routes, &draftRoute{fmt.Sprintf("r%d", i), path, patterns, r.IntN(5) == 0})
	}
	return d
}

// deed is a question for explain, and the same as something to do.
type deed struct {
	ask   string
	probe prober.Probe
}

// deeds are things that an agent could do, drawn at random.
func deeds(r *rand.Rand, elsewhere *rig.Upstream) (all []deed) {
	hosts := []string{"h0.example.com", "h1.example.com", "h2.example.com", "a.example.net", "b.a.example.net", "example.net"}
	for range 12 {
		host, port := hosts[r.IntN(len(hosts))], []int{80, 443, 8443}[r.IntN(3)]
		all = append(all, deed{fmt.Sprintf("%s:%d", host, port), prober.Probe{Op: "connect", Address: listener, Tunnel: fmt.Sprintf("%s:%d", host, port)}})
	}
	for range 6 {
		host, method := hosts[r.IntN(len(hosts))], []string{"GET", "HEAD", "POST", "DELETE"}[r.IntN(4)]
		all = append(all, deed{method + " http://" + host + "/x", web(listener, method, "http://"+host+"/x", host)})
	}
	for range 14 {
		method := []string{"GET", "POST", "DELETE", "PUT"}[r.IntN(4)]
		path := []string{"", "/v1", "/v1/deep", "/other"}[r.IntN(4)] + []string{"/", "/models/m", "/models/m/n", "/messages", "/search?kind=a", "/search?kind=b", "/a/b/c/z", "/a/../b", "/%2e%2e/b"}[r.IntN(9)]
		all = append(all, deed{method + " http://" + listener + path, web(listener, method, path, listener)})
	}
	for _, port := range []int{8080, 8081, 3000, 2000} {
		to := "127.0.0.1:" + strconv.Itoa(port)
		all = append(all, deed{"packet tcp " + to, prober.Probe{Op: "tcp", Address: to, Timeout: 5 * time.Second}})
	}
	outside := at(elsewhere.Addr4, 443)
	return append(all,
		deed{"packet tcp " + outside, prober.Probe{Op: "tcp", Address: outside, Timeout: 5 * time.Second}},
		deed{"packet udp " + outside, prober.Probe{Op: "udp", Address: outside, Data: []byte("x"), Read: 1, Timeout: time.Second}},
		deed{"packet udp 127.0.0.1:53", prober.Probe{Op: "udp", Address: "127.0.0.1:53", Data: []byte("x"), Read: 1, Timeout: time.Second}},
		deed{"/run/exitgate/one.sock", web("/run/exitgate/one.sock", "GET", "/none", listener)},
		deed{"/run/exitgate/two.sock", web("/run/exitgate/two.sock", "GET", "/none", listener)},
		deed{"/run/exitgate/control.sock", web("/run/exitgate/control.sock", "POST", "/status", "x")},
		deed{"/tmp/open.sock", prober.Probe{Op: "shell", Data: []byte("python3 -c 'import socket; socket.socket(socket.AF_UNIX).connect(\"/tmp/open.sock\")'")}},
		deed{"/tmp/closed.sock", prober.Probe{Op: "shell", Data: []byte("python3 -c 'import socket; socket.socket(socket.AF_UNIX).connect(\"/tmp/closed.sock\")'")}})
}

func web(address, method, target, host string) prober.Probe {
	return prober.Probe{Op: "http", Address: address, Data: head(method, target, host, "Connection: close"), Timeout: 15 * time.Second}
}

// allowed reads what really happened: by the mark of a refusal, by what the connection came to, or by an exit code.
func allowed(d deed, r prober.Result) bool {
	switch d.probe.Op {
	case "connect", "http":
		_, refused := r.Header["Exitgate-Decision"]
		return r.Status != 0 && !(refused && r.Status == 403) || strings.HasSuffix(d.ask, "one.sock") && r.Status != 0
	}
	return r.OK() && r.Status == 0
}

type explanation struct {
	Decision, Road, Rule, Reason, Mend string
	Addresses                          []string
}

func (g *gate) explain(ask string) explanation {
	g.t.Helper()
	var e explanation
	out := g.exitgate(append([]string{"explain", "--json"}, strings.Fields(ask)...)...)
	if err := json.Unmarshal([]byte(out.Stdout), &e); err != nil || out.Code != map[string]int{"allow": 0, "deny": 1}[e.Decision] {
		g.t.Fatalf("explain %s: %v, exit %d, %q %q", ask, err, out.Code, out.Stdout, out.Stderr)
	}
	return e
}

var advice = []struct {
	form  *regexp.Regexp
	apply func(d *draft, e explanation, m []string) bool
}{
	{regexp.MustCompile("^to allow it add `- ((?:host:|\\{host:).*)`$"), func(d *draft, _ explanation, m []string) bool { d.extra = append(d.extra, m[1]); return true }},
	{regexp.MustCompile("^to allow it add `- ([A-Z]+ /.*)`$"), func(d *draft, e explanation, m []string) bool {
		return withRoute(d, e, func(r *draftRoute) { r.allow = append(r.allow, m[1]) })
	}},
	{regexp.MustCompile("^to allow it add (\\d+) to its `ports`$"), func(d *draft, e explanation, m []string) bool {
		port, _ := strconv.Atoi(m[1])
		return withEgress(d, e, func(x *draftEgress) { x.ports = append(x.ports, port) })
	}},
	{regexp.MustCompile("^to allow it add ([A-Z]+) to its `methods`$"), func(d *draft, e explanation, m []string) bool {
		return withEgress(d, e, func(x *draftEgress) { x.methods = append(x.methods, m[1]) })
	}},
	{regexp.MustCompile("^to allow it write a later `expires`$"), func(d *draft, e explanation, _ []string) bool {
		return withEgress(d, e, func(x *draftEgress) { x.expired = false }) || withRoute(d, e, func(r *draftRoute) { r.expired = false })
	}},
	{regexp.MustCompile("^to allow it add one to its `agents`$"), func(d *draft, e explanation, _ []string) bool {
		for _, x := range d.egress {
			if strings.Contains(e.Reason, "egress "+x.host+" ") {
				x.foreign = false
				return true
			}
		}
		return false
	}},
	{regexp.MustCompile("^to allow its own programs' ports write `loopback: own` in the agent$"), func(d *draft, _ explanation, _ []string) bool { d.loopback = "own"; return true }},
}

func withRoute(d *draft, e explanation, change func(*draftRoute)) bool {
	i := slices.IndexFunc(d.routes, func(r *draftRoute) bool { return e.Rule == "route/"+r.name })
	if i >= 0 {
		change(d.routes[i])
	}
	return i >= 0
}

func withEgress(d *draft, e explanation, change func(*draftEgress)) bool {
	i := slices.IndexFunc(d.egress, func(x *draftEgress) bool { return e.Rule == "egress/"+x.host })
	if i >= 0 {
		change(d.egress[i])
	}
	return i >= 0
}

// takeAdvice changes the draft as a refusal's mend says; not ok: the mend tells of no line.
func (d *draft) takeAdvice(e explanation) bool {
	for _, a := range advice {
		if m := a.form.FindStringSubmatch(e.Mend); m != nil {
			return a.apply(d, e, m)
		}
	}
	return false
}

// TestExplainIsTrue: what explain says of random policies is what proxy and kernel then do, and who follows its advice is let through.
func TestExplainIsTrue(t *testing.T) {
	t.Parallel()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	w := world(t)
	elsewhere := upstream(t, w, "elsewhere.example.org", rig.Server{})
	for _, name := range []string{"h0.example.com", "h1.example.com", "h2.example.com", "a.example.net", "b.a.example.net", "example.net"} {
		up := upstream(t, w, name, rig.Server{})
		for port, plain := range map[uint16]bool{80: true, 8443: false} {
			upstream(t, w, name, rig.Server{Port: port, Plain: plain, Addr4: up.Addr4, Addr6: up.Addr6})
		}
	}
	g := up(t, w, randomDraft(r).text())
	for _, s := range []struct{ path, mode string }{{"/tmp/open.sock", "0o666"}, {"/tmp/closed.sock", "0o600"}} {
		listen := fmt.Sprintf(`import socket, os, time; s = socket.socket(socket.AF_UNIX); s.bind(%q); os.chmod(%q, %s); s.listen(100); time.sleep(600)`, s.path, s.path, s.mode)
		if _, err := g.Run(context.Background(), rig.Command{Args: []string{"/bin/sh", "-c", "setsid python3 -c '" + listen + "' >/dev/null 2>&1 </dev/null &"}}); err != nil {
			t.Fatal(err)
		}
		eventually(t, s.path+" is there", func() bool { return g.as(0, prober.Probe{Op: "shell", Data: []byte("test -S " + s.path)}).Status == 0 })
	}
	for _, own := range []string{"127.0.0.1:3000", "127.0.0.1:2000"} { // or a refusal by nobody's listening could be taken for the fence's
		<-g.Agent().Start(prober.Probe{Op: "listen", Address: own, Timeout: 10 * time.Minute})
	}
	seen, advised := make(map[string]int), make(map[string]int)
	for round := 0; round < 5 && !t.Failed(); round++ {
		d, try := randomDraft(r), deeds(r, elsewhere)
		if round == 0 { // one of each kind is allowed, whatever chance brings
			d = &draft{"own", true, []*draftEgress{{"h0.example.com", []int{80, 443}, []string{"GET"}, false, false}}, []*draftRoute{{"r0", "/", []string{"GET /models/*"}, false}}, nil}
			try = append(try, deed{"h0.example.com:443", prober.Probe{Op: "connect", Address: listener, Tunnel: "h0.example.com:443"}},
				deed{"GET http://h0.example.com/x", web(listener, "GET", "http://h0.example.com/x", "h0.example.com")},
				deed{"GET http://" + listener + "/models/m", web(listener, "GET", "/models/m", listener)})
		}
		g.inForce(d.text())
		var denied []deed
		for _, x := range try {
			e, real := g.explain(x.ask), g.do(x.probe)
			if got := allowed(x, real); got != (e.Decision == "allow") {
				t.Errorf("explain %s: %s (%s); really %s %s\n%s", x.ask, e.Decision, e.Reason, real, real.Data, d.text())
			}
			if seen[e.Road+" "+e.Decision]++; e.Decision == "deny" {
				denied = append(denied, x)
			}
		}
		r.Shuffle(len(denied), func(i, j int) { denied[i], denied[j] = denied[j], denied[i] })
		for _, x := range denied[:min(8, len(denied))] {
			g.followAdvice(d, x, advised)
		}
	}
	for _, kind := range []string{"route", "connect", "forward", "packet", "unix"} {
		for _, decision := range []string{"allow", "deny"} {
			if seen[kind+" "+decision] == 0 && !t.Failed() {
				t.Errorf("no %s was seen to %s: %v", kind, decision, seen)
			}
		}
	}
	if len(advised) < 3 {
		t.Errorf("hardly any advice was followed: %v", advised)
	}
	t.Logf("%v; advice followed: %v", seen, advised)
}

// followAdvice changes the policy as explain says, until the deed is allowed or there is no more to be said.
func (g *gate) followAdvice(d *draft, x deed, advised map[string]int) {
	g.t.Helper()
	for range 4 {
		e := g.explain(x.ask)
		if e.Decision == "allow" {
			if real := g.do(x.probe); !allowed(x, real) {
				g.t.Errorf("%s is still denied, by a policy changed as explain says: %s\n%s", x.ask, real, d.text())
			}
			return
		}
		if !d.takeAdvice(e) {
			return
		}
		advised[regexp.MustCompile("`- .*`|\\d+|[A-Z]{3,} ").ReplaceAllString(e.Mend, "...")]++
		g.inForce(d.text())
	}
	g.t.Errorf("%s is not allowed however often one does what explain says:\n%s", x.ask, d.text())
}

// inForce brings a policy into force.
func (g *gate) inForce(policy string) {
	g.t.Helper()
	if out := g.reload(policy); out.Code != 0 {
		g.t.Fatalf("reload: %s\n%s", out.Stderr, policy)
	}
}
