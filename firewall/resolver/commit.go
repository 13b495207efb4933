package resolver

import "time"

// commitRetry is how long Run waits after a commit failed. Acquire does not wait.
const commitRetry = time.Second

// flush sends the kernel what it lacks and what it should lose. One at a time: what changes meanwhile is the
// next one's. When it returns without an error, every change made before the call is acknowledged.
func (r *Resolver) flush() error {
	r.commit.Lock()
	defer r.commit.Unlock()
	r.mu.Lock()
	b := r.table.take()
	r.mu.Unlock()
	if b.empty() {
		return nil
	}
	err := r.cfg.Commit(b.endpoints())
	r.mu.Lock()
	defer r.mu.Unlock()
	r.table.settle(b, err)
	if err != nil {
		r.retry = r.cfg.Now().Add(commitRetry)
	}
	return err
}
