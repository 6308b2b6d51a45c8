package fabric_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/lockfabric/lockfabric/fabric"
	"github.com/lockfabric/lockfabric/internal/record"
	"github.com/lockfabric/lockfabric/kv"
)

func TestLock(t *testing.T) {
	runBehaviours(t, []behaviour{
		{"lock free", lockFree},
		{"unlock", unlock},
		{"try free", tryFree},
		{"try held is ErrHeld with the owner", tryHeld},
		{"timed acquire ends no earlier than its deadline", timedAcquire},
		{"cancelled before the call", cancelledBefore},
		{"cancelled while queued leaves the queue", cancelledWhileQueued},
		{"queue length and position are visible", queueVisible},
		{"held state is visible from another client", heldVisible},
		{"the same owner again is ErrAlreadyHeld", sameOwner},
		{"release twice", releaseTwice},
		{"release under an ended context", releaseCancelled},
		{"release after loss is ErrLost and the successor keeps its lock", releaseAfterLoss},
		{"lock-unlock-lock gives larger tokens", largerTokens},
		{"release hands over to the first waiter", handsOver},
		{"failed try leaves no key behind", failedTryLeavesNothing},
		{"Do releases after a panic", doReleases},
		{"kind mismatch on one name", unknownKind},
		{"FIFO among 50 waiters from 5 managers", fifo},
	}, beltSite)
}

func lockFree(t *testing.T, s *site) {
	m, key := s.manager(t), s.key(t)
	before := time.Now()
	l := acquire(t, m, key)
	if l.Token() == 0 || l.Key() != key || l.Mode() != fabric.Exclusive || l.Owner() != l.ID() || l.Err() != nil {
		t.Errorf("handle: token %d, key %q, mode %s, owner %s, err %v", l.Token(), l.Key(), l.Mode(), l.Owner(), l.Err())
	}
	if until := l.ValidUntil(); !until.After(before) || until.After(time.Now().Add(fabric.DefaultTTL)) {
		t.Errorf("valid until %v from now", time.Until(until))
	}
	if !l.IsValid(waitContext(t)) {
		t.Error("IsValid is false")
	}
	select {
	case <-l.Lost():
		t.Error("lost at once")
	case <-l.Context().Done():
		t.Error("its context has ended")
	default:
	}
	expectHolder(t, m, key, l)
}

func unlock(t *testing.T, s *site) {
	m, key := s.manager(t), s.key(t)
	l := acquire(t, m, key)
	lost, ctx := l.Lost(), l.Context()
	release(t, l)
	if !errors.Is(l.Err(), fabric.ErrReleased) || errors.Is(l.Err(), fabric.ErrLost) || !errors.Is(context.Cause(ctx), fabric.ErrReleased) {
		t.Errorf("after release: Err %v, cause %v", l.Err(), context.Cause(ctx))
	}
	if l.IsValid(waitContext(t)) || !l.ValidUntil().IsZero() {
		t.Error("valid after release")
	}
	select {
	case <-lost:
		t.Error("release closes Lost")
	default:
	}
	expectFree(t, m, key)
	release(t, acquire(t, s.manager(t), key))
}

func tryFree(t *testing.T, s *site) {
	m, key := s.manager(t), s.key(t)
	l, err := m.TryAcquire(waitContext(t), key)
	if err != nil {
		t.Fatal(err)
	}
	expectHolder(t, m, key, l)
	release(t, l)
	expectFree(t, m, key)
}

func tryHeld(t *testing.T, s *site) {
	key := s.key(t)
	l := acquire(t, s.manager(t), key, fabric.WithOwner("alice"), fabric.WithMetadata(map[string]string{"job": "7"}))
	for name, m := range map[string]*fabric.Manager{"another manager": s.manager(t), "a third manager": s.manager(t)} {
		_, err := m.TryAcquire(waitContext(t), key, fabric.WithOwner("bob"))
		var held *fabric.HeldError
		if !errors.As(err, &held) || !errors.Is(err, fabric.ErrHeld) || !errors.Is(err, fabric.ErrNotAcquired) || errors.Is(err, fabric.ErrAlreadyHeld) {
			t.Fatalf("%s: %v", name, err)
		}
		if held.Key != key || held.Owner != "alice" || held.Token != l.Token() || held.Mode != fabric.Exclusive ||
			held.Metadata["job"] != "7" || time.Since(held.Since) > patience || held.Since.After(time.Now()) {
			t.Errorf("%s: %+v, want alice with token %d", name, held, l.Token())
		}
	}
	release(t, l)
}

func cancelledBefore(t *testing.T, s *site) {
	m, key := s.manager(t), s.key(t)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	for name, op := range map[string]func(context.Context, string, ...fabric.AcquireOption) (*fabric.Lock, error){
		"Acquire": m.Acquire, "TryAcquire": m.TryAcquire,
	} {
		if _, err := op(ctx, key); !errors.Is(err, context.Canceled) || !errors.Is(err, fabric.ErrNotAcquired) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if info := inspect(t, m, key); info.Revision != 0 {
		t.Errorf("something was written: %+v", info)
	}
}

func heldVisible(t *testing.T, s *site) {
	key, other := s.key(t), s.manager(t)
	l := acquire(t, s.manager(t, fabric.WithLabel("worker seven")), key,
		fabric.WithOwner("alice"), fabric.WithMetadata(map[string]string{"job": "7"}))
	expectHolder(t, other, key, l)
	h := inspect(t, other, key).Holders[0]
	if h.Owner != "alice" || h.Mode != fabric.Exclusive || h.Metadata["job"] != "7" || h.Revoked ||
		h.Lease.ID != leaseOf(l.ID()) || h.Lease.State != "live" || h.Lease.TTL != fabric.DefaultTTL ||
		h.Lease.Label != "worker seven" || h.Lease.PID == 0 || h.Lease.Host == "" {
		t.Errorf("%+v", h)
	}
	list, err := other.List(waitContext(t), key)
	if err != nil || len(list) != 1 || list[0].Key != key || list[0].Holders[0].ID != l.ID() {
		t.Errorf("List: %+v, %v", list, err)
	}
	enc, err := kv.EncodeName(key)
	if err != nil {
		t.Fatal(err)
	}
	e, err := s.locks(t, enc).Get(waitContext(t), enc)
	if err != nil || e.Revision() != record.RevisionOf(l.Token()) {
		t.Errorf("an ordinary KV client reads %v, %v; want revision %d", e, err, record.RevisionOf(l.Token()))
	}
}

func sameOwner(t *testing.T, s *site) {
	key, m := s.key(t), s.manager(t)
	holder := acquire(t, m, key, fabric.WithOwner("alice"))
	wait := queue(t, waitContext(t), m, key, fabric.WithOwner("bob"))
	for _, who := range []*fabric.Manager{m, s.manager(t)} {
		for _, owner := range []string{"alice", "bob"} {
			for name, op := range map[string]func(context.Context, string, ...fabric.AcquireOption) (*fabric.Lock, error){
				"Acquire": who.Acquire, "TryAcquire": who.TryAcquire,
			} {
				_, err := op(waitContext(t), key, fabric.WithOwner(owner))
				var held *fabric.HeldError
				if !errors.Is(err, fabric.ErrAlreadyHeld) || errors.Is(err, fabric.ErrHeld) || !errors.As(err, &held) || held.Owner != owner {
					t.Errorf("%s by %s again: %v", name, owner, err)
				}
			}
		}
	}
	release(t, holder)
	release(t, granted(t, wait))
	release(t, acquire(t, m, key, fabric.WithOwner("alice")))
}

func releaseTwice(t *testing.T, s *site) {
	m, key := s.manager(t), s.key(t)
	l := acquire(t, m, key)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if err := l.Release(waitContext(t)); err != nil {
				t.Errorf("release: %v", err)
			}
		})
	}
	wg.Wait()
	next := acquire(t, m, key)
	if err := l.Release(waitContext(t)); err != nil {
		t.Errorf("again: %v", err)
	}
	expectHolder(t, m, key, next)
}

func releaseCancelled(t *testing.T, s *site) {
	m, key := s.manager(t), s.key(t)
	ctx, cancel := context.WithCancel(context.Background())
	l, err := m.Acquire(ctx, key)
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := l.Err(); err != nil {
		t.Errorf("the end of the acquire's context ended the hold: %v", err)
	}
	if err := l.Release(ctx); err != nil {
		t.Errorf("release: %v", err)
	}
	expectFree(t, m, key)
}

func releaseAfterLoss(t *testing.T, s *site) {
	key, next := s.key(t), s.manager(t)
	m, w := s.wired(t, fabric.WithTTL(3*time.Second))
	l := acquire(t, m, key)
	w.fault(-1, anything, vanish)
	if reason := waitLost(t, l); !errors.Is(reason, fabric.ErrExpired) {
		t.Errorf("lost because of %v", reason)
	}
	succ := acquire(t, next, key)
	w.heal()
	if err := l.Release(waitContext(t)); !errors.Is(err, fabric.ErrLost) {
		t.Errorf("release after the loss: %v", err)
	}
	if succ.Token() <= l.Token() {
		t.Errorf("token %d after %d", succ.Token(), l.Token())
	}
	// What the loser's manager does meanwhile in the background touches nobody
	// either: with its next operation here it knows all that was committed.
	if _, err := m.TryAcquire(waitContext(t), key); !errors.Is(err, fabric.ErrHeld) {
		t.Errorf("try by the loser's manager: %v", err)
	}
	expectHolder(t, next, key, succ)
}

func failedTryLeavesNothing(t *testing.T, s *site) {
	key, m := s.key(t), s.manager(t)
	l := acquire(t, s.manager(t), key)
	before := inspect(t, m, key).Revision
	for range 3 {
		if _, err := m.TryAcquire(waitContext(t), key); !errors.Is(err, fabric.ErrHeld) {
			t.Fatal(err)
		}
	}
	// On both roads at once it does, to shut out the road that has not answered.
	if after := inspect(t, m, key).Revision; after != before && s != beltSite {
		t.Errorf("a failed try wrote revision %d over %d", after, before)
	}
	release(t, l)
	enc, err := kv.EncodeName(key)
	if err != nil {
		t.Fatal(err)
	}
	if e, err := s.locks(t, enc).Get(waitContext(t), enc); !errors.Is(err, jetstream.ErrKeyNotFound) {
		t.Errorf("the key of a lock nobody uses: %v, %v", e, err)
	}
}

func doReleases(t *testing.T, s *site) {
	m, key := s.manager(t), s.key(t)
	func() {
		defer func() {
			if r := recover(); r != "oops" {
				t.Errorf("recovered %v", r)
			}
		}()
		_ = m.Do(waitContext(t), key, func(context.Context, *fabric.Lock) error { panic("oops") })
	}()
	expectFree(t, m, key)
	mine := errors.New("mine")
	err := m.Do(waitContext(t), key, func(ctx context.Context, l *fabric.Lock) error {
		expectHolder(t, m, key, l)
		return errors.Join(ctx.Err(), mine)
	})
	if !errors.Is(err, mine) || errors.Is(err, fabric.ErrLost) || errors.Is(err, context.Canceled) {
		t.Errorf("Do returned %v", err)
	}
	expectFree(t, m, key)
}

func unknownKind(t *testing.T, s *site) {
	m, key := s.manager(t), s.key(t)
	enc, err := kv.EncodeName(key)
	if err != nil {
		t.Fatal(err)
	}
	value := []byte(`{"v":3,"kind":"turnstile","permits":3}`)
	rev, err := s.locks(t, enc).Put(waitContext(t), enc, value)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.Acquire(waitContext(t), key); !errors.Is(err, fabric.ErrNewerSchema) || !errors.Is(err, fabric.ErrNotAcquired) {
		t.Errorf("Acquire: %v", err)
	}
	if _, err := m.TryAcquire(waitContext(t), key); !errors.Is(err, fabric.ErrNewerSchema) {
		t.Errorf("TryAcquire: %v", err)
	}
	for _, opts := range [][]fabric.ForceOption{nil, {fabric.ForceNow()}} {
		if _, err := m.ForceRelease(waitContext(t), key, opts...); !errors.Is(err, fabric.ErrNewerSchema) {
			t.Errorf("ForceRelease: %v", err)
		}
	}
	if _, err := m.Inspect(waitContext(t), key); !errors.Is(err, fabric.ErrNewerSchema) {
		t.Errorf("Inspect: %v", err)
	}
	if e, err := s.locks(t, enc).Get(waitContext(t), enc); err != nil || e.Revision() != rev || string(e.Value()) != string(value) {
		t.Errorf("the other kind's record was touched: %v, %v", e, err)
	}
}
