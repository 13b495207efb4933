package proxy

import (
	"bytes"
	"errors"
	"slices"
	"strings"
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
	strip      nameSet    // fields that may hold a client's credential
	values     *scrub.Set // what no answer on a credentialed route may hold
	names      *scrub.Set // the same in lower case: field names lose their case
	pool       *pool      // shared by generations of equal policy
	agents     map[string]*policy.Agent
}

// maxRetired bounds the former secrets that are still scrubbed. A credential
// that changes hourly keeps its last ten days.
const maxRetired = 256

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
	s.expireAt(next)
	return nil
}

// build makes the snapshot of c. Callers hold confMu.
func (s *Server) build(c Config, old *snapshot) *snapshot {
	n := &snapshot{
		policy: c.Policy, generation: c.Generation,
		creds:  make(map[string]*credential, len(c.Policy.Credentials)),
		agents: make(map[string]*policy.Agent, len(c.Policy.Agents)),
	}
	for i := range c.Policy.Agents {
		n.agents[c.Policy.Agents[i].Name] = &c.Policy.Agents[i]
	}
	strip := clientCredentials
	for i := range c.Policy.Credentials {
		cred := &c.Policy.Credentials[i]
		secret, ok := c.Secrets[cred.Name]
		if !ok {
			secret.Broken = "it has no value"
		}
		rendered := render(cred, secret)
		n.creds[cred.Name] = rendered
		if cred.Header != "" {
			strip = append(strip[:len(strip):len(strip)], cred.Header)
		}
	}
	n.strip = newNameSet(strip...)
	s.scrubSets(n, c, old)
	if old != nil && old.policy.Digest() == c.Policy.Digest() {
		n.pool = old.pool
	} else {
		n.pool = newPool(s)
	}
	return n
}

// scrubSets gives n its automata: those of old while the secrets are the same.
func (s *Server) scrubSets(n *snapshot, c Config, old *snapshot) {
	changed := old == nil
	for i := range c.Policy.Credentials {
		name := c.Policy.Credentials[i].Name
		for _, v := range append(n.creds[name].needles(), c.Secrets[name].Value) {
			changed = s.remember(v) || changed
		}
	}
	if !changed {
		n.values, n.names = old.values, old.names
		return
	}
	lower := make([][]byte, len(s.known))
	for i, v := range s.known {
		lower[i] = bytes.ToLower(v)
	}
	n.values, n.names = scrub.NewSet(s.known...), scrub.NewSet(lower...)
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
	if over := len(s.known) - maxRetired; over > 0 {
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

// cleanName reports whether a field name, in whatever case, holds no secret.
func (n *snapshot) cleanName(name string) bool {
	return len(name) < shortestNeedle || !n.names.Contains([]byte(strings.ToLower(name)))
}

// shortestNeedle is below every real secret's length; a name shorter than this
// cannot hold one.
const shortestNeedle = 8

// expireAt arranges for flows to be judged again when the next grant ends.
// Callers hold confMu.
func (s *Server) expireAt(n *snapshot) {
	if s.expiry != nil {
		s.expiry.Stop()
		s.expiry = nil
	}
	now := s.now()
	at, ok := n.policy.NextExpiry(now)
	if !ok || s.closed.Load() {
		return
	}
	s.expiry = time.AfterFunc(max(0, at.Sub(now))+time.Millisecond, func() {
		s.confMu.Lock()
		defer s.confMu.Unlock()
		if s.snap.Load() == n {
			s.recheck(n)
			s.expireAt(n)
		}
	})
}
