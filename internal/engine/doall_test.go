package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lockfabric/lockfabric/internal/jskv"
	"github.com/lockfabric/lockfabric/internal/record"
)

// sendings is a store that notes the order in which writes are sent, and answers none before answer
// is closed. Like the NATS client it calls the context's Done once a request was sent.
type sendings struct {
	*bucket
	answer chan struct{}
	slow   string // a key whose request takes long to get out

	mu   sync.Mutex
	keys []string
}

func (s *sendings) Update(ctx context.Context, key string, value []byte, rev uint64, ttl time.Duration) (uint64, error) {
	if key == s.slow {
		time.Sleep(50 * time.Millisecond)
	}
	s.mu.Lock()
	s.keys = append(s.keys, key)
	s.mu.Unlock()
	rev, err := s.bucket.Update(ctx, key, value, rev, ttl)
	select {
	case <-s.answer:
		return rev, err
	case <-ctx.Done():
		return 0, fmt.Errorf("%w: %w", jskv.ErrUnknown, ctx.Err())
	}
}

func (s *sendings) sent() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Join(s.keys, "")
}

func tries(keys string) []*Call {
	var calls []*Call
	for i, key := range keys {
		calls = append(calls, &Call{Key: string(key), Op: tryOp(record.ID("L1", uint64(i+1)))})
	}
	return calls
}

func onSendings(t *testing.T, fn func(t *testing.T, e *Engine, s *sendings)) {
	synctest.Test(t, func(t *testing.T) {
		s := &sendings{bucket: newBucket(t), answer: make(chan struct{})}
		e := New(Config{Store: s, Watcher: s, Observer: &observer{}})
		defer e.Close()
		fn(t, e, s)
	})
}

func TestCallsAreSentInOrderWithoutWaiting(t *testing.T) {
	onSendings(t, func(t *testing.T, e *Engine, s *sendings) {
		calls := tries("abcdefgh")
		s.slow = "c"
		go func() {
			time.Sleep(60 * time.Millisecond) // all are sent by then, and none is answered
			if got := s.sent(); got != "abcdefgh" {
				t.Errorf("sent %s", got)
			}
			close(s.answer)
		}()
		DoAll(t.Context(), e, calls, Options{})
		for i, c := range calls {
			if c.Err != nil || i > 0 && c.Outcome.Entry.Token <= calls[i-1].Outcome.Entry.Token {
				t.Errorf("%s: %v, token %d", c.Key, c.Err, c.Outcome.Entry.Token)
			}
		}
		if _, commits, reads := s.counts(); commits != len(calls) || reads != 0 {
			t.Errorf("%d writes and %d reads", commits, reads)
		}
	})
}

// A key for which something is under way delays none of the others.
func TestM9_ABusyKeyHoldsUpNoOther(t *testing.T) {
	onSendings(t, func(t *testing.T, e *Engine, s *sendings) {
		hot := ask("b", tryOp("L2.1"))
		e.Submit(&hot.Request)
		synctest.Wait()
		done := make(chan []*Call, 1)
		go func() {
			calls := tries("abc")
			DoAll(context.Background(), e, calls, Options{})
			done <- calls
		}()
		synctest.Wait()
		if got := s.sent(); got != "bac" {
			t.Errorf("sent %s", got)
		}
		close(s.answer)
		calls := <-done
		var refused *RefusedError
		if !errors.As(calls[1].Err, &refused) || calls[0].Err != nil || calls[2].Err != nil {
			t.Errorf("%v, %v, %v", calls[0].Err, calls[1].Err, calls[2].Err)
		}
	})
}

func TestCallsThatAreGivenUpLeaveNothing(t *testing.T) {
	for name, opt := range map[string]Options{"stopped": {Stop: closed()}, "late": {Bound: time.Second}, "ended": {}} {
		t.Run(name, func(t *testing.T) {
			onSendings(t, func(t *testing.T, e *Engine, s *sendings) {
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				go func() {
					time.Sleep(3 * time.Second)
					close(s.answer)
				}()
				calls := tries("abc")
				DoAll(ctx, e, calls, opt)
				if took := slices.ContainsFunc(calls, func(c *Call) bool { return c.Err == nil }); took {
					t.Error("one was granted")
				}
				time.Sleep(time.Minute)
				for _, c := range calls {
					if rec := s.record(c.Key); !rec.Idle() {
						t.Errorf("%s: %s", c.Key, rec.Append(nil))
					}
				}
				if e.Unresolved("L1") != 0 {
					t.Error("something is open still")
				}
			})
		})
	}
}

// A call that is answered keeps its outcome when the wait for another one ends.
func TestAnsweredCallsKeepTheirOutcome(t *testing.T) {
	in(t, func(t *testing.T, e *Engine, _ *bucket, _ *observer) {
		out, err := Do(t.Context(), e, "b", acquireOp("L2.1"), Options{})
		must(t, out, err)
		calls := []*Call{{Key: "b", Op: acquireOp("L1.1")}, {Key: "a", Op: acquireOp("L1.2")}}
		DoAll(t.Context(), e, calls, Options{Bound: time.Second})
		if calls[0].Err == nil || calls[1].Err != nil || calls[1].Outcome.Entry == nil {
			t.Errorf("%v, %+v", calls[0].Err, calls[1])
		}
	})
}

func closed() <-chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}

func TestForeseeAsksNobody(t *testing.T) {
	in(t, func(t *testing.T, e *Engine, b *bucket, _ *observer) {
		if v := e.Foresee("k", tryOp("L2.1")); v != record.Applied {
			t.Errorf("of a key that nobody knows: %v", v)
		}
		out, err := Do(t.Context(), e, "k", acquireOp("L1.1"), Options{})
		must(t, out, err)
		if v := e.Foresee("k", tryOp("L2.1")); v != record.Held {
			t.Errorf("of a key that is held: %v", v)
		}
		if writes, _, reads := b.counts(); writes != 1 || reads != 0 {
			t.Errorf("%d writes and %d reads", writes, reads)
		}
	})
}
