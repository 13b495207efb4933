package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"exitgate/integration/prober"
	"exitgate/integration/rig"
)

// Fake credentials of the two kinds.
const (
	apiKey = "sk-ant-api03-FAKE-clients-api-key-0123456789"
	oatKey = "sk-ant-oat01-FAKE-clients-oat-token-0123456789"
)

const anthropicHost = "api.anthropic.com"

// claudeSocket is what the preset's user adds to reach the proxy by a unix socket.
const claudeSocket = "/run/exitgate/claude.sock"

const claudePolicy = "version: 1\npresets: [claude-code]\n"

const claudeSocketPolicy = claudePolicy + "agents:\n  - name: claude\n    socket: " + claudeSocket + "\n"

// claudeBare leaves out what keeps the program from calling other hosts, so that it is seen what the fence is for.
const claudeBare = claudePolicy + `routes:
  - name: anthropic
    path: /
    upstream: https://api.anthropic.com
    credential: anthropic
    allow: [POST /v1/messages, POST /v1/messages/count_tokens, GET /v1/models, GET /v1/models/*, HEAD /, HEAD /api/hello, GET /api/hello]
    env:
      - ANTHROPIC_BASE_URL={url}
      - ANTHROPIC_AUTH_TOKEN={dummy}
`

// claudes are the pinned build, whose habits are known, and the newest, whose are not.
func claudes() []client {
	build := func(name, version string, calls ...string) client {
		return client{
			name: name, title: "Claude Code, 2.1.126 and the newest", presets: "`claude-code`",
			needs:    "the credential in `/run/secrets/anthropic`, of either kind (`sk-ant-api...`, `sk-ant-oat...`); for the unix socket an agent with `socket: PATH` and `ANTHROPIC_UNIX_SOCKET=PATH`",
			packages: []pkg{{name: "@anthropic-ai/claude-code-linux-{arch}", version: version, as: "claude"}},
			modes:    func(files map[string]string) []mode { return claudeModes(files, calls) },
		}
	}
	pinned, newest := build("claude-2.1.126", "2.1.126", "downloads.claude.ai", "raw.githubusercontent.com"), build("claude-newest", "{newest}")
	newest.title = "" // one row of the README is for both
	return []client{pinned, newest}
}

// claudeModes are both credentials by both ways, each in print mode and at a terminal; then without what keeps it at home, where
// calls is what it is known to ask for beside its base URL; then without a fence.
func claudeModes(files map[string]string, calls []string) []mode {
	place := map[string]string{"/opt/claude": files["claude"]}
	var modes []mode
	for _, key := range []string{apiKey, oatKey} {
		for _, policy := range []string{claudePolicy, claudeSocketPolicy} {
			m := mode{policy: policy, secrets: map[string]string{"anthropic": key}, place: place, strict: true}
			how := ", api key, tcp"
			if key == oatKey {
				how = ", oauth token, tcp"
			}
			if policy == claudeSocketPolicy {
				m.env = []string{"ANTHROPIC_UNIX_SOCKET=" + claudeSocket}
				how = strings.Replace(how, "tcp", "unix socket", 1)
			}
			talk := m
			m.name, talk.name = "print"+how, "interactive"+how
			modes = append(modes, claudePrint(m), claudeTalk(talk))
		}
	}
	bare := mode{policy: claudeBare, secrets: map[string]string{"anthropic": apiKey}, place: place, denied: []string{"*", anthropicHost}}
	talk := bare
	talk.denied = append(talk.denied, calls...)
	bare.name, talk.name = "print, nothing switched off", "interactive, nothing switched off"
	return append(modes, claudePrint(bare), claudeTalk(talk), claudeOpen(place))
}

var claudeCommand = []string{"/opt/claude/claude", "--allowedTools", "Bash"}

const question = "Say a number with the tool"

func (s *scene) serveMessages(m *messages) error {
	return s.serve(anthropicHost, rig.Server{Handler: m})
}

func claudePrint(m mode) mode {
	m.dummy = "ANTHROPIC_AUTH_TOKEN"
	m.argv = slices.Concat(claudeCommand, []string{"-p", question})
	m.stand = func(s *scene) error {
		api := newMessages()
		api.goOn()
		return s.serveMessages(api)
	}
	m.judge = func(s *scene) error {
		if !strings.Contains(s.out, lastLine) {
			return fmt.Errorf("no answer: %s", tail(s.out, 1000))
		}
		return s.judgeClaude()
	}
	return m
}

func claudeTalk(m mode) mode {
	m.dummy = "ANTHROPIC_AUTH_TOKEN"
	m.argv = claudeCommand
	if m.policy == claudeSocketPolicy {
		m.denied = []string{"HEAD"} // the stranger's request
	}
	api := newMessages()
	m.stand = func(s *scene) error { return s.serveMessages(api) }
	m.talk = func(s *scene) error {
		if err := s.dialogue(claudeFirstStart, firstLine); err != nil {
			return err
		}
		if strings.Contains(squeezed(s.box.Terminal.Screen()), squeezed(lastLine)) {
			return errors.New("the last line came with the first: it does not stream")
		}
		api.goOn()
		if err := s.dialogue(nil, lastLine); err != nil {
			return err
		}
		if err := s.strangers(); err != nil {
			return err
		}
		return s.leave()
	}
	m.judge = func(s *scene) error {
		for _, ask := range []string{"Select login method", "Not logged in", "Please run /login"} {
			if strings.Contains(squeezed(s.out), squeezed(ask)) {
				return fmt.Errorf("it asked to log in: %q", ask)
			}
		}
		return s.judgeClaude()
	}
	return m
}

// claudeFirstStart is what it asks on a clean home: colours, notes, whether to trust the directory; then it takes the question.
var claudeFirstStart = []answer{
	{"Choose the text style", "\r"},
	{"Security notes", "\r"},
	{"❯ 1. Yes, I trust this folder", "\r"},
	{"❯ No, exit", "\x1b[B\r"},
	{"API Usage Billing", question + "\r"},
}

// strangers tries the agent's socket with another uid. The agent's own is the control.
func (s *scene) strangers() error {
	if !strings.Contains(s.policy, claudeSocket) {
		return nil
	}
	p := prober.Probe{Op: "http", Address: claudeSocket, Data: []byte("HEAD / HTTP/1.1\r\nHost: " + listener + "\r\nConnection: close\r\n\r\n")}
	for uid, want := range map[uint32]int{1000: 200, 1001: 403} {
		r, err := s.box.Probe(uid, p)
		if err != nil {
			return err
		}
		if r.Status != want {
			return fmt.Errorf("uid %d at the unix socket: %s, want status %d", uid, r, want)
		}
	}
	return nil
}

// judgeClaude looks at what the API received.
func (s *scene) judgeClaude() error {
	if err := s.toolRan(anthropicHost); err != nil {
		return err
	}
	if len(s.env["ANTHROPIC_UNIX_SOCKET"]) > 0 {
		for _, c := range s.calls {
			if c.to.String() == listener {
				return errors.New("it used TCP although it was given a unix socket")
			}
		}
	}
	if s.secrets["anthropic"] == apiKey {
		return s.sent(anthropicHost, "X-Api-Key", apiKey, "Authorization")
	}
	for _, seen := range s.upstreams[anthropicHost].Seen() {
		if beta := strings.Join(seen.Header.Values("Anthropic-Beta"), ","); strings.Count(beta, "oauth-2025-04-20") != 1 {
			return fmt.Errorf("anthropic-beta is %q in %s %s", beta, seen.Method, seen.URI)
		}
	}
	return s.sent(anthropicHost, "Authorization", "Bearer "+oatKey, "X-Api-Key")
}

// claudeOpen is the control: the same program, the same question, no fence and a credential in its environment.
func claudeOpen(place map[string]string) mode {
	m := claudePrint(mode{name: "no fence", open: true, place: place, wants: []string{anthropicHost},
		env: []string{"ANTHROPIC_AUTH_TOKEN=" + apiKey}})
	m.judge = func(s *scene) error {
		if !strings.Contains(s.out, lastLine) {
			return fmt.Errorf("no answer: %s", tail(s.out, 1000))
		}
		return nil
	}
	return m
}
