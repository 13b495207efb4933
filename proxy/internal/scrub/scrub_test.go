package scrub

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math/rand"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const fakeKey = "sk-ant-api03-FAKE/not+a_key=0123456789-AbCdEfGhIjKlMnOpQrStUvWxYz"

// each writes every byte of s in one of the formats, by turns; "" is as it is.
func each(s string, formats ...string) string {
	var b strings.Builder
	for i := range len(s) {
		if format := formats[i%len(formats)]; format != "" {
			fmt.Fprintf(&b, format, s[i])
		} else {
			b.WriteByte(s[i])
		}
	}
	return b.String()
}

// forms are all the ways to write s that are to be found whole.
func forms(s string) map[string]string {
	quoted, _ := json.Marshal(s)
	again, _ := json.Marshal(string(quoted))
	std := base64.StdEncoding.EncodeToString([]byte(s))
	return map[string]string{
		"raw":                   s,
		"JSON":                  string(quoted[1 : len(quoted)-1]),
		"JSON in JSON":          string(again[1 : len(again)-1]),
		"JSON, slashes escaped": strings.ReplaceAll(s, "/", `\/`),
		"JSON, u":               each(s, `\u%04x`),
		"JSON, U":               each(s, `\u%04X`),
		"JSON, u, in JSON":      each(s, `\\u%04x`),
		"JSON, mixed":           each(s, "", `\u%04x`, "", ""),
		"percent":               each(s, "%%%02x"),
		"PERCENT":               each(s, "%%%02X"),
		"percent, query":        url.QueryEscape(s),
		"percent, path":         url.PathEscape(s),
		"percent, mixed":        each(s, "%%%02x", "", "%%%02X"),
		"percent twice":         each(s, "%%25%02x"),
		"percent, queries":      url.QueryEscape(url.QueryEscape(s)),
		"percent, of JSON":      each(s, `%%5Cu%04x`),
		"JSON, of percent":      each(s, `\u0025%02x`),
		"hex escapes":           each(s, `\x%02x`),
		"all mixed":             each(s, "", `\u%04x`, "%%%02x", `\x%02X`, `%%25%02x`, `\\u%04X`),
		"hex":                   hex.EncodeToString([]byte(s)),
		"HEX":                   strings.ToUpper(hex.EncodeToString([]byte(s))),
		"hEx":                   each(s, "%02x", "%02X"),
		"hex, percent":          each(hex.EncodeToString([]byte(s)), "%%%02x"),
		"hex, JSON":             each(hex.EncodeToString([]byte(s)), "", `\u%04x`),
		"base64":                std,
		"base64, slashes":       strings.ReplaceAll(std, "/", `\/`),
		"base64, query":         url.QueryEscape(std),
		"base64, JSON":          each(std, `\u%04x`),
		"base64, URL":           base64.RawURLEncoding.EncodeToString([]byte(s)),
	}
}

// contains says whether a secret is in b, in any of the encodings.
func contains(s *Set, b []byte) bool { return len(s.find(b, false)) > 0 }

func TestEveryForm(t *testing.T) {
	set := NewSet([]byte(fakeKey))
	for name, form := range forms(fakeKey) {
		for _, around := range [][2]string{{"", ""}, {"%", "%"}, {"\\", "\\"}, {`\u00`, "00"}} {
			in := around[0] + form + around[1]
			t.Run(name+" in "+around[0], func(t *testing.T) {
				if !contains(set, []byte(in)) {
					t.Fatalf("not found: %s", in)
				}
				got := set.String(in)
				want := string(newOracle([]byte(fakeKey)).masked([]byte(in)))
				if diff := cmp.Diff(want, got); diff != "" {
					t.Error(diff)
				}
				if len(got) != len(in) {
					t.Errorf("%d bytes became %d", len(in), len(got))
				}
			})
		}
	}
}

// One byte changed, in any form: nothing is found. (The control of the test above.)
func TestNothingLess(t *testing.T) {
	for i := range len(fakeKey) {
		almost := fakeKey[:i] + "~" + fakeKey[i+1:]
		set := NewSet([]byte(almost))
		for name, form := range forms(fakeKey) {
			if strings.HasPrefix(name, "base64") && i == len(fakeKey)-1 {
				continue // of whose bits some stand in a character that neighbours share
			}
			if got := set.String(form); got != form {
				t.Fatalf("%s, byte %d: %s", name, i, got)
			}
		}
	}
}

func TestBase64Alignments(t *testing.T) {
	set := NewSet([]byte(fakeKey))
	for before := range 4 {
		for after := range 4 {
			text := []byte(strings.Repeat("u", before) + fakeKey + strings.Repeat(":", after))
			for name, enc := range map[string]*base64.Encoding{"std": base64.StdEncoding, "raw std": base64.RawStdEncoding, "URL": base64.URLEncoding, "raw URL": base64.RawURLEncoding} {
				in := enc.EncodeToString(text)
				got := set.String(in)
				core := string(base64Core([]byte(fakeKey), before%3))
				if strings.HasSuffix(name, "std") {
					core = strings.NewReplacer("-", "+", "_", "/").Replace(core)
				}
				if want := strings.Replace(in, core, strings.Repeat("*", len(core)), 1); want == in || got != want {
					t.Errorf("%s, %d before, %d after: got %s, want %s", name, before, after, got, want)
				}
			}
		}
	}
}

// A secret is found at every offset, so also where two lanes of the search meet.
func TestEveryOffset(t *testing.T) {
	set := NewSet([]byte("12345678"), []byte("another-FAKE-secret-value"))
	for _, secret := range []string{"12345678", "another-FAKE-secret-value", "%31%32345678"} {
		for at := range 1000 {
			in := strings.Repeat("x", at) + secret + strings.Repeat("x", 1000-at)
			want := strings.Repeat("x", at) + strings.Repeat("*", len(secret)) + strings.Repeat("x", 1000-at)
			if got := set.String(in); got != want {
				t.Fatalf("%s at %d: not masked", secret, at)
			}
		}
	}
}

func TestSets(t *testing.T) {
	long, short := []byte("another-FAKE-secret-value"), []byte("1234567")
	tests := map[string]struct {
		secrets [][]byte
		in      string
		want    string
	}{
		"none":            {nil, fakeKey, fakeKey},
		"two":             {[][]byte{[]byte(fakeKey), long}, "a " + fakeKey + " b another-FAKE-secret-value", "a " + strings.Repeat("*", len(fakeKey)) + " b " + strings.Repeat("*", len(long))},
		"twice":           {[][]byte{long, long}, "another-FAKE-secret-value", strings.Repeat("*", len(long))},
		"too short":       {[][]byte{short}, "1234567", "1234567"},
		"empty":           {[][]byte{{}, nil}, "a b", "a b"},
		"least":           {[][]byte{[]byte("12345678")}, "0123456789", "0********9"},
		"rendered":        {[][]byte{[]byte("Bearer " + fakeKey), []byte(fakeKey)}, "Bearer " + fakeKey, "Bearer " + strings.Repeat("*", len(fakeKey))},
		"rendered only":   {[][]byte{[]byte("basic " + fakeKey)}, "Basic " + fakeKey, "Basic " + strings.Repeat("*", len(fakeKey))},
		"one in another":  {[][]byte{[]byte("password"), []byte("password-and-more")}, "a password-and-more password-and", "a ***************** ********-and"},
		"overlapping":     {[][]byte{[]byte("abcdefgh1234"), []byte("1234abcdefxy")}, "abcdefgh1234abcdefxy", strings.Repeat("*", 20)},
		"self-overlap":    {[][]byte{[]byte("abababab")}, "xababababababx", "x************x"},
		"with percent":    {[][]byte{[]byte("a%41b%42c")}, "a%41b%42c a%2541b%2542c a%41b%2542%63", "********* ************* *************"},
		"with escape":     {[][]byte{[]byte(`a"b\c/d\e`)}, `a\"b\\c\/d\\e`, "*************"},
		"multi-line":      {[][]byte{[]byte("line one\nline two\n")}, `"line one\nline two\n"`, `"********************"`},
		"not ASCII":       {[][]byte{[]byte("p\xc3\xa4ssw\xc3\xb6rd")}, "p\xc3\xa4ssw\xc3\xb6rd p%C3%A4ssw%c3%b6rd", "********** ******************"},
		"hex behind sign": {[][]byte{[]byte("41bcdef0123")}, "%41bcdef01%323", "%*************"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			set := NewSet(tt.secrets...)
			if got := set.String(tt.in); got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
			in := []byte(tt.in)
			if got := set.Bytes(in); string(got) != tt.want || string(in) != tt.in {
				t.Errorf("Bytes: got %s of %s", got, in)
			}
			if contains(set, in) != (tt.in != tt.want) {
				t.Error("Contains says otherwise")
			}
		})
	}
}

// With more needles than one machine has room for, each is found.
func TestManySecrets(t *testing.T) {
	keys := fakeKeys(30)
	set := NewSet(keys...)
	if len(set.machines) < 2 {
		t.Fatalf("%d machines: the test needs more secrets", len(set.machines))
	}
	binary := rand.New(rand.NewSource(3))
	for range 5 {
		key := make([]byte, 200)
		binary.Read(key)
		keys = append(keys, key)
	}
	set = NewSet(keys...)
	for i, key := range keys {
		if i%4 > 0 {
			continue
		}
		for name, form := range forms(string(key)) {
			if i >= 30 && (name == "JSON" || name == "JSON in JSON" || strings.Contains(name, "quer")) {
				continue // which replace what is not UTF-8, and write + for a blank
			}
			if !contains(set, []byte("some text before "+form)) {
				t.Errorf("secret %d, %s: not found", i, name)
			}
		}
	}
}

func TestHeader(t *testing.T) {
	set := NewSet([]byte("Sk-Ant-FAKE-Token-Value"))
	h := http.Header{}
	h.Set("sk-ant-fake-token-VALUE", "name") // becomes Sk-Ant-Fake-Token-Value
	h.Set("X-"+hex.EncodeToString([]byte("Sk-Ant-FAKE-Token-Value")), "name")
	h.Set("X-"+strings.ToUpper(base64.RawURLEncoding.EncodeToString([]byte("Sk-Ant-FAKE-Token-Value"))), "name")
	h.Add("Location", "https://a.example/?key=Sk-Ant-FAKE-Token-Value")
	h.Add("Location", "https://a.example/?key=Sk%2DAnt-FAKE-Token-Value&x")
	h.Set("Content-Type", "sk-ant-fake-token-value") // another case is another value
	set.Header(h)
	want := http.Header{
		"Location":     {"https://a.example/?key=***********************", "https://a.example/?key=*************************&x"},
		"Content-Type": {"sk-ant-fake-token-value"},
	}
	if diff := cmp.Diff(want, h); diff != "" {
		t.Error(diff)
	}
	NewSet().Header(h)
	if diff := cmp.Diff(want, h); diff != "" {
		t.Error(diff)
	}
}

func TestNilSet(t *testing.T) {
	var s *Set
	if contains(s, []byte(fakeKey)) || s.ContainsFold(fakeKey) || s.String(fakeKey) != fakeKey || string(s.Bytes([]byte(fakeKey))) != fakeKey {
		t.Error("a nil Set found something")
	}
	s.Header(http.Header{"A": {fakeKey}})
	if got, err := readAll(NewReader(strings.NewReader(fakeKey), s, Body)); got != fakeKey || err != nil {
		t.Error(got, err)
	}
}

func TestSetDoesNotPrint(t *testing.T) {
	set := NewSet([]byte(fakeKey))
	for _, format := range []string{"%v", "%+v", "%#v", "%s", "%x", "%d", "%q"} {
		for _, v := range []any{set, struct{ S *Set }{set}, []*Set{set}} {
			if got := fmt.Sprintf(format, v); strings.Contains(got, "115") || strings.Contains(got, "sk") || strings.Contains(got, "736b") {
				t.Errorf("%s of %T: %s", format, v, got)
			}
		}
	}
}

func TestUnchangedIsTheSame(t *testing.T) {
	set := NewSet([]byte(fakeKey))
	in := []byte("a benign mention of sk-ant-api03- and no more")
	if got := set.Bytes(in); &got[0] != &in[0] {
		t.Error("Bytes copied what it did not change")
	}
	none := NewSet()
	if n := testing.AllocsPerRun(10, func() { none.String(fakeKey) }); n != 0 {
		t.Errorf("%v allocations without secrets", n)
	}
}

// An event of a stream that has begun makes no garbage.
func TestCleanTrafficAllocatesNothing(t *testing.T) {
	event := append(bytes.Repeat([]byte("x"), 218), "\n\n"...)
	r, buf := NewReader(&repeat{event}, NewSet([]byte(fakeKey)), Events), make([]byte, 4096)
	if n := testing.AllocsPerRun(100, func() {
		if n, err := r.Read(buf); n != len(event) || err != nil {
			t.Fatal(n, err)
		}
	}); n != 0 {
		t.Errorf("%v allocations an event", n)
	}
}

func TestOracle(t *testing.T) { // which the fuzz below stands on
	o := newOracle([]byte(fakeKey))
	for name, form := range forms(fakeKey) {
		if got := o.masked([]byte(form)); !bytes.Contains(got, []byte("********************")) {
			t.Errorf("%s: %s", name, got)
		}
	}
	for before := range 3 {
		if got, want := commonBase64([]byte(fakeKey), before), string(base64Core([]byte(fakeKey), before)); got != want {
			t.Errorf("alignment %d: %s, %s", before, got, want)
		}
	}
}

// A needle is found wherever it lies to the sieve's stretches and steps, as it stands, in the other spelling of base64,
// and with an escape anywhere among its last characters; and the sieve does let clean text through unsearched.
func TestSieve(t *testing.T) {
	secret := []byte("sk-FAKE+long/secret_01-~~~>>>???") // its base64 ends in Pz8/ and the like
	set := NewSet(secret)
	const clean = "all of this text is clean, and long enough for a needle to end anywhere in it. "
	text := []byte(strings.Repeat(clean, 3*stretch/len(clean)))
	free := func(s *sieve) bool { return !s.passes(text, 0, stretch) && !s.passes(text, stretch, 2*stretch) }
	if set.sieve == nil || !free(set.sieve) && !free(NewSet(secret).sieve) { // each has a key of its own, and one in thousands is unlucky
		t.Fatal("clean text has to be searched")
	}
	standard := base64.StdEncoding.EncodeToString(append([]byte{0xfb, 0xff}, secret...))
	spellings := []string{string(secret), strings.ToUpper(hex.EncodeToString(secret)), standard, strings.NewReplacer("+", "-", "/", "_").Replace(standard)}
	for k := range secret {
		spellings = append(spellings, fmt.Sprintf("%s%%%02X%s", secret[:k], secret[k], secret[k+1:]), fmt.Sprintf(`%s\\u00%02x%s`, secret[:k], secret[k], secret[k+1:]))
	}
	for at := stretch - 120; at < stretch+2*step; at++ {
		for _, s := range spellings {
			in := slices.Concat(text[:at], []byte(s), text[at:])
			if got := string(set.Bytes(in)); !strings.Contains(got, "****************") || strings.Contains(got, s) {
				t.Fatalf("%q at %d is not masked", s, at)
			}
		}
	}
}
