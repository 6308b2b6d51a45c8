package fabric_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/lockfabric/lockfabric/fabric"
	"github.com/lockfabric/lockfabric/kv"
)

// What an operator may do to a hold.
func TestLockTakenAway(t *testing.T) {
	runBehaviours(t, []behaviour{
		{"force-release closes Lost and the next one waits for it", forceRelease},
		{"force-release now takes the lock at once", forceReleaseNow},
		{"force-release of one holder leaves the others", forceOneHolder},
		{"force-release of a free lock does nothing", forceFree},
		{"key deleted by an operator closes Lost", keyDeleted},
		{"key purged by an operator closes Lost", keyPurged},
		{"lease deleted by an operator closes Lost", leaseDeleted},
		{"both buckets deleted under a holder", bucketsDeleted},
	})
}

func forceRelease(t *testing.T, s *site) {
	key, op := s.key(t), s.manager(t)
	m, w := s.wired(t)
	l := acquire(t, m, key)
	next := queue(t, waitContext(t), s.manager(t), key)
	// The holder is told, but can't let go yet: its entry has to block.
	gone := w.fault(-1, lockWrite, notSent)
	n, err := op.ForceRelease(waitContext(t), key)
	if n != 1 || err != nil {
		t.Fatalf("ForceRelease: %d, %v", n, err)
	}
	if reason := waitLost(t, l); !errors.Is(reason, fabric.ErrRevoked) {
		t.Errorf("lost because of %v", reason)
	}
	receive(t, gone.hit)
	info := inspect(t, op, key)
	if len(info.Holders) != 1 || !info.Holders[0].Revoked || info.Holders[0].ID != l.ID() {
		t.Errorf("before the holder let go: %+v", info.Holders)
	}
	select {
	case g := <-next:
		t.Errorf("granted before the holder let go: %+v", g)
	default:
	}
	gone.end()
	succ := granted(t, next)
	expectHolder(t, op, key, succ)
	if err := l.Release(waitContext(t)); !errors.Is(err, fabric.ErrLost) {
		t.Errorf("release of the lost hold: %v", err)
	}
	expectHolder(t, op, key, succ)
}

func forceReleaseNow(t *testing.T, s *site) {
	key, op := s.key(t), s.manager(t)
	l := acquire(t, s.manager(t), key)
	if n, err := op.ForceRelease(waitContext(t), key, fabric.ForceNow()); n != 1 || err != nil {
		t.Fatalf("ForceRelease: %d, %v", n, err)
	}
	succ, err := op.TryAcquire(waitContext(t), key)
	if err != nil {
		t.Fatal(err)
	}
	if reason := waitLost(t, l); !errors.Is(reason, fabric.ErrRemoved) {
		t.Errorf("lost because of %v", reason)
	}
	if l.IsValid(waitContext(t)) || succ.Token() <= l.Token() {
		t.Errorf("old hold: %v; tokens %d, %d", l.Err(), l.Token(), succ.Token())
	}
	expectHolder(t, op, key, succ)
}

func forceOneHolder(t *testing.T, s *site) {
	key, op := s.key(t), s.manager(t)
	a := acquire(t, s.manager(t), key, fabric.WithMode(fabric.Shared))
	b := acquire(t, s.manager(t), key, fabric.WithMode(fabric.Shared))
	if n, err := op.ForceRelease(waitContext(t), key, fabric.ForceHolder(a.ID())); n != 1 || err != nil {
		t.Fatalf("ForceRelease: %d, %v", n, err)
	}
	if reason := waitLost(t, a); !errors.Is(reason, fabric.ErrRevoked) {
		t.Errorf("lost because of %v", reason)
	}
	eventually(t, "one holder left", func() bool { return len(inspect(t, op, key).Holders) == 1 })
	expectHolder(t, op, key, b)
	if n, err := op.ForceRelease(waitContext(t), key, fabric.ForceHolder(a.ID())); n != 0 || err != nil {
		t.Errorf("again: %d, %v", n, err)
	}
	if _, err := op.ForceRelease(waitContext(t), key, fabric.ForceHolder("nonsense")); !errors.Is(err, fabric.ErrInvalidOption) {
		t.Errorf("bad id: %v", err)
	}
	release(t, b)
}

func forceFree(t *testing.T, s *site) {
	key, op := s.key(t), s.manager(t)
	for _, opts := range [][]fabric.ForceOption{nil, {fabric.ForceNow()}, {fabric.ForceHolder("abc.1")}} {
		if n, err := op.ForceRelease(waitContext(t), key, opts...); n != 0 || err != nil {
			t.Errorf("ForceRelease: %d, %v", n, err)
		}
	}
	if info := inspect(t, op, key); info.Revision != 0 {
		t.Errorf("something was written: %+v", info)
	}
}

func keyDeleted(t *testing.T, s *site) {
	keyGone(t, s, func(ctx context.Context, b jetstream.KeyValue, key string) error { return b.Delete(ctx, key) })
}

func keyPurged(t *testing.T, s *site) {
	keyGone(t, s, func(ctx context.Context, b jetstream.KeyValue, key string) error { return b.Purge(ctx, key) })
}

func keyGone(t *testing.T, s *site, remove func(context.Context, jetstream.KeyValue, string) error) {
	key, m := s.key(t), s.manager(t)
	enc, err := kv.EncodeName(key)
	if err != nil {
		t.Fatal(err)
	}
	l := acquire(t, m, key)
	wait := queue(t, waitContext(t), s.manager(t), key)
	if err := remove(waitContext(t), s.locks(t, enc), enc); err != nil {
		t.Fatal(err)
	}
	if reason := waitLost(t, l); !errors.Is(reason, fabric.ErrRemoved) {
		t.Errorf("lost because of %v", reason)
	}
	// Who waited finds its entry gone and queues again.
	succ := granted(t, wait)
	if succ.Token() <= l.Token() {
		t.Errorf("token %d after %d", succ.Token(), l.Token())
	}
	expectHolder(t, m, key, succ)
	release(t, succ)
}

func leaseDeleted(t *testing.T, s *site) {
	key, m := s.key(t), s.manager(t)
	l := acquire(t, m, key)
	if err := s.bucket(t, fabric.DefaultFabric+"-leases").Delete(waitContext(t), leaseOf(l.ID())); err != nil {
		t.Fatal(err)
	}
	if reason := waitLost(t, l); !errors.Is(reason, fabric.ErrTakenOver) {
		t.Errorf("lost because of %v", reason)
	}
	succ := acquire(t, m, key, fabric.WithTTL(10*time.Second))
	if leaseOf(succ.ID()) == leaseOf(l.ID()) || succ.Token() <= l.Token() {
		t.Errorf("after %s with token %d: %s with token %d", l.ID(), l.Token(), succ.ID(), succ.Token())
	}
}

func bucketsDeleted(t *testing.T, s *site) {
	name := s.fabric(t)
	key := s.key(t)
	m := s.manager(t, fabric.WithFabric(name), fabric.WithTTL(4*time.Second))
	l := acquire(t, m, key)
	s.deleteBuckets(t, name)
	start := time.Now()
	if reason := waitLost(t, l); !errors.Is(reason, fabric.ErrBucketGone) && !errors.Is(reason, fabric.ErrExpired) {
		t.Errorf("lost because of %v", reason)
	}
	t.Logf("lost after %v", time.Since(start))
	// The manager goes on with buckets of its own making.
	succ := acquire(t, m, key)
	if succ.Token() <= l.Token() {
		t.Errorf("token %d after %d", succ.Token(), l.Token())
	}
	if err := l.Release(waitContext(t)); !errors.Is(err, fabric.ErrLost) {
		t.Errorf("release of the lost hold: %v", err)
	}
	expectHolder(t, m, key, succ)
	release(t, succ)
}
