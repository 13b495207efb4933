package proxy

import (
	"bytes"
	"errors"
	"slices"
	"time"

	"exitgate/policy"
	"exitgate/proxy/internal/scrub"
)

// snapshot is one generation, complete and immutable. A request loads it once
// and is judged, served and scrubbed by that one.
type snapshot struct {
	policy     *policy.Policy
	generation uint64
	creds      map[string]*credential
	fields     fieldKinds // request fields that do not pass as they are
	secrets    *scrub.Set // what no answer on a credentialed route may hold
	pool       *pool      // shared by generations of equal policy
	agents     map[string]*policy.Agent
	hosts      map[*policy.Route]string // the Host field of a route's requests
	expiry     time.Time                // of the first grant that ends; zero: none does
}

// maxKnown bounds the secrets that are scrubbed, former ones included: the scrubber
// takes as much time again for each twenty. One that changes hourly is known for two
// days.
const maxKnown = 48

// Configure makes c the generation that every later request is served by, in
// one step. Flows under way are judged again by it: whose grant is gone is reset.
// A secret that is no longer current is scrubbed all the same.
func (s *Server) Configure(c Config) error {
	if c.Policy == nil {
		return errors.New("proxy: a configuration needs a policy")
	}
	s.confMu.Lock()
	defer s.confMu.Unlock()
	old := s.snap.Load()
	next := s.build(c, old)
	s.snap.Store(next)
	if old != nil && old.pool != next.pool {
		old.pool.retire()
	}
	s.recheck(next)
	return nil
}

// build makes the snapshot of c. Callers hold confMu.
func (s *Server) build(c Config, old *snapshot) *snapshot {
	n := &snapshot{
		policy: c.Policy, generation: c.Generation,
		creds:  make(map[string]*credential, len(c.Policy.Credentials)),
		agents: make(map[string]*policy.Agent, len(c.Policy.Agents)),
		hosts:  make(map[*policy.Route]string, len(c.Policy.Routes)),
	}
	for i := range c.Policy.Routes {
		r := &c.Policy.Routes[i]
		n.hosts[r] = routed("", "", r).authority()
	}
	for i := range c.Policy.Agents {
		n.agents[c.Policy.Agents[i].Name] = &c.Policy.Agents[i]
	}
	var sent []string
	for i := range c.Policy.Credentials {
		cred := &c.Policy.Credentials[i]
		secret, ok := c.Secrets[cred.Name]
		if !ok {
			secret.Broken = "it has no value"
		}
		rendered := render(cred, secret)
		n.creds[cred.Name] = rendered
		if cred.Header != "" {
			sent = append(sent, cred.Header)
		}
	}
	n.fields = newFieldKinds(sent)
	n.expiry, _ = c.Policy.NextExpiry(s.now())
	s.scrubSet(n, c, old)
	if old != nil && old.policy.Digest() == c.Policy.Digest() {
		n.pool = old.pool
	} else {
		n.pool = newPool(s)
	}
	return n
}

// scrubSet gives n its automaton: that of old while the secrets are the same.
func (s *Server) scrubSet(n *snapshot, c Config, old *snapshot) {
	changed := old == nil
	// The latest, as many as fit beside the current ones and their rendered forms.
	fit := max(0, maxKnown-2*len(c.Policy.Credentials))
	for _, v := range c.Retired[max(0, len(c.Retired)-fit):] {
		if !slices.ContainsFunc(s.known, func(k []byte) bool { return bytes.Equal(k, v) }) {
			changed = s.remember(v) || changed
		}
	}
	for i := range c.Policy.Credentials {
		name := c.Policy.Credentials[i].Name
		for _, v := range append(n.creds[name].needles(), c.Secrets[name].Value) {
			changed = s.remember(v) || changed
		}
	}
	if !changed {
		n.secrets = old.secrets
		return
	}
	n.secrets = scrub.NewSet(s.known...)
}

// remember puts a secret at the end of those that are scrubbed, so that the
// current ones are the last to go, and reports whether it was new. Callers hold
// confMu.
func (s *Server) remember(v []byte) bool {
	v = bytes.TrimSpace(v)
	if len(v) == 0 {
		return false
	}
	if i := slices.IndexFunc(s.known, func(k []byte) bool { return bytes.Equal(k, v) }); i >= 0 {
		s.known = append(slices.Delete(s.known, i, i+1), v)
		return false
	}
	s.known = append(s.known, bytes.Clone(v))
	if over := len(s.known) - maxKnown; over > 0 {
		s.known = slices.Delete(s.known, 0, over)
	}
	return true
}

// agent returns the policy's agent, nil where this generation has none.
func (n *snapshot) agent(name string) *policy.Agent { return n.agents[name] }

// limits of an agent; none of an unknown one, which is refused anyway.
func (n *snapshot) limits(name string) policy.Limits {
	if a := n.agents[name]; a != nil {
		return a.Limits
	}
	return policy.Limits{}
}
