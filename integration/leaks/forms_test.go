package leaks

import (
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// form is a way of writing a secret.
type form struct{ name, text string }

// forms are those in which it must not come back.
func forms(secret string) []form {
	all := []form{{"plain", secret}, {"Bearer", "Bearer " + secret}, {"JSON \\/", strings.ReplaceAll(secret, "/", `\/`)},
		{"hex", hex.EncodeToString([]byte(secret))}, {"HEX", strings.ToUpper(hex.EncodeToString([]byte(secret)))}}
	for shift, before := range []string{"", "x", "xy"} {
		for name, alphabet := range map[string]*base64.Encoding{"std": base64.StdEncoding, "url": base64.URLEncoding, "url, unpadded": base64.RawURLEncoding} {
			all = append(all, form{fmt.Sprintf("base64 %s, %d before", name, shift), alphabet.EncodeToString([]byte(before + secret))})
		}
	}
	for name, format := range map[string]string{"percent": "%%%02x", "PERCENT": "%%%02X", "percent twice": "%%25%02x", "JSON \\u": `\u%04x`, "\\x": `\x%02x`} {
		text := ""
		for _, b := range []byte(secret) {
			text += fmt.Sprintf(format, b)
		}
		all = append(all, form{name, text})
	}
	return append(all, form{"one letter as JSON \\u", fmt.Sprintf(`%s\u%04x%s`, secret[:9], secret[9], secret[10:])},
		form{"one letter as percent", fmt.Sprintf(`%s%%%02x%s`, secret[:9], secret[9], secret[10:])})
}

// someForms are one of each family, for channels that are read by the same code as another with all forms.
func someForms(secret string) (some []form) {
	for _, f := range forms(secret) {
		switch f.name {
		case "plain", "hex", "base64 std, 1 before", "base64 url, unpadded, 0 before", "percent", "JSON \\u":
			some = append(some, f)
		}
	}
	return some
}

var escaped = regexp.MustCompile(`(?i)(?:%(?:25)*|\\+u00|\\+x)([0-9a-f]{2})`)

// unescaped undoes percent signs and backslashes.
func unescaped(text string) string {
	text = escaped.ReplaceAllStringFunc(text, func(s string) string {
		b, _ := strconv.ParseUint(s[len(s)-2:], 16, 8)
		return string(rune(b))
	})
	return strings.ReplaceAll(text, `\/`, "/")
}

// holds says whether a text holds most of a secret, in any of its forms. It is another search than the one under test: it undoes
// escapes, and looks for twelve bytes of the middle, so that a mask with a hole counts as well.
func holds(text, secret string) bool {
	const size = 12
	text = strings.ToLower(text)
	plain := unescaped(text)
	for at := 0; at+size <= len(secret); at += 3 { // steps of three keep base64's alignment
		piece := secret[at : at+size]
		if strings.Contains(plain, strings.ToLower(piece)) || strings.Contains(text, hex.EncodeToString([]byte(piece))) {
			return true
		}
		for shift := range 3 {
			encoded := base64.StdEncoding.EncodeToString([]byte("xyz"[:shift] + piece))
			core := strings.ToLower(encoded[(shift*8+5)/6 : (shift+size)*8/6])
			if strings.Contains(plain, core) || strings.Contains(plain, strings.NewReplacer("+", "-", "/", "_").Replace(core)) {
				return true
			}
		}
	}
	return false
}

// TestHolds: the search finds every form, each with neighbours, and does not cry over others.
func TestHolds(t *testing.T) {
	for _, f := range forms(secret) {
		if !holds("before "+f.text+" after", secret) {
			t.Errorf("%s is not found: %s", f.name, f.text)
		}
	}
	for _, text := range []string{"", secret[:11], strings.Repeat("*", 50), strings.Repeat("sk-ant-FAKE ", 20), otherSecret} {
		if holds(text, secret) {
			t.Errorf("found in %q", text)
		}
	}
}
