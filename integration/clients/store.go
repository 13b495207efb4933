package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
)

// pkg is a package of the npm registry, at a version that was tried, so that a run fails for what changed here. In name and
// version {arch} stands for this machine's, as npm calls it, and {newest} for the version that the registry calls latest.
type pkg struct {
	name, version string
	as            string // the name under which modes find its directory
}

// store keeps unpacked packages, so that a second run downloads nothing but the answers to what is newest.
type store struct {
	dir   string
	found map[string]string // "NAME@VERSION", as written in a pkg, to the version; kept in a file for the run within the namespaces
}

func newStore(dir string) (*store, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	s := &store{dir: dir, found: map[string]string{}}
	data, err := os.ReadFile(s.index())
	if err == nil {
		err = json.Unmarshal(data, &s.found)
	} else if os.IsNotExist(err) {
		err = nil
	}
	return s, err
}

func (s *store) index() string { return filepath.Join(s.dir, "versions.json") }

func (p pkg) id() string { return p.name + "@" + p.version }

func (p pkg) local(text string) string {
	arch := map[string]string{"amd64": "x64"}[runtime.GOARCH]
	if arch == "" {
		arch = runtime.GOARCH
	}
	return strings.ReplaceAll(text, "{arch}", arch)
}

// fetch downloads what the chosen clients need and is not there.
func (s *store) fetch(chosen []client) error {
	if err := os.MkdirAll(s.dir, 0o755); err != nil {
		return err
	}
	for _, c := range chosen {
		for _, p := range c.packages {
			if err := s.fetchOne(p); err != nil {
				return fmt.Errorf("fetch %s: %w", p.id(), err)
			}
		}
	}
	data, err := json.MarshalIndent(s.found, "", "\t")
	if err != nil {
		return err
	}
	return os.WriteFile(s.index(), append(data, '\n'), 0o644)
}

func (s *store) fetchOne(p pkg) error {
	version := p.local(p.version)
	if strings.Contains(version, "{newest}") {
		out, err := npmCommand("view", p.local(p.name), "version")
		if err != nil {
			return err
		}
		version = strings.ReplaceAll(version, "{newest}", strings.TrimSpace(out))
	}
	s.found[p.id()] = version
	dir := s.path(p)
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	part := dir + ".part"
	if err := os.RemoveAll(part); err != nil {
		return err
	}
	if err := os.MkdirAll(part, 0o755); err != nil {
		return err
	}
	fmt.Fprintf(os.Stderr, "fetching %s@%s\n", p.local(p.name), version)
	// npm checks the archive against the registry's hash. A cache of its own would hold everything twice.
	cache := filepath.Join(part, "cache")
	name, err := npmCommand("pack", "--cache", cache, "--pack-destination", part, p.local(p.name)+"@"+version)
	if err != nil {
		return err
	}
	archive := filepath.Join(part, filepath.Base(strings.TrimSpace(name)))
	tar := exec.Command("tar", "-xzf", archive, "-C", part, "--no-same-owner", "--strip-components=1")
	if out, err := tar.CombinedOutput(); err != nil {
		return fmt.Errorf("unpack: %w: %s", err, out)
	}
	// The agent is another user, whatever the umask was.
	if out, err := exec.Command("chmod", "-R", "a+rX", part).CombinedOutput(); err != nil {
		return fmt.Errorf("chmod: %w: %s", err, out)
	}
	for _, done := range []string{archive, cache} {
		if err := os.RemoveAll(done); err != nil {
			return err
		}
	}
	return os.Rename(part, dir)
}

func npmCommand(args ...string) (string, error) {
	var out, errs bytes.Buffer
	cmd := exec.Command("npm", append([]string{"--silent"}, args...)...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("npm %s: %w: %s%s", strings.Join(args, " "), err, errs.String(), out.String())
	}
	return out.String(), nil
}

func (s *store) path(p pkg) string {
	name := strings.NewReplacer("@", "", "/", "-").Replace(p.local(p.name))
	return filepath.Join(s.dir, name+"-"+s.found[p.id()])
}

// take returns the directories of a client's packages by their names, and its version.
func (s *store) take(c client) (files map[string]string, version string, err error) {
	files = map[string]string{}
	for _, p := range c.packages {
		files[p.as] = s.path(p)
		version = s.found[p.id()]
		if _, err := os.Stat(files[p.as]); err != nil {
			return nil, "", fmt.Errorf("%s was not fetched: %w", p.id(), err)
		}
	}
	if c.program != "" {
		version, err = programVersion(c.program)
	}
	return files, version, err
}

// programVersion is the first word with a digit and a dot of what a program says of its version.
func programVersion(command string) (string, error) {
	args := strings.Fields(command)
	out, err := exec.Command(args[0], args[1:]...).Output()
	if err != nil {
		return "", fmt.Errorf("%s: %w; install it", command, err)
	}
	for _, word := range strings.Fields(string(out)) {
		if strings.ContainsAny(word, "0123456789") && strings.Contains(word, ".") {
			return strings.TrimPrefix(word, "go"), nil
		}
	}
	return "", fmt.Errorf("%s says no version: %q", command, out)
}
