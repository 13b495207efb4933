package firewall

import (
	"fmt"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"exitgate/netns/netnstest"
	"exitgate/policy"
)

// cpu reports the processor time an operation takes, which other load on the
// machine does not change.
func cpu(b *testing.B, who int) func() {
	var before, after unix.Rusage
	unix.Getrusage(who, &before)
	return func() {
		unix.Getrusage(who, &after)
		spent := after.Utime.Nano() + after.Stime.Nano() - before.Utime.Nano() - before.Stime.Nano()
		b.ReportMetric(float64(spent)/1e3/float64(b.N), "cpu-us/op")
	}
}

// BenchmarkCompile makes set contents of a policy of root's addresses, and compares
// them with those before.
func BenchmarkCompile(b *testing.B) {
	for _, n := range []int{10, 10000} {
		var text strings.Builder
		text.WriteString("version: 1\nroot:\n")
		for i := range n {
			fmt.Fprintf(&text, "  - host: 5.0.%d.%d\n", i>>8, i&255)
		}
		p, err := policy.Load("policy.yaml", []byte(text.String()))
		if err != nil {
			b.Fatal(err)
		}
		before := Compile(p, nil, nil)
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if add, del := before.Diff(Compile(p, nil, nil)); add.Len()+del.Len() != 0 {
					b.Fatal("a policy differs from itself")
				}
			}
		})
	}
}

// BenchmarkInstall is the first install of the lockdown and its read-back.
func BenchmarkInstall(b *testing.B) {
	k := openKernel(b, netnstest.New(b), false)
	defer cpu(b, unix.RUSAGE_SELF)()
	for b.Loop() {
		if err := NewWriter(k).Install(Contents{}); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkInstallNft is the same by the nft program, without read-back.
func BenchmarkInstallNft(b *testing.B) {
	requireNft(b)
	ns, text := netnstest.New(b), Render(Contents{})
	defer cpu(b, unix.RUSAGE_CHILDREN)()
	for b.Loop() {
		nft(b, ns, text, "-f", "-")
	}
}

// BenchmarkUpdate adds and deletes again n elements, on top of as many that
// stay: two commits.
func BenchmarkUpdate(b *testing.B) {
	for _, n := range []int{1, 10, 1000, 10000, 60000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			w := installed(b, openKernel(b, netnstest.New(b), false), Contents{})
			change := manyEndpoints(n)
			defer cpu(b, unix.RUSAGE_SELF)()
			for b.Loop() {
				if err := w.Update(change, Contents{}); err != nil {
					b.Fatal(err)
				}
				if err := w.Update(Contents{}, change); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkPin is one element more in sets that hold many: what a dial waits for.
func BenchmarkPin(b *testing.B) {
	for _, n := range []int{0, 20000} {
		b.Run(fmt.Sprintf("among %d", n), func(b *testing.B) {
			w := installed(b, openKernel(b, netnstest.New(b), false), manyEndpoints(n))
			i := 0
			defer cpu(b, unix.RUSAGE_SELF)()
			for b.Loop() {
				one := Contents{Egress: []Endpoint{{unix.IPPROTO_TCP, testAddr(i>>9&255, i>>1&255), 1}}}
				var err error
				if i++; i%2 == 1 {
					err = w.Update(one, Contents{})
				} else {
					err = w.Update(Contents{}, one)
				}
				if err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkUpdateNft does what BenchmarkUpdate does, by the nft program.
func BenchmarkUpdateNft(b *testing.B) {
	requireNft(b)
	for _, n := range []int{1, 1000, 10000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			ns := netnstest.New(b)
			nft(b, ns, Render(Contents{}), "-f", "-")
			add, del := elementCommands("add", manyEndpoints(n)), elementCommands("delete", manyEndpoints(n))
			defer cpu(b, unix.RUSAGE_CHILDREN)()
			for b.Loop() {
				nft(b, ns, add, "-f", "-")
				nft(b, ns, del, "-f", "-")
			}
		})
	}
}

// elementCommands is a change of elements in nft's words.
func elementCommands(verb string, c Contents) string {
	var s strings.Builder
	for set, members := range elementText(c) {
		fmt.Fprintf(&s, "%s element inet %s %s { %s }\n", verb, TableName, set, strings.Join(members, ", "))
	}
	return s.String()
}

// BenchmarkSync finds one difference among many elements, and commits it.
func BenchmarkSync(b *testing.B) {
	for _, n := range []int{1000, 10000, 60000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			a, c := manyEndpoints(n), manyEndpoints(n+1)
			w := installed(b, openKernel(b, netnstest.New(b), false), a)
			defer cpu(b, unix.RUSAGE_SELF)()
			for i := 0; b.Loop(); i++ {
				want := a
				if i%2 == 0 {
					want = c
				}
				if err := w.Sync(want); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkDump reads the table back.
func BenchmarkDump(b *testing.B) {
	for _, n := range []int{0, 10000, 60000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			k := openKernel(b, netnstest.New(b), false)
			installed(b, k, manyEndpoints(n))
			defer cpu(b, unix.RUSAGE_SELF)()
			for b.Loop() {
				if _, err := k.Dump(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkRepair is drift from the foreign commit to the report of its repair.
func BenchmarkRepair(b *testing.B) {
	requireNft(b)
	for _, n := range []int{10, 10000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			ns := netnstest.New(b)
			k := openKernel(b, ns, true)
			w := installed(b, k, manyEndpoints(n))
			var worst float64
			for b.Loop() {
				nft(b, ns, "", "insert", "rule", "inet", TableName, "output", "accept")
				drift := w.check(k, true)
				if len(drift) != 1 || !drift[0].Repaired {
					b.Fatalf("drift %+v", drift)
				}
				worst = max(worst, float64(drift[0].Took.Microseconds()))
			}
			b.ReportMetric(worst, "worst-repair-us")
		})
	}
}

// BenchmarkEvaluate is one packet through the rules in memory.
func BenchmarkEvaluate(b *testing.B) {
	ev := newEvaluator(record, fullContents())
	p := Packet{Owned: true, Proto: unix.IPPROTO_TCP, Dst: addrPorts(b, "192.0.2.10:443")[0], Src: addrPorts(b, "192.0.2.1:1024")[0]}
	for b.Loop() {
		if v := ev.run(p); v.Action != Accept {
			b.Fatal(v)
		}
	}
}
