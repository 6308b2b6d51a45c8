package fabric_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/lockfabric/lockfabric/fabric"
)

// Shared intents on ancestors.

func TestM1_SharedIntentsStandUnderTheLeaseOfThePath(t *testing.T) {
	onSite(t, singleSite, func(t *testing.T, s *site) {
		m, root := s.manager(t), s.tree(t)
		releaseSet(t, acquirePath(t, m, root+"/a", fabric.Exclusive))
		own := acquirePath(t, m, root+"/b", fabric.Exclusive, fabric.WithTTL(20*time.Second), fabric.WithAutoRenew(false))
		found := false
		for _, h := range inspect(t, m, root).Holders {
			found = found || leaseOf(h.ID) == leaseOf(own.Lock(root+"/b").ID())
		}
		if !found {
			t.Error("the leaf's lease has no intent above it")
		}
		if l := own.Lock(root); l == nil || l.Mode() != fabric.IntentExclusive {
			t.Error("under a lease of its own the intent is not the path's own")
		}
		releaseSet(t, own)
	})
}

// Who waits for an ancestor has it when those below at that moment have left, however many come.
func TestM4_AWaiterDrainsTheSharedIntent(t *testing.T) {
	onSite(t, singleSite, func(t *testing.T, s *site) {
		m, other, root := s.manager(t), s.manager(t), s.tree(t)
		ctx, cancel := context.WithCancel(waitContext(t))
		var busy sync.WaitGroup
		started := make(chan struct{}, 4)
		for i := range 4 {
			busy.Go(func() {
				for n := 0; ctx.Err() == nil; n++ {
					set, err := m.AcquirePath(ctx, fmt.Sprintf("%s/%d", root, i), fabric.Exclusive)
					if err != nil {
						if ctx.Err() == nil {
							t.Error(err)
						}
						return
					}
					if n == 3 {
						started <- struct{}{}
					}
					if err := set.Release(ctx); err != nil {
						t.Error(err)
					}
				}
			})
		}
		for range 4 {
			receive(t, started)
		}
		before := m.Stats()
		for range 3 {
			release(t, acquire(t, other, root))
		}
		after := m.Stats()
		cancel()
		busy.Wait()
		if before.PinJoins == 0 || after.PinRevocations == before.PinRevocations {
			t.Errorf("%d joins, %d revocations", before.PinJoins, after.PinRevocations-before.PinRevocations)
		}
	})
}

// Beside one who waits for the ancestor only the unit of work that is in the way already joins: behind
// that one it would wait for itself.
func TestM4_OnlyWhoIsInTheWayJoinsBesideAWaiter(t *testing.T) {
	onSite(t, singleSite, func(t *testing.T, s *site) {
		m, other, root := s.manager(t), s.manager(t), s.tree(t)
		ctx := waitContext(t)
		first := acquirePath(t, m, root+"/a", fabric.Exclusive)
		wait := queue(t, ctx, other, root)
		eventually(t, "the intent is to go", func() bool { return m.Stats().PinRevocations > 0 })
		if set, err := m.TryAcquirePath(ctx, root+"/b", fabric.Exclusive); !errors.Is(err, fabric.ErrHeld) {
			t.Errorf("a path of others beside one who waits: %v, %v", set, err)
		}
		more, err := m.TryAcquirePath(ctx, root+"/c", fabric.Exclusive, fabric.WithHolding(first))
		if err != nil {
			t.Fatalf("another path of the same unit: %v", err)
		}
		releaseSet(t, more)
		releaseSet(t, first)
		release(t, granted(t, wait))
	})
}

func TestM5_LossOfASharedIntentIsTheLossOfThePathsBelow(t *testing.T) {
	onSite(t, singleSite, func(t *testing.T, s *site) {
		m, other, root := s.manager(t), s.manager(t), s.tree(t)
		a, b := acquirePath(t, m, root+"/a", fabric.Exclusive), acquirePath(t, m, root+"/b", fabric.Shared)
		if n := len(inspect(t, other, root).Holders); n != 1 || a.Lock(root) != nil || a.Tokens()[root] == 0 {
			t.Errorf("%d entries above two paths, %v", n, a.Tokens())
		}
		if _, err := other.ForceRelease(waitContext(t), root, fabric.ForceNow()); err != nil {
			t.Fatal(err)
		}
		for _, set := range []*fabric.Set{a, b} {
			receive(t, set.Lost())
			var lost *fabric.LostError
			if err := set.Err(); !errors.As(err, &lost) || lost.Key != root || !errors.Is(err, fabric.ErrRemoved) {
				t.Errorf("lost with %v", err)
			}
			_ = set.Release(waitContext(t))
		}
		eventually(t, "nothing is left", func() bool { return free(t, other, root+"/a") && free(t, other, root+"/b") })
		releaseSet(t, acquirePath(t, m, root+"/a", fabric.Exclusive))
	})
}

// The intent stays at its count until every handle below is invalid.
func TestM3_ASharedIntentOutlastsTheHandlesBelow(t *testing.T) {
	onSite(t, singleSite, func(t *testing.T, s *site) {
		m, w := s.wired(t)
		other, root := s.manager(t), s.tree(t)
		set := acquirePath(t, m, root+"/a", fabric.Exclusive)
		leaf := set.Lock(root + "/a")
		whole := queue(t, waitContext(t), other, root)
		w.fault(-1, below(t, root, lockWrite), seen(func(*nats.Msg) {
			if leaf.Err() == nil || set.Err() == nil {
				t.Error("a release is sent while the leaf is valid")
			}
		}))
		if n := len(inspect(t, other, root).Holders); n != 1 || set.Err() != nil {
			t.Errorf("%d hold the root, %v", n, set.Err())
		}
		releaseSet(t, set)
		release(t, granted(t, whole))
	})
}

func TestM17_ASharedIntentIsReplacedBeforeItIsLeft(t *testing.T) {
	onSite(t, singleSite, func(t *testing.T, s *site) {
		m, other, root := s.manager(t), s.manager(t), s.tree(t)
		// Its only user takes it over.
		set := acquirePath(t, m, root+"/a", fabric.Exclusive)
		before := m.Stats().Writes
		if err := set.Convert(waitContext(t), root, fabric.Exclusive); err != nil {
			t.Fatal(err)
		}
		if n := m.Stats().Writes - before; n != 1 && m.Stats().Timeouts == 0 || modesOf(t, m, root) != "X" || set.Lock(root) == nil {
			t.Errorf("%d writes, held in %s", n, modesOf(t, m, root))
		}
		releaseSet(t, set)
		expectFree(t, m, root)
		// Beside others it takes one of its own, and not behind who waits for the shared one.
		set, beside := acquirePath(t, m, root+"/a", fabric.Exclusive), acquirePath(t, m, root+"/b", fabric.Exclusive)
		ctx, cancel := context.WithCancel(waitContext(t))
		whole := queue(t, ctx, other, root)
		if err := set.Convert(waitContext(t), root, fabric.SharedIntentExclusive); !errors.Is(err, fabric.ErrConvertDeadlock) || set.Err() != nil {
			t.Errorf("behind one who waits: %v", err)
		}
		cancel()
		<-whole
		ended := make(chan error, 1)
		go func() { ended <- set.Convert(waitContext(t), root, fabric.Exclusive) }()
		eventually(t, "it waits for the other path", func() bool { return modesOf(t, m, root) == "IX IX>X" })
		releaseSet(t, beside)
		if err := receive(t, ended); err != nil || modesOf(t, m, root) != "X" {
			t.Errorf("%v, held in %s", err, modesOf(t, m, root))
		}
		releaseSet(t, set)
		expectFree(t, m, root)
	})
}

// A try is not refused by intents that nobody uses, nor does it disturb those in use.
func TestM20_IdleIntentsGiveWayToATry(t *testing.T) {
	onSite(t, singleSite, func(t *testing.T, s *site) {
		m, other, root := s.manager(t, fabric.WithIntentLinger(time.Hour)), s.manager(t), s.tree(t)
		set := acquirePath(t, m, root+"/a", fabric.Exclusive)
		if _, err := other.TryAcquire(waitContext(t), root); !errors.Is(err, fabric.ErrHeld) {
			t.Errorf("with a path below: %v", err)
		}
		if m.Stats().PinRevocations != 0 || len(inspect(t, m, root).Holders) != 1 {
			t.Error("a try disturbed an intent that is in use")
		}
		releaseSet(t, set)
		for _, from := range []*fabric.Manager{other, m} {
			if n := len(inspect(t, m, root).Holders); n != 1 {
				t.Errorf("%d intents linger", n)
			}
			eventually(t, "a try is granted", func() bool {
				l, err := from.TryAcquire(waitContext(t), root)
				if err != nil {
					return false
				}
				release(t, l)
				return true
			})
			releaseSet(t, acquirePath(t, m, root+"/a", fabric.Exclusive))
		}
	})
}

func TestM21_ASharedIntentTellsNoHoldTime(t *testing.T) {
	onSite(t, singleSite, func(t *testing.T, s *site) {
		root := s.tree(t)
		var mu sync.Mutex
		var events []fabric.Event
		m := s.manager(t, fabric.WithIntentLinger(time.Millisecond), fabric.WithEvents(func(ev fabric.Event) {
			mu.Lock()
			defer mu.Unlock()
			events = append(events, ev)
		}))
		releaseSet(t, acquirePath(t, m, root+"/a", fabric.Exclusive, fabric.WithOwner("me")))
		eventually(t, "it is given up when it has been idle", func() bool { return free(t, m, root) })
		mu.Lock()
		defer mu.Unlock()
		for _, ev := range events {
			if ev.Key != root+"/a" {
				t.Errorf("%+v", ev)
			}
		}
		if len(events) == 0 {
			t.Error("no event of the leaf")
		}
		l := acquire(t, m, root)
		if info := inspect(t, m, root); info.HoldTime != 0 {
			t.Errorf("hold time %v", info.HoldTime)
		}
		release(t, l)
	})
}
