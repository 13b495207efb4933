package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"testing"
)

// TestLogWaitsForNobody: a pipe that nobody reads holds nobody up, and when somebody does each line is there or counted.
func TestLogWaitsForNobody(t *testing.T) {
	r, pipe, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	lost := 0
	w := newLogWriter(pipe, func(n int) { lost += n })
	line := append(bytes.Repeat([]byte("x"), 199), '\n')
	const total = 2*logLines + 1000 // 64 KiB of a pipe hold 327 of them
	for range total {
		fmt.Fprintf(w, "%s", line)
	}
	read := make(chan []byte)
	go func() {
		all, _ := io.ReadAll(r)
		read <- all
	}()
	w.Close()
	<-w.written // the machine may be busy
	pipe.Close()
	all := <-read
	if n := bytes.Count(all, line); n+lost != total || lost == 0 || len(all) != n*len(line) {
		t.Errorf("%d lines written and %d counted of %d", n, lost, total)
	}
	if _, err := w.Write(line); err != nil || w.Close() != nil {
		t.Errorf("after the end: %v", err)
	}
}
