package firewall

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// element is one member of one set as the kernel holds it: the fields of the
// key, each filled up to four bytes, and a map's value. It is comparable, and
// small enough that sixty thousand fit a map without effort.
type element struct {
	set   uint8 // index into Record().Sets
	key   [24]byte
	value [4]byte
}

// record is the ruleset whose sets elements refer to. It is never written.
var record = Record()

// setIndex finds a set of the record by name.
var setIndex = func() map[string]uint8 {
	m := make(map[string]uint8, len(record.Sets))
	for i, s := range record.Sets {
		m[s.Name] = uint8(i)
	}
	return m
}()

func newElement(set string, parts ...[]byte) element {
	e := element{set: setIndex[set]}
	n := 0
	for _, p := range parts {
		copy(e.key[n:], p)
		n += (len(p) + 3) &^ 3
	}
	return e
}

// keyLen is the length of a set's keys in bytes, as in registers.
func (s *Set) keyLen() int {
	n := 0
	for _, f := range s.Key {
		n += 4 * f.slots()
	}
	return n
}

// keyBytes is the key of an element of s, each field filled to its registers.
func (e element) keyBytes(s Set) []byte { return e.key[:s.keyLen()] }

// compareElements orders by set, key and value.
func compareElements(a, b element) int {
	if a.set != b.set {
		return int(a.set) - int(b.set)
	}
	if c := slices.Compare(a.key[:], b.key[:]); c != 0 {
		return c
	}
	return slices.Compare(a.value[:], b.value[:])
}

func nativeUint(b []byte) uint32 { return binary.NativeEndian.Uint32(b) }

func (l Listener) element() element {
	set := setListeners4
	if l.Addr.Addr().Is6() {
		set = setListeners6
	}
	return newElement(set, native(l.UID), l.Addr.Addr().AsSlice(), big(l.Addr.Port()))
}

func (p Endpoint) element(set4, set6 string) element {
	set := set4
	if p.Addr.Is6() {
		set = set6
	}
	return newElement(set, p.Addr.AsSlice(), []byte{p.Proto}, big(p.Port))
}

// endpoint is the inverse of Endpoint.element.
func (e element) endpoint() Endpoint {
	n := fields[record.Sets[e.set].Key[0]].typ.Bytes
	addr, _ := netip.AddrFromSlice(e.key[:n])
	return Endpoint{e.key[n], addr, binary.BigEndian.Uint16(e.key[n+4:])}
}

// base is every element of c but those that are derived. It
// does not sort, for a large change's sake, and may have one twice.
func (c Contents) base() []element {
	out := make([]element, 0, c.Len()+len(c.OwnLoopback))
	for _, l := range c.Listeners {
		if l, ok := normalListener(l); ok {
			out = append(out, l.element())
		}
	}
	out = appendEndpoints(out, setEgress4, setEgress6, c.Egress)
	out = appendEndpoints(out, setResolvers4, setResolvers6, c.Resolvers)
	for _, u := range c.OwnLoopback {
		if u != 0 {
			m := newElement(setLoopbackMark, native(u))
			copy(m.value[:], native(u))
			out = append(out, newElement(setOwnLoopback, native(u), native(u)), m)
		}
	}
	out = appendPorts(out, setPublished, c.Published)
	return appendPorts(out, setRootLoopback, c.RootLoopback)
}

func appendEndpoints(out []element, set4, set6 string, endpoints []Endpoint) []element {
	for _, p := range endpoints {
		if p, ok := normalEndpoint(p); ok {
			out = append(out, p.element(set4, set6))
		}
	}
	return out
}

func appendPorts(out []element, set string, ports []uint16) []element {
	for _, p := range ports {
		if p != 0 {
			out = append(out, newElement(set, big(p)))
		}
	}
	return out
}

// elements is every element of c, each once, in c's canonical order.
func (c Contents) elements() []element {
	out := c.Normalize().base()
	return append(out, derived(out)...)
}

// derived is what a list of elements makes necessary in the sets that are not
// given: the ports and uids of listeners, each once.
func derived(es []element) []element {
	var out []element
	for _, e := range es {
		if !e.isListener() {
			continue
		}
		n := record.Sets[e.set].keyLen()
		for _, d := range []element{newElement(setListenerPorts, e.key[n-4:n-2]), newElement(setAgents, e.key[:4])} {
			if !slices.Contains(out, d) {
				out = append(out, d)
			}
		}
	}
	return out
}

func (e element) isListener() bool {
	return e.set == setIndex[setListeners4] || e.set == setIndex[setListeners6]
}

func (e element) isDerived() bool {
	return e.set == setIndex[setListenerPorts] || e.set == setIndex[setAgents]
}

// contentsOf is the inverse of elements.
func contentsOf(elements []element) Contents {
	var c Contents
	for _, e := range elements {
		s := record.Sets[e.set]
		k := e.key[:]
		switch s.Name {
		case setListeners4, setListeners6:
			a := fields[s.Key[1]].typ.Bytes
			addr, _ := netip.AddrFromSlice(k[4 : 4+a])
			c.Listeners = append(c.Listeners, Listener{nativeUint(k), netip.AddrPortFrom(addr, binary.BigEndian.Uint16(k[4+a:]))})
		case setEgress4, setEgress6:
			c.Egress = append(c.Egress, e.endpoint())
		case setResolvers4, setResolvers6:
			c.Resolvers = append(c.Resolvers, e.endpoint())
		case setPublished:
			c.Published = append(c.Published, binary.BigEndian.Uint16(k))
		case setLoopbackMark:
			c.OwnLoopback = append(c.OwnLoopback, nativeUint(k))
		case setRootLoopback:
			c.RootLoopback = append(c.RootLoopback, binary.BigEndian.Uint16(k))
		}
	}
	return c.Normalize()
}

// String is the element as nft writes it: "1000 . 127.0.0.1 . 8080".
func (e element) String() string {
	s := record.Sets[e.set]
	words, n := make([]string, len(s.Key)), 0
	for i, f := range s.Key {
		words[i] = f.format(e.key[n : n+int(fields[f].typ.Bytes)])
		n += 4 * f.slots()
	}
	text := strings.Join(words, " . ")
	if s.Value != NoField {
		text += " : " + s.Value.format(e.value[:])
	}
	return text
}

// parseElement is the inverse of String.
func parseElement(set, text string) (element, error) {
	i, ok := setIndex[set]
	if !ok {
		return element{}, fmt.Errorf("no set %q", set)
	}
	s := record.Sets[i]
	key, value, hasValue := strings.Cut(text, " : ")
	words := strings.Split(key, " . ")
	if len(words) != len(s.Key) || hasValue != (s.Value != NoField) {
		return element{}, fmt.Errorf("%q is no element of %s", text, set)
	}
	parts := make([][]byte, len(words))
	for j, f := range s.Key {
		var err error
		if parts[j], err = f.parse(words[j]); err != nil {
			return element{}, fmt.Errorf("%q in %s: %w", text, set, err)
		}
	}
	e := newElement(set, parts...)
	if hasValue {
		v, err := s.Value.parse(value)
		if err != nil {
			return element{}, fmt.Errorf("%q in %s: %w", text, set, err)
		}
		copy(e.value[:], v)
	}
	return e, nil
}

// wireKey is the key as messages have it: a key of one field is not filled up.
func (e element) wireKey(s Set) []byte {
	if len(s.Key) == 1 {
		return e.key[:fields[s.Key[0]].typ.Bytes]
	}
	return e.keyBytes(s)
}
