package policy

import "strings"

// queryFault is what keeps a query from meeting a pattern's condition.
type queryFault uint8

const (
	queryMeets queryFault = iota
	querySemicolon
	queryTwoWays
	queryAbsent
	queryTwice
	queryOther
)

// explain says the fault in words; condition is the one not met.
func (f queryFault) explain(condition [2]string) string {
	key, value := condition[0], condition[0]+"="+escapeText(condition[1], queryBytes)
	switch f {
	case querySemicolon:
		return "its query has a semicolon, which some servers cut at"
	case queryTwoWays:
		return "its query has a key that may be decoded in two ways"
	case queryAbsent:
		return "its query has no " + value
	case queryTwice:
		return "its query has " + key + " more than once"
	case queryOther:
		return "its query has " + key + " with another value than " + value
	}
	return ""
}

// queryFault tells whether a raw query meets the pattern's conditions, and the
// first it does not meet. A listed key must be there exactly once with the
// listed value; other keys are free. Keys and values are compared decoded, and
// what some server could take for a listed key counts as one: another case, an
// escape, a space beside it, an array form (service[]=). It allocates nothing.
func (p *Pattern) queryFault(query string) (queryFault, [2]string) {
	if len(p.Query) > 0 && strings.IndexByte(query, ';') >= 0 {
		return querySemicolon, p.Query[0]
	}
	for _, want := range p.Query {
		if f := conditionFault(query, want[0], want[1]); f != queryMeets {
			return f, want
		}
	}
	return queryMeets, [2]string{}
}

func conditionFault(query, key, value string) queryFault {
	times, met := 0, false
	for rest := query; rest != ""; {
		var pair string
		pair, rest, _ = strings.Cut(rest, "&")
		k, v, _ := strings.Cut(pair, "=")
		if !oneReading(k) {
			return queryTwoWays
		}
		if sameKey(k, key) {
			times++
			// A raw + is a space to most servers and a plus to some: it is never the value meant.
			met = equalEscaped(k, key) && equalEscaped(v, value) && strings.IndexByte(v, '+') < 0
		}
	}
	switch {
	case times == 0:
		return queryAbsent
	case times > 1:
		return queryTwice
	case !met:
		return queryOther
	}
	return queryMeets
}

// oneReading refuses a key whose escapes are broken, hide another escape, end
// a C string, or are not UTF-8.
func oneReading(k string) bool {
	for i := 0; i < len(k); i++ {
		if k[i] != '%' {
			continue
		}
		if c, ok := unescape(k[i:]); !ok || c == '%' || c == 0 {
			return false
		}
		i += 2
	}
	return validUTF8(k)
}

// sameKey says that some server could read the raw key as the wanted one.
// PHP, for one, drops spaces before it, cuts at a bracket, and makes dots
// underscores; others ignore the case.
func sameKey(raw, want string) bool {
	matched := 0
	for i := 0; i < len(raw); i++ {
		c := raw[i]
		if c == '%' {
			c, _ = unescape(raw[i:])
			i += 2
		}
		switch {
		case c == '[':
			return matched == len(want)
		case c <= ' ' || c == '+':
			continue
		case matched == len(want) || foldKey(c) != foldKey(want[matched]):
			return false
		}
		matched++
	}
	return matched == len(want)
}

func foldKey(c byte) byte {
	switch {
	case 'A' <= c && c <= 'Z':
		return c + 'a' - 'A'
	case c == '.':
		return '_'
	}
	return c
}
