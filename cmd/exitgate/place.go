package main

import (
	"errors"
	"fmt"
	"regexp"

	"exitgate/netns"
)

// place is the network namespace that a gate fences. The fence, the listeners and whatever tests them are made by
// functions that run there; all else happens where the process is.
type place struct {
	resident *netns.Resident // nil: the process's own namespace
}

// do runs f in the fenced namespace.
func (p place) do(f func() error) error {
	if p.resident == nil {
		return f()
	}
	return p.resident.Do(f)
}

// elsewhere reports whether the fenced namespace is another than the process's own, from which the proxy dials then.
func (p place) elsewhere() bool { return p.resident != nil }

// enter makes another namespace the fenced one.
func enter(h *netns.Handle) (place, error) {
	resident, err := netns.Settle(h)
	return place{resident}, err
}

// within runs f in the fenced namespace and returns its value.
func within[T any](p place, f func() (T, error)) (v T, err error) {
	err = p.do(func() error {
		v, err = f()
		return err
	})
	return v, err
}

// errNotHere answers what makes sense only in the namespace, file system and pid namespace of the agent.
var errNotHere = errors.New("this gate fences another namespace than its own; start a process in there by the container engine " +
	"(`docker exec -u UID`), with the variables of `exitgate env`")

// targetFile is a file of the instance that fences the named target, below /run/exitgate. The name becomes part of a path.
func targetFile(name, suffix string) (string, error) {
	if !regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.+-]{0,79}$`).MatchString(name) {
		return "", fmt.Errorf("%q cannot name a file in %s; set --control", name, runDir)
	}
	return runDir + "/" + name + suffix, nil
}
