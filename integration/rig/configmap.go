package rig

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
)

// PublishConfigMap writes files as the kubelet's AtomicWriter does with a ConfigMap's or Secret's volume: into a new directory, to which
// the link ..data is swapped by rename. The names in dir are links through ..data and never change; the directory before is removed.
func PublishConfigMap(dir string, mode os.FileMode, files map[string][]byte) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	old, err := os.Readlink(filepath.Join(dir, "..data"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	fresh, err := os.MkdirTemp(dir, "..2027_01_31_")
	if err != nil {
		return err
	}
	if err := os.Chmod(fresh, 0o755); err != nil {
		return err
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(fresh, name), text, mode); err != nil {
			return err
		}
	}
	if err := os.Symlink(filepath.Base(fresh), filepath.Join(dir, "..data_tmp")); err != nil {
		return err
	}
	if err := os.Rename(filepath.Join(dir, "..data_tmp"), filepath.Join(dir, "..data")); err != nil {
		return err
	}
	for name := range files {
		if err := os.Symlink(filepath.Join("..data", name), filepath.Join(dir, name)); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	if old == "" {
		return nil
	}
	return os.RemoveAll(filepath.Join(dir, old))
}
