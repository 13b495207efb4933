package firewall

import (
	"errors"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"exitgate/netns/netnstest"
)

// bench is a kernel to try, and a foreign hand in it.
type bench struct {
	Kernel
	// meddle changes the table as another process would: nft commands for the
	// real kernel, a function for the fake.
	meddle func(t *testing.T, nft string, fake func(*State))
}

// onBoth runs a test on the fake and on the real kernel.
func onBoth(t *testing.T, f func(t *testing.T, b bench)) {
	t.Run("fake", func(t *testing.T) {
		k := NewFake()
		f(t, bench{k, func(_ *testing.T, _ string, change func(*State)) { k.Meddle(change) }})
	})
	t.Run("kernel", func(t *testing.T) {
		requireNft(t)
		ns := netnstest.New(t)
		f(t, bench{openKernel(t, ns, true), func(t *testing.T, commands string, _ func(*State)) { nft(t, ns, commands, "-f", "-") }})
	})
}

// text is the state without what differs between fake and kernel by nature: the
// digests, which are over different things.
func (b bench) text(t testing.TB) string {
	t.Helper()
	s, err := b.Dump()
	if err != nil {
		t.Fatal(err)
	}
	return regexp.MustCompile(`digest \S+`).ReplaceAllString(s.String(), "digest x")
}

var (
	somePorts   = Contents{Published: []uint16{1, 2}}
	someMark    = Contents{OwnLoopback: []uint32{1000}}
	foreignMark = newMarkElement(1000, 5)
)

func newMarkElement(uid, mark uint32) element {
	e := newElement(setLoopbackMark, native(uid))
	copy(e.value[:], native(mark))
	return e
}

func manyPorts(n int) Contents {
	var c Contents
	for i := range n {
		c.Published = append(c.Published, uint16(i+1))
	}
	return c
}

// commitCases are what a kernel does with batches. Each is run on the fake and
// on the real kernel, which must end in the same state.
var commitCases = []struct {
	name  string
	setup Contents // installed before; nil members: lockdown
	batch Batch
	want  error
	keeps bool // the state is what it was before the batch
}{
	{name: "nothing", keeps: true},
	{name: "install again", batch: Batch{Install: record}, setup: fullContents(), keeps: true},
	{name: "install with elements", batch: Batch{Install: record, add: fullContents().elements()}},
	{name: "add", batch: Batch{add: fullContents().elements()}},
	{name: "add what is there", setup: fullContents(), batch: Batch{add: fullContents().elements()}, keeps: true},
	{name: "delete", setup: fullContents(), batch: Batch{del: fullContents().elements()}},
	{name: "delete what is not there", setup: somePorts, batch: Batch{del: manyPorts(3).elements()}, want: unix.ENOENT, keeps: true},
	{name: "all or nothing", batch: Batch{add: fullContents().elements(), del: somePorts.elements()}, want: unix.ENOENT, keeps: true},
	{name: "fill a set", batch: Batch{add: manyPorts(64).elements()}},
	{name: "one too many", batch: Batch{add: manyPorts(65).elements()}, want: ErrSetFull, keeps: true},
	{name: "deleting makes room", setup: manyPorts(64), batch: Batch{del: manyPorts(1).elements(), add: Contents{Published: []uint16{100}}.elements()}},
	{name: "another value for a key", setup: someMark, batch: Batch{del: []element{newMarkElement(1000, 1000)}, add: []element{foreignMark}}},
	{name: "remove what is not there", batch: Batch{Install: record, Remove: []Object{{"chain", "nosuch"}}}, want: unix.ENOENT, keeps: true},
}

func TestCommitCases(t *testing.T) {
	for _, tc := range commitCases {
		t.Run(tc.name, func(t *testing.T) {
			var states []string
			onBoth(t, func(t *testing.T, b bench) {
				if err := b.Commit(Batch{Install: record, add: tc.setup.elements()}); err != nil {
					t.Fatal(err)
				}
				before := b.text(t)
				err := b.Commit(tc.batch)
				if !errors.Is(err, tc.want) || (err == nil) != (tc.want == nil) {
					t.Errorf("error %v, want %v", err, tc.want)
				}
				after := b.text(t)
				if (before == after) != tc.keeps {
					t.Errorf("state kept: %v, want %v:\n%s", before == after, tc.keeps, cmp.Diff(before, after))
				}
				states = append(states, after)
			})
			if len(states) == 2 && states[0] != states[1] {
				t.Errorf("fake (-) and kernel (+) differ:\n%s", cmp.Diff(states[0], states[1]))
			}
		})
	}
}

func TestCommitWithoutTable(t *testing.T) {
	onBoth(t, func(t *testing.T, b bench) {
		if err := b.Commit(Batch{add: somePorts.elements()}); !errors.Is(err, unix.ENOENT) {
			t.Errorf("error %v, want ENOENT", err)
		}
		if got := b.text(t); got != "no table\n" {
			t.Errorf("state %q, want no table", got)
		}
	})
}

// TestStateText: what a dump prints can be read back, and prints the same.
func TestStateText(t *testing.T) {
	onBoth(t, func(t *testing.T, b bench) {
		for _, c := range []Contents{{}, fullContents()} {
			if err := NewWriter(b.Kernel).Install(c); err != nil {
				t.Fatal(err)
			}
			s, err := b.Dump()
			if err != nil {
				t.Fatal(err)
			}
			f, err := ParseFake(s.String())
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(s.String(), f.String()); d != "" {
				t.Errorf("read back (-want +got):\n%s", d)
			}
			if d := cmp.Diff(c.Normalize(), s.Contents(), exact); d != "" {
				t.Errorf("contents (-want +got):\n%s", d)
			}
		}
	})
	for _, bad := range []string{"set x", "chain input hook", "element egress4 1", "whatever x", "chain x type filter hook y"} {
		if s, err := ParseState(bad); err == nil {
			t.Errorf("%q was read as %q", bad, s)
		}
	}
}

// installCases are tables that Install finds in its place.
var installCases = []struct {
	name string
	nft  string
	fake func(*State)
	want error
}{
	{name: "nothing", nft: "", fake: func(*State) {}},
	{name: "an empty table", nft: "add table inet exitgate", fake: func(s *State) { s.Present = true }},
	{
		name: "a stranger's chain",
		nft:  "add table inet exitgate\nadd chain inet exitgate mine",
		fake: func(s *State) {
			s.Present, s.Chains = true, []ChainState{{Name: "mine", Digest: "-"}}
		},
		want: ErrForeign,
	},
	{
		name: "a stranger's set",
		nft:  "add table inet exitgate\nadd set inet exitgate egress4 { type ipv4_addr; size 64; }",
		fake: func(s *State) {
			s.Present, s.Sets = true, []SetState{{Name: "egress4", Kind: "set", Type: "ipv4_addr", Size: 64}}
		},
		want: ErrForeign,
	},
	{
		name: "ours, with a set of another type",
		nft:  Render(Contents{}) + "flush table inet exitgate\ndelete set inet exitgate published\nadd set inet exitgate published { type ipv4_addr; size 64; }",
		fake: func(s *State) {
			s.apply(Batch{Install: record})
			s.Sets[slices.IndexFunc(s.Sets, func(s SetState) bool { return s.Name == "published" })].Type = "ipv4_addr"
		},
		want: ErrForeign,
	},
	{
		name: "ours, with another base chain",
		nft:  strings.Replace(Render(Contents{}), "hook forward priority filter", "hook forward priority 7", 1),
		fake: func(s *State) {
			s.apply(Batch{Install: record})
			s.Chains[slices.IndexFunc(s.Chains, func(c ChainState) bool { return c.Name == "forward" })].Priority = 7
		},
		want: ErrForeign,
	},
	{
		name: "ours, with leftovers",
		nft:  Render(manyPorts(3)) + "add chain inet exitgate old\nadd set inet exitgate olds { type ipv4_addr; }\nadd counter inet exitgate oldc\nadd rule inet exitgate input goto old\n",
		fake: func(s *State) {
			s.apply(Batch{Install: record, add: manyPorts(3).elements()})
			s.Chains = append(s.Chains, ChainState{Name: "old", Digest: "-"})
			s.Sets = append(s.Sets, SetState{Name: "olds", Kind: "set", Type: "ipv4_addr"})
			s.Counters["oldc"] = Counter{}
		},
	},
}

func TestInstallOver(t *testing.T) {
	var fresh string
	onBoth(t, func(t *testing.T, b bench) {
		if err := NewWriter(b.Kernel).Install(fullContents()); err != nil {
			t.Fatal(err)
		}
		fresh = b.text(t)
	})
	for _, tc := range installCases {
		t.Run(tc.name, func(t *testing.T) {
			onBoth(t, func(t *testing.T, b bench) {
				b.meddle(t, tc.nft, tc.fake)
				before := b.text(t)
				w := NewWriter(b.Kernel)
				err := w.Install(fullContents())
				if !errors.Is(err, tc.want) || (err == nil) != (tc.want == nil) {
					t.Fatalf("error %v, want %v", err, tc.want)
				}
				want := fresh
				if tc.want != nil {
					want = before
					if uerr := w.Update(somePorts, Contents{}); !errors.Is(uerr, ErrNotInstalled) {
						t.Errorf("Update after a refused Install: %v", uerr)
					}
				}
				if d := cmp.Diff(want, b.text(t)); d != "" {
					t.Errorf("state (-want +got):\n%s", d)
				}
			})
		})
	}
}

func TestWriterUpdate(t *testing.T) {
	onBoth(t, func(t *testing.T, b bench) {
		w := NewWriter(b.Kernel)
		if err := w.Update(somePorts, Contents{}); !errors.Is(err, ErrNotInstalled) {
			t.Errorf("Update before Install: %v", err)
		}
		if err := w.Install(Contents{}); err != nil {
			t.Fatal(err)
		}
		full := fullContents()
		for i, step := range []struct{ add, del, want Contents }{
			{full, Contents{}, full},
			{full, Contents{}, full},         // present already
			{Contents{}, manyPorts(4), full}, // absent already
			{Contents{}, Contents{Egress: full.Egress[:1]}, full.without(Contents{Egress: full.Egress[:1]})},
			{Contents{Egress: full.Egress}, Contents{Egress: full.Egress}, full}, // in both: added
			{Contents{}, full, Contents{}},
		} {
			if err := w.Update(step.add, step.del); err != nil {
				t.Fatalf("step %d: %v", i, err)
			}
			s, err := b.Dump()
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(step.want, s.Contents(), exact); d != "" {
				t.Errorf("step %d: kernel (-want +got):\n%s", i, d)
			}
			if d := cmp.Diff(step.want, w.Contents(), exact); d != "" {
				t.Errorf("step %d: writer (-want +got):\n%s", i, d)
			}
		}
		if err := w.Sync(full); err != nil {
			t.Fatal(err)
		}
		if err := w.Sync(somePorts); err != nil {
			t.Fatal(err)
		}
		if s, _ := b.Dump(); !cmp.Equal(s.Contents(), somePorts, exact) || s.Elements() != 2 {
			t.Errorf("after Sync the kernel holds %+v", s.Contents())
		}
	})
}

func TestWriterSetFull(t *testing.T) {
	onBoth(t, func(t *testing.T, b bench) {
		w := NewWriter(b.Kernel)
		if err := w.Install(manyPorts(64)); err != nil {
			t.Fatal(err)
		}
		err := w.Update(Contents{Published: []uint16{100}}, Contents{})
		if !errors.Is(err, ErrSetFull) || !strings.Contains(err.Error(), "published holds 64 of at most 64") {
			t.Errorf("error %v; want ErrSetFull, naming the set", err)
		}
		if err := w.Update(Contents{Published: []uint16{64}}, Contents{}); err != nil {
			t.Errorf("adding what is there to a full set: %v", err)
		}
	})
}

// A kernel that counts members of ours which the writer does not know of is full
// earlier; its word for that must come out readable.
func TestKernelSetFull(t *testing.T) {
	onBoth(t, func(t *testing.T, b bench) {
		w := NewWriter(b.Kernel)
		if err := w.Install(manyPorts(63)); err != nil {
			t.Fatal(err)
		}
		err := b.Commit(Batch{add: Contents{Published: []uint16{100, 101}}.elements()})
		if !errors.Is(err, ErrSetFull) {
			t.Errorf("error %v, want ErrSetFull", err)
		}
	})
}

func TestContentsOfUnknownBytes(t *testing.T) {
	// A foreign element may hold what Compile never writes; it must be told, not lost.
	e := newElement(setEgress4, netip.MustParseAddr("192.0.2.1").AsSlice(), []byte{99}, big(7))
	if got := e.String(); got != "192.0.2.1 . 99 . 7" {
		t.Errorf("element prints as %q", got)
	}
}
