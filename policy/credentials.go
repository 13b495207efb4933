package policy

import (
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

const sourceForm = "write file:PATH, fd:N, exec:COMMAND ARGS or env:NAME; a secret itself never stands in a policy"

func (r *reader) credential(n *yaml.Node) Credential {
	c := Credential{Kind: KindHeader, Header: "Authorization", At: r.at(n)}
	var headerAt, formatAt, refreshAt *yaml.Node
	keys := []string{"name", "from", "kind", "header", "format", "refresh"}
	r.object(n, "a credential", keys, []string{"name", "from"}, func(key string, v *yaml.Node) {
		switch key {
		case "name":
			c.Name = r.name(v, "credential name")
		case "from":
			c.From = r.source(v)
		case "kind":
			if kind, ok := r.enum(v, "kind", string(KindHeader), string(KindAnthropic)); ok {
				c.Kind = Kind(kind)
			}
		case "header":
			c.Header, headerAt = r.headerName(v, "header"), v
		case "format":
			c.Format, formatAt = r.format(v), v
		case "refresh":
			c.Refresh, refreshAt = r.duration(v, "refresh"), v
		}
	})
	if c.Refresh > 0 && c.From.Scheme != "exec" && c.From.Scheme != "" {
		r.fail(refreshAt, "remove it: a file is read again when it changes, fd: and env: cannot change", "refresh is for exec: only")
	}
	if c.Kind == KindAnthropic {
		r.chosenByKind(headerAt, "header")
		r.chosenByKind(formatAt, "format")
		c.Header, c.Format = "", ""
		return c
	}
	r.headerAndFormat(&c, headerAt, formatAt)
	return c
}

func (r *reader) chosenByKind(n *yaml.Node, key string) {
	if n != nil {
		r.fail(n, "remove it, or write kind: header", "%s beside kind: anthropic, which chooses it by the token", key)
	}
}

// headerAndFormat checks what only the two together decide.
func (r *reader) headerAndFormat(c *Credential, headerAt, formatAt *yaml.Node) {
	if framing[c.Header] {
		r.fail(headerAt, "write the header the service reads its credential from, such as Authorization", "header %s belongs to the connection, not to the request", c.Header)
	}
	basic := strings.HasPrefix(c.Format, "basic:")
	switch {
	case basic && c.Header != "Authorization" && c.Header != "":
		r.fail(formatAt, "remove header, or write a format with {}", "format basic: is sent in Authorization, not in %s", c.Header)
	case c.Format == "" && c.Header == "Authorization":
		c.Format = "Bearer {}"
	case c.Format == "":
		c.Format = "{}"
	}
}

var envName = expression(`^[A-Za-z_][A-Za-z0-9_]*$`)

// source reads where a credential comes from. No message repeats the value: it
// may be the secret itself, put in the wrong place.
func (r *reader) source(n *yaml.Node) Source {
	if n.Kind != yaml.ScalarNode || n.Value == "" || n.ShortTag() != "!!str" {
		r.fail(n, sourceForm, "from names no source")
		return Source{}
	}
	scheme, value, ok := strings.Cut(n.Value, ":")
	s := Source{scheme, value}
	schemes := []string{"file", "fd", "exec", "env"}
	near := Nearest(scheme, schemes)
	switch {
	case absolute(n.Value):
		r.fail(n, "write file:"+n.Value, "from names a path without file:")
	case !ok || near == "" || hasControl(n.Value):
		r.fail(n, sourceForm, "from names no source")
	case scheme != near:
		r.fail(n, "did you mean "+quoted(near+":")+"?", "from has the unknown source %s", quoted(scheme+":"))
	default:
		r.sourceValue(n, s)
		return s
	}
	return Source{}
}

func (r *reader) sourceValue(n *yaml.Node, s Source) {
	switch s.Scheme {
	case "file":
		if !absolute(s.Value) {
			r.fail(n, "write an absolute path without dot segments, such as file:/run/secrets/anthropic", "from: file: has no absolute path")
		}
	case "fd":
		if fd, err := strconv.ParseUint(s.Value, 10, 16); err != nil || strconv.FormatUint(fd, 10) != s.Value || fd < 3 {
			r.fail(n, "write the number of a descriptor from 3, such as fd:3; 0 to 2 are the agent's", "from: fd: has no such number")
		}
	case "exec":
		if strings.TrimSpace(s.Value) != s.Value || s.Value == "" {
			r.fail(n, "write the command and its arguments after the colon, such as exec:/usr/bin/op read op://vault/key", "from: exec: has no command")
		} else if secretShape().MatchString(s.Value) {
			r.fail(n, "let the command read it from a file", "from: exec: has a secret among its arguments, which every process can see")
		}
	case "env":
		if !envName().MatchString(s.Value) {
			r.fail(n, "write a variable's name, such as env:ANTHROPIC_API_KEY", "from: env: has no variable's name")
		}
	}
}

// format reads how the secret is placed: text with one {}, or basic:USER.
func (r *reader) format(n *yaml.Node) string {
	if n.Kind == yaml.MappingNode && len(n.Content) == 0 {
		r.fail(n, `write "{}" in quotes`, "format is not text but a mapping")
		return ""
	}
	s, ok := r.str(n, "format")
	if !ok {
		return ""
	}
	user, basic := strings.CutPrefix(s, "basic:")
	switch {
	case secretShape().MatchString(s):
		r.fail(n, sourceForm, "format has a secret in it")
	case basic && (user == "" || strings.ContainsAny(user, ":{}") || hasControl(user)):
		r.fail(n, "write basic:USER; the secret is the password", "format is %s", quoted(s))
	case !basic && (strings.Count(s, "{}") != 1 || hasControl(s) || strings.TrimSpace(s) != s):
		r.fail(n, `write {} once where the secret goes, such as "Bearer {}", or basic:USER`, "format is %s", quoted(s))
	default:
		return s
	}
	return ""
}

var token = expression("^[A-Za-z0-9!#$%&'*+.^_`|~-]+$") // RFC 9110 section 5.6.2

// headerName reads a field name and returns its canonical spelling.
func (r *reader) headerName(n *yaml.Node, what string) string {
	s, ok := r.str(n, what)
	switch {
	case !ok:
		return ""
	case secretShape().MatchString(s):
		r.fail(n, sourceForm, "%s is %s", what, quoted(s))
		return ""
	case !token().MatchString(s) || len(s) > 256:
		r.fail(n, "write a header's name alone, such as X-Api-Key", "%s is %s", what, quoted(s))
		return ""
	}
	return canonicalHeader(s)
}

// canonicalHeader capitalises each word between hyphens, as Go and most servers log it.
func canonicalHeader(s string) string {
	b := []byte(strings.ToLower(s))
	for i := range b {
		if (i == 0 || b[i-1] == '-') && 'a' <= b[i] && b[i] <= 'z' {
			b[i] -= 'a' - 'A'
		}
	}
	return string(b)
}

// framing are the headers that say where a message ends or which connection it
// is for (RFC 9110 section 7.6.1, RFC 9112): no policy sets them.
var framing = map[string]bool{
	"Host": true, "Connection": true, "Content-Length": true, "Transfer-Encoding": true, "Keep-Alive": true, "Upgrade": true,
	"Te": true, "Trailer": true, "Expect": true, "Proxy-Connection": true, "Proxy-Authorization": true, "Proxy-Authenticate": true,
	"Http2-Settings": true, "Accept-Encoding": true, "Content-Encoding": true,
}

// secretHeaders carry credentials: a route sets them by `credential:` only.
var secretHeaders = map[string]bool{"Authorization": true, "X-Api-Key": true, "X-Goog-Api-Key": true, "Api-Key": true, "Cookie": true}
