package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"exitgate/policy"
)

// missing is a file that is not there.
type missing struct{ name, mend string }

func (m missing) Error() string { return m.name + ": does not exist; " + m.mend }
func (m missing) Unwrap() error { return fs.ErrNotExist }

// readFile reads a configuration file of at most max bytes, and one byte more of a longer one. O_NONBLOCK keeps a FIFO
// from hanging us before it is seen to be none.
func (env *environment) readFile(name string, max int64) ([]byte, error) {
	path := name
	if env.root != "" && filepath.IsAbs(path) {
		path = filepath.Join(env.root, path)
	}
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, missing{name, "name the file, or put it there"}
	case errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("%s: may not be read; run as root, or make it and its directory readable", name)
	case err != nil:
		return nil, fmt.Errorf("%s: cannot be opened: %w; name a readable file", name, inner(err))
	}
	defer f.Close()
	st, err := f.Stat()
	switch {
	case err != nil:
		return nil, fmt.Errorf("%s: cannot be looked at: %w; name a readable file", name, inner(err))
	case st.IsDir():
		return nil, fmt.Errorf("%s: is a directory; name the file in it", name)
	case !st.Mode().IsRegular():
		return nil, fmt.Errorf("%s: is not a regular file; write it to one, or pass it as - on standard input", name)
	}
	data, err := io.ReadAll(io.LimitReader(f, max+1))
	if err != nil {
		return nil, fmt.Errorf("%s: cannot be read: %w; name a readable file", name, inner(err))
	}
	return data, nil
}

// inner is the cause without the operation and the path, which the message has already.
func inner(err error) error {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}

// readPolicy reads a policy file; policy.Load refuses one that is too large.
func (env *environment) readPolicy(path string) ([]byte, error) {
	return env.readFile(path, policy.MaxSize)
}

// loadPolicy reads and checks a policy; "-" is standard input.
func (env *environment) loadPolicy(path string) (*policy.Policy, error) {
	if path != "-" {
		data, err := env.readPolicy(path)
		if err != nil {
			return nil, err
		}
		return policy.Load(path, data)
	}
	data, err := io.ReadAll(io.LimitReader(env.stdin, policy.MaxSize+1))
	if err != nil {
		return nil, fmt.Errorf("standard input cannot be read: %w; write the policy to a file", err)
	}
	return policy.Load("stdin", data)
}

// policyArgument is the policy a command was given, or that of the settings.
func (env *environment) policyArgument(args []string) string {
	if len(args) > 0 {
		return args[0]
	}
	return env.settings.Policy
}
