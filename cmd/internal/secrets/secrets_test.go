package secrets

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"exitgate/policy"

	"github.com/google/go-cmp/cmp"
)

// Obvious fakes.
const (
	fakeOne = "sk-ant-api03-FAKE-one"
	fakeTwo = "sk-ant-api03-FAKE-two"
)

const agentID = 1000

// asRoot skips a test that needs root on a laptop; where CI is set it fails instead.
func asRoot(t *testing.T) {
	t.Helper()
	switch {
	case os.Geteuid() == 0:
	case os.Getenv("CI") != "":
		t.Fatal("needs root")
	default:
		t.Skip("needs root")
	}
}

// newRoot is a file root of its own, so that a test does not depend on what is above its directory.
func newRoot(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// put writes a file below root with these owners and this mode, and the directories it needs as root's.
func put(t *testing.T, root, name, content string, uid, gid int, mode os.FileMode) {
	t.Helper()
	path := filepath.Join(root, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	own(t, root, name, uid, gid, mode)
}

func own(t *testing.T, root, name string, uid, gid int, mode os.FileMode) {
	t.Helper()
	path := filepath.Join(root, name)
	if err := os.Chown(path, uid, gid); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

func link(t *testing.T, root, target, name string) {
	t.Helper()
	path := filepath.Join(root, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(target, path); err != nil {
		t.Fatal(err)
	}
}

// one is a policy with one agent and one credential.
func one(from string) *policy.Policy {
	scheme, value, _ := strings.Cut(from, ":")
	return &policy.Policy{
		Agents:      []policy.Agent{{Name: "claude", UID: agentID}},
		Credentials: []policy.Credential{{Name: "anthropic", From: policy.Source{Scheme: scheme, Value: value}, At: policy.Position{File: "policy.yaml", Line: 7, Column: 5}}},
	}
}

// load reads one credential and returns its value and the error's text.
func load(t *testing.T, o Options, p *policy.Policy) (string, string) {
	t.Helper()
	got, err := New(o).Load(p)
	s := got["anthropic"]
	if (err == nil) != (s.Broken == "") || (err == nil) == s.Value.IsZero() {
		t.Fatalf("value there: %v, broken: %q, error: %v: these must agree", !s.Value.IsZero(), s.Broken, err)
	}
	if err == nil {
		return string(s.Value.Reveal()), ""
	}
	return "", err.Error()
}

func TestContent(t *testing.T) {
	asRoot(t)
	const at = `policy.yaml:7:5: credential "anthropic": /run/secret `
	const plain = "; write the credential alone, on one line (`printf %s ... > FILE`)"
	for _, c := range []struct{ name, content, value, err string }{
		{"plain", fakeOne, fakeOne, ""},
		{"one newline", fakeOne + "\n", fakeOne, ""},
		{"one CRLF", fakeOne + "\r\n", fakeOne, ""},
		{"space inside", "pass word", "pass word", ""},
		{"longest", strings.Repeat("k", MaxValue) + "\n", strings.Repeat("k", MaxValue), ""},
		{"too long by one", strings.Repeat("k", MaxValue+1), "", at + "holds more than 64 KiB; is it the right one?"},
		{"far too long", strings.Repeat("k", 4*MaxValue), "", at + "holds more than 64 KiB; is it the right one?"},
		{"empty", "", "", at + "is empty; put the credential there"},
		{"only a newline", "\n", "", at + "is empty; put the credential there"},
		{"two newlines", fakeOne + "\n\n", "", at + "holds a line break at byte 22" + plain},
		{"CR alone", fakeOne + "\r", "", at + "holds a line break at byte 22" + plain},
		{"header injection", fakeOne + "\r\nX-Evil: 1", "", at + "holds a line break at byte 22" + plain},
		{"tab", "\t" + fakeOne, "", at + "holds a control byte at byte 1" + plain},
		{"NUL", fakeOne + "\x00", "", at + "holds a control byte at byte 22" + plain},
		{"DEL", "a\x7f", "", at + "holds a control byte at byte 2" + plain},
		{"BOM", "\xef\xbb\xbf" + fakeOne, "", at + "starts with a byte order mark; save it without one"},
		{"UTF-16", "s\x00k\x00", "", at + "holds a control byte at byte 2" + plain},
		{"not ASCII", "clé", "", at + "holds something other than ASCII at byte 3" + plain},
		{"not UTF-8", "a\xff", "", at + "holds something other than ASCII at byte 2" + plain},
		{"space in front", " " + fakeOne, "", at + "starts or ends with a space" + plain},
		{"space behind", fakeOne + " \n", "", at + "starts or ends with a space" + plain},
		{"double quotes", `"` + fakeOne + `"` + "\n", "", at + "is in quotes; write the credential alone, without them"},
		{"single quotes", "'" + fakeOne + "'", "", at + "is in quotes; write the credential alone, without them"},
		{"one quote", fakeOne + `"`, fakeOne + `"`, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			root := newRoot(t)
			put(t, root, "run/secret", c.content, 0, 0, 0o400)
			value, err := load(t, Options{Root: root}, one("file:/run/secret"))
			if diff := cmp.Diff([]string{c.value, c.err}, []string{value, err}); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// A value that cannot be sent as its credential says is told of before anything is ready; one that can is the control.
func TestUnfit(t *testing.T) {
	asRoot(t)
	const at = `policy.yaml:7:5: credential "anthropic": file:/run/secret `
	for _, c := range []struct {
		name, content string
		kind          policy.Kind
		format, err   string
	}{
		{"key", fakeOne, policy.KindAnthropic, "", ""},
		{"token", "sk-ant-oat01-FAKE-one", policy.KindAnthropic, "", ""},
		{"another's key", "sk-proj-FAKE-one", policy.KindAnthropic, "", at + "holds neither an sk-ant-oat nor an sk-ant-api token; write the token alone there; another kind of credential wants `kind: header`"},
		{"a line of an .env file", "KEY=" + fakeOne, policy.KindAnthropic, "", at + "holds neither an sk-ant-oat nor an sk-ant-api token; write the token alone there; another kind of credential wants `kind: header`"},
		{"shortest", "12345678", policy.KindHeader, "{}", ""},
		{"too short", "1234567", policy.KindHeader, "{}", at + "holds less than 8 bytes, too few to be told from other text; is it the right one?"},
		{"no scheme", fakeOne, policy.KindHeader, "Bearer {}", ""},
		{"scheme twice", "Bearer " + fakeOne, policy.KindHeader, "Bearer {}", at + `begins with "Bearer ", which its format "Bearer {}" adds; write the token alone there`},
		{"scheme once", "Bearer " + fakeOne, policy.KindHeader, "{}", ""},
		{"basic", "basic:x-" + fakeOne, policy.KindHeader, "basic:x", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			root := newRoot(t)
			put(t, root, "run/secret", c.content, 0, 0, 0o400)
			p := one("file:/run/secret")
			p.Credentials[0].Kind, p.Credentials[0].Format = c.kind, c.format
			if _, err := load(t, Options{Root: root}, p); err != c.err {
				t.Errorf("got  %s\nwant %s", err, c.err)
			}
		})
	}
}

func TestEnv(t *testing.T) {
	env := func() []string { return []string{"OTHER=x", "API_KEY=" + fakeOne, "EMPTY="} }
	for _, c := range []struct{ name, value, err string }{
		{"API_KEY", fakeOne, ""},
		{"EMPTY", "", `policy.yaml:7:5: credential "anthropic": variable EMPTY is empty; put the credential there`},
		{"API", "", `policy.yaml:7:5: credential "anthropic": variable API is not set; set it for exitgate, or better use ` + "`from: file:/run/secrets/api`"},
	} {
		value, err := load(t, Options{Environ: env}, one("env:"+c.name))
		if diff := cmp.Diff([]string{c.value, c.err}, []string{value, err}); diff != "" {
			t.Error(diff)
		}
	}
}

func TestAllErrorsAtOnce(t *testing.T) {
	asRoot(t)
	p := one("file:/run/missing")
	p.Credentials = append(p.Credentials,
		policy.Credential{Name: "b", From: policy.Source{Scheme: "env", Value: "NOT_SET"}, At: policy.Position{File: "policy.yaml", Line: 9}},
		policy.Credential{Name: "c", From: policy.Source{Scheme: "env", Value: "SET"}, At: policy.Position{File: "policy.yaml", Line: 11}})
	got, err := New(Options{Root: newRoot(t), Environ: func() []string { return []string{"SET=" + fakeOne} }}).Load(p)
	lines := strings.Split(err.Error(), "\n")
	if len(lines) != 2 || !strings.HasPrefix(lines[0], "policy.yaml:7:5: ") || !strings.HasPrefix(lines[1], "policy.yaml:9: ") {
		t.Errorf("errors: %q", lines)
	}
	if string(got["c"].Value.Reveal()) != fakeOne || got["b"].Broken == "" || got["anthropic"].Broken == "" {
		t.Errorf("of three credentials: %v", got)
	}
}

func TestMissingNamesThePreset(t *testing.T) {
	p := one("file:/run/secrets/anthropic")
	p.Credentials[0].Preset = "claude-code"
	p.Credentials[0].At = policy.Position{File: "preset claude-code", Line: 9}
	_, err := load(t, Options{Root: newRoot(t)}, p)
	want := `preset claude-code:9: credential "anthropic": /run/secrets/anthropic does not exist; ` +
		`the preset claude-code needs it: put the credential into /run/secrets/anthropic, owned by root, mode 0400`
	if err != want {
		t.Errorf("got  %s\nwant %s", err, want)
	}
}

// TestNothingPrintsAValue goes through every road by which a value could be printed by mistake, also from within
// unexported fields, where fmt asks no method.
func TestNothingPrintsAValue(t *testing.T) {
	v := NewValue([]byte(fakeOne))
	s := Secret{Value: v}
	type hidden struct{ value Value }
	type outer struct {
		secret  Secret
		Map     map[string]Secret
		nested  hidden
		pointer *Value
	}
	store := New(Options{Environ: func() []string { return []string{"K=" + fakeOne} }})
	if _, err := store.Load(one("env:K")); err != nil {
		t.Fatal(err)
	}
	store.Commit()
	things := []any{v, &v, s, &s, hidden{v}, outer{s, map[string]Secret{"a": s}, hidden{v}, &v}, []Value{v}, store.Current(), store.Status(), *store.entries[0], store.Known()}
	var out strings.Builder
	log := slog.New(slog.NewTextHandler(&out, nil))
	jsonLog := slog.New(slog.NewJSONHandler(&out, nil))
	for _, thing := range things {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%c", "%o", "%b", "%U", "%t", "%p"} {
			fmt.Fprintf(&out, verb+"\n", thing)
		}
		b, _ := json.Marshal(thing)
		out.Write(b)
		log.Info("x", "thing", thing)
		jsonLog.Info("x", "thing", thing)
		fmt.Fprintln(&out, fmt.Errorf("wrapped: %v", thing))
	}
	decimal := strings.Trim(fmt.Sprint([]byte(fakeOne)), "[]")
	for _, needle := range []string{fakeOne, decimal, fmt.Sprintf("%x", fakeOne), fmt.Sprintf("%X", fakeOne), fmt.Sprintf("%#v", []byte(fakeOne))} {
		if strings.Contains(out.String(), needle) {
			t.Errorf("%q was printed", needle)
		}
	}
	if fmt.Sprint(v) != "redacted" || !strings.Contains(out.String(), "redacted") {
		t.Error("nothing was printed at all")
	}
	if b, err := json.Marshal(v); string(b) != `"redacted"` || err != nil {
		t.Errorf("as JSON: %s, %v", b, err)
	}
	if b, err := v.MarshalText(); string(b) != "redacted" || v.GoString() != "redacted" || err != nil {
		t.Errorf("as text: %s, %v, %#v", b, err, v)
	}
	if string(v.Reveal()) != fakeOne {
		t.Error("Reveal does not give the value")
	}
}

func TestRetiredIsBounded(t *testing.T) {
	value := ""
	store := New(Options{Environ: func() []string { return []string{"K=" + value} }})
	for i := range 100 {
		value = fmt.Sprintf("fake-key-%d", i)
		if _, err := store.Load(one("env:K")); err != nil {
			t.Fatal(err)
		}
		store.Commit()
	}
	retired := store.Retired()
	if len(retired) != keepRetired || string(retired[keepRetired-1].Reveal()) != "fake-key-98" {
		t.Errorf("%d values remembered, want the latest %d", len(retired), keepRetired)
	}
	if known := store.Known(); len(known) != keepRetired+1 {
		t.Errorf("%d values known, want the one in use beside them", len(known))
	}
}

// TestCommit shows that a Load whose reload failed changes nothing that is in use.
func TestCommit(t *testing.T) {
	value := fakeOne
	store := New(Options{Environ: func() []string { return []string{"K=" + value} }})
	if _, err := store.Load(one("env:K")); err != nil {
		t.Fatal(err)
	}
	store.Commit()
	value = fakeTwo
	if got, err := store.Load(one("env:K")); err != nil || string(got["anthropic"].Value.Reveal()) != fakeTwo {
		t.Fatal("the second Load does not see the new value", err)
	}
	inUse := func() string { return string(store.Current()["anthropic"].Value.Reveal()) }
	if inUse() != fakeOne {
		t.Error("Load alone changed what is in use")
	}
	store.Commit()
	if inUse() != fakeTwo {
		t.Error("Commit did not")
	}
	if r := store.Retired(); len(r) != 1 || string(r[0].Reveal()) != fakeOne {
		t.Error("the value before it is not remembered")
	}
	for _, value = range []string{"FAKE-three", "FAKE-four"} {
		if _, err := store.Load(one("env:K")); err != nil {
			t.Fatal(err)
		}
	}
	if !slices.ContainsFunc(store.Known(), NewValue([]byte("FAKE-three")).Equal) {
		t.Error("a value that was read and never in use is not remembered")
	}
}
