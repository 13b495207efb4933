// Package rigtest is the rig for Go tests: what goes wrong ends the test, and what was started ends with it.
//
//	var binary string                                                  // the program under test
//
//	func TestMain(m *testing.M) { rigtest.Main(m, &binary) }           // all tests run in the rig's namespaces
//
//	w := rigtest.World(t)
//	box := rigtest.Start(t, rig.Config{World: w, Binary: binary, ...}) // shows PID 1's last words where the test fails
//
//	var table = rigtest.NewTable("GROUP", "CASE")                      // for tests whose result is a table to read
//	table.Judge(t, rigtest.Row{Labels: []string{"dns", "by TCP"}, Want: "ECONNREFUSED", Seen: got, Control: "root reaches it"})
//
// What it does not do: it knows nothing of policies and probes. Programs that are no tests (demo, bench, clients) use package rig itself.
package rigtest

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"exitgate/integration/rig"
)

// Main runs a package's tests in the rig's namespaces, then what is to come after them. It does not return.
func Main(m *testing.M, binary *string, after ...func()) {
	rig.Main()
	inside, code, err := rig.Enter()
	if err == nil && inside {
		if *binary, err = rig.Binary(); err == nil {
			code = m.Run()
			for _, f := range after {
				f()
			}
		}
	}
	Exit(code, err)
}

// Exit ends a TestMain, and says why where that is not because of the tests. On a developer's machine tests that need root may
// be left out; where CI is set that is a failure.
func Exit(code int, err error) {
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", filepath.Base(os.Args[0]), err)
		code = 1
		if errors.Is(err, rig.ErrNeedsRoot) && os.Getenv("CI") == "" {
			code = 0
		}
	}
	os.Exit(code)
}

// World is a stretch of the internet for one test.
func World(t testing.TB) *rig.World {
	t.Helper()
	w, err := rig.NewWorld()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.Close(); err != nil {
			t.Errorf("cleaning up: %v", err)
		}
	})
	return w
}

// HTTPS is a stand-in of that name.
func HTTPS(t testing.TB, w *rig.World, name string, s rig.Server) *rig.Upstream {
	t.Helper()
	u, err := w.HTTPS(name, s)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// Start starts a box, which ends with its world.
func Start(t testing.TB, cfg rig.Config) *rig.Box {
	t.Helper()
	b, err := rig.Start(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() && b.Stderr != nil {
			t.Logf("standard error of PID 1:\n%s", b.Stderr.Tail(60))
		}
	})
	return b
}

// Program is the path of a program that a test needs, out of a Debian package. Where CI is set it must be there; elsewhere the
// test is left out without it.
func Program(t testing.TB, name, pkg string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if errors.Is(err, exec.ErrNotFound) && os.Getenv("CI") == "" {
		t.Skipf("needs %s (apt-get install %s)", name, pkg)
	}
	if err != nil {
		t.Fatalf("%v (apt-get install %s)", err, pkg)
	}
	return path
}

var testFunc = regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)\w+)\(`)

// Tests are the tests below a directory by "package.Name", the package by the last part of its path: what a table may name that
// leaves a case to another package.
func Tests(t testing.TB, root string) map[string]bool {
	t.Helper()
	all := map[string]bool{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && path != root && strings.HasPrefix(d.Name(), ".") {
			return fs.SkipDir
		}
		if !strings.HasSuffix(path, "_test.go") {
			return nil
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for _, m := range testFunc.FindAllSubmatch(text, -1) {
			all[filepath.Base(filepath.Dir(path))+"."+string(m[1])] = true
		}
		return nil
	})
	if err != nil || len(all) < 100 {
		t.Fatalf("%d tests found below %s: %v", len(all), root, err)
	}
	return all
}
