package firewall

import (
	"fmt"
	"strings"
)

// Render is the whole table with these contents as nft text. `nft -f` loads it
// in one transaction, over an earlier load as well: rules and elements are
// flushed first, and the base chains keep refusing meanwhile. The kernel lists
// it as it lists what Writer.Install sends.
func Render(c Contents) string { return record.render(c) }

func (r *Ruleset) render(c Contents) string {
	var b strings.Builder
	fmt.Fprintf(&b, "# The fence of exitgate: nft -f loads it, and loading it again changes nothing.\n")
	fmt.Fprintf(&b, "add table inet %s\nflush table inet %s\n", TableName, TableName)
	for _, s := range r.Sets {
		fmt.Fprintf(&b, "add %s inet %s %s { %s; }\nflush %s inet %s %s\n", s.kind(), TableName, s.Name, s.definition(), s.kind(), TableName, s.Name)
	}
	fmt.Fprintf(&b, "\ntable inet %s {\n", TableName)
	for _, name := range r.Counters {
		fmt.Fprintf(&b, "\tcounter %s { }\n", name)
	}
	members := elementText(c)
	for _, s := range r.Sets {
		b.WriteString(s.render(members[s.Name]))
	}
	for i := range r.Chains {
		b.WriteString(r.Chains[i].render())
	}
	b.WriteString("}\n")
	return b.String()
}

// elementText is the elements of each set in order, as text.
func elementText(c Contents) map[string][]string {
	out := make(map[string][]string)
	for _, e := range c.elements() {
		name := record.Sets[e.set].Name
		out[name] = append(out[name], e.String())
	}
	return out
}

func (s *Set) kind() string {
	if s.Value != NoField {
		return "map"
	}
	return "set"
}

// typeText is the set's type as nft writes it: "ipv4_addr . inet_proto . inet_service".
func (s *Set) typeText() string {
	text := keyType(s.Key).Name
	if s.Value != NoField {
		text += " : " + fields[s.Value].typ.Name
	}
	return text
}

func (s *Set) definition() string { return fmt.Sprintf("type %s; size %d", s.typeText(), s.Size) }

func (s *Set) render(members []string) string {
	var b strings.Builder
	if s.Note != "" {
		fmt.Fprintf(&b, "\n\t# %s\n", s.Note)
	}
	fmt.Fprintf(&b, "\t%s %s {\n\t\ttype %s\n\t\tsize %d\n", s.kind(), s.Name, s.typeText(), s.Size)
	if len(members) > 0 {
		fmt.Fprintf(&b, "\t\telements = { %s }\n", strings.Join(members, ",\n\t\t\t     "))
	}
	b.WriteString("\t}\n")
	return b.String()
}

func (c *Chain) render() string {
	var b strings.Builder
	b.WriteString("\n")
	if c.Note != "" {
		fmt.Fprintf(&b, "\t# %s\n", c.Note)
	}
	fmt.Fprintf(&b, "\tchain %s {\n", c.Name)
	if c.Hook != NoHook {
		fmt.Fprintf(&b, "\t\ttype filter hook %s priority filter; policy drop;\n", c.Hook)
	}
	for _, r := range c.Rules {
		if r.Note != "" {
			fmt.Fprintf(&b, "\t\t# %s\n", r.Note)
		}
		fmt.Fprintf(&b, "\t\t%s\n", r)
	}
	b.WriteString("\t}\n")
	return b.String()
}
