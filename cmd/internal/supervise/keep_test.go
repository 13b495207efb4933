package supervise

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// keepProgram trims itself as the first process does once everything is up, and then still starts and ends agents.
func keepProgram(args []string) int {
	s := New(Options{Grace: time.Second, Log: func(f string, a ...any) { fmt.Printf("log: "+f+"\n", a...) }})
	before, err := Probe()
	if err != nil {
		fmt.Println(err)
		return 1
	}
	_ = json.NewEncoder(os.Stdout).Encode(before)
	if err := KeepOnly(capsIn(args[0])...); err != nil {
		fmt.Println("keep:", err)
	}
	if err := threadsHave(args[0]); err != nil {
		fmt.Println(err)
		return 1
	}
	if dumpable, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0); err != nil || dumpable != 0 {
		fmt.Println("dumpable", dumpable, err)
		return 1
	}
	if err := startedHave(s, Process{}, "CapPrm:\t"+args[0], "CapEff:\t"+args[0]); err != nil { // its bounding set is larger
		fmt.Println(err)
		return 1
	}
	none := "0000000000000000"
	if !before.BoundingSet {
		none = args[0]
	}
	if err := startedHave(s, Process{NoCaps: true, GID: 65521}, "Uid:\t0\t0\t0\t0", "Gid:\t65521\t65521\t65521\t65521", "Groups:\t \n",
		"CapPrm:\t"+none, "CapEff:\t"+none); err != nil {
		fmt.Println(err)
		return 1
	}
	agent, err := s.StartAgent(shell(`echo up; cat /proc/self/status; sleep 1000`))
	if err != nil {
		fmt.Println(err)
		return 1
	}
	// Started while SIGTTOU is ignored here.
	if out, err := Output(context.Background(), s, []string{"cat", "/proc/self/status"}, nil, 10_000); err != nil || !strings.Contains(string(out), "SigIgn:\t0000000000000000") {
		fmt.Printf("helper: %v\n%s\n", err, out)
		return 1
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	fmt.Println("end", s.Run(ctx, agent))
	return 0
}

// capsIn reads a set as /proc/PID/status writes it.
func capsIn(hex string) (list []int) {
	set, _ := strconv.ParseUint(hex, 16, 64)
	for c := range 64 {
		if capSet(set).has(c) {
			list = append(list, c)
		}
	}
	return list
}

// startedHave checks what the kernel says of a program that is started as p.
func startedHave(s *Supervisor, p Process, want ...string) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	p.Name, p.Path, p.Argv, p.Files = "started", "/bin/cat", []string{"cat", "/proc/self/status"}, []*os.File{nil, w, w}
	_, err = s.Start(p)
	w.Close()
	if err != nil {
		return err
	}
	status, err := io.ReadAll(r)
	for _, line := range want {
		if !strings.Contains(string(status), line) {
			err = errors.Join(err, fmt.Errorf("started as %+v: no %q in:\n%s", p, line, status))
		}
	}
	return err
}

func threadsHave(caps string) error {
	for _, want := range []string{"CapInh:\t0000000000000000", "CapPrm:\t" + caps, "CapEff:\t" + caps, "CapAmb:\t0000000000000000", "NoNewPrivs:\t1"} {
		if err := everyThread(want); err != nil {
			return err
		}
	}
	return nil
}

// What is kept is enough to start an agent, and to end it: without CAP_KILL too, by a process of its uid.
func TestKeepOnly(t *testing.T) {
	const five = "00000000000011e0" // KILL 5, SETGID 6, SETUID 7, SETPCAP 8, NET_ADMIN 12
	const withoutKill = "00000000000011c0"
	for _, caps := range []string{five, withoutKill} {
		out, err := proxyCommand(t, "keep", caps).CombinedOutput()
		said := string(out)
		if err != nil {
			t.Fatalf("%v: %s", err, said)
		}
		for _, want := range []string{`"BoundingSet":true`, `"Seccomp":true`, "\nup\n", "CapBnd:\t0000000000000000", "Groups:\t \n", "end 143"} {
			if !strings.Contains(said, want) {
				t.Errorf("%s: no %q in:\n%s", caps, want, said)
			}
		}
		if strings.Contains(said, "log:") || strings.Contains(said, "keep:") {
			t.Errorf("%s: said:\n%s", caps, said)
		}
	}
}

// withoutSetpcapProgram executes the rest of its arguments with the least set of capabilities that starts an agent, and one to spare.
func withoutSetpcapProgram(args []string) int {
	runtime.LockOSThread()
	least := capsOf(unix.CAP_NET_ADMIN, unix.CAP_SETUID, unix.CAP_SETGID, unix.CAP_KILL, unix.CAP_SYS_CHROOT)
	if err := errors.Join(oneThread.limitBounding(least), oneThread.setCaps(least)); err != nil {
		fmt.Println(err)
		return 1
	}
	os.Setenv("EXITGATE_TEST_PROGRAM", args[0])
	fmt.Println(unix.Exec("/proc/self/exe", append([]string{"keep"}, args[1:]...), os.Environ()))
	return 1
}

// With fewer capabilities than it asks for, KeepOnly keeps those it has; the agent is hardened but for its bounding set.
func TestKeepOnlyWithoutSetpcap(t *testing.T) {
	const four, withChroot = "00000000000010e0", "00000000000410e0" // SYS_CHROOT is 18
	out, err := proxyCommand(t, "without-setpcap", "keep", four).CombinedOutput()
	said := string(out)
	if err != nil {
		t.Fatalf("%v: %s", err, said)
	}
	for _, want := range []string{"\nup\n", `"BoundingSet":false`,
		"CapPrm:\t0000000000000000", "CapBnd:\t" + withChroot, "NoNewPrivs:\t1", "Seccomp:\t2", "end 143"} {
		if !strings.Contains(said, want) {
			t.Errorf("no %q in:\n%s", want, said)
		}
	}
}

func TestGaps(t *testing.T) {
	if gaps := (Facts{NoNewPrivs: true, BoundingSet: true, Kill: true, Identity: true, Seccomp: true, Landlock: 7}).Gaps(); len(gaps) != 0 {
		t.Errorf("all is there, and yet %q", gaps)
	}
	gaps := (Facts{}).Gaps()
	if len(gaps) != 7 {
		t.Errorf("%d gaps, want one for each of 7: %q", len(gaps), gaps)
	}
	for _, line := range gaps {
		if strings.Contains(line, "\n") || line == "" {
			t.Errorf("not a line: %q", line)
		}
	}
}
