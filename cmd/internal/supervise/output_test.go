package supervise

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"exitgate/netns/netnstest"
)

// outcome is what came of a helper, as a process that may wait for children prints it.
type outcome struct {
	Out, Err, Stderr  string
	NotFound, TooLong bool
	Large             bool
	Status            Status
}

// outputProgram runs a helper: its argv, a limit in bytes, a time in milliseconds.
func outputProgram(args []string) int {
	var max, ms int
	_, _ = fmt.Sscan(args[0], &max, &ms)
	s := New(Options{})
	ctx, cancel := context.WithTimeout(context.Background(), time.Duration(ms)*time.Millisecond)
	defer cancel()
	out, err := Output(ctx, s, args[1:], append(agentEnv(), "HELPER=yes"), max)
	o := outcome{Out: string(out), NotFound: errors.Is(err, ErrNotFound), Large: errors.Is(err, ErrTooLarge), TooLong: errors.Is(err, context.DeadlineExceeded)}
	var fail *OutputError
	if errors.As(err, &fail) {
		o.Err, o.Stderr, o.Status = err.Error(), string(fail.Stderr), fail.Status
	}
	_ = json.NewEncoder(os.Stdout).Encode(o)
	return 0
}

func output(t *testing.T, max, ms int, argv ...string) (o outcome) {
	t.Helper()
	netnstest.RequireRoot(t)
	cmd := netnstest.Program("output", append([]string{fmt.Sprint(max, ms)}, argv...)...)
	cmd.Stderr = os.Stderr
	b, err := cmd.Output()
	if err == nil {
		err = json.Unmarshal(b, &o)
	}
	if err != nil {
		t.Fatal(err)
	}
	return o
}

const long = 60_000 // milliseconds

func TestOutput(t *testing.T) {
	sh := func(script string) []string { return []string{"bash", "-c", script, "FAKE-SECRET-ARGUMENT"} }
	for _, tc := range []struct {
		name    string
		max, ms int
		argv    []string
		want    outcome
	}{
		{"plain", 100, long, sh("echo token"), outcome{Out: "token\n"}},
		{"nothing", 100, long, sh(":"), outcome{}},
		{"as much as it may", 10, long, sh("printf 0123456789"), outcome{Out: "0123456789"}},
		{"more than it may", 10, long, sh("yes"), outcome{Out: "y\ny\ny\ny\ny\n", Large: true, Err: `helper "bash": wrote more than it may: 10 bytes`}},
		{"much on stderr at once", 100, long, sh("dd if=/dev/zero bs=10000000 count=1 status=none >&2 && echo token"), outcome{Out: "token\n"}},
		{"fails", 100, long, sh("echo FAKE-SECRET; echo because >&2; exit 3"), outcome{Err: `helper "bash" ended with exit code 3`, Stderr: "because\n", Status: Status{Code: 3}}},
		{"killed", 100, long, sh("kill -SEGV $$"), outcome{Err: `helper "bash" was killed by segmentation fault`, Status: Status{Signal: unix.SIGSEGV}}},
		{"too long", 100, 200, sh("sleep 1000"), outcome{TooLong: true, Err: `helper "bash": context deadline exceeded`}},
		{"its child holds the pipe", 100, long, sh("echo token; sleep 1000 & exit 0"), outcome{Out: "token\n"}},
		{"its child left the group", 100, long, sh("echo token; setsid sleep 3 & exit 0"), outcome{Out: "token\n"}},
		{"not found", 100, long, []string{"no-such-helper"}, outcome{NotFound: true, Err: `helper "no-such-helper": command not found: write the path of an executable file`}},
		{"not executable", 100, long, []string{"/etc/passwd"}, outcome{NotFound: true, Err: `helper "passwd": command not found: write the path of an executable file`}},
		{"environment", 100, long, sh("env | grep -c EXITGATE; echo $HELPER"), outcome{Out: "0\nyes\n"}},
		{"standard input", 100, long, []string{"cat"}, outcome{}},
		{"no terminal", 100, long, sh("exec 2>&1; echo > /dev/tty; echo done"), outcome{Out: "bash: line 1: /dev/tty: No such device or address\ndone\n"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			got := output(t, tc.max, tc.ms, tc.argv...)
			if tc.want.TooLong || tc.want.Large {
				got.Status, got.Stderr = Status{}, "" // killed, at a point that depends
			}
			if tc.name == "no terminal" {
				got.Out = strings.Replace(got.Out, "FAKE-SECRET-ARGUMENT", "bash", 1)
			}
			if got != tc.want {
				t.Errorf("got  %+v\nwant %+v", got, tc.want)
			}
		})
	}
}

func TestOutputStderrBounded(t *testing.T) {
	got := output(t, 100, long, "bash", "-c", "head -c 1000000 /dev/zero | tr '\\0' x >&2; exit 1")
	if len(got.Stderr) != maxStderr || got.Status.Code != 1 {
		t.Errorf("%d bytes of stderr, status %+v", len(got.Stderr), got.Status)
	}
}

// A helper is root still, so that it reads what root may read, and no more than that.
func TestOutputUnprivileged(t *testing.T) {
	got := output(t, 10_000, long, "cat", "/proc/self/status")
	for _, want := range []string{"Uid:\t0\t0\t0\t0", "CapPrm:\t0000000000000000", "CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1", "SigIgn:\t0000000000000000"} {
		if !strings.Contains(got.Out, want) {
			t.Errorf("no %q in:\n%s", want, got.Out)
		}
	}
}
