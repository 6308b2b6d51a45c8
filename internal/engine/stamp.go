package engine

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/lockfabric/lockfabric/internal/jskv"
	"github.com/lockfabric/lockfabric/internal/pause"
	"github.com/lockfabric/lockfabric/internal/record"
)

// Stamp returns a committed state of the key and its revision, which is never 0: the known state if it is likely to
// be the newest, else the leader's. If nothing is stored, Stamp writes a delete marker: "absent" would be true
// again after a marker expires, but a revision never comes back. The state may be old all the same;
// Prove finds out. Errors: ErrUnavailable (with failFast), ErrClosed, the context's, and those of record.Decode.
func (e *Engine) Stamp(ctx context.Context, key string, failFast bool) (*record.Record, uint64, error) {
	w := e.lock(key)
	rec, rev, recent := w.recent()
	w.mu.Unlock()
	if recent {
		return rec, rev, nil
	}
	for n := 0; ; n++ {
		rec, rev, err := w.read(ctx)
		if err == nil && rev == 0 {
			rev, err = w.putMarker(ctx, failFast)
		}
		if err == nil {
			return rec, rev, nil
		}
		again := errors.Is(err, ErrUnavailable) && !errors.Is(err, jskv.ErrBucketGone)
		contended := errors.Is(err, jskv.ErrConflict) || errors.Is(err, jskv.ErrBusy) || errors.Is(err, errStale)
		switch {
		case e.ctx.Err() != nil:
			return nil, 0, ErrClosed
		case !again, failFast && !contended, ctx.Err() != nil, !e.sleep(ctx, proofPause(n, err)):
			return nil, 0, err
		}
	}
}

// recent returns the known state. ok is whether it is likely to be the newest: it is watched, or the last check
// has proved it. Called with mu held.
func (v *view) recent() (rec *record.Record, rev uint64, ok bool) {
	watched, proven := v.stopWatch != nil, false
	if p := v.proofs; p != nil {
		watched, proven = watched && p.refuted != v.rev, p.proven == v.rev
	}
	return v.rec, v.rev, v.trusted() && v.rev > 0 && (watched || proven)
}

// putMarker writes a delete marker for an absent key.
func (v *view) putMarker(ctx context.Context, failFast bool) (rev uint64, err error) {
	rev, err = v.core.publish(ctx, &v.timeouts, failFast, func(ctx context.Context) (uint64, error) {
		return v.core.cfg.Store.Purge(ctx, v.key, 0, jskv.MarkerTTL)
	})
	if err != nil {
		return 0, err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.learn(nil, rev) {
		v.settle()
	}
	return rev, nil
}

func (p *proof) end(ok bool, err error) {
	p.over, p.ok, p.err = true, ok, err
	close(p.done)
}

// ProveOptions are the options of Prove.
type ProveOptions struct {
	// Patience, if above 0, is how often in a row the server may answer busy, because other processes write or check
	// the key, before Prove ends with ErrUnavailable.
	Patience int
	FailFast bool // end with ErrUnavailable at the first sign that no leader answers
}

// Prove reports whether the key's record is still at rev, which Stamp returned. true is proved by a quorum, for an
// instant after the call began. false says that the key was written since, or may have been. Prove costs one write to
// another key of the bucket, shared by all callers of the same time, and nothing if a newer revision is known.
// Errors, after which nothing is known: ErrUnavailable, ErrClosed, the context's.
func (e *Engine) Prove(ctx context.Context, key string, rev uint64, opt ProveOptions) (bool, error) {
	if err := ctx.Err(); err != nil {
		return false, err
	}
	p := &proof{rev: rev, patience: opt.Patience, failFast: opt.FailFast, done: make(chan struct{})}
	w := e.lock(key)
	w.prove(p)
	w.mu.Unlock()
	select {
	case <-p.done:
		return p.ok, p.err
	case <-ctx.Done():
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if !p.over {
		p.end(false, ctx.Err())
	}
	return p.ok, p.err
}

// prove adds p to the waiting proofs. Called with mu held.
func (v *view) prove(p *proof) {
	if v.proofs == nil {
		v.proofs = &proofs{}
	}
	v.proofs.waiting = append(v.proofs.waiting, p)
	if !v.proofs.running {
		v.proofs.running = !v.closed && v.core.goIfOpen(v.runProofs)
	}
	if !v.proofs.running {
		v.endProofs(v.proofs.waiting, false, ErrClosed)
	}
}

// runProofs sends checks until no proof is waiting.
func (v *view) runProofs() {
	v.mu.Lock()
	defer v.mu.Unlock()
	for n := 0; ; n++ {
		if d := v.proofs.pause(); d > 0 {
			v.mu.Unlock()
			v.core.sleep(v.core.ctx, d)
			v.mu.Lock()
		}
		batch, rev := v.nextProofs()
		if len(batch) == 0 || v.closed || v.core.ctx.Err() != nil {
			v.endProofs(batch, false, ErrClosed)
			v.proofs.running = false
			return
		}
		before, failFast := v.core.newest.Load(), false
		for _, p := range batch {
			failFast = failFast || p.failFast
		}
		v.mu.Unlock()
		sent := time.Now()
		at, err := v.core.publish(v.core.ctx, &v.timeouts, failFast, func(ctx context.Context) (uint64, error) {
			return v.core.cfg.Store.CheckAt(ctx, v.key, rev)
		})
		v.mu.Lock()
		if v.takeProofAnswer(batch, rev, at, before, err) {
			n = -1
			v.proofs.busy = max(v.proofs.busy-1, 0)
			v.proofs.took = time.Since(sent)
			continue
		}
		if errors.Is(err, jskv.ErrBusy) {
			v.proofs.busy, v.proofs.busyAt = min(v.proofs.busy+2, maxBusy), time.Now()
			continue
		}
		v.mu.Unlock()
		v.core.sleep(v.core.ctx, proofPause(n, err))
		v.mu.Lock()
	}
}

// nextProofs returns the waiting proofs of the highest revision that is known. It ends the others with
// false, since their revisions were overwritten. Called with mu held.
func (v *view) nextProofs() (batch []*proof, rev uint64) {
	rev = v.newestRev
	for _, p := range v.proofs.waiting {
		rev = max(rev, p.rev)
	}
	for _, p := range v.proofs.waiting {
		switch {
		case p.over:
		case p.rev < rev:
			p.end(false, nil)
		default:
			batch = append(batch, p)
		}
	}
	v.proofs.waiting = append([]*proof(nil), batch...)
	return batch, rev
}

// takeProofAnswer handles the result of a check, and returns false if there was no answer. before is the newest known
// revision of the bucket when the check was sent. Called with mu held.
func (v *view) takeProofAnswer(batch []*proof, rev, at, before uint64, err error) bool {
	var conflict *jskv.ConflictError
	switch {
	case err == nil && at <= before:
		// The bucket is not the one that was opened, or it was restored from an older state.
		v.core.cfg.Suspect()
		v.endProofs(batch, false, nil)
	case err == nil:
		v.core.noteRevision(at)
		v.proofs.proven = rev
		v.endProofs(batch, true, nil)
	case errors.As(err, &conflict):
		v.proofs.refuted, v.proofs.proven = rev, 0
		v.endProofs(batch, false, nil)
	case errors.Is(err, jskv.ErrBusy):
		for _, p := range batch {
			if p.patience--; p.patience == 0 && !p.over {
				p.end(false, fmt.Errorf("%w: the revision is being checked or written by others: %w", ErrUnavailable, err))
			}
		}
		return false
	default:
		if errors.Is(err, jskv.ErrNotSent) {
			v.core.cfg.Suspect() // no server answers for a deleted stream
		}
		for _, p := range batch {
			if (p.failFast || !errors.Is(err, ErrUnavailable)) && !p.over {
				p.end(false, err)
			}
		}
		return false
	}
	return true
}

// endProofs ends the proofs of a batch that are not over. Called with mu held.
func (v *view) endProofs(batch []*proof, ok bool, err error) {
	for _, p := range batch {
		if !p.over {
			p.end(ok, err)
		}
	}
}

// Bounds of the pause between two checks. It leaves room for writers, see backoff.
const (
	leastProofPause = 2 * time.Millisecond
	mostProofPause  = 50 * time.Millisecond
)

// How many busy answers count at most, and for how long.
const (
	maxBusy    = 7
	busyMemory = 5 * time.Second
)

// pause returns the pause before the next check, if other processes were busy lately, even after an answer: on replicas,
// processes that check in loops would leave a writer no gap, and the quickest of them would leave the others none.
func (p *proofs) pause() time.Duration {
	switch {
	case p.busy > 0:
		return pause.Around(pause.Doubled(leastProofPause, p.busy-2, mostProofPause))
	case time.Since(p.busyAt) < busyMemory:
		return min(2*p.took, leastProofPause)
	}
	return 0
}

// proofPause is the pause after the n-th failure in a row, from 0.
func proofPause(n int, err error) time.Duration {
	if errors.Is(err, jskv.ErrBusy) || errors.Is(err, jskv.ErrConflict) || errors.Is(err, errStale) {
		return pause.Around(pause.Doubled(leastProofPause, n, mostProofPause))
	}
	return pause.Around(pause.Doubled(20*time.Millisecond, n, time.Second))
}
