package main

import (
	"bytes"
	"math"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"strconv"
)

// slack is how much a process may allocate between two collections, however little it has in use. With the runtime's
// default a proxy of 3 MiB collects a dozen times a second under load.
const slack = 16 << 20

// tuneMemory keeps the collector from running all the time while little memory is in use, and from waiting too long where
// the container has little. With much in use it is half of the runtime's default: that is streams, which make no garbage.
func tuneMemory() {
	for _, path := range []string{"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"} {
		text, err := os.ReadFile(path)
		if limit, ok := memoryLimit(text); ok && err == nil {
			debug.SetMemoryLimit(limit)
			break
		}
	}
	debug.SetGCPercent(gcPercent(0))
	afterCollection(0)
}

// memoryLimit is what the runtime may use of a cgroup's limit: the agent is in the same cgroup, and most of it is the agent's.
func memoryLimit(text []byte) (int64, bool) {
	const unlimited = 1 << 60 // cgroup v1 writes a number near the largest
	n, err := strconv.ParseInt(string(bytes.TrimSpace(text)), 10, 64)
	return n / 4, err == nil && n > 0 && n < unlimited
}

// gcPercent has slack bytes allocated between two collections while live bytes are in use, and no less than by default.
func gcPercent(live uint64) int {
	const minimal = 2 << 20
	return max(50, int(math.Round(100*slack/float64(max(live, minimal)))))
}

// afterCollection sets the percentage after each collection, by a finalizer on something that nothing refers to. Setting
// it stops the world, so small differences are left alone.
func afterCollection(before int) {
	runtime.SetFinalizer(new([16]byte), func(any) {
		live := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
		metrics.Read(live)
		percent := gcPercent(live[0].Value.Uint64())
		if percent*4 < before*3 || percent*3 > before*4 {
			debug.SetGCPercent(percent)
			before = percent
		}
		afterCollection(before)
	})
}
