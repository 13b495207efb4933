package policy

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// reader reads one YAML document strictly: it walks nodes, so that every
// mistake has a place, and goes on after a mistake, so that all are found.
type reader struct {
	*problems
	file string
}

func (r *reader) at(n *yaml.Node) Position {
	return Position{r.file, n.Line, n.Column}
}

func (r *reader) fail(n *yaml.Node, mend, format string, args ...any) {
	r.addf(r.at(n), mend, format, args...)
}

// document returns the one mapping that data holds, or nil after a failure.
func (r *reader) document(data []byte) *yaml.Node {
	data = bytes.TrimPrefix(data, []byte("\xef\xbb\xbf"))
	if !r.text(data) {
		return nil
	}
	if n := plainStyle(string(data)); n != nil {
		return n
	}
	dec := yaml.NewDecoder(bytes.NewReader(hideQuestionMarks(data)))
	first, err := decode(dec)
	showQuestionMarks(first)
	switch {
	case errors.Is(err, io.EOF):
		r.add(Position{r.file, 1, 1}, "the file is empty", "a policy starts with `version: 1`")
		return nil
	case err != nil:
		r.syntax(err)
		return nil
	}
	usable := r.plainYAML(first, 0)
	if second, err := decode(dec); err == nil {
		r.fail(second, "a policy is one document: remove the `---` and what does not belong", "a second document starts here")
	} else if !errors.Is(err, io.EOF) {
		r.syntax(err)
	}
	if !usable {
		return nil
	}
	return first.Content[0]
}

// hiddenMark stands for a question mark while the parser reads. YAML 1.2 allows one inside a plain scalar of a flow
// list (7.3.3), and `allow: [GET /info/refs?service=git-upload-pack]` is how people write it; the parser
// (go.yaml.in/yaml v3.0.6) calls it a syntax error. Private use, one character as before, so that columns stay right.
const hiddenMark = '\uE03F'

// hideQuestionMarks replaces those that cannot be the indicator of a complex key, which has white space after it.
func hideQuestionMarks(data []byte) []byte {
	if !bytes.ContainsRune(data, '?') || bytes.ContainsRune(data, hiddenMark) {
		return data
	}
	out := make([]byte, 0, len(data)+64)
	for i, c := range data {
		if c == '?' && i+1 < len(data) && !bytes.ContainsRune([]byte(" \t\r\n"), rune(data[i+1])) {
			out = utf8.AppendRune(out, hiddenMark)
		} else {
			out = append(out, c)
		}
	}
	return out
}

func showQuestionMarks(n *yaml.Node) {
	if n == nil {
		return
	}
	n.Value = strings.ReplaceAll(n.Value, string(hiddenMark), "?")
	n.Anchor = strings.ReplaceAll(n.Anchor, string(hiddenMark), "?")
	n.Tag = strings.ReplaceAll(n.Tag, string(hiddenMark), "?")
	for _, c := range n.Content {
		showQuestionMarks(c)
	}
}

// text refuses what is no UTF-8 text at all, before the parser guesses at encodings.
func (r *reader) text(data []byte) bool {
	at := func(offset int) Position {
		before := data[:offset]
		start := bytes.LastIndexByte(before, '\n') + 1
		return Position{r.file, bytes.Count(before, []byte("\n")) + 1, utf8.RuneCount(before[start:]) + 1}
	}
	if len(data) > MaxSize {
		r.addf(Position{r.file, 1, 1}, "is it the right file?", "the file has %d bytes, more than the %d a policy may have", len(data), MaxSize)
		return false
	}
	for i := 0; i < len(data); {
		c := data[i]
		if c < utf8.RuneSelf {
			if (c < ' ' && c != '\n' && c != '\r' && c != '\t') || c == 0x7f {
				r.addf(at(i), "save the file as plain UTF-8 text", "control character 0x%02x", c)
				return false
			}
			i++
			continue
		}
		_, size := utf8.DecodeRune(data[i:])
		if size == 1 {
			r.addf(at(i), "save the file as UTF-8", "byte 0x%02x is not UTF-8", c)
			return false
		}
		i += size
	}
	return true
}

// decode reads one document. The parser's own panics, should a file find one,
// are mistakes of that file and not the end of the process.
func decode(dec *yaml.Decoder) (n *yaml.Node, err error) {
	defer func() {
		if p := recover(); p != nil {
			n, err = nil, fmt.Errorf("yaml: %v", p)
		}
	}()
	n = new(yaml.Node)
	if err := dec.Decode(n); err != nil {
		return nil, err
	}
	if n.Kind != yaml.DocumentNode || len(n.Content) != 1 {
		return nil, io.EOF
	}
	return n, nil
}

var (
	yamlLine = expression(`^yaml: (?:line (\d+): )?`)
	// The parser's words for the likeliest slips, and what to do about them.
	yamlMends = []struct{ words, mend string }{
		{"found character that cannot start any token", "indent with spaces, not tabs, and put a value that starts with @, ` or % in quotes"},
		{"mapping values are not allowed", "indent keys of one entry alike, and put a value that contains `: ` in quotes"},
		{"did not find expected key", "indent keys of one entry alike"},
		{"did not find expected '-' indicator", "indent entries of one list alike"},
		{"could not find expected ':'", "a key is followed by `: `"},
		{"unexpected end of stream", "close the quote or bracket"},
		{"did not find expected ',' or", "close the bracket, and put a value that contains , [ ] { or } in quotes"},
		{"exceeded max depth", "a policy nests four levels deep"},
		{"unknown anchor", "write the value out"},
		{"while scanning an alias", "put a value that starts with * in quotes"},
		{"did not find expected alphabetic or numeric character", "put a value that starts with * or & in quotes"},
	}
)

func (r *reader) syntax(err error) {
	msg := err.Error()
	at, mend := Position{r.file, 1, 1}, "put values with special characters in quotes"
	if m := yamlLine().FindStringSubmatch(msg); m != nil {
		msg = msg[len(m[0]):]
		if line, err := strconv.Atoi(m[1]); err == nil {
			at.Line = line
		}
	}
	for _, y := range yamlMends {
		if strings.Contains(msg, y.words) {
			mend = y.mend
			break
		}
	}
	r.addf(at, mend, "not YAML: %s", strings.ReplaceAll(msg, "\n", " "))
}

// plainYAML refuses the features that let one line mean something another line
// says: a policy is read by people who must see what it allows. What it says of
// an alias would be said at the wrong place, so with one the rest is not read.
func (r *reader) plainYAML(n *yaml.Node, depth int) (usable bool) {
	const deepest = 32 // four levels have a meaning
	switch {
	case depth > deepest:
		r.fail(n, "a policy nests four levels deep", "nested too deep")
		return false
	case n.Kind == yaml.AliasNode:
		r.fail(n, "write the value out", "alias *%s", n.Value)
		return false
	case n.Anchor != "":
		r.fail(n, "remove it and write the value out where it is used", "anchor &%s", n.Anchor)
	case n.Style&yaml.TaggedStyle != 0:
		r.fail(n, "remove it", "tag %s", quoted(n.Tag))
	}
	usable = true
	for _, c := range n.Content {
		usable = r.plainYAML(c, depth+1) && usable
	}
	return usable
}

// kindOf names what was found, in the words of someone who writes YAML.
func kindOf(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	case yaml.ScalarNode:
		switch n.ShortTag() {
		case "!!null":
			return "nothing"
		case "!!int", "!!float":
			return "the number " + n.Value
		case "!!bool":
			return n.Value + " (a yes-or-no value)"
		}
		return "the text " + quoted(n.Value)
	}
	return "something else"
}

// object calls read for each known key of a mapping, in the file's order, and
// reports unknown, doubled and missing keys. what names the mapping in messages.
func (r *reader) object(n *yaml.Node, what string, keys, required []string, read func(key string, v *yaml.Node)) {
	if n.Kind != yaml.MappingNode {
		mend := "write `" + example(keys[0]) + "`"
		if n.Kind == yaml.ScalarNode && n.ShortTag() == "!!str" && (keys[0] == "host" || keys[0] == "name") {
			mend = "write `" + keys[0] + ": " + quoted(n.Value) + "`"
		}
		r.fail(n, mend, "%s is not a mapping of keys but %s", what, kindOf(n))
		return
	}
	seen := make([]*yaml.Node, len(keys))
	for i := 0; i+1 < len(n.Content); i += 2 {
		k := n.Content[i]
		at := slices.Index(keys, k.Value)
		switch {
		case k.Kind != yaml.ScalarNode:
			r.fail(k, "a key is a plain word", "a key of %s is %s", what, kindOf(k))
		case k.ShortTag() == "!!merge":
			r.fail(k, "write the keys out", "merge key <<")
		case at < 0:
			r.fail(k, suggest(k.Value, keys), "unknown key %s", quoted(k.Value))
		case seen[at] != nil:
			r.fail(k, "remove one", "key %s is in %s twice, first in line %d", quoted(k.Value), what, seen[at].Line)
		default:
			seen[at] = k
			read(k.Value, n.Content[i+1])
		}
	}
	for _, key := range required {
		if seen[slices.Index(keys, key)] == nil {
			r.fail(n, "add `"+example(key)+"`", "%s has no %s", what, key)
		}
	}
}

// example shows how a key is used.
func example(key string) string {
	if e := map[string]string{"version": "version: 1", "host": "host: registry.npmjs.org", "from": "from: file:/run/secrets/NAME",
		"path": "path: /", "upstream": "upstream: https://HOST", "add": `add: "NAME: VALUE"`, "servers": "servers: [10.0.0.53]"}[key]; e != "" {
		return e
	}
	return key + ": ..."
}

// list calls read for each element of a sequence.
func (r *reader) list(n *yaml.Node, what string, read func(v *yaml.Node)) bool {
	if n.Kind != yaml.SequenceNode {
		mend := "write it as a list: `[...]`, or one `- ` line each"
		if n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null" {
			mend = "write `[]` for an empty list, or remove the key"
		}
		r.fail(n, mend, "%s is not a list but %s", what, kindOf(n))
		return false
	}
	for _, v := range n.Content {
		read(v)
	}
	return true
}

// str reads non-empty text. A number or a yes-or-no value in its place is a
// mistake and not a text: YAML has many spellings of one number.
func (r *reader) str(n *yaml.Node, what string) (string, bool) {
	if n.Kind == yaml.ScalarNode && n.ShortTag() != "!!str" && n.ShortTag() != "!!null" {
		r.fail(n, "write "+quoted(n.Value)+" in quotes if that is meant", "%s is not text but %s", what, kindOf(n))
		return "", false
	}
	return r.raw(n, what)
}

// raw reads a scalar as it is written, whatever YAML would make of it: hosts,
// times and addresses have grammars of their own.
func (r *reader) raw(n *yaml.Node, what string) (string, bool) {
	switch {
	case n.Kind != yaml.ScalarNode:
		mend := "write one value"
		if n.Kind == yaml.MappingNode {
			mend = "put text that contains braces or `: ` in quotes"
		}
		r.fail(n, mend, "%s is not text but %s", what, kindOf(n))
		return "", false
	case n.Value == "" || n.ShortTag() == "!!null":
		r.fail(n, "write a value, or remove the key", "%s is empty", what)
		return "", false
	}
	return n.Value, true
}

// number reads a plain decimal integer between low and high.
func (r *reader) number(n *yaml.Node, what string, low, high int64) (int64, bool) {
	v, err := strconv.ParseInt(n.Value, 10, 64)
	plain := n.Kind == yaml.ScalarNode && n.Style == 0 && isDecimal(n.Value)
	if plain && err == nil && low <= v && v <= high {
		return v, true
	}
	form := fmt.Sprintf("write a whole number from %d to %d", low, high)
	switch {
	case n.Kind != yaml.ScalarNode || n.Value == "" || n.ShortTag() == "!!null":
		r.fail(n, form, "%s is not a number but %s", what, kindOf(n))
	case n.Style != 0:
		if isDecimal(n.Value) {
			form = "remove the quotes"
		}
		r.fail(n, form, "%s is text, not a number: %s", what, quoted(n.Value))
	case !plain:
		r.fail(n, form, "%s is not a plain number: %s", what, quoted(n.Value))
	default:
		r.fail(n, form, "%s is out of range: %s", what, quoted(n.Value))
	}
	return 0, false
}

// isDecimal says that a number is written in the one way that no version of
// YAML takes for octal, hexadecimal or something else.
func isDecimal(s string) bool {
	s = strings.TrimPrefix(s, "-")
	return s != "" && strings.Trim(s, "0123456789") == "" && (s[0] != '0' || s == "0")
}

// boolean reads true or false and no other spelling.
func (r *reader) boolean(n *yaml.Node, what string) bool {
	if n.Kind != yaml.ScalarNode || n.Style != 0 || (n.Value != "true" && n.Value != "false") {
		r.fail(n, "write true or false", "%s is neither true nor false but %s", what, kindOf(n))
		return false
	}
	return n.Value == "true"
}

// enum reads one of a few words.
func (r *reader) enum(n *yaml.Node, what string, words ...string) (string, bool) {
	s, ok := r.str(n, what)
	if ok && !slices.Contains(words, s) {
		r.fail(n, suggest(s, words), "%s is %s", what, quoted(s))
		return "", false
	}
	return s, ok
}
