package main

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"exitgate/integration/rig"

	"golang.org/x/sys/unix"
)

// decision is one line of the audit, as far as it is of interest here.
type decision struct {
	Event, Decision, Method, Host, Path, Rule, Reason, Address, Proto string
	Port, Status                                                      int
}

func (s *scene) readAudit() error {
	data, err := os.ReadFile(s.box.Path(auditPath))
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(data)) {
		var d decision
		if err := json.Unmarshal([]byte(line), &d); err != nil {
			return fmt.Errorf("audit line %q: %w", line, err)
		}
		s.audit = append(s.audit, d)
	}
	return nil
}

// housekeeping is what the kernel itself says on any link with IPv6, whoever runs there: reports of multicast listeners.
func (d decision) housekeeping() bool {
	addr, err := netip.ParseAddr(d.Address)
	return d.Event == "denied_packet" && err == nil && addr.IsLinkLocalMulticast() && d.Proto == "icmpv6"
}

// refused is what the audit says was refused, by name.
func (s *scene) refused() []string {
	var names []string
	for _, d := range s.audit {
		if d.Decision != "deny" || d.housekeeping() {
			continue
		}
		switch d.Event {
		case "denied_packet":
			names = append(names, fmt.Sprintf("%s:%d", d.Address, d.Port))
		case "request":
			names = append(names, strings.TrimSpace(d.Method+" "+d.Path))
		default:
			names = append(names, d.Host)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// call is an address that a program connected or sent to.
type call struct {
	to     netip.AddrPort
	path   string // of a unix socket
	result string
}

var (
	inet  = regexp.MustCompile(`sa_family=AF_INET, sin_port=htons\((\d+)\), sin_addr=inet_addr\("([^"]+)"\)`)
	inet6 = regexp.MustCompile(`sa_family=AF_INET6, sin6_port=htons\((\d+)\).*?inet_pton\(AF_INET6, "([^"]+)"`)
	local = regexp.MustCompile(`sa_family=AF_UNIX, sun_path="([^"]+)"`)
)

func parseCalls(text string) []call {
	var calls []call
	for line := range strings.Lines(text) {
		_, result, _ := strings.Cut(line, ") = ")
		for _, re := range []*regexp.Regexp{inet, inet6} {
			for _, m := range re.FindAllStringSubmatch(line, -1) {
				port, err1 := strconv.ParseUint(m[1], 10, 16)
				addr, err2 := netip.ParseAddr(m[2])
				if err1 == nil && err2 == nil {
					calls = append(calls, call{to: netip.AddrPortFrom(addr, uint16(port)), result: strings.TrimSpace(result)})
				}
			}
		}
		for _, m := range local.FindAllStringSubmatch(line, -1) {
			calls = append(calls, call{path: m[1]})
		}
	}
	return calls
}

// elsewhere is what the program connected to beside its listener.
func (s *scene) elsewhere() []string {
	var all []string
	for _, c := range s.calls {
		if c.to.IsValid() && c.to.String() != listener {
			all = append(all, fmt.Sprintf("%s %s", c.to, c.result))
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// reached is the names of the services that packets of the box arrived at, as a client without a fence reaches them.
func (s *scene) reached() []string {
	if s.box == nil || !s.open {
		return nil
	}
	var names []string
	for name, u := range s.upstreams {
		if s.box.Capture().To(u.Addr4, 0)+s.box.Capture().To(u.Addr6, 0) > 0 {
			names = append(names, name)
		}
	}
	for _, seen := range s.outside.Seen() {
		names = append(names, strings.TrimSuffix(seen.Host, ":443"))
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// judgeCommon is what is claimed of every client.
func (s *scene) judgeCommon() error {
	if s.code != 0 {
		return fmt.Errorf("exit code %d: %s", s.code, tail(plain(s.out), 2000))
	}
	if s.open {
		return s.judgeOpen()
	}
	return errors.Join(s.judgeReach(), s.judgeRefusals(), s.judgePlaceholder(), s.judgeSecrets())
}

// judgeOpen is the control: without a fence the program does go out by itself, and this way of looking sees it.
func (s *scene) judgeOpen() error {
	reached := s.reached()
	for _, name := range s.wants {
		if !slices.Contains(reached, name) {
			return fmt.Errorf("without a fence it did not reach %s, only %s", name, strings.Join(reached, ", "))
		}
	}
	if len(s.wants) == 0 || len(s.elsewhere()) == 0 {
		return errors.New("without a fence it connected nowhere, so the fenced runs prove nothing")
	}
	return nil
}

// judgeReach holds what the agent connected to, and what left the box, to its listener and the services.
func (s *scene) judgeReach() error {
	if s.strict {
		if other := s.elsewhere(); len(other) > 0 {
			return fmt.Errorf("it connected to something beside its listener: %s", strings.Join(other, "; "))
		}
	}
	if !s.root && !slices.ContainsFunc(s.calls, func(c call) bool { return c.to.String() == listener || strings.HasPrefix(c.path, "/run/exitgate/") }) {
		return errors.New("no connection to the listener was seen: strace sees nothing")
	}
	known := map[netip.Addr]bool{}
	for _, u := range s.upstreams {
		known[u.Addr4], known[u.Addr6] = true, true
	}
	leaks := s.box.Capture().Except(func(f rig.Flow) bool {
		dns := f.Proto == unix.IPPROTO_UDP && f.Port == 53 && (f.Dst == s.world.DNS.Addr4 || f.Dst == s.world.DNS.Addr6)
		return dns || f.Proto == unix.IPPROTO_TCP && known[f.Dst]
	})
	if len(leaks) > 0 || len(s.outside.Seen()) > 0 {
		return fmt.Errorf("packets left for %s", strings.Join(leaks, ", "))
	}
	for name := range s.world.DNS.Asked() {
		if s.upstreams[name] == nil {
			return fmt.Errorf("the name server was asked for %s", name)
		}
	}
	lost, err := s.box.Capture().Lost()
	if err == nil && lost > 0 {
		err = fmt.Errorf("%d packets were not seen", lost)
	}
	return err
}

func (s *scene) judgeRefusals() error {
	for _, name := range s.refused() {
		if !slices.Contains(s.denied, name) && !slices.Contains(s.denied, "*") {
			return fmt.Errorf("%s was refused; it is not among what should be (%s)", name, strings.Join(s.denied, ", "))
		}
	}
	for _, name := range s.denied {
		if name != "*" && !slices.Contains(s.refused(), name) {
			return fmt.Errorf("%s was not refused, only %s", name, strings.Join(s.refused(), ", "))
		}
	}
	return nil
}

// judgePlaceholder looks for the placeholder in all that arrived.
func (s *scene) judgePlaceholder() error {
	if s.dummy == "" {
		return nil
	}
	placeholder := s.env[s.dummy]
	if len(placeholder) < 8 {
		return fmt.Errorf("the agent's %s is %q, no placeholder", s.dummy, placeholder)
	}
	for name, u := range s.upstreams {
		for _, seen := range u.Seen() {
			if strings.Contains(fmt.Sprint(seen.Header, seen.URI), placeholder) || strings.Contains(string(seen.Body), placeholder) {
				return fmt.Errorf("%s got the placeholder in %s %s", name, seen.Method, seen.URI)
			}
		}
	}
	return nil
}

// judgeSecrets looks for each secret in the environment, the output and every file of the box. It has to find it in its own file.
func (s *scene) judgeSecrets() error {
	for name, secret := range s.secrets {
		found, err := holders(s.box.Path("/"), secret)
		if err != nil {
			return err
		}
		if own := "run/secrets/" + name; !slices.Equal(found, []string{own}) {
			return fmt.Errorf("the credential %s is in %s; it should be in %s alone", name, strings.Join(found, ", "), own)
		}
		if holds(s.out, secret) || holds(fmt.Sprint(s.env), secret) {
			return fmt.Errorf("the agent saw the credential %s", name)
		}
	}
	return nil
}

func holds(text, secret string) bool {
	for _, form := range []string{secret, base64.RawStdEncoding.EncodeToString([]byte(secret)), hex.EncodeToString([]byte(secret))} {
		if strings.Contains(text, form) {
			return true
		}
	}
	return false
}

// holders lists the files below root that hold a secret.
func holders(root, secret string) ([]string, error) {
	var found []string
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		data, err := os.ReadFile(path)
		if err == nil && holds(string(data), secret) {
			rel, _ := filepath.Rel(root, path)
			found = append(found, rel)
		}
		return err
	})
	return found, err
}

// sent checks that every request that asked for something of value carried this field with this value, and that others are absent.
func (s *scene) sent(upstream, field, value string, absent ...string) error {
	n := 0
	for _, seen := range s.upstreams[upstream].Seen() {
		n++
		if got := strings.Join(seen.Header.Values(field), " AND "); got != value {
			return fmt.Errorf("%s got %s: %q in %s %s", upstream, field, got, seen.Method, seen.URI)
		}
		for _, name := range absent {
			if seen.Header.Get(name) != "" {
				return fmt.Errorf("%s got %s as well, in %s %s", upstream, name, seen.Method, seen.URI)
			}
		}
	}
	if n == 0 {
		return fmt.Errorf("nothing arrived at %s", upstream)
	}
	return nil
}
