package policy

import (
	"embed"
	"strings"
)

// Preset is a built-in fragment of policy.
type Preset struct {
	Name  string
	About string // its first line
	Text  string // YAML, each entry with the reason why it is there
}

//go:embed presets/*.yaml
var presetFiles embed.FS

// Presets are the built-in fragments, by name.
func Presets() []Preset {
	files, _ := presetFiles.ReadDir("presets") // an embedded directory is always there
	all := make([]Preset, 0, len(files))
	for _, f := range files {
		name := strings.TrimSuffix(f.Name(), ".yaml")
		text, _ := presetText(name)
		about, _, _ := strings.Cut(strings.TrimPrefix(text, "# "), "\n")
		all = append(all, Preset{name, about, text})
	}
	return all
}

func presetText(name string) (string, bool) {
	data, err := presetFiles.ReadFile("presets/" + name + ".yaml")
	return string(data), err == nil && nameForm().MatchString(name)
}

func presetNames() []string {
	var all []string
	for _, p := range Presets() {
		all = append(all, p.Name)
	}
	return all
}
