package audit

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"exitgate/policy"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if os.Getenv("AUDIT_TEST_NAMESPACE") == "" {
		goleak.VerifyTestMain(m)
	}
	os.Exit(m.Run())
}

// event is a denial that can be told from others by its number.
func event(n int) policy.Event {
	return policy.Event{Time: time.Unix(int64(n), 0), Event: "connect", Agent: "claude", UID: 1000, Host: fmt.Sprintf("h%d.example", n), Port: 443, Decision: "deny", Rule: "default"}
}

// long is an event whose line has more than a kilobyte.
func long(n int) policy.Event {
	e := event(n)
	e.Path = "/" + strings.Repeat("x", 1000)
	return e
}

// numbers reads a log: the events in it, in their order, and how many it says were lost. Every line must be JSON.
func numbers(t *testing.T, log []byte) (got []int, lost int) {
	t.Helper()
	if len(log) > 0 && log[len(log)-1] != '\n' {
		t.Errorf("the log ends in the middle of a line: %q", log[max(0, len(log)-80):])
	}
	for line := range bytes.Lines(log) {
		var v struct{ Event, Host, Reason string }
		if err := json.Unmarshal(line, &v); err != nil {
			t.Fatalf("not JSON: %q", line)
		}
		if v.Event == "lost" {
			n, err := strconv.Atoi(strings.Fields(v.Reason)[0])
			if err != nil {
				t.Fatalf("a lost line without a count: %s", line)
			}
			lost += n
			continue
		}
		n, err := strconv.Atoi(strings.TrimSuffix(strings.TrimPrefix(v.Host, "h"), ".example"))
		if err != nil {
			t.Fatalf("unknown line: %s", line)
		}
		got = append(got, n)
	}
	return got, lost
}

// ascending fails unless the numbers only ever grow: nothing twice, nothing out of order.
func ascending(t *testing.T, got []int) {
	t.Helper()
	for i := 1; i < len(got); i++ {
		if got[i] <= got[i-1] {
			t.Fatalf("event %d comes after %d", got[i], got[i-1])
		}
	}
}

func open(t *testing.T, o Options) *Log {
	t.Helper()
	l, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// eventually waits for something that another goroutine brings about.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within 20 s: %s", what)
		}
	}
}

func TestFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "audit.jsonl")
	l := open(t, Options{Sink: "file:" + path})
	const total = 3000
	for n := range total {
		l.Write(event(n + 1))
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	got, lost := numbers(t, data)
	ascending(t, got)
	if len(got) != total || lost != 0 {
		t.Errorf("%d events written, %d said to be lost, of %d", len(got), lost, total)
	}
	if st, _ := os.Stat(path); st.Mode().Perm() != 0o600 {
		t.Errorf("mode %o", st.Mode().Perm())
	}
	if diff := cmp.Diff(Stats{Written: total}, l.Stats()); diff != "" {
		t.Error(diff)
	}
	first := data[:bytes.IndexByte(data, '\n')+1]
	e := event(1)
	if want := e.Append(nil); !bytes.Equal(first, want) {
		t.Errorf("line %s\nwant %s", first, want)
	}
}

// TestStuckStderr has nobody read a pipe. Write returns at once, and when somebody reads again each event is either
// there or counted.
func TestStuckStderr(t *testing.T) {
	t.Parallel()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	const total = 5000 // more than the pipe and the backlog can hold
	l := open(t, Options{Sink: "stderr", Stderr: w, Queue: total})
	sub := l.Subscribe(total)
	for n := range total {
		l.Write(long(n + 1))
	}
	eventually(t, "whoever watches sees all, though the sink is stuck", func() bool { return len(sub.C) == total })
	if l.Stats().Lost == 0 {
		t.Fatal("nothing was lost: the test does not fill the backlog")
	}
	var read []byte
	var reader sync.WaitGroup
	reader.Go(func() { read, _ = io.ReadAll(r) })
	l.Write(long(total + 1))
	if err := l.Close(); err == nil || !strings.Contains(err.Error(), "lines could not be written to stderr") {
		t.Errorf("Close: %v", err)
	}
	w.Close()
	reader.Wait()
	got, lost := numbers(t, read)
	ascending(t, got)
	if len(got)+lost != total+1 || lost == 0 {
		t.Errorf("%d events written and %d said to be lost, of %d", len(got), lost, total+1)
	}
	if s := l.Stats(); int(s.Written) != len(got) || int(s.Lost) != lost {
		t.Errorf("counted %+v, want %d and %d", s, len(got), lost)
	}
}

// TestFullQueue has many write faster than one can encode.
func TestFullQueue(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a")
	l := open(t, Options{Sink: "file:" + path, Queue: 10})
	const writers, each = 8, 2000
	var all sync.WaitGroup
	for range writers {
		all.Go(func() {
			for n := range each {
				l.Write(event(n))
			}
		})
	}
	all.Wait()
	l.Close()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	got, lost := numbers(t, data)
	if len(got)+lost != writers*each || lost == 0 {
		t.Errorf("%d events written and %d said to be lost, of %d", len(got), lost, writers*each)
	}
	if s := l.Stats(); int(s.Written) != len(got) || int(s.Lost) != lost {
		t.Errorf("counted %+v, want %d and %d", s, len(got), lost)
	}
}

// TestCloseWithAStuckSink returns although nobody ever reads.
func TestCloseWithAStuckSink(t *testing.T) {
	t.Parallel()
	blocked := make(chan struct{})
	l, err := Open(Options{Sink: "stderr", Stderr: writer(func(b []byte) (int, error) { <-blocked; return len(b), nil })})
	if err != nil {
		t.Fatal(err)
	}
	l.Write(event(1))
	if err := l.Close(); err == nil || err.Error() != "audit: stderr is stuck; its last lines were not written" {
		t.Errorf("Close: %v", err)
	}
	l.Write(event(2)) // and no panic
	if l.Close() != nil {
		t.Error("a second Close is an error")
	}
	close(blocked)
	<-l.ended
}

type writer func([]byte) (int, error)

func (w writer) Write(b []byte) (int, error) { return w(b) }

// TestFailingSink writes a few bytes at a time, and fails for a while.
func TestFailingSink(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var out []byte
	broken := true
	var told []string
	l := open(t, Options{
		Sink: "stderr",
		Stderr: writer(func(b []byte) (int, error) {
			mu.Lock()
			defer mu.Unlock()
			if broken {
				out = append(out, b[:min(7, len(b))]...)
				return min(7, len(b)), errors.New("no space left on device")
			}
			out = append(out, b...)
			return len(b), nil
		}),
		Log: func(f string, a ...any) {
			mu.Lock()
			defer mu.Unlock()
			told = append(told, fmt.Sprintf(f, a...))
		},
	})
	for n := range 100 {
		l.Write(event(n + 1))
	}
	eventually(t, "the failure is told", func() bool { mu.Lock(); defer mu.Unlock(); return len(told) == 1 })
	mu.Lock()
	broken = false
	mu.Unlock()
	eventually(t, "the recovery is told", func() bool { mu.Lock(); defer mu.Unlock(); return len(told) == 2 })
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if got, lost := numbers(t, out); len(got) != 100 || lost != 0 {
		t.Errorf("%d events, %d lost", len(got), lost)
	}
	want := []string{"audit: no space left on device; up to 4 MiB of lines wait, the rest is counted", "audit: lines are being written again"}
	if diff := cmp.Diff(want, told); diff != "" {
		t.Error(diff)
	}
}

// TestFailsToTheEnd counts what could not be written before Close.
func TestFailsToTheEnd(t *testing.T) {
	l := open(t, Options{Sink: "stderr", Stderr: writer(func(b []byte) (int, error) { return 0, errors.New("broken pipe") })})
	for n := range 10 {
		l.Write(event(n))
	}
	if err := l.Close(); err == nil || err.Error() != "audit: 10 lines could not be written to stderr" {
		t.Errorf("Close: %v", err)
	}
	if diff := cmp.Diff(Stats{Lost: 10}, l.Stats()); diff != "" {
		t.Error(diff)
	}
}

func TestSubscriptions(t *testing.T) {
	l := open(t, Options{Sink: "none"})
	fast, slow, full, gone := l.Subscribe(1000), l.Subscribe(5), l.Subscribe(2), l.Subscribe(5)
	gone.Close()
	gone.Close()
	for n := range 100 {
		l.Write(event(n + 1))
	}
	eventually(t, "all is delivered", func() bool { return len(fast.C) == 100 })
	var seen []byte
	for range 5 {
		seen = append(seen, <-slow.C...)
	}
	rest := slices.Clone(<-full.C) // room for one line: for that which tells, at the end
	for n := range 3 {
		l.Write(event(n + 101))
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	for line := range full.C {
		rest = append(rest, line...)
	}
	if got, lost := numbers(t, rest); lost != 101 || cmp.Diff([]int{1, 2}, got) != "" {
		t.Errorf("one who was never fast enough got %v and was told of %d lost", got, lost)
	}
	if line, open := <-gone.C; open {
		t.Errorf("one who has left got %s", line)
	}
	for line := range slow.C {
		seen = append(seen, line...)
	}
	if got, lost := numbers(t, seen); lost != 95 || cmp.Diff([]int{1, 2, 3, 4, 5, 101, 102, 103}, got) != "" {
		t.Errorf("a slow watcher got %v and was told of %d lost", got, lost)
	}
	seen = nil
	for line := range fast.C {
		seen = append(seen, line...)
	}
	if got, lost := numbers(t, seen); len(got) != 103 || lost != 0 {
		t.Errorf("a fast watcher got %d and was told of %d lost", len(got), lost)
	}
	fast.Close() // a second end is none
	if _, open := <-l.Subscribe(1).C; open {
		t.Error("a subscription to a closed log is open")
	}
}

// TestScrub takes a secret out of everything that leaves.
func TestScrub(t *testing.T) {
	const secret = "sk-ant-api03-FAKE"
	dir := t.TempDir()
	l := open(t, Options{
		Sink: "file:" + dir + "/a",
		Scrub: func(b []byte) []byte {
			return bytes.ReplaceAll(b, []byte(secret), bytes.Repeat([]byte("*"), len(secret)))
		},
	})
	sub := l.Subscribe(10)
	e := event(1)
	e.Path, e.Reason = "/"+secret, "because of "+secret
	l.Write(e)
	l.Close()
	file, err := os.ReadFile(dir + "/a")
	if err != nil {
		t.Fatal(err)
	}
	all := string(file) + string(<-sub.C) + fmt.Sprint(l.Denials())
	if strings.Contains(all, secret) || strings.Count(all, "because of *****") != 3 {
		t.Errorf("%s", all)
	}
}

func TestDenials(t *testing.T) {
	l := open(t, Options{Sink: "none"})
	for n := range 3 {
		e := event(1)
		e.Time = time.Unix(int64(n), 0)
		e.ID = fmt.Sprint("request ", n)
		l.Write(e)
	}
	allowed := event(2)
	allowed.Decision = "allow"
	l.Write(allowed)
	l.Write(policy.Event{Event: "denied_lookup", Host: "statsig.example"})
	l.Write(policy.Event{Event: "denied_packet", Proto: "udp", Address: "1.1.1.1", Port: 53})
	l.Write(policy.Event{Event: "pin", Host: "h1.example"})
	l.Close()
	var got []string
	for _, d := range l.Denials() {
		got = append(got, fmt.Sprintf("%s %s%s %d, last at %d", d.Event.Event, d.Event.Host, d.Event.Address, d.Count, d.Event.Time.Unix()))
	}
	none := time.Time{}.Unix()
	want := []string{"connect h1.example 3, last at 2", fmt.Sprintf("denied_lookup statsig.example 1, last at %d", none), fmt.Sprintf("denied_packet 1.1.1.1 1, last at %d", none)}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestDenialsAreBounded(t *testing.T) {
	var d denials
	same := func(b []byte) []byte { return b }
	for n := range 10 * keepDenials {
		e := event(n)
		d.add(&e, same)
	}
	if len(d.known) != keepDenials || len(d.order) != keepDenials || d.order[0].host != event(9*keepDenials).Host {
		t.Errorf("%d remembered, the oldest is %s", len(d.known), d.order[0].host)
	}
}

func TestUnknownSink(t *testing.T) {
	for sink, want := range map[string]string{
		"":             `audit "" is not known; write stderr, file:PATH or none`,
		"syslog":       `audit "syslog" is not known; write stderr, file:PATH or none`,
		"file:":        `audit "file:" is not a file's whole path; write file:/var/log/exitgate/audit.jsonl`,
		"file:a.jsonl": `audit "file:a.jsonl" is not a file's whole path; write file:/var/log/exitgate/audit.jsonl`,
		"file:/":       `audit "file:/" is not a file's whole path; write file:/var/log/exitgate/audit.jsonl`,
	} {
		if _, err := Open(Options{Sink: sink}); err == nil || err.Error() != want {
			t.Errorf("%q: %v", sink, err)
		}
	}
}

// BenchmarkLine is the whole way of an event into a file, as many at a time as the queue takes.
func BenchmarkLine(b *testing.B) {
	const batch = 8192
	l, err := Open(Options{Sink: "file:" + b.TempDir() + "/a", Queue: batch})
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	e := event(1)
	b.ReportAllocs()
	for n := 0; b.Loop(); n++ {
		if n%batch == batch-1 {
			for l.Stats().Written < uint64(n) {
				time.Sleep(50 * time.Microsecond)
			}
		}
		l.Write(e)
	}
	if l.Stats().Lost > 0 {
		b.Error("lines were lost")
	}
}

// TestEachAndSettle: whoever asks to see each event has seen all that were written when Settle returns, in their order.
func TestEachAndSettle(t *testing.T) {
	var seen []int
	l, err := Open(Options{Sink: "none", Each: func(e policy.Event) { seen = append(seen, e.Time.Second()) }})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	l.Settle()
	for i := range 50 {
		e := event(i)
		e.Count = 3
		l.Write(e)
	}
	l.Settle()
	for i, n := range seen {
		if n != i {
			t.Errorf("event %d is number %d", n, i)
		}
	}
	if d := l.Denials(); len(seen) != 50 || len(d) != 50 || d[0].Count != 3 {
		t.Errorf("%d seen, %d denials: %+v", len(seen), len(d), d[0])
	}
}
