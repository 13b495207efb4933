package firewall

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// constant is a value a field is compared with: its nft text and its bytes as
// the kernel has the field in a register.
type constant struct {
	text string
	data []byte
}

// match compares a field, under a mask where there is one.
type match struct {
	field Field
	mask  constant // text "": the whole field
	op    string   // "==", "!=" or ">="
	value constant
}

func (m match) String() string {
	switch {
	case m.field == ctState:
		return "ct state " + m.mask.text
	case fields[m.field].typ.Name == nftables.TypeBoolean.Name:
		return m.field.String() + " exists"
	case m.mask.text != "":
		return fmt.Sprintf("%s & (%s) %s (%s)", m.field, m.mask.text, m.op, m.value.text)
	case m.op == "==":
		return m.field.String() + " " + m.value.text
	}
	return fmt.Sprintf("%s %s %s", m.field, m.op, m.value.text)
}

func (m match) build(b *builder) {
	b.load(m.field, 0)
	if m.mask.text != "" {
		b.emit(&expr.Bitwise{SourceRegister: register, DestRegister: register, Len: uint32(len(m.mask.data)),
			Mask: m.mask.data, Xor: make([]byte, len(m.mask.data))})
	}
	if m.op == ">=" {
		// Order needs network order; loads of host-order fields are turned first.
		b.emit(&expr.Byteorder{SourceRegister: register, DestRegister: register, Op: expr.ByteorderHton, Len: 4, Size: 4})
	}
	b.emit(&expr.Cmp{Op: cmpOps[m.op], Register: register, Data: m.value.data})
	if m.field == metaL4proto && m.op == "==" {
		b.proto = m.value.data[0]
	}
}

var cmpOps = map[string]expr.CmpOp{"==": expr.CmpOpEq, "!=": expr.CmpOpNeq, ">=": expr.CmpOpGte}

func (m match) step(e *evaluation) outcome {
	v, ok := e.get(m.field)
	if !ok {
		return breaks
	}
	if m.mask.text != "" {
		v = and(v, m.mask.data)
	}
	if m.op == ">=" {
		return when(binary.NativeEndian.Uint32(v) >= binary.BigEndian.Uint32(m.value.data))
	}
	return when(bytes.Equal(v, m.value.data) == (m.op == "=="))
}

func and(a, b []byte) []byte {
	out := make([]byte, len(a))
	for i := range a {
		out[i] = a[i] & b[i]
	}
	return out
}

// between admits a range of ports, ends included.
type between struct {
	field  Field
	lo, hi uint16
}

func (r between) String() string { return fmt.Sprintf("%s %d-%d", r.field, r.lo, r.hi) }

func (r between) build(b *builder) {
	b.load(r.field, 0)
	b.emit(&expr.Cmp{Op: expr.CmpOpGte, Register: register, Data: big(r.lo)})
	b.emit(&expr.Cmp{Op: expr.CmpOpLte, Register: register, Data: big(r.hi)})
}

func (r between) step(e *evaluation) outcome {
	v, ok := e.get(r.field)
	return when(ok && bytes.Compare(v, big(r.lo)) >= 0 && bytes.Compare(v, big(r.hi)) <= 0)
}

// oneOf admits a few constants, by an anonymous set of this rule's own.
type oneOf struct {
	field  Field
	values []constant
}

func (o oneOf) String() string {
	words := make([]string, len(o.values))
	for i, v := range o.values {
		words[i] = v.text
	}
	return fmt.Sprintf("%s { %s }", o.field, strings.Join(words, ", "))
}

func (o oneOf) build(b *builder) {
	b.load(o.field, 0)
	name, id := b.newSet(o)
	b.emit(&expr.Lookup{SourceRegister: register, SetName: name, SetID: id})
}

func (o oneOf) step(e *evaluation) outcome {
	v, ok := e.get(o.field)
	for _, c := range o.values {
		if ok && bytes.Equal(v, c.data) {
			return matches
		}
	}
	return breaks
}

// member looks a field, or a concatenation, up in a named set.
type member struct {
	key []Field
	set string
	not bool // matches what is not in the set; a packet without the field matches neither way
}

func (m member) String() string {
	if m.not {
		return joinFields(m.key) + " != @" + m.set
	}
	return joinFields(m.key) + " @" + m.set
}

func joinFields(key []Field) string {
	words := make([]string, len(key))
	for i, f := range key {
		words[i] = f.String()
	}
	return strings.Join(words, " . ")
}

func (m member) build(b *builder) {
	for _, f := range m.key {
		b.require(f)
	}
	slot := 0
	for _, f := range m.key {
		b.load(f, slot)
		slot += f.slots()
	}
	b.emit(&expr.Lookup{SourceRegister: register, SetName: m.set, Invert: m.not})
}

func (m member) step(e *evaluation) outcome {
	var key []byte
	for _, f := range m.key {
		v, ok := e.get(f)
		if !ok {
			return breaks
		}
		key = append(key, pad(v)...)
	}
	_, ok := e.lookup(m.set, key)
	return when(ok != m.not)
}

// pad fills a field up to the 4-byte registers it takes in a concatenation.
func pad(v []byte) []byte { return append(v, make([]byte, (4-len(v)%4)%4)...) }

// count adds the packet to a named counter. Named counters keep a dump of the
// rules byte-stable under traffic, so that its digest can tell drift.
type count struct{ name string }

func (c count) String() string { return fmt.Sprintf("counter name %q", c.name) }

func (c count) build(b *builder) {
	b.emit(&expr.Objref{Type: unix.NFT_OBJECT_COUNTER, Name: c.name})
}

func (c count) step(e *evaluation) outcome {
	e.verdict.Counters = append(e.verdict.Counters, c.name)
	return matches
}

// jump ends the rule: accept, drop, or goto another chain.
type jump struct {
	action Action // Accept or Drop; "" with a chain
	chain  string
}

func (j jump) String() string {
	if j.chain != "" {
		return "goto " + j.chain
	}
	return string(j.action)
}

func (j jump) build(b *builder) {
	switch {
	case j.chain != "":
		b.emit(&expr.Verdict{Kind: expr.VerdictGoto, Chain: j.chain})
	case j.action == Accept:
		b.emit(&expr.Verdict{Kind: expr.VerdictAccept})
	default:
		b.emit(&expr.Verdict{Kind: expr.VerdictDrop})
	}
}

func (j jump) step(e *evaluation) outcome {
	e.next, e.verdict.Action = j.chain, j.action
	return decides
}

// reject refuses at once: a TCP reset, or ICMP administratively prohibited.
type reject struct{ action Action }

func (r reject) String() string {
	if r.action == Reset {
		return "reject with tcp reset"
	}
	return "reject with icmpx type admin-prohibited"
}

func (r reject) build(b *builder) {
	if r.action == Reset {
		b.requireProto(unix.IPPROTO_TCP)
		b.emit(&expr.Reject{Type: unix.NFT_REJECT_TCP_RST})
		return
	}
	b.emit(&expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_ADMIN_PROHIBITED})
}

func (r reject) step(e *evaluation) outcome {
	if r.action == Reset && e.packet.Proto != unix.IPPROTO_TCP {
		return breaks
	}
	e.next, e.verdict.Action = "", r.action
	return decides
}

// setMark writes the flow's conntrack mark.
type setMark struct{ value constant }

func (s setMark) String() string { return "ct mark set " + s.value.text }

func (s setMark) build(b *builder) {
	b.emit(&expr.Immediate{Register: register, Data: s.value.data})
	b.emit(&expr.Ct{Key: expr.CtKeyMARK, Register: register, SourceRegister: true})
}

func (s setMark) step(e *evaluation) outcome {
	e.mark(s.value.data)
	return matches
}

// setMarkFrom writes the flow's conntrack mark from a map; it breaks where the
// map has no such key.
type setMarkFrom struct {
	key Field
	set string
}

func (s setMarkFrom) String() string { return fmt.Sprintf("ct mark set %s map @%s", s.key, s.set) }

func (s setMarkFrom) build(b *builder) {
	b.load(s.key, 0)
	b.emit(&expr.Lookup{SourceRegister: register, DestRegister: register, IsDestRegSet: true, SetName: s.set})
	b.emit(&expr.Ct{Key: expr.CtKeyMARK, Register: register, SourceRegister: true})
}

func (s setMarkFrom) step(e *evaluation) outcome {
	key, ok := e.get(s.key)
	if !ok {
		return breaks
	}
	value, ok := e.lookup(s.set, pad(key))
	if !ok {
		return breaks
	}
	e.mark(value)
	return matches
}

// setFlags rewrites the TCP flags, the checksum with them.
type setFlags struct{ value constant }

func (s setFlags) String() string { return "tcp flags set " + s.value.text }

func (s setFlags) build(b *builder) {
	b.requireProto(unix.IPPROTO_TCP)
	// A checksummed write must be of an even length at an even offset: the data
	// offset at byte 12 is read and written back with the flags at byte 13.
	b.emit(&expr.Payload{Base: expr.PayloadBaseTransportHeader, Offset: 12, Len: 2, DestRegister: register})
	b.emit(&expr.Bitwise{SourceRegister: register, DestRegister: register, Len: 2, Mask: []byte{0xff, 0}, Xor: []byte{0, s.value.data[0]}})
	b.emit(&expr.Payload{OperationType: expr.PayloadWrite, SourceRegister: register, Base: expr.PayloadBaseTransportHeader,
		Offset: 12, Len: 2, CsumType: expr.CsumTypeInet, CsumOffset: 16})
}

func (s setFlags) step(e *evaluation) outcome {
	if e.packet.Proto != unix.IPPROTO_TCP {
		return breaks
	}
	e.packet.TCPFlags = s.value.data[0]
	e.verdict.Rewritten = s.value.data[0]&TCPRst != 0
	return matches
}
