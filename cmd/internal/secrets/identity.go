package secrets

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"exitgate/policy"
)

// identities finds every uid and gid that the agents of p may get. passwd and group count beside the policy: a
// container engine's exec gives uid 1000 the groups that /etc/group lists it in, whatever we start the agent with.
func identities(root string, p *policy.Policy) []Identity {
	passwd, group := table(root, "etc/passwd"), table(root, "etc/group")
	out := make([]Identity, 0, len(p.Agents))
	for _, a := range p.Agents {
		who := Identity{Agent: a.Name, UID: a.UID}
		if a.GID != nil {
			who.GIDs = append(who.GIDs, *a.GID)
		}
		var users []string
		for _, f := range passwd {
			if len(f) < 4 || f[2] != strconv.FormatUint(uint64(a.UID), 10) {
				continue
			}
			users = append(users, f[0])
			who.addGroup(f[3])
		}
		if a.GID == nil && len(users) == 0 {
			who.GIDs = append(who.GIDs, a.UID)
		}
		for _, f := range group {
			if len(f) >= 4 && slices.ContainsFunc(strings.Split(f[3], ","), func(m string) bool { return slices.Contains(users, m) }) {
				who.addGroup(f[2])
			}
		}
		out = append(out, who)
	}
	return out
}

func (who *Identity) addGroup(gid string) {
	n, err := strconv.ParseUint(gid, 10, 32)
	if err == nil && !slices.Contains(who.GIDs, uint32(n)) {
		who.GIDs = append(who.GIDs, uint32(n))
	}
}

// table splits a file of colon-separated lines; an unreadable one has none.
func table(root, name string) [][]string {
	b, err := os.ReadFile(filepath.Join("/", root, name))
	if err != nil {
		return nil
	}
	var rows [][]string
	for line := range strings.Lines(string(b)) {
		rows = append(rows, strings.Split(strings.TrimSpace(line), ":"))
	}
	return rows
}
