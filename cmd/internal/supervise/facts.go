package supervise

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// Facts is what the kernel and the container's engine let this process do for an agent. It is read before KeepOnly.
type Facts struct {
	NoNewPrivs  bool // was set by whoever started this process, and so is set for `docker exec` too
	BoundingSet bool // can be emptied: CAP_SETPCAP
	Kill        bool // the agent can be signalled directly: CAP_KILL
	Identity    bool // uids and gids can be changed: CAP_SETUID and CAP_SETGID
	Seccomp     bool // without it no agent starts
	Landlock    int  // version; 0: none, 4: TCP connect by port, 6: abstract sockets
}

// Probe reads the facts of the calling process.
func Probe() (Facts, error) {
	caps, err := permitted()
	if err != nil {
		return Facts{}, err
	}
	nnp, err := NoNewPrivs()
	return Facts{
		NoNewPrivs:  nnp,
		BoundingSet: caps.has(unix.CAP_SETPCAP) || bounding() == 0,
		Kill:        caps.has(unix.CAP_KILL),
		Identity:    caps.has(unix.CAP_SETUID) && caps.has(unix.CAP_SETGID),
		Seccomp:     seccompAvailable(),
		Landlock:    landlockABI(),
	}, err
}

func seccompAvailable() bool {
	action := uint32(unix.SECCOMP_RET_ERRNO)
	_, _, errno := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_GET_ACTION_AVAIL, 0, uintptr(unsafe.Pointer(&action)))
	return errno == 0
}

// Gaps says in a line each what is missing, and what mends it.
func (f Facts) Gaps() (lines []string) {
	for _, gap := range []struct {
		there bool
		line  string
	}{
		{f.Seccomp, "this kernel has no seccomp filters: agents cannot be started; use a kernel with CONFIG_SECCOMP_FILTER"},
		{f.Identity, "the agent's uid cannot be taken; run with --cap-add SETUID --cap-add SETGID"},
		{f.Kill, "each signal to the agent takes a process of its uid; run with --cap-add KILL"},
		{f.BoundingSet, "the bounding set of the agent cannot be emptied; run with --cap-add SETPCAP"},
		{f.NoNewPrivs, "setuid programs work in docker exec; run with --security-opt no-new-privileges"},
		{f.Landlock >= 4, "Landlock cannot limit TCP connects by port; Linux 6.7 can, with landlock in the lsm= list"},
		{f.Landlock >= 6, "Landlock cannot fence abstract unix sockets; Linux 6.12 can"},
	} {
		if !gap.there {
			lines = append(lines, gap.line)
		}
	}
	return lines
}
