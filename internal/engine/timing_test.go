package engine

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lockfabric/lockfabric/internal/jskv"
	"github.com/lockfabric/lockfabric/internal/record"
	"github.com/lockfabric/lockfabric/internal/rtt"
	"github.com/lockfabric/lockfabric/kv"
)

// link is a bucket behind a slow link: half of a round trip before a
// request arrives (even if its sender has given up), and half after.
type link struct {
	*bucket
	mu     sync.Mutex
	writes time.Duration // how long one takes that is accepted
	reads  time.Duration // round trip; a write that is refused takes no longer
	sent   []time.Time   // writes
}

func (l *link) set(writes, reads time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.writes, l.reads = writes, reads
}

func (l *link) Get(ctx context.Context, key string) (jskv.Entry, error) {
	l.mu.Lock()
	d := l.reads
	l.mu.Unlock()
	if sleepFor(ctx, d/2) {
		e, err := l.bucket.Get(ctx, key)
		if sleepFor(ctx, d/2) {
			return e, err
		}
	}
	return jskv.Entry{}, fmt.Errorf("%w: %w", kv.ErrUnavailable, ctx.Err())
}

func (l *link) Update(ctx context.Context, key string, value []byte, rev uint64, ttl time.Duration) (uint64, error) {
	return l.write(ctx, func() (uint64, error) { return l.bucket.Update(ctx, key, value, rev, ttl) })
}

func (l *link) Purge(ctx context.Context, key string, rev uint64, ttl time.Duration) (uint64, error) {
	return l.write(ctx, func() (uint64, error) { return l.bucket.Purge(ctx, key, rev, ttl) })
}

func (l *link) write(ctx context.Context, write func() (uint64, error)) (uint64, error) {
	l.mu.Lock()
	d, more := l.reads, l.writes-l.reads
	l.sent = append(l.sent, time.Now())
	l.mu.Unlock()
	type answer struct {
		rev uint64
		err error
	}
	c := make(chan answer, 1)
	go func() {
		time.Sleep(d / 2)
		rev, err := write()
		if err == nil {
			time.Sleep(more)
		}
		time.Sleep(d / 2)
		c <- answer{rev, err}
	}()
	select {
	case a := <-c:
		return a.rev, a.err
	case <-ctx.Done():
		return 0, fmt.Errorf("%w: %w", jskv.ErrUnknown, ctx.Err())
	}
}

func sleepFor(ctx context.Context, d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-ctx.Done():
		return false
	}
}

// onLink runs a test with an engine behind a link.
func onLink(t *testing.T, fn func(t *testing.T, e *Engine, l *link)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		b := newBucket(t)
		l := &link{bucket: b}
		e := New(Config{Store: l, Watcher: b, Observer: &observer{}})
		defer e.Close()
		fn(t, e, l)
		e.Close()
		time.Sleep(time.Minute) // what is under way arrives
	})
}

// lockAndUnlock does n of both, each under a key of its own: from one key to the next
// the engine only learns how slow the link is.
func lockAndUnlock(t *testing.T, e *Engine, from, n int) {
	t.Helper()
	for i := from; i < from+n; i++ {
		key, id := fmt.Sprint("k", i), record.ID("L1", uint64(i+1))
		out, err := Do(t.Context(), e, key, acquireOp(id), Options{})
		must(t, out, err)
		out, err = Do(t.Context(), e, key, releaseOp(id), Options{})
		must(t, out, err)
	}
}

func TestSlowLinkIsNoOutage(t *testing.T) {
	for _, d := range []time.Duration{300 * time.Millisecond, 700 * time.Millisecond, 3 * time.Second, 8 * time.Second} {
		t.Run(d.String(), func(t *testing.T) {
			onLink(t, func(t *testing.T, e *Engine, l *link) {
				lockAndUnlock(t, e, 0, 100)
				if st := e.Stats(); st.Unknown != 0 || st.Reads != 0 {
					t.Fatalf("on a fast link: %+v", st)
				}
				l.set(d, d) // all of a sudden
				lockAndUnlock(t, e, 100, 1)
				first := e.Stats()
				lockAndUnlock(t, e, 101, 50)
				if st := e.Stats(); first.Unknown > 12 || st.Unknown != first.Unknown {
					t.Errorf("outcomes not known: %d of the first operations, %d of the next hundred", first.Unknown, st.Unknown-first.Unknown)
				}
				l.set(time.Millisecond, time.Millisecond)
				lockAndUnlock(t, e, 151, 100)
				if got := e.cfg.RTT.Timeout(); got != rtt.Floor {
					t.Errorf("timeout %v when the link is fast again", got)
				}
			})
		})
	}
}

// A server whose reads are fast and whose writes wait for a disk.
func TestFastReadsDoNotHideSlowWrites(t *testing.T) {
	onLink(t, func(t *testing.T, e *Engine, l *link) {
		l.set(600*time.Millisecond, time.Millisecond)
		lockAndUnlock(t, e, 0, 10)
		before := e.Stats().Unknown
		for i := range 100 {
			if _, _, err := e.Read(t.Context(), "k1"); err != nil {
				t.Fatal(err)
			}
			if i%10 == 0 {
				lockAndUnlock(t, e, 10+i, 1)
			}
		}
		if n := e.Stats().Unknown - before; n != 0 {
			t.Errorf("%d outcomes not known", n)
		}
	})
}

// A refused write waits for no disk and no quorum either.
func TestRefusalsDoNotHideSlowWrites(t *testing.T) {
	onLink(t, func(t *testing.T, e *Engine, l *link) {
		l.set(600*time.Millisecond, time.Millisecond)
		lockAndUnlock(t, e, 0, 10)
		before := e.Stats()
		l.bucket.fault = func(n int) fault {
			if n%16 != 0 {
				return busy
			}
			return pass
		}
		lockAndUnlock(t, e, 10, 20)
		if st := e.Stats(); st.Unknown != before.Unknown || st.Busy == before.Busy {
			t.Errorf("before %+v, after %+v", before, st)
		}
	})
}

// However many requests for one key are under way at the same time, if none is answered
// they count as one time-out, not one for each.
func TestReadsAtTheSameTimeBackOffOnce(t *testing.T) {
	onLink(t, func(t *testing.T, e *Engine, l *link) {
		lockAndUnlock(t, e, 0, 20)
		l.set(time.Minute, time.Minute)
		start := time.Now()
		time.AfterFunc(300*time.Millisecond, func() { l.set(time.Millisecond, time.Millisecond) })
		var wg sync.WaitGroup
		for range 64 {
			wg.Go(func() {
				if _, _, err := e.Read(t.Context(), "k1"); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if took := time.Since(start); took > time.Second { // the second time half a second was waited
			t.Errorf("answered after %v", took)
		}
	})
}

// After each time-out the engine waits twice as long for the next answer,
// even while reads are answered; an answer resets this.
func TestUnansweredRequestsBackOff(t *testing.T) {
	onLink(t, func(t *testing.T, e *Engine, l *link) {
		lockAndUnlock(t, e, 0, 20)
		l.mu.Lock()
		l.sent = nil
		l.mu.Unlock()
		l.bucket.fault = func(n int) fault {
			if n <= 45 {
				return lose
			}
			return pass
		}
		lockAndUnlock(t, e, 20, 1)
		l.mu.Lock()
		defer l.mu.Unlock()
		want := []int{250, 500, 1000, 2000, 2000}
		for i, n := range want {
			d := time.Duration(n) * time.Millisecond
			// The pauses between are at most a second and a half.
			if got := l.sent[i+1].Sub(l.sent[i]); got < d || got > d+1500*time.Millisecond {
				t.Errorf("attempt %d was given up after %v, want %v", i+1, got, d)
			}
		}
		if got := e.cfg.RTT.Timeouts(); got != 5 {
			t.Errorf("%d timeouts counted", got)
		}
		// The key got an answer at last, so the counter is reset.
		first := len(l.sent)
		l.bucket.fault = func(n int) fault {
			if n == 48 {
				return lose
			}
			return pass
		}
		l.mu.Unlock()
		out, err := Do(t.Context(), e, "k20", acquireOp("L1.99"), Options{})
		l.mu.Lock()
		must(t, out, err)
		if got := l.sent[first+1].Sub(l.sent[first]); got < 250*time.Millisecond || got > 300*time.Millisecond {
			t.Errorf("given up after %v", got)
		}
	})
}

// An isolated leader answers "busy" for some ten seconds. The engine retries often at
// first, since busy usually ends in a moment, and then rarely.
func TestBusyForLongIsAskedRarely(t *testing.T) {
	in(t, func(t *testing.T, e *Engine, b *bucket, _ *observer) {
		start := time.Now()
		var early int
		b.fault = func(n int) fault {
			switch since := time.Since(start); {
			case since >= 10*time.Second:
				return pass
			case since < 100*time.Millisecond:
				early = n
			}
			return busy
		}
		out, err := Do(t.Context(), e, "k", acquireOp("L1.1"), Options{})
		must(t, out, err)
		w, _, _ := b.counts()
		if early < 8 || w > 100 {
			t.Errorf("asked %d times, %d of them in the first 100 ms", w, early)
		}
		if took := time.Since(start); took > 10*time.Second+400*time.Millisecond {
			t.Errorf("noticed after %v", took)
		}
	})
}

// A time-out ends a fail-fast call, so such a call waits a little longer.
func TestFailFastIsPatientEnough(t *testing.T) {
	onLink(t, func(t *testing.T, e *Engine, l *link) {
		lockAndUnlock(t, e, 0, 20)
		l.set(400*time.Millisecond, 400*time.Millisecond)
		out, err := Do(t.Context(), e, "x", acquireOp("L1.1"), Options{FailFast: true})
		must(t, out, err)
		l.set(30*time.Second, 30*time.Second)
		start := time.Now()
		if _, err := Do(t.Context(), e, "y", acquireOp("L1.2"), Options{FailFast: true}); !errors.Is(err, ErrUnavailable) {
			t.Fatal(err)
		}
		if took := time.Since(start); took > 2*time.Second {
			t.Errorf("failed after %v", took)
		}
	})
}
