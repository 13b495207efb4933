package scrub

import "bytes"

// unescape is what a character means behind a backslash in JSON, JavaScript or C;
// 0 for those that mean nothing.
var unescape = func() (t [256]byte) {
	for i, c := range []byte(`"\/'bfnrt`) {
		t[c] = "\"\\/'\b\f\n\r\t"[i]
	}
	return t
}()

// maxEscaped is how often a percent sign or backslash may itself be escaped, or a
// backslash be repeated, as in %2573 and \\u0073.
const maxEscaped = 4

// maxEscape is the length in bytes of the longest escape that fits these rules.
const maxEscape = maxEscaped*len(`u005c`) + len(`u0073`)

// text is what is searched, read backwards. Nothing before floor counts, and no
// needle extends over a byte of barrier.
type text struct {
	b       []byte
	floor   int
	barrier *[256]bool
}

// before reports whether s stands right before q.
func (t *text) before(q int, s string) bool {
	return q-len(s) >= t.floor && string(t.b[q-len(s):q]) == s
}

// char is a way to read the end of a text: a byte, and where what stands for it
// begins.
type char struct {
	value byte
	from  int
}

// chars appends every way to read the character that ends at q: as it stands, or
// as an escape.
func (t *text) chars(dst []char, q int) []char {
	if q <= t.floor {
		return dst
	}
	c := t.b[q-1]
	if !t.barrier[c] {
		dst = append(dst, char{c, q - 1})
	}
	if v := unescape[c]; v != 0 {
		dst = t.backslash(dst, v, q-1, maxEscaped)
	}
	if q-t.floor < len("%73") {
		return dst
	}
	if v, ok := hexByte(t.b[q-2:]); ok {
		dst = t.percent(dst, v, q-2, maxEscaped)
		if t.b[q-3] == 'x' {
			dst = t.backslash(dst, v, q-3, maxEscaped)
		}
		if t.before(q-2, "u00") {
			dst = t.backslash(dst, v, q-5, maxEscaped)
		}
	}
	return dst
}

// percent appends v with every place where a percent sign that ends at q may begin,
// itself escaped less than depth times.
func (t *text) percent(dst []char, v byte, q, depth int) []char {
	if depth == 0 || q <= t.floor {
		return dst
	}
	if t.b[q-1] == '%' {
		return append(dst, char{v, q - 1})
	}
	if t.b[q-1] != '5' {
		return dst
	}
	if t.before(q, "25") {
		dst = t.percent(dst, v, q-2, depth-1)
	}
	if t.before(q, "u0025") {
		dst = t.backslash(dst, v, q-5, depth-1)
	}
	if t.before(q, "x25") {
		dst = t.backslash(dst, v, q-3, depth-1)
	}
	return dst
}

// backslash is percent for a backslash, which may also be doubled.
func (t *text) backslash(dst []char, v byte, q, depth int) []char {
	if depth == 0 || q <= t.floor {
		return dst
	}
	if t.b[q-1] == '\\' {
		return t.backslash(append(dst, char{v, q - 1}), v, q-1, depth-1)
	}
	if !t.before(q, "5c") && !t.before(q, "5C") {
		return dst
	}
	dst = t.percent(dst, v, q-2, depth-1)
	if t.before(q-2, "u00") {
		dst = t.backslash(dst, v, q-5, depth-1)
	}
	if t.before(q-2, "x") {
		dst = t.backslash(dst, v, q-3, depth-1)
	}
	return dst
}

// opens reports whether the escape whose beginning a machine found before end may
// stand for a byte of alphabet, or for the percent sign or backslash of another
// escape. It may, if the text ends too early to tell.
func opens(b []byte, end int, alphabet *[256]bool) bool {
	head := b[:end]
	switch {
	case head[end-2] == '%':
		head = head[:end-1] // its first digit is already in
	case bytes.HasSuffix(head, []byte(`\u00`)), bytes.HasSuffix(head, []byte(`\x`)):
	case head[end-2] == '\\':
		v := unescape[head[end-1]]
		return v != 0 && alphabet[v]
	default:
		return false // another case or alphabet
	}
	if len(b) < len(head)+2 {
		return true
	}
	v, ok := hexByte(b[len(head):])
	return ok && (alphabet[v] || v == '%' || v == '\\')
}

// hexByte reads the first two bytes of b as hex digits.
func hexByte(b []byte) (byte, bool) {
	hi, lo := hexDigit[b[0]], hexDigit[b[1]]
	return hi<<4 | lo, hi|lo < 16
}

// hexDigit is the value of a digit, 16 for what is none.
var hexDigit = func() (t [256]byte) {
	for c := range t {
		switch {
		case '0' <= c && c <= '9':
			t[c] = byte(c - '0')
		case 'a' <= c|0x20 && c|0x20 <= 'f':
			t[c] = byte(c|0x20-'a') + 10
		default:
			t[c] = 16
		}
	}
	return t
}()
