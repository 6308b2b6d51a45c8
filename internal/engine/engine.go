package engine

import (
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/lockfabric/lockfabric/internal/jskv"
	"github.com/lockfabric/lockfabric/internal/record"
	"github.com/lockfabric/lockfabric/internal/rtt"
)

// Engine applies operations to resources. It is a Doer, and safe for concurrent use.
type Engine struct {
	*core
	keeps   keeps
	writers map[string]*writer // guarded by the core's mu
}

// maxIdle bounds how many idle keys keep their cached record.
const maxIdle = 1 << 16

// New returns an engine. Close it to stop its goroutines.
func New(cfg Config) *Engine {
	e := &Engine{core: newCore(cfg), writers: map[string]*writer{}}
	e.goIfOpen(e.janitor)
	return e
}

// Close stops the engine and waits for its goroutines. Operations that are not resolved end with ErrClosed; what they
// wrote stays, under leases that the caller ends.
func (e *Engine) Close() {
	e.mu.Lock()
	if e.closed {
		e.mu.Unlock()
		return
	}
	e.closed = true
	e.cancel()
	all := slices.Collect(maps.Values(e.writers))
	e.mu.Unlock()
	for _, w := range all {
		w.mu.Lock()
		w.close()
		w.mu.Unlock()
	}
	e.wg.Wait()
}

// Seen returns the highest revision that this engine has seen in the bucket.
func (e *Engine) Seen() uint64 { return e.newest.Load() }

// lock returns the key's writer, made on first use, with its mutex held.
func (e *Engine) lock(key string) *writer {
	for {
		e.mu.Lock()
		w := e.writers[key]
		if w == nil {
			if len(e.writers) >= maxIdle {
				e.forgetSome()
			}
			w = newWriter(e.core, &e.keeps, key)
			w.closed = e.closed
			e.writers[key] = w
		}
		e.mu.Unlock()
		w.mu.Lock()
		if !w.forgotten {
			return w
		}
		w.mu.Unlock()
	}
}

func (e *Engine) find(key string) *writer {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.writers[key]
}

// forgetSome drops a few idle writers; map order makes the choice random.
// Called with mu held, so it does not wait for a writer.
func (e *Engine) forgetSome() {
	tries := 64
	for key, w := range e.writers {
		if w.mu.TryLock() {
			if w.idle() {
				w.forgotten = true
				delete(e.writers, key)
			}
			w.mu.Unlock()
		}
		if tries--; tries == 0 {
			return
		}
	}
}

// janitor closes watches that nobody has used for a while.
func (e *Engine) janitor() {
	t := time.NewTicker(linger / 2)
	defer t.Stop()
	for {
		select {
		case <-e.ctx.Done():
			return
		case <-t.C:
		}
		e.mu.Lock()
		all := slices.Collect(maps.Keys(e.watched))
		e.mu.Unlock()
		for _, v := range all {
			v.sweep()
		}
	}
}

// Known returns the newest state of the key's record that this process knows of, without asking; nil
// where nobody holds or waits. ok is false where it knows nothing, or that there is something newer.
func (e *Engine) Known(key string) (rec *record.Record, rev uint64, ok bool) {
	w := e.find(key)
	if w == nil {
		return nil, 0, false
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.rec, w.rev, w.trusted()
}

// Submit is that of Doer.
func (e *Engine) Submit(reqs ...*Request) {
	for len(reqs) > 0 {
		w := e.lock(reqs[0].Key)
		for len(reqs) > 0 && reqs[0].Key == w.key {
			w.accept(reqs[0])
			reqs = reqs[1:]
		}
		w.mu.Unlock()
	}
}

// mostHere is how long an answer may take, as a rule, for the first request to be sent from its
// caller's goroutine: who gives up meanwhile waits for it.
const mostHere = rtt.Floor

// SubmitHere is Submit for a caller that waits: if nothing is under way for the key, it sends the request, whose
// answer takes mostHere at most, and takes the answer in, before it returns. What is left to do then is a runner's.
// over says that nobody has the request any more, once its Done was called.
func (e *Engine) SubmitHere(r *Request) (over bool) {
	w := e.lock(r.Key)
	if w.closed || w.running || len(w.pending)+len(w.backlog) > 0 || r.FailFast || w.silent.any() || e.cfg.RTT.Timeout() > mostHere {
		w.accept(r)
		w.mu.Unlock()
		return false
	}
	e.wg.Add(1) // Close waits for it: it has not come to this key yet
	defer e.wg.Done()
	defer w.mu.Unlock()
	w.running = true
	w.accept(r)
	if w.step() {
		w.handOver()
	}
	return r.over
}

// Withdraw is that of Doer.
func (e *Engine) Withdraw(r *Request, cause error) {
	w := e.lock(r.Key)
	defer w.mu.Unlock()
	w.withdraw(r, cause)
}

// ReleaseInBackground releases an id without a caller: for a grant that turned out to be
// useless. It returns at once. atLeast is as in Request.
func (e *Engine) ReleaseInBackground(key, lease, id string, atLeast uint64) {
	e.carryOut(key, record.Op{Verb: record.OpRelease, ID: id, Lease: lease}, atLeast)
}

// UndoInBackground takes an operation back without a caller, where nobody waits for its outcome any more. It returns
// at once. An operation that can't be taken back is carried through. atLeast is as in Request.
func (e *Engine) UndoInBackground(key string, op record.Op, atLeast uint64) {
	if undo, ok := op.Undo(); ok {
		op = undo
	}
	e.carryOut(key, op, atLeast)
}

func (e *Engine) carryOut(key string, op record.Op, atLeast uint64) {
	w := e.lock(key)
	defer w.mu.Unlock()
	w.newestRev = max(w.newestRev, atLeast)
	w.carryOut(&Request{Key: key, Op: op})
}

// Unresolved returns how long the oldest operation under the lease that nobody waits for any
// more has been going on; 0 means that there is none.
func (e *Engine) Unresolved(lease string) time.Duration { return e.ledger.oldest(lease) }

// Owed returns the operations under the lease that nobody waits for any more. They are not to be modified.
func (e *Engine) Owed(lease string) []*Request { return e.ledger.under(lease) }

// DropLease ends all operations under a lease that nobody waits for any more, once the lease's
// tombstone is committed: its entries are evicted by whoever needs the key.
func (e *Engine) DropLease(lease string) {
	for _, r := range e.ledger.under(lease) {
		w := e.lock(r.Key)
		w.end(r, Outcome{}, ErrGone)
		w.mu.Unlock()
	}
}

// Read returns the key's record as the leader has it, never older than what this process has seen already; nil means
// that nobody holds or waits. Errors: ErrUnavailable, and those of record.Decode; beside that of ctx if it has ended.
func (e *Engine) Read(ctx context.Context, key string) (*record.Record, uint64, error) {
	w := e.lock(key)
	w.mu.Unlock()
	for wait := time.Millisecond; ; wait = min(2*wait, 100*time.Millisecond) {
		rec, rev, err := w.read(ctx)
		if err == nil {
			return rec, rev, nil
		}
		if !errors.Is(err, ErrUnavailable) || errors.Is(err, jskv.ErrBucketGone) || ctx.Err() != nil || !e.sleep(ctx, wait) {
			return nil, 0, errors.Join(err, ctx.Err())
		}
	}
}
