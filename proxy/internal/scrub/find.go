package scrub

import "slices"

// span is an occurrence of a needle.
type span struct{ from, to int }

// finder finds all occurrences of a Set's needles in a text that grows.
//
// A machine finds those whose last characters stand as they are, where a sieve lets
// it look. Those with an escape among the last characters end not far behind that
// escape, so every end there is tried. In either case it is text.chars, backwards
// from the end, that decides, and it knows escapes everywhere.
type finder struct {
	set   *Set
	fold  bool // case does not count
	text  text
	done  int // text.b[:done] was searched
	tried int // up to here all ends near escapes were tried
	until int // ends up to here are near an escape
	spans []span

	hits        hits // memory for the methods below
	ends, chars []char
	froms, next []int
}

// reach is how far behind the first characters of an escape an occurrence may end
// that has the escape among its last characters.
const reach = maxEscape + anchor

var noBarrier [256]bool

// newFinder returns a finder; barrier may be nil.
func newFinder(s *Set, barrier *[256]bool) *finder {
	if barrier == nil {
		barrier = &noBarrier
	}
	return &finder{set: s, text: text{barrier: barrier}}
}

// find searches b, which begins with what it was given the last time, and adds to
// f.spans.
func (f *finder) find(b []byte) {
	f.text.b = b
	f.try(f.until)
	for f.done < len(b) {
		from, passed := f.done, true
		for passed && f.done < len(b) && f.done-from < block {
			to := min(f.done+stretch, len(b))
			if passed = f.set.sieve.passes(b, f.done, to); passed {
				f.done = to
			}
		}
		if from < f.done {
			f.search(from, f.done)
		}
		if !passed {
			f.done = min(f.done+stretch, len(b))
		}
	}
}

// block is how many bytes are searched before their hits are looked at.
const block = 16 << 10

// search has the machines go over a part of the text.
func (f *finder) search(from, to int) {
	for _, m := range f.set.machines {
		m.run(f.text.b[from:to], m.warm(f.text.b[:from]), from, &f.hits)
		for lane := range f.hits {
			for _, h := range f.hits[lane] {
				f.hit(m.finding(h.state), h.end)
			}
			f.hits[lane] = f.hits[lane][:0]
		}
	}
}

func (f *finder) hit(found *finding, end int) {
	for _, n := range found.needles {
		f.lookback(end)
		f.match(n, len(f.set.needles[n].text), end, end)
	}
	if found.escape && opens(f.text.b, end, &f.set.alphabet) {
		f.tried = max(f.tried, end-1)
		f.until = max(f.until, end+reach)
		f.try(f.until)
	}
}

// try looks for needles that end behind f.tried and not behind until.
func (f *finder) try(until int) {
	for until = min(until, len(f.text.b)); f.tried < until; {
		f.tried++
		f.lookback(f.tried)
		f.ends = f.text.chars(f.ends[:0], f.tried)
		for _, c := range f.ends {
			for _, n := range f.set.byLast[caseless[c.value]] {
				if last := len(f.set.needles[n].text) - 1; f.set.needles[n].equal(last, c.value, f.fold) {
					f.match(n, last, c.from, f.tried)
				}
			}
		}
	}
}

// lookback bounds an occurrence that ends at end.
func (f *finder) lookback(end int) { f.text.floor = max(0, end-f.set.hold) }

// match adds a span that ends at end, if the first k bytes of needle n end at from.
// Where it may begin in several places, as with escaped backslashes before it, the
// first counts.
func (f *finder) match(n, k, from, end int) {
	needle := &f.set.needles[n]
	f.froms = append(f.froms[:0], from)
	for k--; k >= 0; k-- {
		f.next = f.next[:0]
		for _, q := range f.froms {
			f.chars = f.text.chars(f.chars[:0], q)
			for _, c := range f.chars {
				if needle.equal(k, c.value, f.fold) && !slices.Contains(f.next, c.from) {
					f.next = append(f.next, c.from)
				}
			}
		}
		if len(f.next) == 0 {
			return
		}
		f.froms, f.next = f.next, f.froms
	}
	f.spans = append(f.spans, span{slices.Min(f.froms), end})
}

// mask masks what was found in the first n bytes of the text.
func (f *finder) mask(n int) {
	for _, s := range f.spans {
		if s.from < n {
			mask(f.text.b[s.from:min(s.to, n)])
		}
	}
}

// drop forgets the first n bytes of the text. The next text given begins behind them.
func (f *finder) drop(n int) {
	rest := f.spans[:0]
	for _, s := range f.spans {
		if s.to > n {
			rest = append(rest, span{max(0, s.from-n), s.to - n})
		}
	}
	f.spans = rest
	f.done -= n
	f.tried = max(0, f.tried-n)
	f.until = max(0, f.until-n)
}
