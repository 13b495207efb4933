package policy

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
)

// Position is a place in a policy file. Lines and columns count from 1; zero means unknown.
type Position struct {
	File         string // as given to Load; "preset NAME" for a preset's entry
	Line, Column int
}

// String is "policy.yaml:18", or the file alone where the line is unknown.
func (p Position) String() string {
	if p.Line == 0 {
		return p.File
	}
	return p.File + ":" + strconv.Itoa(p.Line)
}

func (p Position) full() string {
	if p.Line == 0 || p.Column == 0 {
		return p.String()
	}
	return p.String() + ":" + strconv.Itoa(p.Column)
}

// Error is one mistake in a policy: where, what, and what to write instead.
type Error struct {
	Position
	What string
	Mend string // may be empty
}

// Error is "policy.yaml:14:3: unknown key \"prots\"; did you mean \"ports\"?".
func (e *Error) Error() string {
	s := e.What
	if e.Mend != "" {
		s += "; " + e.Mend
	}
	if at := e.Position.full(); at != "" {
		return at + ": " + s
	}
	return s
}

// Errors are all mistakes of a policy, sorted by position.
type Errors []*Error

// Error is one mistake a line.
func (e Errors) Error() string {
	lines := make([]string, len(e))
	for i := range e {
		lines[i] = e[i].Error()
	}
	return strings.Join(lines, "\n")
}

// Unwrap gives errors.As each mistake.
func (e Errors) Unwrap() []error {
	all := make([]error, len(e))
	for i := range e {
		all[i] = e[i]
	}
	return all
}

func (e Errors) sorted() Errors {
	slices.SortStableFunc(e, func(a, b *Error) int {
		return cmp.Or(cmp.Compare(a.File, b.File), cmp.Compare(a.Line, b.Line),
			cmp.Compare(a.Column, b.Column), cmp.Compare(a.What, b.What))
	})
	return e
}

// maxErrors bounds what a hostile or binary file can make us say.
const maxErrors = 1000

// problems collects mistakes while a policy is read.
type problems struct{ all Errors }

func (ps *problems) add(at Position, what, mend string) {
	switch {
	case len(ps.all) < maxErrors:
		ps.all = append(ps.all, &Error{at, what, mend})
	case len(ps.all) == maxErrors:
		ps.all = append(ps.all, &Error{at, fmt.Sprintf("more than %d errors, the rest is not shown", maxErrors), "mend these first"})
	}
}

// refuse adds what a parser of one value found.
func (ps *problems) refuse(at Position, err error) {
	if f, ok := err.(*fault); ok {
		ps.add(at, f.what, f.mend)
		return
	}
	ps.add(at, err.Error(), "")
}

func (ps *problems) addf(at Position, mend, format string, args ...any) {
	ps.add(at, fmt.Sprintf(format, args...), mend)
}

// fault is a mistake in one value, before its place is known.
type fault struct{ what, mend string }

func (f *fault) Error() string {
	if f.mend == "" {
		return f.what
	}
	return f.what + "; " + f.mend
}

func faultf(mend, format string, args ...any) error {
	return &fault{fmt.Sprintf(format, args...), mend}
}

// within puts the context of a fault before it.
func within(context string, err error) error {
	if f, ok := err.(*fault); ok {
		return &fault{context + ": " + f.what, f.mend}
	}
	return err
}

// expression compiles a regular expression when it is first used. Compiling all of them was a tenth of what the program did
// before its main, and it starts three times before an agent runs.
func expression(expr string) func() *regexp.Regexp {
	return sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(expr) })
}

// secretShape matches what the well-known issuers' secrets look like.
var secretShape = expression(`(sk-|gh[opsu]_|github_pat_|glpat-|xox[a-z]-|npm_|pypi-|hf_|AKIA|AIza|eyJ)[A-Za-z0-9_.-]{16,}`)

// quoted shows a word of the file: escaped, cut where it would flood a
// terminal, and never a secret somebody pasted into the wrong place.
func quoted(s string) string {
	const most = 80
	if secretShape().MatchString(s) {
		return "(a secret, not shown)"
	}
	if len(s) > most {
		return strconv.Quote(strings.ToValidUTF8(s[:most], "")) + "..."
	}
	return strconv.Quote(s)
}

// oneOf is the accepted form of an enumeration: `"a", "b" or "c"`.
func oneOf(words []string) string {
	var b strings.Builder
	for i, w := range words {
		switch {
		case i > 0 && i == len(words)-1:
			b.WriteString(" or ")
		case i > 0:
			b.WriteString(", ")
		}
		b.WriteString(quoted(w))
	}
	return b.String()
}

// suggest is the mend for a word that should have been one of known: the
// nearest of them where one is near, else all of them.
func suggest(word string, known []string) string {
	if near := Nearest(word, known); near != "" {
		return "did you mean " + quoted(near) + "?"
	}
	switch {
	case len(known) == 0:
		return ""
	case len(known) > 12:
		return "accepted are " + oneOf(known[:11]) + " and others"
	}
	return "accepted: " + oneOf(known)
}

// Nearest is the known word that a slip of the fingers turns into word, or the
// one that word is the beginning of, or "". A third of the letters may be
// wrong, at least one.
func Nearest(word string, known []string) string {
	const longest = 64
	if word == "" || len(word) > longest {
		return ""
	}
	best, least := "", max(1, len(word)/3)+1
	for _, k := range known {
		if strings.EqualFold(word, k) {
			return k
		}
		if d := distance(word, k, least); d < least && d < len(word) {
			best, least = k, d
		}
	}
	if best == "" && len(word) >= 3 {
		for _, k := range known {
			if strings.HasPrefix(k, word) {
				if best != "" {
					return ""
				}
				best = k
			}
		}
	}
	return best
}

// distance counts the insertions, deletions, substitutions and swaps of
// neighbours between a and b (optimal string alignment, in bytes).
func distance(a, b string, enough int) int {
	if d := len(a) - len(b); d > enough || -d > enough {
		return enough + 1
	}
	two, one, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range one {
		one[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[j] = min(one[j]+1, row[j-1]+1, one[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], two[j-2]+1)
			}
		}
		two, one, row = one, row, two
	}
	return one[len(b)]
}
