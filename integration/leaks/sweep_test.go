package leaks

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"exitgate/integration/rig"
)

// views is all that exitgate writes or says, by name.
func (s *scene) views(t *testing.T) map[string]string {
	views := map[string]string{"log and audit": s.Stderr.String()}
	for name, args := range map[string][]string{"status": {"status", "--json"}, "suggest": {"suggest"}, "report": {"report"}, "env": {"env"}, "explain": {"explain", "https://api.example.com/"},
		"verify": {"verify"}, "doctor": {"doctor"}, "presets": {"presets"}, "rules": {"rules"}, "check": {"check", "/etc/exitgate/policy.yaml"}} {
		out, err := s.Exitgate(args...)
		if err != nil {
			t.Fatal(err)
		}
		views[name] = out.Stdout + out.Stderr
	}
	out, err := s.Run(t.Context(), curl("--unix-socket", "/run/metrics.sock", "http://x/metrics"))
	if err != nil {
		t.Fatal(err)
	}
	views["metrics"] = out.Stdout
	return views
}

// sweep looks for every secret in everything that exitgate wrote, and in every file of the box but the secrets' own.
func (s *scene) sweep(t *testing.T, group string) {
	t.Helper()
	for name, text := range s.views(t) {
		seen := "nothing"
		for _, secret := range []string{secret, otherSecret, apiKey, oatKey} {
			if holds(text, secret) {
				seen = "LEAKS"
			}
		}
		control := fmt.Sprintf("%d bytes searched", len(text))
		if len(text) == 0 && name != "suggest" {
			control = "FAILED it is empty"
		}
		if name == "log and audit" && !strings.Contains(text, `"path":"/c/v1/`) {
			control = "FAILED the requests are not in it"
		}
		judge(t, row{group, "afterwards: " + name, "nothing", seen, control})
	}
	files, own := s.files(t)
	control := fmt.Sprintf("the search finds the %d files of secrets", own)
	if own != 4 {
		control = "FAILED " + control
	}
	judge(t, row{group, "afterwards: files of the box that hold it", "its own alone", strings.TrimSpace("its own alone " + files), control})
}

// files lists the files of the box that hold a secret and are not its own, and counts those that are.
func (s *scene) files(t *testing.T) (found string, own int) {
	root := s.Path("/")
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		info, err := d.Info()
		if err != nil || info.Size() > 1<<20 {
			return err
		}
		data, err := os.ReadFile(path)
		for _, secret := range []string{secret, otherSecret, apiKey, oatKey} {
			switch {
			case !holds(string(data), secret):
			case strings.HasPrefix(path, filepath.Join(root, "run/secrets")):
				own++
			default:
				found += path + " "
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found, own
}

// curl is a command of root's.
func curl(args ...string) rig.Command {
	return rig.Command{Args: append([]string{"curl", "-sS"}, args...)}
}
