package attack

import (
	"fmt"
	"net/netip"

	"exitgate/integration/prober"
)

func resolverOf(p *place) netip.AddrPort { return netip.AddrPortFrom(p.s.w.DNS.Addr4, 53) }

// inside are the box's own services and files.
func inside() []attempt {
	works := control{kind: works}
	var all []attempt
	tcp := func(name, to string) {
		all = append(all, attempt{name: name, probe: fixed(streamTo, to), want: refused, control: works})
	}
	tcp("root's service on 127.0.0.1", "127.0.0.1:9999")
	tcp("root's service on ::1", "[::1]:9999")
	tcp("root's service on 127.0.0.2", "127.0.0.2:9998")
	tcp("root's service by 0.0.0.0", "0.0.0.0:9999")
	tcp("root's service by ::", "[::]:9999")
	tcp("root's service by ::ffff:127.0.0.1", "[::ffff:127.0.0.1]:9999")
	tcp("another uid's service", "127.0.0.1:9997")
	tcp("Docker's DNS, tcp 127.0.0.11:53", "127.0.0.11:53")
	tcp("Docker's DNS, its random port", "127.0.0.11:40053")
	tcp("systemd-resolved 127.0.0.53", "127.0.0.53:53")
	for _, to := range []string{"127.0.0.11:53", "127.0.0.11:40053", "127.0.0.53:53", "127.0.0.1:9999"} {
		all = append(all, attempt{name: "udp " + to, probe: fixed(dgram4, to), want: prohibited, control: works})
	}
	own := func(name string, to func(p *place) string) {
		all = append(all, attempt{name: name, probe: func(p *place) prober.Probe { return streamTo(to(p)) }, want: refused, control: works})
	}
	own("root's service on eth0's IPv4 address", func(p *place) string { return at(p.Wire.Box4(), 9996) })
	own("root's service on eth0's IPv6 address", func(p *place) string { return at(p.Wire.Box6(), 9996) })
	listenerOf := control{kind: granted, as: "exec", probe: fixed(streamTo, listener)}
	for _, other := range []string{"127.0.0.2:8080", "[::1]:8080", "[::ffff:127.0.0.2]:8080"} {
		all = append(all, attempt{name: "the listener by " + other, probe: fixed(streamTo, other), want: refused, control: listenerOf})
	}
	return append(append(all,
		attempt{name: "the agent's listener", roads: []string{"nobody", "uid 1001", "root"}, probe: fixed(streamTo, listener), want: refused, control: listenerOf},
		attempt{name: "the listener's port, to listen", roads: uid1000, probe: listen(listener), want: "EADDRINUSE", control: works},
		attempt{name: "the listener's port on every address", roads: uid1000, probe: listen("0.0.0.0:8080"), want: "EADDRINUSE", control: works},
	), files()...)
}

// streamTo is a stream socket of the address's family.
func streamTo(to string, change ...func(*prober.Probe)) prober.Probe {
	if netip.MustParseAddrPort(to).Addr().Is4() {
		return stream4(to, change...)
	}
	return stream6(to, change...)
}

func listen(address string) func(*place) prober.Probe {
	return func(*place) prober.Probe {
		return prober.Probe{Op: "listen", Address: address, Timeout: short}
	}
}

func reading(path string) func(*place) prober.Probe {
	return func(*place) prober.Probe { return prober.Probe{Op: "read", Address: path} }
}

// files are what lies about: root reads them in the same box, so they are there.
func files() []attempt {
	byRoot := func(probe func(*place) prober.Probe) control { return control{kind: granted, as: "root", probe: probe} }
	var all []attempt
	for _, path := range []string{"/run/secrets/api", "/run/mine/x"} {
		all = append(all, attempt{name: "read " + path, probe: reading(path), want: "EACCES", control: byRoot(nil)})
	}
	for _, name := range []string{"/run/exitgate/control.sock", "/run/root.sock"} {
		probe := func(*place) prober.Probe { return prober.Probe{Op: "unix", Address: name} }
		all = append(all, attempt{name: "unix socket " + name, probe: probe, want: "EACCES", control: byRoot(nil)})
	}
	abstract := func(*place) prober.Probe { return prober.Probe{Op: "unix", Address: "@root"} }
	all = append(all, attempt{name: "abstract unix socket of root", roads: agentOnly, probe: abstract, want: "EPERM", control: control{kind: works}})
	writing := func(path string) func(*place) prober.Probe {
		return func(*place) prober.Probe { return prober.Probe{Op: "write", Address: path} }
	}
	for _, path := range []string{"/etc/exitgate/policy.yaml", "/etc/resolv.conf", "/etc/hosts", "/etc/ssl/certs/ca-certificates.crt", "/proc/sys/net/ipv4/ip_forward"} {
		c := byRoot(nil)
		if path[1] == 'p' {
			c = control{kind: because, why: "the file is root's, 0644; the row of setuid shows that the uid is what counts"}
		}
		all = append(all, attempt{name: "write " + path, probe: writing(path), want: "EACCES", control: c})
	}
	link := func(how, path string) func(*place) prober.Probe {
		return script(fmt.Sprintf("ln %s /tmp/x %s 2>/dev/null && rm %s", how, path, path))
	}
	for _, path := range []string{"/etc/exitgate/link", "/run/exitgate/link", "/etc/ssl/certs/link"} {
		all = append(all, attempt{name: "make the link " + path, probe: link("-s", path), want: "exit 1", control: byRoot(nil)})
	}
	return all
}

// processes are ways to another identity or into another process.
func processes() []attempt {
	byRoot := control{kind: granted, as: "root"}
	bareRoot := control{kind: works, as: "root"}
	var all []attempt
	for _, who := range []struct {
		name string
		pid  func(*place) int
	}{{"PID 1", func(*place) int { return 1 }}, {"the proxy", func(p *place) int { return p.proxy }}} {
		for _, name := range []string{"environ", "mem", "maps", "fd/0", "root/etc/hosts", "cwd/etc/hosts", "stack"} {
			probe := func(p *place) prober.Probe {
				return prober.Probe{Op: "read", Address: fmt.Sprintf("/proc/%d/%s", who.pid(p), name)}
			}
			c := bareRoot
			switch name {
			case "mem": // offset 0 is nowhere, so reading it fails; opening is what is refused
				c = control{kind: because, why: "its environ, read by root without a fence, is opened by the same check"}
			case "fd/0", "stack":
				c = control{kind: because, why: "the same check as for environ"}
			}
			all = append(all, attempt{name: "read " + name + " of " + who.name, probe: probe, want: "EACCES|EPERM", control: c})
		}
		for _, name := range []string{"ptrace", "pidfd_getfd", "process_vm_readv", "process_vm_writev", "kill", "pidfd_signal", "prlimit", "setns_net", "setns_mnt"} {
			probe := func(p *place) prober.Probe { return prober.Probe{Op: "call", Call: name, PID: who.pid(p)} }
			c := bareRoot
			if name == "setns_net" || name == "setns_mnt" {
				c = control{kind: because, why: "setns wants CAP_SYS_ADMIN, which no identity in the box has; opening the link is refused like environ"}
			}
			all = append(all, attempt{name: name + " of " + who.name, probe: probe, want: "EPERM|EACCES", control: c})
		}
	}
	for _, c := range []struct {
		name, want string
		control
	}{
		{"setuid", "EPERM", byRoot}, {"setgid", "EPERM", byRoot}, {"setgroups", "EPERM", byRoot}, {"chroot", "EPERM", bareRoot}, {"link_up", "EPERM", byRoot},
		{"clone3_user", "ENOSYS", control{kind: works}}, {"bpf", "EPERM", loosened()}, {"io_uring", "EPERM", control{kind: works}},
		{"userfaultfd", "EPERM", control{kind: works}}, {"perf", "EPERM", control{kind: works}}, {"keyctl", "EPERM", control{kind: works}},
		{"unshare_net", "EPERM", control{kind: because, why: "wants CAP_SYS_ADMIN, which no identity in the box has"}}, {"mount", "EPERM", control{kind: because, why: "wants CAP_SYS_ADMIN, which no identity in the box has"}},
	} {
		roads := uid1000
		switch {
		case c.kind == works || c.name == "bpf":
			roads = agentOnly // by seccomp
		case c.name == "setgid":
			roads = []string{"agent", "exec"}
		}
		all = append(all, attempt{name: c.name, roads: roads, probe: call(c.name), want: c.want, control: c.control})
	}
	return append(all, programs()...)
}

func loosened() control {
	return control{kind: because, why: "an unprivileged bpf is a kernel's setting; supervise.TestRefusedCalls shows the filter against no filter"}
}

// programs are what an image has lying about.
func programs() []attempt {
	byRoot := control{kind: granted, as: "root"}
	id := func(path string) func(*place) prober.Probe { return script(`test "$(` + path + ` -u)" = 0`) }
	caps := func(path string) func(*place) prober.Probe {
		return script(path + " -u >/dev/null && grep -q '^NoNewPrivs:.1' /proc/self/status")
	}
	_ = caps
	return []attempt{
		{name: "setuid root program", roads: agentOnly, probe: id("/var/lib/suid"), want: "exit 1", control: control{kind: works}},
		{name: "file-capability program", roads: agentOnly, probe: id("/var/lib/fcap"), want: "exit 1", control: control{kind: because, why: "the row above: no_new_privs stops both, and here it counts only for the agent"}},
		{name: "unshare -U", roads: agentOnly, probe: script("unshare -U true 2>/dev/null"), want: "exit 1", control: control{kind: works}},
		{name: "unshare -Ur, and connect", roads: []string{"exec"}, probe: nested, want: "exit 1", control: control{}},
		{name: "nft list ruleset", roads: uid1000, probe: script("nft list ruleset >/dev/null 2>&1"), want: "exit 1|exit 111|exit 3", control: byRoot},
		{name: "nft flush ruleset", roads: uid1000, probe: script("nft flush ruleset >/dev/null 2>&1"), want: "exit 1|exit 111|exit 3", control: bareRootOnly()},
		{name: "ip route add", roads: uid1000, probe: script("ip route add 198.51.100.0/24 dev lo 2>/dev/null"), want: "exit 2", control: bareRootOnly()},
		{name: "ip link set lo", roads: uid1000, probe: script("ip link set lo mtu 65536 2>/dev/null"), want: "exit 2", control: byRoot},
		{name: "ip addr add", roads: uid1000, probe: script("ip addr add 127.0.0.9/8 dev lo 2>/dev/null"), want: "exit 2", control: bareRootOnly()},
	}
}

func bareRootOnly() control { return control{kind: works, as: "root"} }

// nested is root of a user namespace of its own, in the same network namespace.
func nested(p *place) prober.Probe {
	inner := stream4(at(p.v4, 443)).Encode()
	return prober.Probe{Op: "shell", Address: at(p.v4, 443), Data: []byte(`unshare -Ur /rig/prober do '` + inner + `' | grep -qv ECONNREFUSED`)}
}
