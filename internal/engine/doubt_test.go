package engine

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lockfabric/lockfabric/internal/jskv"
	"github.com/lockfabric/lockfabric/internal/record"
)

// A name that was used as another kind is free when that record is deleted: the engine
// does not refuse for ever from its cache.
func TestAnotherKindIsLookedAtAgain(t *testing.T) {
	in(t, func(t *testing.T, e *Engine, b *bucket, _ *observer) {
		b.put("k", []byte(`{"v":3,"kind":"turnstile"}`))
		if _, err := Do(t.Context(), e, "k", tryOp("L1.1"), Options{}); !errors.Is(err, record.ErrNewerSchema) {
			t.Fatal(err)
		}
		b.put("k", nil)
		out, err := Do(t.Context(), e, "k", tryOp("L1.2"), Options{})
		must(t, out, err)
	})
}

// A refusal names its blocker with the token, even if the blocker was granted in the
// same round.
func TestARefusalNamesTheTokenOfTheSameRound(t *testing.T) {
	in(t, func(t *testing.T, e *Engine, b *bucket, _ *observer) {
		b.block, b.arrived = make(chan struct{}), make(chan struct{}, 10)
		first := doAsync(t.Context(), e, acquireOp("L1.1"))
		<-b.arrived
		freed := doAsync(t.Context(), e, releaseOp("L1.1"))
		synctest.Wait()
		second := doAsync(t.Context(), e, acquireOp("L1.2"))
		synctest.Wait()
		third := doAsync(t.Context(), e, tryOp("L1.3"))
		synctest.Wait()
		close(b.block)
		got := <-first
		must(t, got.out, got.err)
		got = <-freed
		must(t, got.out, got.err)
		got = <-second
		must(t, got.out, got.err)
		var refused *RefusedError
		if got := <-third; !errors.As(got.err, &refused) || refused.Verdict != record.Held {
			t.Fatal(got.err)
		}
		if b := refused.Blocker; b.ID != "L1.2" || b.Token != got.out.Entry.Token || b.Token == 0 {
			t.Errorf("held by %s with token %d, granted %d", b.ID, b.Token, got.out.Entry.Token)
		}
	})
}

// A dead lease that could not be evicted, because the record was unreadable for a
// moment, is evicted when it can be read again.
func TestAFailedEvictionIsMadeUpFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, o := newBucket(t), &observer{}
		e := New(Config{Store: b, Watcher: &deaf{}, Observer: o})
		defer e.Close()
		b.apply("k", acquireOp("L9.1")) // another process holds
		wait := doAsync(t.Context(), e, acquireOp("L1.1"))
		pending(t, wait)
		was := b.peek("k").Value
		b.put("k", []byte(`not a record`))
		o.kill("L9")
		time.Sleep(time.Second)
		b.put("k", was) // somebody has repaired it
		if _, _, err := e.Read(t.Context(), "k"); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		o.kill("L9") // the observer reports it at once to a new observation
		time.Sleep(time.Minute)
		select {
		case got := <-wait:
			must(t, got.out, got.err)
		default:
			t.Fatalf("still waits for the dead one: %+v", b.record("k"))
		}
	})
}

// deaf is a watch that delivers nothing.
type deaf struct{}

func (*deaf) Watch(string, func(jskv.Entry)) func() { return func() {} }

func (*deaf) Follow(string, func(jskv.Entry)) func() { return func() {} }

// A release without an entry reports that it found nothing, even if it had to be proved by a
// write that got no answer.
func TestAReleaseThatNeverSawItsEntryFoundNothing(t *testing.T) {
	in(t, func(t *testing.T, e *Engine, b *bucket, _ *observer) {
		out, err := Do(t.Context(), e, "k", acquireOp("L1.1"), Options{})
		must(t, out, err)
		b.mu.Lock()
		delete(b.entries, "k") // an operator deletes it, marker and all
		b.mu.Unlock()
		b.faultOnce(lose) // on what the engine knows: a conflict
		if _, _, err := e.Read(t.Context(), "k"); err != nil {
			t.Fatal(err)
		}
		out, err = Do(t.Context(), e, "k", releaseOp("L1.1"), Options{})
		if must(t, out, err).Existed {
			t.Error("the release claims to have found an entry that it never saw")
		}
	})
}

// A newly watched hold is not lost because one read found no
// entry: a deposed leader may have answered.
func TestAWatchedHoldIsNotLostForOneLook(t *testing.T) {
	in(t, func(t *testing.T, e *Engine, b *bucket, _ *observer) {
		out, err := Do(t.Context(), e, "k", acquireOp("L1.1"), Options{})
		must(t, out, err)
		b.answer(&jskv.Entry{Key: "k", Deleted: true})
		if _, _, err := e.Read(t.Context(), "k"); err != nil {
			t.Fatal(err)
		}
		b.answer(nil)
		lost := make(chan error, 1)
		stop := e.WatchHold("k", "L1.1", 0, out.Revision, func(err error) { lost <- err })
		defer stop()
		time.Sleep(time.Minute)
		select {
		case err := <-lost:
			t.Errorf("lost: %v", err)
		default:
		}
	})
}

// An engine that has forgotten a key, as it does if there are very many,
// still does not trust a deposed leader: the release says how new the
// record must be.
func TestRule4_WhatWasForgottenIsStillKnownToTheHolder(t *testing.T) {
	for _, how := range []string{"release", "forget", "convert"} {
		for _, shows := range []string{"an old marker", "nothing"} {
			t.Run(how+", a read shows "+shows, func(t *testing.T) {
				in(t, func(t *testing.T, e *Engine, b *bucket, o *observer) {
					old := jskv.Entry{Key: "k", Deleted: true}
					if shows == "an old marker" {
						old.Revision = b.put("k", nil)
					}
					forgotten(t, e, b, o, how, old)
				})
			})
		}
	}
}

func forgotten(t *testing.T, e *Engine, b *bucket, o *observer, how string, old jskv.Entry) {
	out, err := Do(t.Context(), e, "k", acquireOp("L1.1"), Options{})
	known := must(t, out, err).Revision
	b.answer(&old)
	again := newEngine(t, b, o) // knows nothing, like one that has forgotten
	defer again.Close()
	ended := make(chan result, 1)
	do := func(op record.Op) {
		go func() {
			out, err := Do(t.Context(), again, "k", op, Options{Bound: 10 * time.Second, AtLeast: known})
			ended <- result{out, err}
		}()
	}
	switch how {
	case "release":
		do(releaseOp("L1.1"))
	case "forget":
		again.ReleaseInBackground("k", "L1", "L1.1", known)
	case "convert":
		do(convertOp("L1.1", "L1.2", record.X, record.S))
	}
	time.Sleep(time.Second)
	b.answer(nil) // the new leader answers
	time.Sleep(time.Minute)
	if how != "forget" {
		if got := <-ended; !must(t, got.out, got.err).Existed {
			t.Error("found nothing")
		}
	}
	if how == "convert" {
		expectHold(t, b, "L1.1", record.S)
	} else if rec := b.record("k"); !rec.Idle() {
		t.Fatalf("a ghost holds: %+v", rec)
	}
}

// answer sets the answer to all reads from now on; nil is the real one.
func (b *bucket) answer(e *jskv.Entry) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.stale = e
}

// An acquire's patience counts from its submission, however
// long the answers take.
func TestPatienceRunsOutWhileNobodyAnswers(t *testing.T) {
	in(t, func(t *testing.T, e *Engine, b *bucket, _ *observer) {
		freed := releaseOp("L9.1")
		freed.Hold = 20 * time.Second
		b.apply("k", acquireOp("L9.1"), acquireOp("L9.2"))
		b.apply("k", freed) // and L9.2 holds
		b.mu.Lock()
		b.fault = func(int) fault { return notSent }
		b.mu.Unlock()
		op := acquireOp("L1.1")
		op.Patience = 30 * time.Second
		late := doAsync(t.Context(), e, op)
		time.Sleep(15 * time.Second)
		b.mu.Lock()
		b.fault = nil
		b.mu.Unlock()
		time.Sleep(5 * time.Second)
		var refused *RefusedError
		select {
		case got := <-late:
			if !errors.As(got.err, &refused) || refused.Verdict != record.WaitTooLong {
				t.Error(got.err)
			}
		default:
			t.Errorf("queued with less time left than it takes: %+v", b.record("k"))
		}
	})
}

// A waiter whose record becomes unreadable gets an error, and its entry is removed when
// somebody restores the record with it.
func TestARestoredRecordIsCleanedUp(t *testing.T) {
	for _, how := range []string{"acquire", "conversion"} {
		t.Run(how, func(t *testing.T) {
			in(t, func(t *testing.T, e *Engine, b *bucket, _ *observer) {
				out, err := Do(t.Context(), e, "k", modeOp("L1.1", record.S), Options{})
				must(t, out, err)
				b.apply("k", modeOp("L9.1", record.S)) // another process reads
				op := acquireOp("L1.2")
				if how == "conversion" {
					op = convertOp("L1.1", "L1.2", record.S, record.X)
				}
				wait := doAsync(t.Context(), e, op)
				pending(t, wait)
				was := b.peek("k").Value
				b.put("k", []byte(`not a record`))
				synctest.Wait()
				if got := <-wait; !errors.Is(got.err, record.ErrMalformed) {
					t.Fatal(got.err)
				}
				time.Sleep(time.Minute)
				if d := e.Unresolved("L1"); d < time.Minute {
					t.Errorf("unresolved for %v only", d)
				}
				b.put("k", was)
				time.Sleep(time.Minute)
				expectHold(t, b, "L1.1", record.S)
				if rec := b.record("k"); len(rec.Waiters) > 0 || e.Unresolved("L1") > 0 {
					t.Errorf("left behind: %+v", rec)
				}
			})
		})
	}
}

// An eviction that a full bucket refuses is tried again, since it makes room.
func TestARefusedEvictionIsTriedAgain(t *testing.T) {
	in(t, func(t *testing.T, e *Engine, b *bucket, o *observer) {
		b.apply("k", acquireOp("L9.1")) // another process holds
		wait := doAsync(t.Context(), e, acquireOp("L1.1"))
		pending(t, wait)
		b.faultOnce(rejected)
		o.kill("L9")
		time.Sleep(time.Minute)
		select {
		case got := <-wait:
			must(t, got.out, got.err)
		default:
			t.Fatalf("still waits for the dead one: %+v", b.record("k"))
		}
	})
}
