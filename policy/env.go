package policy

import (
	"slices"
	"strconv"
	"strings"
)

// placeholders are what a route's env may contain in braces.
var placeholders = []string{"{url}", "{dummy}", "{socket}"}

var braces = expression(`\{[A-Za-z_]+\}`)

// env checks a route's NAME=VALUE lines.
func (r *reader) env(lines []word) {
	seen := map[string]bool{}
	for _, l := range lines {
		name, value, ok := strings.Cut(l.text, "=")
		switch {
		case secretShape().MatchString(l.text):
			r.add(l.at, "env has a secret in it, and the agent would see it", "write {dummy}: the proxy puts the credential in its place")
		case !ok || !envName().MatchString(name):
			r.addf(l.at, "write NAME=VALUE, such as ANTHROPIC_BASE_URL={url}", "env line %s", quoted(l.text))
		case hasControl(value):
			r.addf(l.at, "write it on one line", "env line %s has a control character", quoted(name))
		case reservedEnv(name):
			r.addf(l.at, "remove it", "env sets %s, which exitgate sets or removes itself", name)
		case seen[name]:
			r.addf(l.at, "remove one", "env sets %s twice", name)
		}
		seen[name] = true
		for _, p := range braces().FindAllString(value, -1) {
			if !slices.Contains(placeholders, p) {
				r.addf(l.at, suggest(p, placeholders), "env line %s has the unknown placeholder %s", quoted(name), p)
			}
		}
	}
	r.gitConfig(lines)
}

// gitConfig checks that GIT_CONFIG_COUNT, _KEY_n and _VALUE_n of one route are
// whole: they are renumbered when routes are joined.
func (r *reader) gitConfig(lines []word) {
	texts := make([]string, len(lines))
	for i := range lines {
		texts[i] = lines[i].text
	}
	_, _, why := splitGitConfig(texts)
	if why == "" {
		return
	}
	for _, l := range lines {
		if name, _, _ := strings.Cut(l.text, "="); numberedGit(name) {
			r.addf(l.at, "write GIT_CONFIG_COUNT=N and GIT_CONFIG_KEY_i and GIT_CONFIG_VALUE_i for each i below N", "env has %s", why)
			return
		}
	}
}

// reservedEnv are the variables Environ owns.
func reservedEnv(name string) bool {
	switch strings.ToUpper(name) {
	case "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY":
		return true
	}
	switch name {
	case "HOME", "USER", "LOGNAME", "SHELL":
		return true
	}
	return strings.HasPrefix(name, "LD_")
}

const gitPrefix = "GIT_CONFIG_"

type gitSetting struct{ key, value string }

// splitGitConfig parts an environment into git's numbered settings and the
// rest; why says what keeps the settings from being whole.
func splitGitConfig(env []string) (rest []string, config []gitSetting, why string) {
	keys, values, count, numbered := map[int]string{}, map[int]string{}, -1, false
	for _, line := range env {
		name, value, _ := strings.Cut(line, "=")
		if n, ok := cutIndex(name, gitPrefix+"KEY_"); ok {
			keys[n], numbered = value, true
		} else if n, ok := cutIndex(name, gitPrefix+"VALUE_"); ok {
			values[n], numbered = value, true
		} else if name == gitPrefix+"COUNT" {
			n, err := strconv.Atoi(value)
			if err != nil || n < 0 || n > 1000 {
				return rest, nil, "a GIT_CONFIG_COUNT that is no small number"
			}
			count = n
		} else {
			rest = append(rest, line)
		}
	}
	if !numbered && count < 0 {
		return rest, nil, ""
	}
	for i := range max(count, 0) {
		key, okKey := keys[i]
		value, okValue := values[i]
		if !okKey || !okValue {
			return rest, nil, "GIT_CONFIG_COUNT=" + strconv.Itoa(count) + " without GIT_CONFIG_KEY_" + strconv.Itoa(i) + " and GIT_CONFIG_VALUE_" + strconv.Itoa(i)
		}
		config = append(config, gitSetting{key, value})
	}
	if count != len(keys) || count != len(values) {
		return rest, config, "GIT_CONFIG_KEY_ or GIT_CONFIG_VALUE_ lines that GIT_CONFIG_COUNT does not count"
	}
	return rest, config, ""
}

// numberedGit says that a variable is one of those that joining renumbers.
func numberedGit(name string) bool {
	_, key := cutIndex(name, gitPrefix+"KEY_")
	_, value := cutIndex(name, gitPrefix+"VALUE_")
	return key || value || name == gitPrefix+"COUNT"
}

func cutIndex(name, prefix string) (int, bool) {
	s, ok := strings.CutPrefix(name, prefix)
	n, err := strconv.Atoi(s)
	return n, ok && err == nil && n >= 0 && strconv.Itoa(n) == s
}
