package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"exitgate/cmd/internal/secrets"
	"exitgate/policy"
)

// ReloadResult is what a reload did, for status, the audit and whoever asked.
type ReloadResult struct {
	Time       time.Time `json:"time"`
	Cause      string    `json:"cause"`
	OK         bool      `json:"ok"`
	Generation uint64    `json:"generation"`
	Digest     string    `json:"digest"`
	Unchanged  bool      `json:"unchanged,omitempty"` // the digest was equal: nothing was done
	Widens     []string  `json:"widens,omitempty"`
	Narrows    []string  `json:"narrows,omitempty"`
	Errors     []string  `json:"errors,omitempty"` // one clear line each; the old policy stays
	Seconds    float64   `json:"seconds"`
}

// Reload reads the policy file anew and brings it into force, or keeps the policy that is.
//
// The order is what makes it lossless: all that can be refused is tried first, additions reach the kernel before the
// proxy may use them, and removals follow when the proxy has closed what depended on them. So at each moment the sets
// hold at least what the proxy may dial, and a flow that both policies allow notices nothing.
func (e *Engine) Reload(ctx context.Context, cause string) (ReloadResult, error) {
	e.reloading.Lock()
	defer e.reloading.Unlock()
	began := e.Now()
	old := e.current.Load()
	result := ReloadResult{Time: began, Cause: cause, Generation: old.number, Digest: old.policy.Digest()}
	g, err := e.prove(old)
	switch {
	case err != nil:
	case g.policy.Digest() == old.policy.Digest():
		result.Unchanged = true
	default:
		if err = e.commit(ctx, old, g); err == nil {
			result.Generation, result.Digest = g.number, g.policy.Digest()
			e.logWarnings(old.policy, g.policy)
		}
		result.Widens, result.Narrows = texts(policy.Diff(old.policy, g.policy)) // now, not before: it is in force without
	}
	result.OK = err == nil
	result.Errors = lines(err)
	result.Seconds = e.Now().Sub(began).Seconds()
	e.tell(result)
	return result, err
}

// prove reads and checks all of a new generation without touching anything that is in force.
func (e *Engine) prove(old *generation) (*generation, error) {
	before := look(e.PolicyFile)
	e.read.Store(&before)
	data, err := e.ReadPolicy(e.PolicyFile)
	if err != nil {
		return nil, err
	}
	if old != nil && bytes.Equal(data, old.data) {
		return old, nil
	}
	if err := e.trusted(old); err != nil {
		return nil, err
	}
	e.proxy.draft(e.PolicyFile, data)
	p, err := policy.Load(e.PolicyFile, data)
	if err != nil {
		return nil, err
	}
	if old != nil && old.policy.Digest() == p.Digest() {
		return &generation{number: old.number, data: data, policy: p, secrets: old.secrets}, nil
	}
	values, err := e.secrets.Load(p)
	if err != nil {
		return nil, err
	}
	g := &generation{number: 1, data: data, policy: p, secrets: values}
	if old != nil {
		g.number = old.number + 1
	}
	return g, nil
}

// trusted refuses a changed policy file that an agent of the policy in force could have changed itself. The first one is
// the operator's choice, of which Start warns.
func (e *Engine) trusted(old *generation) error {
	if old == nil || !e.InReach {
		return nil
	}
	if err := secrets.Alterable(e.FileRoot, e.PolicyFile, old.policy); err != nil {
		return fmt.Errorf("%s is within the agent's reach: %w", e.PolicyFile, err)
	}
	return nil
}

// commit brings g into force. Up to the proxy's answer everything can be taken back.
func (e *Engine) commit(ctx context.Context, old, g *generation) error {
	undo, err := e.openFor(g.policy)
	if err != nil {
		return err
	}
	narrow, err := e.widen(g.policy)
	if err != nil {
		undo()
		return err
	}
	if err := e.proxy.apply(ctx, g); err != nil {
		undo()
		return errors.Join(err, e.restore(old))
	}
	e.secrets.Commit()
	e.current.Store(g)
	e.closeUnwanted(g.policy)
	if err := narrow(); err != nil {
		// It is tried again; what is left over is an address that the proxy no longer dials, or a port that nobody serves.
		e.Log("elements of the former policy could not be removed at once: %v", err)
	}
	return nil
}

// restore narrows the sets to the old generation again.
func (e *Engine) restore(old *generation) error {
	narrow, err := e.widen(old.policy)
	if err != nil {
		return err
	}
	return narrow()
}

// tell writes the outcome to log, audit, metrics and status.
func (e *Engine) tell(r ReloadResult) {
	event := policy.Event{Event: "reload", Decision: "allow", Duration: time.Duration(r.Seconds * float64(time.Second))}
	switch {
	case !r.OK:
		event.Decision = "deny"
		event.Reason = "the policy in force stays: " + r.Errors[0]
		for _, line := range r.Errors {
			e.Log("reload (%s): %s", r.Cause, line)
		}
		e.Log("reload (%s): the policy in force stays (generation %d)", r.Cause, r.Generation)
	case r.Unchanged:
		event.Reason = "the policy is unchanged"
	default:
		event.Reason = fmt.Sprintf("generation %d: %d changes widen, %d narrow", r.Generation, len(r.Widens), len(r.Narrows))
		e.logChanges("+", r.Widens)
		e.logChanges("-", r.Narrows)
	}
	e.metrics.begin(e.Policy().Agents)
	e.metrics.reloaded(r.OK, r.Time)
	e.mu.Lock()
	e.last = r
	e.mu.Unlock()
	e.observe(event)
	e.changed()
}

// logWarnings logs what a policy that has come into force may say but rarely means, and the one before, which may be nil,
// did not.
func (e *Engine) logWarnings(old, p *policy.Policy) {
	said := make(map[string]bool)
	if old != nil {
		for _, w := range e.warnings(old) {
			said[w.What] = true
		}
	}
	for _, w := range e.warnings(p) {
		if !said[w.What] {
			e.Log("%v", w)
		}
	}
}

func (e *Engine) warnings(p *policy.Policy) []*policy.Error {
	return append(p.Warnings(), p.Expired(e.Now())...)
}

// maxLogged is how many changes of one kind a reload logs; `exitgate reload` prints all.
const maxLogged = 50

func (e *Engine) logChanges(sign string, changes []string) {
	for _, line := range changes[:min(len(changes), maxLogged)] {
		e.Note("reload: %s %s", sign, line)
	}
	if more := len(changes) - maxLogged; more > 0 {
		e.Note("reload: %s and %d more", sign, more)
	}
}

func texts(changes []policy.Change) (widens, narrows []string) {
	for _, c := range changes {
		if c.Widens {
			widens = append(widens, c.Text)
		} else {
			narrows = append(narrows, c.Text)
		}
	}
	return widens, narrows
}

// lines splits an error into what is to be told, a line each.
func lines(err error) []string {
	if err == nil {
		return nil
	}
	var many policy.Errors
	if errors.As(err, &many) && len(many) > 0 {
		out := make([]string, len(many))
		for i, one := range many {
			out[i] = one.Error()
		}
		return out
	}
	return []string{err.Error()}
}
