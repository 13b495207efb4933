package attack

import (
	"context"
	"encoding/json"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"exitgate/integration/prober"
	"exitgate/integration/rig"
)

// taken is what a proxy that somebody took over must get, by what it tries. All that is not here succeeds without hardening and fence, and
// must be EPERM.
var taken = map[string]string{
	"resolve an allowed name": "ok", "resolve a shared route's upstream": "ok", "connect to a pinned address": "ok", // its job
	"resolve a name the policy lacks": "refused", "resolve an allowed name's other port": "refused", "resolve an address": "refused", "resolve loopback": "refused",
	"resolve a host of root's list": "refused", "resolve a name with a line end": "refused", "resolve a long name": "refused",
	"connect to an unpinned address": refused, "connect to an unpinned address, IPv6": refused, "connect to the name server by tcp": refused, "connect to the name server by tcp, IPv6": refused,
	"connect to a pinned address, other port": refused, "connect to the gateway": refused,
	"read the memory of PID 1": "EACCES", "read the environment of PID 1": "EACCES", "read the memory of another process of root": "EACCES", "read the environment of another process of root": "EACCES",
	"read the credential's file": "EACCES|EPERM",
}

// withoutLandlock are refused by file permissions alone, which root has.
const withoutLandlock = "EACCES|EPERM|ok"

// overlaid is the program with one file of its source changed, and files added, without touching the tree.
func overlaid(t *testing.T, file string, change func(string) string, added map[string]string) string {
	t.Helper()
	dir, err := filepath.Abs(module)
	if err != nil {
		t.Fatal(err)
	}
	original := filepath.Join(dir, file)
	text, err := os.ReadFile(original)
	if err != nil {
		t.Fatal(err)
	}
	changed := change(string(text))
	if changed == string(text) {
		t.Fatalf("%s is not as this test knows it", file)
	}
	into := t.TempDir()
	replaced, out, list := filepath.Join(into, "changed.go"), filepath.Join(into, "exitgate"), filepath.Join(into, "overlay.json")
	overlay := map[string]string{original: replaced}
	for to, from := range added {
		overlay[filepath.Join(dir, to)] = filepath.Join(dir, from)
	}
	data, err := json.Marshal(map[string]any{"Replace": overlay})
	if err != nil {
		t.Fatal(err)
	}
	for path, data := range map[string][]byte{replaced: []byte(changed), list: data} {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command("go", "build", "-ldflags=-s -w", "-overlay", list, "-o", out, "exitgate/cmd/exitgate")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOPROXY=off")
	if said, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, said)
	}
	return out
}

// takeoverBinary is the program with a proxy that turns on its PID 1 once it is as hardened as ever.
func takeoverBinary(t *testing.T) string {
	t.Helper()
	return overlaid(t, "cmd/exitgate/proxyprocess.go", func(text string) string {
		hardened, serves, ok := strings.Cut(text, "\t_ = guest.Serve(")
		if !ok || !strings.Contains(hardened, "HardenProxy()") {
			return text
		}
		return hardened + "\tgo takeover(guest, \"/etc/exitgate/orders\")\n\t_ = guest.Serve(" + serves
	}, map[string]string{"cmd/exitgate/takeover.go": "integration/attack/testdata/takeover/takeover.go"})
}

// TestTakeover: whoever takes the proxy over has its job and no more. The control is the same code as root in a box without a fence.
func TestTakeover(t *testing.T) {
	t.Parallel()
	binary := takeoverBinary(t)
	s := newScene(t, func(c *rig.Config) {
		c.Binary = binary
		c.Files["/etc/exitgate/noprogram"] = rig.File{Data: "\x00no program", Mode: 0o755}
	})
	elsewhere, err := s.w.HTTPS("elsewhere.example.net", rig.Server{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.w.HTTPS("files.example.com", rig.Server{Addr4: s.files.Addr4, Plain: true}); err != nil { // port 80 of the pinned address
		t.Fatal(err)
	}
	s.order(t, s.fenced, elsewhere)
	line, _, err := s.fenced.Stderr.Wait(0, patience*3, func(l string) bool { return strings.Contains(l, "takeover: {") })
	if err != nil {
		t.Fatal(err)
	}
	got, control := takeoverSaid(t, line), s.takeoverWithoutFence(t, elsewhere)
	landlock := landlocked(t)
	for _, name := range slices.Sorted(maps.Keys(got)) {
		if name == "identity" {
			continue
		}
		want := taken[name]
		switch {
		case want == "":
			want = "EPERM"
		case !landlock && strings.HasPrefix(name, "read "):
			want = withoutLandlock
		}
		without := "without hardening and fence: " + control[name]
		if strings.HasPrefix(name, "resolve ") {
			without = "an allowed name: " + got["resolve an allowed name"]
		} else if control[name] != "ok" {
			t.Errorf("control of %s: %s", name, control[name])
		}
		judge(t, row{"taken proxy", name, "proxy", want, got[name], without})
	}
	for name := range s.w.DNS.Asked() {
		if strings.Contains(name, "attacker") {
			t.Errorf("the resolver was asked for %s", name)
		}
	}
	for _, part := range []string{"Uid: 0 0 0 0", "CapPrm: 0000000000000000", "CapEff: 0000000000000000", "CapAmb: 0000000000000000", "NoNewPrivs: 1", "Seccomp: 2"} {
		if !strings.Contains(got["identity"], part) {
			t.Errorf("the proxy is not %s: %s", part, got["identity"])
		}
	}
	table.Add(row{"taken proxy", "identity", "proxy", "no capability, seccomp", got["identity"], "without hardening: " + control["identity"]}.line())
	route := say("GET /reflect HTTP/1.1", "Host: "+listener)
	if r := s.fenced.agents["agent"].Do(route); r.Status != 200 {
		t.Errorf("afterwards the route: %s", r)
	}
	s.oracle(t, "a proxy taken over", s.fenced)
}

// order tells a takeover in a box what to reach for.
func (s *scene) order(t *testing.T, p *place, elsewhere *rig.Upstream) {
	t.Helper()
	gate, err := s.w.HTTPS("gate"+p.Wire.Gate4().String(), rig.Server{Addr4: p.Wire.Gate4()})
	if err != nil {
		t.Fatal(err)
	}
	other := p.agents["root"].Do(prober.Probe{Op: "self"})
	text, err := json.Marshal(map[string]any{
		"Elsewhere4": netip.AddrPortFrom(elsewhere.Addr4, 443), "Elsewhere6": netip.AddrPortFrom(elsewhere.Addr6, 443), "DNS4": netip.AddrPortFrom(s.w.DNS.Addr4, 53), "DNS6": netip.AddrPortFrom(s.w.DNS.Addr6, 53),
		"Pinned": netip.AddrPortFrom(s.files.Addr4, 443), "Gate": netip.AddrPortFrom(gate.Addr4, 443), "Other": other.Self.PID,
	})
	if err == nil {
		err = p.Write("/etc/exitgate/orders", rig.File{Data: string(text)})
	}
	if err != nil {
		t.Fatal(err)
	}
}

// takeoverWithoutFence runs the same as root, with a socket where the control socket would be.
func (s *scene) takeoverWithoutFence(t *testing.T, elsewhere *rig.Upstream) map[string]string {
	t.Helper()
	s.order(t, s.bare, elsewhere)
	if err := os.MkdirAll(s.bare.Path("/run/exitgate"), 0o755); err != nil {
		t.Fatal(err)
	}
	if r := <-s.bare.agents["root"].Start(prober.Probe{Op: "listen", Network: "unix", Address: "/run/exitgate/control.sock", Timeout: time.Hour}); !r.OK() {
		t.Fatalf("control socket: %s", r)
	}
	ctx, stop := context.WithTimeout(context.Background(), patience)
	defer stop()
	out, err := s.bare.Run(ctx, rig.Command{Args: []string{rig.BinaryPath, "takeover", "/etc/exitgate/orders"}})
	if err != nil {
		t.Fatal(err)
	}
	return takeoverSaid(t, out.Stderr)
}

func takeoverSaid(t *testing.T, text string) map[string]string {
	t.Helper()
	got := map[string]string{}
	_, said, _ := strings.Cut(text, "takeover: ")
	said = strings.ReplaceAll(said, `\"`, `"`)
	if err := json.NewDecoder(strings.NewReader(said)).Decode(&got); err != nil || len(got) < 20 {
		t.Fatalf("it said %q: %v", text, err)
	}
	return got
}

// landlocked says whether this kernel has Landlock.
func landlocked(t *testing.T) bool {
	t.Helper()
	lsm, err := os.ReadFile("/sys/kernel/security/lsm")
	return err != nil || strings.Contains(string(lsm), "landlock")
}
