package chaos

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"exitgate/integration/prober"
	"exitgate/integration/rig"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"
)

// fault is one thing that breaks. begin breaks it; what it returns mends it.
type fault struct {
	name   string
	lasts  time.Duration // in the short form
	long   time.Duration // in the long form; default lasts
	only   bool          // in the long form only
	unfelt bool          // no request may fail meanwhile
	begin  func(s *stage) (end func())
}

func nothing() {}

func faults() []fault {
	second := time.Second
	return []fault{
		{name: "nothing at all", lasts: second, unfelt: true, begin: func(*stage) func() { return nothing }},
		{name: "kill -9 of the proxy, 3 times", lasts: second, begin: func(s *stage) func() {
			for range 3 {
				pid := s.proxy()
				s.sh(fmt.Sprintf("kill -KILL %d", pid))
				for s.proxy() == pid {
					time.Sleep(10 * time.Millisecond)
				}
			}
			return nothing
		}},
		{name: "SIGSTOP of the proxy, continued", lasts: second, begin: func(s *stage) func() {
			pid := s.proxy()
			s.sh(fmt.Sprintf("kill -STOP %d", pid))
			return func() { s.sh(fmt.Sprintf("kill -CONT %d", pid)) }
		}},
		{name: "SIGSTOP of the proxy, for good", only: true, lasts: 12 * second, begin: func(s *stage) func() {
			s.sh(fmt.Sprintf("kill -STOP %d", s.proxy()))
			return nothing
		}},
		{name: "DNS outage", lasts: 7 * second, long: 60 * second, unfelt: true, begin: func(s *stage) func() {
			s.w.DNS.Down(true)
			return func() { s.w.DNS.Down(false) }
		}},
		{name: "lying DNS", lasts: 7 * second, long: 20 * second, begin: lyingDNS},
		{name: "DNS says SERVFAIL", lasts: 7 * second, long: 20 * second, unfelt: true, begin: func(s *stage) func() {
			s.w.DNS.SetCode("api.example.com", dns.RcodeServerFailure)
			s.w.DNS.SetCode("files.example.com", dns.RcodeServerFailure)
			return s.honest
		}},
		{name: "audit disk full", lasts: 2 * second, unfelt: true, begin: func(s *stage) func() {
			s.sh("dd if=/dev/zero of=/audit/filler bs=64k count=512 2>/dev/null; [ -s /audit/filler ]")
			return func() { s.sh("rm /audit/filler") }
		}},
		{name: "descriptors exhausted by the agent", lasts: 2 * second, begin: exhaustDescriptors},
		{name: "fork bomb under a pids limit", lasts: 3 * second, begin: forkBomb},
		{name: "every processor taken by the agent", lasts: 3 * second, unfelt: true, begin: takeProcessors},
		{name: "memory pressure under a limit", lasts: 3 * second, begin: memoryPressure},
		{name: "1,000 SIGHUPs, the policy changing", lasts: second, begin: hangups},
		{name: "flapping upstream", lasts: second, long: 5 * second, begin: flapping},
		{name: "the link down", lasts: 2 * second, begin: func(s *stage) func() {
			down := func(up bool) {
				s.must(s.Wire.Carrier(up))
			}
			down(false)
			return func() { down(true) }
		}},
		{name: "resolv.conf to a dead server, hosts to loopback", lasts: 2 * second, begin: func(s *stage) func() {
			s.must(s.Write("/etc/resolv.conf", rig.File{Data: "nameserver 45.254.254.254\n"}))
			s.must(s.Write("/etc/hosts", rig.File{Data: "127.0.0.1 api.example.com files.example.com\n10.0.0.1 api.example.com\n"}))
			return func() {
				s.must(s.Write("/etc/resolv.conf", rig.File{Data: "nameserver " + s.w.DNS.Addr4.String() + "\n"}))
				s.must(s.Write("/etc/hosts", rig.File{Data: "127.0.0.1 localhost\n"}))
			}
		}},
		{name: "an interface added", lasts: second, unfelt: true, begin: addInterface},
		{name: "conntrack table full", only: true, lasts: 5 * second, begin: fillConntrack},
	}
}

// lyingDNS has both names lead to where no name may lead.
func lyingDNS(s *stage) func() {
	for _, name := range []string{"api.example.com", "files.example.com"} {
		s.w.DNS.Set(name, time.Second, netip.MustParseAddr("169.254.169.254"), netip.MustParseAddr("fd00:ec2::254"))
	}
	return s.honest
}

func (s *stage) honest() {
	s.w.DNS.Set("api.example.com", time.Second, s.api.Addr4, s.api.Addr6)
	s.w.DNS.Set("files.example.com", time.Second, s.files.Addr4, s.files.Addr6)
}

// exhaustDescriptors has the agent open as many connections to its listener as it may have descriptors, from a process of its own.
func exhaustDescriptors(s *stage) func() {
	hog, err := s.As(1000, 1000)
	s.must(err)
	for range 1500 {
		hog.Start(prober.Probe{Op: "hold", Address: listener, Every: time.Minute, Timeout: 3 * time.Second})
	}
	return func() { hog.Do(prober.Probe{Op: "shell", Data: []byte("kill -KILL $PPID")}) }
}

// cgroup puts the whole box under a limit, which must be hit: the file hits counts that. The end takes it away: a limit is lifted before the directory goes.
func (s *stage) cgroup(controller, file, limit, hits string) (lift func()) {
	dir := filepath.Join("/sys/fs/cgroup", controller, "exitgate-chaos-"+strconv.Itoa(os.Getppid())+"-"+strconv.FormatInt(time.Now().UnixNano(), 36))
	s.must(os.Mkdir(dir, 0o755))
	s.must(os.WriteFile(filepath.Join(dir, file), []byte(limit), 0))
	move := func(to string) {
		for range 3 { // what was forked meanwhile
			for _, pid := range s.inBox() {
				_ = os.WriteFile(filepath.Join(to, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0)
			}
		}
	}
	move(dir)
	return func() {
		for until := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
			text, err := os.ReadFile(filepath.Join(dir, hits))
			if err == nil && strings.Trim(string(text), "max 0\n") != "" {
				break
			}
			if err != nil || time.Now().After(until) {
				s.t.Errorf("the limit of %s was never reached: %q, %v", controller, text, err)
				break
			}
		}
		move(filepath.Join("/sys/fs/cgroup", controller))
		for until := time.Now().Add(patience); os.Remove(dir) != nil; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(until) {
				s.t.Errorf("%s cannot be removed", dir)
				return
			}
			move(filepath.Join("/sys/fs/cgroup", controller))
		}
	}
}

// forkBomb is the agent's; what is left of it ends with the fault.
func forkBomb(s *stage) func() {
	lift := s.cgroup("pids", "pids.max", strconv.Itoa(s.tasks()+40), "pids.events")
	s.Agent().Start(prober.Probe{Op: "shell", Data: []byte("bomb() { sleep 4 | bomb & }; bomb 2>/dev/null; i=0; while [ $i -lt 3000 ]; do sleep 4 & i=$((i+1)); done 2>/dev/null"), Timeout: 2 * time.Second})
	return func() {
		lift()
		s.killPrograms()
	}
}

// takeProcessors runs fifty programs of the agent's that never rest.
func takeProcessors(s *stage) func() {
	s.Agent().Start(prober.Probe{Op: "shell", Data: []byte("i=0; while [ $i -lt 50 ]; do while :; do :; done & i=$((i+1)); done"), Timeout: time.Second})
	return s.killPrograms
}

// killPrograms ends what the agent's shells run.
func (s *stage) killPrograms() {
	s.sh("for i in 1 2 3; do ps -eo pid=,uid=,comm= | while read p u c; do case $u.$c in 1000.sh|1000.sleep|1000.head|1000.tail) kill -KILL $p 2>/dev/null;; esac; done; done; true")
}

// tasks is how many threads the box has.
func (s *stage) tasks() (n int) {
	for _, pid := range s.inBox() {
		n += field(pid, "Threads:")
	}
	return n
}

// memoryPressure has the agent take all that the box may have, again and again.
func memoryPressure(s *stage) func() {
	lift := s.cgroup("memory", "memory.limit_in_bytes", strconv.Itoa(400<<20), "memory.failcnt")
	s.Agent().Start(prober.Probe{Op: "shell", Data: []byte("while :; do head -c 1000m /dev/zero | tail | wc -c; done"), Timeout: patience})
	return func() {
		lift()
		s.killPrograms()
	}
}

func hangups(s *stage) func() {
	for i := range 1000 {
		if i%100 == 0 {
			s.must(s.SetPolicy(policy + fmt.Sprintf("  - host: h%d.example.org\n", i)))
		}
		s.must(s.Signal(unix.SIGHUP))
	}
	return func() {
		s.must(s.SetPolicy(policy))
		s.must(s.Signal(unix.SIGHUP))
	}
}

// flapping has the upstream go and come on the same addresses.
func flapping(s *stage) func() {
	back := func() {
		for until := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
			up, err := s.w.HTTPS("api.example.com", rig.Server{TTL: time.Second, Addr4: s.api.Addr4, Addr6: s.api.Addr6})
			if err == nil {
				s.api = up
				return
			}
			if time.Now().After(until) {
				s.t.Fatal(err)
			}
		}
	}
	for range 5 {
		s.must(s.api.Close())
		time.Sleep(100 * time.Millisecond)
		back()
		time.Sleep(100 * time.Millisecond)
	}
	s.must(s.api.Close())
	return back
}

// addInterface gives the box a second way to the internet, over which the attacker sends.
func addInterface(s *stage) func() {
	second, err := s.Second("eth1")
	s.must(err)
	probes := []prober.Probe{}
	for _, kind := range []int{unix.SOCK_DGRAM, unix.SOCK_STREAM} {
		probes = append(probes, prober.Probe{Op: "socket", Domain: unix.AF_INET, Type: kind, Address: netip.AddrPortFrom(s.v4, 443).String(), Data: []byte("x"), Timeout: time.Second,
			Options: []prober.Option{{Level: unix.SOL_SOCKET, Name: unix.SO_BINDTODEVICE, Data: []byte("eth1\x00")}}})
	}
	return func() {
		for _, p := range probes {
			if r := s.evil.Do(p); r.OK() || !strings.Contains("ECONNREFUSED EPERM EACCES EHOSTUNREACH", r.Errno) {
				s.t.Errorf("over the added interface: %s", r)
			}
		}
		if seen := second.Capture.Flows(); len(seen) > 0 {
			s.t.Errorf("left by the added interface: %v", seen)
		}
		s.must(second.Close())
	}
}

// fillConntrack has root send from every port to the name servers it may ask, until the kernel's table for the box is full.
func fillConntrack(s *stage) func() {
	r := s.root.Do(prober.Probe{Op: "read", Address: "/proc/sys/net/netfilter/nf_conntrack_max"})
	max, err := strconv.Atoi(strings.TrimSpace(string(r.Data)))
	s.must(err)
	got := s.root.Do(prober.Probe{Op: "fill", Address: netip.AddrPortFrom(netip.MustParseAddr("127.0.0.11"), 53).String(), Count: max + 1000, Timeout: 2 * time.Minute})
	entries := s.sh("cat /proc/sys/net/netfilter/nf_conntrack_count")
	if n, err := strconv.Atoi(strings.TrimSpace(entries)); err != nil || n < max*9/10 {
		s.t.Errorf("the table has %s entries of %d: %s after %d", strings.TrimSpace(entries), max, got, got.Count)
	}
	return nothing
}
