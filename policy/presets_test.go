package policy

import (
	"slices"
	"strings"
	"testing"
)

// TestPresets: each loads by itself and beside all others, which no two of them
// share an entry with, and gives a reason at each entry.
func TestPresets(t *testing.T) {
	owner := map[string]string{}
	own := func(preset, entry string) {
		if other, taken := owner[entry]; taken {
			t.Errorf("%s and %s both have %s", other, preset, entry)
		}
		owner[entry] = preset
	}
	var names []string
	for _, pre := range Presets() {
		names = append(names, pre.Name)
		if pre.About == "" || strings.HasPrefix(pre.About, "#") || len(pre.About) > 72 {
			t.Errorf("%s: about %q", pre.Name, pre.About)
		}
		p := mustLoad(t, pre.Text) // a fragment is a policy
		if q := mustLoad(t, "version: 1\npresets: ["+pre.Name+"]\n"); p.Digest() != q.Digest() {
			t.Errorf("%s: as a policy it means something else", pre.Name)
		}
		for _, w := range p.Warnings() {
			t.Errorf("%s: warning: %v", pre.Name, w)
		}
		for _, c := range p.Credentials {
			own(pre.Name, "credential "+c.Name)
			if !strings.Contains(pre.Text[:strings.Index(pre.Text, "version:")], c.From.Value) {
				t.Errorf("%s: the head does not say that %s is needed", pre.Name, c.From)
			}
		}
		for _, r := range p.Routes {
			own(pre.Name, "route "+r.Name)
			own(pre.Name, "path "+r.Path)
			for _, e := range r.Env {
				name, _, _ := strings.Cut(e, "=")
				own(pre.Name, "variable "+name)
			}
		}
		for _, e := range p.Egress {
			own(pre.Name, "egress "+e.Host.String())
		}
		for _, h := range p.Root {
			own(pre.Name, "root "+h.Host.String())
		}
		checkReasons(t, pre)
	}
	all := mustLoad(t, "version: 1\npresets: ["+strings.Join(names, ", ")+"]\n")
	if !slices.Equal(all.Presets, names) {
		t.Errorf("Presets %v", all.Presets)
	}
	if c := all.Credential("anthropic"); c == nil || c.Preset != "claude-code" || c.At.File != "preset claude-code" || c.From.String() != "file:/run/secrets/anthropic" {
		t.Errorf("credential %+v", c)
	}
	for _, must := range []string{"claude-code", "npm", "pypi", "github", "go", "debian"} {
		if !slices.Contains(names, must) {
			t.Errorf("no preset %s", must)
		}
	}
}

// checkReasons: a comment stands before each entry, at the head for a credential.
func checkReasons(t *testing.T, pre Preset) {
	t.Helper()
	lines := strings.Split(pre.Text, "\n")
	section := ""
	for i, line := range lines {
		if line != "" && line[0] != '#' && line[0] != ' ' {
			section = line
		}
		entry := strings.HasPrefix(line, "  - name: ") || strings.HasPrefix(line, "  - host: ")
		if entry && section != "credentials:" && !strings.HasPrefix(strings.TrimSpace(lines[i-1]), "#") {
			t.Errorf("%s:%d: no reason before %q", pre.Name, i+1, line)
		}
	}
}

// TestPresetClaudeCode: what both builds of the client send passes, and no more.
func TestPresetClaudeCode(t *testing.T) {
	p := mustLoad(t, "version: 1\npresets: [claude-code]\n")
	for _, c := range []struct {
		method, path, query string
		want                bool
	}{
		{"POST", "/v1/messages", "beta=true", true}, {"POST", "/v1/messages/count_tokens", "beta=true", true}, {"GET", "/v1/models", "limit=1000", true}, {"GET", "/v1/models/claude-x", "", true},
		{"HEAD", "/", "", true}, {"HEAD", "/api/hello", "", true}, {"GET", "/api/hello", "", true},
		{"GET", "/", "", false}, {"GET", "/v1/messages", "", false}, {"POST", "/v1/messages/batches", "", false}, {"POST", "/v1/files", "", false}, {"GET", "/v1/files", "", false},
		{"POST", "/api/event_logging/v2/batch", "", false}, {"GET", "/api/oauth/profile", "", false}, {"GET", "/v1/organizations/api_keys", "", false}, {"POST", "/v1/messages/", "", false},
	} {
		if d := p.Decide(Request{Method: c.method, Path: c.path, Query: c.query}); d.Allow != c.want {
			t.Errorf("%s %s: %v (%s)", c.method, c.path, d.Allow, d.Message())
		}
	}
	env := p.Environ("", nil, User{}, nil)
	for _, want := range []string{"ANTHROPIC_BASE_URL=http://127.0.0.1:8080", "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC=1", "CLAUDE_CODE_DISABLE_OFFICIAL_MARKETPLACE_AUTOINSTALL=1", "ENABLE_TOOL_SEARCH=true"} {
		if !slices.Contains(env, want) {
			t.Errorf("no %s in %q", want, env)
		}
	}
	if !slices.ContainsFunc(env, func(s string) bool { return strings.HasPrefix(s, "ANTHROPIC_AUTH_TOKEN=") }) || slices.ContainsFunc(env, func(s string) bool { return strings.HasPrefix(s, "ANTHROPIC_API_KEY=") }) {
		t.Errorf("the placeholder is not in AUTH_TOKEN alone: %q", env)
	}
}

// TestPresetGithub: fetch passes, push does not, however it is dressed.
func TestPresetGithub(t *testing.T) {
	p := mustLoad(t, "version: 1\npresets: [github]\n")
	for _, c := range []struct {
		method, path, query string
		want                bool
	}{
		{"GET", "/github/a/b/info/refs", "service=git-upload-pack", true}, {"GET", "/github/a/b.git/info/refs", "service=git-upload-pack", true}, {"POST", "/github/a/b.git/git-upload-pack", "", true},
		{"GET", "/github/a/b/info/refs", "service=git-receive-pack", false}, {"GET", "/github/a/b/info/refs", "service=%67it-receive-pack", false}, {"GET", "/github/a/b/info/refs", "", false},
		{"GET", "/github/a/b/info/refs", "service=git-upload-pack&service=git-receive-pack", false}, {"GET", "/github/a/b/info/refs", "service=git-upload-pack&%73ervice=git-receive-pack", false},
		{"POST", "/github/a/b/git-receive-pack", "", false}, {"POST", "/github/a/b/%67it-receive-pack", "", false}, {"POST", "/github/a/b/git-upload-pack/../git-receive-pack", "", false},
		{"POST", "/github/a/b/git-upload-pack%2f..%2fgit-receive-pack", "", false}, {"POST", "/github/a/b/git-receive-pack", "/git-upload-pack", false}, {"GET", "/github/a/b/archive/main.zip", "", false},
	} {
		if d := p.Decide(Request{Method: c.method, Path: c.path, Query: c.query}); d.Allow != c.want {
			t.Errorf("%s %s?%s: %v (%s)", c.method, c.path, c.query, d.Allow, d.Message())
		}
	}
}
