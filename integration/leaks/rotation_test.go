package leaks

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"exitgate/integration/rig"
	"exitgate/integration/rig/rigtest"

	"golang.org/x/sys/unix"
)

const bearerFile = "/run/secrets/bearer"

// credentials are the values of Authorization that arrived under a number.
func (s *scene) arrived(id string) string {
	var all []string
	for _, head := range s.api.got(id) {
		all = append(all, bearers(head)...)
	}
	return strings.Join(all, " AND ")
}

const next = "FAKE-next-secret-?~abcdefghij-0123456789"

// badFiles are contents that no credential has.
var badFiles = []struct{ name, data string }{
	{"empty", ""}, {"blank", " \n"}, {"a line break within", "FAKE-one-two\nX-Evil: three-four"}, {"NUL within", "FAKE-one\x00two-three-four"}, {"a byte order mark", "\xef\xbb\xbf" + next},
	{"not ASCII", "FAKE-\u00e9\u00e8-0123456789"}, {"64 KiB and more", strings.Repeat("FAKE", 20000)}, {"shorter than eight bytes", "FAKE-1"},
}

// rotating has a route and a file of its own for each way in which a file is bad.
func rotating() string {
	var creds, routes strings.Builder
	for i := range badFiles {
		fmt.Fprintf(&creds, "  - {name: r%d, from: \"file:/run/secrets/r%d\", header: Authorization}\n", i, i)
		fmt.Fprintf(&routes, "  - {name: r%d, path: /r%d, upstream: \"https://api.example.com\", credential: r%d, allow: [GET /v1/**]}\n", i, i, i)
	}
	return strings.Replace(policy, "routes:\n", creds.String()+"routes:\n"+routes.String(), 1)
}

// uses says whether a value is what a route sends now.
func (s *scene) uses(route, value string) bool {
	id := s.api.will(raw(ok("", "ok")))
	s.ask(route, id)
	return s.arrived(id) == "authorization: Bearer "+value
}

// TestRotation is group H: a file that changes in every way a file can.
func TestRotation(t *testing.T) {
	t.Parallel()
	s := newScene(t, rotating(), func(c *rig.Config) {
		for i := range badFiles {
			c.Files[fmt.Sprintf("/run/secrets/r%d", i)] = rig.File{Data: next, Mode: 0o400}
		}
	})
	control := map[bool]string{true: "the one before was in use", false: "FAILED the one before was not in use"}[s.uses("/c", secret)]
	s.put(t, bearerFile, next+"\r\n", 0o400)
	judge(t, row{"H", "replaced by rename, with CRLF at its end", "the new one", map[bool]string{true: "the new one", false: "the old one"}[eventually(func() bool { return s.uses("/c", next) })], control})
	s.retired(t, "after the change")
	s.kill(t, unix.SIGKILL)
	s.retired(t, "after the change, by a proxy that was started later")
	var numbers []int
	for i := range badFiles {
		numbers = append(numbers, i)
	}
	parallel(numbers, func(i int) {
		route, file := fmt.Sprintf("/r%d", i), fmt.Sprintf("/run/secrets/r%d", i)
		s.put(t, file, badFiles[i].data, 0o400)
		seen := s.refuses(route, badFiles[i].data)
		s.put(t, file, next, 0o400)
		control := "put back, the route works"
		if !eventually(func() bool { return s.uses(route, next) }) {
			control = "FAILED " + control
		}
		judge(t, row{"H", "the file is " + badFiles[i].name, "503", seen, control})
	})
	s.put(t, bearerFile, next, 0o444)
	judge(t, row{"H", "the file is readable by the agent", "503", s.refuses("/c", ""), "the same, readable by root alone, is in use above"})
	s.sweepFor(t, next)
}

func (s *scene) put(t *testing.T, path, value string, mode os.FileMode) {
	if err := s.Write(path, rig.File{Data: value, Mode: mode}); err != nil {
		t.Error(err)
	}
}

// retired: the value that was replaced is still one.
func (s *scene) retired(t *testing.T, when string) {
	for name, value := range map[string]string{"retired": secret, "new": next} {
		leaked, passed := "masked", 0
		for _, f := range someForms(value) {
			id := s.api.will(raw(ok("X-Echo: "+f.text+"\r\n", f.text)))
			if got := s.ask("/c", id); holds(got, value) {
				leaked = fmt.Sprintf("LEAKS as %s: %q", f.name, got)
			}
			if strings.Contains(s.ask("/o", id), f.text) {
				passed++
			}
		}
		judge(t, row{"H", "the " + name + " one is echoed " + when, "masked", leaked, fmt.Sprintf("without a credential %d of %d forms pass", passed, len(someForms(value)))})
	}
}

// refuses waits until a bad file counts: then the route refuses, and nothing has arrived without a credential, or with a spoiled one.
func (s *scene) refuses(route, data string) (seen string) {
	seen = "still in use"
	eventually(func() bool {
		id := s.api.will(raw(ok("", "ok")))
		got := s.ask(route, id)
		a := s.arrived(id)
		switch {
		case len(s.api.got(id)) > 0 && a != "authorization: Bearer "+next:
			seen = fmt.Sprintf("arrived with %.100q", a)
		case status(got) != "503":
			return false
		case len(data) > 12 && strings.Contains(got, data[:12]):
			seen = "quoted"
		default:
			seen = "503"
		}
		return true
	})
	return seen
}

// sweepFor looks for a value that came later in what exitgate wrote.
func (s *scene) sweepFor(t *testing.T, value string) {
	for name, text := range s.views(t) {
		seen := map[bool]string{true: "LEAKS", false: "nothing"}[holds(text, value) || holds(text, secret)]
		judge(t, row{"H", "afterwards: " + name, "nothing", seen, fmt.Sprintf("%d bytes searched", len(text))})
	}
}

// TestBadStarts: a credential that is not to be had stops the start, and is not told.
func TestBadStarts(t *testing.T) {
	t.Parallel()
	w := rigtest.World(t)
	helper := func(script string) map[string]rig.File {
		return map[string]rig.File{"/etc/helper": {Data: "#!/bin/sh\n" + strings.ReplaceAll(script, secret, "'"+secret+"'") + "\n", Mode: 0o700}}
	}
	type start struct {
		name, from string
		files      map[string]rig.File
		code       int
	}
	parallel([]start{
		{"helper that fails and says the credential", "exec:/etc/helper", helper("echo " + secret + " >&2; echo " + secret + "; exit 3"), 125},
		{"helper that says too much", "exec:/etc/helper", helper("while :; do echo " + secret + "; done"), 125},
		{"helper that says nothing", "exec:/etc/helper", helper("echo " + secret + " >&2"), 125},
		{"helper with the credential in its arguments, not there", "exec:/etc/nothing " + secret, nil, 125},
		{"file that is not there", "file:/run/secrets/none", nil, 125},
		{"file that the agent could read", "file:/etc/open", map[string]rig.File{"/etc/open": {Data: secret}}, 125},
		{"file with a line break", "file:/etc/open", map[string]rig.File{"/etc/open": {Data: secret + "\nX: " + secret, Mode: 0o400}}, 125},
		{"control: helper that works, and says the credential to standard error", "exec:/etc/helper", helper("echo " + secret + " >&2; echo " + secret), 0},
	}, func(c start) {
		box, err := rig.Start(rig.Config{World: w, Binary: program, Files: c.files, Args: []string{"run", "--", "/bin/sh", "-c", "env; sleep 0.2"},
			Policy: strings.Replace("version: 1\ncredentials: [{name: a, from: \"FROM\"}]\nroutes: [{name: a, path: /, upstream: \"https://a.example.com\", credential: a}]\n", "FROM", c.from, 1)})
		if err != nil {
			t.Error(err)
			return
		}
		code, err := box.Wait(2 * patience)
		seen := fmt.Sprintf("exit %d, nothing told", code)
		if text := box.Stderr.String() + box.Stdout.String(); holds(text, secret) {
			seen = fmt.Sprintf("LEAKS: %.300q", text)
		}
		if code != c.code {
			seen += ": " + box.Stderr.String()
		}
		judge(t, row{"H", "start with a " + c.name, fmt.Sprintf("exit %d, nothing told", c.code), seen, fmt.Sprintf("%d bytes of output, %v", len(box.Stderr.String()), err)})
		box.Close()
	})
}
