package supervise

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

var (
	// ErrNotFound says that the command does not exist: exit code 127.
	ErrNotFound = errors.New("command not found")
	// ErrNotExecutable says that the command exists and cannot be executed: exit code 126.
	ErrNotExecutable = errors.New("command cannot be executed")
)

// ExitCode returns the exit code for an error of Become, as shells and container engines use them.
func ExitCode(err error) int {
	switch {
	case errors.Is(err, ErrNotFound):
		return 127
	case errors.Is(err, ErrNotExecutable):
		return 126
	}
	return 125
}

// defaultPath is searched where the environment has no PATH.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// execute runs argv in place of the process; it looks the command up as execvp does. It is called as the agent, so
// that what it finds is what the agent may execute.
func execute(argv, env []string) error {
	name := argv[0]
	if name == "" {
		return fmt.Errorf("%w: its name is empty", ErrNotFound)
	}
	whole := strings.Contains(name, "/")
	var found error // what stands there and cannot be executed
	var shut []string
	for _, path := range candidates(name, env) {
		err := syscall.Exec(path, argv, env) // not a raw execve: it gives back the limit on descriptors that Go raised
		switch {
		case errors.Is(err, unix.ENOENT) && unix.Access(path, unix.F_OK) == nil:
			found = fmt.Errorf("%w: the interpreter or loader that %s names is missing", ErrNotFound, path)
		case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
		case errors.Is(err, unix.EACCES) && !whole && unix.Access(path, unix.F_OK) != nil:
			// Root's PATH has directories of root's home. What the agent cannot see there is not there for it, as in a shell.
			shut = append(shut, filepath.Dir(path))
		case errors.Is(err, unix.EACCES): // a later directory may have one that can
			found = fmt.Errorf("%w: %s: permission denied; the agent needs execute permission on it", ErrNotExecutable, path)
		case errors.Is(err, unix.ENOEXEC):
			return fmt.Errorf("%w: %s is neither a program for this machine nor a script that begins with #!", ErrNotExecutable, path)
		default:
			return fmt.Errorf("%w: %s: %w", ErrNotExecutable, path, err)
		}
	}
	switch {
	case found != nil:
		return found
	case whole:
		return fmt.Errorf("%w: %q", ErrNotFound, name)
	}
	return notInPath(name, searchPath(env), shut)
}

// notInPath says where the command was looked for, and where the agent may not look.
func notInPath(name, path string, shut []string) error {
	unseen := ""
	if len(shut) > 0 {
		unseen = fmt.Sprintf(", where it may not look into %s", strings.Join(shut, " and "))
	}
	return fmt.Errorf("%w: %q is not in the agent's PATH (%s)%s; install it, or write its whole path", ErrNotFound, name, path, unseen)
}

func candidates(name string, env []string) []string {
	if strings.Contains(name, "/") {
		return []string{name}
	}
	var paths []string
	for dir := range strings.SplitSeq(searchPath(env), ":") {
		if dir == "" {
			dir = "."
		}
		paths = append(paths, filepath.Join(dir, name))
	}
	return paths
}

func searchPath(env []string) string {
	for _, kv := range env {
		if path, ok := strings.CutPrefix(kv, "PATH="); ok {
			return path
		}
	}
	return defaultPath
}
