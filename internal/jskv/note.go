package jskv

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/lockfabric/lockfabric/internal/pause"
	"github.com/lockfabric/lockfabric/kv"
)

// noteEvery is how many writes of locks may pass before their revision is noted.
const noteEvery = 1 << 16

// noteTimeout bounds one request for the fabric's note.
const noteTimeout = 2 * time.Second

// meta is the fabric's note in the leases bucket.
type meta struct {
	Version int `json:"v"`
	noted
	LongestTTL int64   `json:"longest_ttl"`      // milliseconds
	Sweeps     uint64  `json:"sweeps,omitempty"` // how often dead entries were collected
	Shards     []noted `json:"shards,omitempty"` // all but the first
}

// noted is the part of the note about one locks bucket.
type noted struct {
	Incarnation string `json:"incarnation"`
	HighWater   uint64 `json:"high_water"` // revision
}

// shard returns the part of the note about a shard.
func (m *meta) shard(s int) *noted {
	if s == 0 {
		return &m.noted
	}
	for len(m.Shards) < s {
		m.Shards = append(m.Shards, noted{})
	}
	return &m.Shards[s-1]
}

// NoteSeen notes a revision of a shard's bucket, so that a later Open
// can see whether the bucket was set back. Errors are those of a write.
func (b *Buckets) NoteSeen(ctx context.Context, s int, seen uint64) error {
	_, _, err := b.note(ctx, func(m *meta) bool {
		o := m.shard(s)
		if o.Incarnation != b.Locks[s].incarnation || seen < o.HighWater+noteEvery {
			return false // of another bucket, or noted already
		}
		o.HighWater = seen
		return true
	})
	return err
}

// ConfirmIncarnation notes the present locks buckets as the fabric's. Call it after
// the quarantine. Errors are those of a write.
func (b *Buckets) ConfirmIncarnation(ctx context.Context) error {
	_, _, err := b.note(ctx, func(m *meta) (changed bool) {
		for s, locks := range b.Locks {
			o := m.shard(s)
			changed = changed || o.Incarnation != locks.incarnation
			o.Incarnation = locks.incarnation
		}
		return changed
	})
	return err
}

// NoteTTL notes that leases of this length are in use, with the seen revision of each locks bucket. It writes
// only if ttl is longer than every one before. Errors are those of a write.
func (b *Buckets) NoteTTL(ctx context.Context, ttl time.Duration, seen []uint64) error {
	ms := (ttl + time.Millisecond - 1).Milliseconds()
	_, _, err := b.note(ctx, func(m *meta) bool {
		if ms <= m.LongestTTL {
			return false
		}
		m.LongestTTL = ms
		for s, rev := range seen {
			o := m.shard(s)
			o.HighWater = max(o.HighWater, rev)
		}
		return true
	})
	return err
}

// note reads the fabric's note, lets edit change it, and writes it back by CAS until that succeeds or edit has
// nothing to change. known is false if there was no note.
func (b *Buckets) note(ctx context.Context, edit func(*meta) bool) (m meta, known bool, err error) {
	var refused error // the last write's, if it was answered
	failed := func(err error) (meta, bool, error) {
		if refused != nil && !errors.Is(err, refused) {
			err = fmt.Errorf("%w; last answer: %w", err, refused)
		}
		return meta{}, false, err
	}
	begun := time.Now()
	for attempt := 0; ; attempt++ {
		e, err := retryUnanswered(ctx, b.Leases.link, func(ctx context.Context) (Entry, error) { return b.Leases.Get(ctx, kv.MetaKey) })
		if err != nil {
			return failed(err)
		}
		m = meta{Version: kv.Schema}
		if known = !e.Deleted; known {
			if m, err = b.Leases.parseNote(e); err != nil {
				return meta{}, false, err
			}
		}
		if !edit(&m) {
			return m, known, nil
		}
		value, err := json.Marshal(m)
		if err != nil {
			return meta{}, false, err
		}
		wctx, cancel := context.WithTimeout(ctx, min(b.Leases.link.wait()<<min(attempt, 5), noteTimeout))
		_, err = b.Leases.Update(wctx, kv.MetaKey, value, e.Revision, 0)
		if wctx.Err() == nil {
			refused = err
		}
		cancel()
		if err == nil {
			return m, known, nil
		}
		// After any other outcome, read again: the edit is idempotent. A stream that was created a moment ago, or
		// has just lost its leader, is not subscribed to its subjects: the server says so at once.
		unheard := errors.Is(err, nats.ErrNoResponders) && time.Since(begun) < openTimeout
		if attempt >= 20 && !unheard || ctx.Err() != nil || errors.Is(err, kv.ErrRejected) {
			return failed(err)
		}
		pause.For(ctx, time.Duration(min(attempt, 50)+1)*2*time.Millisecond)
	}
}

func (b *Bucket) parseNote(e Entry) (meta, error) {
	m := meta{Version: kv.Schema}
	if err := json.Unmarshal(e.Value, &m); err != nil {
		return meta{}, &kv.ConfigError{Bucket: b.name, Field: kv.MetaKey, Value: "unreadable", Want: "JSON",
			Remedy: "restore it, or delete the key while nobody holds a lock"}
	}
	if m.Version > kv.Schema {
		return meta{}, fmt.Errorf("%w: %s in bucket %s has version %d", kv.ErrNewerSchema, kv.MetaKey, b.name, m.Version)
	}
	return m, nil
}

// quarantine is how long nothing is granted in a locks bucket that is not the noted one.
func (m meta) quarantine() time.Duration {
	longest := time.Duration(m.LongestTTL) * time.Millisecond
	return longest + longest/20 + time.Second
}

// highWater returns the highest revision of a shard's bucket in the fabric's note, and the highest that any
// lease's owner has seen. It reads all leases and tombstones of a day: too much for every opening.
func highWater(ctx context.Context, leases *Bucket, s int) (high, seen uint64, err error) {
	err = leases.Entries(ctx, ">", func(e Entry) bool {
		var of struct {
			Seen   uint64   `json:"seen"`
			Others []uint64 `json:"seen_shards"`
			meta
		}
		if json.Unmarshal(e.Value, &of) == nil {
			high = max(high, of.shard(s).HighWater)
			if s == 0 {
				seen = max(seen, of.Seen)
			} else if s <= len(of.Others) {
				seen = max(seen, of.Others[s-1])
			}
		}
		return true
	})
	return high, seen, err
}
