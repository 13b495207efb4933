package caller

import (
	"bufio"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
)

// Holder is who listens on a TCP address.
type Holder struct {
	UID uint32
	PID int    // 0: a process that cannot be seen from here, such as one of another container in the pod
	Exe string // "" where PID is 0
}

// String names the holder in an error message.
func (h Holder) String() string {
	if h.PID == 0 {
		return fmt.Sprintf("a process of uid %d that cannot be seen from here", h.UID)
	}
	return fmt.Sprintf("%s (pid %d, uid %d)", h.Exe, h.PID, h.UID)
}

// FindHolder finds who listens on addr, or on every address with its port, in the calling thread's network namespace.
// It reads the kernel's table of listeners whole and looks at every process: for a start that failed anyway.
func FindHolder(addr netip.AddrPort) (Holder, error) {
	for _, table := range []string{"tcp", "tcp6"} {
		f, err := os.Open("/proc/thread-self/net/" + table)
		if err != nil {
			continue // tcp6: a kernel without IPv6
		}
		uid, inode, found := findListener(f, addr)
		f.Close()
		if found {
			h := Holder{UID: uid}
			h.PID = processWith("socket:[" + inode + "]")
			if h.PID != 0 {
				h.Exe = program(h.PID)
			}
			return h, nil
		}
	}
	return Holder{}, errors.New("no listener holds the address")
}

// findListener reads a table of proc_net_tcp(5): sl local_address rem_address st tx:rx tr:when retrnsmt uid timeout inode.
func findListener(table io.Reader, addr netip.AddrPort) (uid uint32, inode string, found bool) {
	const listening = "0A"
	for lines := bufio.NewScanner(table); lines.Scan(); {
		f := strings.Fields(lines.Text())
		if len(f) < 10 || f[3] != listening {
			continue
		}
		local, ok := parseLocal(f[1])
		if !ok || local.Port() != addr.Port() || local.Addr() != addr.Addr().Unmap() && !local.Addr().IsUnspecified() {
			continue
		}
		n, err := strconv.ParseUint(f[7], 10, 32)
		if err == nil {
			return uint32(n), f[9], true
		}
	}
	return 0, "", false
}

// parseLocal reads an address as the kernel prints it: words of four bytes in the machine's order, then the port. Both
// machines that exitgate is built for are little-endian.
func parseLocal(s string) (netip.AddrPort, bool) {
	host, port, _ := strings.Cut(s, ":")
	b, err := hex.DecodeString(host)
	n, perr := strconv.ParseUint(port, 16, 16)
	if err != nil || perr != nil || len(b)%4 != 0 {
		return netip.AddrPort{}, false
	}
	for word := range slices.Chunk(b, 4) {
		slices.Reverse(word)
	}
	a, ok := netip.AddrFromSlice(b)
	return netip.AddrPortFrom(a.Unmap(), uint16(n)), ok
}

// processWith is the process that has a descriptor with this link, 0 where none is found.
func processWith(link string) int {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return 0
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		dir := "/proc/" + e.Name() + "/fd/"
		fds, _ := os.ReadDir(dir)
		for _, fd := range fds {
			if to, err := os.Readlink(dir + fd.Name()); err == nil && to == link {
				return pid
			}
		}
	}
	return 0
}
