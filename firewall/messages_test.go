package firewall

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"exitgate/netns/netnstest"
)

// recorder is a netlink connection that only writes down what it is sent.
func recorder(t *testing.T) (*Netlink, *[]netlink.Message) {
	t.Helper()
	var sent []netlink.Message
	conn, err := nftables.New(nftables.AsLasting(), nftables.WithTestDial(func(ms []netlink.Message) ([]netlink.Message, error) {
		sent = append(sent, ms...)
		return nil, nil
	}))
	if err != nil {
		t.Fatal(err)
	}
	return &Netlink{conn: conn, limit: socketBuffer, plain: true}, &sent
}

// names reads what a message is about: its table, and the chain, set or object.
func names(t *testing.T, m netlink.Message) (table, object string) {
	t.Helper()
	if err := decode(m.Data[4:], func(ad *netlink.AttributeDecoder) error {
		for ad.Next() {
			switch ad.Type() {
			case 1: // the table, in every kind of message
				table = ad.String()
			case 2, 3: // a chain is named in the third attribute, the others in the second
				if s := strings.TrimRight(string(ad.Bytes()), "\x00"); object == "" && s != "" && s[0] >= 'A' {
					object = s
				}
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return table, object
}

// TestNothingOpensTheFence looks at every message that any change of ours sends:
// none deletes the table or a chain of the record, none names another table.
// Replacing the table or a base chain lets packets out in the middle of the
// kernel's commit, however atomic the batch.
func TestNothingOpensTheFence(t *testing.T) {
	k, sent := recorder(t)
	batches := map[string]Batch{
		"install": {Install: record, add: fullContents().elements()},
		"change":  {add: fullContents().elements(), del: manyEndpoints(5000).elements()},
		"log":     {Install: withDenyLog(record)},
	}
	for _, tc := range driftCases {
		f := NewFake()
		w := installed(t, f, fullContents())
		f.Meddle(tc.fake)
		got, _ := f.Dump()
		d := compare(w.want, w.have, got)
		if d.none() {
			t.Fatalf("%s: no drift", tc.name)
		}
		if tc.name != "replaced base chain" { // which is no longer of the record
			batches["repair of "+tc.name] = d.batch(record)
		}
	}
	never := []int{unix.NFT_MSG_DELTABLE, 26, 27} // the latter destroy tables and chains
	chains, kinds := 0, make(map[int]bool)
	for name, b := range batches {
		*sent = nil
		if err := k.Commit(b); err != nil {
			t.Fatal(err)
		}
		for _, m := range *sent {
			kind := int(m.Header.Type & 0xff)
			if m.Header.Type>>8 != unix.NFNL_SUBSYS_NFTABLES {
				continue // begin and end of the batch
			}
			kinds[kind] = true
			table, object := names(t, m)
			if table != TableName {
				t.Errorf("%s: a message of kind %d is about table %q", name, kind, table)
			}
			if slices.Contains(never, kind) {
				t.Errorf("%s: a message of kind %d", name, kind)
			}
			if kind == unix.NFT_MSG_DELCHAIN {
				chains++
				if record.chain(object) != nil || object == "" {
					t.Errorf("%s: deletes chain %q", name, object)
				}
			}
		}
	}
	// The guard sees deletions: foreign chains are deleted.
	if chains == 0 || !kinds[unix.NFT_MSG_NEWCHAIN] || !kinds[unix.NFT_MSG_DELSETELEM] {
		t.Errorf("%d chains deleted, kinds %v: the test saw too little", chains, kinds)
	}
}

// Nothing is sent of a batch that could not be built.
func TestHalfBuiltBatchIsNotSent(t *testing.T) {
	k, sent := recorder(t)
	rs := record.clone()
	tooLong := match{field: metaIif, op: "==", value: constant{"x", make([]byte, 1<<16-3)}} // for an attribute's length
	rs.Chains[0].Rules[3] = rule(tooLong, accept)
	if err := k.Commit(Batch{Install: rs}); err == nil {
		t.Error("a batch with a statement that cannot be written was sent")
	}
	if len(*sent) != 0 {
		t.Errorf("%d messages were sent", len(*sent))
	}
}

func TestSplit(t *testing.T) {
	b := Batch{Install: record, add: manyEndpoints(5000).elements(), del: manyEndpoints(3000).elements()}
	if got := split(b, socketBuffer); len(got) != 1 {
		t.Errorf("a batch that fits is sent as %d", len(got))
	}
	var add, del int
	parts := split(b, 100<<10)
	for i, p := range parts {
		if (p.Install != nil) != (i == 0) {
			t.Errorf("part %d installs: %v", i, p.Install != nil)
		}
		if n := (len(p.add) + len(p.del)) * elementBytes; n > 100<<10 {
			t.Errorf("part %d has %d bytes", i, n)
		}
		add, del = add+len(p.add), del+len(p.del)
	}
	if add != len(b.add) || del != len(b.del) {
		t.Errorf("%d added and %d deleted in parts, want %d and %d", add, del, len(b.add), len(b.del))
	}
}

func TestErrorsNameTheMend(t *testing.T) {
	for _, tc := range []struct {
		errno unix.Errno
		want  error
		says  string
	}{
		{unix.EPERM, ErrNotPermitted, "--cap-add NET_ADMIN"},
		{unix.EPROTONOSUPPORT, ErrUnsupported, "no usable nftables"},
		{unix.EINVAL, ErrUnsupported, "no usable nftables"},
		{unix.EOPNOTSUPP, ErrUnsupported, "no usable nftables"},
	} {
		err := explain(fmt.Errorf("receive: %w", &netlink.OpError{Op: "receive", Err: tc.errno}))
		if !errors.Is(err, tc.want) || !errors.Is(err, tc.errno) || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%v becomes %q", tc.errno, err)
		}
	}
}

// openAndReport is a program that tries to open the firewall.
func openAndReport([]string) int {
	_, err := OpenNetlink()
	fmt.Print(err)
	return 0
}

func TestOpenWithoutCapability(t *testing.T) {
	ns := netnstest.New(t)
	for uid, want := range map[uint32]string{65534: "run with --cap-add NET_ADMIN", 0: "<nil>"} {
		out, err := ns.Output(netnstest.As(netnstest.Program("open"), uid, uid))
		if err != nil || !strings.Contains(string(out), want) {
			t.Errorf("uid %d: %q, %v; want %q", uid, out, err, want)
		}
	}
}
