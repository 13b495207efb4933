package secrets

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"time"

	"golang.org/x/sys/unix"
)

// readFile reads a credential's file, which nobody in who may be able to read, change or replace. The print is that of
// what was read.
func readFile(root, name, preset string, who []Identity) (v Value, print string, p *problem) {
	t, err := walk(root, name)
	if err != nil {
		return Value{}, unreadable, refusal(name, preset, err)
	}
	defer t.close()
	print = t.print()
	for _, w := range who {
		if p := t.replaceable(w, true); p != nil {
			return Value{}, print, p
		}
		if p := t.readable(w); p != nil {
			return Value{}, print, p
		}
	}
	f, err := t.open()
	if err != nil {
		return Value{}, print, refusal(name, preset, err)
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, MaxValue+3))
	if err != nil {
		return Value{}, print, refusal(name, preset, err)
	}
	if time.Since(t.target().meta.changed()) < tick {
		print += " young"
	}
	v, p = clean(name, raw)
	return v, print, p
}

// tick is more than the step of any file system's clock. A file younger than that can be written again without a
// change of its times, so it is read once more when it is older.
const tick = 50 * time.Millisecond

// unreadable is the print of a file that cannot be looked at.
const unreadable = "unreadable"

// fingerprint looks at a file without reading it.
func fingerprint(root, name string) string {
	t, err := walk(root, name)
	if err != nil {
		return unreadable
	}
	defer t.close()
	return t.print()
}

// refusal words what kept a file from being read.
func refusal(name, preset string, err error) *problem {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		mend := fmt.Sprintf("put the credential into %s, owned by root, mode 0400", name)
		if preset != "" {
			mend = fmt.Sprintf("the preset %s needs it: %s", preset, mend)
		}
		return &problem{name + " does not exist", mend}
	case errors.Is(err, unix.EISDIR):
		return &problem{name + " is a directory", "name the file in it; a bind mount of a missing file makes a directory"}
	case errors.Is(err, errNotRegular):
		return &problem{name + " is not a regular file", "write the credential into a file, or pass it as `fd:N`"}
	case errors.Is(err, fs.ErrPermission):
		return &problem{name + " cannot be read", "make it root's (`chown root`), or give the container DAC_READ_SEARCH"}
	case errors.Is(err, unix.ELOOP):
		return &problem{name + " is a symbolic link that leads in a circle", "name the file itself"}
	}
	return &problem{fmt.Sprintf("%s cannot be read: %s", name, cause(err)), "name a file that only root can read"}
}

// cause is the innermost error: the path is in the message already.
func cause(err error) error {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}
