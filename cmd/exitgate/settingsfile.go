package main

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"exitgate/policy"

	"go.yaml.in/yaml/v3"
)

// settingsFile holds what an administrator sets for every start on a machine or in an image.
const settingsFile = "/etc/exitgate/exitgate.yaml"

// readSettingsFile returns the file's settings by dotted key. viper would ignore a key it does not know, and take the
// last of two: this file is read strictly, and only its values are viper's.
func (env *environment) readSettingsFile() (map[string]string, []error) {
	data, err := env.readFile(settingsFile, 1<<20)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, []error{err}
	}
	var doc yaml.Node
	if err := yaml.Unmarshal(data, &doc); err != nil {
		return nil, []error{fmt.Errorf("%s: %s", settingsFile, strings.TrimPrefix(err.Error(), "yaml: "))}
	}
	r := settingsReader{values: make(map[string]string), seen: make(map[string]bool)}
	if len(doc.Content) == 1 {
		r.mapping("", doc.Content[0])
	}
	return r.values, r.errs
}

// settingsReader collects the values of a settings file.
type settingsReader struct {
	values map[string]string
	seen   map[string]bool // keys and groups, however they are written
	errs   []error
}

func (r *settingsReader) wrong(n *yaml.Node, what, mend string) {
	r.errs = append(r.errs, &policy.Error{Position: policy.Position{File: settingsFile, Line: n.Line, Column: n.Column}, What: what, Mend: mend})
}

func (r *settingsReader) mapping(prefix string, n *yaml.Node) {
	if n.Kind != yaml.MappingNode {
		if n.Tag != "!!null" {
			r.wrong(n, "here stands no mapping", "write `key: value` lines")
		}
		return
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		name, value := n.Content[i], n.Content[i+1]
		key := prefix + name.Value
		switch known := slices.ContainsFunc(settingTable, func(s setting) bool { return s.key == key }); {
		case r.seen[key]:
			r.wrong(name, fmt.Sprintf("key %q is there twice", key), "keep one")
		case known:
			r.value(key, value)
		case isGroup(key) && !strings.Contains(name.Value, "."):
			r.mapping(key+".", value)
		default:
			r.wrong(name, fmt.Sprintf("unknown key %q", key), nearSetting(key))
		}
		r.seen[key] = true
	}
}

func isGroup(key string) bool {
	return slices.ContainsFunc(settingTable, func(s setting) bool { return strings.HasPrefix(s.key, key+".") })
}

func nearSetting(key string) string {
	var keys []string
	for _, s := range settingTable {
		keys = append(keys, s.key)
	}
	if near := policy.Nearest(key, keys); near != "" {
		return fmt.Sprintf("did you mean %q?", near)
	}
	return "known are " + strings.Join(keys, ", ") + "; what is allowed is written in the policy"
}

// value takes a scalar's text as it is written, or the words of a list.
func (r *settingsReader) value(key string, n *yaml.Node) {
	switch {
	case n.Kind == yaml.ScalarNode:
		r.values[key] = n.Value
	case n.Kind == yaml.SequenceNode && key == "loosen":
		var words []string
		for _, w := range n.Content {
			words = append(words, w.Value)
		}
		r.values[key] = strings.Join(words, ",")
	default:
		r.wrong(n, fmt.Sprintf("%s has a value of the wrong kind", key), "write one word after the colon")
	}
}
