package firewall

import "errors"

// Kernel is where the table lives: the running kernel, or a Fake.
type Kernel interface {
	// Commit applies a batch, all or nothing. An error leaves it unknown
	// whether the batch took effect (an acknowledgement can be lost): Dump tells.
	Commit(Batch) error
	// Dump reads the whole table back.
	Dump() (State, error)
	// Counters reads its named counters alone.
	Counters() (map[string]Counter, error)
}

// Batch is one change of the table.
type Batch struct {
	// Install puts the table, its counters, sets and chains in place and
	// writes every chain's rules anew, whatever was there before; elements
	// stay. Nil: only elements change.
	Install *Ruleset
	// Remove names chains, sets and counters in our table that someone else
	// made, to go before Install's own are added.
	Remove []Object

	// Elements are deleted before others are added, since a map's key must be
	// free before it gets another value.
	del, add []element
}

// Object is a chain, set or counter of the table, by kind and name.
type Object struct{ Kind, Name string }

// Counter is a named counter's value since the table was made.
type Counter struct{ Packets, Bytes uint64 }

// What a caller may branch on.
var (
	// ErrNotPermitted: the process lacks CAP_NET_ADMIN.
	ErrNotPermitted = errors.New("programming nftables is not permitted; run with --cap-add NET_ADMIN")
	// ErrUnsupported: the kernel has no nftables, or lacks a part the table needs.
	ErrUnsupported = errors.New("this kernel has no usable nftables (nf_tables with inet, ct, reject and counter support, Linux 5.10 or newer): load the modules or use another kernel")
	// ErrOwned: another process owns the table.
	ErrOwned = errors.New("table inet exitgate is owned by another process: one exitgate per network namespace; stop the other one")
	// ErrForeign: a table of our name exists that is not ours.
	ErrForeign = errors.New("a table inet exitgate exists that is not this program's: remove it with `nft delete table inet exitgate`")
	// ErrSetFull: a set has no room for an element; nothing was changed.
	ErrSetFull = errors.New("set is full")
	// ErrNotInstalled: Update or Sync came before Install.
	ErrNotInstalled = errors.New("the table is not installed yet: call Install first")
)
