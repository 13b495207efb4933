// Package secrets reads credentials from where the policy says they are, and keeps them current.
//
//	store := secrets.New(secrets.Options{Output: run, Changed: send, Log: log})
//	got, err := store.Load(p)      // reads and checks them all; err is policy.Errors, one for each that is no good
//	...                            // the rest of a start or of a reload, which may still fail
//	store.Commit()                 // what Load read is in use from now on
//	go store.Watch(ctx)            // re-reads files that change, runs helpers again; delivers by Changed
//	store.Refresh("anthropic")     // an upstream answered 401
//	needles := store.Known()       // values that must be scrubbed from whatever goes out
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
	"os"
	"slices"
	"sync"
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
	// Root is what absolute paths are below, etc/passwd and etc/group too; "" is /.
	Root string
	// Output runs a helper as root and returns its standard output; the first max bytes and an error when that is longer;
	// an error when the helper failed, whose method ExitCode is its exit code, or not above 0. nil: `exec:` sources are Broken.
	Output func(ctx context.Context, argv, env []string, max int) ([]byte, error)
	// Environ is the environment exitgate was started with; nil: os.Environ.
	Environ func() []string
	// Inherited are the descriptors that `fd:` may name; nil: those that this process was started with.
	Inherited []int
	// Changed gets every secret after one of them changed. Watch calls it, one call at a time; nil: nobody is told.
	Changed func(map[string]Secret)
	// Log is told when a source breaks, Note when it works again or has another value; nil: silent.
	Log, Note func(format string, args ...any)
	// Now is the clock; nil: time.Now.
	Now func() time.Time
	// Every is how often files are looked at; 0: 1 s.
	Every time.Duration
}

// State is what status tells of a credential.
type State struct {
	Name, Source string    // Source as in the policy, less a helper's arguments
	Read         time.Time // when the value in use was read; zero when there is none
	Broken       string
}

// Store holds the credentials of the policy in force. All methods may be called from any goroutine.
type Store struct {
	o    Options
	wake chan struct{} // Refresh asks Watch to look now

	mu      sync.Mutex // guards the following, and the entries
	entries []*entry   // in use, in the policy's order
	staged  []*entry   // read by Load, waiting for Commit
	retired []Value
	fds     map[string]outcome // what each inherited descriptor held: it can be read once
}

// entry is one credential of a policy, and what it holds. After a reload the old and the new entry of one helper share
// what they hold, so that a run under way serves whichever is in use when it ends.
type entry struct {
	cred policy.Credential
	who  []Identity
	env  []string
	*held
}

// held is what reading a source gave, and what is needed to read it again.
type held struct {
	secret Secret
	mend   string
	read   time.Time

	print, seen string // of the file: as it was read, as it was last looked at

	ran      time.Time // of the helper: when it was last started again; zero: never
	due, end time.Time // when it is to run again, when its value is too old to use; zero: never
	failures int
	asked    bool // Refresh
	running  bool
}

// outcome is what reading a source came to.
type outcome struct {
	value   Value
	problem *problem
}

// New returns an empty store.
func New(o Options) *Store {
	if o.Inherited == nil {
		o.Inherited = atStart
	}
	if o.Environ == nil {
		o.Environ = os.Environ
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = func(string, ...any) {}
	}
	if o.Note == nil {
		o.Note = func(string, ...any) {}
	}
	if o.Changed == nil {
		o.Changed = func(map[string]Secret) {}
	}
	if o.Every == 0 {
		o.Every = time.Second
	}
	return &Store{o: o, wake: make(chan struct{}, 1), fds: make(map[string]outcome)}
}

// Load reads every credential of p, and reports all that are no good as policy.Errors; those are Broken in the map.
// What it read waits for Commit; a second Load replaces it. A helper whose value is in use and not too old is not run
// again: a reload is no reason for a new token.
func (s *Store) Load(p *policy.Policy) (map[string]Secret, error) {
	who := identities(s.o.Root, p)
	env := helperEnv(s.o.Environ(), variables(p))
	fresh := make([]*entry, len(p.Credentials))
	var wg sync.WaitGroup
	for i, c := range p.Credentials {
		fresh[i] = &entry{cred: c, who: who, env: env, held: &held{}}
		wg.Go(func() { s.fill(fresh[i]) })
	}
	wg.Wait()

	s.mu.Lock()
	defer s.mu.Unlock()
	s.retireLocked(s.staged, fresh)
	s.staged = fresh
	var errs policy.Errors
	for _, e := range fresh {
		if e.secret.Broken != "" {
			errs = append(errs, e.complaint())
		}
	}
	if len(errs) == 0 {
		return secretsOf(fresh), nil
	}
	return secretsOf(fresh), errs
}

// complaint is a broken entry as an error of the policy that names it.
func (e *entry) complaint() *policy.Error {
	return &policy.Error{Position: e.cred.At, What: "credential \"" + e.cred.Name + "\": " + e.secret.Broken, Mend: e.mend}
}

// variables names those that hold credentials.
func variables(p *policy.Policy) []string {
	var names []string
	for _, c := range p.Credentials {
		if c.From.Scheme == "env" {
			names = append(names, c.From.Value)
		}
	}
	return names
}

// Commit puts what the last Load read in the place of what was in use.
func (s *Store) Commit() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.staged == nil {
		return
	}
	s.retireLocked(s.entries, s.staged)
	s.entries, s.staged = s.staged, nil
	s.nudge()
}

// Current returns every credential in use.
func (s *Store) Current() map[string]Secret {
	s.mu.Lock()
	defer s.mu.Unlock()
	return secretsOf(s.entries)
}

func secretsOf(entries []*entry) map[string]Secret {
	m := make(map[string]Secret, len(entries))
	for _, e := range entries {
		m[e.cred.Name] = e.secret
	}
	return m
}

// Status returns the state of every credential in use, in the policy's order.
func (s *Store) Status() []State {
	s.mu.Lock()
	defer s.mu.Unlock()
	states := make([]State, len(s.entries))
	for i, e := range s.entries {
		states[i] = State{Name: e.cred.Name, Source: e.source(), Read: e.read, Broken: e.secret.Broken}
	}
	return states
}

// source leaves a helper's arguments out: some take a password there.
func (e *entry) source() string {
	if e.cred.From.Scheme != "exec" {
		return e.cred.From.String()
	}
	words, err := split(e.cred.From.Value)
	if err != nil || len(words) == 0 {
		return "exec:"
	}
	return "exec:" + words[0]
}

// keepRetired bounds how many values that are not in use any more are remembered.
const keepRetired = 64

// retireLocked remembers the values of old that none of kept has.
func (s *Store) retireLocked(old, kept []*entry) {
	for _, e := range old {
		same := func(k *entry) bool { return k.secret.Value.Equal(e.secret.Value) }
		if !e.secret.Value.IsZero() && !slices.ContainsFunc(kept, same) {
			s.retireValueLocked(e.secret.Value)
		}
	}
}

func (s *Store) retireValueLocked(v Value) {
	s.retired = append(slices.DeleteFunc(s.retired, v.Equal), v)
	if more := len(s.retired) - keepRetired; more > 0 {
		s.retired = slices.Delete(s.retired, 0, more)
	}
}

// Retired returns values that were in use and are not any more, latest last, at most 64 of them.
func (s *Store) Retired() []Value {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.retired)
}

// Known returns every value that must not go out anywhere: in use, read but not in use yet, and retired.
func (s *Store) Known() []Value {
	s.mu.Lock()
	defer s.mu.Unlock()
	known := slices.Clone(s.retired)
	for _, e := range slices.Concat(s.entries, s.staged) {
		if !e.secret.Value.IsZero() && !slices.ContainsFunc(known, e.secret.Value.Equal) {
			known = append(known, e.secret.Value)
		}
	}
	return known
}
