package main

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"exitgate/integration/rig"

	"golang.org/x/sys/unix"
)

// usage is what the servers of a box have used, by the kernel's account.
type usage struct {
	cpu      time.Duration
	switches int64 // context switches
	rss      int64 // bytes
	files    int
	threads  int
}

func (u usage) since(before usage) usage {
	return usage{cpu: u.cpu - before.cpu, switches: u.switches - before.switches, rss: u.rss, files: u.files, threads: u.threads}
}

// servers are the processes of a box but for the load generator, which is the prober.
func servers(b *rig.Box) ([]int, error) {
	own, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", b.PID))
	if err != nil {
		return nil, err
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", pid)); err != nil || ns != own {
			continue
		}
		args, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err != nil || bytes.HasPrefix(args, []byte(rig.ProberPath+"\x00serve\x00")) {
			continue
		}
		pids = append(pids, pid)
	}
	return pids, nil
}

// account sums what pids have used. CPU is read from their process clocks, which count nanoseconds where /proc/PID/stat has ticks of 10 ms.
func account(pids []int) (u usage, err error) {
	for _, pid := range pids {
		var ts unix.Timespec
		if err := unix.ClockGettime(int32(^pid<<3|2), &ts); err != nil { // CPUCLOCK_SCHED of a process, clock_getcpuclockid(3)
			return u, fmt.Errorf("cpu clock of %d: %w", pid, err)
		}
		u.cpu += time.Duration(ts.Nano())
		tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
		if err != nil {
			return u, err
		}
		u.threads += len(tasks)
		for _, t := range tasks {
			u.switches += fields(fmt.Sprintf("/proc/%d/task/%s/status", pid, t.Name()), "voluntary_ctxt_switches", "nonvoluntary_ctxt_switches")
		}
		u.rss += fields(fmt.Sprintf("/proc/%d/smaps_rollup", pid), "Rss") << 10
		if files, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid)); err == nil {
			u.files += len(files)
		}
	}
	return u, nil
}

// fields sums numbers of a "Name: 123" file. A thread that has ended meanwhile counts nothing.
func fields(path string, names ...string) (sum int64) {
	text, _ := os.ReadFile(path)
	for line := range strings.Lines(string(text)) {
		name, value, ok := strings.Cut(line, ":")
		if !ok {
			continue
		}
		for _, want := range names {
			if name == want {
				n, _ := strconv.ParseInt(strings.Fields(value)[0], 10, 64)
				sum += n
			}
		}
	}
	return sum
}

// machine describes where the figures come from.
type machine struct {
	Date   string `json:"date"`
	CPU    string `json:"cpu"`
	Cores  int    `json:"cores"`
	Kernel string `json:"kernel"`
	Go     string `json:"go"`
}

func thisMachine(goVersion string, cores int) machine {
	m := machine{Date: time.Now().UTC().Format("2006-01-02"), CPU: "unknown CPU", Cores: cores, Go: goVersion}
	text, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(text)) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			m.CPU = strings.TrimSpace(value)
			break
		}
	}
	release, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	m.Kernel, _, _ = strings.Cut(strings.TrimSpace(string(release)), "-")
	return m
}

func (m machine) String() string {
	return fmt.Sprintf("%s, %s, %d cores, Linux %s, %s", m.Date, m.CPU, m.Cores, m.Kernel, m.Go)
}
