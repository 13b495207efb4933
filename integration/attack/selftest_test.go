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

// TestSelfTest starts gates whose ruleset has one rule wrong: the agent must not run, and where it runs because the self-test is off, verify
// must say what is wrong. The control is the same binary with the right rules.
func TestSelfTest(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	binary := overlaid(t, "firewall/record.go", spoil, nil)
	start := func(rule string, args ...string) *rig.Box {
		b, err := rig.Start(rig.Config{World: s.w, Binary: binary, Policy: policy, Files: boxFiles(), Args: args, Env: []string{"SPOIL=" + rule}})
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	atStart := func(rule string) (string, string) {
		b := start(rule, "run", "--", "/bin/echo", "ran")
		defer b.Close()
		code, err := b.Wait(patience)
		if err != nil {
			t.Fatal(err)
		}
		_, said, _ := strings.Cut(b.Stderr.String(), "exitgate: ")
		return fmt.Sprintf("exit %d, %q", code, b.Stdout), said
	}
	live := func(rule string) (string, string) {
		b := start(rule, "run", "--self-test=false", "--", "/bin/sh", "-c", "echo ran; sleep 60")
		defer b.Close()
		if _, err := b.Stdout.WaitText("ran", patience); err != nil {
			t.Fatalf("%s: %v", rule, err)
		}
		out, err := b.Exitgate("verify")
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprintf("exit %d", out.Code), out.Stderr
	}
	for _, does := range []struct {
		road      string
		try       func(rule string) (seen, said string)
		good, bad string
	}{
		{"at start", atStart, `exit 0, "ran"`, `exit 125, ""`},
		{"verify", live, "exit 0", "exit 1"},
	} {
		if seen, said := does.try("nothing"); seen != does.good {
			t.Fatalf("%s, control: %s, %s", does.road, seen, said)
		}
		for _, rule := range spoilt {
			for name := range rule.wrong {
				seen, said := does.try(name)
				judge(t, row{"self-test", name, does.road, does.bad, seen, "the right rule: " + does.good})
				if !strings.Contains(said, "the fence does not hold: ") {
					t.Errorf("%s, %s: it says %q", does.road, name, said)
				}
			}
		}
	}
}
