// Package wire carries the messages between PID 1 and the proxy process.
//
// The two share one socketpair. PID 1 holds a Host, the proxy process a Guest:
//
//	host, guest, err := wire.Pair()            // in PID 1; guest is inherited as a file
//	h := wire.NewHost(host, handler)           // PID 1 answers Resolve, takes Done, Refresh and events
//	h.Draft(draft)                             // a head start: the proxy reads the policy while PID 1 does
//	err = h.Configure(ctx, c, listeners)       // hands over policy, secrets and listening sockets; returns when applied
//
//	g := wire.NewGuest(conn)                   // in the proxy: a proxy.Resolver, and a sink for audit events
//	err = g.Serve(commands)                    // until PID 1 is gone; what it may tell the proxy
//
// Every frame is four bytes of length and a JSON object with exactly one message set; what comes with each connection or
// request, and policies, which may be of megabytes, have a binary form. Listening sockets travel as SCM_RIGHTS beside the
// Configure they belong to. What the proxy sends is bounded in size and in number under way, and validated before it is
// used: the proxy parses hostile bytes, so PID 1 takes nothing that it says on trust.
//
// Not done here: no decision about a name (the handler asks policy), no retry, and no life of the process itself.
package wire

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"

	"exitgate/policy"
	"exitgate/proxy"
)

// Limits of one frame, in bytes. PID 1 sends whole policies; the proxy sends names and audit events.
const (
	maxFromHost  = 24 << 20
	maxFromGuest = 64 << 10
)

// Message is one frame: ID pairs a question with its answer, and exactly one of the others is set.
type Message struct {
	ID        uint64     `json:"id,omitempty"`
	Configure *Configure `json:"configure,omitempty"`
	Applied   *Applied   `json:"applied,omitempty"`
	Refresh   *Refresh   `json:"refresh,omitempty"`
	Ping      *Ping      `json:"ping,omitempty"`
	Drain     *Drain     `json:"drain,omitempty"`

	// In forms of their own.
	Draft   *Draft   `json:"-"`
	Opened  *Opened  `json:"-"`
	Resolve *Resolve `json:"-"`
	Pinned  *Pinned  `json:"-"`
	Done    *Done    `json:"-"`
	Event   *Event   `json:"-"`
}

// Draft is the text of a policy file, since both sides load it by the same pure function and must come to the same
// digest. It is in force when a Configure says so, and may never be.
type Draft struct {
	File string
	Text []byte
}

// Configure replaces all that the proxy knows. The policy is that of the last Draft before it. Listeners names, in order, the
// sockets that ride beside the frame.
type Configure struct {
	Draft      Draft             `json:"-"` // sent before, unless it was already
	Generation uint64            `json:"generation"`
	Secrets    map[string]Secret `json:"secrets,omitempty"`
	Retired    [][]byte          `json:"retired,omitempty"`
	Listeners  []Listener        `json:"listeners,omitempty"`
}

// Secret is a credential's value, or why it has none.
type Secret struct {
	Value  []byte `json:"value,omitempty"`
	Broken string `json:"broken,omitempty"`
}

// Listener names one listening socket: Address is what policy calls it.
type Listener struct {
	Agent   string `json:"agent"`
	Address string `json:"address"`
}

// Applied answers Configure. Error is empty on success.
type Applied struct {
	Digest string `json:"digest,omitempty"`
	Error  string `json:"error,omitempty"`
}

// Resolve asks for the addresses of a name, by an entry of the policy.
type Resolve struct {
	Rule string
	Host string
	Port uint16
}

// Pinned answers Resolve: addresses that the kernel lets root reach by now, or a failure.
type Pinned struct {
	Addresses []netip.Addr
	Kind      string
	Error     string
}

// Done gives pins back: the last connection to these addresses has closed.
type Done struct {
	Host      string
	Port      uint16
	Addresses []netip.Addr
}

// Refresh asks for a credential to be fetched again: the upstream answered 401.
type Refresh struct {
	Credential string `json:"credential"`
}

// Opened says that an agent's connection was accepted: now is the time to look who it is, for the audit.
type Opened struct {
	Agent string
	Conn  proxy.Conn
}

// Event is one decision for the audit, with the connection that it was made on.
type Event struct {
	Event policy.Event
	Conn  proxy.Conn
}

// Ping is sent by PID 1 and echoed: a proxy that is alive but stopped answers nothing.
type Ping struct {
	Stats *proxy.Stats `json:"stats,omitempty"`
}

// Drain tells the proxy to take no more connections and to end when the last one has.
type Drain struct{}

// decode reads one frame's body and refuses what is not exactly one message.
func decode(body []byte, known *words) (*Message, error) {
	switch {
	case len(body) == 0 || body[0] == '{':
	case body[0] == draftTag:
		d, err := parseDraft(body[1:])
		return &Message{Draft: d}, err
	default:
		return parseForm(body, known)
	}
	var m Message
	if err := json.Unmarshal(body, &m); err != nil {
		return nil, errors.New("a frame is not a message")
	}
	set := 0
	for _, there := range []bool{m.Configure != nil, m.Applied != nil, m.Refresh != nil, m.Ping != nil, m.Drain != nil} {
		if there {
			set++
		}
	}
	if set != 1 {
		return nil, fmt.Errorf("a frame holds %d messages", set)
	}
	return &m, nil
}
