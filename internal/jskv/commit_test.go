package jskv_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/lockfabric/lockfabric/internal/jskv"
)

const crowd = 64

// outcome of one write of a crowd.
type outcome struct {
	rev uint64
	err error
}

// together has write called for each of a crowd at a time, in one batch.
func together(t *testing.T, b *jskv.Bucket, write func(i int) (uint64, error)) (all [crowd]outcome) {
	t.Helper()
	gathered, send := b.Gather()
	var wg sync.WaitGroup
	for i := range crowd {
		wg.Go(func() { all[i].rev, all[i].err = write(i) })
	}
	waitFor(testContext(t), t, "the crowd", func() bool { return gathered() == crowd })
	send()
	wg.Wait()
	if n := b.Batched(); n != crowd {
		t.Errorf("%d writes in batches", n)
	}
	return all
}

func member(i int) string { return fmt.Sprint("k", i) }

// entry reads a key until a leader answers.
func entry(t *testing.T, b *jskv.Bucket, key string) jskv.Entry {
	t.Helper()
	for ctx := testContext(t); ; {
		actx, cancel := context.WithTimeout(ctx, time.Second)
		e, err := b.Get(actx, key)
		cancel()
		if err == nil || ctx.Err() != nil {
			if err != nil {
				t.Error(err)
			}
			return e
		}
	}
}

// Writes that go together have the outcomes of writes that go alone.
func TestGroups(t *testing.T) {
	onServers(t, func(t *testing.T, _ *nats.Conn, b *jskv.Bucket) {
		ctx := testContext(t)
		all := together(t, b, func(i int) (uint64, error) { return b.Update(ctx, member(i), []byte(member(i)), 0, 0) })
		for i, o := range all {
			e := entry(t, b, member(i))
			if o.err != nil || o.rev != e.Revision || string(e.Value) != member(i) {
				t.Errorf("%d: revision %d, %v; it is %+v", i, o.rev, o.err, e)
			}
		}
		var wg sync.WaitGroup
		for i, o := range all { // and on, as it comes
			wg.Go(func() {
				rev, err := settled(t, func() (uint64, error) { return b.Purge(ctx, member(i), o.rev, jskv.MarkerTTL) })
				if e := entry(t, b, member(i)); err != nil || rev != e.Revision || !e.Deleted {
					t.Errorf("%d: revision %d, %v; it is %+v", i, rev, err, e)
				}
			})
		}
		wg.Wait()
	})
}

// C16: one member of a batch meets another writer. Each of the others is sent once more, at once and alone, and the
// key that was contended stays out of batches.
func TestC16_AConflictInABatch(t *testing.T) {
	onServers(t, func(t *testing.T, nc *nats.Conn, b *jskv.Bucket) {
		ctx := testContext(t)
		const contended = 7
		foreign := update(t, b, member(contended), "foreign", 0)
		sent := watchSent(t, nc, b)
		var busy atomic.Int64
		all := together(t, b, func(i int) (uint64, error) {
			for { // the server may say that it is busy with a write that it has just answered
				rev, err := b.Update(ctx, member(i), []byte(member(i)), 0, 0)
				if !errors.Is(err, jskv.ErrBusy) {
					return rev, err
				}
				busy.Add(1)
			}
		})
		for i, o := range all {
			e := entry(t, b, member(i))
			conflict := (*jskv.ConflictError)(nil)
			switch {
			case i != contended && (o.err != nil || o.rev != e.Revision || string(e.Value) != member(i)):
				t.Errorf("%d: revision %d, %v; it is %+v", i, o.rev, o.err, e)
			case i == contended && (!errors.As(o.err, &conflict) || conflict.Actual != foreign || !conflict.Again && busy.Load() == 0):
				t.Errorf("the contended one: %v", o.err)
			}
		}
		_ = nc.FlushWithContext(ctx)
		waitFor(ctx, t, "what was sent again", func() bool { return sent.alone.Load() >= crowd })
		if n := sent.batched.Load(); n != crowd {
			t.Errorf("%d were sent in batches", n)
		}
		gathered, send := b.Gather()
		defer send()
		update(t, b, member(contended), "mine", foreign)
		if gathered() != 0 {
			t.Error("a contended key is in a batch again")
		}
	})
}

// sent counts writes of a bucket.
type sent struct{ batched, alone atomic.Int64 }

func watchSent(t *testing.T, nc *nats.Conn, b *jskv.Bucket) *sent {
	t.Helper()
	s := &sent{}
	sub, err := nc.Subscribe("$KV."+b.Name()+".>", func(m *nats.Msg) {
		if m.Header.Get("Nats-Batch-Id") != "" {
			s.batched.Add(1)
		} else {
			s.alone.Add(1)
		}
	})
	if err == nil {
		err = nc.Flush()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = sub.Unsubscribe() })
	return s
}

// C15: the acknowledgement of a batch gets lost, and on replicas the leader changes at that. Each member's outcome is
// unknown, and each one that is tried again is written once.
func TestC15_ABatchWhoseAnswerIsLost(t *testing.T) {
	onServers(t, func(t *testing.T, nc *nats.Conn, whole *jskv.Bucket) {
		ctx := testContext(t)
		var lost atomic.Int64
		b := open(t, nc, jskv.Config{Fabric: strings.TrimSuffix(whole.Name(), "-locks"), Request: func(ctx context.Context, msg *nats.Msg) (*nats.Msg, error) {
			reply, err := nc.RequestMsgWithContext(ctx, msg)
			if msg.Header.Get("Nats-Batch-Commit") == "" || lost.Add(1) > 1 {
				return reply, err
			}
			if servers, _ := threeServers(); nc.ConnectedClusterName() != "" {
				if err := servers.StepDown(ctx, whole.Stream()); err != nil {
					t.Error(err)
				}
			}
			return nil, context.DeadlineExceeded
		}}).Locks[0]
		all := together(t, b, func(i int) (uint64, error) { return b.Update(ctx, member(i), []byte("once"), 0, 0) })
		for i, o := range all {
			if !errors.Is(o.err, jskv.ErrUnknown) {
				t.Fatalf("%d: %v", i, o.err)
			}
		}
		var wg sync.WaitGroup
		for i := range crowd {
			wg.Go(func() {
				for again := true; again && ctx.Err() == nil; { // until a leader says that it was written
					actx, cancel := context.WithTimeout(ctx, time.Second)
					_, err := b.Update(actx, member(i), []byte("twice"), 0, 0)
					cancel()
					again = !errors.Is(err, jskv.ErrConflict) && err != nil
				}
			})
		}
		wg.Wait()
		for i := range crowd {
			if e := entry(t, whole, member(i)); string(e.Value) != "once" {
				t.Errorf("%d: %+v", i, e)
			}
		}
	})
}
