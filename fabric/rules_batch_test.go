package fabric_test

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/lockfabric/lockfabric/fabric"
	"github.com/lockfabric/lockfabric/internal/jskv"
)

// batchEnd matches what ends an atomic batch: the only message of it that is answered.
func batchEnd(msg *nats.Msg) bool { return msg.Header.Get("Nats-Batch-Commit") != "" }

// incomplete has the server do it, and answers what a new leader says of a batch that it does not know.
func incomplete(ctx context.Context, msg *nats.Msg, send jskv.Requester) (*nats.Msg, error) {
	_, _ = surely(ctx, msg, send)
	return &nats.Msg{Data: []byte(`{"error":{"code":400,"err_code":10176,"description":"batch publish is incomplete and was abandoned"}}`)}, nil
}

// olderLeader has the server do it, and answers as a deposed leader does that has an older revision.
func olderLeader(ctx context.Context, msg *nats.Msg, send jskv.Requester) (*nats.Msg, error) {
	_, _ = surely(ctx, msg, send)
	return &nats.Msg{Data: []byte(`{"error":{"code":400,"err_code":10071,"description":"wrong last sequence: 1"}}`)}, nil
}

// half has the server do one of the batch's writes, and says nothing.
func half(ctx context.Context, msg *nats.Msg, send jskv.Requester) (*nats.Msg, error) {
	one := &nats.Msg{Subject: msg.Subject, Header: nats.Header{}, Data: msg.Data}
	for k, v := range msg.Header {
		if k != "Nats-Batch-Id" && k != "Nats-Batch-Sequence" && k != "Nats-Batch-Commit" {
			one.Header[k] = v
		}
	}
	return deaf(ctx, one, send)
}

// On replicas a set is acquired and released by atomic batches. Whether all, one or none of their writes is
// done, and whatever the answer, the set is granted once and leaves nothing.
func TestM10_NothingRestsOnABatch(t *testing.T) {
	onSite(t, clusterSite, func(t *testing.T, s *site) {
		for name, act := range map[string]action{
			"answered": goesThrough, "no answer": deaf, "not done": vanish, "busy": busy, "one is done": half,
			"M11: done, and said to be incomplete": incomplete, "M11: done, and refused by a deposed leader": olderLeader,
		} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				m, w := s.wired(t)
				other, k := s.manager(t), s.keys(t, 4)
				for round := range 2 {
					sent := w.fault(1, about(t, k[0], batchEnd), act)
					all := w.fault(1, batchEnd, act)
					set := acquireAll(t, m, fabric.Names(k[3], k[2], k[1], k[0]))
					for _, l := range set.Locks() {
						expectHolder(t, other, l.Key(), l)
					}
					f := w.fault(1, batchEnd, act)
					if err := set.Release(waitContext(t)); err != nil && !errors.Is(err, fabric.ErrUnconfirmed) {
						t.Error(err)
					}
					eventually(t, "nothing is left", func() bool { // which replicas can be long about
						return !slices.ContainsFunc(k, func(key string) bool { return !free(t, other, key) })
					})
					if n := sent.count() + all.count(); n != 1 && round == 0 || name == "answered" && f.count() != 1 {
						t.Errorf("%d batches, and %d of releases", n, f.count())
					}
					sent.end()
					all.end()
					f.end()
				}
			})
		}
	})
}

// If one member meets another record nothing is written, and each goes on by itself.
func TestM10_OneMemberConflicts(t *testing.T) {
	onSite(t, clusterSite, func(t *testing.T, s *site) {
		m, w := s.wired(t)
		other, k := s.manager(t), s.keys(t, 3)
		releaseSet(t, acquireAll(t, m, fabric.Names(k...)))
		release(t, acquire(t, other, k[1]))
		f := w.fault(-1, batchEnd, goesThrough)
		set := acquireAll(t, m, fabric.Names(k...))
		if f.count() != 1 {
			t.Errorf("%d batches", f.count())
		}
		releaseSet(t, set)
		busy := acquire(t, other, k[1])
		if _, err := m.TryAcquireAll(waitContext(t), fabric.Names(k...), fabric.WithoutTakeover()); !errors.Is(err, fabric.ErrHeld) {
			t.Errorf("a try: %v", err)
		}
		expectFree(t, other, k[0])
		expectFree(t, other, k[2])
		release(t, busy)
	})
}

// After a batch without an answer each member is looked up by itself: one that can't be keeps no other.
func TestM12_MembersAreResolvedOneByOne(t *testing.T) {
	onSite(t, clusterSite, func(t *testing.T, s *site) {
		m, w := s.wired(t)
		other, k := s.manager(t), s.keys(t, 3)
		lost := w.fault(1, batchEnd, deaf)
		stuck := w.fault(-1, about(t, k[1], lockTraffic), vanish)
		ctx, cancel := context.WithTimeout(waitContext(t), time.Second)
		defer cancel()
		if _, err := m.AcquireAll(ctx, fabric.Names(k...)); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("with a member that nobody answers for: %v", err)
		}
		if lost.count() != 1 {
			t.Error("no batch")
		}
		eventually(t, "the others are free", func() bool { return free(t, other, k[0]) && free(t, other, k[2]) })
		if free(t, other, k[1]) {
			t.Error("the batch was not committed")
		}
		stuck.end()
		eventually(t, "so is that one", func() bool { return free(t, other, k[1]) })
	})
}
