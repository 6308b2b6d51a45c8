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
// has proved it.
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
	for busy := 1; ; busy++ {
		w := e.lock(key)
		known := w.newestRev
		c := w.nextCheck(rev, opt.FailFast)
		w.mu.Unlock()
		switch {
		case rev < known:
			return false, nil
		case c == nil:
			return false, ErrClosed
		}
		select {
		case <-c.done:
		case <-ctx.Done():
			return false, ctx.Err()
		}
		switch {
		case rev < c.rev:
			return false, nil
		case c.err == nil:
			return c.ok, nil
		case e.ctx.Err() != nil:
			return false, ErrClosed
		case errors.Is(c.err, jskv.ErrBusy) && busy == opt.Patience:
			return false, fmt.Errorf("%w: the revision is being checked or written by others: %w", ErrUnavailable, c.err)
		case errors.Is(c.err, jskv.ErrBusy):
		case opt.FailFast, !errors.Is(c.err, ErrUnavailable):
			return false, c.err
		default:
			busy--
		}
	}
}

// nextCheck returns a check of rev that was not sent yet, and starts the goroutine that sends it; nil if the engine is
// closed or a newer revision is known.
func (v *view) nextCheck(rev uint64, failFast bool) *check {
	if v.closed || rev < v.newestRev {
		return nil
	}
	if v.proofs == nil {
		v.proofs = &proofs{}
	}
	p := v.proofs
	if !p.running {
		if p.running = v.core.goIfOpen(v.runChecks); !p.running {
			return nil
		}
	}
	if p.next == nil {
		p.next = &check{done: make(chan struct{})}
	}
	p.next.rev, p.next.failFast = max(p.next.rev, rev), p.next.failFast || failFast
	return p.next
}

// runChecks sends checks as long as callers ask for them.
func (v *view) runChecks() {
	v.mu.Lock()
	defer v.mu.Unlock()
	sleep := func(d time.Duration) {
		if d > 0 {
			v.mu.Unlock()
			v.core.sleep(v.core.ctx, d)
			v.mu.Lock()
		}
	}
	p := v.proofs
	for p.next != nil {
		sleep(p.pause())
		c := p.next
		p.next = nil
		if c.rev < v.newestRev {
			c.rev = v.newestRev // all who ask are answered by that
			close(c.done)
			continue
		}
		before, sent := v.core.newest.Load(), time.Now()
		v.mu.Unlock()
		at, err := v.core.publish(v.core.ctx, &v.timeouts, c.failFast, func(ctx context.Context) (uint64, error) {
			return v.core.cfg.Store.CheckAt(ctx, v.key, c.rev)
		})
		v.mu.Lock()
		v.concludeCheck(c, at, before, err)
		close(c.done)
		switch {
		case c.err == nil:
			p.failures, p.busy, p.took = 0, max(p.busy-1, 0), time.Since(sent)
		case errors.Is(err, jskv.ErrBusy):
			p.failures, p.busy, p.busyAt = p.failures+1, min(p.busy+2, maxBusy), time.Now()
		default:
			sleep(proofPause(p.failures, err)) // those who try again come meanwhile
			p.failures++
		}
	}
	p.running, p.failures = false, 0
}

// concludeCheck handles the answer to a check. before is the newest known revision of the bucket when it was sent.
func (v *view) concludeCheck(c *check, at, before uint64, err error) {
	switch {
	case err == nil && at <= before:
		// The bucket is not the one that was opened, or it was restored from an older state.
		v.core.cfg.Suspect()
	case err == nil:
		v.core.noteRevision(at)
		v.proofs.proven, c.ok = c.rev, true
	case errors.Is(err, jskv.ErrConflict):
		v.proofs.refuted, v.proofs.proven = c.rev, 0
	default:
		if errors.Is(err, jskv.ErrNotSent) {
			v.core.cfg.Suspect() // no server answers for a deleted stream
		}
		c.err = err
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
