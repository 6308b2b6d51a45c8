package fabric_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/lockfabric/lockfabric/fabric"
	"github.com/lockfabric/lockfabric/internal/jskv"
	"github.com/lockfabric/lockfabric/internal/record"
)

func TestRetry(t *testing.T) {
	runBehaviours(t, []behaviour{
		{"acquire retried with the same id gets the same token", retriedAcquire},
		{"a pending acquire retried is one grant", retriedPending},
		{"release retried after somebody else locked has no effect on them", retriedRelease},
		{"whatever result is unknown, it is one grant and one release", unknownResults},
		{"lease lost while queued, no grant under it", leaseLostInQueue},
		{"lease lost while the grant was on its way, no grant returned", leaseLostOnTheWay},
		{"many clients at once, no spurious failure", noSpuriousFailure},
	})
}

// ackSeq returns the revision in a publish acknowledgement, 0 for a refusal.
func ackSeq(reply *nats.Msg) uint64 {
	var ack struct{ Seq uint64 }
	if reply == nil || json.Unmarshal(reply.Data, &ack) != nil {
		return 0
	}
	return ack.Seq
}

// direct is for whose own writes go wrong, beside others who take other roads.
var direct = fabric.WithRoad(fabric.RoadDirect)

func retriedAcquire(t *testing.T, s *site) {
	m, w := s.wired(t, direct)
	for name, op := range map[string]func(context.Context, string, ...fabric.AcquireOption) (*fabric.Lock, error){
		"Acquire": m.Acquire, "TryAcquire": m.TryAcquire,
	} {
		key := s.key(t)
		var committed uint64
		w.fault(1, lockPut, func(ctx context.Context, msg *nats.Msg, send jskv.Requester) (*nats.Msg, error) {
			reply, err := surely(ctx, msg, send)
			committed = ackSeq(reply)
			if err != nil || committed == 0 {
				t.Errorf("%s: the write was not committed: %v", name, err)
			}
			return nil, nats.ErrTimeout
		})
		l, err := op(waitContext(t), key)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if record.RevisionOf(l.Token()) != committed {
			t.Errorf("%s: token %d, the first attempt was committed at %d", name, l.Token(), committed)
		}
		expectHolder(t, m, key, l)
		release(t, l)
		expectFree(t, m, key)
	}
}

func retriedPending(t *testing.T, s *site) {
	key, m := s.key(t), s.manager(t)
	holder := acquire(t, m, key)
	waiter, w := s.wired(t, direct)
	lostReply := w.fault(1, lockPut, deaf)
	wait := queue(t, waitContext(t), waiter, key)
	if lostReply.count() != 1 {
		t.Fatal("no reply was lost")
	}
	release(t, holder)
	l := granted(t, wait)
	expectHolder(t, m, key, l)
	if n := len(inspect(t, m, key).Waiters); n != 0 {
		t.Errorf("%d entries are left in the queue", n)
	}
	release(t, l)
	expectFree(t, m, key)
}

func retriedRelease(t *testing.T, s *site) {
	key, other := s.key(t), s.manager(t)
	m, w := s.wired(t, direct)
	l := acquire(t, m, key)
	var next *fabric.Lock
	w.fault(1, lockPurge, func(ctx context.Context, msg *nats.Msg, send jskv.Requester) (*nats.Msg, error) {
		_, err := deaf(ctx, msg, send)
		next = acquire(t, other, key)
		return nil, err
	})
	release(t, l)
	if next == nil {
		t.Fatal("the release wrote no purge")
	}
	expectHolder(t, other, key, next)
	if next.Token() <= l.Token() {
		t.Errorf("token %d after %d", next.Token(), l.Token())
	}
}

func unknownResults(t *testing.T, s *site) {
	other := s.manager(t)
	m, w := s.wired(t)
	for _, c := range []struct {
		name  string
		match func(*nats.Msg) bool
		act   action
	}{
		{"replies to writes lost", lockWrite, deaf},
		{"writes lost", lockWrite, vanish},
		{"writes delivered twice", lockWrite, twice},
		{"writes not sent", lockWrite, notSent},
		{"busy", lockWrite, busy},
		{"everything lost", lockTraffic, vanish},
		{"all replies lost", lockTraffic, deaf},
	} {
		for _, n := range []int{1, 3} {
			t.Run(fmt.Sprintf("%s, %d times", c.name, n), func(t *testing.T) {
				key := s.key(t)
				var last uint64
				for range 2 {
					w.fault(n, c.match, c.act)
					l := acquire(t, m, key)
					expectHolder(t, other, key, l)
					if l.Token() <= last {
						t.Errorf("token %d after %d", l.Token(), last)
					}
					last = l.Token()
					w.heal()
					w.fault(n, c.match, c.act)
					release(t, l)
					expectFree(t, other, key)
					w.heal()
				}
			})
		}
	}
}

func leaseLostInQueue(t *testing.T, s *site) {
	key, m := s.key(t), s.manager(t)
	holder := acquire(t, m, key)
	waiter, w := s.wired(t, fabric.WithTTL(3*time.Second))
	wait := queue(t, waitContext(t), waiter, key)
	var first fabric.Party
	eventually(t, "a waiter", func() bool { // it may be between two leases on a busy machine
		waiters := inspect(t, m, key).Waiters
		if len(waiters) == 1 {
			first = waiters[0]
		}
		return len(waiters) == 1
	})
	w.fault(-1, leaseWrite, vanish)
	waitQueue(t, m, key, 0) // the waiter has noticed, and left
	release(t, holder)
	select {
	case g := <-wait:
		t.Fatalf("returned without a lease: %+v", g)
	case <-time.After(100 * time.Millisecond): // nothing happens, so nothing to wait for
	}
	w.heal()
	l := granted(t, wait)
	if l.ID() == first.ID || leaseOf(l.ID()) == first.Lease.ID {
		t.Errorf("granted %s, under the lease that was lost", l.ID())
	}
	expectHolder(t, m, key, l)
}

func leaseLostOnTheWay(t *testing.T, s *site) {
	key, m := s.key(t), s.manager(t)
	slow, w := s.wired(t, fabric.WithTTL(3*time.Second), direct)
	witness := acquire(t, slow, s.key(t)) // under the same lease
	var committed uint64
	w.fault(1, lockPut, func(ctx context.Context, msg *nats.Msg, send jskv.Requester) (*nats.Msg, error) {
		renewals := w.fault(-1, leaseWrite, vanish)
		reply, err := surely(ctx, msg, send)
		committed = ackSeq(reply)
		<-witness.Lost()
		renewals.end()
		return reply, err
	})
	l := acquire(t, slow, key)
	if committed == 0 {
		t.Fatal("the first grant was not committed")
	}
	if record.RevisionOf(l.Token()) == committed || leaseOf(l.ID()) == leaseOf(witness.ID()) {
		t.Errorf("the grant at %d under the lost lease was returned: %s, token %d", committed, l.ID(), l.Token())
	}
	expectHolder(t, m, key, l)
	release(t, l)
	expectFree(t, m, key)
}

func noSpuriousFailure(t *testing.T, s *site) {
	const processes, workers, rounds, longTrip = 4, 16, 6, 50 * time.Millisecond
	base := s.key(t)
	var wg sync.WaitGroup
	for p := range processes {
		m := s.manager(t)
		// confirmed reports whether a release was confirmed. On a busy machine a release may take longer than its limit.
		confirmed := func(l *fabric.Lock) bool {
			err := l.Release(waitContext(t))
			switch st := m.Stats(); {
			case errors.Is(err, fabric.ErrUnconfirmed) && st.RTT > longTrip:
				t.Logf("the machine is too busy: round trips take %v: %v", st.RTT, err)
			case err != nil:
				t.Errorf("release: %v, round trips take %v", err, st.RTT)
			}
			return err == nil
		}
		for i := range workers {
			wg.Go(func() {
				own, common := fmt.Sprintf("%s/%d/%d", base, p, i), fmt.Sprintf("%s/all/%d", base, i)
				for range rounds {
					// Nobody else ever uses its own key, so not even a try may fail.
					l, err := m.TryAcquire(waitContext(t), own)
					if err != nil {
						t.Errorf("try: %v", err)
						return
					}
					if !confirmed(l) {
						return
					}
					if l, err = m.Acquire(waitContext(t), common); err != nil {
						t.Errorf("acquire: %v", err)
						return
					}
					if !confirmed(l) {
						return
					}
				}
			})
		}
		t.Cleanup(func() { t.Logf("manager %d: %+v", p, m.Stats()) })
	}
	wg.Wait()
}
