package main

import (
	"flag"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the table into the README")

// TestReadme holds the README's table to what the run tries. `go test ./integration/clients -update` writes it.
func TestReadme(t *testing.T) {
	const file, begin, end = "../../README.md", "<!-- clients -->\n", "<!-- /clients -->"
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok1 := strings.Cut(string(data), begin)
	got, after, ok2 := strings.Cut(rest, end)
	if !ok1 || !ok2 {
		t.Fatalf("the README has no %s%s", begin, end)
	}
	want := needsTable()
	if *update {
		if err := os.WriteFile(file, []byte(before+begin+want+end+after), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("run go test ./integration/clients -update (-want +README):\n%s", diff)
	}
}

// TestEveryPresetIsTried: a preset that no client runs with is a claim nobody checked.
func TestEveryPresetIsTried(t *testing.T) {
	files, err := os.ReadDir("../../policy/presets")
	if err != nil || len(files) == 0 {
		t.Fatal(err)
	}
	for _, f := range files {
		name := strings.TrimSuffix(f.Name(), ".yaml")
		tried := false
		for _, c := range clients() {
			for _, m := range c.modes(map[string]string{}) {
				tried = tried || strings.Contains(m.policy, "presets: ["+name+"]") && !m.open
			}
		}
		if !tried {
			t.Errorf("preset %s: no client is tried with it", name)
		}
	}
}

func TestParseCalls(t *testing.T) {
	const trace = `12 connect(5, {sa_family=AF_INET, sin_port=htons(8080), sin_addr=inet_addr("127.0.0.1")}, 16) = -1 EINPROGRESS (Operation now in progress)
12 connect(5, {sa_family=AF_INET6, sin6_port=htons(443), sin6_flowinfo=htonl(0), inet_pton(AF_INET6, "2a0e::1", &sin6_addr), sin6_scope_id=0}, 28 <unfinished ...>
13 connect(4, {sa_family=AF_UNIX, sun_path="/run/exitgate/claude.sock"}, 110) = 0
13 sendto(4, "x", 1, MSG_NOSIGNAL, {sa_family=AF_INET, sin_port=htons(53), sin_addr=inet_addr("9.9.9.9")}, 16) = 1
13 sendto(21, "POST / HTTP/1.1\r\n"..., 17, 0, NULL, 0) = 17
`
	calls := parseCalls(trace)
	s := &scene{calls: calls}
	want := []string{"9.9.9.9:53 1", "[2a0e::1]:443 "}
	if diff := cmp.Diff(want, s.elsewhere()); diff != "" || len(calls) != 4 || calls[2].path != "/run/exitgate/claude.sock" && calls[3].path != "/run/exitgate/claude.sock" {
		t.Errorf("%v\n%s", calls, diff)
	}
}
