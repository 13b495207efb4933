package secrets

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// helperPath is where a command without a slash is looked for: the inherited PATH may hold an agent's directories.
var helperPath = []string{"/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"}

// split takes a command line apart: words between spaces, single and double quotes, a backslash before one character.
// There is no shell: nothing is expanded.
func split(line string) ([]string, error) {
	var words []string
	var word strings.Builder
	var quote rune
	inside, escaped := false, false
	for _, r := range line {
		switch {
		case escaped:
			word.WriteRune(r)
			escaped = false
		case r == '\\' && quote != '\'':
			escaped, inside = true, true
		case quote != 0:
			if r == quote {
				quote = 0
			} else {
				word.WriteRune(r)
			}
		case r == '\'' || r == '"':
			quote, inside = r, true
		case r == ' ' || r == '\t':
			if inside {
				words = append(words, word.String())
				word.Reset()
			}
			inside = false
		default:
			word.WriteRune(r)
			inside = true
		}
	}
	if quote != 0 {
		return nil, fmt.Errorf("a %c is not closed", quote)
	}
	if escaped {
		return nil, errors.New("it ends in a backslash")
	}
	if inside {
		words = append(words, word.String())
	}
	return words, nil
}

// helper makes a command line ready to run as root: its program is found, and nobody in who can change or replace it.
func helper(root, line string, who []Identity) ([]string, *problem) {
	argv, err := split(line)
	if err != nil {
		return nil, &problem{"command cannot be read: " + err.Error(), "quote it as for a shell"}
	}
	if len(argv) == 0 {
		return nil, &problem{"command is empty", "write exec:/path/to/helper ARGS"}
	}
	t, name, err := find(root, argv[0])
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, &problem{fmt.Sprintf("helper %q does not exist", argv[0]), "write its whole path, or install it in " + helperPath[1]}
	case err != nil:
		return nil, &problem{fmt.Sprintf("helper %q cannot be looked at: %s", argv[0], cause(err)), "write the path of a program that root can run"}
	}
	defer t.close()
	file := t.target()
	if file.meta.kind() != unix.S_IFREG || file.meta.stat.Mode&0o111 == 0 {
		return nil, &problem{fmt.Sprintf("helper %s is not executable", file.path), fmt.Sprintf("`chmod 0755 %s`", file.path)}
	}
	for _, w := range who {
		if p := t.replaceable(w, true); p != nil {
			return nil, &problem{"helper's " + p.what, p.mend}
		}
		if p := t.writable(w); p != nil {
			return nil, &problem{"helper " + p.what, p.mend}
		}
	}
	argv[0] = path.Join("/", root, name) // not the link's target: a busybox goes by the name it is called
	return argv, nil
}

// find returns where name leads, and its path below root.
func find(root, name string) (*trail, string, error) {
	if strings.Contains(name, "/") {
		if !path.IsAbs(name) {
			return nil, "", &fs.PathError{Op: "open", Path: name, Err: errRelative}
		}
		t, err := walk(root, name)
		return t, name, err
	}
	var err error
	for _, dir := range helperPath {
		full := path.Join(dir, name)
		t, e := walk(root, full)
		if e == nil {
			return t, full, nil
		}
		if err == nil || !errors.Is(e, fs.ErrNotExist) {
			err = e
		}
	}
	return nil, "", err
}

var errRelative = errors.New("its path is relative")

// runHelper runs a credential helper and takes its standard output. What it wrote to standard error, and the words of
// whatever went wrong, are not repeated: both may hold the credential.
func (s *Store) runHelper(ctx context.Context, argv, env []string) (Value, *problem) {
	subject := "helper " + argv[0]
	no := func(what string) (Value, *problem) {
		return Value{}, &problem{subject + " " + what, "run it by hand as root to see why"}
	}
	if s.o.Output == nil {
		return no("cannot be run here")
	}
	ctx, cancel := context.WithTimeout(ctx, helperTimeout)
	defer cancel()
	out, err := s.o.Output(ctx, argv, env, MaxValue+3)
	var exit interface{ ExitCode() int }
	switch {
	case err == nil:
		return clean("what "+subject+" wrote", out)
	case errors.Is(err, context.DeadlineExceeded) || ctx.Err() == context.DeadlineExceeded:
		return no(fmt.Sprintf("took longer than %s", helperTimeout))
	case ctx.Err() != nil:
		return no("was stopped")
	case len(out) > MaxValue:
		return clean("what "+subject+" wrote", out)
	case errors.As(err, &exit) && exit.ExitCode() > 0:
		return no(fmt.Sprintf("failed with exit code %d", exit.ExitCode()))
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, fs.ErrPermission), errors.Is(err, unix.ENOEXEC):
		return no("cannot be executed")
	}
	return no("failed")
}

// helperTimeout is how long a helper may take.
const helperTimeout = 10 * time.Second

// helperEnv is the inherited environment less the variables that hold credentials and those that change what a program
// loads.
func helperEnv(environ, hidden []string) []string {
	return slices.DeleteFunc(slices.Clone(environ), func(kv string) bool {
		name, _, _ := strings.Cut(kv, "=")
		return slices.Contains(hidden, name) || strings.HasPrefix(name, "LD_")
	})
}
