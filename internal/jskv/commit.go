package jskv

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
)

const (
	// leastTogether is the least number of writes in a batch. On one server with file storage a batch takes as long
	// as some 15 synced single writes, however small it is.
	leastTogether = 24
	mostTogether  = 256
	mostBytes     = 1 << 20
	largeMember   = 64 << 10 // a larger value is sent alone

	// longestGather bounds how long a write waits for those under way, if one of them gets no answer.
	longestGather = 20 * time.Millisecond
	// apart is how long a key stays out of batches after a write of it conflicted.
	apart = time.Second
)

// committer is the group commit of a bucket: while writes are under way, it gathers new ones, and sends them
// as one atomic batch when the earlier ones are answered. Each write has its own outcome, as if it had been sent alone,
// and no guarantee depends on the batch being atomic.
// A write goes at once if none is under way, unless a batch was answered a moment ago.
type committer struct {
	b       *Bucket
	longest time.Duration // longestGather
	aside   time.Duration // apart

	mu    sync.Mutex // held by the callers of methods that do not lock it
	out   int        // writes under way
	next  *Batch     // the batch that gathers
	bytes int        // of next
	due   *time.Timer
	at    time.Time            // of due
	met   map[string]time.Time // keys that are kept apart, with the time of the conflict
	gauge
	batched uint64 // writes
}

// CommitInGroups makes the bucket send writes of different keys together while there are many at a time.
func (b *Bucket) CommitInGroups() {
	if b.atomic {
		b.group.CompareAndSwap(nil, &committer{b: b, longest: longestGather, aside: apart, met: map[string]time.Time{}})
	}
}

// Batched returns the number of writes that CommitInGroups has sent in batches.
func (b *Bucket) Batched() uint64 {
	g := b.group.Load()
	if g == nil {
		return 0
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.batched
}

// write sends a write. alone is whether the message was never in a batch.
func (g *committer) write(ctx context.Context, msg *nats.Msg, key string, rev uint64) (newRev uint64, alone bool, err error) {
	m := g.join(msg, key, rev)
	if m != nil {
		newRev, err := m.write(ctx)
		if m.left || !m.of.singles {
			return newRev, false, err
		}
		for _, h := range []string{headerBatchID, headerBatchSequence, headerBatchCommit} {
			delete(msg.Header, h)
		}
		g.mu.Lock()
		g.out++
		g.mu.Unlock()
	}
	newRev, err = g.b.single(ctx, msg, key, rev)
	g.answered(key, err)
	if m != nil && m.of.sent {
		conflict := (*ConflictError)(nil)
		if errors.As(err, &conflict) {
			conflict.Again = true
		} else if errors.Is(err, ErrNotSent) {
			err = fmt.Errorf("%w: it was in a batch before: %v", ErrUnknown, err) //nolint:errorlint // it is not known
		}
	}
	return newRev, m == nil, err
}

// join adds the write to the next batch. It returns nil if the write has to go at once and alone, and counts it as under way.
func (g *committer) join(msg *nats.Msg, key string, rev uint64) *Member {
	g.mu.Lock()
	defer g.mu.Unlock()
	quiet := g.out == 0 && g.next == nil && g.begins()
	if !g.on || quiet || len(msg.Data) > largeMember || g.apart(key) || g.next.has(key) {
		g.out++
		g.lone++
		return nil
	}
	if g.next != nil && g.bytes+len(msg.Data) > mostBytes {
		g.flush()
	}
	if g.next == nil {
		t := newBatch(g.b)
		t.answered = g.batchAnswered
		g.next, g.bytes = t, 0
		wait := g.longest
		if g.out == 0 {
			wait = min(wait, g.lately/2)
		}
		g.at = time.Now().Add(wait)
		g.due = time.AfterFunc(wait, func() {
			g.mu.Lock()
			defer g.mu.Unlock()
			if g.next == t {
				g.flush()
			}
		})
	}
	m := g.next.Add()
	m.comes(msg, key, rev)
	g.bytes += len(msg.Data)
	// While nothing is under way, no more writes than the last batch had are to be expected.
	if n := len(g.next.members); n == mostTogether || g.out == 0 && n >= max(leastTogether, g.size) {
		g.flush()
	}
	return m
}

// apart reports whether a write of the key conflicted a moment ago.
func (g *committer) apart(key string) bool {
	at, ok := g.met[key]
	if ok && time.Since(at) > g.aside {
		delete(g.met, key)
		return false
	}
	return ok
}

// flush sends the gathered writes.
func (g *committer) flush() {
	t := g.next
	g.next = nil
	g.due.Stop()
	t.mu.Lock()
	defer t.mu.Unlock()
	if n := len(t.present()); g.on && n >= leastTogether {
		g.out += n
		g.batched += uint64(n)
	} else {
		t.singles, t.claimed = true, true
		close(t.done)
		g.wentAlone(n)
	}
	t.came()
}

// answered notes that a single write was answered.
func (g *committer) answered(key string, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	out := g.out
	g.out--
	if g.on {
		if errors.Is(err, ErrConflict) || errors.Is(err, ErrBusy) {
			if len(g.met) >= 1<<10 {
				clear(g.met)
			}
			g.met[key] = time.Now()
		}
		g.flushIfIdle()
		return
	}
	g.flushIfIdle()
	g.aloneAnswered(out)
}

// flushIfIdle sends the gathered writes if none is under way, or waits a little for more.
func (g *committer) flushIfIdle() {
	switch {
	case g.out > 0 || g.next == nil:
	case g.on && len(g.next.members) < leastTogether:
		if at := time.Now().Add(g.lately / 2); at.Before(g.at) {
			g.at = at
			g.due.Reset(g.lately / 2)
		}
	default:
		g.flush()
	}
}

// batchAnswered notes that a batch was answered. again is whether its members have to be sent again, each alone.
func (g *committer) batchAnswered(n int, took time.Duration, err error) (again bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.out -= n
	g.togetherAnswered(n, took, err)
	g.flushIfIdle()
	return errors.Is(err, ErrBusy)
}

// has reports whether the batch has a write of the key.
func (t *Batch) has(key string) bool {
	return t != nil && slices.ContainsFunc(t.members, func(m *Member) bool { return m.key == key })
}
