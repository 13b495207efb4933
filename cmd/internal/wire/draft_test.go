package wire

import (
	"context"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"exitgate/policy"
)

// What comes into force is the policy of the Configure, whatever else is drafted meanwhile.
func TestDraftsDoNotMixUp(t *testing.T) {
	h, _, _ := connect(t, newDesk(), Commands{Configure: func(*Configure, *policy.Policy, []*os.File) error { return nil }})
	draft := func(name string) Draft {
		return Draft{File: "policy.yaml", Text: []byte("version: 1\negress: [{host: " + name + ".example.com}]\n")}
	}
	stop, drafted := make(chan struct{}), 0
	var others sync.WaitGroup
	others.Go(func() {
		for ; ; drafted++ {
			select {
			case <-stop:
				return
			default:
				_ = h.Draft(draft(fmt.Sprint("other", drafted)))
				time.Sleep(100 * time.Microsecond)
			}
		}
	})
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	wrong := 0
	for n := range 200 {
		d := draft(fmt.Sprint("host", n))
		p, err := policy.Load(d.File, d.Text)
		if err != nil {
			t.Fatal(err)
		}
		applied, err := h.Configure(ctx, &Configure{Draft: d}, nil)
		if err != nil {
			t.Fatal(err)
		}
		if applied.Digest != p.Digest() {
			wrong++
		}
	}
	close(stop)
	others.Wait()
	if wrong > 0 {
		t.Errorf("%d of 200 times another policy came into force", wrong)
	}
	if drafted < 10 {
		t.Errorf("control: %d other drafts", drafted)
	}
}
