package main

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"
)

// escape is a terminal's control sequence: CSI, OSC, or one of two or three characters.
var escape = regexp.MustCompile("\x1b\\[[0-?]*[ -/]*[@-~]|\x1b\\][^\x07\x1b]*(?:\x07|\x1b\\\\)|\x1b[ -/]?[0-~]")

// plain is a screen's text without control sequences.
func plain(screen string) string { return escape.ReplaceAllString(screen, "") }

// squeezed is text without blanks and controls: programs that draw put the cursor where a blank would be.
func squeezed(text string) string {
	return strings.Join(strings.Fields(plain(text)), "")
}

// answer is something to look for on the screen, and the keys that reply.
type answer struct{ shows, keys string }

// dialogue answers questions as they appear, each once and in any order, until the screen shows end.
func (s *scene) dialogue(answers []answer, end string) error {
	done := make([]bool, len(answers))
	t := s.box.Terminal
	for until := time.Now().Add(patience); time.Now().Before(until); time.Sleep(50 * time.Millisecond) {
		screen := squeezed(t.Screen())
		if strings.Contains(screen, squeezed(end)) {
			return nil
		}
		for i, a := range answers {
			if done[i] || !strings.Contains(screen, squeezed(a.shows)) {
				continue
			}
			done[i] = true
			time.Sleep(300 * time.Millisecond) // a program that just drew may not read yet
			for _, key := range strings.SplitAfter(a.keys, "\r") {
				if err := t.Type(key); err != nil {
					return err
				}
				time.Sleep(200 * time.Millisecond)
			}
			break
		}
		select {
		case <-s.box.Ended():
			return fmt.Errorf("it ended before the screen showed %q", end)
		default:
		}
	}
	return fmt.Errorf("the screen did not show %q", end)
}

// leave interrupts until the program has gone: the first interrupt may only end what it is about, and two in a row end it.
func (s *scene) leave() error {
	for until := time.Now().Add(patience); time.Now().Before(until); {
		select {
		case <-s.box.Ended():
			return nil
		case <-time.After(300 * time.Millisecond):
			s.box.Terminal.Type("\x03") // fails where it has just gone
		}
	}
	return errors.New("it does not end by interrupts")
}
