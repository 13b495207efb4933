package main

import (
	"bufio"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"exitgate/cmd/internal/engine"
)

// account reads the passwd entry of uid below root. A uid without one gets what container engines give it: the uid as
// its group, and / as its home.
func account(root string, uid uint32) engine.Account {
	unknown := engine.Account{Name: strconv.FormatUint(uint64(uid), 10), Home: "/", Shell: "/bin/sh", GID: uid}
	f, err := os.Open(filepath.Join("/", root, "etc/passwd"))
	if err != nil {
		return unknown
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if a, id, ok := parseAccount(lines.Text()); ok && id == uid {
			return a
		}
	}
	return unknown
}

// parseAccount reads one line of passwd(5): name:password:uid:gid:gecos:home:shell.
func parseAccount(line string) (a engine.Account, uid uint32, ok bool) {
	fields := strings.Split(line, ":")
	if len(fields) != 7 {
		return a, 0, false
	}
	u, err1 := strconv.ParseUint(fields[2], 10, 32)
	g, err2 := strconv.ParseUint(fields[3], 10, 32)
	if err1 != nil || err2 != nil {
		return a, 0, false
	}
	a = engine.Account{Name: fields[0], Home: fields[5], Shell: fields[6], GID: uint32(g)}
	if a.Home == "" {
		a.Home = "/"
	}
	if a.Shell == "" {
		a.Shell = "/bin/sh"
	}
	return a, uint32(u), true
}
