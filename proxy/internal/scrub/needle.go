package scrub

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"slices"
	"strings"
)

// needle is one text to look for. Text is compared after fold was applied to it.
type needle struct {
	text  []byte // folded
	fold  *[256]byte
	loose []byte // text folded by caseless, to compare without case
}

// foldTable is the identity with the bytes of from replaced by those of to.
func foldTable(from, to string) *[256]byte {
	var t [256]byte
	for i := range t {
		t[i] = byte(i)
	}
	for i := range len(from) {
		t[from[i]] = to[i]
	}
	return &t
}

const (
	upper = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
	lower = "abcdefghijklmnopqrstuvwxyz"
)

var (
	exact    = foldTable("", "")
	hexCase  = foldTable("ABCDEF", "abcdef")
	alphabet = foldTable("+/", "-_") // base64's two, mixed too
	// caseless is coarser than all of them: what differs by it never matches.
	caseless = foldTable(upper+"+/", lower+"-_")
)

func newNeedle(text []byte, fold *[256]byte) needle {
	n := needle{fold: fold}
	for _, c := range text {
		n.text = append(n.text, fold[c])
		n.loose = append(n.loose, caseless[c])
	}
	return n
}

// equal reports whether c is the needle's byte k.
func (n *needle) equal(k int, c byte, loose bool) bool {
	if loose {
		return caseless[c] == n.loose[k]
	}
	return n.fold[c] == n.text[k]
}

// variants adds to set every byte that equals one of the needle's.
func (n *needle) variants(set *[256]bool) {
	var in [256]bool
	for _, c := range n.text {
		in[c] = true
	}
	for c := range set {
		set[c] = set[c] || in[n.fold[c]]
	}
}

// encodings are the needles of one secret.
func encodings(secret []byte) []needle {
	needles := []needle{
		newNeedle(secret, exact),
		newNeedle([]byte(hex.EncodeToString(secret)), hexCase),
	}
	for before := range 3 {
		needles = append(needles, newNeedle(base64Core(secret, before), alphabet))
	}
	return needles
}

// base64Core is what the base64 of any text has in it that holds secret at a byte
// offset of before modulo 3: the characters all of whose 6 bits are the secret's.
func base64Core(secret []byte, before int) []byte {
	padded := append(make([]byte, before), secret...)
	from := (8*before + 5) / 6
	to := 8 * len(padded) / 6
	return []byte(base64.RawURLEncoding.EncodeToString(padded))[from:to]
}

// schemes begin the Authorization values in which secrets are rendered. They are
// public, and their blank would end up among the bytes of a secret.
var schemes = []string{"bearer ", "basic ", "token "}

// distinct drops secrets that are too short or repeated, and the schemes of those
// rendered with one.
func distinct(secrets [][]byte) [][]byte {
	var kept [][]byte
	for _, s := range secrets {
		for _, scheme := range schemes {
			if len(s) > len(scheme) && strings.EqualFold(string(s[:len(scheme)]), scheme) {
				s = s[len(scheme):]
			}
		}
		same := func(k []byte) bool { return bytes.Equal(k, s) }
		if len(s) >= MinLength && !slices.ContainsFunc(kept, same) {
			kept = append(kept, s)
		}
	}
	return kept
}
