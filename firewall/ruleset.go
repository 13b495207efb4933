package firewall

import (
	"slices"
	"strings"
)

// Ruleset is a table as plain data. Every statement renders as nft text, as
// netlink expressions and as a step of Evaluate, so that the three cannot differ.
type Ruleset struct {
	Counters []string
	Sets     []Set
	Chains   []Chain
}

// Set is a named set, or a map where Value is a field. Key is the concatenation
// of its fields.
type Set struct {
	Name  string
	Key   []Field
	Value Field
	Size  uint32 // most elements it holds
	Note  string // rendered as a comment
}

// Chain is a list of rules; with a Hook it is a base chain of type filter, at
// priority 0, with policy drop.
type Chain struct {
	Name  string
	Hook  Hook
	Rules []Rule
	Note  string
}

// Hook is where a base chain is attached; 0 for other chains.
type Hook string

// The hooks of the record's base chains.
const (
	NoHook      Hook = ""
	HookInput   Hook = "input"
	HookForward Hook = "forward"
	HookOutput  Hook = "output"
)

// Rule is a list of statements; one that does not match ends the rule.
type Rule struct {
	Statements []Statement
	Note       string
}

// Statement is one match or action of a rule. Its String is nft text.
type Statement interface {
	String() string
	build(*builder)
	step(*evaluation) outcome
}

// TableName is the name of the one table this package owns, in family inet.
const TableName = "exitgate"

// String is the rule as nft text.
func (r Rule) String() string {
	words := make([]string, len(r.Statements))
	for i, s := range r.Statements {
		words[i] = s.String()
	}
	return strings.Join(words, " ")
}

// chain is the chain of that name; nil if there is none.
func (r *Ruleset) chain(name string) *Chain {
	i := slices.IndexFunc(r.Chains, func(c Chain) bool { return c.Name == name })
	if i < 0 {
		return nil
	}
	return &r.Chains[i]
}

// clone is a copy whose chains and rule lists may be changed.
func (r *Ruleset) clone() *Ruleset {
	c := &Ruleset{Counters: slices.Clone(r.Counters), Sets: slices.Clone(r.Sets), Chains: slices.Clone(r.Chains)}
	for i := range c.Chains {
		c.Chains[i].Rules = slices.Clone(c.Chains[i].Rules)
	}
	return c
}
