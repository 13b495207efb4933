package rig

import (
	"fmt"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// nftablesGroup is NFNLGRP_NFTABLES: the kernel announces each committed change of a namespace's ruleset there.
const nftablesGroup = 7

// watchRuleset reports when the ruleset of a process's network namespace changes for the first time. It takes part in nothing: the
// announcement is made after the commit.
func watchRuleset(pid int) (<-chan time.Time, error) {
	type opened struct {
		fd  int
		err error
	}
	got := make(chan opened, 1)
	go func() {
		runtime.LockOSThread() // for good
		fd, err := openRulesetSocket(pid)
		got <- opened{fd, err}
	}()
	o := <-got
	if o.err != nil {
		return nil, fmt.Errorf("watch the box's ruleset: %w", o.err)
	}
	first := make(chan time.Time, 1)
	go func() {
		if _, _, err := unix.Recvfrom(o.fd, make([]byte, 1<<16), 0); err == nil {
			first <- time.Now()
		}
		unix.Close(o.fd)
	}()
	return first, nil
}

func openRulesetSocket(pid int) (int, error) {
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return -1, err
	}
	defer unix.Close(pidfd)
	if err := unix.Setns(pidfd, unix.CLONE_NEWNET); err != nil {
		return -1, err
	}
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return -1, err
	}
	// A box without a gate has nothing to announce; do not wait for ever.
	limit := unix.Timeval{Sec: 30}
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit); err != nil {
		return -1, err
	}
	return fd, unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1 << (nftablesGroup - 1)})
}
