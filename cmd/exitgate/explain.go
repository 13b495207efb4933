package main

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"exitgate/cmd/internal/control"
	"exitgate/firewall"
	"exitgate/policy"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

func newExplainCommand(env *environment) *cobra.Command {
	var agent string
	var asJSON bool
	c := &cobra.Command{
		Use:   "explain [FILE] [--agent NAME] [METHOD] URL | HOST:PORT | /SOCKET | packet PROTOCOL ADDRESS:PORT",
		Short: "whether something is allowed, by which line, and what to write to change that",
		Long: "Asks the code that enforces the policy. With FILE, which ends in .yaml or .yml or names an existing file, the\n" +
			"policy is read from there; without it the running gate answers, with the addresses that are pinned now.\n\n" +
			"A URL of the agent's listener, or of what a route leads to, goes by that route; other https through CONNECT, other\n" +
			"http as a plain request. METHOD is GET where it is not written. A path alone is that of a\n" +
			"unix socket; with METHOD it is one of the listener, as refusals and audit lines show it.\n\n" +
			"The exit code is 0 when it is allowed, 1 when denied, 2 when the question is not understood, 125 when no gate runs.",
		Example: "  exitgate explain policy.yaml POST https://api.anthropic.com/v1/messages\n" +
			"  exitgate explain policy.yaml --agent ci registry.npmjs.org:443\n" +
			"  exitgate explain DELETE /v1/files\n" +
			"  exitgate explain packet udp 1.1.1.1:53\n" +
			"  exitgate explain /var/run/docker.sock",
		Args: cobra.MinimumNArgs(1),
		RunE: func(_ *cobra.Command, words []string) error {
			return env.explain(agent, words, asJSON)
		},
	}
	c.Flags().StringVar(&agent, "agent", "", "who asks (default: the first agent of the policy)")
	c.Flags().BoolVar(&asJSON, "json", false, "the answer for programs")
	return c
}

// answer is `explain --json`.
type answer struct {
	Decision  string   `json:"decision"` // allow or deny
	Agent     string   `json:"agent"`
	Asked     string   `json:"asked"`
	Road      string   `json:"road"` // route, connect, forward, packet or unix
	Via       string   `json:"via"`  // the road in words
	Rule      string   `json:"rule"`
	File      string   `json:"file,omitempty"`
	Line      int      `json:"line,omitempty"`
	Reason    string   `json:"reason,omitempty"`
	Mend      string   `json:"mend,omitempty"`
	Also      string   `json:"also,omitempty"`      // another road that is open where this one is not
	Fence     string   `json:"fence,omitempty"`     // the nft rule that decides over a packet
	Addresses []string `json:"addresses,omitempty"` // pinned now; of a running gate only
	Unnamed   string   `json:"unnamed,omitempty"`   // why there is no address, where that is known; of a running gate only

	host string // what Addresses are of
}

func (env *environment) explain(agent string, words []string, asJSON bool) error {
	var a answer
	var err error
	if namesPolicy(words) {
		a, err = env.explainOffline(agent, words[0], words[1:])
	} else {
		a, err = env.explainLive(agent, words)
	}
	if err != nil {
		return err
	}
	if asJSON {
		err = env.printJSON(a)
	} else {
		err = a.print(env.stdout)
	}
	if err == nil && a.Decision != "allow" {
		return exitError{code: exitNo}
	}
	return err
}

// namesPolicy reports whether the first word is a policy file. A method and the word packet never are.
func namesPolicy(words []string) bool {
	first := words[0]
	switch {
	case first == "-" || !strings.Contains(first, "://") && (strings.HasSuffix(first, ".yaml") || strings.HasSuffix(first, ".yml")):
		return true
	case first == "packet" || len(words) == 1 || first == strings.ToUpper(first) && !strings.Contains(first, "/"):
		return false
	}
	_, err := os.Stat(first)
	return err == nil
}

func (env *environment) explainOffline(agent, file string, words []string) (answer, error) {
	q, err := parseQuestion(agent, words)
	if err != nil {
		return answer{}, exitError{code: exitUsage, err: err}
	}
	p, err := env.loadPolicy(file)
	if err != nil {
		return answer{}, exitError{code: exitUsage, err: err}
	}
	now := env.now()
	a, err := explain(p, offlineContents(p, now), nil, q, now)
	if err != nil {
		return a, exitError{code: exitUsage, err: err}
	}
	return a, nil
}

// explainLive asks the running gate, whose side of this is answerExplain. A question that makes no sense is refused
// here, whether a gate runs or not.
func (env *environment) explainLive(agent string, words []string) (a answer, err error) {
	q, err := parseQuestion(agent, words)
	if _, isSocket := q.socketPath(); err == nil && q.packet == "" && !isSocket && !q.onListener() {
		_, err = parseLocation(q.target)
	}
	if err != nil {
		return a, exitError{code: exitUsage, err: err}
	}
	err = env.ask("explain", url.Values{"agent": {agent}, "word": words}, &a)
	if errors.Is(err, control.ErrNotRunning) {
		err = ours(fmt.Errorf("%w; name the policy file in front to ask about that: exitgate explain policy.yaml %s", err, strings.Join(words, " ")))
	}
	return a, err
}

// answerExplain answers `exitgate explain` in a running gate: held is what the fence's sets hold, pinned the addresses
// of a host, or why it has none.
func answerExplain(p *policy.Policy, held firewall.Contents, may reach, pinned func(host string) ([]string, string), v url.Values, now time.Time) (answer, error) {
	q, err := parseQuestion(v.Get("agent"), v["word"])
	if err != nil {
		return answer{}, err
	}
	a, err := explain(p, held, may, q, now)
	if err == nil && a.host != "" && a.Decision == "allow" {
		a.Addresses, a.Unnamed = pinned(a.host)
	}
	return a, err
}

// explain asks the policy about every road there is, and reports the first one that is open, else the first.
func explain(p *policy.Policy, held firewall.Contents, may reach, q question, now time.Time) (answer, error) {
	agent := p.Agent(q.agent)
	if agent == nil {
		return answer{}, fmt.Errorf("the policy has no agent %q; it has %s", q.agent, agentNames(p))
	}
	if q.packet != "" {
		return explainPacket(p, held, agent, q, now)
	}
	if path, isSocket := q.socketPath(); isSocket {
		return explainSocket(p, agent, path, may)
	}
	if q.onListener() {
		q.target = "http://" + agent.Listen.String() + q.target
	}
	l, err := parseLocation(q.target)
	if err != nil {
		return answer{}, err
	}
	var first *answer
	for _, r := range l.requests(p, agent, q.method) {
		r.Now = now
		a := l.answer(agent, r, p.Decide(r))
		switch {
		case first == nil && a.Decision == "allow":
			return a, nil
		case first == nil:
			first = &a
		case a.Decision != "allow":
		case a.Road == "route":
			return a, nil
		default:
			first.Also = fmt.Sprintf("%s is open by %s (%s), without a credential of the proxy's", a.Via, a.Rule, a.place())
		}
	}
	return *first, nil
}

var roads = map[policy.Road]string{
	policy.RoadRoute: "route", policy.RoadConnect: "connect", policy.RoadForward: "forward", policy.RoadPacket: "packet",
}

// answer words a decision about a request.
func (l location) answer(agent *policy.Agent, r policy.Request, d policy.Decision) answer {
	a := newAnswer(agent, r.Road, d)
	listener := "http://" + agent.Listen.String()
	tail := r.Path
	if r.Query != "" {
		tail += "?" + r.Query
	}
	switch r.Road {
	case policy.RoadRoute:
		a.Asked = r.Method + " " + l.scheme + "://" + authority(l.scheme, l.host, l.port) + strings.TrimSuffix(l.path+"?"+l.query, "?")
		a.Via = r.Method + " " + listener + tail
		if d.Route != nil {
			a.Via += ", a route to " + upstream(d, r.Query)
			a.host = d.Route.Upstream.Host
		}
	case policy.RoadConnect:
		a.Asked = "CONNECT " + authority("", l.host, l.port)
		a.Via = a.Asked + " through " + listener
		a.host = l.name()
	case policy.RoadForward:
		a.Asked = r.Method + " http://" + authority("http", l.host, l.port) + tail
		a.Via = a.Asked + " through " + listener
		a.host = l.name()
	}
	return a
}

// upstream is where a route takes a request.
func upstream(d policy.Decision, query string) string {
	u := d.Route.Upstream
	s := u.Scheme + "://" + authority(u.Scheme, u.Host, u.Port) + u.Base + d.Rest
	if query != "" {
		s += "?" + query
	}
	if d.Route.Credential != "" {
		s += fmt.Sprintf(" with credential %q", d.Route.Credential)
	}
	return s
}

func newAnswer(agent *policy.Agent, road policy.Road, d policy.Decision) answer {
	a := answer{Decision: "deny", Agent: agent.Name, Road: roads[road], Rule: d.Rule, File: d.At.File, Line: d.At.Line, Reason: d.Reason, Mend: d.Mend}
	if d.Allow {
		a.Decision = "allow"
	}
	return a
}

// explainPacket asks the rules themselves what becomes of a packet of the agent's own, and the policy for the words.
func explainPacket(p *policy.Policy, held firewall.Contents, agent *policy.Agent, q question, now time.Time) (answer, error) {
	proto, to, err := q.parsePacket()
	if err != nil {
		return answer{}, err
	}
	name := strings.ToLower(q.packet)
	d := p.Decide(policy.Request{Agent: agent.Name, Road: policy.RoadPacket, Method: name, Host: to.Addr().String(), Port: to.Port(), Now: now})
	packet := firewall.Packet{Owned: true, UID: agent.UID, Proto: proto, Dst: to, Loopback: to.Addr().Unmap().IsLoopback()}
	packet.Src = netip.AddrPortFrom(source(to.Addr()), 0)
	if proto == unix.IPPROTO_TCP {
		packet.TCPFlags = firewall.TCPSyn
	}
	v := firewall.Evaluate(firewall.Record(), held, packet)
	d.Allow = v.Allowed()
	a := newAnswer(agent, policy.RoadPacket, d)
	a.Fence = v.Chain + ": " + v.Rule
	a.Asked = "packet " + name + " " + q.target
	a.Via = fmt.Sprintf("sent by uid %d itself, past the proxy", agent.UID)
	return a, nil
}

// source is an address that a packet to addr could come from.
func source(addr netip.Addr) netip.Addr {
	switch addr = addr.Unmap(); {
	case addr.IsLoopback():
		return addr
	case addr.Is4():
		return netip.AddrFrom4([4]byte{192, 0, 2, 1})
	}
	return netip.MustParseAddr("2001:db8::1")
}

func (a answer) place() string { return policy.Position{File: a.File, Line: a.Line}.String() }

func (a answer) print(w io.Writer) error {
	verdict := "denied"
	if a.Decision == "allow" {
		verdict = "allowed"
	}
	addresses := strings.Join(a.Addresses, " ")
	if addresses == "" && a.Unnamed != "" {
		addresses = "none: " + a.Unnamed
	}
	fmt.Fprintf(w, "%s: %s\n", verdict, printable(a.Asked))
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	for _, row := range [][2]string{
		{"rule", a.Rule + " (" + a.place() + ")"}, {"why", a.Reason}, {"mend", a.Mend}, {"agent", a.Agent},
		{"road", a.Via}, {"also", a.Also}, {"fence", a.Fence}, {"addresses", addresses},
	} {
		if row[1] != "" {
			fmt.Fprintf(t, "  %s\t%s\n", row[0], printable(row[1]))
		}
	}
	return t.Flush()
}
