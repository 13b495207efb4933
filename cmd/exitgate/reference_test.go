package main

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

var update = flag.Bool("update", false, "write what is generated into the README")

// readme is the one place where commands and settings are listed for a reader.
const readme = "../../README.md"

// commandTable is the reference as the command tree has it.
func commandTable(root *cobra.Command) string {
	var b strings.Builder
	b.WriteString("| command | does |\n|---|---|\n")
	for _, c := range root.Commands() {
		if c.IsAvailableCommand() && c.Name() != "help" {
			use := strings.TrimSuffix(c.Use, " [flags]")
			fmt.Fprintf(&b, "| `exitgate %s` | %s |\n", strings.ReplaceAll(use, "|", `\|`), c.Short)
		}
	}
	return b.String()
}

// settingsTable is the reference of the settings.
func settingsTable() string {
	var b strings.Builder
	b.WriteString("| setting | default | what it says |\n|---|---|---|\n")
	for _, s := range settingTable {
		standard := s.standard
		if standard != "" {
			standard = "`" + standard + "`"
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s |\n", s.key, standard, strings.ReplaceAll(s.help, "|", `\|`))
	}
	return b.String()
}

// TestReference holds the README's tables to the program. `go test ./cmd/exitgate -run Reference -update` writes them.
func TestReference(t *testing.T) {
	root := newRoot(&environment{stdout: os.Stdout, stderr: os.Stderr, getenv: os.Getenv})
	data, err := os.ReadFile(readme)
	if err != nil {
		t.Fatal(err)
	}
	text := string(data)
	for name, want := range map[string]string{"commands": commandTable(root), "settings": settingsTable()} {
		begin, end := "<!-- "+name+" -->\n", "<!-- /"+name+" -->"
		before, rest, ok1 := strings.Cut(text, begin)
		got, after, ok2 := strings.Cut(rest, end)
		if !ok1 || !ok2 {
			t.Fatalf("the README has no %s ... %s", begin, end)
		}
		if got != want && !*update {
			t.Errorf("the README's table of %s is not the program's; run go test ./cmd/exitgate -run Reference -update", name)
		}
		text = before + begin + want + end + after
	}
	if *update {
		if err := os.WriteFile(readme, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// TestHelpHasExamples: every command says what it does and shows how.
func TestHelpHasExamples(t *testing.T) {
	root := newRoot(&environment{stdout: os.Stdout, stderr: os.Stderr, getenv: os.Getenv})
	for _, c := range root.Commands() {
		if c.IsAvailableCommand() && c.Name() != "help" && c.Name() != "completion" && (c.Example == "" || c.Short == "") {
			t.Errorf("exitgate %s --help has no example", c.Name())
		}
	}
}
