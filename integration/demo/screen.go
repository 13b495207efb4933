package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/term"
)

const width = 80

// screen writes the story: 80 columns, colours on a terminal only.
type screen struct {
	out    io.Writer
	colour bool
	rows   []row
	steps  int
}

// row is one line of the table at the end.
type row struct {
	what, claim, seen string
	ok                bool
}

func newScreen(f *os.File) *screen {
	return &screen{out: f, colour: term.IsTerminal(int(f.Fd())) && os.Getenv("NO_COLOR") == ""}
}

const (
	bold  = "1"
	dim   = "2"
	red   = "31"
	green = "32"
)

func (s *screen) paint(code, text string) string {
	if !s.colour {
		return text
	}
	return "\x1b[" + code + "m" + text + "\x1b[0m"
}

// step begins a chapter.
func (s *screen) step(title string) {
	s.steps++
	fmt.Fprintf(s.out, "\n%s\n", s.paint(bold, fmt.Sprintf("%d  %s", s.steps, title)))
}

// say prints a line of the story, broken at words.
func (s *screen) say(text string) {
	for _, line := range wrap(text, width-3) {
		fmt.Fprintf(s.out, "   %s\n", line)
	}
}

// quote prints what a program said.
func (s *screen) quote(text string) {
	for _, line := range wrap(text, width-5) {
		fmt.Fprintf(s.out, "   %s\n", s.paint(dim, "| "+line))
	}
}

// check prints one outcome and keeps it for the table.
func (s *screen) check(ok bool, what, claim, seen string) {
	s.rows = append(s.rows, row{what, claim, seen, ok})
	fmt.Fprintf(s.out, "   %s %s: %s\n", s.mark(ok), what, clip(seen, width-8-len(what)-2))
}

func (s *screen) mark(ok bool) string {
	if ok {
		return s.paint(green, "ok  ")
	}
	return s.paint(red, "FAIL")
}

// table sums up, and says whether everything was as claimed.
func (s *screen) table() bool {
	fmt.Fprintf(s.out, "\n%s\n", s.paint(bold, fmt.Sprintf("     %-32s %-9s %s", "what the agent tried", "claimed", "seen")))
	bad := 0
	for _, r := range s.rows {
		fmt.Fprintf(s.out, "%s %-32s %-9s %s\n", s.mark(r.ok), clip(r.what, 32), r.claim, clip(r.seen, width-5-32-1-9-1))
		if !r.ok {
			bad++
		}
	}
	if bad > 0 {
		fmt.Fprintln(s.out, s.paint(red, fmt.Sprintf("\n%d of %d were not as claimed.", bad, len(s.rows))))
		return false
	}
	fmt.Fprintf(s.out, "\nAll %d as claimed.\n", len(s.rows))
	return true
}

func clip(text string, n int) string {
	if n > 1 && len(text) > n {
		return text[:n-1] + "~"
	}
	return text
}

// wrap breaks text at words; a word that is longer than a line is cut.
func wrap(text string, n int) (lines []string) {
	line := ""
	for _, word := range strings.Fields(text) {
		for len(word) > n {
			lines, line, word = appendLine(lines, line), word[:n], word[n:]
			lines, line = appendLine(lines, line), ""
		}
		if line != "" && len(line)+1+len(word) > n {
			lines, line = append(lines, line), ""
		}
		line = strings.TrimPrefix(line+" "+word, " ")
	}
	return appendLine(lines, line)
}

func appendLine(lines []string, line string) []string {
	if line == "" {
		return lines
	}
	return append(lines, line)
}

// ms is a duration as people compare them.
func ms(d time.Duration) string {
	return fmt.Sprintf("%.1f ms", float64(d.Microseconds())/1000)
}
