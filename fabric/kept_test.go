package fabric_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/lockfabric/lockfabric/fabric"
	"github.com/lockfabric/lockfabric/internal/test/faultproxy"
	"github.com/lockfabric/lockfabric/kv"
)

// keptAlready returns a lock's name that the manager keeps. A write whose answer is late may be another process's, as far
// as the manager knows, so it takes more acquires then.
func (s *site) keptAlready(t *testing.T, m *fabric.Manager, opts ...fabric.AcquireOption) string {
	t.Helper()
	key := s.key(t)
	before := m.Stats()
	for n := 1; ; n++ {
		release(t, acquire(t, m, key, opts...))
		now := m.Stats()
		joined, late := now.KeptJoins > before.KeptJoins, now.Unknown > before.Unknown || now.Timeouts > before.Timeouts
		if !late && joined != (n >= 3) || n == 100 {
			t.Fatalf("acquire %d: joined is %t, want the third to join", n, joined)
		}
		if joined {
			return key
		}
	}
}

func TestKeptLockCostsNothing(t *testing.T) {
	onBothSites(t, func(t *testing.T, s *site) {
		m := s.manager(t, fabric.WithKeep(time.Minute))
		key := s.keptAlready(t, m)
		before, began := m.Stats(), time.Now()
		for range 100 {
			release(t, acquire(t, m, key))
		}
		after := m.Stats()
		// What nothing confirms for a second, as its watch may not be open yet, is read.
		if w, r := after.Writes-before.Writes, after.Reads-before.Reads; w > 0 || r > 1+uint64(time.Since(began)/time.Second) {
			t.Errorf("%d writes, %d reads", w, r)
		}
		if n := after.KeptJoins - before.KeptJoins; n != 100 {
			t.Errorf("%d joins", n)
		}
		other := s.manager(t)
		l := acquire(t, other, key)
		release(t, l)
	})
}

// Whoever is handed the lock finds the handle before invalid.
func TestK2_TheOldHandleIsInvalidFirst(t *testing.T) {
	onSite(t, singleSite, func(t *testing.T, s *site) {
		m := s.manager(t, fabric.WithKeep(time.Minute))
		key := s.keptAlready(t, m)
		var last atomic.Pointer[fabric.Lock]
		var all sync.WaitGroup
		for range 8 {
			all.Go(func() {
				for range 500 {
					l := acquire(t, m, key)
					if old := last.Swap(l); old != nil && (old.Err() == nil || old.Context().Err() == nil) {
						t.Error("two handles are valid")
					}
					if err := l.Err(); err != nil {
						t.Error(err)
					}
					release(t, l)
				}
			})
		}
		all.Wait()
		if m.Stats().KeptJoins < 100 {
			t.Errorf("%d joins", m.Stats().KeptJoins)
		}
	})
}

// Goroutines of one process that never let a kept lock rest do not keep others from it, and what is granted here
// comes before those who came later.
func TestK3_AHammeredLockGoesToOthers(t *testing.T) {
	onSite(t, singleSite, func(t *testing.T, s *site) {
		m, other := s.manager(t, fabric.WithKeep(time.Minute)), s.manager(t)
		key := s.keptAlready(t, m)
		ctx, cancel := context.WithCancel(waitContext(t))
		var holders atomic.Int32
		var all sync.WaitGroup
		for range 64 {
			all.Go(func() {
				for {
					l, err := m.Acquire(ctx, key)
					if err != nil {
						if ctx.Err() == nil {
							t.Error(err)
						}
						return
					}
					if holders.Add(1) != 1 {
						t.Error("two hold")
					}
					holders.Add(-1)
					if err := l.Release(ctx); err != nil {
						t.Error(err)
					}
				}
			})
		}
		for range 50 {
			l := acquire(t, other, key)
			if holders.Add(1) != 1 {
				t.Error("two hold")
			}
			holders.Add(-1)
			release(t, l)
		}
		cancel()
		all.Wait()
	})
}

// A process whose lease is not renewed any more joins nothing once it is over.
func TestK1_NoJoinPastTheLease(t *testing.T) {
	onSite(t, singleSite, func(t *testing.T, s *site) {
		m, w := s.wired(t, fabric.WithKeep(time.Minute), fabric.WithTTL(3*time.Second))
		other := s.manager(t)
		key := s.keptAlready(t, m)
		ctx, cancel := context.WithCancel(waitContext(t))
		defer cancel()
		f := w.fault(-1, leaseWrite, vanish)
		defer f.end()
		var last atomic.Int64 // when a handle was valid
		done := make(chan struct{})
		var highest atomic.Uint64
		go func() {
			defer close(done)
			for ctx.Err() == nil {
				l, err := m.Acquire(ctx, key)
				if err != nil {
					return
				}
				if at := time.Now(); l.Err() == nil {
					last.Store(at.UnixNano())
					highest.Store(l.Token())
				}
				_ = l.Release(ctx)
			}
		}()
		time.Sleep(100 * time.Millisecond)
		w.fault(-1, lockWrite, vanish) // it can't give it back, either
		l := acquire(t, other, key)
		if at := time.Now().UnixNano(); last.Load() > at {
			t.Error("a handle is valid beside its successor")
		}
		if l.Token() <= highest.Load() {
			t.Errorf("token %d after %d", l.Token(), highest.Load())
		}
		before := last.Load()
		for range 20 {
			time.Sleep(5 * time.Millisecond)
			if last.Load() != before {
				t.Fatal("it joins past its lease")
			}
		}
		cancel()
		<-done
		release(t, l)
	})
}

func TestK1_ForceReleaseIsSeen(t *testing.T) {
	for name, opts := range map[string][]fabric.ForceOption{"now": {fabric.ForceNow()}, "revoked": nil} {
		t.Run(name, func(t *testing.T) {
			onSite(t, singleSite, func(t *testing.T, s *site) {
				m, other := s.manager(t, fabric.WithKeep(time.Minute)), s.manager(t)
				key := s.keptAlready(t, m)
				// Unused.
				if n, err := other.ForceRelease(waitContext(t), key, opts...); n != 1 || err != nil {
					t.Fatalf("%d, %v", n, err)
				}
				eventually(t, "it is free", func() bool { return free(t, other, key) })
				// Used.
				key = s.keptAlready(t, m)
				l := acquire(t, m, key)
				if n, err := other.ForceRelease(waitContext(t), key, opts...); n != 1 || err != nil {
					t.Fatalf("%d, %v", n, err)
				}
				receive(t, l.Lost())
				next := acquire(t, m, key)
				if next.Token() <= l.Token() {
					t.Errorf("token %d after %d was taken away", next.Token(), l.Token())
				}
				release(t, next)
			})
		})
	}
}

// Events are of the entry in the record: granted once, ended once, with the last use as its time.
func TestK8_EventsAreTheRecords(t *testing.T) {
	onSite(t, singleSite, func(t *testing.T, s *site) {
		var mu sync.Mutex
		byID := map[string][]fabric.Event{}
		m := s.manager(t, fabric.WithKeep(time.Minute), fabric.WithEvents(func(ev fabric.Event) {
			mu.Lock()
			defer mu.Unlock()
			byID[ev.ID] = append(byID[ev.ID], ev)
		}))
		began := time.Now()
		key := s.keptAlready(t, m)
		l := acquire(t, m, key)
		id := l.ID()
		release(t, l)
		used := time.Since(began)
		time.Sleep(50 * time.Millisecond) // unused
		release(t, acquire(t, s.manager(t), key))
		s.keptAlready(t, m) // ends with the manager
		if err := m.Close(); err != nil {
			t.Fatal(err)
		}
		mu.Lock()
		defer mu.Unlock()
		if st := m.Stats(); len(byID) != 4 && st.Unknown+st.Timeouts == 0 { // see keptAlready
			t.Errorf("%d entries, want 4", len(byID))
		}
		for id, evs := range byID {
			if len(evs) != 2 || evs[0].Type != fabric.EventGranted || evs[1].Type != fabric.EventReleased {
				t.Errorf("%s: %+v", id, evs)
			}
		}
		if evs := byID[id]; len(evs) == 2 && (evs[1].Held > used || evs[1].Reason != nil) {
			t.Errorf("it was held for %v, %v", evs[1].Held, evs[1].Reason)
		}
	})
}

// A key that is never let go for long does not keep a lease alive that was retired for an operation whose fate
// nobody learns.
func TestK10_AHammeredLockLeavesARetiredLease(t *testing.T) {
	t.Parallel()
	onSite(t, singleSite, func(t *testing.T, s *site) {
		m, w := s.wired(t, fabric.WithTTL(4*time.Second), fabric.WithKeep(time.Minute))
		key, doubtful := s.keptAlready(t, m), s.key(t)
		old := inspect(t, m, key).Holders[0].Lease.ID
		w.fault(-1, about(t, doubtful, lockTraffic), vanish)
		if _, err := m.Acquire(waitContext(t), doubtful, fabric.WithWaitLimit(300*time.Millisecond)); !errors.Is(err, fabric.ErrNotAcquired) {
			t.Fatalf("acquire: %v", err)
		}
		var hammer sync.WaitGroup
		var over atomic.Bool
		hammer.Go(func() { // alone, so that it never asks for a lease: each acquire finds the lock unused
			for !over.Load() {
				release(t, acquire(t, m, key))
			}
		})
		defer hammer.Wait()
		defer over.Store(true)
		eventually(t, "the tombstone of the retired lease", func() bool { return leaseState(t, s, old) })
	})
}

// An unused lock is held, to those who look for entries that came back.
func TestK11_AnUnusedLockIsNobodysGhost(t *testing.T) {
	onSite(t, singleSite, func(t *testing.T, s *site) {
		m := s.manager(t, fabric.WithKeep(time.Minute))
		key := s.keptAlready(t, m)
		id := inspect(t, m, key).Holders[0].ID
		if _, err := m.Collect(waitContext(t), key); err != nil {
			t.Fatal(err)
		}
		fabric.Disown(waitContext(t), m, key)
		if h := inspect(t, m, key).Holders; len(h) != 1 || h[0].ID != id {
			t.Errorf("held by %+v", h)
		}
		l := acquire(t, m, key)
		if l.ID() != id {
			t.Error("not joined")
		}
		release(t, l)
	})
}

// Close gives back what is kept.
func TestK12_CloseGivesAllBack(t *testing.T) {
	onSite(t, singleSite, func(t *testing.T, s *site) {
		m, other := s.manager(t, fabric.WithKeep(time.Minute)), s.manager(t)
		var keys []string
		for range 100 {
			keys = append(keys, s.keptAlready(t, m))
		}
		eventually(t, "nothing is sent for them", func() bool {
			before := m.Stats()
			time.Sleep(1200 * time.Millisecond)
			after := m.Stats()
			return after.Operations == before.Operations && after.Writes == before.Writes && after.Reads == before.Reads
		})
		if err := m.Close(); err != nil {
			t.Fatal(err)
		}
		for _, key := range keys {
			l, err := other.TryAcquire(waitContext(t), key, fabric.WithoutTakeover())
			if err != nil {
				t.Fatal(err)
			}
			release(t, l)
		}
	})
}

// Owners, metadata, other modes, sets and leases of their own have entries of their own.
func TestKeptIsWhatIsPlain(t *testing.T) {
	onSite(t, singleSite, func(t *testing.T, s *site) {
		m := s.manager(t, fabric.WithKeep(time.Minute))
		for name, opt := range map[string]fabric.AcquireOption{
			"mode": fabric.WithMode(fabric.Shared), "owner": fabric.WithOwner("o"), "metadata": fabric.WithMetadata(map[string]string{"a": "b"}),
			"lease": fabric.WithAutoRenew(false),
		} {
			key := s.keptAlready(t, m)
			id := inspect(t, m, key).Holders[0].ID
			l := acquire(t, m, key, opt)
			if l.ID() == id {
				t.Errorf("%s: joined", name)
			}
			release(t, l)
			expectFree(t, m, key)
		}
		key := s.keptAlready(t, m)
		set, err := m.AcquireAll(waitContext(t), fabric.Names(key))
		if err != nil {
			t.Fatal(err)
		}
		releaseSet(t, set)
		expectFree(t, m, key)

		key = s.keptAlready(t, m)
		l := acquire(t, m, key)
		if err := l.Convert(waitContext(t), fabric.Shared); err != nil {
			t.Fatal(err)
		}
		release(t, l)
		expectFree(t, m, key)
	})
}

func BenchmarkKept(b *testing.B) {
	srv := benchServer(b)
	nc, err := srv.Connect()
	if err != nil {
		b.Fatal(err)
	}
	defer nc.Close()
	m := benchManager(b, nc, fabric.WithKeep(time.Minute))
	ctx := context.Background()
	pair := func() error {
		l, err := m.Acquire(ctx, "kept")
		if err != nil {
			return err
		}
		return l.Release(ctx)
	}
	for range 3 {
		if err := pair(); err != nil {
			b.Fatal(err)
		}
	}
	b.Run("alone", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if err := pair(); err != nil {
				b.Fatal(err)
			}
		}
	})
	for _, on := range []bool{true, false} {
		b.Run(fmt.Sprintf("64 goroutines, kept=%v", on), func(b *testing.B) {
			m := m
			if !on {
				m = benchManager(b, nc)
			}
			b.ReportAllocs()
			contend(b, 64, b.N, func(int) error {
				l, err := m.Acquire(ctx, "kept")
				if err != nil {
					return err
				}
				return l.Release(ctx)
			})
		})
	}
}

// A process that hears nothing of its watch gives a lock that it does not use to who waits for it, and nobody in it takes
// over for longer than a second what was removed.
func TestK1_ASilentWatch(t *testing.T) {
	onSite(t, singleSite, func(t *testing.T, s *site) {
		p := faultproxy.New(t, s.server.ClientURL())
		nc, err := nats.Connect(p.URL())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(nc.Close)
		m, other := newManager(t, nc, fabric.WithKeep(time.Hour)), s.manager(t)
		fromWatch := faultproxy.Subject("$KV.>") // answers to reads have other subjects
		var watched sync.Map
		p.DropReplies(func(subject string, _, _ []byte) bool {
			if fromWatch(subject, nil, nil) {
				watched.Store(subject, true)
			}
			return false
		})
		keys := make([]string, 4) // more than are looked at one by one
		for i := range keys {
			keys[i] = s.keptAlready(t, m)
			enc, _ := kv.EncodeName(keys[i])
			eventually(t, "its watch is open", func() bool { _, ok := watched.Load("$KV." + fabric.Name(m) + "-locks." + enc); return ok })
		}
		waited, removed := keys[0], keys[1]
		p.DropReplies(fromWatch)

		begun := time.Now()
		release(t, acquire(t, other, waited))
		if took := time.Since(begun); took > 8*time.Second { // the hub looks after 11 s at the earliest
			t.Errorf("granted after %v", took)
		}

		l := acquire(t, m, removed)
		old := l.Token()
		release(t, l)
		if n, err := other.ForceRelease(waitContext(t), removed, fabric.ForceNow()); n != 1 || err != nil {
			t.Fatalf("%d, %v", n, err)
		}
		forced := time.Now()
		for stale := true; stale; {
			begun := time.Now()
			l := acquire(t, m, removed)
			if stale = l.Token() == old; stale && begun.Sub(forced) > time.Second {
				t.Fatalf("taken over %v after it was removed", begun.Sub(forced))
			}
			_ = l.Release(waitContext(t)) // it may be found to be lost
		}
	})
}
