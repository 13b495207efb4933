package enclosure

import (
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// HasTerminal reports whether a standard stream of this process is a terminal: the agent then gets one of its own.
func HasTerminal() bool {
	for fd := range 3 {
		if isTerminal(fd) {
			return true
		}
	}
	return false
}

func isTerminal(fd int) bool {
	_, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	return err == nil
}

// takeTerminal makes a pty, whose slave becomes the controlling terminal of this session and replaces the terminals
// among the standard streams: none of the host's is left.
func takeTerminal() (*os.File, error) {
	master, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("make a terminal: %w", err)
	}
	file := os.NewFile(uintptr(master), "pty")
	if err := unix.IoctlSetPointerInt(master, unix.TIOCSPTLCK, 0); err != nil {
		return nil, fmt.Errorf("unlock the terminal: %w", err)
	}
	n, err := unix.IoctlGetInt(master, unix.TIOCGPTN)
	if err != nil {
		return nil, fmt.Errorf("number of the terminal: %w", err)
	}
	slave, err := unix.Open("/dev/pts/"+strconv.Itoa(n), unix.O_RDWR|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, fmt.Errorf("open the terminal: %w", err)
	}
	defer unix.Close(slave)
	if err := unix.IoctlSetInt(slave, unix.TIOCSCTTY, 0); err != nil {
		return nil, fmt.Errorf("take the terminal: %w", err)
	}
	for fd := range 3 {
		if !isTerminal(fd) {
			continue
		}
		if err := unix.Dup3(slave, fd, 0); err != nil {
			return nil, err
		}
	}
	return file, nil
}
