package supervise

import (
	"bytes"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// process is what /proc/PID/stat says of one.
type process struct {
	pid, parent, group, session int
	state                       byte
}

// readProcess fails for a process that is gone.
func readProcess(pid int) (process, bool) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return process{}, false
	}
	// The name is in parentheses, and may hold any of what follows: fields count from the last one.
	fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	if len(fields) < 4 {
		return process{}, false
	}
	p := process{pid: pid, state: fields[0][0]}
	for i, dst := range []*int{&p.parent, &p.group, &p.session} {
		if *dst, err = strconv.Atoi(fields[i+1]); err != nil {
			return process{}, false
		}
	}
	return p, true
}

// pids lists the processes in sight. Empty where /proc is not mounted, or is another pid namespace's.
func pids() (list []int) {
	if me, err := os.Readlink("/proc/self"); err != nil || me != strconv.Itoa(os.Getpid()) {
		return nil
	}
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil {
			list = append(list, pid)
		}
	}
	return list
}

// resumable reports whether a shell's job control can continue this process once it has stopped: somebody of its process group
// has a parent in another group of the session. POSIX calls the group orphaned otherwise, and it must not stop.
func resumable() bool {
	me, ok := readProcess(os.Getpid())
	for p := me; ok && os.Getpid() != 1 && p.parent > 0; {
		p, ok = readProcess(p.parent)
		if ok && p.group != me.group {
			return p.session == me.session
		}
	}
	return false
}

// processesOf lists the processes that have uid in any of their four uids, zombies excepted.
func processesOf(uid uint32) (list []int) {
	want := strconv.FormatUint(uint64(uid), 10)
	for _, pid := range pids() {
		status, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
		if err != nil {
			continue
		}
		_, rest, _ := strings.Cut(string(status), "\nUid:")
		uids, _, _ := strings.Cut(rest, "\n")
		if p, ok := readProcess(pid); ok && p.state != 'Z' && slices.Contains(strings.Fields(uids), want) {
			list = append(list, pid)
		}
	}
	return list
}

// descendants lists all that process root started and what they started, but for the subtrees of except and zombies.
func descendants(root int, except map[int]*Child) (list []process) {
	children := map[int][]process{}
	for _, pid := range pids() {
		if p, ok := readProcess(pid); ok {
			children[p.parent] = append(children[p.parent], p)
		}
	}
	queue := children[root]
	for len(queue) > 0 {
		p := queue[0]
		queue = queue[1:]
		if except[p.pid] != nil {
			continue
		}
		if p.state != 'Z' {
			list = append(list, p)
		}
		queue = append(queue, children[p.pid]...)
	}
	return list
}

// signalProcess signals p if it is still the process that was seen: by a pidfd, because a pid can be another's by now.
func signalProcess(p process, sigs []unix.Signal) {
	fd, err := unix.PidfdOpen(p.pid, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	if now, ok := readProcess(p.pid); !ok || now.group != p.group || now.session != p.session {
		return
	}
	for _, sig := range sigs {
		_ = unix.PidfdSendSignal(fd, sig, nil, 0)
	}
}
