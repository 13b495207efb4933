package main

import (
	"bufio"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"exitgate/policy"
)

// passwd is what the system knows of an agent's uid.
type passwd struct {
	policy.User
	gid uint32
}

// account reads the passwd entry of uid below root. A uid without one gets what container engines give it: its number
// as its name and group, and / as its home.
func account(root string, uid uint32) (p passwd, known bool) {
	unknown := passwd{policy.User{Name: strconv.FormatUint(uint64(uid), 10), Home: "/", Shell: "/bin/sh"}, uid}
	f, err := os.Open(filepath.Join("/", root, "etc/passwd"))
	if err != nil {
		return unknown, false
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if p, id, ok := parsePasswd(lines.Text()); ok && id == uid {
			return p, true
		}
	}
	return unknown, false
}

// parsePasswd reads one line of passwd(5): name:password:uid:gid:gecos:home:shell.
func parsePasswd(line string) (p passwd, uid uint32, ok bool) {
	fields := strings.Split(line, ":")
	if len(fields) != 7 {
		return p, 0, false
	}
	u, err1 := strconv.ParseUint(fields[2], 10, 32)
	g, err2 := strconv.ParseUint(fields[3], 10, 32)
	if err1 != nil || err2 != nil {
		return p, 0, false
	}
	p = passwd{policy.User{Name: fields[0], Home: fields[5], Shell: fields[6]}, uint32(g)}
	if p.Home == "" {
		p.Home = "/"
	}
	if p.Shell == "" {
		p.Shell = "/bin/sh"
	}
	return p, uint32(u), true
}
