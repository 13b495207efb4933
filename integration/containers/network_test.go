package containers

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"exitgate/integration/prober"
)

// TestDefaultNetwork: exitgate as PID 1 on the network that an engine gives to everybody.
func TestDefaultNetwork(t *testing.T) {
	each(t, everyEngine, func(t *testing.T, e *engine) {
		p := somewhere(t)
		wantOpen(t, e.open(t, nil, p.direct()...))
		p.wantFence(t, e.once(t, p.policy(), usual(), p.tries()...))
	})
}

// embedded is where an engine's own resolver answers.
var embedded = netip.MustParseAddr("127.0.0.11")

// network makes a network of one's own; it goes with the test, after its containers.
func (e *engine) network(t testing.TB) string {
	t.Helper()
	name := fmt.Sprintf("n%d", serial.Add(1))
	e.must(t, "network", "create", name)
	t.Cleanup(func() {
		if _, err := e.do("", "network", "rm", name); err != nil {
			t.Error(err)
		}
	})
	return name
}

// natTable is docker's own table in a container's network namespace.
func (c *container) natTable() string {
	c.t.Helper()
	out, err := exec.Command("nsenter", "--net=/proc/"+c.pid()+"/ns/net", "nft", "list", "table", "ip", "nat").CombinedOutput()
	if err != nil {
		c.t.Fatalf("nft: %v: %s", err, out)
	}
	return string(out)
}

// pid is the container's first process, as the stage's pid namespace numbers it.
func (c *container) pid() string {
	c.t.Helper()
	return c.must(c.t, "inspect", "--format", "{{.State.Pid}}", c.name)
}

var (
	randomPort = regexp.MustCompile(`dnat to 127\.0\.0\.11:(\d+)|--to-destination 127\.0\.0\.11:(\d+)`)
	anyNumber  = regexp.MustCompile(`packets \d+ bytes \d+|sport \d+|127\.0\.0\.11:\d+|dport \d{3,}`)
)

// TestEmbeddedDNS: docker's resolver inside the container's namespace serves root, and not the agent, neither at its address nor at
// the random ports behind it; its NAT table stays as docker made it. Docker 20.10 asks further from that namespace and does not say
// whom, so the policy does; newer ones say it in resolv.conf.
func TestEmbeddedDNS(t *testing.T) {
	t.Parallel()
	e := needs(t, "docker")
	for name, flags := range map[string][]string{"without --dns": nil, "with --dns": {"--dns", internet.DNS.Addr4.String()}} {
		t.Run(name, func(t *testing.T) {
			p := somewhere(t)
			flags := append([]string{"--network", e.network(t)}, flags...)
			open := e.start(t, flags, "sleep", "1000")
			probes := func(c *container) []prober.Probe {
				all := []prober.Probe{query(embedded, 53, p.api.Name), tcp(embedded, 53)}
				ports := randomPort.FindAllStringSubmatch(c.natTable(), -1)
				if len(ports) != 2 {
					t.Fatalf("%d ports behind the resolver in %s", len(ports), c.natTable())
				}
				for _, m := range ports {
					to := netip.AddrPortFrom(embedded, number(t, m[1]+m[2]))
					// One is UDP's and the other TCP's: which, the control tells.
					all = append(all, query(to.Addr(), to.Port(), p.api.Name), tcp(to.Addr(), to.Port()))
				}
				return all
			}
			control := open.as("1000", probes(open)...)
			wantOpen(t, control[:2])
			var reached int
			for _, r := range control[2:] {
				if r.OK() {
					reached++
				}
			}
			if reached != 2 {
				t.Fatalf("control: %d of 2 ports behind the resolver answer: %v", reached, control[2:])
			}
			c := e.gate(t, p.policy()+fmt.Sprintf("dns: {servers: [%s, %s]}\n", embedded, internet.DNS.Addr4), flags...)
			if got, want := anyNumber.ReplaceAllString(c.natTable(), "N"), anyNumber.ReplaceAllString(open.natTable(), "N"); got != want {
				t.Errorf("docker's table is\n%s\nand without exitgate\n%s", got, want)
			}
			wantRefused(t, c.as("1000", probes(c)...))
			p.wantFence(t, c.as("1000", p.tries()...))
			if r := c.as("0", query(embedded, 53, p.api.Name))[0]; !r.OK() || !bytes.Contains(r.Data, p.api.Addr4.AsSlice()) {
				t.Errorf("root asks the resolver: %s %x", r, r.Data)
			}
			if o := c.exec("exitgate", "status"); !strings.Contains(o.stdout, embedded.String()) || !strings.Contains(o.stdout, p.api.Addr4.String()) {
				t.Errorf("status: %v; want the resolver %s, and %s resolved", o, embedded, p.api.Name)
			}
		})
	}
}

// TestSilentResolver: with docker's resolver alone, and one that does not say whom it asks, doctor and status say what to write.
func TestSilentResolver(t *testing.T) {
	t.Parallel()
	e := needs(t, "docker")
	c := e.gate(t, somewhere(t).policy(), "--network", e.network(t))
	for _, command := range []string{"doctor", "status"} {
		if o := c.exec("exitgate", command); !strings.Contains(o.stdout, "dns.servers") {
			t.Errorf("%s: %v; want a word on dns.servers", command, o)
		}
	}
}

func number(t testing.TB, text string) (n uint16) {
	t.Helper()
	if _, err := fmt.Sscan(text, &n); err != nil {
		t.Fatalf("%q: %v", text, err)
	}
	return n
}

// TestNetworkOfOnesOwn: podman's resolver is at the gateway's address, and serves root and not the agent.
func TestNetworkOfOnesOwn(t *testing.T) {
	t.Parallel()
	e := needs(t, "podman")
	p := somewhere(t)
	network := e.network(t)
	gateway := netip.MustParseAddr(e.must(t, "network", "inspect", "--format", "{{range .Subnets}}{{.Gateway}}{{end}}", network))
	ask := query(gateway, 53, p.api.Name)
	wantOpen(t, e.open(t, []string{"--network", network}, ask))
	c := e.gate(t, p.policy(), "--network", network)
	wantRefused(t, c.as("1000", ask))
	p.wantFence(t, c.as("1000", p.tries()...))
	if r := c.as("0", ask)[0]; !r.OK() || !bytes.Contains(r.Data, p.api.Addr4.AsSlice()) {
		t.Errorf("root asks the resolver: %s %x", r, r.Data)
	}
}

// local is the policy of a gate that dials from the stage, where the internet's addresses are the machine's own.
func (p place) local(dir string) string {
	return strings.NewReplacer("/run/secrets/api", dir+"/key", "    path: /\n", "    path: /\n    addresses: ["+p.api.Addr4.String()+"/32]\n").Replace(p.policy())
}

// TestAttach: a container without capability or secret gets a way to one place, by an exitgate outside of it; one without a network too.
func TestAttach(t *testing.T) {
	each(t, []string{"docker", "podman"}, func(t *testing.T, e *engine) {
		for _, network := range [][]string{{"--network", "none"}, nil} {
			p := somewhere(t)
			c := e.start(t, append(with(), network...), "sleep", "1000")
			rs := c.as("1000", p.tries()...)
			if rs[0].OK() {
				t.Fatalf("control: without exitgate the call gets %s", rs[0])
			}
			want := wantRefused
			if network == nil {
				wantOpen(t, rs[1:])
			} else {
				want = wantUnreachable
			}
			a := attach(t, p, "--pid", c.pid())
			rs = c.as("1000", p.tries()...)
			p.wantCall(t, rs[0])
			want(t, rs[1:])
			want(t, c.as("0", p.direct()...))
			c.must(t, "kill", c.name)
			if err := <-a.ended; err != nil {
				t.Errorf("attach ends with its container: %v\n%s", err, &a.log)
			}
		}
	})
}

// wantUnreachable says that there is no network at all.
func wantUnreachable(t testing.TB, rs []prober.Result) {
	t.Helper()
	for i, r := range rs {
		if r.Errno != "ENETUNREACH" {
			t.Errorf("way %d: %s; want ENETUNREACH", i, r)
		}
	}
}

// attached is an `exitgate attach` on the stage.
type attached struct {
	ended chan error
	log   bytes.Buffer // to be read when it has ended
}

// attach starts one, which ends with the test at the latest, and waits until it is ready.
func attach(t *testing.T, p place, target ...string) *attached {
	t.Helper()
	dir, err := os.MkdirTemp("/run/rig", "attach")
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"key": secret, "policy.yaml": p.local(dir), "ca.pem": string(internet.CA.PEM())} {
		if err := os.WriteFile(dir+"/"+name, []byte(text), 0o400); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	control := dir + "/control.sock"
	cmd := exec.CommandContext(ctx, binary, append([]string{"attach", "--policy", dir + "/policy.yaml", "--control", control}, target...)...)
	cmd.Env = append(os.Environ(), "SSL_CERT_FILE="+dir+"/ca.pem")
	a := &attached{ended: make(chan error, 1)}
	cmd.Stdout, cmd.Stderr = &a.log, &a.log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { a.ended <- cmd.Wait(); close(a.ended) }()
	t.Cleanup(func() {
		cancel()
		<-a.ended
		if t.Failed() {
			t.Logf("attach:\n%s", &a.log)
		}
	})
	eventually(t, "attach is ready", func() bool { return exec.Command(binary, "status", "--control", control).Run() == nil })
	return a
}
