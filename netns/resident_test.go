package netns_test

import (
	"errors"
	"net"
	"testing"

	"exitgate/netns"
	"exitgate/netns/netnstest"
)

// TestResident: what it does is inside, each time, and what it made stays when it has gone.
func TestResident(t *testing.T) {
	netnstest.RequireRoot(t)
	h, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	home := current(t)
	r, err := netns.Settle(h)
	if err != nil {
		t.Fatal(err)
	}
	want := h.ID()
	h.Close()
	var l net.Listener
	for range 20 {
		var inside netns.ID
		why := errors.New("of the function")
		if err := r.Do(func() error { inside = current(t); return why }); !errors.Is(err, why) || inside != want {
			t.Fatalf("error %v, ran in %v; want %v", err, inside, want)
		}
		if now := current(t); now != home {
			t.Fatalf("after Do in %v, want %v", now, home)
		}
	}
	dial := func() error {
		c, err := net.Dial("tcp", l.Addr().String())
		if err == nil {
			c.Close()
		}
		return err
	}
	if err := r.Do(func() (err error) { l, err = net.Listen("tcp", "127.0.0.1:0"); return err }); err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := r.Do(dial); err == nil {
		t.Error("lo of a fresh namespace answers before it was brought up: this test proves nothing")
	}
	for range 2 { // the second time there is nothing to do
		if err := r.Do(netns.RaiseLoopback); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.Do(dial); err != nil {
		t.Errorf("after RaiseLoopback: %v", err)
	}
	if err := dial(); err == nil {
		t.Error("the listener answers outside too")
	}
	r.Close()
}

func TestSettleNowhere(t *testing.T) {
	netnstest.RequireRoot(t)
	h, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	h.Close()
	if r, err := netns.Settle(h); err == nil {
		r.Close()
		t.Error("a closed handle was entered")
	}
}
