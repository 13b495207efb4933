package firewall

import (
	"bufio"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// State is what a kernel holds of our table.
type State struct {
	Present  bool
	Flags    []string // "dormant", "owner", "persist"
	Chains   []ChainState
	Sets     []SetState
	Counters map[string]Counter

	elements []element // of the record's sets, in no order
}

// ChainState is a chain without its rules: how many there are, and a digest of
// their expressions that is the same as long as nobody changes them.
type ChainState struct {
	Name     string
	Hook     string // "" for a chain that is not a base chain
	Type     string
	Priority int32
	Policy   Action
	Rules    int
	Digest   string
}

// SetState is a set without its elements.
type SetState struct {
	Name, Kind, Type string // Type as nft writes it, or in hex where it is none of ours
	Size             uint32
}

// Contents is what the sets hold.
func (s State) Contents() Contents { return contentsOf(s.elements) }

// Elements is the number of elements in all sets.
func (s State) Elements() int { return len(s.elements) }

// String is the state as sorted text, one line an object; ParseState reads it.
func (s State) String() string {
	if !s.Present {
		return "no table\n"
	}
	lines := []string{}
	for name := range s.Counters {
		lines = append(lines, "counter "+name)
	}
	for _, set := range s.Sets {
		lines = append(lines, fmt.Sprintf("%s %s size %d type %s", set.Kind, set.Name, set.Size, set.Type))
	}
	for _, c := range s.Chains {
		lines = append(lines, c.String())
	}
	for _, e := range s.elements {
		lines = append(lines, fmt.Sprintf("element %s %s", record.Sets[e.set].Name, e))
	}
	slices.Sort(lines)
	head := strings.Join(append([]string{"table inet " + TableName}, s.Flags...), " ")
	return strings.Join(append([]string{head}, lines...), "\n") + "\n"
}

// String is the chain on one line.
func (c ChainState) String() string {
	base := ""
	if c.Hook != "" {
		base = fmt.Sprintf(" type %s hook %s priority %d policy %s", c.Type, c.Hook, c.Priority, c.Policy)
	}
	return fmt.Sprintf("chain %s%s rules %d digest %s", c.Name, base, c.Rules, c.Digest)
}

// ParseState is the inverse of State.String; counters come back as zero.
func ParseState(text string) (State, error) {
	s := State{Counters: make(map[string]Counter)}
	sc := bufio.NewScanner(strings.NewReader(text))
	for n := 1; sc.Scan(); n++ {
		if err := s.parseLine(sc.Text()); err != nil {
			return State{}, fmt.Errorf("line %d: %w", n, err)
		}
	}
	return s, sc.Err()
}

func (s *State) parseLine(line string) error {
	kind, rest, _ := strings.Cut(line, " ")
	name, more, _ := strings.Cut(rest, " ")
	switch kind {
	case "no":
		return nil
	case "table":
		words := strings.Fields(rest)
		if len(words) < 2 || words[0] != "inet" || words[1] != TableName {
			return fmt.Errorf("%q: no table of ours", line)
		}
		s.Present, s.Flags = true, words[2:]
	case "counter":
		s.Counters[name] = Counter{}
	case "set", "map":
		set := SetState{Name: name, Kind: kind}
		sizes, typ, _ := strings.Cut(more, " type ")
		if _, err := fmt.Sscanf(sizes, "size %d", &set.Size); err != nil {
			return fmt.Errorf("%q: %w", line, err)
		}
		set.Type = typ
		s.Sets = append(s.Sets, set)
	case "element":
		e, err := parseElement(name, more)
		if err != nil {
			return err
		}
		s.elements = append(s.elements, e)
	case "chain":
		c, err := parseChain(name, more)
		if err != nil {
			return fmt.Errorf("%q: %w", line, err)
		}
		s.Chains = append(s.Chains, c)
	default:
		return fmt.Errorf("%q: no such object", line)
	}
	return nil
}

func parseChain(name, text string) (ChainState, error) {
	c := ChainState{Name: name}
	if strings.HasPrefix(text, "type ") {
		var policy string
		if _, err := fmt.Sscanf(text, "type %s hook %s priority %d policy %s", &c.Type, &c.Hook, &c.Priority, &policy); err != nil {
			return c, err
		}
		c.Policy = Action(policy)
		_, text, _ = strings.Cut(text, "policy "+policy+" ")
	}
	_, err := fmt.Sscanf(text, "rules %d digest %s", &c.Rules, &c.Digest)
	return c, err
}

// clone is a copy that shares nothing with s.
func (s State) clone() State {
	return State{
		Present: s.Present, Flags: slices.Clone(s.Flags), Chains: slices.Clone(s.Chains),
		Sets: slices.Clone(s.Sets), Counters: maps.Clone(s.Counters), elements: slices.Clone(s.elements),
	}
}

// state is the structure a ruleset has once installed: no elements, no digests.
func (r *Ruleset) state() State {
	s := State{Present: true, Counters: make(map[string]Counter)}
	for _, name := range r.Counters {
		s.Counters[name] = Counter{}
	}
	for _, set := range r.Sets {
		s.Sets = append(s.Sets, SetState{Name: set.Name, Kind: set.kind(), Type: set.typeText(), Size: set.Size})
	}
	for _, c := range r.Chains {
		cs := ChainState{Name: c.Name, Rules: len(c.Rules)}
		if c.Hook != NoHook {
			cs.Hook, cs.Type, cs.Policy = string(c.Hook), "filter", Drop
		}
		s.Chains = append(s.Chains, cs)
	}
	return s
}

// difference is how a table differs from the one that should be there.
type difference struct {
	lines     []string // for people, one a difference
	structure bool     // more than elements: the rules must be written anew
	remove    []Object // what has to go first
	add, del  []element
	mended    time.Time // when the kernel had answered
}

func (d *difference) none() bool { return len(d.lines) == 0 }

func (d *difference) note(format string, args ...any) {
	d.structure = true
	d.lines = append(d.lines, fmt.Sprintf(format, args...))
}

// compare tells got from the structure want and the elements have. Digests are
// compared where want has them.
func compare(want State, have members, got State) difference {
	var d difference
	if !got.Present {
		d.note("table deleted")
		d.add = slices.SortedFunc(slices.Values(have.list()), compareElements)
		return d
	}
	if slices.Contains(got.Flags, "dormant") {
		d.note("table made dormant")
	}
	d.compareSets(want.Sets, got.Sets)
	d.compareChains(want.Chains, got.Chains)
	d.compareCounters(want.Counters, got.Counters)
	d.compareElements(have, got.elements)
	return d
}

func (d *difference) compareChains(want, got []ChainState) {
	for _, w := range want {
		i := slices.IndexFunc(got, func(c ChainState) bool { return c.Name == w.Name })
		if i < 0 {
			d.note("chain %s deleted", w.Name)
			continue
		}
		g := got[i]
		switch {
		case g.Hook != w.Hook || g.Type != w.Type || g.Priority != w.Priority:
			// Not our chain any more, only one of its name.
			d.note("chain %s replaced: %q", w.Name, g)
			d.remove = append(d.remove, Object{"chain", w.Name})
		case g.Policy != w.Policy:
			d.note("chain %s: policy %s", w.Name, g.Policy)
		case g.Rules != w.Rules:
			d.note("chain %s: %d rules instead of %d", w.Name, g.Rules, w.Rules)
		case w.Digest != "" && g.Digest != w.Digest:
			d.note("chain %s: rules changed", w.Name)
		}
	}
	for _, g := range got {
		if !slices.ContainsFunc(want, func(c ChainState) bool { return c.Name == g.Name }) {
			d.note("chain %s added", g.Name)
			d.remove = append(d.remove, Object{"chain", g.Name})
		}
	}
}

func (d *difference) compareSets(want, got []SetState) {
	for _, w := range want {
		i := slices.IndexFunc(got, func(s SetState) bool { return s.Name == w.Name })
		switch {
		case i < 0:
			d.note("%s %s deleted", w.Kind, w.Name)
		case got[i] != w:
			d.note("%s %s replaced: %s size %d type %s", w.Kind, w.Name, got[i].Kind, got[i].Size, got[i].Type)
			d.remove = append(d.remove, Object{"set", w.Name})
		}
	}
	for _, g := range got {
		if !slices.ContainsFunc(want, func(s SetState) bool { return s.Name == g.Name }) {
			d.note("%s %s added", g.Kind, g.Name)
			d.remove = append(d.remove, Object{"set", g.Name})
		}
	}
}

func (d *difference) compareCounters(want, got map[string]Counter) {
	for _, name := range slices.Sorted(maps.Keys(want)) {
		if _, ok := got[name]; !ok {
			d.note("counter %s deleted", name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(got)) {
		if _, ok := want[name]; !ok {
			d.note("counter %s added", name)
			d.remove = append(d.remove, Object{"counter", name})
		}
	}
}

// compareElements finds what is in one and not in the other. Elements of a set
// that has to go count as missing.
func (d *difference) compareElements(have members, got []element) {
	got = slices.DeleteFunc(slices.Clone(got), func(e element) bool {
		return len(d.remove) > 0 && slices.Contains(d.remove, Object{"set", record.Sets[e.set].Name})
	})
	present := newMembers(got)
	for _, e := range got {
		if !have.has(e) {
			d.del = append(d.del, e)
		}
	}
	for _, e := range have.list() {
		if !present.has(e) {
			d.add = append(d.add, e)
		}
	}
	slices.SortFunc(d.add, compareElements)
	slices.SortFunc(d.del, compareElements)
	d.noteElements(d.add, "removed")
	d.noteElements(d.del, "added")
}

// noteElements adds one line a set.
func (d *difference) noteElements(es []element, what string) {
	for len(es) > 0 {
		n := 1
		for n < len(es) && es[n].set == es[0].set {
			n++
		}
		line := fmt.Sprintf("set %s: %d elements %s", record.Sets[es[0].set].Name, n, what)
		if n == 1 {
			line = fmt.Sprintf("set %s: %s %s", record.Sets[es[0].set].Name, es[0], what)
		}
		d.lines = append(d.lines, line)
		es = es[n:]
	}
}

// batch is what mends the difference.
func (d *difference) batch(rs *Ruleset) Batch {
	b := Batch{Remove: d.remove, add: d.add, del: d.del}
	if d.structure {
		b.Install = rs
	}
	return b
}
