package lease

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/lockfabric/lockfabric/internal/jskv"
	"github.com/lockfabric/lockfabric/kv"
)

// Close ends the lease: first it is not valid any more and everybody who asked is told, then its goroutines are
// joined, then the tombstone is written, so that waiters go on at once. It tries until ctx ends, and no longer than
// TTL + margin, when observers will have done it. On error the lease is not valid either, its end has still to be
// observed by others, and Close can be called again. It must not be called from a function given to OnLost. A caller
// whose context may have ended passes a detached, bounded one.
func (l *Lease) Close(ctx context.Context) error {
	l.mu.Lock()
	l.loseLocked(fmt.Errorf("%w", ErrClosed))
	if !l.joining {
		l.joining = true
		l.joined = make(chan struct{})
		go func() {
			l.tail.Wait()
			close(l.joined)
		}()
	}
	stopBury := l.stopBury
	reason := ReasonLost
	if errors.Is(l.err, ErrClosed) {
		reason = ReasonClosed
	}
	l.mu.Unlock()
	stopBury()

	ctx, cancel := context.WithTimeout(ctx, l.cfg.TTL+l.cfg.Margin)
	defer cancel()
	select {
	case <-l.joined:
	case <-ctx.Done():
		return fmt.Errorf("lease: close: %w", context.Cause(ctx))
	}
	return l.bury(ctx, reason)
}

// bury writes the lease's tombstone. The lease is lost already, so its holder may declare it dead whatever stands
// there. Late renewals of ours, which may still be under way, are at older revisions and lose.
func (l *Lease) bury(ctx context.Context, reason string) error {
	select {
	case l.turn <- struct{}{}:
	case <-ctx.Done():
		return fmt.Errorf("lease: tombstone: %w", context.Cause(ctx))
	}
	defer func() { <-l.turn }()
	var unanswered silence
	for pauses := newBackoff(l.cfg.TTL); ; {
		l.mu.Lock()
		rev, buried := l.rev, l.buried
		l.mu.Unlock()
		if buried {
			return nil
		}
		info := l.who
		info.Seen = l.cfg.seen()
		started, limit := time.Now(), l.cfg.tombstonePatience(unanswered)
		err := tombstone(ctx, l.b, limit, rev, info.tombstone(reason, l.by, time.Now()), l.who.ID)
		unanswered.took(ctx, &l.cfg, started, false, err)
		var conflict *jskv.ConflictError
		switch {
		case err == nil:
			l.setBuried()
			return nil
		case errors.Is(err, kv.ErrRejected), errors.Is(err, jskv.ErrConnectionClosed):
			return fmt.Errorf("lease: tombstone: %w", err)
		case errors.As(err, &conflict):
			l.mu.Lock()
			l.rev = conflict.Actual
			l.mu.Unlock()
			fallthrough
		case errors.Is(err, jskv.ErrUnknown):
			// Is it a tombstone that stands there, ours or another's?
			rctx, cancel := context.WithTimeout(ctx, limit)
			e, readErr := l.b.Get(rctx, l.who.ID)
			cancel()
			if readErr == nil && isTombstone(l.who.ID, e) {
				l.setBuried()
				return nil
			}
		}
		if !pauses.wait(ctx, err, nil) {
			return fmt.Errorf("lease: tombstone: %w; last attempt: %w", context.Cause(ctx), err)
		}
	}
}

func (l *Lease) setBuried() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.buried = true
}

// tombstone is one bounded attempt to put a tombstone at rev.
func tombstone(ctx context.Context, b Bucket, limit time.Duration, rev uint64, value []byte, id string) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	_, err := b.Update(ctx, id, value, rev, tombstoneGC)
	return err
}

// isTombstone reports whether the entry declares the lease dead.
func isTombstone(id string, e jskv.Entry) bool {
	if e.Deleted {
		return false
	}
	info, err := Decode(id, e.Value)
	return err == nil && info.Dead
}
