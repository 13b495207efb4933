package engine

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"exitgate/firewall"
	"exitgate/policy"
)

// strays says how the sets differ from what the policy in force and the name servers say.
func (w *world) strays() string {
	want := firewall.Compile(w.Policy(), w.resolver.Servers(), nil)
	have := w.Fence.Contents()
	have.Egress = nil
	add, del := have.Diff(want)
	if add.Empty() && del.Empty() {
		return ""
	}
	return fmt.Sprintf("missing %v, too much %v", add, del)
}

const otherServer = "dns: {servers: [192.0.2.99]}\n"

// A reload that the kernel refuses half-way leaves no name server of its behind.
func TestFailedReloadLeavesNoServers(t *testing.T) {
	w := newWorld(t, oneHost)
	w.start()
	w.eventually("the address is in the set", func() bool { return w.pinned("192.0.2.7") })
	w.policy("egress: [{host: one.example.com, addresses: [192.0.2.0/24]}, {host: 192.0.2.10}]\n" + otherServer)
	for n := 2; n < 8; n++ { // the name servers are the first
		w.fake.FailCommit(n, errors.New("no space left"), false)
	}
	if r, err := w.Reload(context.Background(), "test"); err == nil {
		t.Fatalf("Reload = %+v", r)
	}
	w.eventually("the sets are those of the policy in force", func() bool { return w.strays() == "" })
	for n := range 8 {
		w.fake.FailCommit(n+1, nil, true)
	}
	if r, err := w.Reload(context.Background(), "test"); err != nil || w.strays() != "" {
		t.Errorf("control: Reload = %+v, %v; %s", r, err, w.strays())
	}
}

// What the kernel did not remove at the end of a reload is removed later.
func TestRefusedRemovalIsTriedAgain(t *testing.T) {
	w := newWorld(t, oneHost+"root_loopback: [9]\nroot_inbound: [10]\n"+otherServer)
	w.start()
	w.eventually("the address is in the set", func() bool { return w.pinned("192.0.2.7") })
	for n := range 4 {
		w.fake.FailCommit(n+1, errors.New("no space left"), false)
	}
	w.policy(otherServer)
	if r, err := w.Reload(context.Background(), "test"); err != nil {
		t.Fatalf("Reload = %+v, %v", r, err)
	}
	w.eventually("the sets are those of the policy in force", func() bool { return w.strays() == "" && !w.pinned("192.0.2.7") })
}

// Name servers that change at any moment of a reload: in the end the sets are what policy and servers say.
func TestServersChangeDuringReloads(t *testing.T) {
	w := newWorld(t, oneHost)
	w.start()
	stop, done := make(chan struct{}), make(chan struct{})
	changes := 0
	use := func() {
		_ = w.useResolvers([]netip.AddrPort{netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, 100 + byte(changes%2)}), 53)})
		changes++
	}
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			default:
				use()
				time.Sleep(time.Duration(rand.IntN(500)) * time.Microsecond)
			}
		}
	}()
	var p *policy.Policy
	for n := range 100 {
		w.policy(fmt.Sprintf("%sroot_loopback: [%d]\n", oneHost, 1000+n))
		if _, err := w.Reload(context.Background(), "test"); err != nil {
			t.Fatal(err)
		}
		p = w.Policy()
		loopback := w.Fence.Contents().RootLoopback
		if len(loopback) != 1 || loopback[0] != p.RootLoopback[0] {
			t.Errorf("after reload %d the fence has root_loopback %v, the policy %v", n, loopback, p.RootLoopback)
		}
	}
	close(stop)
	<-done
	if changes < 100 {
		t.Errorf("control: %d changes", changes)
	}
}
