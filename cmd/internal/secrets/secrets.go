// Package secrets reads credentials from where the policy says they are, and keeps them current.
//
//	store := secrets.New(secrets.Options{Output: run, Changed: send, Log: log})
//	got, err := store.Load(p)      // reads and checks them all; err is policy.Errors, one for each that is no good
//	...                            // the rest of a start or of a reload, which may still fail
//	store.Commit()                 // what Load read is in use from now on
//	go store.Watch(ctx)            // re-reads files that change, runs helpers again; delivers by Changed
//	store.Refresh("anthropic")     // an upstream answered 401
//	needles := store.Retired()     // values that must still be scrubbed from whatever goes out
//
// Files are opened by a walk of our own from the root, one component after the other, so that the directories and the
// file that were checked are the ones that are read. A source that stops working leaves its Secret without a value:
// nothing outdated is ever handed on.
//
// Not done here: no value is put in a header, sent to the proxy or scrubbed from anything; no helper process is
// started but through Options.Output.
package secrets

import (
	"context"
	"time"

	"exitgate/policy"
)

// Secret is a credential's value, or why there is none.
type Secret struct {
	Value  Value
	Broken string // "" or why there is no value; never quotes one
}

// Identity is what an agent's processes can be: its uid, and every group that they may be given.
type Identity struct {
	Agent string
	UID   uint32
	GIDs  []uint32
}

// Options are the outside world.
type Options struct {
	Root     string                                                                 // files are below it; "" is /
	Output   func(ctx context.Context, argv, env []string, max int) ([]byte, error) // runs a helper, returns at most max bytes of its stdout; nil: exec: is refused
	AgentIDs func(*policy.Policy) []Identity                                        // who must not be able to read a secret; nil: from passwd and group below Root
	Environ  func() []string                                                        // nil: os.Environ
	Changed  func(map[string]Secret)                                                // every secret, after one of them changed; called by Watch, never at the same time twice; may be nil
	Log      func(format string, args ...any)                                       // nil: silent
	Now      func() time.Time                                                       // nil: time.Now
	Every    time.Duration                                                          // how often files are looked at; 0: 1 s
}

// State is what status tells of a credential.
type State struct {
	Name, Source string    // Source as written in the policy, without a helper's arguments
	Read         time.Time // when the value in use was read; zero when there is none
	Broken       string
}

// Store holds the credentials of the policy in force.
type Store struct{ o Options }

// New returns an empty store.
func New(o Options) *Store { return &Store{o: o} }

// Load reads every credential of p, and reports all that are no good as policy.Errors; those are Broken in the map.
// What it read waits for Commit; a second Load replaces it.
func (s *Store) Load(p *policy.Policy) (map[string]Secret, error) { return nil, nil }

// Commit puts what the last Load read in the place of what was in use.
func (s *Store) Commit() {}

// Current returns every credential in use.
func (s *Store) Current() map[string]Secret { return nil }

// Retired returns values that were in use and are not any more, latest last, at most 64 of them.
func (s *Store) Retired() []Value { return nil }

// Status returns the state of every credential in use, by name.
func (s *Store) Status() []State { return nil }

// Watch follows the credentials in use until ctx ends.
func (s *Store) Watch(ctx context.Context) {}

// Refresh asks for a credential to be fetched again, as after a 401. It does not wait; calls that come while one is
// under way or within 10 s after it are one.
func (s *Store) Refresh(name string) {}
