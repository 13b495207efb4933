package attack

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"exitgate/integration/rig/rigtest"
)

var testName = regexp.MustCompile("`([a-z0-9]+\\.(?:Test|Fuzz)[A-Za-z0-9_]+)`")

// TestSecurityNamesItsTests: each claim of SECURITY.md names tests that exist, and each limit what to do about it.
func TestSecurityNamesItsTests(t *testing.T) {
	text, err := os.ReadFile(module + "/SECURITY.md")
	if err != nil {
		t.Fatal(err)
	}
	tests := rigtest.Tests(t, module)
	for _, m := range testName.FindAllStringSubmatch(string(text), -1) {
		if !tests[m[1]] {
			t.Errorf("SECURITY.md names %s, which does not exist", m[1])
		}
	}
	claims, limits, section := 0, 0, ""
	for line := range strings.Lines(string(text)) {
		if title, ok := strings.CutPrefix(line, "## "); ok {
			section = strings.TrimSpace(title)
		}
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		if !strings.HasPrefix(line, "| ") || len(cells) != 3 || strings.HasSuffix(strings.TrimSpace(cells[1]), "how") || strings.TrimSpace(cells[0]) == "limit" {
			if strings.HasPrefix(line, "| ") && len(cells) != 3 {
				t.Errorf("not three columns: %s", line)
			}
			continue
		}
		switch last := strings.TrimSpace(cells[2]); {
		case section == "What holds, and how":
			if claims++; !testName.MatchString(last) {
				t.Errorf("no test shows the claim %q", strings.TrimSpace(cells[0]))
			}
		case section == "What does not":
			if limits++; last == "" {
				t.Errorf("nothing is said to be done about %q", strings.TrimSpace(cells[0]))
			}
		}
	}
	if claims < 15 || limits < 15 {
		t.Errorf("%d claims and %d limits were read: this proves little", claims, limits)
	}
}
