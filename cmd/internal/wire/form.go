package wire

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"time"

	"exitgate/policy"
	"exitgate/proxy"
)

// The messages that come with every connection and every request have a form of their own: JSON by reflection took 25 us of
// both processes for each, this takes one. The fields follow each other in the order of visit, texts and numbers each with
// their length before them.

// A frame in this form begins with a tag; one of JSON begins with a brace.
const (
	eventTag = iota + 1
	draftTag
	openedTag
	resolveTag
	pinnedTag
	doneTag
)

// tag is 0 for a message that goes as JSON.
func (m *Message) tag() byte {
	switch {
	case m.Event != nil:
		return eventTag
	case m.Opened != nil:
		return openedTag
	case m.Resolve != nil:
		return resolveTag
	case m.Pinned != nil:
		return pinnedTag
	case m.Done != nil:
		return doneTag
	}
	return 0
}

// blank is a message to read into, nil for a tag that there is none of.
func blank(tag byte) *Message {
	switch tag {
	case eventTag:
		return &Message{Event: new(Event)}
	case openedTag:
		return &Message{Opened: new(Opened)}
	case resolveTag:
		return &Message{Resolve: new(Resolve)}
	case pinnedTag:
		return &Message{Pinned: new(Pinned)}
	case doneTag:
		return &Message{Done: new(Done)}
	}
	return nil
}

// maxText is what the audit keeps of a text. Cutting here bounds the frame, whatever an agent sends: 16 texts, and
// then some, are far below maxFromGuest.
const maxText = 1024

// codec reads or writes the fields of a message: one list of them serves both, so that the two cannot differ. It is no
// interface, through which every number of an event would be garbage.
type codec struct {
	b       []byte // what is written so far, or what is left to read
	reading bool
	bad     bool // a mistake in what was read; nothing is read after it
	known   *words
}

// visit names every field once.
func (m *Message) visit(c *codec) {
	switch {
	case m.Event != nil:
		m.Event.visit(c)
	case m.Opened != nil:
		c.word(&m.Opened.Agent)
		visitConn(c, &m.Opened.Conn)
	case m.Resolve != nil:
		visitID(c, &m.ID)
		c.word(&m.Resolve.Rule)
		c.word(&m.Resolve.Host)
		visitPort(c, &m.Resolve.Port)
	case m.Pinned != nil:
		visitID(c, &m.ID)
		c.addrs(&m.Pinned.Addresses)
		c.word(&m.Pinned.Kind)
		c.text(&m.Pinned.Error)
	case m.Done != nil:
		c.word(&m.Done.Host)
		visitPort(c, &m.Done.Port)
		c.addrs(&m.Done.Addresses)
	}
}

func visitID(c *codec, id *uint64) {
	n := int64(*id)
	c.number(&n)
	*id = uint64(n)
}

func visitPort(c *codec, port *uint16) {
	n := int64(*port)
	c.number(&n)
	*port = uint16(n)
}

func (e *Event) visit(c *codec) {
	ev := &e.Event
	for _, s := range []*string{&ev.Event, &ev.Agent, &ev.Exe, &ev.Method, &ev.Host, &ev.Rule, &ev.Decision, &ev.Upstream, &ev.Proto} {
		c.word(s)
	}
	for _, s := range []*string{&ev.Path, &ev.Reason, &ev.ID, &ev.Address} {
		c.text(s)
	}
	when, uid, pid, port, status := ev.Time.UnixNano(), int64(ev.UID), int64(ev.PID), int64(ev.Port), int64(ev.Status)
	duration, generation := int64(ev.Duration), int64(ev.Generation)
	for _, n := range []*int64{&when, &uid, &pid, &port, &status, &ev.BytesIn, &ev.BytesOut, &duration, &generation} {
		c.number(n)
	}
	ev.Time, ev.UID, ev.PID, ev.Port, ev.Status = time.Unix(0, when), uint32(uid), int(pid), uint16(port), int(status)
	ev.Duration, ev.Generation = time.Duration(duration), uint64(generation)
	visitTokens(c, ev)
	visitConn(c, &e.Conn)
}

func visitTokens(c *codec, ev *policy.Event) {
	var there int64
	if ev.Tokens != nil {
		there = 1
	}
	if c.number(&there); there == 0 {
		return
	}
	if ev.Tokens == nil {
		ev.Tokens = new(policy.Tokens)
	}
	for _, n := range []*int64{&ev.Tokens.Input, &ev.Tokens.Output, &ev.Tokens.CacheRead, &ev.Tokens.CacheCreation} {
		c.number(n)
	}
}

func visitConn(c *codec, conn *proxy.Conn) {
	c.addr(&conn.Local)
	c.addr(&conn.Remote)
	var pid, uid, there int64
	if conn.Peer != nil {
		there, pid, uid = 1, int64(conn.Peer.PID), int64(conn.Peer.UID)
	}
	for _, n := range []*int64{&there, &pid, &uid} {
		c.number(n)
	}
	if there != 0 && conn.Peer == nil {
		conn.Peer = &proxy.Peer{PID: int(pid), UID: uint32(uid)}
	}
}

// appendMessage adds m as a whole frame, with its length.
func appendMessage(b []byte, m *Message) []byte {
	tag := m.tag()
	if tag == 0 {
		return appendJSON(b, m)
	}
	start := len(b)
	c := codec{b: append(b, 0, 0, 0, 0, tag)}
	m.visit(&c)
	binary.BigEndian.PutUint32(c.b[start:], uint32(len(c.b)-start-4))
	return c.b
}

// words keeps the texts that come again and again, so that each is in memory once.
type words map[string]string

// maxWords bounds what is kept: a compromised proxy could send others for ever.
const maxWords = 1024

func (w *words) of(b []byte) string {
	if s, ok := (*w)[string(b)]; ok {
		return s
	}
	if *w == nil || len(*w) >= maxWords {
		*w = make(words)
	}
	s := string(b)
	(*w)[s] = s
	return s
}

func (c *codec) number(n *int64) {
	if !c.reading {
		c.b = binary.AppendVarint(c.b, *n)
		return
	}
	v, size := binary.Varint(c.b)
	if size <= 0 || c.bad {
		c.bad = true
		return
	}
	*n, c.b = v, c.b[size:]
}

// count is how many of something follow, each of at least one byte; at most maxText where it is read.
func (c *codec) count(n int) int {
	if !c.reading {
		c.b = binary.AppendUvarint(c.b, uint64(n))
		return n
	}
	v, size := binary.Uvarint(c.b)
	if size <= 0 || v > maxText || v > uint64(len(c.b)-size) || c.bad {
		c.bad = true
		return 0
	}
	c.b = c.b[size:]
	return int(v)
}

// take reads the bytes of a text or an address.
func (c *codec) take() []byte {
	n := c.count(0)
	b := c.b[:n]
	c.b = c.b[n:]
	return b
}

func (c *codec) text(s *string) {
	if c.reading {
		*s = string(c.take())
		return
	}
	short := (*s)[:min(len(*s), maxText)]
	c.count(len(short))
	c.b = append(c.b, short...)
}

// word is a text of which there are few: a policy's names, a fixed phrase.
func (c *codec) word(s *string) {
	if c.reading {
		*s = c.known.of(c.take())
		return
	}
	c.text(s)
}

func (c *codec) addr(a *netip.AddrPort) {
	if c.reading {
		raw := c.take()
		c.bad = c.bad || a.UnmarshalBinary(raw) != nil
		return
	}
	var buf [64]byte
	raw, _ := a.AppendBinary(buf[:0]) // never fails
	c.count(len(raw))
	c.b = append(c.b, raw...)
}

func (c *codec) addrs(list *[]netip.Addr) {
	n := c.count(len(*list))
	if c.reading && n > 0 {
		*list = make([]netip.Addr, n)
	}
	for i := range *list {
		a := netip.AddrPortFrom((*list)[i], 0)
		if c.addr(&a); c.bad {
			return
		}
		if c.reading { // a list that is written is not ours to touch, not even by what it holds already
			(*list)[i] = a.Addr()
		}
	}
}

var errForm = errors.New("a frame is not what its tag says")

// parseForm reads the body of a frame that begins with a tag.
func parseForm(body []byte, known *words) (*Message, error) {
	m, c := blank(body[0]), codec{b: body[1:], reading: true, known: known}
	if m == nil {
		return nil, errForm
	}
	if m.visit(&c); c.bad || len(c.b) != 0 {
		return nil, errForm
	}
	return m, nil
}
