package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"exitgate/cmd/internal/supervise"
	"exitgate/policy"

	"github.com/spf13/pflag"
	"github.com/spf13/viper"
	"golang.org/x/term"
)

// settings say how exitgate runs, never what is allowed: that is the policy's alone.
type settings struct {
	Policy        string        // the policy file
	LogLevel      string        // debug, info, warn or error
	LogFormat     string        // json or text
	Audit         string        // stderr, file:PATH or none
	Metrics       string        // off, unix:PATH or ADDR:PORT
	Control       string        // path of the control socket
	Grace         time.Duration // between TERM and KILL
	Watch         bool          // reload when the policy file changes
	SelfTest      bool          // test the fence at start
	DriftInterval time.Duration // between two looks at the kernel's generation
	StrictConnect bool          // Landlock limits the agent's TCP connects too
	Loosen        []string      // names of hardening points to leave out

	chosen map[string]bool
}

// isSet reports whether the setting was chosen by anybody; where not it has its default.
func (s *settings) isSet(key string) bool { return s.chosen[key] }

// setting is one of them: its name in the settings file (EXITGATE_LOG_LEVEL and --log-level for log.level), its
// default, and how its text is read.
type setting struct {
	key, standard, help string
	accept              func(s *settings, text string) error
}

var settingTable = []setting{
	{"policy", "/etc/exitgate/policy.yaml", "the policy `file`", anyText(func(s *settings) *string { return &s.Policy })},
	{"log.level", "info", "`level` of the log: debug, info, warn or error", oneOf(func(s *settings) *string { return &s.LogLevel }, "debug", "info", "warn", "error")},
	{"log.format", "", "`format` of the log: json or text (default: text on a terminal, else json)", oneOf(func(s *settings) *string { return &s.LogFormat }, "json", "text")},
	{"audit", "stderr", "where decisions are written: stderr, `file:PATH` or none", acceptAudit},
	{"metrics", "off", "where Prometheus metrics are served: off, `unix:PATH` or ADDR:PORT", acceptMetrics},
	{"control", "/run/exitgate/control.sock", "`path` of the control socket", acceptControl},
	{"grace", "10s", "`time` between TERM and KILL at the end", duration(func(s *settings) *time.Duration { return &s.Grace }, 0)},
	{"watch", "false", "reload when the policy file changes: `true|false`", boolean(func(s *settings) *bool { return &s.Watch })},
	{"self_test", "true", "test the fence before the agent starts: `true|false`", boolean(func(s *settings) *bool { return &s.SelfTest })},
	{"drift_interval", "5s", "`time` between two looks for foreign changes of the ruleset", duration(func(s *settings) *time.Duration { return &s.DriftInterval }, time.Millisecond)},
	{"strict_connect", "false", "also limit the agent's TCP connects by Landlock, which leaves no packet to report: `true|false`", boolean(func(s *settings) *bool { return &s.StrictConnect })},
	{"loosen", "", "hardening `points` of the agent to leave out, separated by commas", acceptLoosen},
}

func (s setting) flag() string { return strings.NewReplacer(".", "-", "_", "-").Replace(s.key) }
func (s setting) variable() string {
	return "EXITGATE_" + strings.ToUpper(strings.ReplaceAll(s.key, ".", "_"))
}

// settingMark is on the flags that are settings. A command may have one of the same name that is not: --audit of suggest
// names a file to read.
const settingMark = "setting"

// lookup returns the setting's flag, or nil where a command's own hides it.
func (s setting) lookup(flags *pflag.FlagSet) *pflag.Flag {
	if f := flags.Lookup(s.flag()); f != nil && f.Annotations[settingMark] != nil {
		return f
	}
	return nil
}

func (s setting) changed(flags *pflag.FlagSet) bool {
	f := s.lookup(flags)
	return f != nil && f.Changed
}

// addSettings makes a flag of each setting. All of them are strings: what text is accepted is the same on every road.
func addSettings(flags *pflag.FlagSet) {
	for _, s := range settingTable {
		flags.String(s.flag(), "", s.help)
		f := flags.Lookup(s.flag())
		f.DefValue = s.standard
		f.Annotations = map[string][]string{settingMark: {s.key}}
		if s.standard == "true" || s.standard == "false" {
			f.NoOptDefVal = "true"
		}
	}
}

// readSettings merges flags, EXITGATE_* variables, the settings file and the defaults, the first that has a value
// winning. All mistakes are reported at once.
func (env *environment) readSettings(flags *pflag.FlagSet) (*settings, error) {
	v := viper.New()
	file, errs := env.readSettingsFile()
	if err := v.MergeConfigMap(tree(file)); err != nil {
		return nil, err
	}
	variables := make(map[string]string)
	for _, s := range settingTable {
		v.SetDefault(s.key, s.standard)
		if text := env.getenv(s.variable()); text != "" {
			variables[s.key] = text
		}
		if f := s.lookup(flags); f != nil {
			_ = v.BindPFlag(s.key, f)
		}
	}
	// Not viper's own reading of the environment: the environment is a parameter here.
	if err := v.MergeConfigMap(tree(variables)); err != nil {
		return nil, err
	}
	out := &settings{chosen: make(map[string]bool)}
	for _, s := range settingTable {
		text := v.GetString(s.key)
		out.chosen[s.key] = v.InConfig(s.key) || s.changed(flags)
		if text == "" {
			continue
		}
		if err := s.accept(out, text); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", s.origin(env, flags), err))
		}
	}
	if out.LogFormat == "" {
		out.LogFormat = env.logFormat()
	}
	return out, errors.Join(errs...)
}

// origin names where a setting's text came from, for a message.
func (s setting) origin(env *environment, flags *pflag.FlagSet) string {
	switch {
	case s.changed(flags):
		return "--" + s.flag()
	case env.getenv(s.variable()) != "":
		return s.variable()
	}
	return settingsFile + ": " + s.key
}

// tree makes nested maps of dotted keys, as viper wants them.
func tree(flat map[string]string) map[string]any {
	top := make(map[string]any)
	for key, text := range flat {
		at := top
		words := strings.Split(key, ".")
		for _, w := range words[:len(words)-1] {
			next, ok := at[w].(map[string]any)
			if !ok {
				next = make(map[string]any)
				at[w] = next
			}
			at = next
		}
		at[words[len(words)-1]] = text
	}
	return top
}

func (env *environment) logFormat() string {
	if f, ok := env.stderr.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		return "text"
	}
	return "json"
}

func anyText(field func(*settings) *string) func(*settings, string) error {
	return func(s *settings, text string) error { *field(s) = text; return nil }
}

func oneOf(field func(*settings) *string, words ...string) func(*settings, string) error {
	return func(s *settings, text string) error {
		if !slices.Contains(words, text) {
			return fmt.Errorf("%q is not known; write %s", text, strings.Join(words, ", "))
		}
		*field(s) = text
		return nil
	}
}

func boolean(field func(*settings) *bool) func(*settings, string) error {
	return func(s *settings, text string) error {
		if text != "true" && text != "false" {
			return fmt.Errorf("%q is neither true nor false", text)
		}
		*field(s) = text == "true"
		return nil
	}
}

func duration(field func(*settings) *time.Duration, least time.Duration) func(*settings, string) error {
	return func(s *settings, text string) error {
		d, err := time.ParseDuration(text)
		if err != nil {
			return fmt.Errorf("%q is not a time; write 500ms, 10s or 1m30s", text)
		}
		if d < least {
			return fmt.Errorf("%q is too short; write at least %s", text, least)
		}
		*field(s) = d
		return nil
	}
}

func acceptAudit(s *settings, text string) error {
	path, isFile := strings.CutPrefix(text, "file:")
	if isFile && !filepath.IsAbs(path) {
		return fmt.Errorf("%q has no whole path; write file:/var/log/exitgate/audit.jsonl", text)
	}
	if !isFile && text != "stderr" && text != "none" {
		return fmt.Errorf("%q is not known; write stderr, file:PATH or none", text)
	}
	s.Audit = text
	return nil
}

func acceptMetrics(s *settings, text string) error {
	path, isUnix := strings.CutPrefix(text, "unix:")
	switch {
	case isUnix && !filepath.IsAbs(path):
		return fmt.Errorf("%q has no whole path; write unix:/run/exitgate/metrics.sock", text)
	case !isUnix && text != "off":
		_, port, err := net.SplitHostPort(text)
		if n, e := strconv.ParseUint(port, 10, 16); err != nil || e != nil || n == 0 {
			return fmt.Errorf("%q is not known; write off, unix:PATH or ADDR:PORT such as 127.0.0.1:9090", text)
		}
	}
	s.Metrics = text
	return nil
}

func acceptControl(s *settings, text string) error {
	const longest = 107 // sun_path of unix(7), less its NUL
	switch {
	case !filepath.IsAbs(text):
		return fmt.Errorf("%q is not a whole path; write /run/exitgate/control.sock", text)
	case len(text) > longest:
		return fmt.Errorf("the path has %d bytes; a socket's has at most %d", len(text), longest)
	}
	s.Control = text
	return nil
}

func acceptLoosen(s *settings, text string) error {
	for word := range strings.SplitSeq(text, ",") {
		word = strings.TrimSpace(word)
		if known := supervise.LoosenNames(); !slices.Contains(known, word) {
			mend := "write one of " + strings.Join(known, ", ")
			if near := policy.Nearest(word, known); near != "" {
				mend = fmt.Sprintf("did you mean %q?", near)
			}
			return fmt.Errorf("%q is no hardening point; %s", word, mend)
		}
		s.Loosen = append(s.Loosen, word)
	}
	return nil
}
