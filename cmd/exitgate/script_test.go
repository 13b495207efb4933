package main

import (
	"errors"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"exitgate": main})
}

// TestScripts runs the command line as users do. Beside testscript's own commands there are:
//
//	code N COMMAND ARGS   COMMAND ends with exit code N
//	mkfifo FILE           a FIFO
//	large FILE            a policy of ten megabytes
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		RequireExplicitExec: true,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"code": exitsWith,
			"mkfifo": func(ts *testscript.TestScript, _ bool, args []string) {
				ts.Check(unix.Mkfifo(ts.MkAbs(args[0]), 0o600))
			},
			"large": func(ts *testscript.TestScript, _ bool, args []string) {
				ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte("version: 1\n#"+strings.Repeat(" ", 10<<20)), 0o600))
			},
		},
	})
}

// exitsWith compares an exit code; testscript itself knows only success and failure.
func exitsWith(ts *testscript.TestScript, _ bool, args []string) {
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	err = ts.Exec(args[1], args[2:]...)
	got := 0
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		got = exit.ExitCode()
	case err != nil:
		ts.Fatalf("%v", err)
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}
