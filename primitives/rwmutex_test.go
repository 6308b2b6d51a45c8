package primitives_test

import (
	"context"
	"errors"
	"testing"

	"github.com/lockfabric/lockfabric/fabric"
	"github.com/lockfabric/lockfabric/primitives"
)

func TestRWMutexConformance(t *testing.T) {
	runBehaviours(t, []behaviour{
		{"many readers at once, and a writer waits for all", rwWriterWaits},
		{"readers queued together are granted together", rwReadersTogether},
		{"a reader behind a queued writer waits", rwReaderBehindWriter},
		{"upgrade from U", rwUpgradeU},
		{"S to X is refused where it would deadlock", rwUpgradeDeadlock},
		{"downgrade keeps the hold and lets readers in", rwDowngrade},
		{"an upgraded read handle releases once", rwUpgradedReleasesOnce},
		{"upgrades and downgrades are one write each", rwWrites},
	})
}

type lockFunc func(*primitives.RWMutex, context.Context) (*primitives.Lock, error)

var (
	rlock lockFunc = (*primitives.RWMutex).RLock
	wlock lockFunc = (*primitives.RWMutex).Lock
	ulock lockFunc = (*primitives.RWMutex).ULock
)

func (fn lockFunc) now(t *testing.T, rw *primitives.RWMutex) *primitives.Lock {
	t.Helper()
	l, err := fn(rw, waitContext(t))
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// later queues, and returns when the request stands as the n-th of the queue.
func (fn lockFunc) later(t *testing.T, rw *primitives.RWMutex, m *fabric.Manager, key string, n int) <-chan result[*primitives.Lock] {
	t.Helper()
	ctx := waitContext(t)
	out := async(func() (*primitives.Lock, error) { return fn(rw, ctx) })
	waitQueue(t, m, key, n)
	return out
}

// rwPair is one mutex as two processes see it.
func rwPair(t *testing.T, s *site) (a, b *primitives.RWMutex, m *fabric.Manager, key string) {
	m, key = s.manager(t), s.key(t)
	return primitives.NewRWMutex(m, key), primitives.NewRWMutex(s.manager(t), key), m, key
}

func rwWriterWaits(t *testing.T, s *site) {
	a, b, m, key := rwPair(t, s)
	r1, r2, u := rlock.now(t, a), rlock.now(t, b), ulock.now(t, b)
	w := wlock.later(t, b, m, key, 1)
	release(t, r1)
	release(t, u)
	if info := read(t, m, key); len(info.Waiters) != 1 {
		t.Errorf("the writer doesn't wait for the last reader: %+v", info)
	}
	release(t, r2)
	l := must(t, w)
	if l.Mode() != fabric.Exclusive || l.Token() <= r2.Token() {
		t.Errorf("%s with token %d after %d", l.Mode(), l.Token(), r2.Token())
	}
	release(t, l)
}

func rwReadersTogether(t *testing.T, s *site) {
	a, b, m, key := rwPair(t, s)
	w := wlock.now(t, a)
	r1, r2 := rlock.later(t, a, m, key, 1), rlock.later(t, b, m, key, 2)
	release(t, w)
	l1, l2 := must(t, r1), must(t, r2)
	if info := read(t, m, key); len(info.Holders) != 2 {
		t.Errorf("not granted together: %+v", info)
	}
	release(t, l1)
	release(t, l2)
}

func rwReaderBehindWriter(t *testing.T, s *site) {
	a, b, m, key := rwPair(t, s)
	r := rlock.now(t, a)
	w := wlock.later(t, b, m, key, 1)
	behind := rlock.later(t, a, m, key, 2)
	release(t, r)
	l := must(t, w)
	select {
	case <-behind:
		t.Error("the reader holds beside the writer")
	default:
	}
	release(t, l)
	release(t, must(t, behind))
}

func rwUpgradeU(t *testing.T, s *site) {
	a, b, m, key := rwPair(t, s)
	r, u := rlock.now(t, a), ulock.now(t, b)
	token := u.Token()
	up := async(func() (struct{}, error) { return struct{}{}, u.Upgrade(waitContext(t)) })
	waitInfo(t, m, key, "an upgrade that waits", func(i fabric.Info) bool {
		for _, h := range i.Holders {
			if h.Converting == fabric.Exclusive {
				return true
			}
		}
		return false
	})
	release(t, r)
	must(t, up)
	if u.Mode() != fabric.Exclusive || u.Token() <= token {
		t.Errorf("%s with token %d, was %d", u.Mode(), u.Token(), token)
	}
	release(t, u)
	expectFree(t, m, key)
}

func rwUpgradeDeadlock(t *testing.T, s *site) {
	a, b, m, key := rwPair(t, s)
	r1, r2 := rlock.now(t, a), rlock.now(t, b)
	up := async(func() (struct{}, error) { return struct{}{}, r1.Upgrade(waitContext(t)) })
	waitInfo(t, m, key, "an upgrade that waits", func(i fabric.Info) bool {
		return len(i.Holders) == 2 && i.Holders[0].Converting+i.Holders[1].Converting == fabric.Exclusive
	})
	if err := r2.Upgrade(waitContext(t)); !errors.Is(err, fabric.ErrConvertDeadlock) || r2.Mode() != fabric.Shared || r2.Err() != nil {
		t.Errorf("%v; %s, %v", err, r2.Mode(), r2.Err())
	}
	release(t, r2)
	must(t, up)
	release(t, r1)
}

func rwDowngrade(t *testing.T, s *site) {
	a, b, m, key := rwPair(t, s)
	w := wlock.now(t, a)
	token := w.Token()
	r1, r2 := rlock.later(t, b, m, key, 1), rlock.later(t, b, m, key, 2)
	if err := w.Downgrade(waitContext(t)); err != nil || w.Mode() != fabric.Shared || w.Token() != token || w.Err() != nil {
		t.Errorf("%v: %s, token %d, %v", err, w.Mode(), w.Token(), w.Err())
	}
	release(t, must(t, r1))
	release(t, must(t, r2))
	release(t, w)
	expectFree(t, m, key)
}

func rwUpgradedReleasesOnce(t *testing.T, s *site) {
	a, b, m, key := rwPair(t, s)
	r := rlock.now(t, a)
	was := *r
	if err := r.Upgrade(waitContext(t)); err != nil {
		t.Fatal(err)
	}
	release(t, r)
	next := wlock.now(t, b)
	if !errors.Is(was.Err(), fabric.ErrReleased) {
		t.Errorf("the old copy says %v", was.Err())
	}
	_ = was.Release(t.Context())
	if err := was.Upgrade(waitContext(t)); !errors.Is(err, fabric.ErrReleased) {
		t.Errorf("upgrade of the old copy: %v", err)
	}
	if info := read(t, m, key); len(info.Holders) != 1 || info.Holders[0].ID != next.ID() {
		t.Errorf("held by %+v", info.Holders)
	}
	release(t, next)
}

func rwWrites(t *testing.T, s *site) {
	a, _, m, _ := rwPair(t, s)
	release(t, rlock.now(t, a))
	if n := writes(func() {
		l := ulock.now(t, a)
		for _, step := range []func(context.Context) error{l.Upgrade, l.Downgrade} {
			if err := step(waitContext(t)); err != nil {
				t.Error(err)
			}
		}
		release(t, l)
	}, m); n.not(4) {
		t.Errorf("%d writes, want 4", n)
	}
}
