package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"unicode/utf8"

	"golang.org/x/term"
)

// paper is what a sheet is written on: as wide as the terminal, or 80 columns, and coloured on a terminal only.
type paper struct {
	out    io.Writer
	width  int
	colour bool
}

const (
	columns    = 80
	mostCols   = 120 // longer lines are hard to read
	labelWidth = 12
)

// paper looks at standard output. NO_COLOR (no-color.org) and a dumb terminal mean no colour.
func (env *environment) paper() paper {
	p := paper{out: env.stdout, width: columns}
	f, ok := env.stdout.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return p
	}
	p.colour = env.getenv("NO_COLOR") == "" && env.getenv("TERM") != "dumb"
	if w, _, err := term.GetSize(int(f.Fd())); err == nil && w > 0 {
		p.width = min(w, mostCols)
	}
	return p
}

// Colours, by what they mean.
const (
	good   = "32"
	warn   = "33"
	bad    = "31"
	faint  = "2"
	strong = "1"
)

func (p paper) paint(colour, text string) string {
	if !p.colour || colour == "" || text == "" {
		return text
	}
	return "\x1b[" + colour + "m" + text + "\x1b[0m"
}

// row writes a label and, beside it, text that is broken between words where the line is full.
func (p paper) row(label, colour, text string) {
	lines := wrap(printable(text), p.width-labelWidth)
	for i, line := range lines {
		if i > 0 {
			label = ""
		}
		fmt.Fprintf(p.out, "%s%s\n", p.paint(faint, fmt.Sprintf("%-*s", labelWidth, label)), p.paint(colour, line))
	}
}

// rows writes one row for each text, the label at the first.
func (p paper) rows(label, colour string, texts []string) {
	for i, text := range texts {
		if i > 0 {
			label = ""
		}
		p.row(label, colour, text)
	}
}

// wrap breaks text at spaces, but for those at its beginning. What follows the first line is set in by two; a word that is
// too long stands alone.
func wrap(text string, width int) (lines []string) {
	words := strings.TrimLeft(text, " ")
	line := text[:len(text)-len(words)]
	for i, word := range strings.Split(words, " ") {
		switch {
		case i == 0:
			line += word
		case utf8.RuneCountInString(line)+1+utf8.RuneCountInString(word) > width:
			lines = append(lines, strings.TrimRight(line, " "))
			line = "  " + word
		default:
			line += " " + word
		}
	}
	return append(lines, line)
}

// table aligns columns of texts, each as wide as its widest but the last.
func table(rows [][]string) (lines []string) {
	var widths []int
	for _, row := range rows {
		for i, cell := range row {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	for _, row := range rows {
		var b strings.Builder
		for i, cell := range row {
			b.WriteString(cell)
			if i < len(row)-1 {
				b.WriteString(strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell)+2))
			}
		}
		lines = append(lines, strings.TrimRight(b.String(), " "))
	}
	return lines
}
