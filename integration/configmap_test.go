package integration

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"exitgate/integration/rig"
)

// mounted starts exitgate with its policy in a directory that is written as the kubelet writes a ConfigMap's, and with `watch`. The
// function returned publishes the next policy.
func mounted(t *testing.T, w *rig.World, policy string) (g *gate, publish func(policy string)) {
	t.Helper()
	dir, err := os.MkdirTemp("", "configmap")
	if err != nil {
		t.Fatal(err)
	}
	publish = func(policy string) {
		t.Helper()
		if err := rig.PublishConfigMap(dir, 0o444, map[string][]byte{"policy.yaml": []byte(policy)}); err != nil {
			t.Fatal(err)
		}
	}
	publish(policy)
	return up(t, w, "", func(c *rig.Config) {
		c.Place = map[string]string{"/etc/exitgate/policy": dir}
		c.Env = append(c.Env, "EXITGATE_WATCH=true", "EXITGATE_POLICY=/etc/exitgate/policy/policy.yaml")
	}), publish
}

// TestConfigMapIsFollowed: ..data is swapped, the file's own name never changes, and nobody signals.
func TestConfigMapIsFollowed(t *testing.T) {
	t.Parallel()
	w := world(t)
	upstream(t, w, "fresh.example.com", rig.Server{})
	upstream(t, w, "files.example.com", rig.Server{})
	g, publish := mounted(t, w, basic)
	if r := g.do(tunnel("fresh.example.com")); r.Status != 403 {
		t.Fatalf("control: before it is allowed: %s", r)
	}
	publish(basic + "  - host: fresh.example.com\n")
	eventually(t, "the added host is allowed", func() bool { return g.do(tunnel("fresh.example.com")).Status == 200 })

	publish("version: 1\nnonsense: true\n")
	eventually(t, "status tells of the broken policy", func() bool { s := g.status(); return s.State == "degraded" && !s.Reload.OK })
	if r := g.do(tunnel("fresh.example.com")); r.Status != 200 {
		t.Errorf("after a broken policy: %s; want what was in force", r)
	}
	publish(without("files.example.com"))
	eventually(t, "the next good one is in force", func() bool { return g.status().State == "ready" && g.do(tunnel("files.example.com")).Status == 403 })
	if r := g.do(tunnel("fresh.example.com")); r.Status != 403 {
		t.Errorf("a host that is no longer allowed: %s", r)
	}

	// The same words in a new directory change nothing. The policy after it is a mark that they were seen.
	before := g.status().Generation
	publish(without("files.example.com"))
	time.Sleep(2500 * time.Millisecond) // two looks and a half
	publish(basic)
	eventually(t, "the policy after it is in force", func() bool { return g.do(tunnel("files.example.com")).Status == 200 })
	if after := g.status().Generation; after != before+1 {
		t.Errorf("generation %d, then %d; want one more: the same words are no new policy", before, after)
	}
}

// TestConfigMapOfManyHosts: as many hosts as one ConfigMap holds load, are compared, and change.
func TestConfigMapOfManyHosts(t *testing.T) {
	t.Parallel()
	w := world(t)
	const last = "h9999.example.com"
	upstream(t, w, last, rig.Server{})
	many := func(n int) string {
		var b strings.Builder
		b.WriteString(basic)
		for i := range n {
			fmt.Fprintf(&b, "  - host: h%d.example.com\n", i)
		}
		return b.String()
	}
	if size := len(many(10000)); size > 1<<20 {
		t.Fatalf("%d bytes are more than a ConfigMap holds", size)
	}
	g, publish := mounted(t, w, basic)
	for _, n := range []int{100, 1000, 10000} {
		g.Write("/tmp/old.yaml", rig.File{Data: many(n - 1)})
		g.Write("/tmp/new.yaml", rig.File{Data: many(n)})
		checked := g.exitgate("check", "/tmp/new.yaml")
		compared := g.exitgate("diff", "/tmp/old.yaml", "/tmp/new.yaml")
		if checked.Code != 0 || compared.Code != 1 || strings.Count(compared.Stdout, fmt.Sprintf("h%d.example.com", n-1)) != 1 || strings.Contains(compared.Stdout, "h0.example.com") {
			t.Errorf("%d hosts: check %v; diff exit %d, %q", n, checked, compared.Code, compared.Stdout)
		}
		publish(many(n - 1))
		eventually(t, "all but one are in force", func() bool {
			return g.exitgate("explain", fmt.Sprintf("https://h%d.example.com/", n-2)).Code == 0
		})
		generation := g.status().Generation
		publish(many(n))
		reloaded := g.exitgate("reload") // at once; the watch finds it done
		if reloaded.Code != 0 && g.status().Generation == generation {
			t.Errorf("%d hosts: %v", n, reloaded)
		}
		t.Logf("%d hosts: check %v, diff %v, one more by reload %v (processes included)", n, checked.Elapsed, compared.Elapsed, reloaded.Elapsed)
	}
	if r := g.do(tunnel(last)); r.Status != 200 {
		t.Errorf("the last host: %s", r)
	}
	publish(many(9999))
	eventually(t, "the last host is refused", func() bool { return g.do(tunnel(last)).Status == 403 })
}
