package engine

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"exitgate/cmd/internal/wire"
)

// restart kills the proxy and returns when the next one has been asked to take its policy, which it does when release is called.
func (w *world) restart() (release func()) {
	w.t.Helper()
	hold := make(chan struct{})
	w.mu.Lock()
	n := len(w.proxies)
	w.hold = hold
	w.mu.Unlock()
	w.proxies[n-1].Kill()
	w.eventually("another proxy starts", func() bool {
		w.proxy.mu.Lock()
		defer w.proxy.mu.Unlock()
		w.mu.Lock()
		defer w.mu.Unlock()
		return len(w.proxies) > n && w.proxy.host != nil && w.proxy.restarts > 0
	})
	time.Sleep(50 * time.Millisecond) // it may have been asked by now; both orders are to work
	return func() {
		w.mu.Lock()
		w.hold = nil
		w.mu.Unlock()
		close(hold)
	}
}

// A reload while another proxy is being started is in force when that one serves.
func TestReloadWhileTheProxyStarts(t *testing.T) {
	w := newWorld(t, oneHost)
	w.start()
	release := w.restart()
	w.policy(twoHosts)
	done := make(chan error, 1)
	go func() { _, err := w.Reload(context.Background(), "test"); done <- err }()
	w.eventually("the reload waits for the proxy", func() bool {
		w.proxy.mu.Lock()
		defer w.proxy.mu.Unlock()
		return w.proxy.target.number == 2
	})
	release()
	if err := <-done; err != nil {
		t.Fatalf("Reload = %v", err)
	}
	if s := w.Status(); s.Generation != 2 || s.Proxy.Generation != 2 || s.State != "ready" {
		t.Errorf("generation %d, the proxy's %d, %s %q", s.Generation, s.Proxy.Generation, s.State, s.Why)
	}
	if got := w.ask("two.example.com"); got == 403 {
		t.Error("an added host is refused")
	}
}

// took is what proxies have taken.
func (w *world) took() []*wire.Configure {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.taken)
}

// A credential that changes while a reload brings another one takes nothing from it.
func TestCredentialChangesDuringReload(t *testing.T) {
	one := "credentials: [{name: a, from: \"file:/run/a\"}]\nroutes: [{name: a, path: /a, upstream: \"https://one.example.com\", credential: a, allow: [GET /]}]\n"
	w := newWorld(t, one)
	w.write("run/a", "fake-secret-of-before")
	w.write("run/b", "fake-secret-of-another")
	w.start()
	release := w.restart()
	w.write("run/a", "fake-secret-of-after")
	w.policy(`credentials: [{name: a, from: "file:/run/a"}, {name: b, from: "file:/run/b"}]
routes:
- {name: a, path: /a, upstream: "https://one.example.com", credential: a, allow: [GET /]}
- {name: b, path: /b, upstream: "https://one.example.com", credential: b, allow: [GET /]}
`)
	done := make(chan error, 1)
	go func() { _, err := w.Reload(context.Background(), "test"); done <- err }()
	w.eventually("the reload waits for the proxy", func() bool {
		w.proxy.mu.Lock()
		defer w.proxy.mu.Unlock()
		return w.proxy.target.number == 2
	})
	w.eventually("the change was noticed", func() bool {
		a := w.secrets.Current()["a"]
		return string(a.Value.Reveal()) == "fake-secret-of-after"
	})
	before := len(w.took())
	release()
	if err := <-done; err != nil {
		t.Fatalf("Reload = %v", err)
	}
	// Its own two generations, and the credential's change.
	w.eventually("the change reached the proxy", func() bool { return len(w.took()) >= before+3 })
	all := w.took()
	last := all[len(all)-1]
	for name, want := range map[string]string{"a": "fake-secret-of-after", "b": "fake-secret-of-another"} {
		if got := string(last.Secrets[name].Value); got != want {
			t.Errorf("credential %s at the proxy: %q, want %q", name, got, want)
		}
	}
	if s := w.Status(); s.State != "ready" {
		t.Errorf("%s: %q", s.State, s.Why)
	}
}

// Who asks for the status of a busy proxy waits in vain, and ends nothing by it.
func TestStatusOfABusyProxy(t *testing.T) {
	w := newWorld(t, oneHost)
	w.start()
	stall := make(chan struct{})
	w.mu.Lock()
	w.stall = stall
	w.mu.Unlock()
	w.Look() // the proxy reads nothing from here on
	w.policy(twoHosts + strings.Repeat("# more than a socket holds\n", 1<<16))
	done := make(chan error, 1)
	go func() { _, err := w.Reload(context.Background(), "test"); done <- err }()
	w.eventually("the reload waits for the proxy", func() bool {
		w.proxy.mu.Lock()
		defer w.proxy.mu.Unlock()
		return w.proxy.target.number == 2
	})
	for range 3 {
		w.Look()
	}
	w.mu.Lock()
	w.stall = nil
	w.mu.Unlock()
	close(stall)
	if err := <-done; err != nil {
		t.Fatalf("Reload = %v", err)
	}
	if s := w.Status(); s.Proxy.Restarts != 0 || s.Generation != 2 {
		t.Errorf("generation %d, %d restarts: %s", s.Generation, s.Proxy.Restarts, s.Proxy.LastEnd)
	}
}
