package engine

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lockfabric/lockfabric/internal/jskv"
	"github.com/lockfabric/lockfabric/internal/record"
)

// deposed is a bucket with two leaders for a moment: the old leader answers
// the next write, at once and by its old state, and the new leader
// gets the write all the same. On three replicas that happens for some seconds after a
// partition has healed.
type deposed struct {
	*bucket
	answer func(key string, rev uint64) error // of the old leader, for the next write
	late   bool                               // the new leader gets that write when deliverLate is called
	hook   func()                             // called before the answer
}

func (d *deposed) Update(ctx context.Context, key string, value []byte, rev uint64, ttl time.Duration) (uint64, error) {
	return d.twice(jskv.Entry{Key: key, Value: value}, rev, func() (uint64, error) { return d.bucket.Update(ctx, key, value, rev, ttl) })
}

func (d *deposed) Purge(ctx context.Context, key string, rev uint64, ttl time.Duration) (uint64, error) {
	return d.twice(jskv.Entry{Key: key, Deleted: true}, rev, func() (uint64, error) { return d.bucket.Purge(ctx, key, rev, ttl) })
}

func (d *deposed) twice(e jskv.Entry, rev uint64, write func() (uint64, error)) (uint64, error) {
	answer := d.answer
	if answer == nil {
		return write()
	}
	d.answer = nil
	commit := func() { _, _ = d.commit(e, rev) }
	if d.late {
		d.mu.Lock()
		d.held = append(d.held, commit)
		d.mu.Unlock()
	} else {
		commit()
	}
	if d.hook != nil {
		d.hook()
	}
	return 0, answer(e.Key, rev)
}

func behind(key string, rev uint64) error {
	return &jskv.ConflictError{Key: key, Expected: rev, Actual: rev - 1}
}

// again is the conflict of a write that was in a batch before, which the new leader has committed.
func again(key string, rev uint64) error {
	return &jskv.ConflictError{Key: key, Expected: rev, Actual: rev + 1, Again: true}
}

func busyThere(string, uint64) error { return fmt.Errorf("%w: injected", jskv.ErrBusy) }

func inDeposed(t *testing.T, fn func(t *testing.T, e *Engine, d *deposed)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		b := newBucket(t)
		d := &deposed{bucket: b}
		e := New(Config{Store: d, Watcher: b, Observer: &observer{}})
		defer e.Close()
		fn(t, e, d)
	})
}

// A release that the new leader has committed, and the old one refused, found
// its entry.
func TestReleaseRefusedByADeposedLeader(t *testing.T) {
	for name, answer := range map[string]func(string, uint64) error{"conflict": behind, "busy": busyThere, "in a batch before": again} {
		t.Run(name, func(t *testing.T) {
			inDeposed(t, func(t *testing.T, e *Engine, d *deposed) {
				out, err := Do(t.Context(), e, "k", acquireOp("L1.1"), Options{})
				must(t, out, err)
				d.answer = answer
				out, err = Do(t.Context(), e, "k", releaseOp("L1.1"), Options{})
				if !must(t, out, err).Existed {
					t.Error("the release found nothing")
				}
				if rec := d.record("k"); !rec.Idle() {
					t.Errorf("still held: %+v", rec)
				}
			})
		})
	}
}

// An acquire that is given up after the old leader refused it can still be
// committed by the new one: its absence has to be proved by a write.
func TestAcquireRefusedByADeposedLeaderLeavesNothing(t *testing.T) {
	for name, answer := range map[string]func(string, uint64) error{"conflict": behind, "busy": busyThere} {
		t.Run(name, func(t *testing.T) {
			inDeposed(t, func(t *testing.T, e *Engine, d *deposed) {
				d.apply("k", acquireOp("L9.1"))
				d.apply("k", record.Op{Kind: record.KindLock, Verb: record.OpRelease, ID: "L9.1"})
				if _, _, err := e.Read(t.Context(), "k"); err != nil {
					t.Fatal(err)
				}
				ctx, cancel := context.WithCancel(t.Context())
				d.answer, d.late, d.hook = answer, true, cancel
				switch _, err := Do(ctx, e, "k", acquireOp("L1.1"), Options{}); {
				case err == nil: // written again before the end of the context was noticed
					out, err := Do(t.Context(), e, "k", releaseOp("L1.1"), Options{})
					must(t, out, err)
				case !errors.Is(err, context.Canceled):
					t.Fatal(err)
				}
				time.Sleep(time.Minute)
				d.deliverLate()
				if rec := d.record("k"); !rec.Idle() {
					t.Errorf("a ghost holds: %+v", rec)
				}
			})
		})
	}
}
