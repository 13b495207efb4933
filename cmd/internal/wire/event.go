package wire

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"time"

	"exitgate/policy"
	"exitgate/proxy"
)

// An audit event is the one message that comes with every request, so it has a form of its own: JSON by reflection took
// 25 us of both processes for each, this takes one. The fields follow each other in the order of visit, texts and
// numbers each with their length before them.

// eventTag begins a frame that is an event and not JSON, which begins with a brace.
const eventTag = 0x01

// maxText is what the audit keeps of a text. Cutting here bounds the frame, whatever an agent sends: 16 texts, and
// then some, are far below maxFromGuest.
const maxText = 1024

// codec reads or writes the fields of an event, so that the two cannot differ.
type codec interface {
	word(*string) // one of few: a policy's names, a fixed phrase
	text(*string)
	number(*int64)
	addr(*netip.AddrPort)
}

// visit names every field once.
func visit(c codec, e *Event) {
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

func visitTokens(c codec, ev *policy.Event) {
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

func visitConn(c codec, conn *proxy.Conn) {
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

// appender writes.
type appender struct{ b []byte }

func (a *appender) number(n *int64) { a.b = binary.AppendVarint(a.b, *n) }

func (a *appender) text(s *string) {
	short := (*s)[:min(len(*s), maxText)]
	a.b = append(binary.AppendUvarint(a.b, uint64(len(short))), short...)
}

func (a *appender) word(s *string) { a.text(s) }

func (a *appender) addr(p *netip.AddrPort) {
	var buf [64]byte
	raw, _ := p.AppendBinary(buf[:0]) // never fails
	a.b = append(binary.AppendUvarint(a.b, uint64(len(raw))), raw...)
}

// appendEvent adds a whole frame, with its length.
func appendEvent(b []byte, e *Event) []byte {
	start := len(b)
	a := appender{append(b, 0, 0, 0, 0, eventTag)}
	copied := *e // visit writes back what it reads
	visit(&a, &copied)
	binary.BigEndian.PutUint32(a.b[start:], uint32(len(a.b)-start-4))
	return a.b
}

// parser reads. After the first mistake it reads nothing.
type parser struct {
	b     []byte
	bad   bool
	known *words
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

func (p *parser) number(n *int64) {
	v, size := binary.Varint(p.b)
	if size <= 0 || p.bad {
		p.bad = true
		return
	}
	*n, p.b = v, p.b[size:]
}

func (p *parser) bytes() []byte {
	n, size := binary.Uvarint(p.b)
	if size <= 0 || n > maxText || n > uint64(len(p.b)-size) || p.bad {
		p.bad = true
		return nil
	}
	b := p.b[size:][:n]
	p.b = p.b[size+int(n):]
	return b
}

func (p *parser) text(s *string) { *s = string(p.bytes()) }
func (p *parser) word(s *string) { *s = p.known.of(p.bytes()) }

func (p *parser) addr(a *netip.AddrPort) {
	raw := p.bytes()
	p.bad = p.bad || a.UnmarshalBinary(raw) != nil
}

// parseEvent reads the body of a frame after its tag.
func parseEvent(body []byte, known *words) (*Event, error) {
	e, p := new(Event), parser{b: body, known: known}
	visit(&p, e)
	if p.bad || len(p.b) != 0 {
		return nil, errors.New("a frame is not an event")
	}
	return e, nil
}
