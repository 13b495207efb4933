package engine

import (
	"context"
	"os"
	"syscall"
	"time"
)

// followEvery is how often the policy file is looked at. Looking needs no watch on each directory of the path, and
// follows what the kubelet does with a ConfigMap: ..data, a symlink on the way to the file, is swapped for another.
const followEvery = time.Second

// follow asks for a reload whenever the file that the path leads to is another than before, and at rest: two looks in a
// row agree, so that a file in the middle of being written is left alone. A bad one is tried once.
func (e *Engine) follow(ctx context.Context) {
	tick := time.NewTicker(followEvery)
	defer tick.Stop()
	var seen sight
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		now := look(e.PolicyFile)
		if now.exists && now == seen && now != *e.read.Load() {
			e.Hangup("the file changed")
		}
		seen = now
	}
}

// sight is what tells one state of a file from another without reading it.
type sight struct {
	exists bool
	inode  uint64
	size   int64
	wrote  time.Time
}

func look(path string) sight {
	st, err := os.Stat(path)
	if err != nil {
		return sight{}
	}
	s := sight{exists: true, size: st.Size(), wrote: st.ModTime()}
	if sys, ok := st.Sys().(*syscall.Stat_t); ok {
		s.inode = sys.Ino
	}
	return s
}
