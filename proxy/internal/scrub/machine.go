package scrub

// machine is an Aho-Corasick automaton with all transitions filled in: one table
// look-up for each byte, whatever the text. It finds the last characters of needles
// and the beginnings of escapes, both without regard to case.
//
// A state is the offset of its row in next; those from accept on have something to
// report. Bytes are put into classes, so that the table of a secret or two stays in
// the first-level cache.
type machine struct {
	class  *[256]uint8
	next   [1 << 16]uint16 // the full range of its index: no bounds check
	accept uint16
	found  []finding // of the accepting states, by row
	rows   uint16    // classes, the length of a row
}

// finding is what a state reports.
type finding struct {
	needles []int // those whose last characters end here
	escape  bool  // an escape began here
}

func (m *machine) finding(state uint16) *finding { return &m.found[(state-m.accept)/m.rows] }

const (
	// anchor is how much of the end of a needle the machine looks for. It is
	// enough that nobody will guess it.
	anchor = 16
	// lanes of a text are searched side by side, since a look-up waits for the
	// one before it.
	lanes    = 4
	laneFrom = 32 * lanes // bytes of text from which on lanes pay
)

// escapes are the beginnings of all escapes of a byte in alphabet.
func escapes(inAlphabet *[256]bool) []string {
	list := []string{`\u00`, `\x`}
	for _, digit := range "0123456789abcdef" {
		list = append(list, "%"+string(digit))
	}
	for c, v := range unescape {
		if v != 0 && inAlphabet[v] {
			list = append(list, `\`+string(rune(c)))
		}
	}
	return list
}

// newMachines spreads the needles over as many machines as their states need; one
// is enough for some twenty secrets.
func newMachines(needles []needle, inAlphabet *[256]bool) []*machine {
	special := escapes(inAlphabet)
	class, classes := classify(needles, special)
	maxStates := 1 << 16 / classes
	var all []*machine
	t := newTrie(classes)
	for _, e := range special {
		t.add([]byte(e), class).escape = true
	}
	for i, n := range needles {
		tail := n.loose[max(0, len(n.loose)-anchor):]
		if len(t.states)+len(tail) > maxStates {
			all = append(all, t.machine(class))
			t = newTrie(classes)
		}
		f := t.add(tail, class)
		f.needles = append(f.needles, i)
	}
	return append(all, t.machine(class))
}

// classify gives each byte that a machine has to tell apart a class of its own. All
// others are in class 0.
func classify(needles []needle, special []string) (*[256]uint8, int) {
	var in [256]bool
	for _, n := range needles {
		for _, c := range n.loose[max(0, len(n.loose)-anchor):] {
			in[c] = true
		}
	}
	for _, e := range special {
		for _, c := range []byte(e) {
			in[caseless[c]] = true
		}
	}
	var class [256]uint8
	count := 1 // at most 256 less the 28 that caseless folds away
	for c, v := range in {
		if v {
			class[c] = uint8(count)
			count++
		}
	}
	for c := range class {
		class[c] = class[caseless[c]]
	}
	return &class, count
}

// trie collects the texts of a machine; state 0 is the root.
type trie struct {
	states  []trieState
	classes int
}

type trieState struct {
	next []int // by class; 0 is none, since nothing leads back to the root
	fail int   // the state of the longest proper suffix
	finding
}

func newTrie(classes int) *trie {
	t := &trie{classes: classes}
	t.grow()
	return t
}

func (t *trie) grow() int {
	t.states = append(t.states, trieState{next: make([]int, t.classes)})
	return len(t.states) - 1
}

// add adds text, folded by caseless, and returns what is found where it ends.
func (t *trie) add(text []byte, class *[256]uint8) *finding {
	s := 0
	for _, c := range text {
		k := class[c]
		if t.states[s].next[k] == 0 {
			n := t.grow()
			t.states[s].next[k] = n
		}
		s = t.states[s].next[k]
	}
	return &t.states[s].finding
}

// machine fills in the transitions, breadth first, and numbers the states so that
// those with something to report come last.
func (t *trie) machine(class *[256]uint8) *machine {
	queue := []int{0}
	for i := 0; i < len(queue); i++ {
		s := &t.states[queue[i]]
		f := &t.states[s.fail]
		if queue[i] != 0 {
			s.needles = append(s.needles, f.needles...)
			s.escape = s.escape || f.escape
		}
		for k, child := range s.next {
			switch {
			case child == 0:
				s.next[k] = f.next[k]
			case queue[i] != 0:
				t.states[child].fail = f.next[k]
				queue = append(queue, child)
			default:
				queue = append(queue, child)
			}
		}
	}
	return t.number(queue, class)
}

// number lays the rows of the states in order out as a machine.
func (t *trie) number(order []int, class *[256]uint8) *machine {
	m := &machine{class: class, rows: uint16(t.classes)}
	offset := make([]uint16, len(t.states))
	next := 0
	for _, accepting := range []bool{false, true} {
		if accepting {
			m.accept = uint16(next)
		}
		for _, s := range order {
			if f := t.states[s].finding; accepting == (f.escape || len(f.needles) > 0) {
				offset[s] = uint16(next)
				next += t.classes
				if accepting {
					m.found = append(m.found, f)
				}
			}
		}
	}
	for s := range t.states {
		for k, to := range t.states[s].next {
			m.next[int(offset[s])+k] = offset[to]
		}
	}
	return m
}

// hit is an accepting state that a machine came to.
type hit struct {
	end   int // offset of the text behind the byte that led there
	state uint16
}

// hits are the hits of each lane, each in order, and before those of the next lane.
type hits [lanes][]hit

// run goes over text from state s on and adds to found. The ends of hits count from
// base.
func (m *machine) run(text []byte, s uint16, base int, found *hits) {
	if len(text) < laneFrom {
		m.lane(text, s, base, &found[0])
		return
	}
	n := len(text) / lanes
	at := states{s, m.warm(text[:n]), m.warm(text[:2*n]), m.warm(text[:3*n])}
	for i := 0; i < n; i++ {
		i = m.skip(text[i:n], text[n+i:2*n], text[2*n+i:3*n], text[3*n+i:4*n], &at) + i
		if i == n {
			break
		}
		for lane, s := range at {
			if s >= m.accept {
				found[lane] = append(found[lane], hit{base + lane*n + i + 1, s})
			}
		}
	}
	m.lane(text[lanes*n:], at[lanes-1], base+lanes*n, &found[lanes-1])
}

// states is one for each lane.
type states [lanes]uint16

// skip goes on in all lanes until one accepts, and returns the index of the bytes
// that led there, or the length. It is apart from run so that the states stay in
// registers.
func (m *machine) skip(t0, t1, t2, t3 []byte, at *states) int {
	class, next, accept := m.class, &m.next, m.accept
	s0, s1, s2, s3 := at[0], at[1], at[2], at[3]
	t1, t2, t3 = t1[:len(t0)], t2[:len(t0)], t3[:len(t0)]
	for i := range t0 {
		s0 = next[s0+uint16(class[t0[i]])]
		s1 = next[s1+uint16(class[t1[i]])]
		s2 = next[s2+uint16(class[t2[i]])]
		s3 = next[s3+uint16(class[t3[i]])]
		if s0 >= accept || s1 >= accept || s2 >= accept || s3 >= accept {
			*at = states{s0, s1, s2, s3}
			return i
		}
	}
	*at = states{s0, s1, s2, s3}
	return len(t0)
}

// warm is the state behind text, whatever came before it.
func (m *machine) warm(text []byte) uint16 {
	var found []hit
	return m.lane(text[max(0, len(text)-anchor):], 0, 0, &found)
}

func (m *machine) lane(text []byte, s uint16, base int, found *[]hit) uint16 {
	for i, c := range text {
		s = m.next[s+uint16(m.class[c])]
		if s >= m.accept {
			*found = append(*found, hit{base + i + 1, s})
		}
	}
	return s
}
