package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// example has a candidate that is faster in each round, although its median over all rounds is lower than the base's.
func example() *table {
	t := newTable("x", "Example", "base", column{Name: "rate", Unit: "1/s", Format: "%.0f", Ratio: true, Brief: true}, column{Name: "delay", Format: "%.1f"})
	for _, v := range []float64{100, 10, 50} {
		t.add("base", "rate", v)
		t.add("fast", "rate", v*1.5)
	}
	t.add("fast", "delay", 0.25)
	t.Notes = []string{"a note"}
	return t
}

func TestMarkdown(t *testing.T) {
	var sb strings.Builder
	example().markdown(&sb)
	want := `**Example** (in brackets: x base)

|      | rate, 1/s | delay |
| ---  | ---:      | ---:  |
| base | 50        |       |
| fast | 75 (1.50) | 0.2   |

* a note

`
	if diff := cmp.Diff(want, sb.String()); diff != "" {
		t.Error(diff)
	}
}

func TestReadme(t *testing.T) {
	path := filepath.Join(t.TempDir(), "README.md")
	if err := os.WriteFile(path, []byte("before\n"+figuresBegin+"old\n"+figuresEnd+"after\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time nothing is left of the first
		if err := writeReadme(path, machine{Date: "2026-01-02", CPU: "X", Cores: 2, Kernel: "6.1", Go: "go1"}, []*table{example()}); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	text := string(got)
	if strings.Contains(text, "old") || strings.Contains(text, "delay") || strings.Count(text, "75 (1.50)") != 1 || !strings.Contains(text, "2026-01-02, X, 2 cores, Linux 6.1, go1\n") ||
		!strings.HasPrefix(text, "before\n"+figuresBegin) || !strings.HasSuffix(text, figuresEnd+"after\n") {
		t.Errorf("README became:\n%s", text)
	}
	other := example()
	other.Title = "Other"
	if err := writeReadme(path, machine{}, []*table{other}); err != nil {
		t.Fatal(err)
	}
	again, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if text := string(again); strings.Count(text, "75 (1.50)") != 2 || !strings.Contains(text, "* a note\n\n**Other**") {
		t.Errorf("beside another run's table:\n%s", text)
	}
	if err := os.WriteFile(path, []byte("no place\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := writeReadme(path, machine{}, nil); err == nil {
		t.Error("figures went into a README that has no place for them")
	}
}

func TestMedianAndRatio(t *testing.T) {
	if got := median([]float64{3, 1, 2, 10}); got != 2.5 {
		t.Errorf("median = %v", got)
	}
	if got := example().ratio("fast", "rate"); got != 1.5 {
		t.Errorf("ratio = %v", got)
	}
	if got := example().ratio("fast", "delay"); got != 0 {
		t.Errorf("a ratio to nothing = %v", got)
	}
}
