package engine

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lockfabric/lockfabric/internal/jskv"
)

// instant is a store of one key that answers at once, to measure only the engine.
type instant struct {
	deaf
	rev atomic.Uint64
}

func (s *instant) Get(_ context.Context, key string) (jskv.Entry, error) {
	return jskv.Entry{Key: key, Deleted: true, Revision: s.rev.Load()}, nil
}

func (s *instant) Update(context.Context, string, []byte, uint64, time.Duration) (uint64, error) {
	return s.rev.Add(1), nil
}

func (s *instant) Purge(context.Context, string, uint64, time.Duration) (uint64, error) {
	return s.rev.Add(1), nil
}

func (*instant) CheckAt(context.Context, string, uint64) (uint64, error) { return 0, jskv.ErrBusy }

func (*instant) MaxValue() int { return 1 << 20 }

// pair is an acquire and a release of a free key without a server.
func pair(t testing.TB) (once func()) {
	e := New(Config{Store: &instant{}, Watcher: &deaf{}, Observer: &observer{}})
	t.Cleanup(e.Close)
	op := acquireOp("Vd8Tb1SnVHxAjnLm9rPfQa.1")
	free := releaseOp(op.ID)
	return func() {
		if _, err := Do(t.Context(), e, "k", op, Options{}); err != nil {
			t.Fatal(err)
		}
		if _, err := Do(t.Context(), e, "k", free, Options{Bound: time.Minute}); err != nil {
			t.Fatal(err)
		}
	}
}

// It takes 6 allocations, and some more with the race detector, under which pools forget.
func TestAllocationsOfAPair(t *testing.T) {
	if n := testing.AllocsPerRun(1000, pair(t)); n > 20 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkPair(b *testing.B) {
	once := pair(b)
	b.ReportAllocs()
	for b.Loop() {
		once()
	}
}
