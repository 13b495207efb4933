package policy

import (
	"strings"

	"go.yaml.in/yaml/v3"
)

// plainStyle reads the style in which nearly every policy is written: block
// mappings with plain keys, block lists, one-line flow lists, scalars on one
// line, comments. It gives the nodes that the YAML parser gives, in a fifth of
// the time, which a reload of ten thousand hosts is made of; for whatever else
// it meets it gives nil, and the parser reads the file. A fuzz target holds it
// to never differing from the parser.
func plainStyle(data string) *yaml.Node {
	p := plainReader{rest: data}
	p.next()
	if p.end || p.bad || p.column != 0 {
		return nil
	}
	top := p.mapping(0)
	if p.bad || !p.end {
		return nil
	}
	return top
}

// plainReader stands at a line that has content.
type plainReader struct {
	rest   string // the lines after it
	line   int    // its number, from 1
	column int    // of text, from 0
	text   string // what of it is not read yet, without trailing spaces
	end    bool   // there is no such line
	bad    bool   // this is not plain style
	slab   []yaml.Node
}

const (
	plainDepth = 8    // a policy nests four levels deep
	plainLine  = 1000 // the parser gives up on keys of 1024 bytes
)

// next moves to the next line that is not blank or a comment.
func (p *plainReader) next() {
	for p.rest != "" {
		var line string
		line, p.rest, _ = strings.Cut(p.rest, "\n")
		p.line++
		p.text = strings.Trim(line, " ")
		switch {
		case p.text == "":
			continue
		case p.text[0] == '#':
			// Some characters are line breaks to YAML alone.
			p.bad = p.bad || strings.ContainsAny(p.text, "\r\u0085\u2028\u2029\ufeff")
			continue
		}
		p.column = strings.Index(line, p.text)
		p.bad = p.bad || len(line) > plainLine || !printable(p.text)
		return
	}
	p.end, p.column, p.text = true, -1, ""
}

func printable(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}

// node allocates in slabs: there are many, and they live and die together.
func (p *plainReader) node(kind yaml.Kind, column int) *yaml.Node {
	if len(p.slab) == 0 {
		p.slab = make([]yaml.Node, 64)
	}
	n := &p.slab[0]
	p.slab = p.slab[1:]
	n.Kind, n.Line, n.Column = kind, p.line, column+1
	return n
}

func (p *plainReader) scalar(value string, column int, style yaml.Style) *yaml.Node {
	n := p.node(yaml.ScalarNode, column)
	n.Value, n.Style = value, style
	return n
}

func (p *plainReader) fail() *yaml.Node {
	p.bad = true
	return nil
}

// dash says that a text begins an element of a block list.
func dash(text string) bool { return strings.HasPrefix(text, "- ") }

// cutKey splits `key: rest`; rest keeps its leading spaces.
func cutKey(text string) (key, rest string, ok bool) {
	i := 0
	for i < len(text) && (text[i] == '_' || 'a' <= text[i]|0x20 && text[i]|0x20 <= 'z' || i > 0 && '0' <= text[i] && text[i] <= '9') {
		i++
	}
	if i == 0 || i >= len(text) || text[i] != ':' || i+1 < len(text) && text[i+1] != ' ' {
		return "", "", false
	}
	return text[:i], text[i+1:], true
}

// mapping reads the mapping whose first key the reader stands at.
func (p *plainReader) mapping(depth int) *yaml.Node {
	column, m := p.column, p.node(yaml.MappingNode, p.column)
	for {
		key, rest, ok := cutKey(p.text)
		if !ok || p.bad || depth > plainDepth {
			return p.fail()
		}
		k := p.scalar(key, column, 0)
		v := p.value(rest, column, depth)
		m.Content = append(m.Content, k, v)
		switch {
		case p.bad || p.column > column:
			return p.fail()
		case p.column < column:
			return m
		}
	}
}

// value reads what follows a key, on its line or below it, and moves on. A line
// that goes on with a scalar is no plain style.
func (p *plainReader) value(text string, column, depth int) *yaml.Node {
	at := p.column + len(p.text) - len(text)
	inline := strings.TrimLeft(text, " ")
	if inline == "" || inline[0] == '#' {
		p.next()
		switch {
		case dash(p.text) && p.column >= column:
			return p.sequence(depth + 1)
		case !dash(p.text) && p.column > column:
			return p.mapping(depth + 1)
		}
		return p.fail()
	}
	n := p.inline(inline, at+len(text)-len(inline))
	p.next()
	return n
}

// sequence reads the list whose first dash the reader stands at. It ends at a
// line to the left, or at a key in the dashes' own column.
func (p *plainReader) sequence(depth int) *yaml.Node {
	column, s := p.column, p.node(yaml.SequenceNode, p.column)
	for {
		item := strings.TrimLeft(p.text[1:], " ")
		at := column + len(p.text) - len(item)
		if p.bad || depth > plainDepth || item == "" || item[0] == '#' || dash(item) {
			return p.fail()
		}
		if _, _, ok := cutKey(item); ok {
			p.text, p.column = item, at
			s.Content = append(s.Content, p.mapping(depth+1))
		} else {
			s.Content = append(s.Content, p.inline(item, at))
			p.next()
		}
		switch {
		case p.bad || p.column > column:
			return p.fail()
		case p.column < column || !dash(p.text):
			return s
		}
	}
}

// inline reads a value that ends with its line.
func (p *plainReader) inline(text string, column int) *yaml.Node {
	if text[0] == '[' {
		return p.flow(text, column)
	}
	n, rest := p.quoted(text, column)
	if n == nil {
		if i := strings.Index(text, " #"); i >= 0 {
			text = strings.TrimRight(text[:i], " ")
		}
		if !plainStart(text) || strings.Contains(text, ": ") || strings.HasSuffix(text, ":") {
			return p.fail()
		}
		return p.scalar(text, column, 0)
	}
	if !endOfLine(rest) {
		return p.fail()
	}
	return n
}

// quoted reads a quoted scalar without escapes, or nothing.
func (p *plainReader) quoted(text string, column int) (*yaml.Node, string) {
	style, quote := yaml.DoubleQuotedStyle, text[0]
	switch quote {
	case '"':
	case '\'':
		style = yaml.SingleQuotedStyle
	default:
		return nil, text
	}
	body, rest, ok := strings.Cut(text[1:], string(rune(quote)))
	if !ok || strings.Contains(body, `\`) || rest != "" && (rest[0] == quote || rest[0] == ':') {
		p.bad = true
	}
	n := p.scalar(body, column, style)
	n.Tag = "!!str"
	return n, rest
}

// plainStart says that a plain scalar may begin so, in no version of YAML to be
// taken for an indicator.
func plainStart(text string) bool {
	if text == "" {
		return false
	}
	c := text[0]
	return 'a' <= c|0x20 && c|0x20 <= 'z' || '0' <= c && c <= '9' || c == '/' || c == '.' || c == '_'
}

// endOfLine says that nothing but a comment follows a value.
func endOfLine(rest string) bool {
	trimmed := strings.TrimLeft(rest, " ")
	return trimmed == "" || trimmed[0] == '#' && len(trimmed) < len(rest)
}

// flow reads a list of scalars on one line: [a, "b"].
func (p *plainReader) flow(text string, column int) *yaml.Node {
	s := p.node(yaml.SequenceNode, column)
	s.Style = yaml.FlowStyle
	rest := strings.TrimLeft(text[1:], " ")
	if after, empty := strings.CutPrefix(rest, "]"); empty && endOfLine(after) {
		return s
	}
	for {
		if rest == "" {
			return p.fail()
		}
		at := column + len(text) - len(rest)
		n, after := p.quoted(rest, at)
		if n == nil {
			i := strings.IndexAny(rest, `,]`)
			if i < 0 || !plainStart(rest) || strings.ContainsAny(rest[:i], `[{}:#?"'`) {
				return p.fail()
			}
			n, after = p.scalar(strings.TrimRight(rest[:i], " "), at, 0), rest[i:]
		}
		s.Content = append(s.Content, n)
		after = strings.TrimLeft(after, " ")
		switch {
		case strings.HasPrefix(after, ","):
			rest = strings.TrimLeft(after[1:], " ")
		case strings.HasPrefix(after, "]") && endOfLine(after[1:]):
			return s
		default:
			return p.fail()
		}
	}
}
