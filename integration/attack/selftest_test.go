package attack

import (
	"fmt"
	"strings"
	"testing"

	"exitgate/integration/rig"
)

// spoilt are rules of the record, and what a broken ruleset has in their place, by the name under which the test asks for it.
var spoilt = []struct {
	right string
	wrong map[string]string
}{
	{`rule(uidNot(0), goTo("deny_agent")).note("any`, map[string]string{
		"tcp, udp and icmp leave": "rule(uidNot(0), accept)", "udp leaves": "rule(proto(unix.IPPROTO_UDP), accept)", "icmp leaves": "rule(protos(unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6), accept)"}},
	{`rule(replyDirection, goTo("lo_reply"))`, map[string]string{"loopback is open": "rule(accept)"}},
	{`rule(in(setListeners4, metaSkuid, ipDaddr, tcpDport), setMark{mark(0)}, accept)`, map[string]string{"the listener is out of reach": `rule(uidNot(0), goTo("deny_agent"))`}},
}

// spoil makes each of these rules depend on a variable of the environment.
func spoil(text string) string {
	for _, s := range spoilt {
		at := strings.Index(text, s.right)
		if at < 0 {
			return ""
		}
		right, rest, _ := strings.Cut(s.right, ".note(")
		choice := "spoil(" + right
		for name, wrong := range s.wrong {
			choice += fmt.Sprintf(", %q, %s", name, wrong)
		}
		choice += ")"
		if rest != "" {
			choice += ".note(" + rest
		}
		text = text[:at] + choice + text[at+len(s.right):]
	}
	return strings.Replace(text, "import (", "import (\n\t\"os\"\n", 1) + `
func spoil(right Rule, wrong ...any) Rule {
	for i := 0; i < len(wrong); i += 2 {
		if os.Getenv("SPOIL") == wrong[i] {
			return wrong[i+1].(Rule)
		}
	}
	return right
}
`
}

// TestSelfTest starts gates whose ruleset has one rule wrong: the agent must not run. The control is the same binary with the right rules.
func TestSelfTest(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	binary := overlaid(t, "firewall/record.go", spoil, nil)
	start := func(name string) (string, string) {
		b, err := rig.Start(rig.Config{World: s.w, Binary: binary, Policy: policy, Files: boxFiles(), Args: []string{"run", "--", "/bin/echo", "ran"}, Env: []string{"SPOIL=" + name}})
		if err != nil {
			t.Fatal(err)
		}
		defer b.Close()
		code, err := b.Wait(patience)
		if err != nil {
			t.Fatal(err)
		}
		_, said, _ := strings.Cut(b.Stderr.String(), "exitgate: ")
		return fmt.Sprintf("exit %d, %q", code, b.Stdout), said
	}
	if got, said := start("nothing"); got != `exit 0, "ran"` {
		t.Fatalf("control: %s, %s", got, said)
	}
	for _, rule := range spoilt {
		for name := range rule.wrong {
			got, said := start(name)
			judge(t, row{"self-test", name, "box", `exit 125, ""`, got, `the right rule: exit 0, "ran"`})
			if !strings.HasPrefix(said, "the fence does not hold: ") {
				t.Errorf("%s: it says %q", name, said)
			}
		}
	}
}
