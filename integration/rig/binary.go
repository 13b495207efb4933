package rig

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// Binary is the program under test: EXITGATE_BINARY, or built into the scratch directory that goes with the namespaces.
func Binary() (string, error) {
	if path := os.Getenv("EXITGATE_BINARY"); path != "" {
		return filepath.Abs(path)
	}
	path := filepath.Join(os.TempDir(), "exitgate")
	cmd := exec.Command("go", "build", "-o", path, "exitgate/cmd/exitgate")
	// The namespaces have no way to a module proxy; what is needed is in the module cache since the test itself was built.
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOPROXY=off")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build exitgate: %w\n%s", err, out)
	}
	return path, nil
}
