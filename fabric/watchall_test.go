package fabric_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/lockfabric/lockfabric/fabric"
	"github.com/lockfabric/lockfabric/kv"
)

func TestWatchAll(t *testing.T) {
	onSite(t, singleSite, func(t *testing.T, s *site) {
		for _, b := range []behaviour{
			{"every change", watchAllChanges},
			{"one watcher after the other", watchAllAgain},
			{"buckets deleted", watchAllBucketsGone},
			{"how it ends", watchAllEnds},
		} {
			t.Run(b.name, func(t *testing.T) {
				t.Parallel()
				b.run(t, s)
			})
		}
	})
}

// table is what a loop over WatchAll has told, put together.
type table struct {
	mu    sync.Mutex
	lists int
	infos map[string]fabric.Info
	last  map[string]uint64 // revisions
	wrong []string
}

func (tb *table) take(list []fabric.Info, err error) bool {
	tb.mu.Lock()
	defer tb.mu.Unlock()
	tb.lists++
	for _, i := range list {
		if i.Revision != 0 && i.Revision <= tb.last[i.Key] {
			tb.wrong = append(tb.wrong, fmt.Sprintf("%s: revision %d after %d", i.Key, i.Revision, tb.last[i.Key]))
		}
		tb.last[i.Key] = i.Revision
		if i.Kind == "" {
			delete(tb.infos, i.Key)
		} else {
			tb.infos[i.Key] = i
		}
	}
	if err != nil && !errors.Is(err, context.Canceled) && !errors.Is(err, fabric.ErrClosed) {
		tb.wrong = append(tb.wrong, err.Error())
	}
	return true
}

// shows waits until a name is as wanted.
func (tb *table) shows(t *testing.T, what, key string, so func(i fabric.Info, inUse bool) bool) {
	t.Helper()
	eventually(t, what, func() bool {
		tb.mu.Lock()
		defer tb.mu.Unlock()
		i, ok := tb.infos[key]
		return tb.lists > 0 && so(i, ok)
	})
}

// followAll runs a loop over all names that begin with prefix.
func followAll(t *testing.T, run func(ctx context.Context, yield func([]fabric.Info, error) bool)) *table {
	t.Helper()
	tb := &table{infos: map[string]fabric.Info{}, last: map[string]uint64{}}
	ctx, cancel := context.WithCancel(waitContext(t))
	done := make(chan struct{})
	t.Cleanup(func() {
		cancel()
		<-done
		for _, w := range tb.wrong {
			t.Error(w)
		}
	})
	go func() {
		defer close(done)
		run(ctx, tb.take)
	}()
	return tb
}

func unused(_ fabric.Info, inUse bool) bool { return !inUse }

func watchAllChanges(t *testing.T, s *site) {
	m, key := s.manager(t), s.key(t)
	other := acquire(t, m, s.key(t)+"/before")
	outside := acquire(t, m, "outside "+key)
	defer release(t, outside)
	tb := followAll(t, func(ctx context.Context, yield func([]fabric.Info, error) bool) {
		s.manager(t).WatchAll(ctx, t.Name())(yield)
	})
	held := func(l *fabric.Lock, waiters int) func(fabric.Info, bool) bool {
		return func(i fabric.Info, _ bool) bool {
			return len(i.Holders) == 1 && i.Holders[0].ID == l.ID() && i.Holders[0].Token == l.Token() && len(i.Waiters) == waiters
		}
	}
	tb.shows(t, "a hold of before", other.Key(), held(other, 0))
	l := acquire(t, m, key)
	tb.shows(t, "grant", key, held(l, 0))
	second := queue(t, waitContext(t), m, key)
	tb.shows(t, "a waiter", key, held(l, 1))
	release(t, l)
	next := granted(t, second)
	tb.shows(t, "the next one", key, held(next, 0))
	release(t, next)
	release(t, other)
	tb.shows(t, "release", key, unused)
	tb.shows(t, "release of what was there before", other.Key(), unused)
	if _, ok := tb.infos[outside.Key()]; ok {
		t.Error("a name with another prefix was told of")
	}
}

// Locks come and go while watchers do: in the end it is told what there is.
func watchAllAgain(t *testing.T, s *site) {
	m := s.manager(t)
	tb := followAll(t, func(ctx context.Context, yield func([]fabric.Info, error) bool) {
		fabric.WatchAllTrusting(ctx, s.manager(t), t.Name(), 20*time.Millisecond, yield)
	})
	var wg sync.WaitGroup
	for w := range 4 {
		rnd := rand.New(rand.NewPCG(7, uint64(w)))
		wg.Go(func() {
			for range 40 {
				l, err := m.Acquire(waitContext(t), fmt.Sprintf("%s/%d", t.Name(), rnd.IntN(6)))
				if err == nil {
					err = l.Release(waitContext(t))
				}
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	for i := range 6 {
		key := fmt.Sprintf("%s/%d", t.Name(), i)
		if i == 0 {
			l := acquire(t, m, key)
			defer release(t, l)
			tb.shows(t, "the one that stays", key, func(i fabric.Info, _ bool) bool {
				return len(i.Holders) == 1 && i.Holders[0].ID == l.ID()
			})
			continue
		}
		tb.shows(t, "those that went", key, unused)
	}
}

func watchAllBucketsGone(t *testing.T, s *site) {
	own := s.fabric(t)
	m, observer := s.manager(t, fabric.WithFabric(own)), s.manager(t, fabric.WithFabric(own))
	l := acquire(t, m, "lost")
	tb := followAll(t, func(ctx context.Context, yield func([]fabric.Info, error) bool) { observer.WatchAll(ctx, "")(yield) })
	tb.shows(t, "grant", "lost", func(i fabric.Info, _ bool) bool { return len(i.Holders) == 1 })
	js := s.jetStream(t)
	for _, bucket := range []string{"-locks", "-leases"} {
		if err := js.DeleteStream(waitContext(t), "KV_"+own+bucket); err != nil {
			t.Fatal(err)
		}
	}
	tb.shows(t, "the loss", "lost", unused)
	receive(t, l.Lost())
	again := acquire(t, m, "again")
	tb.shows(t, "a grant in the new bucket", "again", func(i fabric.Info, _ bool) bool { return len(i.Holders) == 1 && i.Holders[0].ID == again.ID() })
	release(t, again)
	tb.shows(t, "its release", "again", unused)
}

func watchAllEnds(t *testing.T, s *site) {
	m := s.manager(t)
	for list, err := range m.WatchAll(waitContext(t), t.Name()) {
		if len(list) > 0 || err != nil {
			t.Errorf("the first of nothing: %v, %v", list, err)
		}
		break
	}
	ends := func(ctx context.Context, prefix string) (last error) {
		for _, err := range m.WatchAll(ctx, prefix) {
			last = err
			if err == nil && ctx.Err() == nil {
				go func() { _ = m.Close() }()
			}
		}
		return last
	}
	ctx, cancel := context.WithCancel(waitContext(t))
	cancel()
	if err := ends(ctx, ""); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if err := ends(waitContext(t), "a\nb"); !errors.Is(err, kv.ErrInvalidName) {
		t.Errorf("bad name: %v", err)
	}
	if err := ends(waitContext(t), t.Name()); !errors.Is(err, fabric.ErrClosed) {
		t.Errorf("closed: %v", err)
	}
}
