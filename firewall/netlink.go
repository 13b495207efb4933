package firewall

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Netlink is the running kernel, reached from one network namespace: that of
// the thread that opened it, for as long as it is open.
type Netlink struct {
	mu     sync.Mutex     // one batch at a time: the library's connection holds one message list
	conn   *nftables.Conn // writes
	reader *netlink.Conn  // reads, by our own parser: the library drops expressions it does not know
	events *netlink.Conn  // what others change
	limit  int            // bytes one batch may have
	plain  bool           // without the owner flag, so that tests can meddle
	own    atomic.Uint32  // batches committed
	seen   uint32         // generation at the last look, see moved
}

// socketBuffer is asked for in both directions: sixty thousand IPv6 elements
// are 2.6 MB of messages, and setting any buffer stops the library from sizing
// them itself. The kernel gives less to a process without CAP_NET_ADMIN in the
// first user namespace; Commit then sends several batches.
const socketBuffer = 4 << 20

// chunk is how many elements go into one message. The kernel's attributes are
// of 64 KiB at most, an element is of 48 bytes at most.
const chunk = 1000

// elementBytes bounds what an element takes in a message.
const elementBytes = 64

// OpenNetlink connects to nf_tables in the calling thread's network namespace.
// It is to be the first thing a process does: the library cannot use a file
// descriptor of 1024 or more.
func OpenNetlink() (*Netlink, error) {
	k := &Netlink{}
	var err error
	k.conn, err = nftables.New(nftables.AsLasting(), nftables.WithSockOptions(bigBuffers, lowDescriptor, k.setLimit))
	if err != nil {
		return nil, fmt.Errorf("open nftables: %w", explain(err))
	}
	// The kernel fills what the last read offered, up to 32 KiB, and walks a set
	// from its beginning for each: small buffers make a dump quadratic.
	if k.reader, err = netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{MessageBufferSize: 64 << 10}); err == nil {
		err = bigBuffers(k.reader)
	}
	if err == nil {
		k.seen, err = k.generation()
	}
	if err == nil {
		k.events, err = k.subscribe()
	}
	if err != nil {
		k.Close()
		return nil, fmt.Errorf("open nftables: %w", explain(err))
	}
	return k, nil
}

// Close closes the connections. The table stays, and goes on refusing.
func (k *Netlink) Close() error {
	err := k.conn.CloseLasting()
	for _, c := range []*netlink.Conn{k.reader, k.events} {
		if c != nil {
			err = cmp.Or(err, c.Close())
		}
	}
	return err
}

func bigBuffers(c *netlink.Conn) error {
	return cmp.Or(c.SetReadBuffer(socketBuffer), c.SetWriteBuffer(socketBuffer))
}

// lowDescriptor refuses what would crash the library's select later.
func lowDescriptor(c *netlink.Conn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var high bool
	if err := raw.Control(func(fd uintptr) { high = fd >= unix.FD_SETSIZE }); err != nil {
		return err
	}
	if high {
		return errors.New("file descriptor above 1023: open the firewall before other files")
	}
	return nil
}

// setLimit learns how large a batch the socket takes: the kernel refuses a
// message larger than the send buffer less 32 bytes.
func (k *Netlink) setLimit(c *netlink.Conn) error {
	n, err := c.WriteBuffer()
	k.limit = n - 4096
	return err
}

// explain turns what the kernel says into what a user can do about it.
func explain(err error) error {
	for _, e := range []struct{ errno, means error }{
		{unix.EPERM, ErrNotPermitted},
		{unix.EACCES, ErrNotPermitted},
		{unix.EPROTONOSUPPORT, ErrUnsupported},
		{unix.EAFNOSUPPORT, ErrUnsupported},
		{unix.EOPNOTSUPP, ErrUnsupported},
		{unix.EINVAL, ErrUnsupported},
	} {
		if errors.Is(err, e.errno) {
			return fmt.Errorf("%w (%w)", e.means, err)
		}
	}
	return err
}

// Commit sends a batch as one transaction. A batch larger than the socket's
// buffer is sent as several, its elements last; the caller reads back on error.
func (k *Netlink) Commit(b Batch) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, part := range split(b, k.limit) {
		if err := k.commit(part); err != nil {
			return k.refused(part, err)
		}
	}
	return nil
}

// split cuts a batch into such as fit into limit bytes.
func split(b Batch, limit int) []Batch {
	room := max(limit/elementBytes-chunk, chunk)
	if len(b.del)+len(b.add) <= room {
		return []Batch{b}
	}
	parts := []Batch{{Install: b.Install, Remove: b.Remove}}
	for es := range slices.Chunk(b.del, room) {
		parts = append(parts, Batch{del: es})
	}
	for es := range slices.Chunk(b.add, room) {
		parts = append(parts, Batch{add: es})
	}
	return parts
}

// commit sends one transaction. A table made without the owner flag cannot be
// given it, and kernels before 6.9 lack owner or persist: then without.
func (k *Netlink) commit(b Batch) error {
	flags := nftables.TableFlagOwner | nftables.TableFlagPersist
	if k.plain {
		flags = 0
	}
	err := k.transact(b, flags)
	if b.Install != nil && flags != 0 && (errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ERANGE)) {
		err = k.transact(b, 0)
	}
	if err == nil {
		k.own.Add(1)
	}
	return err
}

// transact builds the messages and flushes them. The library sends nothing when
// one of them could not be built.
//
// Owner makes every other socket's change fail with EPERM and lets `nft flush
// ruleset` pass the table by, so that there is no gap to repair; persist keeps
// the table, refusing, when this process dies: owner alone would open the fence.
func (k *Netlink) transact(b Batch, flags nftables.TableFlags) error {
	t := &nftables.Table{Name: TableName, Family: nftables.TableFamilyINet, Flags: flags}
	if b.Install != nil {
		k.conn.AddTable(t)
		k.conn.FlushTable(t) // the rules of every chain; base chains stay, and drop
		k.remove(t, b.Remove)
		if err := k.install(t, b.Install); err != nil {
			return err
		}
	}
	if err := k.change(t, b.del, k.conn.SetDeleteElements); err != nil {
		return err
	}
	if err := k.change(t, b.add, k.conn.SetAddElements); err != nil {
		return err
	}
	return k.conn.Flush()
}

// remove deletes what others made in our table: maps before the chains they
// may lead to.
func (k *Netlink) remove(t *nftables.Table, objects []Object) {
	for _, o := range objects {
		if o.Kind == "set" {
			k.conn.DelSet(&nftables.Set{Table: t, Name: o.Name})
		}
	}
	for _, o := range objects {
		switch o.Kind {
		case "chain":
			k.conn.DelChain(&nftables.Chain{Table: t, Name: o.Name})
		case "counter":
			k.conn.DeleteObject(counterObject(t, o.Name))
		}
	}
}

func counterObject(t *nftables.Table, name string) *nftables.NamedObj {
	return &nftables.NamedObj{Table: t, Name: name, Type: nftables.ObjTypeCounter, Obj: &expr.Counter{}}
}

// install adds everything of the ruleset but elements. What exists is kept, and
// a base chain's policy is set again.
func (k *Netlink) install(t *nftables.Table, rs *Ruleset) error {
	for _, name := range rs.Counters {
		k.conn.AddObj(counterObject(t, name))
	}
	for _, s := range rs.Sets {
		if err := k.conn.AddSet(netlinkSet(t, s), nil); err != nil {
			return fmt.Errorf("set %s: %w", s.Name, err)
		}
	}
	// All chains first: rules lead to chains that come later.
	for _, c := range rs.Chains {
		k.conn.AddChain(netlinkChain(t, c))
	}
	for _, c := range rs.Chains {
		for i, r := range c.Rules {
			var failed error
			exprs := r.build(func(o oneOf) (string, uint32) {
				s, err := k.constants(t, o)
				failed = err
				return s.Name, s.ID
			})
			if failed != nil {
				return fmt.Errorf("chain %s, rule %d: %w", c.Name, i+1, failed)
			}
			k.conn.AddRule(&nftables.Rule{Table: t, Chain: &nftables.Chain{Table: t, Name: c.Name}, Exprs: exprs})
		}
	}
	return nil
}

// constants makes a rule's anonymous set.
func (k *Netlink) constants(t *nftables.Table, o oneOf) (*nftables.Set, error) {
	s := &nftables.Set{Table: t, Anonymous: true, Constant: true, KeyType: fields[o.field].typ}
	var elements []nftables.SetElement
	for _, v := range o.values {
		elements = append(elements, nftables.SetElement{Key: v.data})
	}
	return s, k.conn.AddSet(s, elements)
}

func netlinkSet(t *nftables.Table, s Set) *nftables.Set {
	// Not marked as a concatenation: only interval sets need the mark, nft leaves
	// it out as well, and the kernel takes the marked set for another one.
	n := &nftables.Set{Table: t, Name: s.Name, KeyType: keyType(s.Key), Size: s.Size, KeyByteOrder: binaryutil.BigEndian}
	if s.Key[0] == metaSkuid {
		n.KeyByteOrder = binaryutil.NativeEndian
	}
	if s.Value != NoField {
		n.IsMap, n.DataType = true, fields[s.Value].typ
	}
	return n
}

var hooks = map[Hook]*nftables.ChainHook{
	HookInput: nftables.ChainHookInput, HookForward: nftables.ChainHookForward, HookOutput: nftables.ChainHookOutput,
}

func netlinkChain(t *nftables.Table, c Chain) *nftables.Chain {
	n := &nftables.Chain{Table: t, Name: c.Name}
	if c.Hook != NoHook {
		policy := nftables.ChainPolicyDrop
		n.Type, n.Hooknum, n.Priority, n.Policy = nftables.ChainTypeFilter, hooks[c.Hook], nftables.ChainPriorityFilter, &policy
	}
	return n
}

// change puts elements into the batch, set by set.
func (k *Netlink) change(t *nftables.Table, es []element, put func(*nftables.Set, []nftables.SetElement) error) error {
	bySet := make([][]element, len(record.Sets))
	for _, e := range es {
		bySet[e.set] = append(bySet[e.set], e)
	}
	for i, es := range bySet {
		s := record.Sets[i]
		for part := range slices.Chunk(es, chunk) {
			if err := put(netlinkSet(t, s), netlinkElements(s, part)); err != nil {
				return fmt.Errorf("set %s: %w", s.Name, err)
			}
		}
	}
	return nil
}

func netlinkElements(s Set, es []element) []nftables.SetElement {
	out := make([]nftables.SetElement, len(es))
	for i, e := range es {
		out[i].Key = slices.Clone(e.wireKey(s))
		if s.Value != NoField {
			out[i].Val = slices.Clone(e.value[:])
		}
	}
	return out
}

// refused says what a failed transaction means.
func (k *Netlink) refused(b Batch, err error) error {
	switch {
	case errors.Is(err, unix.ENFILE):
		// The kernel's word for "no room in a set" reads like one for files.
		return fmt.Errorf("%w: the kernel takes no more elements (%w)", ErrSetFull, err)
	case errors.Is(err, unix.EPERM):
		if owner, ok := k.owner(); ok {
			return fmt.Errorf("%w (netlink port %d, by default its pid)", ErrOwned, owner)
		}
		return explain(err)
	case b.Install != nil && (errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EAFNOSUPPORT)):
		return explain(err)
	case b.Install != nil && errors.Is(err, unix.ENOENT):
		// A rule whose expression has no module is refused so.
		return fmt.Errorf("%w (%w)", ErrUnsupported, err)
	case errors.Is(err, unix.EEXIST):
		return fmt.Errorf("%w (%w)", ErrForeign, err)
	}
	return fmt.Errorf("program nftables: %w", err)
}
