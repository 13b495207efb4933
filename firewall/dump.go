package firewall

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"slices"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Dump reads the table back, everything in it. It is repeated while others
// change nftables under it, or delete what is being read.
func (k *Netlink) Dump() (State, error) {
	for range 8 {
		s, err := k.dump()
		if !errors.Is(err, errInterrupted) && !errors.Is(err, unix.ENOENT) {
			return s, err
		}
	}
	return State{}, fmt.Errorf("read the table: %w", errInterrupted)
}

// errInterrupted: the table changed during a dump, which is then inconsistent.
var errInterrupted = errors.New("nftables kept changing while it was read")

func (k *Netlink) dump() (State, error) {
	s := State{Counters: make(map[string]Counter)}
	before, err := k.generation()
	if err != nil {
		return s, err
	}
	if s.Present, s.Flags, _, err = k.readTable(); err != nil || !s.Present {
		return s, err
	}
	if err = k.readChains(&s); err == nil {
		err = k.readSets(&s)
	}
	if err == nil {
		s.Counters, err = k.Counters()
	}
	if err != nil {
		return s, err
	}
	after, err := k.generation()
	if err == nil && after != before {
		err = errInterrupted
	}
	return s, err
}

// request sends one GET and hands each message of the answer to read, without
// its four-byte family header.
func (k *Netlink) request(what int, flags netlink.HeaderFlags, attrs []netlink.Attribute, read func(*netlink.AttributeDecoder) error) error {
	body, err := netlink.MarshalAttributes(attrs)
	if err != nil {
		return err
	}
	replies, err := k.reader.Execute(netlink.Message{
		Header: netlink.Header{Type: nftType(what), Flags: netlink.Request | flags},
		Data:   append([]byte{unix.NFPROTO_INET, unix.NFNETLINK_V0, 0, 0}, body...),
	})
	if err != nil {
		return err
	}
	for _, m := range replies {
		if m.Header.Flags&netlink.DumpInterrupted != 0 {
			return errInterrupted
		}
		if m.Header.Type>>8 != unix.NFNL_SUBSYS_NFTABLES || len(m.Data) < 4 {
			continue
		}
		if err := decode(m.Data[4:], read); err != nil {
			return err
		}
	}
	return nil
}

func nftType(what int) netlink.HeaderType {
	return netlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8 | what)
}

// decode reads a list of attributes in network order.
func decode(b []byte, read func(*netlink.AttributeDecoder) error) error {
	ad, err := netlink.NewAttributeDecoder(b)
	if err != nil {
		return err
	}
	ad.ByteOrder = binary.BigEndian
	if err := read(ad); err != nil {
		return err
	}
	return ad.Err()
}

func nameAttr(typ uint16, name string) netlink.Attribute {
	return netlink.Attribute{Type: typ, Data: append([]byte(name), 0)}
}

// generation is the kernel's count of nftables transactions in this namespace.
func (k *Netlink) generation() (uint32, error) {
	var id uint32
	err := k.request(unix.NFT_MSG_GETGEN, 0, nil, func(ad *netlink.AttributeDecoder) error {
		for ad.Next() {
			if ad.Type() == unix.NFTA_GEN_ID {
				id = ad.Uint32()
			}
		}
		return nil
	})
	return id, err
}

// tableOwner is NFTA_TABLE_OWNER, which package unix lacks.
const tableOwner = 7

var tableFlags = []struct {
	bit  uint32
	name string
}{{1, "dormant"}, {2, "owner"}, {4, "persist"}}

func (k *Netlink) readTable() (present bool, flags []string, owner uint32, err error) {
	attrs := []netlink.Attribute{nameAttr(unix.NFTA_TABLE_NAME, TableName)}
	err = k.request(unix.NFT_MSG_GETTABLE, 0, attrs, func(ad *netlink.AttributeDecoder) error {
		present = true
		for ad.Next() {
			switch ad.Type() {
			case unix.NFTA_TABLE_FLAGS:
				bits := ad.Uint32()
				for _, f := range tableFlags {
					if bits&f.bit != 0 {
						flags = append(flags, f.name)
					}
				}
			case tableOwner:
				owner = ad.Uint32()
			}
		}
		return nil
	})
	if errors.Is(err, unix.ENOENT) {
		err = nil
	}
	return present, flags, owner, err
}

// owner is the netlink port of another process that owns the table.
func (k *Netlink) owner() (uint32, bool) {
	present, _, owner, err := k.readTable()
	own, _ := k.conn.GetPortID()
	return owner, err == nil && present && owner != 0 && owner != own
}

// readChains reads the chains, and a digest of each one's rules.
func (k *Netlink) readChains(s *State) error {
	rules, err := k.readRules()
	if err != nil {
		return err
	}
	return k.request(unix.NFT_MSG_GETCHAIN, netlink.Dump, nil, func(ad *netlink.AttributeDecoder) error {
		var c ChainState
		var table string
		for ad.Next() {
			switch ad.Type() {
			case unix.NFTA_CHAIN_TABLE:
				table = ad.String()
			case unix.NFTA_CHAIN_NAME:
				c.Name = ad.String()
			case unix.NFTA_CHAIN_TYPE:
				c.Type = ad.String()
			case unix.NFTA_CHAIN_POLICY:
				c.Policy = policyOf(ad.Uint32())
			case unix.NFTA_CHAIN_HOOK:
				ad.Nested(c.readHook)
			}
		}
		if table != TableName {
			return nil
		}
		if r, ok := rules[c.Name]; ok {
			c.Rules, c.Digest = r.n, hex.EncodeToString(r.sum.Sum(nil)[:8])
		} else {
			c.Digest = "-"
		}
		s.Chains = append(s.Chains, c)
		return nil
	})
}

func policyOf(v uint32) Action {
	if v == uint32(nftables.ChainPolicyAccept) {
		return Accept
	}
	return Drop
}

var hookNames = map[uint32]string{
	unix.NF_INET_PRE_ROUTING: "prerouting", unix.NF_INET_LOCAL_IN: "input", unix.NF_INET_FORWARD: "forward",
	unix.NF_INET_LOCAL_OUT: "output", unix.NF_INET_POST_ROUTING: "postrouting",
}

func (c *ChainState) readHook(ad *netlink.AttributeDecoder) error {
	ad.ByteOrder = binary.BigEndian
	for ad.Next() {
		switch ad.Type() {
		case unix.NFTA_HOOK_HOOKNUM:
			n := ad.Uint32()
			if c.Hook = hookNames[n]; c.Hook == "" {
				c.Hook = fmt.Sprint(n)
			}
		case unix.NFTA_HOOK_PRIORITY:
			c.Priority = int32(ad.Uint32())
		}
	}
	return nil
}

// ruleSum is a chain's rules: their number and a hash over their expressions as
// the kernel dumps them. Handles are left out; the record's rules hold no
// state, so traffic does not move it.
type ruleSum struct {
	n   int
	sum hash.Hash
}

func (k *Netlink) readRules() (map[string]*ruleSum, error) {
	out := make(map[string]*ruleSum)
	attrs := []netlink.Attribute{nameAttr(unix.NFTA_RULE_TABLE, TableName)}
	err := k.request(unix.NFT_MSG_GETRULE, netlink.Dump, attrs, func(ad *netlink.AttributeDecoder) error {
		var table, chain string
		var exprs []byte
		for ad.Next() {
			switch ad.Type() {
			case unix.NFTA_RULE_TABLE:
				table = ad.String()
			case unix.NFTA_RULE_CHAIN:
				chain = ad.String()
			case unix.NFTA_RULE_EXPRESSIONS:
				exprs = ad.Bytes()
			}
		}
		if table != TableName {
			return nil
		}
		if out[chain] == nil {
			out[chain] = &ruleSum{sum: sha256.New()}
		}
		r := out[chain]
		r.n++
		r.sum.Write(binary.BigEndian.AppendUint32(nil, uint32(len(exprs))))
		r.sum.Write(exprs)
		return nil
	})
	return out, err
}

// typeNames are the record's key types (and a map's value) by the numbers nft
// gives them.
var typeNames = func() map[[2]uint32]string {
	m := make(map[[2]uint32]string)
	for _, s := range record.Sets {
		m[s.typeNumbers()] = s.typeText()
	}
	return m
}()

func (s *Set) typeNumbers() [2]uint32 {
	key := keyType(s.Key)
	value := fields[s.Value].typ
	return [2]uint32{key.GetNFTMagic(), value.GetNFTMagic()}
}

// readSets reads the named sets, and the elements of the record's.
func (k *Netlink) readSets(s *State) error {
	attrs := []netlink.Attribute{nameAttr(unix.NFTA_SET_TABLE, TableName)}
	err := k.request(unix.NFT_MSG_GETSET, netlink.Dump, attrs, func(ad *netlink.AttributeDecoder) error {
		set, table, anonymous := readSet(ad)
		if table == TableName && !anonymous {
			s.Sets = append(s.Sets, set)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for i := range record.Sets {
		want := SetState{Name: record.Sets[i].Name, Kind: record.Sets[i].kind(), Type: record.Sets[i].typeText(), Size: record.Sets[i].Size}
		if slices.Contains(s.Sets, want) {
			if err := k.readElements(s, uint8(i)); err != nil {
				return err
			}
		}
	}
	return nil
}

func readSet(ad *netlink.AttributeDecoder) (set SetState, table string, anonymous bool) {
	var flags uint32
	var numbers [2]uint32
	for ad.Next() {
		switch ad.Type() {
		case unix.NFTA_SET_TABLE:
			table = ad.String()
		case unix.NFTA_SET_NAME:
			set.Name = ad.String()
		case unix.NFTA_SET_FLAGS:
			flags = ad.Uint32()
		case unix.NFTA_SET_KEY_TYPE:
			numbers[0] = ad.Uint32()
		case unix.NFTA_SET_DATA_TYPE:
			numbers[1] = ad.Uint32()
		case unix.NFTA_SET_DESC:
			ad.Nested(func(ad *netlink.AttributeDecoder) error {
				ad.ByteOrder = binary.BigEndian
				for ad.Next() {
					if ad.Type() == unix.NFTA_SET_DESC_SIZE {
						set.Size = ad.Uint32()
					}
				}
				return nil
			})
		}
	}
	set.Kind = "set"
	if flags&unix.NFT_SET_MAP != 0 {
		set.Kind = "map"
	}
	text, ok := typeNames[numbers]
	if set.Type = text; !ok || flags&^unix.NFT_SET_MAP != 0 {
		set.Type = fmt.Sprintf("%#x:%#x flags %#x", numbers[0], numbers[1], flags)
	}
	return set, table, flags&unix.NFT_SET_ANONYMOUS != 0
}

func (k *Netlink) readElements(s *State, set uint8) error {
	attrs := []netlink.Attribute{
		nameAttr(unix.NFTA_SET_ELEM_LIST_TABLE, TableName),
		nameAttr(unix.NFTA_SET_ELEM_LIST_SET, record.Sets[set].Name),
	}
	return k.request(unix.NFT_MSG_GETSETELEM, netlink.Dump, attrs, func(ad *netlink.AttributeDecoder) error {
		for ad.Next() {
			if ad.Type() == unix.NFTA_SET_ELEM_LIST_ELEMENTS {
				ad.Nested(func(list *netlink.AttributeDecoder) error {
					for list.Next() {
						e := element{set: set}
						list.Nested(e.read)
						s.elements = append(s.elements, e)
					}
					return nil
				})
			}
		}
		return nil
	})
}

// read fills in an element's key and value.
func (e *element) read(ad *netlink.AttributeDecoder) error {
	for ad.Next() {
		switch ad.Type() {
		case unix.NFTA_SET_ELEM_KEY:
			ad.Nested(readValue(e.key[:]))
		case unix.NFTA_SET_ELEM_DATA:
			ad.Nested(readValue(e.value[:]))
		}
	}
	return nil
}

func readValue(into []byte) func(*netlink.AttributeDecoder) error {
	return func(ad *netlink.AttributeDecoder) error {
		for ad.Next() {
			if ad.Type() == unix.NFTA_DATA_VALUE {
				copy(into, ad.Bytes())
			}
		}
		return nil
	}
}

// Counters reads the named counters.
func (k *Netlink) Counters() (map[string]Counter, error) {
	out := make(map[string]Counter)
	attrs := []netlink.Attribute{nameAttr(unix.NFTA_OBJ_TABLE, TableName)}
	err := k.request(unix.NFT_MSG_GETOBJ, netlink.Dump, attrs, func(ad *netlink.AttributeDecoder) error {
		var table, name string
		var typ uint32
		var c Counter
		for ad.Next() {
			switch ad.Type() {
			case unix.NFTA_OBJ_TABLE:
				table = ad.String()
			case unix.NFTA_OBJ_NAME:
				name = ad.String()
			case unix.NFTA_OBJ_TYPE:
				typ = ad.Uint32()
			case unix.NFTA_OBJ_DATA:
				ad.Nested(c.read)
			}
		}
		// Other objects do nothing without a rule that names them.
		if table == TableName && typ == unix.NFT_OBJECT_COUNTER {
			out[name] = c
		}
		return nil
	})
	return out, err
}

func (c *Counter) read(ad *netlink.AttributeDecoder) error {
	ad.ByteOrder = binary.BigEndian
	for ad.Next() {
		switch ad.Type() {
		case unix.NFTA_COUNTER_BYTES:
			c.Bytes = ad.Uint64()
		case unix.NFTA_COUNTER_PACKETS:
			c.Packets = ad.Uint64()
		}
	}
	return nil
}
