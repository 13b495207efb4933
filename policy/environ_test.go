package policy

import (
	"encoding/base64"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestEnviron(t *testing.T) {
	const secret = "sk-ant-api03-FAKE/with+odd=signs"
	p := mustLoad(t, `
version: 1
presets: [claude-code, github]
agents:
  - {name: claude, uid: 1000, socket: /run/exitgate/claude.sock}
  - {name: ci, uid: 1001, listen: "[::1]:9000"}
credentials:
  - {name: corp, from: "env:CORP_TOKEN", format: "basic:bot"}
routes:
  - name: corp
    path: /corp
    upstream: https://git.corp.example
    credential: corp
    agents: [claude]
    env:
      - GIT_CONFIG_COUNT=2
      - GIT_CONFIG_KEY_1=http.{url}/.proxy
      - GIT_CONFIG_VALUE_1=
      - GIT_CONFIG_KEY_0=url.{url}/.insteadOf
      - GIT_CONFIG_VALUE_0=https://git.corp.example/
      - CORP_PASSWORD={dummy}
      - CORP_SOCKET=unix:{socket}:{url}/x
`)
	inherited := []string{
		"PATH=/bin", "LANG=C", "EMPTY=", "EQ=a=b", "PATH=/evil",
		"HOME=/root", "USER=root", "LOGNAME=root", "SHELL=/bin/zsh",
		"HTTP_PROXY=http://corp:3128", "https_proxy=http://corp:3128", "NO_PROXY=*", "no_proxy=*", "ALL_PROXY=socks5://x", "all_proxy=socks5://x",
		"LD_PRELOAD=/x.so", "LD_LIBRARY_PATH=/x", "LDFLAGS=-s",
		"CORP_TOKEN=whatever it holds", "ANTHROPIC_API_KEY=" + secret, "URL=https://x/?k=sk-ant-api03-FAKE%2Fwith%2Bodd%3Dsigns",
		"BASIC=" + base64.StdEncoding.EncodeToString([]byte("user:"+secret)), "BASIC2=" + base64.RawURLEncoding.EncodeToString([]byte("ab:"+secret+"!")), "BASIC3=" + base64.StdEncoding.EncodeToString([]byte("abc"+secret+"def")),
		"ANTHROPIC_BASE_URL=https://elsewhere.example", "GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=user.name", "GIT_CONFIG_VALUE_0=Bot", "GIT_CONFIG_GLOBAL=/etc/gitconfig",
		"novalue", "=x", "NUL=a\x00b",
	}
	got := p.Environ("claude", inherited, User{"node", "/home/node", "/bin/bash"}, []string{secret, ""})
	want := []string{
		"PATH=/bin", "LANG=C", "EMPTY=", "EQ=a=b", "LDFLAGS=-s", "GIT_CONFIG_GLOBAL=/etc/gitconfig",
		"HTTP_PROXY=http://127.0.0.1:8080", "http_proxy=http://127.0.0.1:8080", "HTTPS_PROXY=http://127.0.0.1:8080", "https_proxy=http://127.0.0.1:8080",
		"NO_PROXY=localhost,127.0.0.1,::1", "no_proxy=localhost,127.0.0.1,::1",
		"HOME=/home/node", "USER=node", "LOGNAME=node", "SHELL=/bin/bash",
		"ANTHROPIC_BASE_URL=http://127.0.0.1:8080", "ANTHROPIC_AUTH_TOKEN=sk-ant-exitgate-placeholder",
		"CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC=1", "CLAUDE_CODE_DISABLE_OFFICIAL_MARKETPLACE_AUTOINSTALL=1", "ENABLE_TOOL_SEARCH=true", "CLAUDE_CODE_ENABLE_FINE_GRAINED_TOOL_STREAMING=1",
		"CORP_PASSWORD=exitgate-placeholder", "CORP_SOCKET=unix:/run/exitgate/claude.sock:http://127.0.0.1:8080/corp/x",
		"GIT_CONFIG_COUNT=4",
		"GIT_CONFIG_KEY_0=user.name", "GIT_CONFIG_VALUE_0=Bot",
		"GIT_CONFIG_KEY_1=url.http://127.0.0.1:8080/github/.insteadOf", "GIT_CONFIG_VALUE_1=https://github.com/",
		"GIT_CONFIG_KEY_2=url.http://127.0.0.1:8080/corp/.insteadOf", "GIT_CONFIG_VALUE_2=https://git.corp.example/",
		"GIT_CONFIG_KEY_3=http.http://127.0.0.1:8080/corp/.proxy", "GIT_CONFIG_VALUE_3=",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(got, p.Environ("", inherited, User{"node", "/home/node", "/bin/bash"}, []string{secret})); diff != "" {
		t.Errorf("the first agent is the default:\n%s", diff)
	}
	// control: without the secret in the list its variables stay, so it was the list that removed them
	if open := p.Environ("claude", inherited, User{}, nil); !strings.Contains(strings.Join(open, "\n"), secret) {
		t.Error("the test's secret is not in the inherited environment")
	}

	other := strings.Join(p.Environ("ci", nil, User{}, nil), "\n")
	for _, line := range []string{"HTTP_PROXY=http://[::1]:9000", "HOME=/", "USER=1001", "LOGNAME=1001", "SHELL=/bin/sh", "ANTHROPIC_BASE_URL=http://[::1]:9000", "GIT_CONFIG_COUNT=1"} {
		if !strings.Contains(other+"\n", line+"\n") {
			t.Errorf("no %s in\n%s", line, other)
		}
	}
	if strings.Contains(other, "CORP") {
		t.Errorf("another agent's variables in\n%s", other)
	}
	if p.Environ("nobody", nil, User{}, nil) != nil {
		t.Error("an unknown agent has an environment")
	}
}

// TestEnvironGit: inherited settings of git that are not whole are dropped, so
// that ours are not misread; without any of ours they stay as they are.
func TestEnvironGit(t *testing.T) {
	broken := []string{"GIT_CONFIG_COUNT=2", "GIT_CONFIG_KEY_0=a.b", "GIT_CONFIG_VALUE_0=c"}
	got := strings.Join(mustLoad(t, "version: 1\npresets: [github]\n").Environ("", broken, User{}, nil), "\n")
	if !strings.Contains(got, "GIT_CONFIG_COUNT=1\nGIT_CONFIG_KEY_0=url.http://127.0.0.1:8080/github/.insteadOf\nGIT_CONFIG_VALUE_0=https://github.com/") || strings.Contains(got, "a.b") {
		t.Error(got)
	}
	// A setting that holds a secret goes, and those around it close up.
	secret := []string{"GIT_CONFIG_COUNT=3", "GIT_CONFIG_KEY_0=a.b", "GIT_CONFIG_VALUE_0=c", "GIT_CONFIG_KEY_1=http.extraHeader", "GIT_CONFIG_VALUE_1=Authorization: Bearer FAKE-0123456789",
		"GIT_CONFIG_KEY_2=d.e", "GIT_CONFIG_VALUE_2=f"}
	for secrets, want := range map[string]string{
		"FAKE-0123456789": "SHELL=/bin/sh\nGIT_CONFIG_COUNT=2\nGIT_CONFIG_KEY_0=a.b\nGIT_CONFIG_VALUE_0=c\nGIT_CONFIG_KEY_1=d.e\nGIT_CONFIG_VALUE_1=f",
		"":                strings.Join(secret, "\n"),
	} {
		if got := strings.Join(mustLoad(t, "version: 1\n").Environ("", secret, User{}, []string{secrets}), "\n"); !strings.HasSuffix(got, want) {
			t.Errorf("the secret is %q:\n%s", secrets, got)
		}
	}
	if got := strings.Join(mustLoad(t, "version: 1\n").Environ("", []string{"A=b"}, User{}, nil), "\n"); strings.Contains(got, "GIT_CONFIG") {
		t.Error(got)
	}
	whole := []string{"GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=a.b", "GIT_CONFIG_VALUE_0=c"}
	if got := strings.Join(mustLoad(t, "version: 1\n").Environ("", whole, User{}, nil), "\n"); !strings.HasSuffix(got, strings.Join(whole, "\n")) {
		t.Error(got)
	}
}
