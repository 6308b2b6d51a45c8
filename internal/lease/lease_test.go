package lease_test

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
	"github.com/lockfabric/lockfabric/internal/lease"
	"github.com/lockfabric/lockfabric/kv"
)

func TestCreateWritesAReadableLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBucket()
		l := create(t, b, lease.Config{Label: "backup", Seen: func() []uint64 { return []uint64{77, 5} }})
		w := b.committed()[0]
		i := b.info(t, l.ID())
		if i.Dead || i.TTL != 30*sec || i.Margin != 1500*ms || i.Label != "backup" || !slices.Equal(i.Seen, []uint64{77, 5}) || i.PID == 0 ||
			i.Host == "" || !i.Started.Equal(time.Now()) {
			t.Errorf("stored %+v", i)
		}
		if w.TTL != time.Hour {
			t.Errorf("server TTL %v, want an hour: it collects garbage only", w.TTL)
		}
		if w.Base != 0 || !lease.ValidID(l.ID()) || strings.ContainsAny(string(w.Value), "\n") {
			t.Errorf("written at %d: %s", w.Base, w.Value)
		}
		if !l.Valid() || l.Err() != nil || l.Remaining() != 28500*ms {
			t.Errorf("valid %v, err %v, remaining %v", l.Valid(), l.Err(), l.Remaining())
		}
	})
}

func TestServerTTLIsManyTimesTheLeases(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBucket()
		create(t, b, lease.Config{TTL: time.Hour})
		if w := b.committed()[0]; w.TTL != 20*time.Hour {
			t.Errorf("server TTL %v of a lease of an hour", w.TTL)
		}
	})
}

func TestCreateAbandonsAttemptsOfUnknownOutcome(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBucket()
		var first string
		b.onWrite = func(n int, w write) fault {
			switch n {
			case 1:
				first = w.Key
				return fault{late: 3 * sec}
			case 2:
				return fault{err: jskv.ErrNotSent}
			case 3:
				return fault{err: jskv.ErrBusy}
			}
			return fault{}
		}
		l := create(t, b, lease.Config{AutoRenew: true})
		time.Sleep(time.Minute)
		synctest.Wait()
		if l.ID() == first {
			t.Fatal("the id of an attempt that timed out is in use")
		}
		if b.get(first).Deleted {
			t.Fatal("the late commit did not happen")
		}
		writes := 0
		for _, w := range b.committed() {
			if w.Key == first {
				writes++
			}
		}
		if writes != 1 {
			t.Fatalf("the abandoned key was written %d times", writes)
		}
	})
}

func TestCreateFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := lease.Config{TTL: 30 * sec, Clock: newClock(1)}
		b := newBucket()
		b.onWrite = func(int, write) fault { return fault{err: kv.ErrRejected} }
		if _, err := lease.Create(t.Context(), b, cfg); !errors.Is(err, kv.ErrRejected) {
			t.Errorf("rejected: %v", err)
		}
		b.hooks(func(int, write) fault { return fault{err: jskv.ErrNotSent} }, nil)
		ctx, cancel := context.WithTimeout(t.Context(), 10*sec)
		defer cancel()
		start := time.Now()
		_, err := lease.Create(ctx, b, cfg)
		if !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, jskv.ErrNotSent) || time.Since(start) != 10*sec {
			t.Errorf("after %v: %v", time.Since(start), err)
		}
		if _, err := lease.Create(ctx, b, cfg); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("under an ended context: %v", err)
		}
		// The cause is named also if the last attempt has no answer yet.
		b = newBucket()
		b.onWrite = func(n int, _ write) fault {
			if n == 1 {
				return fault{err: kv.ErrFull}
			}
			return fault{lost: true}
		}
		ctx, cancel = context.WithTimeout(t.Context(), 10*sec)
		defer cancel()
		if _, err := lease.Create(ctx, b, cfg); !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, kv.ErrFull) {
			t.Errorf("storage is full, and then no answer: %v", err)
		}
	})
}

func TestCreateDoesNotReturnALeaseThatHasEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBucket()
		b.onWrite = func(n int, _ write) fault {
			if n == 1 {
				return fault{slow: 10 * sec, forced: true}
			}
			return fault{}
		}
		if l := create(t, b, lease.Config{TTL: 10 * sec}); !l.Valid() || l.Remaining() != 9500*ms {
			t.Errorf("valid %v for %v", l.Valid(), l.Remaining())
		}
	})
}

func TestInvalidConfig(t *testing.T) {
	for name, cfg := range map[string]lease.Config{
		"no ttl":                {},
		"ttl too short":         {TTL: 99 * ms},
		"ttl too long":          {TTL: 25 * time.Hour},
		"negative margin":       {TTL: sec, Margin: -ms},
		"margin too large":      {TTL: sec, Margin: 251 * ms},
		"renewal after the end": {TTL: sec, RenewEvery: 950 * ms},
		"negative renewal":      {TTL: sec, RenewEvery: -ms},
		"negative limit":        {TTL: sec, MaxRenewals: -1},
		"label too long":        {TTL: sec, Label: strings.Repeat("x", 257)},
		"label not UTF-8":       {TTL: sec, Label: "\xff"},
	} {
		if _, err := lease.Create(t.Context(), newBucket(), cfg); !errors.Is(err, lease.ErrInvalidConfig) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// The stored times must not be shorter than those that the holder uses.
func TestRoundingKeepsTheHolderOnTheSafeSide(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBucket()
		for _, margin := range []time.Duration{0, 16*ms + 1} {
			l := create(t, b, lease.Config{TTL: 333*ms + 999*time.Microsecond, Margin: margin})
			i := b.info(t, l.ID())
			if i.TTL != l.TTL() || i.Margin != l.Margin() || i.TTL != 333*ms || i.Margin != 17*ms {
				t.Errorf("stored %v - %v, holder goes by %v - %v", i.TTL, i.Margin, l.TTL(), l.Margin())
			}
		}
	})
}

func TestValidityCountsFromSending(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBucket()
		b.onWrite = func(int, write) fault { return fault{delay: 1 * sec, slow: 500 * ms} }
		start := time.Now()
		l := create(t, b, lease.Config{})
		if got := l.Remaining() + time.Since(start); got != 28500*ms {
			t.Errorf("created: valid until %v after sending", got)
		}
		time.Sleep(10 * sec)
		start = time.Now()
		if err := l.Renew(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := l.Remaining() + time.Since(start); got != 28500*ms {
			t.Errorf("renewed: valid until %v after sending", got)
		}
	})
}

func TestWithoutRenewalLostAtTTLMinusMargin(t *testing.T) {
	for _, ttl := range []time.Duration{300 * ms, 10 * sec} {
		synctest.Test(t, func(t *testing.T) {
			b := newBucket()
			l := create(t, b, lease.Config{TTL: ttl})
			if d := untilLost(t, l); d != ttl-ttl/20 {
				t.Errorf("lost after %v", d)
			}
			if !errors.Is(l.Err(), lease.ErrExpired) || l.Remaining() != 0 {
				t.Errorf("err %v, remaining %v", l.Err(), l.Remaining())
			}
			if err := l.Renew(t.Context()); !errors.Is(err, lease.ErrExpired) {
				t.Errorf("renewal of a lost lease: %v", err)
			}
			synctest.Wait()
			if i := b.info(t, l.ID()); !i.Dead || i.Reason != lease.ReasonLost {
				t.Errorf("left behind %+v", i)
			}
		})
	}
}

func TestRenewalKeepsItAlive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBucket()
		l := create(t, b, lease.Config{AutoRenew: true})
		time.Sleep(time.Hour)
		synctest.Wait()
		if !l.Valid() || l.Renewals() < 360 || l.Renewals() > 400 {
			t.Fatalf("valid %v after %d renewals: %v", l.Valid(), l.Renewals(), l.Err())
		}
		different := false
		at := b.committed()
		for i := range at[1:] {
			d := at[i+1].At.Sub(at[i].At)
			if d < 9*sec || d > 10*sec {
				t.Fatalf("%v between renewals", d)
			}
			different = different || d != at[1].At.Sub(at[0].At)
		}
		if !different {
			t.Error("no jitter")
		}
	})
}

func TestRenewalLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBucket()
		start := time.Now()
		l := create(t, b, lease.Config{TTL: 10 * sec, RenewEvery: 3 * sec, MaxRenewals: 5, AutoRenew: true})
		<-l.Lost()
		last := b.committed()[5]
		if l.Renewals() != 5 || last.Info.Dead || l.ValidUntil() != last.At.Sub(start)+9500*ms {
			t.Errorf("%d renewals, valid for %v after the last", l.Renewals(), l.ValidUntil()-last.At.Sub(start))
		}
		// The timer fires every second, and is never set for less than a millisecond.
		if d := time.Since(last.At); d < 9500*ms || d > 9501*ms {
			t.Errorf("lost %v after the last renewal", d)
		}
		if !errors.Is(l.Err(), lease.ErrRenewalsUsedUp) {
			t.Errorf("reason %v", l.Err())
		}
	})
}

func TestManualRenewal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBucket()
		l := create(t, b, lease.Config{TTL: 10 * sec, MaxRenewals: 1})
		time.Sleep(9 * sec)
		if err := l.Renew(t.Context()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(9 * sec)
		if err := l.Renew(t.Context()); !errors.Is(err, lease.ErrRenewalsUsedUp) || !l.Valid() {
			t.Fatalf("second renewal: %v, valid %v", err, l.Valid())
		}
		if d := untilLost(t, l); d != 500*ms || !errors.Is(l.Err(), lease.ErrRenewalsUsedUp) {
			t.Errorf("lost after %v: %v", d, l.Err())
		}
	})
}

func TestManualRenewalEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBucket()
		l := create(t, b, lease.Config{})
		b.hooks(func(int, write) fault { return fault{lost: true} }, nil)
		ctx, cancel := context.WithTimeout(t.Context(), 5*sec)
		defer cancel()
		if err := l.Renew(ctx); !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, jskv.ErrUnknown) {
			t.Errorf("error %v", err)
		}
		if !l.Valid() || l.Remaining() != 23500*ms {
			t.Errorf("valid %v for %v", l.Valid(), l.Remaining())
		}
	})
}

// A lease whose limits begin later, as a hold's do with its grant.
func TestLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begin := func(autoRenew bool, most int) (*lease.Lease, *bucket) {
			b := newBucket()
			l := create(t, b, lease.Config{TTL: 10 * sec, RenewEvery: 3 * sec, AutoRenew: true})
			time.Sleep(time.Minute)
			if err := l.Renew(t.Context()); err != nil {
				t.Fatal(err)
			}
			l.Limit(autoRenew, most)
			return l, b
		}
		l, _ := begin(true, 5)
		if d := untilLost(t, l); d < 5*2700*ms+9500*ms || d > 15*sec+9500*ms || l.Renewals() != 5 {
			t.Errorf("5 renewals: lost after %v and %d", d, l.Renewals())
		}
		if !errors.Is(l.Err(), lease.ErrRenewalsUsedUp) {
			t.Errorf("5 renewals: %v", l.Err())
		}
		l, _ = begin(false, 0)
		if d := untilLost(t, l); d != 9500*ms || !errors.Is(l.Err(), lease.ErrExpired) {
			t.Errorf("no renewal: lost after %v: %v", d, l.Err())
		}
		l, _ = begin(false, 1)
		time.Sleep(5 * sec)
		if err := l.Renew(t.Context()); err != nil {
			t.Fatal(err)
		}
		if d := untilLost(t, l); d != 9500*ms || !errors.Is(l.Err(), lease.ErrRenewalsUsedUp) {
			t.Errorf("one by hand: lost after %v: %v", d, l.Err())
		}
	})
}

// A renewal that is under way when the next is due counts as the next.
func TestRenewalsByHandAndByItselfDoNotPileUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBucket()
		l := create(t, b, lease.Config{AutoRenew: true, MaxRenewals: 2})
		b.hooks(func(int, write) fault { return fault{slow: 1900 * ms} }, nil)
		time.Sleep(8900 * ms)
		if err := l.Renew(t.Context()); err != nil { // due in the middle of it
			t.Fatal(err)
		}
		synctest.Wait()
		time.Sleep(4 * sec)
		if l.Renewals() != 1 || len(b.committed()) != 2 {
			t.Errorf("%d renewals, %d writes", l.Renewals(), len(b.committed()))
		}
	})
}

func TestOperationIDsNameTheLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := create(t, newBucket(), lease.Config{})
		var mu sync.Mutex
		seen := map[string]bool{}
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				for range 100 {
					id := l.NextOp()
					mu.Lock()
					seen[id] = true
					mu.Unlock()
				}
			})
		}
		wg.Wait()
		for n := 1; n <= 800; n++ {
			if !seen[fmt.Sprintf("%s.%d", l.ID(), n)] {
				t.Fatalf("no %d among %d ids", n, len(seen))
			}
		}
	})
}
