package fabric_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/lockfabric/lockfabric/fabric"
	"github.com/lockfabric/lockfabric/internal/lease"
	"github.com/lockfabric/lockfabric/kv"
)

// These tests hold the library against the rules that attacks on the design
// found, by their numbers there. Here: identity and unknown outcomes.

// Queued under one lease, promoted while paused, acquired again under another:
// only the second counts, at the tail.
func TestRule1_AcquireRetriedUnderNewLeaseIsRefused(t *testing.T) {
	t.Parallel()
	onBothSites(t, func(t *testing.T, s *site) {
		t.Parallel()
		key, m := s.key(t), s.manager(t)
		holder := acquire(t, m, key)
		paused, w := s.wired(t, fabric.WithTTL(5*time.Second))
		witness := acquire(t, paused, s.key(t)) // under the lease of the waiter
		wait := queue(t, waitContext(t), paused, key)
		first := inspect(t, m, key).Waiters[0]
		// The one behind must not evict it, or there would be no promotion.
		behind, w2 := s.wired(t)
		next := queue(t, waitContext(t), behind, key)
		w2.fault(-1, leaseWrite, notSent)

		w.fault(-1, anything, vanish)
		if err := witness.Err(); err != nil || leaseOf(witness.ID()) != first.Lease.ID {
			t.Fatalf("the machine was too busy to keep a lease of 5 s: %v", err)
		}
		waitLost(t, witness)
		release(t, holder)
		if h := inspect(t, m, key).Holders; len(h) != 1 || h[0].ID != first.ID {
			t.Fatalf("the paused waiter was not promoted: %+v", h)
		}
		select {
		case g := <-wait:
			t.Fatalf("granted under a lease that is lost: %+v", g)
		case <-time.After(100 * time.Millisecond): // nothing happens, so nothing to wait for
		}
		w.heal()
		w2.heal()
		second := granted(t, next)
		expectHolder(t, m, key, second)
		select {
		case g := <-wait:
			t.Fatalf("granted beside %s: %+v", second.ID(), g)
		default:
		}
		waitQueue(t, m, key, 1) // it has queued again, at the tail
		release(t, second)
		l := granted(t, wait)
		if l.ID() == first.ID || leaseOf(l.ID()) == first.Lease.ID || l.Token() <= second.Token() {
			t.Errorf("after %s with token %d: %s with token %d", second.ID(), second.Token(), l.ID(), l.Token())
		}
		expectHolder(t, m, key, l)
	})
}

func leaseState(t *testing.T, s *site, id string) (dead bool) {
	t.Helper()
	e, err := s.bucket(t, fabric.DefaultFabric+"-leases").Get(waitContext(t), id)
	if err != nil {
		t.Fatal(err)
	}
	info, err := lease.Decode(id, e.Value())
	if err != nil {
		t.Fatal(err)
	}
	return info.Dead
}

func TestRule2_LateAcquireLeavesNoHold(t *testing.T) {
	t.Parallel()
	// lateAcquire has an acquire whose request is under way when its caller gives
	// up, and no answer from anybody about this lock since.
	lateAcquire := func(t *testing.T, s *site, m *fabric.Manager, w *wire, key string) (deliver chan struct{}, replies <-chan string) {
		deliver = make(chan struct{})
		act, replies := w.delayed(deliver)
		w.fault(1, about(t, key, lockPut), act)
		w.fault(-1, about(t, key, lockTraffic), vanish)
		_, err := m.Acquire(waitContext(t), key, fabric.WithWaitLimit(300*time.Millisecond))
		if !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, fabric.ErrNotAcquired) {
			t.Fatalf("acquire: %v", err)
		}
		return deliver, replies
	}
	for _, b := range []behaviour{
		{"delivered after the cleanup", func(t *testing.T, s *site) {
			m, w := s.wired(t)
			key, other := s.key(t), s.manager(t)
			deliver, replies := lateAcquire(t, s, m, w, key)
			w.heal()
			eventually(t, "a committed write that proves absence", func() bool { return inspect(t, other, key).Revision != 0 })
			close(deliver)
			// Refused: wrong last sequence, or on three servers the same as long as the cleanup is in flight there.
			if reply := receive(t, replies); !strings.Contains(reply, "10071") && !strings.Contains(reply, "10164") {
				t.Errorf("the late request was answered %q", reply)
			}
			expectFree(t, other, key)
		}},
		{"delivered before the cleanup", func(t *testing.T, s *site) {
			m, w := s.wired(t)
			key, other := s.key(t), s.manager(t)
			deliver, replies := lateAcquire(t, s, m, w, key)
			close(deliver)
			if reply := receive(t, replies); reply != "" {
				t.Fatalf("the late request was answered %q", reply)
			}
			ghost := inspect(t, other, key).Holders
			if len(ghost) != 1 {
				t.Fatalf("held by %+v", ghost)
			}
			w.heal()
			release(t, acquire(t, other, key)) // long before the lease could end
			if leaseState(t, s, ghost[0].Lease.ID) {
				t.Error("the lease was given up for an operation that could be resolved")
			}
			expectFree(t, other, key)
		}},
		{"delivered after the lease was retired", func(t *testing.T, s *site) {
			m, w := s.wired(t, fabric.WithTTL(4*time.Second))
			key, other := s.key(t), s.manager(t)
			kept := acquire(t, m, s.key(t))
			deliver, replies := lateAcquire(t, s, m, w, key)
			old := leaseOf(kept.ID())
			eventually(t, "a fresh lease for new acquires", func() bool {
				l := acquire(t, m, s.key(t))
				release(t, l)
				return leaseOf(l.ID()) != old
			})
			if err := kept.Err(); err != nil || leaseState(t, s, old) {
				t.Errorf("a retired lease ends before what it holds: %v", err)
			}
			release(t, kept)
			eventually(t, "the tombstone of the retired lease", func() bool { return leaseState(t, s, old) })
			close(deliver)
			if reply := receive(t, replies); reply != "" {
				t.Fatalf("the late request was answered %q", reply)
			}
			// There is the ghost, under a dead lease: nobody has to wait for it.
			eventually(t, "its lease is known to be dead", func() bool { // or "unknown", as long as the answer is late
				h := inspect(t, other, key).Holders
				if len(h) != 1 || h[0].Lease.ID != old || h[0].Lease.State == "live" {
					t.Fatalf("held by %+v", h)
				}
				return h[0].Lease.State == "dead"
			})
			l, err := other.TryAcquire(waitContext(t), key, fabric.WithoutTakeover())
			if err != nil {
				t.Fatal(err)
			}
			release(t, l)
		}},
		{"an enqueued one leaves no waiter", func(t *testing.T, s *site) {
			m, w := s.wired(t)
			key, other := s.key(t), s.manager(t)
			holder := acquire(t, other, key)
			deliver, replies := lateAcquire(t, s, m, w, key)
			release(t, holder)
			w.heal()
			close(deliver)
			receive(t, replies) // committed or not
			release(t, acquire(t, other, key))
			eventually(t, "nobody holds or waits", func() bool {
				info := inspect(t, other, key)
				return len(info.Holders)+len(info.Waiters) == 0
			})
		}},
	} {
		t.Run(b.name, func(t *testing.T) {
			onBothSites(t, func(t *testing.T, s *site) {
				t.Parallel()
				b.run(t, s)
			})
		})
	}
}

// busyFabric makes a fabric do everything it can do, and returns every write
// that was sent to the given bucket.
func busyFabric(t *testing.T, s *site, bucket string) []*nats.Msg {
	t.Helper()
	name := s.fabric(t)
	nc := s.conn(t)
	sub, err := nc.SubscribeSync("$KV." + name + bucket + ".>")
	if err != nil {
		t.Fatal(err)
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	a, b := s.manager(t, fabric.WithFabric(name)), s.manager(t, fabric.WithFabric(name), fabric.WithTTL(10*time.Second))
	for i := range 5 {
		key := fmt.Sprint("k", i)
		l := acquire(t, a, key)
		_, _ = b.TryAcquire(waitContext(t), key)
		wait := queue(t, waitContext(t), b, key)
		_, _ = b.Acquire(waitContext(t), key, fabric.WithWaitLimit(10*time.Millisecond))
		release(t, l)
		release(t, granted(t, wait))
	}
	acquire(t, b, "forced")
	if _, err := a.ForceRelease(waitContext(t), "forced", fabric.ForceNow()); err != nil {
		t.Fatal(err)
	}
	waitLost(t, acquire(t, b, "lost", fabric.WithTTL(300*time.Millisecond), fabric.WithAutoRenew(false)))
	release(t, acquire(t, a, "lost"))
	acquire(t, b, "swept")
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	var out []*nats.Msg
	for {
		msg, err := sub.NextMsg(100 * time.Millisecond)
		if err != nil {
			return out
		}
		out = append(out, msg)
	}
}

func TestRule3_DeletionIsPurgeWithTTL(t *testing.T) {
	t.Parallel()
	t.Run("locks", func(t *testing.T) {
		onBothSites(t, func(t *testing.T, s *site) {
			t.Parallel()
			purges := 0
			for _, msg := range busyFabric(t, s, "-locks") {
				if msg.Header.Get("Nats-Expected-Last-Subject-Sequence") == "" {
					t.Errorf("a write without compare-and-set: %v", msg.Header)
				}
				switch op := msg.Header.Get("KV-Operation"); op {
				case "":
					if ttl := msg.Header.Get("Nats-TTL"); ttl != "" {
						t.Errorf("a live record with a TTL of %s", ttl)
					}
				case "PURGE":
					purges++
					ttl, err := time.ParseDuration(msg.Header.Get("Nats-TTL"))
					if err != nil || ttl < 10*time.Minute || msg.Header.Get("Nats-Rollup") != "sub" || len(msg.Data) > 0 {
						t.Errorf("a deletion that is not as it has to be: %v", msg.Header)
					}
				default:
					t.Errorf("%s is written", op)
				}
			}
			if purges < 5 {
				t.Errorf("only %d deletions: the test sees nothing", purges)
			}
		})
	})
	t.Run("leases are never deleted", func(t *testing.T) {
		onSite(t, singleSite, func(t *testing.T, s *site) {
			t.Parallel()
			dead := map[string]bool{}
			for _, msg := range busyFabric(t, s, "-leases") {
				if op := msg.Header.Get("KV-Operation"); op != "" {
					t.Errorf("%s is written", op)
				}
				if strings.HasSuffix(msg.Subject, kv.MetaKey) {
					continue
				}
				if ttl, err := time.ParseDuration(msg.Header.Get("Nats-TTL")); err != nil || ttl < time.Hour {
					t.Errorf("a lease is collected after %v", ttl)
				}
				if dead[msg.Subject] && !strings.Contains(string(msg.Data), `"state":"dead"`) {
					t.Errorf("%s lives again", msg.Subject)
				}
				dead[msg.Subject] = strings.Contains(string(msg.Data), `"state":"dead"`)
			}
			for subject, d := range dead {
				if !d {
					t.Errorf("%s has no tombstone after Close", subject)
				}
			}
			if len(dead) < 3 {
				t.Errorf("%d leases: the test sees nothing", len(dead))
			}
		})
	})
	t.Run("a duplicate that arrives after the release holds nothing", func(t *testing.T) {
		onBothSites(t, func(t *testing.T, s *site) {
			t.Parallel()
			m, w := s.wired(t)
			key := s.key(t)
			var copied *nats.Msg
			w.fault(1, lockPut, seen(func(msg *nats.Msg) {
				copied = nats.NewMsg(msg.Subject) // the bucket uses msg again once it was answered
				copied.Data = bytes.Clone(msg.Data)
				for k, v := range msg.Header {
					copied.Header[k] = slices.Clone(v)
				}
			}))
			release(t, acquire(t, m, key))
			reply, err := surely(waitContext(t), copied, w.send)
			if err != nil || !strings.Contains(string(reply.Data), "10071") {
				t.Errorf("the duplicate was answered %s, %v", reply.Data, err)
			}
			expectFree(t, m, key)
		})
	})
}
