package resolver

import (
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	recheck  = 5 * time.Second // how old facts about the system may get
	maxFile  = 1 << 20         // bytes read of hosts and resolv.conf
	maxAsked = 8               // servers asked; more only make a failure slower
)

// facts is what the system says now: immutable.
type facts struct {
	hosts    map[string][]netip.Addr
	conf     resolvConf
	override []netip.AddrPort // of the policy; empty: resolv.conf decides
	local    []netip.Addr     // own addresses and gateways
	six      bool             // AAAA records are worth asking for

	hostsStamp, confStamp stamp
}

// servers are the ones to ask.
func (f *facts) servers() []netip.AddrPort {
	if len(f.override) > 0 {
		return f.override
	}
	return f.conf.servers
}

// open are the ones the kernel lets through: those asked, and those Docker's embedded DNS forwards to from
// inside this namespace. A list in the policy is exhaustive.
func (f *facts) open() []netip.AddrPort {
	list := slices.Clone(f.servers())
	if len(f.override) == 0 {
		list = append(list, f.conf.forwards...)
	}
	for i, s := range list {
		list[i] = netip.AddrPortFrom(s.Addr().WithZone(""), s.Port())
	}
	slices.SortFunc(list, netip.AddrPort.Compare)
	return slices.Compact(list)
}

// system watches resolv.conf, hosts, the interfaces and the routes.
type system struct {
	cfg  Config
	now  atomic.Pointer[facts]
	mu   sync.Mutex       // guards what follows, and is held while the facts change
	at   time.Time        // of the last check
	told []netip.AddrPort // what Config.Resolvers was last called with
}

func newSystem(cfg Config) *system {
	if cfg.Root == "" {
		cfg.Root = "/"
	}
	if cfg.IPv6 == nil {
		cfg.IPv6 = func() bool { return routed6(readBounded("/proc/net/ipv6_route")) }
	}
	if cfg.Local == nil {
		cfg.Local = localAddrs
	}
	if cfg.Resolvers == nil {
		cfg.Resolvers = func([]netip.AddrPort) error { return nil }
	}
	s := &system{cfg: cfg}
	s.now.Store(s.read(&facts{}, nil))
	return s
}

func (s *system) facts() *facts { return s.now.Load() }

// special judges an address as Special does, and knows the container's own addresses and gateways too.
func (s *system) special(a netip.Addr, allowed []netip.Prefix) (why string, refused bool) {
	if why, refused = Special(a, allowed); refused {
		return why, true
	}
	a = a.Unmap()
	if slices.Contains(s.facts().local, a) && !listed(a, allowed) {
		return "an address of this machine or its gateway", true
	}
	return "", false
}

// read looks at the system. A file that did not change is not read again; one that cannot be read, and a
// resolv.conf without a server where there was one (a runtime is rewriting it), leave what was known.
func (s *system) read(old *facts, override []netip.AddrPort) *facts {
	f := *old
	f.override = override
	if data, st, ok := s.file("etc/hosts", old.hostsStamp); ok {
		f.hosts, f.hostsStamp = parseHosts(data), st
	}
	if data, st, ok := s.file("etc/resolv.conf", old.confStamp); ok {
		if conf := parseResolvConf(data); len(conf.servers) > 0 || len(old.conf.servers) == 0 {
			f.conf, f.confStamp = conf, st
		}
	}
	f.local = s.cfg.Local()
	f.six = s.cfg.IPv6()
	return &f
}

func (s *system) file(path string, known stamp) (data []byte, st stamp, changed bool) {
	path = filepath.Join(s.cfg.Root, path)
	st, err := stampOf(path)
	if err != nil || st == known {
		return nil, st, false
	}
	if !st.exists {
		return nil, st, true
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, st, false
	}
	defer f.Close()
	data, err = io.ReadAll(io.LimitReader(f, maxFile))
	return data, st, err == nil
}

// change is what a check found.
type change struct {
	hosts   []string // names whose entry in the hosts file is another
	servers bool
	local   bool
}

// check looks at the system again if that was long ago, or by force with another override. Config.Resolvers
// is called before other servers are used; its error leaves everything as it was.
func (s *system) check(now time.Time, force bool, override []netip.AddrPort) (change, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.facts()
	if !force {
		override = old.override
		if !s.at.IsZero() && now.Sub(s.at) < recheck && !now.Before(s.at) {
			return change{}, nil
		}
	}
	next := s.read(old, override)
	if list := next.open(); !slices.Equal(list, s.told) {
		if err := s.cfg.Resolvers(list); err != nil {
			return change{}, err
		}
		s.told = list
	}
	s.at = now
	s.now.Store(next)
	return change{
		hosts:   otherHosts(old.hosts, next.hosts),
		servers: !slices.Equal(old.servers(), next.servers()),
		local:   !slices.Equal(old.local, next.local),
	}, nil
}

func otherHosts(old, next map[string][]netip.Addr) (names []string) {
	for name, addrs := range next {
		if !slices.Equal(old[name], addrs) {
			names = append(names, name)
		}
	}
	for name := range old {
		if _, ok := next[name]; !ok {
			names = append(names, name)
		}
	}
	return names
}

// stamp tells two states of a file apart: runtimes rewrite these files in place as well as by rename.
type stamp struct {
	exists         bool
	inode          uint64
	size           int64
	changed, wrote syscall.Timespec
}

func stampOf(path string) (stamp, error) {
	var st syscall.Stat_t
	err := syscall.Stat(path, &st)
	if err == syscall.ENOENT || err == syscall.ENOTDIR {
		return stamp{}, nil
	}
	if err != nil {
		return stamp{}, err
	}
	return stamp{exists: true, inode: st.Ino, size: st.Size, changed: st.Ctim, wrote: st.Mtim}, nil
}

func readBounded(path string) []byte {
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer f.Close()
	data, _ := io.ReadAll(io.LimitReader(f, maxFile))
	return data
}
