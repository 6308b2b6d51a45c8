package engine

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/lockfabric/lockfabric/internal/jskv"
	"github.com/lockfabric/lockfabric/internal/record"
	"github.com/lockfabric/lockfabric/internal/rtt"
)

// Engine applies operations to resources. It is a Doer, and safe for concurrent use.
type Engine struct {
	*core
	keptSet keptSet
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

// Close stops the engine and waits for its goroutines. Unresolved operations end with ErrClosed; what they
// wrote stays in the records, under leases that the caller ends.
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

// lock returns the key's writer with its mutex held, and makes the writer on first use.
func (e *Engine) lock(key string) *writer {
	for {
		e.mu.Lock()
		w := e.writers[key]
		if w == nil {
			if len(e.writers) >= maxIdle {
				e.forgetSome()
			}
			w = newWriter(e.core, &e.keptSet, key)
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

// lockKnown returns the key's writer with its mutex held, or nil if there is none.
func (e *Engine) lockKnown(key string) *writer {
	e.mu.Lock()
	w := e.writers[key]
	e.mu.Unlock()
	if w != nil {
		w.mu.Lock()
	}
	return w
}

// forgetSome drops a few idle writers; map order makes the choice random.
// Called with mu held, so it must not wait for a writer's mutex.
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

// janitor closes watches that have been unused for a while.
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

// Known returns the newest state of the key's record that this process knows, without a request; nil
// if the record is empty. ok is false if the process knows nothing, or knows that there is a newer state.
func (e *Engine) Known(key string) (rec *record.Record, rev uint64, ok bool) {
	w := e.lockKnown(key)
	if w == nil {
		return nil, 0, false
	}
	defer w.mu.Unlock()
	return w.rec, w.rev, w.trusted()
}

// Submit implements Doer.
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

// maxInline is the longest usual answer time with which a caller's goroutine sends the first request
// itself: a caller that gives up meanwhile has to wait for that answer.
const maxInline = rtt.Floor

// SubmitHere is Submit for a caller that waits. If nothing is under way for the key and an answer takes
// maxInline at most, the call itself sends the request and handles the answer. A runner does any further steps.
// finished says that the engine does not use the request any more, once Done was called.
func (e *Engine) SubmitHere(r *Request) (finished bool) {
	w := e.lock(r.Key)
	if w.closed || w.running || len(w.pending)+len(w.backlog) > 0 || r.FailFast || w.timeouts.any() || e.cfg.RTT.Timeout() > maxInline {
		w.accept(r)
		w.mu.Unlock()
		return false
	}
	e.wg.Add(1) // Close waits for this call, since it has not reached this key yet
	defer e.wg.Done()
	defer w.mu.Unlock()
	w.running = true
	w.accept(r)
	if w.runStep() {
		w.continueInRunner()
	}
	return r.finished
}

// Withdraw implements Doer.
func (e *Engine) Withdraw(r *Request, cause error) {
	w := e.lock(r.Key)
	defer w.mu.Unlock()
	w.withdraw(r, cause)
}

// ReleaseInBackground releases an id without a caller, for a grant that nobody needs. It returns
// at once. atLeast is as in Request.
func (e *Engine) ReleaseInBackground(key, lease, id string, atLeast uint64) {
	e.submitOwed(key, record.Op{Verb: record.OpRelease, ID: id, Lease: lease}, atLeast)
}

// UndoInBackground undoes an operation whose caller has left. It returns at once. An operation that can't be
// undone is completed instead. atLeast is as in Request.
func (e *Engine) UndoInBackground(key string, op record.Op, atLeast uint64) {
	if undo, ok := op.Undo(); ok {
		op = undo
	}
	e.submitOwed(key, op, atLeast)
}

func (e *Engine) submitOwed(key string, op record.Op, atLeast uint64) {
	w := e.lock(key)
	defer w.mu.Unlock()
	w.newestRev = max(w.newestRev, atLeast)
	w.submitOwed(&Request{Key: key, Op: op})
}

// Unresolved returns the age of the oldest operation in the ledger under this lease; 0 means that there is none.
func (e *Engine) Unresolved(lease string) time.Duration { return e.ledger.oldest(lease) }

// Owed returns the operations in the ledger under this lease. The caller must not modify them.
func (e *Engine) Owed(lease string) []*Request { return e.ledger.under(lease) }

// DropLease ends all operations in the ledger under a lease. Call it once the lease's tombstone is
// committed: the next process that needs the key evicts the entries.
func (e *Engine) DropLease(lease string) {
	for _, r := range e.ledger.under(lease) {
		w := e.lock(r.Key)
		w.end(r, Outcome{}, ErrGone)
		w.mu.Unlock()
	}
}

// Read returns the key's record as the leader has it, never older than what this process has seen; nil if the
// record is empty. Errors: ErrUnavailable, and those of record.Decode; joined with that of ctx if it has ended.
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

// SubmitInOrder is Submit for different keys, of requests that don't queue. It sends the requests in this order,
// without waiting for answers, as far as nothing is under way for their keys. So in one stream
// they are committed in this order, unless one of them has to be sent again. Where it is faster, they go as
// one atomic batch instead. No guarantee depends on the batch: each request is answered, and sent again, by itself.
// A key for which something is under way delays none of the others.
func (e *Engine) SubmitInOrder(reqs ...*Request) {
	var before chan struct{}
	var batch *jskv.Batch
	if s, ok := e.cfg.Store.(interface{ NewBatch() *jskv.Batch }); ok && len(reqs) > 1 {
		batch = s.NewBatch()
	}
	if batch != nil {
		defer batch.Send()
	}
	for _, r := range reqs {
		w := e.lock(r.Key)
		switch {
		case w.running || w.retrySet || len(w.pending) > 0 || r.queues():
		case batch != nil:
			m := batch.Add()
			r.markSent, r.wrapCtx = m.Leave, m.In
		default:
			sent := make(chan struct{})
			r.sendAfter, r.markSent = before, sync.OnceFunc(func() { close(sent) })
			r.wrapCtx = func(ctx context.Context) context.Context { return outgoing{jskv.Alone(ctx), r.markSent} }
			before = sent
		}
		w.accept(r)
		w.mu.Unlock()
	}
}

// outgoing is the context of a request; sent is called when the request is on its way. It relies on the
// NATS client, which calls Done for the first time after it has sent the request.
type outgoing struct {
	context.Context
	sent func()
}

func (o outgoing) Done() <-chan struct{} {
	o.sent()
	return o.Context.Done()
}

// Foresee returns the verdict on op by the newest state that is known of the key, without a
// request: Applied if no state is known. The verdict may be wrong.
func (e *Engine) Foresee(key string, op record.Op) record.Verdict {
	w := e.lockKnown(key)
	if w == nil {
		return record.Applied
	}
	defer w.mu.Unlock()
	if !w.trusted() {
		return record.Applied
	}
	_, results, _ := record.Apply(w.rec, w.rev, []record.Op{op}, e.limits())
	return results[0].Verdict
}
