package leaks

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"exitgate/integration/prober"

	"golang.org/x/sys/unix"
)

// look prints all that a process can read: its environment, every other process, every file but programs and devices.
const look = `env; ps axeww 2>/dev/null; id
for p in /proc/[0-9]*; do
  cat $p/environ $p/cmdline $p/maps $p/status $p/io $p/auxv $p/stack $p/syscall $p/wchan $p/mountinfo $p/limits $p/task/*/environ $p/fdinfo/* $p/root/run/secrets/* $p/cwd/run/secrets/* 2>/dev/null
  for f in $p/fd/*; do case $f in */[012]) ;; *) echo $f;; esac; done | xargs timeout 1 cat 2>/dev/null </dev/null | head -c 100000
done
find / -xdev \( -path /usr -o -path /proc -o -path /sys -o -path /dev -o -path /rig \) -prune -o -type f -print0 2>/dev/null | xargs -0 cat 2>/dev/null
cat /dev/shm/* /run/exitgate/* 2>/dev/null; true`

func script(text string) prober.Probe {
	return prober.Probe{Op: "shell", Data: []byte(text), Timeout: patience}
}

// TestProcesses is group F: what there is to read in the box. Root, who may, finds the credential with the same script.
func TestProcesses(t *testing.T) {
	t.Parallel()
	s := newScene(t, policy)
	s.ask("/c", s.api.will(raw(ok("", secret)))) // the proxy has used it
	byRoot, err := s.Probe(0, script(look))
	if err != nil {
		t.Fatal(err)
	}
	control := fmt.Sprintf("root finds it with the same script, in %d bytes", len(byRoot.Data))
	if !holds(string(byRoot.Data), secret) {
		control = "FAILED " + control
	}
	for name, uid := range map[string]uint32{"as `docker exec -u 1000` is": 1000, "as nobody": 65534} {
		r, err := s.Probe(uid, script(look))
		if err != nil {
			t.Fatal(err)
		}
		s.judgeView(t, "F", "environment, processes and files, "+name, r, control)
	}
	s.judgeView(t, "F", "environment, processes and files, as the agent", s.Agent().Do(script(look)), control)
	s.memory(t)
	s.crash(t)
	s.sweep(t, "F")
	s.die(t)
}

func (s *scene) judgeView(t *testing.T, group, name string, r prober.Result, control string) {
	t.Helper()
	seen := "nothing"
	for _, secret := range []string{secret, otherSecret, apiKey, oatKey} {
		if holds(string(r.Data), secret) {
			seen = "LEAKS"
		}
	}
	if len(r.Data) < 1000 {
		seen = fmt.Sprintf("the script did not run: %s %q", r, r.Data)
	}
	judge(t, row{group, name, "nothing", seen, control})
}

// proxy is the proxy's pid, in the box and out here. It waits for one that is there, since a new one may be on its way.
func (s *scene) proxy(t *testing.T) (inside, outside int) {
	t.Helper()
	if !eventually(func() bool {
		status, err := s.Status()
		p, _ := status["proxy"].(map[string]any)
		n, _ := p["pid"].(float64)
		inside, outside = int(n), s.outside(int(n))
		return err == nil && outside > 0
	}) {
		t.Fatal("no proxy")
	}
	return inside, outside
}

// outside is the pid that a process of the box has out here; 0: there is none.
func (s *scene) outside(inside int) int {
	procs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range procs {
		data, _ := os.ReadFile(dir + "/status")
		for line := range strings.Lines(string(data)) {
			f := strings.Fields(line)
			if len(f) > 2 && f[0] == "NSpid:" && f[len(f)-1] == fmt.Sprint(inside) && s.inBox(dir) {
				pid, _ := strconv.Atoi(filepath.Base(dir))
				return pid
			}
		}
	}
	return 0
}

func (s *scene) inBox(dir string) bool {
	a, err1 := os.Readlink(dir + "/ns/pid")
	b, err2 := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", s.PID))
	return err1 == nil && err2 == nil && a == b
}

// memory is the control of all searches of dumps: the proxy does hold the credential, and a search finds it.
func (s *scene) memory(t *testing.T) {
	inside, outside := s.proxy(t)
	found := bytes.Contains(readMemory(outside), []byte(secret))
	control := "the machine's root finds it there"
	if !found {
		control = "FAILED " + control
	}
	for _, name := range []string{"mem", "environ", "maps", "auxv", "stack", "fd", "root", "cwd"} {
		r := s.Agent().Do(script(fmt.Sprintf("ls -l /proc/%d/%s && cat /proc/%d/%s | head -c 100000", inside, name, inside, name)))
		seen := "refused"
		if strings.Contains(string(r.Data), secret) || name != "environ" && r.OK() && len(r.Data) > 500 {
			seen = fmt.Sprintf("%s %.200q", r, r.Data)
		}
		judge(t, row{"F", "/proc/PROXY/" + name + ", as the agent", "refused", seen, control})
	}
}

// readMemory is a process's writable memory, as far as it can be read.
func readMemory(pid int) []byte {
	maps, _ := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		return nil
	}
	defer mem.Close()
	var all []byte
	for line := range strings.Lines(string(maps)) {
		var from, to int64
		var perm string
		if n, _ := fmt.Sscanf(line, "%x-%x %s", &from, &to, &perm); n < 3 || !strings.HasPrefix(perm, "rw") || to-from > 64<<20 {
			continue
		}
		buf := make([]byte, to-from)
		n, _ := mem.ReadAt(buf, from)
		all = append(all, buf[:n]...)
	}
	return all
}

// crash makes the proxy die in ways that leave traces. sweep looks at them afterwards.
func (s *scene) crash(t *testing.T) {
	for _, sig := range []unix.Signal{unix.SIGQUIT, unix.SIGSEGV} {
		control := "another process took its place, and works"
		if !s.kill(t, sig) {
			control = "FAILED " + control
		}
		judge(t, row{"F", "the proxy dies of " + unix.SignalName(sig), "nothing", s.traces(), control})
	}
}

// kill ends the proxy, and says whether another one works in its place.
func (s *scene) kill(t *testing.T, sig unix.Signal) bool {
	before, outside := s.proxy(t)
	if err := unix.Kill(outside, sig); err != nil {
		t.Fatal(err)
	}
	return eventually(func() bool { now, _ := s.proxy(t); return now != before }) &&
		eventually(func() bool { return status(s.ask("/c", s.api.will(raw(ok("", "ok"))))) == "200" })
}

// traces says what of a dump is to be found: text with a secret, or a core file.
func (s *scene) traces() string {
	cores, _ := filepath.Glob(s.Path("/*core*"))
	more, _ := filepath.Glob(s.Path("/run/exitgate/*core*"))
	if len(cores)+len(more) > 0 {
		return fmt.Sprint(cores, more)
	}
	if holds(s.Stderr.String(), secret) {
		return "the log holds it"
	}
	return "nothing"
}

// die ends PID 1 itself by a signal from outside that a runtime answers with a dump.
func (s *scene) die(t *testing.T) {
	before := len(s.Stderr.String())
	if err := s.Signal(unix.SIGABRT); err != nil {
		t.Fatal(err)
	}
	code, err := s.Wait(patience)
	control := fmt.Sprintf("exit code %d, %d bytes of dump", code, len(s.Stderr.String())-before)
	if err != nil || len(s.Stderr.String())-before < 1000 {
		control = fmt.Sprintf("FAILED %s (%v)", control, err)
	}
	judge(t, row{"F", "PID 1 dies of SIGABRT", "nothing", s.traces(), control})
}

// TestIdentity is group G.
func TestIdentity(t *testing.T) {
	t.Parallel()
	s := newScene(t, strings.Replace(policy, "credentials:", "agents:\n  - {name: agent, socket: /run/exitgate/agent.sock}\ncredentials:", 1))
	for name, address := range map[string]string{"listener": listener, "unix socket": "/run/exitgate/agent.sock"} {
		for uid, want := range map[uint32]string{1000: "arrives", 0: "refused", 1001: "refused", 65534: "refused"} {
			id := s.api.will(raw(ok("", "ok")))
			r, err := s.Probe(uid, prober.Probe{Op: "http", Address: address, Data: []byte(get("/c/v1/x?" + id)), Keep: true, Timeout: patience})
			if err != nil {
				t.Fatal(err)
			}
			seen := map[bool]string{true: "arrives", false: "refused"}[len(s.api.got(id)) == 1]
			judge(t, row{"G", fmt.Sprintf("uid %d at the %s", uid, name), want, seen, "uid 1000 arrives: " + strings.TrimSpace(r.Errno+" "+status(string(r.Data)))})
		}
	}
	for _, other := range []string{"[::1]:8080", "127.0.0.2:8080", s.Wire.Box4().String() + ":8080", "[" + s.Wire.Box6().String() + "]:8080"} {
		r := s.Agent().Do(prober.Probe{Op: "tcp", Address: other, Timeout: patience})
		judge(t, row{"G", "the listener by " + strings.ReplaceAll(strings.ReplaceAll(other, s.Wire.Box4().String(), "eth0's IPv4"), s.Wire.Box6().String(), "eth0's IPv6"), "ECONNREFUSED", r.Errno, "uid 1000 at the listener arrives"})
	}
}
