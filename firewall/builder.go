package firewall

import (
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// register is where a statement works: sixteen bytes, and the four-byte ones
// behind it for concatenations.
const register = unix.NFT_REG32_00

// builder turns one rule's statements into expressions. It puts what a load
// presumes of the packet (its family, its protocol) before the first load that
// presumes it, as nft does.
type builder struct {
	exprs         []expr.Any
	family, proto byte // known of the packet from here on; 0: not yet
	// newSet makes a set of constants for this rule, in the same batch.
	newSet func(oneOf) (name string, id uint32)
}

// build is a rule's expressions.
func (r Rule) build(newSet func(oneOf) (string, uint32)) []expr.Any {
	b := builder{newSet: newSet}
	for _, s := range r.Statements {
		s.build(&b)
	}
	return b.exprs
}

func (b *builder) emit(e expr.Any) { b.exprs = append(b.exprs, e) }

// load puts a field into the register at a slot of four bytes.
func (b *builder) load(f Field, slot int) {
	b.require(f)
	b.emit(fields[f].load(register + uint32(slot)))
}

func (b *builder) require(f Field) {
	b.requireFamily(fields[f].family)
	b.requireProto(fields[f].proto)
}

func (b *builder) requireFamily(family byte) {
	if family == 0 || family == b.family {
		return
	}
	b.emit(&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: register})
	b.emit(&expr.Cmp{Op: expr.CmpOpEq, Register: register, Data: []byte{family}})
	b.family = family
}

func (b *builder) requireProto(proto byte) {
	if proto == 0 || proto == b.proto {
		return
	}
	b.emit(&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: register})
	b.emit(&expr.Cmp{Op: expr.CmpOpEq, Register: register, Data: []byte{proto}})
	b.proto = proto
}
