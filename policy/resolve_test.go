package policy

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const resolvePolicy = `version: 1
routes:
  - {name: a, path: /a, upstream: "https://api.example", allow: [GET /], addresses: [10.0.0.0/8]}
  - {name: b, path: /b, upstream: "https://api.example:8443", expires: 2026-01-01T00:00:00Z}
  - {name: c, path: /c, upstream: "http://127.0.0.1:9000", plaintext: true}
  - {name: d, path: /d, upstream: "https://nobody.example", agents: []}
egress:
  - {host: api.example, ports: [443, 22], addresses: [192.168.0.0/16], required: true}
  - {host: "*.w.example"}
  - {host: soon.example, expires: 2027-01-01T00:00:00Z}
  - {host: 192.0.2.1}
  - {host: 2001:db8::1}
  - {host: closed.example, ports: []}
root:
  - {host: api.example, ports: [80], addresses: [172.16.0.0/12], required: true}
  - {host: deb.example, required: true, expires: 2025-01-01T00:00:00Z}
  - {host: closed.example, ports: []}
`

func TestNames(t *testing.T) {
	p := mustLoad(t, resolvePolicy)
	describe := func(names []Name) (all []string) {
		for _, n := range names {
			s := n.Host
			for _, port := range portTexts(n.Ports) {
				s += " " + port
			}
			if n.Root {
				s += " root"
			}
			if n.Required {
				s += " required"
			}
			if n.Literal.IsValid() {
				s += " literal"
			}
			all = append(all, s+" ["+joined(n.Addresses)+"]")
		}
		return all
	}
	want := []string{
		"127.0.0.1 9000 literal [127.0.0.1/32]", "192.0.2.1 443 literal [192.0.2.1/32]", "2001:db8::1 443 literal [2001:db8::1/128]",
		"api.example 22 443 8443 required [10.0.0.0/8 192.168.0.0/16]", "api.example 80 root required [172.16.0.0/12]", "soon.example 443 []",
	}
	if diff := cmp.Diff(want, describe(p.Names(before))); diff != "" {
		t.Error(diff)
	}
	want[3] = "api.example 22 443 required [10.0.0.0/8 192.168.0.0/16]"
	if diff := cmp.Diff(want, describe(p.Names(after))); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]uint16{22, 443}, p.Egress[0].Ports); diff != "" {
		t.Errorf("the policy was changed: %s", diff)
	}
}

func TestResolvable(t *testing.T) {
	p := mustLoad(t, resolvePolicy)
	for _, c := range []struct {
		host string
		port uint16
		now  time.Time
		want string
	}{
		{"api.example", 443, before, "route/a [10.0.0.0/8 192.168.0.0/16]"},
		{"API.example.", 443, before, "route/a [10.0.0.0/8 192.168.0.0/16]"},
		{"api.example", 22, before, "egress/api.example [192.168.0.0/16]"},
		{"api.example", 8443, before, "route/b []"},
		{"api.example", 8443, after, ""},
		{"api.example", 80, before, ""}, // root's own
		{"x.w.example", 443, before, "egress/*.w.example []"},
		{"w.example", 443, before, ""},
		{"127.0.0.1", 9000, before, "route/c [127.0.0.1/32] 127.0.0.1"},
		{"127.0.0.1", 443, before, ""},
		{"127.1", 9000, before, ""},
		{"192.0.2.1", 443, before, "egress/192.0.2.1 [192.0.2.1/32] 192.0.2.1"},
		{"2001:db8:0::1", 443, before, "egress/2001:db8::1 [2001:db8::1/128] 2001:db8::1"},
		{"nobody.example", 443, before, ""},
		{"closed.example", 443, before, ""},
		{"deb.example", 443, before, ""},
		{"*.w.example", 443, before, ""},
		{"a\x00.w.example", 443, before, ""},
	} {
		g, ok := p.Resolvable(c.host, c.port, c.now)
		got := ""
		if ok {
			got = g.Rule + " [" + joined(g.Addresses) + "]"
			if g.Literal.IsValid() {
				got += " " + g.Literal.String()
			}
		}
		if got != c.want {
			t.Errorf("%s:%d: %q, want %q", c.host, c.port, got, c.want)
		}
	}
}

func TestRanges(t *testing.T) {
	p := mustLoad(t, strings.Replace(resolvePolicy, "egress:\n", `egress:
  - {host: "*.deep.example", addresses: [172.16.0.0/12], expires: 2026-01-01T00:00:00Z}
  - {host: "*.y.deep.example", addresses: [10.9.0.0/16]}
`, 1))
	for _, c := range []struct {
		rule, host string
		port       uint16
		now        time.Time
		want       string
	}{
		{"route/a", "api.example", 443, before, "10.0.0.0/8"},
		{"egress/api.example", "api.example", 443, before, "192.168.0.0/16"},
		{"egress/api.example", "api.example", 22, before, "192.168.0.0/16"},
		{"egress/api.example", "api.example", 80, before, ""},
		{"route/a", "api.example", 8443, before, ""},
		{"route/b", "api.example", 8443, before, ""},
		{"route/a", "other.example", 443, before, ""},
		{"egress/*.deep.example", "x.y.deep.example", 443, before, "172.16.0.0/12"},
		{"egress/*.deep.example", "x.y.deep.example", 443, after, ""},
		{"egress/*.y.deep.example", "x.y.deep.example", 443, before, "10.9.0.0/16"},
		{"egress/*.deep.example", "deep.example", 443, before, ""},
		{"", "api.example", 443, before, ""},
	} {
		if got := joined(p.Ranges(c.rule, c.host, c.port, c.now)); got != c.want {
			t.Errorf("%s for %s:%d: %q, want %q", c.rule, c.host, c.port, got, c.want)
		}
	}
}

func TestExpiry(t *testing.T) {
	p := mustLoad(t, resolvePolicy)
	var ends []string
	for now := (time.Time{}); ; {
		next, ok := p.NextExpiry(now)
		if !ok {
			break
		}
		ends = append(ends, next.Format(time.DateOnly))
		now = next
	}
	if diff := cmp.Diff([]string{"2025-01-01", "2026-01-01", "2027-01-01"}, ends); diff != "" {
		t.Error(diff)
	}
	var told []string
	for _, e := range p.Expired(after) {
		told = append(told, e.Error())
	}
	want := []string{"policy.yaml:4:5: route b expired at 2026-01-01T00:00:00Z; remove it, or write a later `expires`",
		"policy.yaml:16:5: root deb.example expired at 2025-01-01T00:00:00Z; remove it, or write a later `expires`"}
	if diff := cmp.Diff(want, told); diff != "" {
		t.Error(diff)
	}
}

func TestWarnings(t *testing.T) {
	p := mustLoad(t, `version: 1
agents: [{name: a, gid: 0, uid: 65534}]
credentials:
  - {name: unused, from: "file:/run/secrets/x"}
  - {name: env, from: "env:TOKEN"}
routes:
  - {name: all, path: /a, upstream: "https://a.example", credential: env, allow: [GET /**, "GET /**?k=1"]}
  - {name: none, path: /b, upstream: "https://a.example"}
  - {name: clear, path: /c, upstream: "http://a.example", plaintext: true, credential: env, allow: [GET /x]}
  - {name: local, path: /d, upstream: "http://127.0.0.1:9000", plaintext: true, credential: env, allow: [GET /x]}
  - {name: nobody, path: /e, upstream: "http://a.example", plaintext: true, allow: [GET /x], agents: []}
  - {name: past, path: /f, upstream: "https://api.b.example:8443", allow: [GET /x]}
  - {name: other, path: /g, upstream: "https://api.b.example:9443", allow: [GET /x, GET /**]}
egress:
  - {host: "*.amazonaws.com"}
  - {host: amazonaws.com}
  - {host: p.example, ports: [80, 443]}
  - {host: q.example, ports: [80], methods: [GET], agents: [a]}
  - {host: m.example, addresses: [169.254.0.0/16, 10.0.0.0/8]}
  - {host: none.example, ports: []}
  - {host: nobody.example, agents: []}
  - {host: "*.b.example", ports: [443, 8443]}
root:
  - {host: r.example, addresses: [fd00::/8], ports: []}
`)
	want := []string{
		"policy.yaml:2:10: agent a has gid 0, and reads what root's group may read; write the agent's own gid",
		"policy.yaml:2:10: agent a has uid 65534, which stands for every id that is not mapped; write a uid of its own, such as 1000",
		"policy.yaml:4:5: credential unused is used by no route; remove it, or name it in a route",
		"policy.yaml:5:5: credential env is read from the variable TOKEN: a container engine hands the container's environment to every `docker exec`; use file:, fd: or exec:",
		"policy.yaml:7:83: route all: GET /** sends credential env with any path; list the paths that are needed",
		"policy.yaml:8:5: route none allows nothing; add `allow:` with lines such as `- GET /v1/models`",
		"policy.yaml:9:5: route clear sends credential env unencrypted; use https",
		"policy.yaml:11:5: route nobody is for no agent; remove `agents` for every agent, or name one",
		"policy.yaml:15:5: egress *.amazonaws.com: anyone can have a bucket or a host below it; list the names that are needed",
		"policy.yaml:17:5: egress p.example has port 80 but no methods, so plain http is refused; add `methods: [GET, HEAD]`, or remove port 80",
		"policy.yaml:19:5: egress m.example may resolve to 169.254.169.254 (by 169.254.0.0/16), where a cloud hands out the machine's credentials; write narrower ranges",
		"policy.yaml:20:5: egress none.example has no port; remove `ports` for 443, or list some",
		"policy.yaml:21:5: egress nobody.example is for no agent; remove `agents` for every agent, or name one",
		"policy.yaml:22:5: egress *.b.example reaches api.b.example:8443, the upstream of route past, past its allow list: what goes through a tunnel is not seen; remove it, or the route",
		"policy.yaml:24:5: root r.example has no port; remove `ports` for 443, or list some",
		"policy.yaml:24:5: root r.example may resolve to fd00:ec2::254 (by fd00::/8), where a cloud hands out the machine's credentials; write narrower ranges",
	}
	var got []string
	for _, w := range p.Warnings() {
		got = append(got, w.Error())
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}
