//go:build cgo

package main

// builtWithCgo says that this binary cannot take privileges from all of its threads (syscall.AllThreadsSyscall), so that
// no gate can be run with it.
const builtWithCgo = true
