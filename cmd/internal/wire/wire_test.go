package wire

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"exitgate/policy"
	"exitgate/proxy"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// desk is a Handler that answers from a table and remembers what is held.
type desk struct {
	mu     sync.Mutex
	names  map[string][]netip.Addr
	held   map[string]int
	events []policy.Event
	conns  []proxy.Conn // of Opened and of each event

	entered, gate chan struct{} // slow.example.com waits between the two
}

func (d *desk) Resolve(ctx context.Context, _, host string, _ uint16) ([]netip.Addr, error) {
	if host == "slow.example.com" {
		d.entered <- struct{}{}
		<-d.gate
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	addrs, ok := d.names[host]
	if host == "broken.example.com" {
		return nil, errors.New("a reason of PID 1's own")
	}
	if !ok {
		return nil, &proxy.Failure{Kind: "denied", Msg: host + " is not in the policy"}
	}
	d.held[host] += len(addrs)
	return addrs, nil
}

func (d *desk) Done(host string, _ uint16, addrs []netip.Addr) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.held[host] -= len(addrs)
}

func (d *desk) Refresh(credential string) {
	d.Event(policy.Event{Agent: credential, Event: "refresh"}, proxy.Conn{})
}

func (d *desk) Opened(agent string, c proxy.Conn) {
	d.Event(policy.Event{Agent: agent, Event: "opened"}, c)
}

func (d *desk) Event(e policy.Event, c proxy.Conn) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.events, d.conns = append(d.events, e), append(d.conns, c)
}

func (d *desk) holds(host string) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.held[host]
}

func newDesk() *desk {
	return &desk{held: make(map[string]int), entered: make(chan struct{}, 1), gate: make(chan struct{}), names: map[string][]netip.Addr{
		"api.example.com":  {netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")},
		"slow.example.com": {netip.MustParseAddr("192.0.2.2")},
		"none.example.com": {},
	}}
}

// connect joins a Host with a Guest and serves both.
func connect(t testing.TB, d *desk, c Commands) (*Host, *Guest, <-chan error) {
	t.Helper()
	conn, file, err := Pair()
	if err != nil {
		t.Fatal(err)
	}
	other, err := FromFile(file)
	if err != nil {
		t.Fatal(err)
	}
	h, g := NewHost(conn, d), NewGuest(other)
	ended := make(chan error, 1)
	go func() { ended <- h.Serve(context.Background()) }()
	go g.Serve(c)
	t.Cleanup(func() { h.Close(); other.Close() })
	return h, g, ended
}

// TestPingFits: what the proxy counts is no longer than one frame of its may be, however many agents and requests it had.
func TestPingFits(t *testing.T) {
	most := proxy.Stats{Generation: math.MaxUint64, Upstream: proxy.Histogram{Sum: math.MaxFloat64}, Panics: math.MaxUint64}
	for i := range 64 {
		most.Agents = append(most.Agents, proxy.AgentStats{Agent: fmt.Sprintf("%064d", i), Connections: math.MaxInt, BytesIn: math.MaxUint64, BytesOut: math.MaxUint64})
	}
	for range 30 {
		most.Upstream.Bounds = append(most.Upstream.Bounds, math.MaxFloat64)
		most.Upstream.Counts = append(most.Upstream.Counts, math.MaxUint64)
	}
	h, _, _ := connect(t, newDesk(), Commands{Stats: func() proxy.Stats { return most }})
	got, err := h.Ping(context.Background())
	if diff := cmp.Diff(most, got); err != nil || diff != "" {
		t.Errorf("%v, (-sent +got):\n%s", err, diff)
	}
}

func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for range 500 {
		if cond() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("%s: not within 5 s", what)
}

func TestResolve(t *testing.T) {
	d := newDesk()
	h, g, _ := connect(t, d, Commands{})
	got, err := g.Resolve(context.Background(), "claude", "", "api.example.com", 443)
	if err != nil || !slices.Equal(got.Addrs, d.names["api.example.com"]) {
		t.Fatalf("Resolve = %v, %v", got.Addrs, err)
	}
	if n := d.holds("api.example.com"); n != 2 {
		t.Errorf("%d pins held, want 2", n)
	}
	got.Release()
	got.Release() // once counts
	eventually(t, "the pins go back", func() bool { return d.holds("api.example.com") == 0 })
	h.mu.Lock()
	if len(h.pins) != 0 {
		t.Errorf("of pins given back %d are remembered", len(h.pins))
	}
	h.mu.Unlock()

	_, err = g.Resolve(context.Background(), "claude", "", "evil.example", 443)
	var f *proxy.Failure
	if !errors.As(err, &f) || f.Kind != "denied" || f.Msg != "evil.example is not in the policy" {
		t.Errorf("a refusal came as %#v", err)
	}
	if _, err = g.Resolve(context.Background(), "claude", "", "broken.example.com", 443); !errors.As(err, &f) || f.Kind != "internal" || f.Msg != "the name could not be resolved" {
		t.Errorf("an error of PID 1's own came as %#v", err)
	}
	if _, err = g.Resolve(context.Background(), "claude", "", "none.example.com", 443); !errors.As(err, &f) || f.Kind != "nxdomain" {
		t.Errorf("no addresses came as %#v", err)
	}
}

// A request that ended while its name was being resolved must not keep the pins.
func TestResolveCancelled(t *testing.T) {
	d := newDesk()
	h, g, _ := connect(t, d, Commands{})
	ctx, cancel := context.WithCancel(context.Background())
	go func() { <-d.entered; cancel() }()
	_, err := g.Resolve(ctx, "claude", "", "slow.example.com", 443)
	if f, ok := err.(*proxy.Failure); !ok || f.Kind != "timeout" || f.Msg == "" {
		t.Fatalf("a cancelled Resolve ended with %#v", err)
	}
	close(d.gate)
	eventually(t, "the answer is written", func() bool { return len(h.slots) == 0 })
	eventually(t, "the pins go back", func() bool { return d.holds("slow.example.com") == 0 })
}

// A proxy that asks and never gives back gets so many addresses, which are its own still when it asks for more, and go back when
// it ends.
func TestHeldIsBounded(t *testing.T) {
	d := newDesk()
	h, g, ended := connect(t, d, Commands{})
	q := &Resolve{Host: "api.example.com", Port: 443}
	for range maxHeld/2 - 1 {
		if !h.hold(q, d.names[q.Host]) {
			t.Fatal("refused too early")
		}
	}
	d.mu.Lock()
	d.held[q.Host] = maxHeld - 2
	d.mu.Unlock()
	last, err := g.Resolve(context.Background(), "", "", q.Host, 443)
	if err != nil {
		t.Fatal(err)
	}
	var f *proxy.Failure
	if _, err := g.Resolve(context.Background(), "", "", q.Host, 443); !errors.As(err, &f) || f.Kind != "internal" {
		t.Errorf("one too many: %v", err)
	}
	if n := d.holds(q.Host); n != maxHeld {
		t.Errorf("%d are held, want %d", n, maxHeld)
	}
	last.Release()
	eventually(t, "room for another", func() bool { return d.holds(q.Host) == maxHeld-2 })
	if _, err := g.Resolve(context.Background(), "", "", q.Host, 443); err != nil {
		t.Error(err)
	}
	g.link.conn.Close()
	<-ended
	eventually(t, "the pins go back", func() bool { return d.holds(q.Host) == 0 })
}

// Names that take long to resolve, however many ask for them and leave, hold up nobody else: neither the proxy's answer to a
// ping nor another agent's name. Once they are resolved, the same agent is answered too.
func TestSlowNamesHoldNobodyUp(t *testing.T) {
	d := newDesk()
	d.entered = make(chan struct{}, 2*maxResolving)
	h, g, _ := connect(t, d, Commands{Stats: func() proxy.Stats { return proxy.Stats{} }})
	ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
	defer cancel()
	var all sync.WaitGroup
	for range maxResolving + maxShare {
		all.Go(func() {
			if _, err := g.Resolve(ctx, "one", "", "slow.example.com", 443); err == nil {
				t.Error("a name was resolved that should not be")
			}
		})
	}
	all.Wait()
	soon, stop := context.WithTimeout(context.Background(), 2*time.Second)
	defer stop()
	if _, err := h.Ping(soon); err != nil {
		t.Errorf("a ping: %v", err)
	}
	if _, err := g.Resolve(soon, "another", "", "api.example.com", 443); err != nil {
		t.Errorf("another agent's name: %v", err)
	}
	if n := len(d.entered); n != maxShare {
		t.Errorf("one agent had %d names resolved at a time, want %d", n, maxShare)
	}
	close(d.gate)
	later, end := context.WithTimeout(context.Background(), 5*time.Second)
	defer end()
	if _, err := g.Resolve(later, "one", "", "api.example.com", 443); err != nil {
		t.Errorf("afterwards: %v", err)
	}
	eventually(t, "the turns go back", func() bool { return len(g.asking) == 0 && len(g.share("one")) == 0 && len(h.slots) == 0 })
	eventually(t, "the pins go back", func() bool { return d.holds("slow.example.com") == 0 })
}

// A proxy that keeps to no bound of its own has so many names resolved at a time.
func TestResolvingIsBounded(t *testing.T) {
	d := newDesk()
	d.entered = make(chan struct{}, 2*maxResolving)
	h, g, _ := connect(t, d, Commands{})
	var frames []byte
	for id := range uint64(maxResolving + 1) {
		frames = appendMessage(frames, &Message{ID: id, Resolve: &Resolve{Host: "slow.example.com", Port: 443}})
	}
	if err := g.link.send(frames); err != nil {
		t.Fatal(err)
	}
	eventually(t, "as many as may", func() bool { return len(d.entered) == maxResolving })
	time.Sleep(50 * time.Millisecond)
	if n := len(d.entered); n != maxResolving {
		t.Errorf("%d names are resolved at a time, want %d", n, maxResolving)
	}
	close(d.gate)
	eventually(t, "the one that waited", func() bool { return len(d.entered) == maxResolving+1 && len(h.slots) == 0 })
}

// A proxy without PID 1 waits for nobody.
func TestGuestAlone(t *testing.T) {
	d := newDesk()
	h, g, _ := connect(t, d, Commands{})
	go func() { <-d.entered; h.Close() }()
	for range 2 { // once while it waits, once afterwards
		_, err := g.Resolve(context.Background(), "claude", "", "slow.example.com", 443)
		if f, ok := err.(*proxy.Failure); !ok || f.Kind != "internal" || f.Msg == "" {
			t.Errorf("Resolve ended with %#v", err)
		}
	}
	g.Flush()
	close(d.gate)
}

// A dead proxy holds nothing, whatever it held and whatever was under way.
func TestDeathGivesPinsBack(t *testing.T) {
	d := newDesk()
	h, g, ended := connect(t, d, Commands{})
	if _, err := g.Resolve(context.Background(), "claude", "", "api.example.com", 443); err != nil {
		t.Fatal(err)
	}
	go g.Resolve(context.Background(), "claude", "", "slow.example.com", 443)
	<-d.entered
	g.link.conn.Close()
	<-ended
	close(d.gate)
	eventually(t, "there is an answer that nobody reads", func() bool { return len(h.slots) == 0 })
	eventually(t, "the pins go back", func() bool { return d.holds("api.example.com") == 0 && d.holds("slow.example.com") == 0 })
}

func TestConfigureHandsOverListeners(t *testing.T) {
	got := make(chan net.Listener, 1)
	h, _, _ := connect(t, newDesk(), Commands{Configure: func(_ *Configure, _ *policy.Policy, files []*os.File) error {
		if len(files) == 0 {
			return errors.New("no listener")
		}
		for _, f := range files[1:] {
			f.Close()
		}
		l, err := Listen(files[0])
		if err != nil {
			return err
		}
		got <- l
		return nil
	}})
	draft := Draft{"policy.yaml", []byte("version: 1\n" + strings.Repeat("# a megabyte of comments\n", 1<<20/25))}
	loaded, err := policy.Load(draft.File, draft.Text)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // those of the second time are its own
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		names := []Listener{{Agent: "claude", Address: l.Addr().String()}}
		applied, err := h.Configure(context.Background(), &Configure{Draft: draft, Listeners: names}, []syscall.Conn{l.(syscall.Conn)})
		if err != nil || applied.Digest != loaded.Digest() {
			t.Fatalf("Configure = %+v, %v", applied, err)
		}
		theirs := <-got
		defer theirs.Close()
		if theirs.Addr().String() != l.Addr().String() {
			t.Fatalf("%s was handed over as %s", l.Addr(), theirs.Addr())
		}
		go net.Dial("tcp", l.Addr().String())
		if _, err := theirs.Accept(); err != nil {
			t.Errorf("the handed-over listener does not accept: %v", err)
		}
	}
	// As many as a policy has: an address and a socket for each of 64 agents.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if _, err := h.Configure(context.Background(), &Configure{Draft: draft, Listeners: make([]Listener, 128)}, slices.Repeat([]syscall.Conn{l.(syscall.Conn)}, 128)); err != nil {
		t.Error(err)
	}
	(<-got).Close()
	var refused *Refused
	if _, err := h.Configure(context.Background(), &Configure{Draft: draft}, nil); !errors.As(err, &refused) || refused.Why != "no listener" {
		t.Errorf("a refused configuration came back as %v", err)
	}
	if _, err := h.Configure(context.Background(), &Configure{Draft: Draft{"policy.yaml", []byte("version: 2\n")}}, nil); err == nil || !strings.HasPrefix(err.Error(), "policy.yaml:1:10: version 2") {
		t.Errorf("a refused policy came back as %v", err)
	}
}

// A stopped proxy answers nothing: the caller's time limit holds.
func TestConfigureTimesOut(t *testing.T) {
	conn, file, err := Pair()
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	h := NewHost(conn, newDesk())
	go h.Serve(context.Background())
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if _, err := h.Configure(ctx, &Configure{Draft: Draft{"policy.yaml", make([]byte, 8<<20)}}, nil); err == nil {
		t.Fatal("a proxy that does not read applied a policy")
	}
}

func TestEventsKeepTheirOrder(t *testing.T) {
	d := newDesk()
	_, g, _ := connect(t, d, Commands{})
	conn := proxy.Conn{Remote: netip.MustParseAddrPort("127.0.0.1:40000")}
	g.Opened("claude", conn)
	for i := range 1000 {
		g.Audit(policy.Event{Event: []string{"request", "connect", "limit"}[i%3], Decision: []string{"allow", "deny"}[i%2], Status: i + 1}, conn)
	}
	g.Flush()
	eventually(t, "1,001 events", func() bool { d.mu.Lock(); defer d.mu.Unlock(); return len(d.events) == 1001 })
	for i, e := range d.events {
		if e.Status != i || (e.Agent == "claude") != (i == 0) || d.conns[i] != conn {
			t.Fatalf("event %d is %d of %q, on %v", i, e.Status, e.Agent, d.conns[i])
		}
	}
	g.Refresh("key")
	eventually(t, "a refresh", func() bool { d.mu.Lock(); defer d.mu.Unlock(); return d.events[len(d.events)-1].Agent == "key" })
}

// A socket that was handed over is PID 1's to remove.
func TestListenLeavesTheSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.sock")
	mine, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	defer mine.Close()
	f, err := mine.File()
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := Listen(f)
	if err != nil {
		t.Fatal(err)
	}
	theirs.Close()
	if _, err := os.Stat(path); err != nil {
		t.Error(err)
	}
	if f.Close() == nil {
		t.Error("the file is left open")
	}
}

// everyForm is one of each message, made anew each time: what writing one changed in it would go unseen otherwise.
func everyForm() []Message {
	e := Event{Event: policy.Event{Time: time.Unix(1790000000, 123456789), Event: "request", Agent: "claude", UID: 1000, PID: 7, Exe: "/bin/x", Method: "POST",
		Host: "api.example.com", Port: 443, Path: "/v1", Rule: "route/a", Decision: "allow", Reason: "because", Status: 200, BytesIn: 1 << 40, BytesOut: 3,
		Duration: 1500 * time.Microsecond, Upstream: "192.0.2.1:443", ID: "1-1", Generation: 9, Proto: "tcp", Address: "192.0.2.9",
		Tokens: &policy.Tokens{Input: 1, Output: 2, CacheRead: 3, CacheCreation: 4}},
		Conn: proxy.Conn{Local: netip.MustParseAddrPort("127.0.0.1:8080"), Remote: netip.MustParseAddrPort("[::1]:40000"), Peer: &proxy.Peer{PID: 5, UID: 6}}}
	addrs := []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}
	return []Message{
		{Event: &e}, {Event: &Event{Event: policy.Event{Time: time.Unix(0, 0)}}},
		{Opened: &Opened{Agent: "claude", Conn: e.Conn}},
		{ID: 1 << 60, Resolve: &Resolve{Rule: "route/api", Host: "api.example.com", Port: 65535}},
		{ID: 7, Pinned: &Pinned{Addresses: addrs}}, {ID: 8, Pinned: &Pinned{Kind: "denied", Error: "it is not in the policy"}},
		{Done: &Done{Host: "api.example.com", Port: 443, Addresses: addrs}},
	}
}

func TestForm(t *testing.T) {
	for i, m := range everyForm() {
		got, err := parseForm(appendMessage(nil, &m)[4:], new(words))
		if err != nil {
			t.Fatal(err)
		}
		want := everyForm()[i]
		if diff := cmp.Diff(&want, got, byValue); diff != "" {
			t.Errorf("a message came back as another (-sent +got):\n%s", diff)
		}
		if diff := cmp.Diff(want, m, byValue); diff != "" {
			t.Errorf("writing changed a message (-before +after):\n%s", diff)
		}
	}
	e := everyForm()[0].Event
	e.Event.Path = strings.Repeat("/\x00", 64<<10)
	frame := appendMessage(nil, &Message{Event: e})
	got, err := parseForm(frame[4:], new(words))
	if err != nil || len(frame) > maxFromGuest || len(got.Event.Event.Path) != 1024 { // what the audit keeps
		t.Errorf("a path of 128 KiB: frame of %d bytes, %v", len(frame), err)
	}
}

var byValue = cmp.Options{
	cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b }), cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
}

// Whatever a compromised proxy sends is a message or an error, and a message reads back as itself.
func FuzzForm(f *testing.F) {
	for _, m := range []Message{
		{Event: &Event{Event: policy.Event{Event: "request", Tokens: &policy.Tokens{}}}}, {Opened: &Opened{Agent: "a"}},
		{Resolve: &Resolve{Host: "b"}}, {Pinned: &Pinned{Addresses: []netip.Addr{netip.IPv6Unspecified()}}}, {Done: &Done{Host: "c"}},
	} {
		f.Add(appendMessage(nil, &m)[4:])
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		if len(body) == 0 {
			return
		}
		m, err := parseForm(body, new(words))
		if err != nil {
			return
		}
		again, err := parseForm(appendMessage(nil, m)[4:], new(words))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(m, again, byValue); diff != "" {
			t.Error(diff)
		}
	})
}

// Words are kept once, and not without end.
func TestWordsAreBounded(t *testing.T) {
	var w words
	for i := range 10 * maxWords {
		if want := strconv.Itoa(i % (3 * maxWords)); w.of([]byte(want)) != want || len(w) > maxWords {
			t.Fatalf("%d words are kept; %q came back as %q", len(w), want, w.of([]byte(want)))
		}
	}
}

// What a compromised proxy could send ends the connection, and with it the process.
func TestHostRefuses(t *testing.T) {
	frame := func(body string) []byte {
		return append(binary.BigEndian.AppendUint32(nil, uint32(len(body))), body...)
	}
	for _, c := range []struct {
		name  string
		bytes []byte
		want  string
	}{
		{"a policy of its own", frame(`{"configure":{"generation":7}}`), "only PID 1 may send"},
		{"pins that it never had", appendMessage(nil, &Message{Done: &Done{"api.example.com", 443, []netip.Addr{netip.MustParseAddr("192.0.2.1")}}}), "never had"},
		{"an answer that is not its to give", appendMessage(nil, &Message{ID: 1, Pinned: &Pinned{}}), "only PID 1 may send"},
		{"a reload that never was", appendMessage(nil, &Message{Event: &Event{Event: policy.Event{Event: "reload", Decision: "allow"}}}), "only PID 1 can see"},
		{"a decision that is none", appendMessage(nil, &Message{Event: &Event{Event: policy.Event{Event: "request", Decision: "perhaps"}}}), "only PID 1 can see"},
		{"two messages in one", frame(`{"refresh":{"credential":"a"},"drain":{}}`), "holds 2 messages"},
		{"half an event", frame("\x01\x04connect"), "not what its tag says"},
		{"an event with a text over the limit", frame("\x01\xff\xff\xff\x7f"), "not what its tag says"},
		{"none", frame(`{}`), "holds 0 messages"},
		{"no JSON", frame(`{hello`), "not a message"},
		{"a tag that there is none of", frame(`hello`), "not what its tag says"},
		{"an empty frame", frame(""), "not a message"},
		{"a draft", appendDraft(nil, &Draft{File: "policy.yaml"}), "only PID 1 may send"},
		{"half a draft", frame("\x02\x00\x00"), "not a draft"},
		{"a draft shorter than its name", frame("\x02\x00\x00\x00\x02a"), "not a draft"},
		{"half a frame, and the end", frame("\x01\x04connect")[:6], "EOF"},
		{"a length that overflows", frame("\x01" + strings.Repeat("\xff", 11)), "not what its tag says"},
		{"a number that overflows", frame("\x04" + strings.Repeat("\xff", 11)), "not what its tag says"},
		{"a name longer than its frame", frame("\x04\x02\xff\x07"), "not what its tag says"},
		{"a name over the limit", frame("\x04\x02\x81\x08" + strings.Repeat("a", 1025) + "\xf6\x06"), "not what its tag says"},
		{"a name without its port", frame("\x04\x02\x01a"), "not what its tag says"},
		{"a byte behind a message", frame("\x04\x02\x01a\xf6\x06x"), "not what its tag says"},
		{"an address that is none", frame("\x06\x01a\xf6\x06\x01\x03abc"), "not what its tag says"},
		{"a frame over the limit", binary.BigEndian.AppendUint32(nil, 1<<31), "over the limit"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, g, ended := connect(t, newDesk(), Commands{})
			if _, err := g.link.conn.Write(c.bytes); err != nil {
				t.Fatal(err)
			}
			if c.want == "EOF" {
				g.link.conn.CloseWrite()
			}
			select {
			case err := <-ended:
				if err == nil || !strings.Contains(err.Error(), c.want) {
					t.Errorf("ended with %v, want %q", err, c.want)
				}
			case <-time.After(5 * time.Second):
				t.Error("PID 1 goes on listening")
			}
		})
	}
}

// A proxy that answers something else, to nobody, or not at all: whoever asks gets an error, and PID 1 lives.
func TestWrongAnswers(t *testing.T) {
	ping, configure := "ping", "configuration"
	for _, c := range []struct {
		name   string
		ask    string
		answer func(l *link, id uint64) error
		want   string // of the error; none: it succeeds
	}{
		{"what it should", ping, func(l *link, id uint64) error { return l.write(&Message{ID: id, Ping: &Ping{Stats: &proxy.Stats{}}}) }, ""},
		{"to nobody first", ping, func(l *link, id uint64) error {
			return errors.Join(l.write(&Message{ID: id + 1, Applied: &Applied{}}), l.write(&Message{ID: id, Ping: &Ping{Stats: &proxy.Stats{}}}))
		}, ""},
		{"another message", ping, func(l *link, id uint64) error { return l.write(&Message{ID: id, Applied: &Applied{}}) }, "answered a ping with something else"},
		{"a ping without counters", ping, func(l *link, id uint64) error { return l.write(&Message{ID: id, Ping: &Ping{}}) }, "answered a ping with something else"},
		{"a ping", configure, func(l *link, id uint64) error { return l.write(&Message{ID: id, Ping: &Ping{}}) }, "answered a configuration with something else"},
		{"nothing", ping, func(*link, uint64) error { return nil }, "did not answer"},
		{"its death", ping, func(l *link, _ uint64) error { return l.conn.Close() }, "died before it answered"},
	} {
		t.Run(c.name, func(t *testing.T) {
			conn, file, err := Pair()
			if err != nil {
				t.Fatal(err)
			}
			other, err := FromFile(file)
			if err != nil {
				t.Fatal(err)
			}
			defer other.Close()
			h := NewHost(conn, newDesk())
			defer h.Close()
			ended := make(chan error, 1)
			go func() { ended <- h.Serve(context.Background()) }()
			go func() {
				l := &link{conn: other, limit: maxFromHost, takes: true}
				for {
					m, err := l.read()
					if err != nil || m.Draft == nil && c.answer(l, m.ID) != nil {
						return
					}
				}
			}()
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			if c.want == "did not answer" {
				ctx, cancel = context.WithTimeout(context.Background(), 50*time.Millisecond)
			}
			defer cancel()
			if c.ask == ping {
				_, err = h.Ping(ctx)
			} else {
				_, err = h.Configure(ctx, &Configure{}, nil)
			}
			if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
			if c.name == "its death" {
				<-ended
				if _, err := h.Ping(ctx); err == nil || !strings.Contains(err.Error(), "the proxy is gone") {
					t.Errorf("afterwards: %v", err)
				}
			}
		})
	}
}

func TestDrain(t *testing.T) {
	drained := make(chan struct{})
	h, _, _ := connect(t, newDesk(), Commands{Drain: func() { close(drained) }})
	if err := h.Drain(); err != nil {
		t.Fatal(err)
	}
	<-drained
}

// Descriptors come from PID 1 and never go there: a few messages with them would use up its own. The same frame without
// any is obeyed, before.
func TestHostTakesNoDescriptors(t *testing.T) {
	files := func() int {
		list, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(list)
	}
	_, g, ended := connect(t, newDesk(), Commands{})
	frame := appendJSON(nil, &Message{Refresh: &Refresh{"a"}})
	if _, _, err := g.link.conn.WriteMsgUnix(frame, nil, nil); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-ended:
		t.Fatalf("a frame without descriptors: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	before, zero := files(), make([]int, 200)
	if _, _, err := g.link.conn.WriteMsgUnix(frame, unix.UnixRights(zero...), nil); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-ended:
		if err == nil || !strings.Contains(err.Error(), "descriptors") {
			t.Errorf("ended with %v", err)
		}
	case <-time.After(5 * time.Second):
		t.Error("PID 1 goes on listening")
	}
	if after := files(); after > before {
		t.Errorf("%d descriptors are open, %d were", after, before)
	}
}

func BenchmarkResolve(b *testing.B) {
	_, g, _ := connect(b, newDesk(), Commands{})
	for b.Loop() {
		p, err := g.Resolve(context.Background(), "claude", "", "api.example.com", 443)
		if err != nil {
			b.Fatal(err)
		}
		p.Release()
	}
}

func BenchmarkAudit(b *testing.B) {
	_, g, _ := connect(b, newDesk(), Commands{})
	e := policy.Event{Event: "request", Agent: "claude", Method: "POST", Host: "api.anthropic.com", Port: 443, Path: "/v1/messages",
		Rule: "route/anthropic", Decision: "allow", Status: 200, Time: time.Now()}
	for b.Loop() {
		g.Audit(e, proxy.Conn{})
	}
	g.Flush()
}
