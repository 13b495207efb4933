package head

// class is a set of bytes.
type class [256]bool

func (c *class) has(b byte) bool { return c[b] }

// newClass is the set of chars and of the ranges, given as pairs.
func newClass(chars string, ranges ...byte) *class {
	var c class
	for _, b := range []byte(chars) {
		c[b] = true
	}
	for i := 0; i+1 < len(ranges); i += 2 {
		for b := int(ranges[i]); b <= int(ranges[i+1]); b++ {
			c[b] = true
		}
	}
	return &c
}

var (
	isDigit  = newClass("", '0', '9')
	isHex    = newClass("", '0', '9', 'a', 'f', 'A', 'F')
	isMethod = newClass("-", 'A', 'Z')
	// RFC 9110 5.6.2.
	isToken = newClass("!#$%&'*+-.^_`|~", '0', '9', 'a', 'z', 'A', 'Z')
	// RFC 9110 5.5: visible ASCII, blanks, obs-text.
	isValue = newClass("\t", ' ', '~', 0x80, 0xff)
	// Visible ASCII. A backslash is a slash to some servers, a number sign ends
	// the path to others. Quotes, braces and bars come in real query strings.
	isTarget = func() *class {
		c := newClass("", '!', '~')
		c['\\'], c['#'] = false, false
		return c
	}()
	isHost = newClass("-._", '0', '9', 'a', 'z', 'A', 'Z')
)

// all reports whether every byte of s is in c.
func all(s []byte, c *class) bool {
	for _, b := range s {
		if !c[b] {
			return false
		}
	}
	return true
}

// foldEqual reports whether b is the lower-case word but for the case of its
// letters and for underscores where word has hyphens.
func foldEqual(b []byte, word string) bool {
	if len(b) != len(word) {
		return false
	}
	for i, c := range b {
		switch {
		case 'A' <= c && c <= 'Z':
			c |= 0x20
		case c == '_':
			c = '-'
		}
		if c != word[i] {
			return false
		}
	}
	return true
}

// known is the bit of the field called name, 0 for all that mean nothing here.
func known(name []byte) field {
	var word string
	var f field
	switch len(name) {
	case 4:
		word, f = "host", fieldHost
	case 6:
		if name[0]|0x20 == 'p' {
			word, f = "pragma", fieldPragma
		} else {
			word, f = "expect", fieldExpect
		}
	case 7:
		word, f = "trailer", fieldTrailer
	case 10:
		word, f = "connection", fieldConnection
	case 12:
		word, f = "content-type", fieldContentType
	case 13:
		word, f = "cache-control", fieldCacheControl
	case 14:
		word, f = "content-length", fieldContentLength
	case 17:
		word, f = "transfer-encoding", fieldTransferEncoding
	}
	if f == 0 || !foldEqual(name, word) {
		return 0
	}
	return f
}

// routing are the fields that say where a request goes, where it ends, or who
// sends it. None may come in a trailer, after the decision was made on the head.
var routing = []string{
	"host", "content-length", "transfer-encoding", "trailer", "te", "connection",
	"keep-alive", "upgrade", "expect", "content-type", "content-encoding",
	"content-range", "range", "max-forwards", "cache-control", "pragma",
	"authorization", "proxy-authorization", "proxy-connection", "cookie",
	"x-api-key", "api-key", "x-goog-api-key",
}

func mayTrail(name []byte) *Error {
	for _, r := range routing {
		if foldEqual(name, r) {
			return bad("trailer announces a field that belongs into the head")
		}
	}
	return nil
}

// mayDrop refuses connection options that would take away what frames or routes
// the request; all others are hop-by-hop fields, for the proxy to take out.
func mayDrop(option []byte) *Error {
	for _, word := range []string{"host", "content-length", "transfer-encoding", "trailer", "connection", "content-type"} {
		if foldEqual(option, word) {
			return bad("connection names a field that frames or routes the request")
		}
	}
	return nil
}

// unhex is the value of a hex digit, which c must be.
func unhex(c byte) byte {
	if c <= '9' {
		return c - '0'
	}
	return c&^0x20 - 'A' + 10
}
