package enclosure

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseBind(t *testing.T) {
	dir := t.TempDir()
	real, err := filepath.EvalSymlinks(dir)
	if err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(real, "link")
	if err := os.Symlink("/run", link); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		text string
		want Bind
		says string
	}{
		{real, Bind{Path: real}, ""},
		{real + "/", Bind{Path: real}, ""},
		{real + ":ro", Bind{Path: real, ReadOnly: true}, ""},
		{link, Bind{}, "symbolic link"},
		{link + "/x", Bind{}, "no such file"},
		{real + "/missing", Bind{}, "no such file"},
		{"relative", Bind{}, "whole path"},
		{"/", Bind{}, "all of /"},
		{"", Bind{}, "whole path"},
	} {
		got, err := ParseBind(c.text)
		switch {
		case c.says == "" && (err != nil || got != c.want):
			t.Errorf("%q: %+v, %v", c.text, got, err)
		case c.says != "" && (err == nil || !strings.Contains(err.Error(), c.says)):
			t.Errorf("%q: error %v, want one with %q", c.text, err, c.says)
		}
	}
}

func TestDrawRefusesWhatShowsTheHidden(t *testing.T) {
	home, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	work := filepath.Join(home, "work")
	if err := os.Mkdir(work, 0o755); err != nil {
		t.Fatal(err)
	}
	for dir, allowed := range map[string]bool{"/": false, "/run": false, "/var": false, "/proc/1": false, "/sys/kernel": false, home: false, filepath.Dir(home): false, work: true} {
		if p, err := Draw(Wish{Dir: dir, Home: home}); (err == nil) != allowed {
			t.Errorf("in %s: %+v, %v", dir, p, err)
		}
	}
	if _, err := Draw(Wish{Dir: home, Home: home, Binds: []Bind{{Path: home}}}); err != nil {
		t.Errorf("insisted on: %v", err)
	}
	p, err := Draw(Wish{Dir: work, Home: home, Binds: []Bind{{Path: work, ReadOnly: true}, {Path: home, ReadOnly: true}}})
	if err != nil {
		t.Fatal(err)
	}
	// Parents first, and of two for one path the working directory last: it is the one on top.
	if diff := cmp.Diff([]Bind{{home, true}, {work, true}, {work, false}}, p.Binds); diff != "" {
		t.Error(diff)
	}
}

func TestCover(t *testing.T) {
	const table = `Num       RefCount Protocol Flags    Type St Inode Path
0000000000000000: 00000002 00000000 00010000 0001 01 100 /run/dbus/system_bus_socket
0000000000000000: 00000002 00000000 00010000 0001 01 101 /opt/with space.sock
0000000000000000: 00000002 00000000 00010000 0001 01 102 /opt/own.sock
0000000000000000: 00000002 00000000 00010000 0001 01 103 /opt/named.sock
0000000000000000: 00000003 00000000 00000000 0001 03 104
0000000000000000: 00000002 00000000 00010000 0001 01 105 @/opt/abstract
0000000000000000: 00000002 00000000 00010000 0001 01 106 /optional/x.sock
0000000000000000: 00000002 00000000 00010000 0001 01 107 /opt/app/x.sock
0000000000000000: 00000002 00000000 00010000 0001 03 108 /opt//app/./x.sock
`
	p := &Plan{Binds: []Bind{{Path: "/opt/named.sock"}}, Sockets: []string{"/opt/own.sock"}}
	if got, err := p.cover(table); err != nil || !slices.Equal(got, []string{"/opt/with space.sock", "/opt/app/x.sock"}) {
		t.Errorf("%q, %v", got, err)
	}
}

// Sockets in what the agent works in are found however they were named when they were bound, and those that nobody has are left.
func TestCoverFindsSockets(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	deep := filepath.Join(dir, strings.Repeat("d", 120)) // a name no socket's address can hold
	if err := errors.Join(os.Mkdir(deep, 0o755), os.Symlink(deep, dir+"/link")); err != nil {
		t.Fatal(err)
	}
	listen := func(network, name string) interface{ Close() error } {
		t.Helper()
		if network == "unixgram" {
			c, err := net.ListenUnixgram(network, &net.UnixAddr{Name: name, Net: network})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { c.Close() })
			return c
		}
		l, err := net.ListenUnix(network, &net.UnixAddr{Name: name, Net: network})
		if err != nil {
			t.Fatal(err)
		}
		l.SetUnlinkOnClose(false)
		t.Cleanup(func() { l.Close() })
		return l
	}
	t.Chdir(dir)
	listen("unix", "relative.sock")
	listen("unix", dir+"//slash.sock")
	listen("unix", dir+"/link/linked.sock")
	listen("unixgram", dir+"/datagram.sock")
	listen("unixpacket", dir+"/packet.sock")
	listen("unix", dir+"/own.sock")
	listen("unix", dir+"/left.sock").Close()
	p := &Plan{Binds: []Bind{{Path: dir}}, Sockets: []string{dir + "/own.sock"}}
	got, err := p.cover("")
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(got)
	want := []string{dir + "/datagram.sock", deep + "/linked.sock", dir + "/packet.sock", dir + "/relative.sock", dir + "/slash.sock"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	listen("unix", "caf\xe9.sock")
	if _, err := p.cover(""); err == nil || !strings.Contains(err.Error(), "UTF-8") {
		t.Errorf("a name that cannot be passed on: %v", err)
	}
}
