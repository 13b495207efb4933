package main

import (
	"errors"
	"os"
)

// initNetnsSysctl is a sysctl that the kernel registers in the initial network namespace alone (net_core_table in
// net/core/sysctl_net_core.c; seen so on Linux 6.18): a container that sees it runs with --network host.
const initNetnsSysctl = "/proc/sys/net/core/netdev_max_backlog"

// refuseHostNetwork keeps the fence out of the host's own namespace, where it would cut off everybody else.
func refuseHostNetwork(insist bool) error {
	if insist || !inHostNetwork() {
		return nil
	}
	return errors.New("this is the host's own network namespace (--network host?), and the fence would cut off the whole host; " +
		"use the engine's default network, or `exitgate run --isolate` on a plain host, or insist with --host-network")
}

// inHostNetwork reports whether the calling thread is in the initial network namespace; /proc/sys/net is that of whoever looks.
func inHostNetwork() bool {
	_, err := os.Stat(initNetnsSysctl)
	return err == nil
}
