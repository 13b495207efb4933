package firewall

import (
	"fmt"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// denyGroup is the NFLOG group the denied packets go to; groups belong to the
// network namespace.
const denyGroup = 0x6167

// snapLength is how many bytes of a packet are told: enough for the headers and
// a DNS question of the longest name.
const snapLength = 512

// logDenied copies packets to the deny log, up to a rate: a flood of refusals is
// counted in full, but told of in samples.
type logDenied struct {
	chain string // told with each packet
	rate  uint64 // packets a second
	burst uint32
}

// logPrefix comes before the chain in what is told with each packet.
const logPrefix = "exitgate "

func (l logDenied) prefix() string { return logPrefix + l.chain }

func (l logDenied) String() string {
	return fmt.Sprintf("limit rate %d/second burst %d packets log prefix %q group %d snaplen %d", l.rate, l.burst, l.prefix(), denyGroup, snapLength)
}

func (l logDenied) build(b *builder) {
	b.emit(&expr.Limit{Type: expr.LimitTypePkts, Rate: l.rate, Unit: expr.LimitTimeSecond, Burst: l.burst})
	b.emit(&expr.Log{
		Key:   1<<unix.NFTA_LOG_PREFIX | 1<<unix.NFTA_LOG_GROUP | 1<<unix.NFTA_LOG_SNAPLEN,
		Group: denyGroup, Snaplen: snapLength, Data: []byte(l.prefix()),
	})
}

func (l logDenied) step(*evaluation) outcome { return matches }

// withDenyLog is rs with denied packets told of just before they are counted.
// It is no part of the record, since a kernel may lack NFLOG.
func withDenyLog(rs *Ruleset) *Ruleset {
	rs = rs.clone()
	for _, at := range []struct {
		counter string
		rate    uint64
	}{{CounterAgent, 50}, {CounterRoot, 20}, {CounterInbound, 10}} {
		for i := range rs.Chains {
			c := &rs.Chains[i]
			if c.Name == "deny_synack" {
				continue // the packet there is the listener's answer, not the agent's attempt
			}
			c.insertBefore(count{at.counter}, rule(logDenied{c.Name, at.rate, uint32(2 * at.rate)}))
		}
	}
	return rs
}

// insertBefore puts a rule before the first that is only this statement.
func (c *Chain) insertBefore(s Statement, r Rule) {
	for i, have := range c.Rules {
		if len(have.Statements) == 1 && have.Statements[0] == s {
			c.Rules = append(c.Rules[:i:i], append([]Rule{r}, c.Rules[i:]...)...)
			return
		}
	}
}
