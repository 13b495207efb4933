package secrets

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"exitgate/policy"

	"golang.org/x/sys/unix"
)

// TestWhoCouldReadIt puts a secret into files and directories with real owners and modes. err is what the message says
// after the position and the credential; "" means that the secret is taken.
func TestWhoCouldReadIt(t *testing.T) {
	asRoot(t)
	const fix = "; `chown root:root /run/secret && chmod 0400 /run/secret`, or mount it so (Kubernetes: defaultMode: 0400)"
	const move = "; keep it in a directory that only root can change"
	const who = `agent "claude" (uid 1000)`
	for _, c := range []struct {
		name string
		make func(t *testing.T, root string)
		err  string
	}{
		{"root, 0400", func(t *testing.T, root string) { put(t, root, "run/secret", fakeOne, 0, 0, 0o400) }, ""},
		{"another uid's, 0400", func(t *testing.T, root string) { put(t, root, "run/secret", fakeOne, 2000, 2000, 0o400) }, ""},
		{"group of somebody else, 0440", func(t *testing.T, root string) { put(t, root, "run/secret", fakeOne, 0, 2000, 0o440) }, ""},
		{"others read, 0444", func(t *testing.T, root string) { put(t, root, "run/secret", fakeOne, 0, 0, 0o444) }, "/run/secret can be read by " + who + fix},
		{"others write, 0602", func(t *testing.T, root string) { put(t, root, "run/secret", fakeOne, 0, 0, 0o602) }, "/run/secret can be written by " + who + fix},
		{"agent's, 0400", func(t *testing.T, root string) { put(t, root, "run/secret", fakeOne, agentID, agentID, 0o400) }, "/run/secret belongs to " + who + ", which could read it" + fix},
		{"agent's, 0000", func(t *testing.T, root string) { put(t, root, "run/secret", fakeOne, agentID, 0, 0) }, "/run/secret belongs to " + who + ", which could read it" + fix},
		{"agent's group, 0440", func(t *testing.T, root string) { put(t, root, "run/secret", fakeOne, 0, agentID, 0o440) }, "/run/secret can be read by " + who + fix},
		{"agent's group, 0400", func(t *testing.T, root string) { put(t, root, "run/secret", fakeOne, 0, agentID, 0o400) }, ""},
		{"agent's, in a closed directory", func(t *testing.T, root string) {
			put(t, root, "run/secret", fakeOne, agentID, agentID, 0o400)
			own(t, root, "run", 0, 0, 0o700)
		}, ""},
		{"agent's, in a closed directory, with another name", func(t *testing.T, root string) {
			put(t, root, "run/secret", fakeOne, agentID, agentID, 0o400)
			own(t, root, "run", 0, 0, 0o700)
			if err := os.Link(filepath.Join(root, "run/secret"), filepath.Join(root, "elsewhere")); err != nil {
				t.Fatal(err)
			}
		}, "/run/secret belongs to " + who + ", which could read it" + fix},
		{"in the agent's directory", func(t *testing.T, root string) {
			put(t, root, "run/secret", fakeOne, 0, 0, 0o400)
			own(t, root, "run", agentID, 0, 0o500)
		}, "directory /run belongs to " + who + move},
		{"in the agent's directory, which it has closed", func(t *testing.T, root string) {
			put(t, root, "run/secret", fakeOne, 0, 0, 0o400)
			own(t, root, "run", agentID, 0, 0)
		}, "directory /run belongs to " + who + move},
		{"below a directory that all may write", func(t *testing.T, root string) {
			put(t, root, "run/mine/secret", fakeOne, 0, 0, 0o400)
			own(t, root, "run", 0, 0, 0o777)
			link(t, root, "run/mine/secret", "s")
		}, "directory /run can be written by " + who + move},
		{"in a directory that all may write", func(t *testing.T, root string) {
			put(t, root, "run/secret", fakeOne, 0, 0, 0o400)
			own(t, root, "run", 0, 0, 0o777)
		}, "directory /run can be written by " + who + move},
		{"in a directory of the agent's group", func(t *testing.T, root string) {
			put(t, root, "run/secret", fakeOne, 0, 0, 0o400)
			own(t, root, "run", 0, agentID, 0o775)
		}, "directory /run can be written by " + who + move},
		{"in a sticky directory", func(t *testing.T, root string) {
			put(t, root, "run/secret", fakeOne, 0, 0, 0o400)
			own(t, root, "run", 0, 0, 0o777|os.ModeSticky)
		}, "directory /run can be written by " + who + move},
		{"below a sticky directory", func(t *testing.T, root string) {
			put(t, root, "run/mine/secret", fakeOne, 0, 0, 0o400)
			own(t, root, "run", 0, 0, 0o777|os.ModeSticky)
			link(t, root, "run/mine/secret", "s")
		}, ""},
		{"below the agent's directory in a sticky one", func(t *testing.T, root string) {
			put(t, root, "run/mine/secret", fakeOne, 0, 0, 0o400)
			own(t, root, "run", 0, 0, 0o777|os.ModeSticky)
			own(t, root, "run/mine", agentID, 0, 0o755)
			link(t, root, "run/mine/secret", "s")
		}, "directory /run can be written by " + who + move},
		{"far below the agent's directory", func(t *testing.T, root string) {
			put(t, root, "run/a/b/secret", fakeOne, 0, 0, 0o400)
			own(t, root, "run/a", agentID, 0, 0o755)
			link(t, root, "/run/a/b/secret", "s")
		}, "directory /run/a belongs to " + who + move},
		{"below the agent's directory in a closed one", func(t *testing.T, root string) {
			put(t, root, "run/a/b/secret", fakeOne, 0, 0, 0o400)
			own(t, root, "run/a", agentID, 0, 0o755)
			own(t, root, "run", 0, 0, 0o700)
			link(t, root, "/run/a/b/secret", "s")
		}, ""},
		{"through a link in the agent's directory", func(t *testing.T, root string) {
			put(t, root, "safe/secret", fakeOne, 0, 0, 0o400)
			link(t, root, "/safe/secret", "run/secret")
			own(t, root, "run", agentID, 0, 0o755)
		}, "directory /run belongs to " + who + move},
		{"through a link of the agent's in a sticky directory", func(t *testing.T, root string) {
			put(t, root, "safe/secret", fakeOne, 0, 0, 0o400)
			link(t, root, "/tmp/link/secret", "s")
			link(t, root, "/safe", "tmp/link")
			own(t, root, "tmp", 0, 0, 0o777|os.ModeSticky)
			if err := os.Lchown(filepath.Join(root, "tmp/link"), agentID, agentID); err != nil {
				t.Fatal(err)
			}
		}, "directory /tmp can be written by " + who + move},
		{"a secrets volume, whose directory is open and sticky", func(t *testing.T, root string) {
			put(t, root, "run/..2024/secret", fakeOne, 0, 0, 0o400)
			link(t, root, "..2024", "run/..data")
			link(t, root, "..data/secret", "run/secret")
			own(t, root, "run", 0, 0, 0o777|os.ModeSticky)
		}, ""},
		{"a secrets volume with fsGroup", func(t *testing.T, root string) {
			put(t, root, "run/..2024/secret", fakeOne, 0, agentID, 0o440)
			link(t, root, "..2024", "run/..data")
			link(t, root, "..data/secret", "run/secret")
		}, "/run/..2024/secret can be read by " + who + "; `chown root:root /run/..2024/secret && chmod 0400 /run/..2024/secret`, or mount it so (Kubernetes: defaultMode: 0400)"},
		{"..", func(t *testing.T, root string) {
			put(t, root, "safe/secret", fakeOne, 0, 0, 0o400)
			link(t, root, "../../../run/../safe/./secret", "run/secret")
		}, ""},
		{"missing", func(t *testing.T, root string) {}, "/run/secret does not exist; put the credential into /run/secret, owned by root, mode 0400"},
		{"dangling link", func(t *testing.T, root string) { link(t, root, "nowhere", "run/secret") }, "/run/secret does not exist; put the credential into /run/secret, owned by root, mode 0400"},
		{"circle", func(t *testing.T, root string) { link(t, root, "secret", "run/secret") }, "/run/secret is a symbolic link that leads in a circle; name the file itself"},
		{"directory", func(t *testing.T, root string) { put(t, root, "run/secret/x", fakeOne, 0, 0, 0o400) }, "/run/secret is a directory; name the file in it; a bind mount of a missing file makes a directory"},
		{"FIFO", func(t *testing.T, root string) {
			put(t, root, "run/x", "", 0, 0, 0o400)
			if err := unix.Mkfifo(filepath.Join(root, "run/secret"), 0o400); err != nil {
				t.Fatal(err)
			}
		}, "/run/secret is not a regular file; write the credential into a file, or pass it as `fd:N`"},
		{"FIFO in the middle", func(t *testing.T, root string) {
			if err := unix.Mkfifo(filepath.Join(root, "run"), 0o400); err != nil {
				t.Fatal(err)
			}
		}, "/run/secret cannot be read: not a directory; name a file that only root can read"},
		{"socket", func(t *testing.T, root string) {
			put(t, root, "run/x", "", 0, 0, 0o400)
			if err := unix.Mknod(filepath.Join(root, "run/secret"), unix.S_IFSOCK|0o400, 0); err != nil {
				t.Fatal(err)
			}
		}, "/run/secret is not a regular file; write the credential into a file, or pass it as `fd:N`"},
	} {
		t.Run(c.name, func(t *testing.T) {
			root := newRoot(t)
			c.make(t, root)
			from := "file:/run/secret"
			if _, err := os.Lstat(filepath.Join(root, "s")); err == nil {
				from = "file:/s"
			}
			value, err := load(t, Options{Root: root}, one(from))
			want := c.err
			if want != "" {
				want = `policy.yaml:7:5: credential "anthropic": ` + want
			}
			if err != want || (err == "") != (value == fakeOne) {
				t.Errorf("got  %s\nwant %s", err, want)
			}
		})
	}
}

// TestRealPath reads through the real root, with what is really above a temporary directory: /tmp, sticky.
func TestRealPath(t *testing.T) {
	asRoot(t)
	dir := newRoot(t)
	own(t, dir, "..", 0, 0, 0o755) // the test's own directory, which is closed and would shield everything
	put(t, dir, "secret", fakeOne+"\n", 0, 0, 0o400)
	if value, err := load(t, Options{}, one("file:"+dir+"/secret")); value != fakeOne {
		t.Error(err)
	}
	own(t, dir, "secret", 0, 0, 0o404)
	if _, err := load(t, Options{}, one("file:"+dir+"/secret")); !strings.Contains(err, "can be read by") {
		t.Errorf("a file open to all: %q", err)
	}
}

// TestGroupsOfTheAgent finds the groups that an engine's exec would give the agent.
func TestGroupsOfTheAgent(t *testing.T) {
	asRoot(t)
	gid := uint32(3000)
	for _, c := range []struct {
		name, passwd, group string
		gid                 *uint32
		file                int
		refused             bool
	}{
		{"no passwd: the uid", "", "", nil, agentID, true},
		{"no passwd: another", "", "", nil, 3000, false},
		{"gid of the policy", "", "", &gid, 3000, true},
		{"primary group", "claude:x:1000:3000::/home/claude:/bin/sh\n", "", nil, 3000, true},
		{"primary group 0", "claude:x:1000:0::/home/claude:/bin/sh\n", "", nil, 0, true},
		{"member of a group", "claude:x:1000:1000::/:/bin/sh\n", "docker:x:3000:other,claude\n", nil, 3000, true},
		{"not a member", "claude:x:1000:1000::/:/bin/sh\n", "docker:x:3000:other,claudette\n", nil, 3000, false},
		{"second name of the uid", "root:x:0:0::/:/bin/sh\nclaude:x:1000:1000::/:/bin/sh\nalias:x:1000:1000::/:/bin/sh\n", "docker:x:3000:alias\n", nil, 3000, true},
		{"nonsense", "claude:x\n:::::\nclaude:x:1000:-1::\n", "docker\nx:x:70000000000:claude\n", nil, 3000, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			root := newRoot(t)
			put(t, root, "etc/passwd", c.passwd, 0, 0, 0o644)
			put(t, root, "etc/group", c.group, 0, 0, 0o644)
			put(t, root, "run/secret", fakeOne, 0, c.file, 0o440)
			p := one("file:/run/secret")
			p.Agents[0].GID = c.gid
			if _, err := load(t, Options{Root: root}, p); (err != "") != c.refused {
				t.Errorf("error %q, want one: %v", err, c.refused)
			}
		})
	}
}

func TestEveryAgentCounts(t *testing.T) {
	asRoot(t)
	root := newRoot(t)
	put(t, root, "run/secret", fakeOne, 2000, 0, 0o400)
	p := one("file:/run/secret")
	if value, err := load(t, Options{Root: root}, p); value != fakeOne {
		t.Fatal(err)
	}
	p.Agents = append(p.Agents, policy.Agent{Name: "ci", UID: 2000})
	if _, err := load(t, Options{Root: root}, p); !strings.Contains(err, `belongs to agent "ci" (uid 2000)`) {
		t.Errorf("%q", err)
	}
}

// accessList is the extended attribute of an access list: owner, one named user, group, mask and others.
func accessList(uid uint32, user, mask uint16) []byte {
	b := binary.LittleEndian.AppendUint32(nil, 2)
	for _, e := range []struct {
		tag, perm uint16
		id        uint32
	}{{0x01, 6, ^uint32(0)}, {aclUser, user, uid}, {0x04, 0, ^uint32(0)}, {aclMask, mask, ^uint32(0)}, {0x20, 0, ^uint32(0)}} {
		b = binary.LittleEndian.AppendUint16(b, e.tag)
		b = binary.LittleEndian.AppendUint16(b, e.perm)
		b = binary.LittleEndian.AppendUint32(b, e.id)
	}
	return b
}

func TestAccessLists(t *testing.T) {
	asRoot(t)
	for _, c := range []struct {
		name       string
		uid        uint32
		perm, mask uint16
		err        string
	}{
		{"the agent may read", agentID, 4, 4, "can be read by"},
		{"masked", agentID, 4, 0, ""},
		{"somebody else may read", 2000, 4, 4, ""},
		{"the agent may write", agentID, 2, 7, "can be written by"},
	} {
		t.Run(c.name, func(t *testing.T) {
			root := newRoot(t)
			put(t, root, "run/secret", fakeOne, 0, 0, 0o600)
			err := unix.Setxattr(filepath.Join(root, "run/secret"), "system.posix_acl_access", accessList(c.uid, c.perm, c.mask), 0)
			if err == unix.EOPNOTSUPP {
				// The file system has none, so nobody can be listed; the reader itself is still put to the test.
				m := meta{acl: accessList(c.uid, c.perm, c.mask)}
				m.stat.Mode = 0o600
				if got := m.allows(Identity{UID: agentID}) != 0; got != (c.err != "") {
					t.Errorf("allows something: %v", got)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			_, got := load(t, Options{Root: root}, one("file:/run/secret"))
			if (got == "") != (c.err == "") || !strings.Contains(got, c.err) {
				t.Errorf("got %q, want %q", got, c.err)
			}
		})
	}
}

// TestWithoutTheCapability reads a file that root does not own, as a container's root that got no DAC_READ_SEARCH.
func TestWithoutTheCapability(t *testing.T) {
	asRoot(t)
	root := newRoot(t)
	put(t, root, "run/secret", fakeOne, 2000, 2000, 0o400)
	put(t, root, "run/mine", fakeOne, 0, 0, 0o400)
	type result struct {
		v Value
		p *problem
	}
	results := make(chan result, 2)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread without its capabilities ends with the goroutine
		h := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var none [2]unix.CapUserData
		if err := unix.Capset(&h, &none[0]); err != nil {
			t.Error(err)
		}
		for _, name := range []string{"/run/secret", "/run/mine"} {
			v, _, p := readFile(root, name, "", nil)
			results <- result{v, p}
		}
	}()
	theirs, mine := <-results, <-results
	if theirs.p == nil || theirs.p.what != "/run/secret cannot be read" || !strings.Contains(theirs.p.mend, "DAC_READ_SEARCH") {
		t.Errorf("another uid's: %+v", theirs.p)
	}
	if mine.p != nil || string(mine.v.Reveal()) != fakeOne {
		t.Errorf("root's own: %+v", mine.p)
	}
}

// TestSwapRace has an attacker swap a directory between a good one and its own while the file is read. What is read
// must be what was checked: the attacker's bytes never come out.
func TestSwapRace(t *testing.T) {
	asRoot(t)
	root := newRoot(t)
	put(t, root, "good/secret", fakeOne, 0, 0, 0o400)
	put(t, root, "evil/secret", "evil", agentID, agentID, 0o444)
	own(t, root, "evil", agentID, agentID, 0o755)
	link(t, root, "good", "current")
	stop := make(chan struct{})
	var swapper sync.WaitGroup
	swapper.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			next := filepath.Join(root, "next")
			_ = os.Symlink([]string{"good", "evil"}[i%2], next)
			_ = os.Rename(next, filepath.Join(root, "current"))
		}
	})
	who := []Identity{{Agent: "claude", UID: agentID}}
	good, bad := 0, 0
	for end := time.Now().Add(300 * time.Millisecond); time.Now().Before(end); {
		switch v, _, p := readFile(root, "/current/secret", "", who); {
		case p != nil:
			bad++
		case !bytes.Equal(v.Reveal(), []byte(fakeOne)):
			t.Fatalf("read what was not checked")
		default:
			good++
		}
	}
	close(stop)
	swapper.Wait()
	if good == 0 || bad == 0 {
		t.Errorf("%d good and %d bad reads: the race was not run", good, bad)
	}
}

// TestWalkLeaksNothing counts descriptors after every way out of a walk.
func TestWalkLeaksNothing(t *testing.T) {
	asRoot(t)
	root := newRoot(t)
	put(t, root, "a/b/secret", fakeOne, 0, 0, 0o400)
	link(t, root, "/a/b", "a/link")
	link(t, root, "circle", "circle")
	count := func() int {
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	before := count()
	for range 50 {
		for _, name := range []string{"/a/b/secret", "/a/link/secret", "/a/link/../b/secret", "/a/missing", "/circle", "/a", "/", "/a/b/secret/x"} {
			_, _, _ = readFile(root, name, "", []Identity{{UID: agentID}})
			_ = fingerprint(root, name)
			_ = Alterable(root, filepath.Join(root, name), one("file:/x"))
		}
	}
	if after := count(); after > before+2 { // the runtime may open a descriptor or two meanwhile
		t.Errorf("%d descriptors before, %d after", before, after)
	}
}

// A policy is public: what counts is who could change it.
func TestAlterable(t *testing.T) {
	asRoot(t)
	p := &policy.Policy{Agents: []policy.Agent{{Name: "claude", UID: agentID}}}
	for _, c := range []struct {
		name string
		make func(root string)
		err  string
	}{
		{"root's, 0644", func(root string) { put(t, root, "etc/policy", "x", 0, 0, 0o644) }, ""},
		{"root's, in a sticky directory", func(root string) {
			put(t, root, "etc/policy", "x", 0, 0, 0o644)
			own(t, root, "etc", 0, 0, 0o777|os.ModeSticky)
		}, ""},
		{"the agent's, in a sticky directory", func(root string) {
			put(t, root, "etc/policy", "x", agentID, agentID, 0o644)
			own(t, root, "etc", 0, 0, 0o777|os.ModeSticky)
		}, "can be written by"},
		{"the agent's", func(root string) { put(t, root, "etc/policy", "x", agentID, agentID, 0o444) }, "belongs to"},
		{"the agent's, mounted read-only", func(root string) {
			put(t, root, "etc/policy", "x", agentID, agentID, 0o644)
			mountReadOnly(t, filepath.Join(root, "etc/policy"))
		}, ""},
		{"everybody's", func(root string) { put(t, root, "etc/policy", "x", 0, 0, 0o646) }, "can be written by"},
		{"everybody's, in a closed directory", func(root string) {
			put(t, root, "etc/policy", "x", 0, 0, 0o646)
			own(t, root, "etc", 0, 0, 0o700)
		}, ""},
		{"in a directory of the agent's", func(root string) {
			put(t, root, "etc/policy", "x", 0, 0, 0o644)
			own(t, root, "etc", agentID, 0, 0o755)
		}, "/etc belongs to"},
		{"in a directory of the agent's, mounted read-only", func(root string) {
			put(t, root, "etc/policy", "x", 0, 0, 0o644)
			own(t, root, "etc", agentID, 0, 0o755)
			mountReadOnly(t, filepath.Join(root, "etc"))
		}, ""},
		{"not there", func(string) {}, "no such file"},
	} {
		t.Run(c.name, func(t *testing.T) {
			root, err := os.MkdirTemp("", "alterable") // t.TempDir is closed to others
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { os.RemoveAll(root) })
			own(t, root, "", 0, 0, 0o755)
			c.make(root)
			err = Alterable(root, filepath.Join(root, "etc/policy"), p)
			if c.err == "" && err != nil || c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)) {
				t.Errorf("%v, want %q", err, c.err)
			}
		})
	}
}

// mountReadOnly binds a file onto itself until the test ends.
func mountReadOnly(t *testing.T, path string) {
	t.Helper()
	if err := unix.Mount(path, path, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(path, unix.MNT_DETACH) })
	if err := unix.Mount("", path, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
}
