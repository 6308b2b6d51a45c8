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
	// leastTogether is how many writes a batch has at least. On one server with a file a batch takes as long
	// as some 15 synced single writes, however small it is.
	leastTogether = 24
	mostTogether  = 256
	mostBytes     = 1 << 20
	largeMember   = 64 << 10 // goes by itself

	// longestGather bounds how long a write waits for those that are under way, if one is not answered.
	longestGather = 20 * time.Millisecond
	// apart is for how long a key on which a write met another one is left out of batches.
	apart = time.Second
)

// committer is the group commit of a bucket: while writes are under way, those that come are gathered, and go
// as one atomic batch when the former are answered. Each has its own outcome, as if it had been sent alone,
// and nothing rests on their standing or falling together.
// A write that finds none under way goes at once, unless a batch was answered a moment ago.
type committer struct {
	b       *Bucket
	longest time.Duration // longestGather
	aside   time.Duration // apart

	mu    sync.Mutex
	out   int    // writes under way
	next  *Batch // gathers
	bytes int    // of next
	due   *time.Timer
	at    time.Time            // of due
	met   map[string]time.Time // keys that are apart, since when
	gauge
	batched uint64 // writes
}

// CommitInGroups has the bucket send writes of different keys together while there are many at a time.
func (b *Bucket) CommitInGroups() {
	if b.atomic {
		b.group.CompareAndSwap(nil, &committer{b: b, longest: longestGather, aside: apart, met: map[string]time.Time{}})
	}
}

// Batched returns how many writes were sent in batches of CommitInGroups.
func (b *Bucket) Batched() uint64 {
	g := b.group.Load()
	if g == nil {
		return 0
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.batched
}

// write reports beside the outcome whether the message was alone all the time.
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

// join returns nil where the write is to go at once and alone, and notes that it is under way.
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
	// While nothing is under way, as many as came back from the last batch are all that are to be expected.
	if n := len(g.next.members); n == mostTogether || g.out == 0 && n >= max(leastTogether, g.size) {
		g.flush()
	}
	return m
}

// apart reports whether another writer was met on the key a moment ago. Lock held.
func (g *committer) apart(key string) bool {
	at, ok := g.met[key]
	if ok && time.Since(at) > g.aside {
		delete(g.met, key)
		return false
	}
	return ok
}

// flush sends what was gathered. Lock held.
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

// answered takes in that a single write is over.
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

// flushIfIdle sends what was gathered if nothing is under way, or lets it grow a little. Lock held.
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

// batchAnswered takes in that a batch is over, and reports whether its members are to be sent again, each alone.
func (g *committer) batchAnswered(n int, took time.Duration, err error) (again bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.out -= n
	g.togetherAnswered(n, took, err)
	g.flushIfIdle()
	return errors.Is(err, ErrBusy)
}

// has reports whether a write of the key has joined.
func (t *Batch) has(key string) bool {
	return t != nil && slices.ContainsFunc(t.members, func(m *Member) bool { return m.key == key })
}
