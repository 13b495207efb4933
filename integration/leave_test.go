package integration

import (
	"net/http"
	"testing"
	"time"

	"exitgate/integration/rig"
)

// TestAgentLeaves: an upstream hears within moments that nobody waits for its answer any more, before its head and after. One whose agent
// stays is not cut.
func TestAgentLeaves(t *testing.T) {
	t.Parallel()
	w := world(t)
	left := make(chan string, 8)
	standard := rig.Standard()
	upstream(t, w, "api.example.com", rig.Server{H1: true, Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		standard.ServeHTTP(rw, r)
		left <- r.URL.Path
	})})
	g := up(t, w, basic)
	for _, path := range []string{"/hang", "/events?n=0&ms=3600000"} {
		p := get(path)
		p.Timeout = 500 * time.Millisecond // the agent gives up then
		if r := g.Agent().Do(p); r.OK() {
			t.Fatalf("GET %s: %s, want none to come to its end", path, r)
		}
		select {
		case <-left:
		case <-time.After(patience):
			t.Errorf("GET %s: the agent left, and the upstream goes on", path)
		}
	}
	stays := g.Agent().Start(get("/hang"))
	select {
	case <-left:
		t.Error("a request was cut whose agent waits")
	case r := <-stays:
		t.Errorf("a request was answered: %s", r)
	case <-time.After(2 * time.Second):
	}
}
