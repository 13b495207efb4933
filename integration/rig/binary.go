package rig

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// Binary is the program under test: EXITGATE_BINARY, or built.
func Binary() (string, error) {
	if path := os.Getenv("EXITGATE_BINARY"); path != "" {
		return filepath.Abs(path)
	}
	return Build("exitgate/cmd/exitgate")
}

// Build builds a program of this module into the scratch directory that goes with the namespaces.
func Build(pkg string) (string, error) {
	path := filepath.Join(os.TempDir(), filepath.Base(pkg))
	cmd := exec.Command("go", "build", "-o", path, pkg)
	// The namespaces have no way to a module proxy; what is needed is in the module cache since the test itself was built.
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOPROXY=off")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build %s: %w\n%s", pkg, err, out)
	}
	return path, nil
}
