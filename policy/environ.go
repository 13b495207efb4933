package policy

import (
	"encoding/base64"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// User is what the system knows of a uid; empty fields get harmless values.
type User struct{ Name, Home, Shell string }

// Environ is the environment of an agent: what exitgate itself inherited, less
// every variable that holds or names a credential, less LD_* and ALL_PROXY;
// plus the proxy variables, the user's, and those of the agent's routes. nil
// for an unknown agent. secrets are the credentials' values.
func (p *Policy) Environ(agent string, inherited []string, user User, secrets []string) []string {
	a := p.Agent(agent)
	if a == nil {
		return nil
	}
	rest, config, broken := splitGitConfig(inherited)
	if broken != "" {
		config = nil
	}
	ours, routes := p.proxyAndUser(a, user), []gitSetting{}
	for i := range p.Routes {
		r := &p.Routes[i]
		if r.Agents != nil && !slices.Contains(r.Agents, a.Name) {
			continue
		}
		lines, own, _ := splitGitConfig(p.expand(r, a))
		ours, routes = append(ours, lines...), append(routes, own...)
	}
	forms := secretForms(secrets)
	config = slices.DeleteFunc(config, func(s gitSetting) bool { return holds(s.key+s.value, forms) })
	ours = append(ours, numberGitConfig(append(config, routes...))...)
	return append(p.keep(rest, ours, forms), dedupe(ours)...)
}

// proxyAndUser are the variables every agent gets. NO_PROXY in both cases too:
// with a proxy variable and no NO_PROXY some clients send even calls to
// 127.0.0.1 to the proxy.
func (p *Policy) proxyAndUser(a *Agent, user User) []string {
	proxy, direct := "http://"+a.Listen.String(), "localhost,127.0.0.1,::1"
	name, home, shell := user.Name, user.Home, user.Shell
	if name == "" {
		name = strconv.FormatUint(uint64(a.UID), 10)
	}
	if home == "" {
		home = "/"
	}
	if shell == "" {
		shell = "/bin/sh"
	}
	return []string{"HTTP_PROXY=" + proxy, "http_proxy=" + proxy, "HTTPS_PROXY=" + proxy, "https_proxy=" + proxy,
		"NO_PROXY=" + direct, "no_proxy=" + direct, "HOME=" + home, "USER=" + name, "LOGNAME=" + name, "SHELL=" + shell}
}

// url is the base URL by which an agent uses the route; no trailing slash.
func (r *Route) url(a *Agent) string {
	return "http://" + a.Listen.String() + strings.TrimSuffix(r.Path, "/")
}

func (p *Policy) expand(r *Route, a *Agent) []string {
	fill := strings.NewReplacer("{url}", r.url(a), "{dummy}", p.dummy(r), "{socket}", a.Socket)
	lines := make([]string, len(r.Env))
	for i := range r.Env {
		name, value, _ := strings.Cut(r.Env[i], "=")
		lines[i] = name + "=" + fill.Replace(value)
	}
	return lines
}

// dummy stands where a client insists on a credential. It says what it is to
// whoever finds it, and begins as clients of the scheme expect.
func (p *Policy) dummy(r *Route) string {
	const placeholder = "exitgate-placeholder"
	if c := p.Credential(r.Credential); c != nil && c.Kind == KindAnthropic {
		return "sk-ant-" + placeholder
	}
	return placeholder
}

// keep is what of the inherited environment may stay beside ours.
func (p *Policy) keep(inherited, ours, forms []string) []string {
	drop := map[string]bool{"ALL_PROXY": true, "all_proxy": true}
	for i := range p.Credentials {
		if from := p.Credentials[i].From; from.Scheme == "env" {
			drop[from.Value] = true
		}
	}
	for _, line := range ours {
		name, _, _ := strings.Cut(line, "=")
		drop[name] = true
	}
	var kept []string
	for _, line := range inherited {
		name, _, ok := strings.Cut(line, "=")
		if !ok || name == "" || drop[name] || strings.HasPrefix(name, "LD_") || holds(line, forms) || strings.IndexByte(line, 0) >= 0 {
			continue
		}
		drop[name] = true // of two, the first is the one getenv(3) finds
		kept = append(kept, line)
	}
	return kept
}

// secretForms are the secrets as an environment may hold them: as they are, in
// a URL, and in base64 with whatever stands before them.
func secretForms(secrets []string) []string {
	var forms []string
	for _, s := range secrets {
		if s = strings.TrimSpace(s); s == "" {
			continue
		}
		forms = append(forms, s, url.QueryEscape(s), url.PathEscape(s))
		for shift := range min(3, len(s)) {
			// Whole groups of three bytes have one encoding wherever they stand.
			if whole := s[shift:]; len(whole) >= 9 {
				whole = whole[:len(whole)/3*3]
				forms = append(forms, base64.StdEncoding.EncodeToString([]byte(whole)), base64.URLEncoding.EncodeToString([]byte(whole)))
			}
		}
	}
	return forms
}

func holds(line string, forms []string) bool {
	return slices.ContainsFunc(forms, func(f string) bool { return strings.Contains(line, f) })
}

func numberGitConfig(config []gitSetting) []string {
	if len(config) == 0 {
		return nil
	}
	lines := []string{gitPrefix + "COUNT=" + strconv.Itoa(len(config))}
	for i, s := range config {
		n := strconv.Itoa(i)
		lines = append(lines, gitPrefix+"KEY_"+n+"="+s.key, gitPrefix+"VALUE_"+n+"="+s.value)
	}
	return lines
}

// dedupe drops a variable two routes set alike.
func dedupe(lines []string) []string {
	seen := map[string]bool{}
	return slices.DeleteFunc(lines, func(line string) bool {
		name, _, _ := strings.Cut(line, "=")
		twice := seen[name]
		seen[name] = true
		return twice
	})
}
