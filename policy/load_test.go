package policy

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestGood loads right policies and compares their canonical form with a
// golden file; -update rewrites it.
func TestGood(t *testing.T) {
	files, _ := filepath.Glob("testdata/good/*.yaml")
	if len(files) < 4 {
		t.Fatalf("found %d right policies", len(files))
	}
	for _, f := range files {
		t.Run(strings.TrimSuffix(filepath.Base(f), ".yaml"), func(t *testing.T) {
			data, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			p := mustLoad(t, string(data))
			golden := strings.TrimSuffix(f, ".yaml") + ".golden"
			if *update {
				if err := os.WriteFile(golden, p.Canonical(), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), string(p.Canonical())); diff != "" {
				t.Errorf("canonical form (-want +got):\n%s", diff)
			}
			checkStable(t, p)
			if !bytes.Equal(p.Source(), data) {
				t.Error("Source is not what was loaded")
			}
		})
	}
}

// checkStable holds the canonical form to its promise: a policy, of the same
// meaning, with itself as canonical form.
func checkStable(t *testing.T, p *Policy) {
	t.Helper()
	again, err := Load("canonical.yaml", p.Canonical())
	if err != nil {
		t.Fatalf("the canonical form does not load: %v\n%s", err, p.Canonical())
	}
	if diff := cmp.Diff(string(p.Canonical()), string(again.Canonical())); diff != "" {
		t.Fatalf("the canonical form of the canonical form differs:\n%s", diff)
	}
	if p.Digest() != again.Digest() {
		t.Fatal("the digest changed")
	}
	for _, c := range Diff(p, again) {
		t.Fatalf("a difference to the canonical form: %s", c.Text)
	}
}

func TestDefaults(t *testing.T) {
	p := mustLoad(t, "version: 1\n")
	want := []Agent{{Name: "agent", UID: 1000, Listen: defaultListen, Loopback: LoopbackDeny,
		Limits: Limits{Connections: 512}, At: Position{File: "policy.yaml"}}}
	if diff := cmp.Diff(want, p.Agents, cmp.Comparer(func(a, b Position) bool { return a == b }), cmp.Transformer("listen", func(a Agent) string { return a.Listen.String() + a.Name })); diff != "" {
		t.Error(diff)
	}
	if got := p.Agents[0]; got.Limits != want[0].Limits || got.UID != 1000 || got.GID != nil || got.Loopback != LoopbackDeny || got.Listen.String() != "127.0.0.1:8080" {
		t.Errorf("default agent: %+v", got)
	}
	p = mustLoad(t, "version: 1\ncredentials:\n  - {name: a, from: \"fd:3\"}\n  - {name: b, from: \"fd:4\", header: X-Key}\n  - {name: c, from: \"fd:5\", kind: anthropic}\negress: [{host: a.example}]\nroot: [{host: b.example}]\n")
	for i, want := range []Credential{{Header: "Authorization", Format: "Bearer {}", Kind: KindHeader}, {Header: "X-Key", Format: "{}", Kind: KindHeader}, {Kind: KindAnthropic}} {
		if got := p.Credentials[i]; got.Header != want.Header || got.Format != want.Format || got.Kind != want.Kind {
			t.Errorf("credential %d: %+v, want %+v", i, got, want)
		}
	}
	if got := p.Egress[0].Ports; len(got) != 1 || got[0] != 443 {
		t.Errorf("egress ports %v", got)
	}
	if got := p.Root[0].Ports; len(got) != 1 || got[0] != 443 {
		t.Errorf("root ports %v", got)
	}
}

// TestDigest: comments, order and equivalent spellings do not count; a change
// of meaning does.
func TestDigest(t *testing.T) {
	base := mustLoad(t, `
version: 1
routes:
  - name: api
    path: /api
    upstream: https://api.example.com
    allow: [GET /b, "GET /a?x=1&y=2"]
egress:
  - host: a.example.com
    ports: [443, 80]
    methods: [GET]
  - host: xn--bcher-kva.example
`)
	same := mustLoad(t, `
# the same, otherwise
version: 1
egress:
  - {host: BÜCHER.example.}
  - ports: [80, 443]   # sorted
    methods: ["GET"]
    host: "A.EXAMPLE.COM."
    required: false
routes:
  - allow:
      - GET /%61?y=2&x=%31
      - GET /b
    upstream: https://API.example.com.:443/
    path: /api/
    name: api
agents:
  - name: agent
    limits: {connections: 512}
`)
	if base.Digest() != same.Digest() {
		t.Errorf("equal policies differ:\n%s", cmp.Diff(string(base.Canonical()), string(same.Canonical())))
	}
	if len(Diff(base, same)) != 0 {
		t.Errorf("changes between equal policies: %v", Diff(base, same))
	}
	text := string(base.Canonical())
	seen := map[string]string{base.Digest(): "base"}
	for _, edit := range [][2]string{
		{"127.0.0.1:8080", "127.0.0.1:8081"}, {"uid: 1000", "uid: 1001"}, {"/api", "/apy"}, {"api.example.com", "apy.example.com"},
		{"GET /b", "HEAD /b"}, {"x=1", "x=2"}, {"[80, 443]", "[443]"}, {`methods: ["GET"]`, "required: true"}, {"connections: 512", "connections: 511"},
		{`loopback: "deny"`, `loopback: "own"`}, {"egress:\n", "root:\n  - host: a.example\negress:\n"},
	} {
		p := mustLoad(t, strings.Replace(text, edit[0], edit[1], 1))
		if other, taken := seen[p.Digest()]; taken {
			t.Errorf("%q -> %q has the digest of %s", edit[0], edit[1], other)
		}
		if len(Diff(base, p)) == 0 {
			t.Errorf("%q -> %q is no change to Diff", edit[0], edit[1])
		}
		seen[p.Digest()] = edit[1]
	}
	if !strings.HasPrefix(base.Digest(), "sha256:") || len(base.Digest()) != len("sha256:")+64 {
		t.Errorf("digest %q", base.Digest())
	}
}

func TestEmptyLists(t *testing.T) {
	p := mustLoad(t, "version: 1\npresets: []\ncredentials: []\nroutes: []\negress: []\nroot: []\nroot_loopback: []\nroot_inbound: []\ndns: {servers: []}\n")
	for _, r := range []Request{
		{Road: RoadRoute, Method: "GET", Path: "/"},
		{Road: RoadConnect, Host: "a.example.com", Port: 443},
		{Road: RoadForward, Method: "GET", Host: "a.example.com", Port: 80},
	} {
		if d := p.Decide(r); d.Allow || d.Rule != "default" {
			t.Errorf("%+v: %+v", r, d)
		}
	}
	if p.Digest() != mustLoad(t, "version: 1\n").Digest() {
		t.Error("an empty list and none differ")
	}
}

func TestSize(t *testing.T) {
	full := append([]byte("version: 1\n"), bytes.Repeat([]byte("#\n"), MaxSize/2)...)[:MaxSize]
	if _, err := Load("p", full); err != nil {
		t.Errorf("%d bytes: %v", len(full), err)
	}
	_, err := Load("p", append(full, '\n'))
	if want := "p:1:1: the file has 8388609 bytes, more than the 8388608 a policy may have; is it the right file?"; err == nil || err.Error() != want {
		t.Errorf("%d bytes: %v", len(full)+1, err)
	}
	for _, data := range [][]byte{nil, []byte("\xef\xbb\xbf"), []byte("---\n"), []byte("~\n")} {
		if _, err := Load("p", data); err == nil {
			t.Errorf("%q loads", data)
		}
	}
	if _, err := Load("p", []byte("\xef\xbb\xbfversion: 1\r\negress: []\r\n")); err != nil {
		t.Errorf("byte order mark and CRLF: %v", err)
	}
}

// TestManyErrors: a file of mistakes is answered in bounded size, and sorted.
func TestManyErrors(t *testing.T) {
	_, err := Load("p", []byte("version: 1\negress:\n"+strings.Repeat("  - hots: a.example\n", 20_000)))
	var all Errors
	if !errors.As(err, &all) || len(all) != maxErrors+1 {
		t.Fatalf("%d errors", len(all))
	}
	for i := 1; i < len(all); i++ {
		if all[i-1].Line > all[i].Line {
			t.Fatalf("line %d before line %d", all[i-1].Line, all[i].Line)
		}
	}
	var one *Error
	if !errors.As(err, &one) || one != all[0] {
		t.Error("errors.As does not find the first mistake")
	}
}

// TestHostileYAML: files made to be slow or big end within bounds.
func TestHostileYAML(t *testing.T) {
	for name, data := range map[string]string{
		"laughs":  "version: 1\na: &a [x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b]\nd: [*c,*c,*c,*c,*c,*c]\n",
		"self":    "version: 1\negress: &e [*e]\n",
		"nested":  "version: 1\negress: " + strings.Repeat("[", 9000) + strings.Repeat("]", 9000) + "\n",
		"maps":    "version: 1\negress: " + strings.Repeat("{a: ", 9000) + strings.Repeat("}", 9000) + "\n",
		"keys":    "version: 1\n" + strings.Repeat("k: v\n", 50_000),
		"labels":  "version: 1\negress: [{host: \"" + strings.Repeat("a.", 100_000) + "a\"}]\n",
		"pattern": "version: 1\nroutes: [{name: a, path: /, upstream: \"https://a.example\", allow: [\"GET " + strings.Repeat("/**/a", 20_000) + "\"]}]\n",
	} {
		t.Run(name, func(t *testing.T) {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			p, err := Load("p", []byte(data))
			runtime.ReadMemStats(&after)
			if (p == nil) != (err != nil) {
				t.Errorf("policy %v, error %v", p != nil, err)
			}
			if grown := after.TotalAlloc - before.TotalAlloc; grown > 256<<20 {
				t.Errorf("%d MiB for %d bytes", grown>>20, len(data))
			}
		})
	}
}

// FuzzLoad: an error and no policy, or a policy and no error; what loads has a
// stable canonical form; nothing panics, whatever is asked of it.
func FuzzLoad(f *testing.F) {
	for _, dir := range []string{"testdata/good/*.yaml", "testdata/bad/*.yaml"} {
		files, _ := filepath.Glob(dir)
		for _, name := range files {
			data, err := os.ReadFile(name)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(data)
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 1<<16 {
			return
		}
		p, err := Load("policy.yaml", data)
		if (p == nil) != (err != nil) {
			t.Fatalf("policy %v, error %v", p != nil, err)
		}
		if err != nil {
			var all Errors
			if !errors.As(err, &all) || len(all) == 0 || err.Error() == "" {
				t.Fatalf("error of type %T: %v", err, err)
			}
			return
		}
		checkStable(t, p)
		p.Warnings()
		for i := range p.Agents {
			p.Environ(p.Agents[i].Name, nil, User{}, nil)
		}
	})
}

// TestSetSizes: what the fence's small sets hold, and one more.
func TestSetSizes(t *testing.T) {
	list := func(n int, each func(i int) string) string {
		all := make([]string, n)
		for i := range all {
			all[i] = each(i)
		}
		return "[" + strings.Join(all, ", ") + "]"
	}
	number := func(from int) func(int) string { return func(i int) string { return fmt.Sprint(from + i) } }
	agent := func(i int) string {
		return fmt.Sprintf("{name: a%d, uid: %d, listen: \"127.0.0.1:%d\"}", i, 1000+i, 9000+i)
	}
	server := func(i int) string { return fmt.Sprintf("10.0.0.%d", 1+i) }
	for name, c := range map[string]struct {
		text func(n int) string
		want string
	}{
		"agents":  {func(n int) string { return "agents: " + list(n, agent) }, "65 agents, of at most 64"},
		"publish": {func(n int) string { return "agents: [{name: a, publish: " + list(n, number(3000)) + "}]" }, "open 65 ports, of at most 64"},
		"root_inbound": {func(n int) string {
			return "agents: [{name: a, publish: [22]}]\nroot_inbound: " + list(n-1, number(3000))
		}, "open 65 ports, of at most 64"},
		"root_loopback": {func(n int) string { return "root_loopback: " + list(n, number(3000)) }, "has 65 ports, of at most 64"},
		"dns":           {func(n int) string { return "dns: {servers: " + list(n, server) + "}" }, "has 65 servers, of at most 64"},
	} {
		if _, err := Load("p", []byte("version: 1\n"+c.text(setSize)+"\n")); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := Load("p", []byte("version: 1\n"+c.text(setSize+1)+"\n")); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
	p := mustLoad(t, "version: 1\nagents: "+list(setSize, agent)+"\negress: [{host: a.example, agents: [a63]}]\n")
	for name, want := range map[string]bool{"a63": true, "a62": false, "a0": false} {
		if d := p.Decide(Request{Agent: name, Road: RoadConnect, Host: "a.example", Port: 443}); d.Allow != want {
			t.Errorf("%s: %v", name, d.Allow)
		}
	}
}

// A condition in a flow list, as the policy language's own example has it.
func TestQuestionMarkInFlowList(t *testing.T) {
	const text = `version: 1
routes:
  - {name: gh, path: /gh, upstream: "https://github.com", allow: [GET /**/info/refs?service=git-upload-pack, "GET /a?b=c", POST /**/git-upload-pack]}
`
	p, err := Load("policy.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	for query, want := range map[string]bool{"service=git-upload-pack": true, "service=git-receive-pack": false} {
		d := p.Decide(Request{Road: RoadRoute, Method: "GET", Path: "/gh/o/r.git/info/refs", Query: query})
		if d.Allow != want {
			t.Errorf("?%s: %v, %s", query, d.Allow, d.Message())
		}
	}
	if _, err := Load("policy.yaml", []byte("version: 1\negress: [{host: a?b.com, prots: [443]}]\n")); err == nil ||
		!strings.Contains(err.Error(), "policy.yaml:2:26: unknown key \"prots\"") || !strings.Contains(err.Error(), "a?b.com") {
		t.Errorf("a mistake after a question mark: %v", err)
	}
}

func TestNearest(t *testing.T) {
	known := []string{"audit", "grace", "log.level", "self_test", "control", "connect"}
	for word, want := range map[string]string{"adit": "audit", "audti": "audit", "sel": "self_test", "log.levle": "log.level", "selftest": "self_test", "x": "", "": "", "gracee": "grace", "metrics": "", "con": "", "cont": "control", "GRACE": "grace", "se": ""} {
		if got := Nearest(word, known); got != want {
			t.Errorf("%q is taken for %q, want %q", word, got, want)
		}
	}
}
