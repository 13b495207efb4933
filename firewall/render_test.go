package firewall

import (
	"flag"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the golden files anew")

// TestRender holds the text against files that are read in review. That the
// kernel takes it, and lists it as ours, is TestTwoRoads.
func TestRender(t *testing.T) {
	for file, c := range map[string]Contents{"testdata/lockdown.nft": {}, "testdata/full.nft": fullContents()} {
		got := Render(c)
		if *update {
			if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(string(want), got); d != "" {
			t.Errorf("%s (-golden +rendered); go test -update writes it anew:\n%s", file, d)
		}
	}
}

// Render says the same each time, in whatever order the contents come.
func TestRenderIsCanonical(t *testing.T) {
	c := fullContents()
	want := Render(c)
	c.Egress[0], c.Egress[2] = c.Egress[2], c.Egress[0]
	c.Egress = append(c.Egress, c.Egress[1])
	for range 10 {
		if d := cmp.Diff(want, Render(c)); d != "" {
			t.Fatalf("the same contents in another order:\n%s", d)
		}
	}
}

// Nothing from a policy reaches the text but numbers and addresses; comments are
// ours. nft has no escaping, so a line break or a quote would be a way in.
func TestNotesStayOneLine(t *testing.T) {
	check := func(where, note string) {
		if strings.ContainsAny(note, "\n\r\"") {
			t.Errorf("%s: comment %q", where, note)
		}
	}
	for _, s := range record.Sets {
		check(s.Name, s.Note)
	}
	for _, c := range record.Chains {
		check(c.Name, c.Note)
		for _, r := range c.Rules {
			check(c.Name, r.Note)
		}
	}
}
