package chaos

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"exitgate/integration/prober"
	"exitgate/integration/rig"
	"exitgate/integration/rig/rigtest"

	"golang.org/x/sys/unix"
)

const (
	secret   = "sk-ant-api03-FAKE-chaos-0123456789abcdef"
	listener = "127.0.0.1:8080"
	patience = 30 * time.Second // for what should happen within a second, on a busy machine
)

const policy = `version: 1
credentials:
  - name: api
    from: file:/run/secrets/api
routes:
  - name: api
    path: /
    upstream: https://api.example.com
    credential: api
    allow:
      - GET /reflect
egress:
  - host: files.example.com
`

// stage is a gate under load.
type stage struct {
	*rig.Box
	t          *testing.T
	w          *rig.World
	api, files *rig.Upstream
	root, evil *rig.Agent // beside the agent: root, and the agent's uid without hardening
	v4, v6     netip.Addr // nobody's, and no policy's
}

// newStage starts the gate with its audit on a file system of 16 MiB.
func newStage(t *testing.T) *stage {
	t.Helper()
	w := rigtest.World(t)
	s := &stage{t: t, w: w, v4: netip.AddrFrom4([4]byte{46, byte(w.Number()), 0, 1}), v6: netip.MustParseAddr("2a0e:46::1")}
	// Short-lived answers: the resolver has work all the time.
	s.api = rigtest.HTTPS(t, w, "api.example.com", rig.Server{TTL: time.Second})
	s.files = rigtest.HTTPS(t, w, "files.example.com", rig.Server{TTL: time.Second})
	wait := "while ! [ -e /run/go ]; do sleep 0.02; done; exec /rig/exitgate run --audit file:/audit/log -- /rig/prober serve"
	s.Box = rigtest.Start(t, rig.Config{World: w, Binary: program, Policy: policy, Plain: true, Serve: true, Args: []string{"/bin/sh", "-c", wait},
		Files: map[string]rig.File{"/run/secrets/api": {Data: secret + "\n", Mode: 0o400}, "/audit/.keep": {}}})
	s.must(s.Enter(func() error { return unix.Mount("audit", "/audit", "tmpfs", 0, "size=16m") }))
	s.must(s.Write("/run/go", rig.File{}))
	s.must(s.Agent().Ready(patience))
	s.root, s.evil = s.as(0), s.as(1000)
	return s
}

func (s *stage) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

// as is a prober beside PID 1's children.
func (s *stage) as(uid uint32) *rig.Agent {
	s.t.Helper()
	a, err := s.As(uid, uid)
	s.must(err)
	return a
}

// sh runs a script in the box as root.
func (s *stage) sh(text string) string {
	s.t.Helper()
	r := s.root.Do(prober.Probe{Op: "shell", Data: []byte(text), Timeout: patience})
	if r.Status != 0 || !r.OK() {
		s.t.Errorf("%s: %s %s", text, r, r.Data)
	}
	return string(r.Data)
}

type status struct {
	State      string
	PID        int
	Goroutines int
	Proxy      struct{ PID, Restarts, Goroutines int }
}

func (s *stage) status() (got status, err error) {
	ctx, stop := context.WithTimeout(context.Background(), patience)
	defer stop()
	out, err := s.Run(ctx, rig.Command{Args: []string{rig.BinaryPath, "status", "--json"}})
	if err == nil {
		err = json.Unmarshal([]byte(out.Stdout), &got)
	}
	return got, err
}

// proxy is the pid in the box of the proxy that runs now.
func (s *stage) proxy() int {
	s.t.Helper()
	for until := time.Now().Add(patience); time.Now().Before(until); time.Sleep(10 * time.Millisecond) {
		if got, err := s.status(); err == nil && got.Proxy.PID != 0 {
			return got.Proxy.PID
		}
	}
	s.t.Fatal("no proxy runs")
	return 0
}

// level is what a gate has in hand.
type level struct{ files, proxyFiles, goroutines, proxyGoroutines, zombies, threads, rss, proxyRSS int }

func (s *stage) level() (l level, err error) {
	st, err := s.status()
	if err != nil {
		return l, err
	}
	l.goroutines, l.proxyGoroutines = st.Goroutines, st.Proxy.Goroutines
	proxy := s.outside(st.Proxy.PID)
	l.files, l.proxyFiles = count(s.PID), count(proxy)
	l.rss, l.proxyRSS, l.threads = field(s.PID, "RssAnon:"), field(proxy, "RssAnon:"), field(s.PID, "Threads:")
	for _, pid := range s.inBox() {
		text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if _, rest, ok := strings.Cut(string(text), ") "); ok && strings.HasPrefix(rest, "Z") {
			l.zombies++
		}
	}
	return l, nil
}

func (l level) String() string {
	return fmt.Sprintf("descriptors %d+%d, goroutines %d+%d, threads %d, zombies %d, memory %d+%d KiB", l.files, l.proxyFiles, l.goroutines, l.proxyGoroutines, l.threads, l.zombies, l.rss, l.proxyRSS)
}

// inBox are the processes of the box, by their numbers out here.
func (s *stage) inBox() (pids []int) {
	own, _ := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", s.PID))
	dirs, _ := os.ReadDir("/proc")
	for _, d := range dirs {
		pid, err := strconv.Atoi(d.Name())
		if err != nil {
			continue
		}
		if ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", pid)); err == nil && ns == own {
			pids = append(pids, pid)
		}
	}
	return pids
}

// outside is the number out here of a process of the box.
func (s *stage) outside(inside int) int {
	for _, pid := range s.inBox() {
		text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		for line := range strings.Lines(string(text)) {
			if rest, ok := strings.CutPrefix(line, "NSpid:"); ok {
				if f := strings.Fields(rest); f[len(f)-1] == strconv.Itoa(inside) {
					return pid
				}
			}
		}
	}
	return 0
}

func count(pid int) int {
	d, _ := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	return len(d)
}

func field(pid int, key string) int {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, key); ok {
			n, _ := strconv.Atoi(strings.Fields(rest)[0])
			return n
		}
	}
	return 0
}
