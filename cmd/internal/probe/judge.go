package probe

import (
	"fmt"
	"strings"
	"syscall"
)

// Seen is what the other side of the attempts noticed.
type Seen struct {
	Reached []string // canaries that somebody reached, by address
	Denied  uint64   // by how many packets the kernel's counter of refusals moved
}

// Verdict is what the results mean.
type Verdict struct {
	Lines  []Line `json:"lines"`
	Failed int    `json:"failed"`
	Proven int    `json:"proven"`
}

// Line is one test's outcome.
type Line struct {
	Name  string `json:"name"`
	State string `json:"state"` // ok, failed, unproven
	Why   string `json:"why"`
}

// noRoute are the answers of a namespace that has no way there at all: they prove nothing about the fence.
var noRoute = map[syscall.Errno]bool{
	syscall.ENETUNREACH: true, syscall.EADDRNOTAVAIL: true, syscall.EAFNOSUPPORT: true, syscall.ENETDOWN: true,
}

// noSocket are the kinds of socket that an agent does not even get: refused before the fence was asked.
var noSocket = map[string]bool{"icmp": true, "raw": true, "packet": true}

// Judge compares. One escape, or one control that fails, and the fence is none.
func Judge(tests []Test, results []Result, seen Seen) Verdict {
	byName := make(map[string]Result)
	for _, r := range results {
		byName[r.Name] = r
	}
	var v Verdict
	countable := 0
	for _, t := range tests {
		r, ran := byName[t.Name]
		line := judge(t, r, ran, seen)
		v.Lines = append(v.Lines, line)
		switch line.State {
		case "failed":
			v.Failed++
		case "ok":
			v.Proven++
			if t.Want == Refused && (!noSocket[t.Network] || r.Errno == 0) {
				countable++
			}
		}
	}
	if seen.Denied < uint64(countable) {
		v.Failed++
		v.Lines = append(v.Lines, Line{"counter", "failed", fmt.Sprintf(
			"%d attempts were refused, but the fence counted %d packets: something else refused them", countable, seen.Denied)})
	}
	return v
}

func judge(t Test, r Result, ran bool, seen Seen) Line {
	failed := func(why string) Line { return Line{t.Name, "failed", why} }
	switch {
	case !ran:
		return failed("was not tried")
	case t.Want == Open && r.Errno != 0:
		return failed(fmt.Sprintf("must answer, but %s", says(r.Errno)))
	case t.Want == Open:
		return Line{t.Name, "ok", "answers"}
	case r.Errno == 0 && t.Silent:
		return Line{t.Name, "ok", "sent without an error, and counted as refused"}
	case r.Errno == 0:
		return failed(fmt.Sprintf("%s to %s went through", t.Network, t.Target))
	case reached(t, seen):
		return failed("was told that it is refused, and reached it all the same")
	case r.Errno == syscall.ETIMEDOUT:
		return failed("was not refused but swallowed")
	case noRoute[r.Errno] && !noSocket[t.Network]:
		return Line{t.Name, "unproven", "no route there: " + says(r.Errno)}
	}
	return Line{t.Name, "ok", says(r.Errno)}
}

func reached(t Test, seen Seen) bool {
	for _, r := range seen.Reached {
		if t.Canary && t.Network+" "+t.Target == r {
			return true
		}
	}
	return false
}

func says(e syscall.Errno) string { return e.Error() }

// Err is nil where the fence holds, and names each test that failed otherwise.
func (v Verdict) Err() error {
	if v.Failed == 0 {
		return nil
	}
	var bad []string
	for _, l := range v.Lines {
		if l.State == "failed" {
			bad = append(bad, l.Name+": "+l.Why)
		}
	}
	return fmt.Errorf("the fence does not hold: %s", strings.Join(bad, "; "))
}
