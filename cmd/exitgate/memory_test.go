package main

import (
	"runtime"
	"runtime/debug"
	"testing"
	"time"
)

func TestMemoryLimit(t *testing.T) {
	for text, want := range map[string]int64{"536870912\n": 128 << 20, "max\n": 0, "": 0, "9223372036854771712\n": 0, "-1": 0} {
		got, ok := memoryLimit([]byte(text))
		if ok != (want != 0) || ok && got != want {
			t.Errorf("memory.max %q: %d, %v, want %d", text, got, ok, want)
		}
	}
}

func TestGCPercent(t *testing.T) {
	for live, want := range map[uint64]int{0: 800, 1 << 20: 800, 4 << 20: 400, 16 << 20: 100, 1 << 30: 50} {
		if got := gcPercent(live); got != want {
			t.Errorf("%d bytes in use: %d %%, want %d", live, got, want)
		}
	}
}

// keep is memory in use.
var keep [][]byte

// The percentage follows what is in use, up and down.
func TestCollectionsFollowUse(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(100))
	defer debug.SetMemoryLimit(debug.SetMemoryLimit(-1))
	tuneMemory()
	percent := func() int {
		p := debug.SetGCPercent(100)
		debug.SetGCPercent(p)
		return p
	}
	small := percent()
	for range 64 {
		keep = append(keep, make([]byte, 1<<20))
	}
	until(t, "much is in use", func() bool { return percent() < small })
	keep = nil
	until(t, "little is in use", func() bool { return percent() == small })
}

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(10 * time.Millisecond) {
		runtime.GC()
		if time.Now().After(end) {
			t.Fatalf("%s, and the percentage does not follow", what)
		}
	}
}
