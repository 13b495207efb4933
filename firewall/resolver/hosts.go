package resolver

import (
	"bytes"
	"net/netip"
	"slices"
	"strings"
)

// parseHosts reads hosts(5): an address and its names a line, # to the end of the line a comment. Lines that
// make no sense are passed over, as libc does. A name has at most maxAddrs addresses.
func parseHosts(data []byte) map[string][]netip.Addr {
	hosts := map[string][]netip.Addr{}
	for line := range bytes.Lines(data) {
		if i := bytes.IndexByte(line, '#'); i >= 0 {
			line = line[:i]
		}
		fields := strings.Fields(string(line))
		if len(fields) < 2 {
			continue
		}
		addr, err := netip.ParseAddr(fields[0])
		if err != nil {
			continue
		}
		addr = addr.Unmap()
		for _, name := range fields[1:] {
			name = strings.TrimSuffix(strings.ToLower(name), ".")
			if name == "" || strings.HasSuffix(name, ".") || len(name) > 253 || len(hosts[name]) >= maxAddrs || slices.Contains(hosts[name], addr) {
				continue
			}
			hosts[name] = append(hosts[name], addr)
		}
	}
	return hosts
}
