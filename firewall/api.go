package firewall

import (
	"context"
	"errors"
	"time"
)

var errProvisional = errors.New("firewall: being written")

type Batch struct{}
type State struct{}
type Counter struct{ Packets, Bytes uint64 }
type Kernel interface {
	Commit(Batch) error
	Dump() (State, error)
}
type Ruleset struct{}

func Record() *Ruleset         { return &Ruleset{} }
func Render(c Contents) string { return "" }

type Netlink struct{}

func OpenNetlink() (*Netlink, error)  { return nil, errProvisional }
func (*Netlink) Commit(Batch) error   { return errProvisional }
func (*Netlink) Dump() (State, error) { return State{}, errProvisional }
func (*Netlink) Close() error         { return nil }

type Fake struct{}

func NewFake() *Fake               { return &Fake{} }
func (*Fake) Commit(Batch) error   { return nil }
func (*Fake) Dump() (State, error) { return State{}, nil }

type Writer struct{}

// Drift is a foreign change of the table.
type Drift struct {
	What     []string // one line a difference, the table's words
	Repaired bool
	Err      error         // why the repair failed
	Took     time.Duration // from the notice to the kernel's acknowledgement of the repair
}

func NewWriter(k Kernel) *Writer                        { return &Writer{} }
func (w *Writer) Install(c Contents) error              { return nil }
func (w *Writer) EnableDenyLog() error                  { return nil }
func (w *Writer) Update(add, del Contents) error        { return nil }
func (w *Writer) Sync(want Contents) error              { return nil }
func (w *Writer) Contents() Contents                    { return Contents{} }
func (w *Writer) Counters() (map[string]Counter, error) { return nil, nil }
func (w *Writer) Watch(ctx context.Context, every time.Duration, report func(Drift)) error {
	return nil
}
func (w *Writer) Close() error { return nil }
