package policy

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// sameNode compares what the reader uses of nodes.
func sameNode(a, b *yaml.Node) string {
	if a == nil || b == nil {
		return fmt.Sprintf("a node is missing: %v, %v", a, b)
	}
	if a.Kind != b.Kind || a.Value != b.Value || a.Style != b.Style || a.ShortTag() != b.ShortTag() || a.Line != b.Line || a.Column != b.Column || a.Anchor != b.Anchor || len(a.Content) != len(b.Content) {
		return fmt.Sprintf("%d:%d kind %d %q style %d tag %s (%d), and %d:%d kind %d %q style %d tag %s (%d)",
			a.Line, a.Column, a.Kind, a.Value, a.Style, a.ShortTag(), len(a.Content), b.Line, b.Column, b.Kind, b.Value, b.Style, b.ShortTag(), len(b.Content))
	}
	for i := range a.Content {
		if why := sameNode(a.Content[i], b.Content[i]); why != "" {
			return why
		}
	}
	return ""
}

// checkPlain: where plain style reads a file, the parser reads the same.
func checkPlain(t *testing.T, data string) (plain bool) {
	t.Helper()
	n := plainStyle(data)
	if n == nil {
		return false
	}
	dec := yaml.NewDecoder(strings.NewReader(data))
	want, err := decode(dec)
	if err != nil {
		t.Fatalf("plain style reads what the parser refuses: %v\n%q", err, data)
	}
	if why := sameNode(want.Content[0], n); why != "" {
		t.Fatalf("the parser and plain style read %s\n%s", why, data)
	}
	if _, err := decode(dec); err == nil {
		t.Fatalf("plain style reads one document of two\n%q", data)
	}
	return true
}

// TestPlainStyle: what people write is read the quick way.
func TestPlainStyle(t *testing.T) {
	files, _ := filepath.Glob("*/*.yaml")
	corpus, _ := filepath.Glob("testdata/*/*.yaml")
	quick := map[string]int{}
	for _, f := range append(files, corpus...) {
		data, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		r := &reader{problems: &problems{}}
		if r.text(data) && checkPlain(t, string(data)) {
			quick[filepath.Dir(f)]++
		}
	}
	if quick["presets"] != len(Presets()) || quick["testdata/good"] < 2 || quick["testdata/bad"] < 100 {
		t.Errorf("read the quick way: %v", quick)
	}
	if !checkPlain(t, string(manyHosts(100))) || !checkPlain(t, string(manyRoutes(10))) {
		t.Error("the benchmarks' policies are not read the quick way")
	}
}

// TestPlainStyleRandom writes documents of pieces that are plain, nearly plain
// and not plain, at columns that fit and that do not.
func TestPlainStyleRandom(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	pieces := []string{"a: b", "a:", "- a", "- a: b", "- a:", "- - a", "-", "-a", "- ", "a", "# c", "a: b # c", "a: b#c", "a: \"b\"#c", "a: [b, c]", "a: []", "a: [b,c] # d", "a: [b", "a: [b c, \"d\"]", "a: [b:c]", "a: [b, ]", "a: [\"b\": c]",
		"a: \"b\"", "a: 'b'", "a: 'b''c'", "a: \"b\\n\"", "a: \"b\" c", "\"a\": b", "a: b: c", "a: b:c", "a: b:", "a : b", "a:b", "a: |", "a: >-", "a: *b", "a: &b c", "a: !c d", "a: {b: c}", "{a: b}", "a: @b", "a: -b", "a: - b", "a: ?b", "? a",
		"a: ~", "a: null", "a: yes", "a: 1.10", "a: 0x1", "a: 2026-01-01", "a: .5", "a: /x", "a: GET /x?y=z", "---", "...", "%YAML 1.1", "a:\tb", "\ta: b", "a: b\t", "a: b\r", "é: b", "a: é", "# é", "# \u2028a: b", "a:  b", "a:   ", "<<: b", "a: b c  d", "a: \"\"", "a: ''", "a: [ ]", "a: [ b , 'c' ]", "1: a", "a1: b", "a-b: c", "y: n"}
	quick := 0
	for range 60_000 {
		var b strings.Builder
		column := 0
		for range 1 + rng.IntN(7) {
			switch rng.IntN(4) {
			case 0:
				column += 2
			case 1:
				column = max(0, column-2)
			case 2:
				column = rng.IntN(6)
			}
			b.WriteString(strings.Repeat(" ", column) + pieces[rng.IntN(len(pieces))])
			if rng.IntN(20) > 0 {
				b.WriteString("\n")
			}
		}
		if checkPlain(t, b.String()) {
			quick++
		}
	}
	if quick < 1000 {
		t.Errorf("only %d of the documents are plain style", quick)
	}
}

// FuzzPlainStyle: plain style never differs from the parser.
func FuzzPlainStyle(f *testing.F) {
	for _, dir := range []string{"presets/*.yaml", "testdata/good/*.yaml", "testdata/bad/*.yaml"} {
		files, _ := filepath.Glob(dir)
		for _, name := range files {
			data, err := os.ReadFile(name)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(string(data))
		}
	}
	f.Add("a:\n- b\n- c: d\n  e: [f, \"g\"] # h\ni: 'j'\n")
	f.Fuzz(func(t *testing.T, data string) {
		r := &reader{problems: &problems{}}
		if len(data) < 1<<14 && r.text([]byte(data)) {
			checkPlain(t, data)
		}
	})
}
