package policy

import (
	"bytes"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "rewrite the expectations in testdata")

// TestBad loads a corpus of wrong policies. Each file has one mistake, and
// begins with a `# want:` line for each message it must give.
func TestBad(t *testing.T) {
	files, err := filepath.Glob("testdata/bad/*.yaml")
	if err != nil || len(files) < 50 {
		t.Fatalf("found %d wrong policies, want at least 50 (%v)", len(files), err)
	}
	for _, f := range files {
		t.Run(strings.TrimSuffix(filepath.Base(f), ".yaml"), func(t *testing.T) {
			data, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			if *update {
				data = rewrite(t, f, data)
			}
			p, err := Load("policy.yaml", data)
			if p != nil {
				t.Error("a policy came with the error")
			}
			var all Errors
			if !errors.As(err, &all) {
				t.Fatalf("error is %v, of type %T", err, err)
			}
			if diff := cmp.Diff(wants(data), strings.Split(all.Error(), "\n")); diff != "" {
				t.Errorf("messages (-want +got):\n%s", diff)
			}
			for _, e := range all {
				if e.Line < 1 || e.Column < 1 {
					t.Errorf("no place in %q", e)
				}
				if e.Mend == "" {
					t.Errorf("no mend in %q", e)
				}
				if strings.Contains(e.Error(), "FAKE") {
					t.Errorf("a secret in %q", e)
				}
			}
		})
	}
}

func wants(data []byte) []string {
	var all []string
	for line := range bytes.Lines(data) {
		if want, ok := strings.CutPrefix(string(line), "# want: "); ok {
			all = append(all, strings.TrimSuffix(want, "\n"))
		}
	}
	return all
}

// rewrite puts the messages a file gives now at its head. Their number shifts
// the lines they cite, so it is found first.
func rewrite(t *testing.T, file string, data []byte) []byte {
	t.Helper()
	for bytes.HasPrefix(data, []byte("# want: ")) {
		_, data, _ = bytes.Cut(data, []byte("\n"))
	}
	_, err := Load("policy.yaml", data)
	var all Errors
	if !errors.As(err, &all) {
		t.Fatalf("%s is a right policy", file)
	}
	head := strings.Repeat("#\n", len(all))
	_, err = Load("policy.yaml", append([]byte(head), data...))
	errors.As(err, &all)
	head = ""
	for _, e := range all {
		head += "# want: " + e.Error() + "\n"
	}
	data = append([]byte(head), data...)
	if err := os.WriteFile(file, data, 0o644); err != nil {
		t.Fatal(err)
	}
	return data
}
