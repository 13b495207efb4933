package secrets

import (
	"encoding/binary"
	"fmt"
	"path/filepath"
	"slices"

	"exitgate/policy"
)

// Permission bits, as in one class of a mode and in an access list's entry.
const (
	mayRead   = 4
	mayWrite  = 2
	maySearch = 1
)

// Tags and layout of an access list: struct posix_acl_xattr_header and _entry of linux/posix_acl_xattr.h.
const (
	aclHeader = 4
	aclEntry  = 8
	aclUser   = 0x02
	aclGroup  = 0x08
	aclMask   = 0x10
)

// allows returns the bits that who could come to have. The kernel picks one class of a mode; an agent may be started
// with or without one of its groups, so here every class that could apply counts.
func (m *meta) allows(who Identity) uint32 {
	mode := m.stat.Mode
	bits := mode & 7
	if m.stat.Uid == who.UID {
		bits |= mode >> 6 & 7
	}
	if slices.Contains(who.GIDs, m.stat.Gid) {
		bits |= mode >> 3 & 7
	}
	return bits | m.listed(who)
}

// listed returns the bits that named entries of the access list give to who, less what the mask takes away.
func (m *meta) listed(who Identity) uint32 {
	var bits uint32
	mask := uint32(7)
	for i := aclHeader; i+aclEntry <= len(m.acl); i += aclEntry {
		tag := binary.LittleEndian.Uint16(m.acl[i:])
		perm := uint32(binary.LittleEndian.Uint16(m.acl[i+2:]))
		id := binary.LittleEndian.Uint32(m.acl[i+4:])
		switch {
		case tag == aclMask:
			mask = perm
		case tag == aclUser && id == who.UID, tag == aclGroup && slices.Contains(who.GIDs, id):
			bits |= perm
		}
	}
	return bits & mask & 7
}

// reaches reports whether who can come to look names up in n: it may search every directory from the root on.
func (n *node) reaches(who Identity) bool {
	for ; n != nil; n = n.dir {
		if n.meta.allows(who)&maySearch == 0 && n.meta.stat.Uid != who.UID {
			return false
		}
	}
	return true
}

func (who Identity) String() string { return fmt.Sprintf("agent %q (uid %d)", who.Agent, who.UID) }

// replaceable says how who could put something else in the place of a name that the walk looked up; nil if it cannot.
// In a sticky directory (/tmp) only an entry's owner can replace it; but if the file is missing for a moment anybody could put
// another there, which its reader notices by the owner if it looks. absent says that this counts.
func (t *trail) replaceable(who Identity, absent bool) *problem {
	for i, entry := range t.lookups {
		dir := entry.dir
		if dir.meta.ro || !dir.reaches(who) {
			continue
		}
		if dir.meta.stat.Uid == who.UID {
			return &problem{fmt.Sprintf("directory %s belongs to %s", dir.path, who), "keep it in a directory that only root can change"}
		}
		const change = mayWrite | maySearch
		if dir.meta.allows(who)&change != change {
			continue
		}
		last := i == len(t.lookups)-1
		if !dir.meta.sticky() || last && absent || entry.meta.stat.Uid == who.UID {
			return &problem{fmt.Sprintf("directory %s can be written by %s", dir.path, who), "keep it in a directory that only root can change"}
		}
	}
	return nil
}

// shielded reports whether a directory closed to who keeps it from the target, which has no other name elsewhere.
func (t *trail) shielded(who Identity) bool {
	return !t.target().dir.reaches(who) && t.target().meta.stat.Nlink == 1
}

// readable says how who could come to read or change the target.
func (t *trail) readable(who Identity) *problem {
	file := t.target()
	mend := fmt.Sprintf("`chown root:root %s && chmod 0400 %[1]s`, or mount it so (Kubernetes: defaultMode: 0400)", file.path)
	switch bits := file.meta.allows(who); {
	case t.shielded(who):
		return nil
	case file.meta.stat.Uid == who.UID: // who may then change the mode as well
		return &problem{fmt.Sprintf("%s belongs to %s, which could read it", file.path, who), mend}
	case bits&mayRead != 0:
		return &problem{fmt.Sprintf("%s can be read by %s", file.path, who), mend}
	case bits&mayWrite != 0:
		return &problem{fmt.Sprintf("%s can be written by %s", file.path, who), mend}
	}
	return nil
}

// writable says how who could change the target's bytes: what matters for a program.
func (t *trail) writable(who Identity) *problem {
	file := t.target()
	mend := fmt.Sprintf("`chown root:root %s && chmod go-w %[1]s`, or mount it read-only", file.path)
	switch {
	case file.meta.ro, t.shielded(who):
		return nil
	case file.meta.stat.Uid == who.UID:
		return &problem{fmt.Sprintf("%s belongs to %s, which could change it", file.path, who), mend}
	case file.meta.allows(who)&mayWrite != 0:
		return &problem{fmt.Sprintf("%s can be written by %s", file.path, who), mend}
	}
	return nil
}

// Alterable says how an agent of p could change what is read from a file that is there; nil: none can. root is where
// etc/passwd and etc/group are, "" is /. A file that cannot be looked at is an error too.
func Alterable(root, file string, p *policy.Policy) error {
	file, err := filepath.Abs(file)
	if err != nil {
		return err
	}
	t, err := walk("/", file)
	if err != nil {
		return err
	}
	defer t.close()
	for _, who := range identities(root, p) {
		for _, found := range []*problem{t.replaceable(who, false), t.writable(who)} {
			if found != nil {
				return fmt.Errorf("%s; %s", found.what, found.mend)
			}
		}
	}
	return nil
}
