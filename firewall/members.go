package firewall

import (
	"fmt"
	"maps"
	"slices"
)

// members is what each set holds, by the set's index in the record.
type members []map[element]struct{}

func newMembers(es []element) members {
	m := make(members, len(record.Sets))
	for i := range m {
		m[i] = make(map[element]struct{})
	}
	m.change(es, nil)
	return m
}

func (m members) has(e element) bool {
	_, ok := m[e.set][e]
	return ok
}

func (m members) change(add, del []element) {
	for _, e := range del {
		delete(m[e.set], e)
	}
	for _, e := range add {
		m[e.set][e] = struct{}{}
	}
}

// list is every member, in no order.
func (m members) list() []element {
	n := 0
	for _, set := range m {
		n += len(set)
	}
	out := make([]element, 0, n)
	for _, set := range m {
		for e := range set {
			out = append(out, e)
		}
	}
	return out
}

// plan is the least change that carries out the requests in their order: each
// one's deletions, then its additions. What is there is not added, what is not
// there is not deleted, and the derived sets follow the listeners.
func (m members) plan(rs []*request) (add, del []element) {
	n := 0
	for _, r := range rs {
		n += len(r.add) + len(r.del)
	}
	last := make(map[element]bool, n)
	for _, r := range rs {
		for _, e := range r.del {
			last[e] = false
		}
		for _, e := range r.add {
			last[e] = true
		}
	}
	for e, want := range last {
		switch {
		case want && !m.has(e):
			add = append(add, e)
		case !want && m.has(e):
			del = append(del, e)
		}
	}
	more, less := m.planDerived(add, del)
	return append(add, more...), append(del, less...)
}

// planDerived is the change of the derived sets that follows from that of the
// listeners. There are few of them, and they change with a reload only.
func (m members) planDerived(add, del []element) (more, less []element) {
	if !slices.ContainsFunc(add, element.isListener) && !slices.ContainsFunc(del, element.isListener) {
		return nil, nil
	}
	listeners := newMembers(nil)
	for _, set := range []string{setListeners4, setListeners6} {
		maps.Copy(listeners[setIndex[set]], m[setIndex[set]])
	}
	listeners.change(add, del)
	want := newMembers(derived(listeners.list()))
	for _, set := range []string{setListenerPorts, setAgents} {
		for e := range want[setIndex[set]] {
			if !m.has(e) {
				more = append(more, e)
			}
		}
		for e := range m[setIndex[set]] {
			if !want.has(e) {
				less = append(less, e)
			}
		}
	}
	return more, less
}

// room refuses what the kernel would refuse as ENFILE, by the set's name.
func (m members) room(add, del []element) error {
	size := make([]int, len(m))
	for i := range m {
		size[i] = len(m[i])
	}
	for _, e := range del {
		size[e.set]--
	}
	for _, e := range add {
		size[e.set]++
	}
	for i, s := range record.Sets {
		if size[i] > int(s.Size) && size[i] > len(m[i]) {
			return fmt.Errorf("%w: %s holds %d of at most %d elements; nothing was changed", ErrSetFull, s.Name, len(m[i]), s.Size)
		}
	}
	return nil
}
