package report

import (
	"fmt"
	"time"
)

// bins is how many bars the timeline has at most, and fewest how many there is room for at least.
const (
	bins   = 120
	fewest = 30
)

// widths are what a bar can stand for; each is a multiple of the one before, so that bars can be put together.
var widths = []time.Duration{
	100 * time.Millisecond, 500 * time.Millisecond, time.Second, 5 * time.Second, 15 * time.Second, 30 * time.Second,
	time.Minute, 5 * time.Minute, 15 * time.Minute, 30 * time.Minute, time.Hour, 3 * time.Hour, 6 * time.Hour, 24 * time.Hour,
}

// timeline counts decisions in equal spans. When time outgrows them they become wider. The zero value is empty.
type timeline struct {
	start time.Time
	width time.Duration
	next  int // of widths
	bins  [bins]bin
}

// widest is where bars stop becoming wider: 120 of them are 168 years, and of the next width more than a time.Duration can
// say. What is beyond that, as no honest clock has it, is counted in the last bar.
const widest = 512 * 24 * time.Hour

type bin struct{ allow, deny int }

func (t *timeline) add(at time.Time, deny bool, n int) {
	if t.width == 0 {
		t.start, t.width, t.next = at.UTC().Truncate(widths[0]), widths[0], 1
	}
	for t.width < widest && !at.Before(t.start.Add(bins*t.width)) {
		t.widen()
	}
	b := &t.bins[min(max(0, int(at.Sub(t.start)/t.width)), bins-1)] // lines of several processes may be out of order
	if deny {
		b.deny += n
	} else {
		b.allow += n
	}
}

// widen puts bars together. They begin at round times.
func (t *timeline) widen() {
	width := 2 * t.width
	if t.next < len(widths) {
		width = widths[t.next]
		t.next++
	}
	start := t.start.Truncate(width)
	var wider [bins]bin
	for i, b := range t.bins {
		to := &wider[int(t.start.Add(time.Duration(i)*t.width).Sub(start)/width)]
		to.allow += b.allow
		to.deny += b.deny
	}
	t.bins, t.width, t.start = wider, width, start
}

// Chart is the timeline as it is drawn, in percent of its height; there is one bar a unit of its width.
type Chart struct {
	Bars  []Bar
	Width int // in bars
	Most  int
	Span  time.Duration // of a bar
	Marks []Mark
	From  time.Time
	To    time.Time
}

// Bar is one span.
type Bar struct {
	X                   float64
	Allow, Deny         int
	AllowHigh, DenyHigh float64
	AllowFrom, DenyFrom float64 // the upper edges
	At                  time.Time
}

// Mark is a moment of the gate's own life on the time axis.
type Mark struct {
	Moment
	Percent float64
}

// chart draws up to last. nil: there is nothing to draw.
func (t *timeline) chart(last time.Time, life []Moment) *Chart {
	if t.width == 0 {
		return nil
	}
	used := min(bins, max(fewest, int(last.Sub(t.start)/t.width)+1))
	c := &Chart{Width: used, Span: t.width, From: t.start, To: t.start.Add(time.Duration(used) * t.width)}
	for _, b := range t.bins[:used] {
		c.Most = max(c.Most, b.allow+b.deny)
	}
	for i, b := range t.bins[:used] {
		if b.allow+b.deny > 0 {
			c.Bars = append(c.Bars, c.bar(i, b, t.start.Add(time.Duration(i)*t.width)))
		}
	}
	for _, m := range life {
		if at := m.At.Sub(c.From); at >= 0 && m.At.Before(c.To) {
			c.Marks = append(c.Marks, Mark{m, 100 * float64(at) / float64(c.To.Sub(c.From))})
		}
	}
	return c
}

// visible is the least height of what there is at all.
const visible = 1.5

func (c *Chart) bar(i int, b bin, at time.Time) Bar {
	high := func(n int) float64 {
		if n == 0 {
			return 0
		}
		return max(visible, float64(n)/float64(c.Most)*(100-2*visible))
	}
	out := Bar{X: float64(i) + 0.1, Allow: b.allow, Deny: b.deny, AllowHigh: high(b.allow), DenyHigh: high(b.deny), At: at}
	out.AllowFrom = 100 - out.AllowHigh
	out.DenyFrom = out.AllowFrom - out.DenyHigh
	return out
}

// Middle is the time in the middle of the axis.
func (c *Chart) Middle() time.Time { return c.From.Add(c.To.Sub(c.From) / 2) }

// Label is a time on the axis, as exact as the chart is long.
func (c *Chart) Label(t time.Time) string {
	switch all := c.To.Sub(c.From); {
	case all > 24*time.Hour:
		return t.Format("Jan 2 15:04")
	case all > time.Hour:
		return t.Format("15:04")
	}
	return t.Format("15:04:05")
}

// Alt is the chart in words.
func (c *Chart) Alt() string {
	allow, deny := 0, 0
	for _, b := range c.Bars {
		allow, deny = allow+b.Allow, deny+b.Deny
	}
	return fmt.Sprintf("%d decisions allowed and %d denied over time, at most %d in %v", allow, deny, c.Most, c.Span)
}
