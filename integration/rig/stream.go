package rig

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"
)

// Stream keeps the lines that PID 1 and its children write, and lets a test wait for one.
type Stream struct {
	done chan struct{} // closed at the end

	mu    sync.Mutex // guards following
	lines []string
	more  chan struct{} // closed and replaced when a line arrives or the stream ends
	ended bool
}

func newStream(r *os.File) *Stream {
	s := &Stream{done: make(chan struct{}), more: make(chan struct{})}
	go s.read(r)
	return s
}

func (s *Stream) read(r io.ReadCloser) {
	defer r.Close()
	defer close(s.done)
	br := bufio.NewReader(r)
	for {
		line, err := br.ReadString('\n')
		s.add(strings.TrimSuffix(line, "\n"), line != "", err != nil)
		if err != nil {
			return
		}
	}
}

func (s *Stream) add(line string, some, end bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if some {
		s.lines = append(s.lines, line)
	}
	s.ended = s.ended || end
	close(s.more)
	s.more = make(chan struct{})
}

// Lines is what was written so far.
func (s *Stream) Lines() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.lines...)
}

// String is what was written so far, as one text. A box with a terminal has no streams.
func (s *Stream) String() string {
	if s == nil {
		return ""
	}
	return strings.Join(s.Lines(), "\n")
}

// Errors of Wait.
var (
	ErrStreamEnded = errors.New("the stream ended before the line came")
	ErrNoLine      = errors.New("the line did not come in time")
)

// Wait returns the first line, among those from the from-th on, that match accepts, and its number.
func (s *Stream) Wait(from int, limit time.Duration, match func(string) bool) (string, int, error) {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	for {
		s.mu.Lock()
		for ; from < len(s.lines); from++ {
			if match(s.lines[from]) {
				line := s.lines[from]
				s.mu.Unlock()
				return line, from, nil
			}
		}
		more, ended := s.more, s.ended
		s.mu.Unlock()
		if ended {
			return "", from, ErrStreamEnded
		}
		select {
		case <-more:
		case <-timer.C:
			return "", from, ErrNoLine
		}
	}
}

// WaitText waits for a line that contains text.
func (s *Stream) WaitText(text string, limit time.Duration) (string, error) {
	line, _, err := s.Wait(0, limit, func(l string) bool { return strings.Contains(l, text) })
	return line, err
}

// Tail is the end of what was written: at most n lines, and how many there were before.
func (s *Stream) Tail(n int) string {
	lines := s.Lines()
	if before := len(lines) - n; before > 0 {
		lines = append([]string{fmt.Sprintf("(%d lines before)", before)}, lines[before:]...)
	}
	return strings.Join(lines, "\n")
}
