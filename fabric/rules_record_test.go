package fabric_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/lockfabric/lockfabric/fabric"
	"github.com/lockfabric/lockfabric/internal/jskv"
	"github.com/lockfabric/lockfabric/internal/record"
	"github.com/lockfabric/lockfabric/kv"
)

// The rules about records.

// history keeps every committed write of some managers.
type history struct {
	mu     sync.Mutex
	writes map[uint64][]byte
}

func (h *history) note(ctx context.Context, msg *nats.Msg, send jskv.Requester) (*nats.Msg, error) {
	reply, err := surely(ctx, msg, send)
	if seq := ackSeq(reply); err == nil && seq != 0 {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.writes[seq] = slices.Clone(msg.Data)
	}
	return reply, err
}

func TestRule11_OutcomesAreReadOffCommittedRecords(t *testing.T) {
	t.Parallel()
	onBothSites(t, func(t *testing.T, s *site) {
		t.Parallel()
		const managers, workers, rounds = 3, 8, 10
		key := s.key(t)
		h := history{writes: map[uint64][]byte{}}
		var mu sync.Mutex
		grants := map[string]uint64{} // id -> token
		var writers, readers atomic.Int32
		var wg sync.WaitGroup
		for range managers {
			m, w := s.wired(t)
			w.fault(-1, lockWrite, h.note)
			for range workers {
				wg.Go(func() {
					for range rounds {
						mode := fabric.Exclusive
						if rand.IntN(3) == 0 {
							mode = fabric.Shared
						}
						l, err := m.Acquire(waitContext(t), key, fabric.WithMode(mode))
						if err != nil {
							t.Error(err)
							return
						}
						if mode == fabric.Exclusive {
							if writers.Add(1) > 1 || readers.Load() > 0 {
								t.Errorf("%s holds beside others", l.ID())
							}
						} else if readers.Add(1); writers.Load() > 0 {
							t.Errorf("%s reads beside a writer", l.ID())
						}
						mu.Lock()
						grants[l.ID()] = l.Token()
						mu.Unlock()
						if mode == fabric.Exclusive {
							writers.Add(-1)
						} else {
							readers.Add(-1)
						}
						if err := l.Release(waitContext(t)); err != nil {
							t.Error(err)
						}
					}
				})
			}
		}
		wg.Wait()
		checkHistory(t, h.writes, grants)
	})
}

// checkHistory holds what callers were told against what was committed.
func checkHistory(t *testing.T, writes map[uint64][]byte, grants map[string]uint64) {
	t.Helper()
	type grant struct {
		id    string
		token uint64
	}
	seen := map[grant]bool{}
	for seq, value := range writes {
		if len(value) == 0 {
			continue
		}
		rec, err := record.Decode(value)
		if err != nil {
			t.Fatalf("revision %d: %v", seq, err)
		}
		exclusive := 0
		rec.Resolve(seq)
		for _, e := range rec.Holders {
			seen[grant{e.ID, e.Token}] = true
			if e.Mode == record.X {
				exclusive++
			}
			if record.RevisionOf(e.Token) > seq {
				t.Errorf("revision %d: %s has token %d", seq, e.ID, e.Token)
			}
		}
		if exclusive > 1 || exclusive > 0 && len(rec.Holders) > 1 {
			t.Errorf("revision %d: %s", seq, value)
		}
	}
	for id, token := range grants {
		if !seen[grant{id, token}] {
			t.Errorf("%s was granted with token %d, which no record says", id, token)
		}
	}
	if len(grants) == 0 {
		t.Error("no grants")
	}
}

// A round whose write is refused has granted nothing, whatever it looked like.
func TestRule11_ARefusedWriteGrantsNothing(t *testing.T) {
	t.Parallel()
	onBothSites(t, func(t *testing.T, s *site) {
		t.Parallel()
		m, w := s.wired(t)
		key, other := s.key(t), s.manager(t)
		var rival *fabric.Lock
		w.fault(1, about(t, key, lockPut), func(ctx context.Context, msg *nats.Msg, send jskv.Requester) (*nats.Msg, error) {
			rival = acquire(t, other, key)
			return send(ctx, msg)
		})
		wait := queue(t, waitContext(t), m, key)
		expectHolder(t, other, key, rival)
		release(t, rival)
		l := granted(t, wait)
		if l.Token() <= rival.Token() {
			t.Errorf("token %d after %d", l.Token(), rival.Token())
		}
	})
}

func TestRule14_ReleaseFitsInAFullRecord(t *testing.T) {
	t.Parallel()
	for _, b := range []behaviour{
		{"as many waiters as are allowed", func(t *testing.T, s *site) {
			key, m, other := s.key(t), s.manager(t), s.manager(t)
			holder := acquire(t, m, key)
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			waits := fillQueue(ctx, t, m, key, 10)
			waitQueue(t, other, key, len(waits))
			empty := fillRecord(t, s, key, nil)
			waitQueue(t, other, key, record.DefaultLimits().MaxWaiters)
			expectFull(t, other, key)
			expectRoom(t, s, key, holder, waits, cancel, empty)
		}},
		{"as many bytes as are allowed", func(t *testing.T, s *site) {
			key, m, other := s.key(t), s.manager(t), s.manager(t)
			// The stored form of this is six times as long.
			bulkyMeta := map[string]string{"m": strings.Repeat("\x01", fabric.MaxMetadata-1)}
			bulky := fabric.WithMetadata(bulkyMeta)
			holder := acquire(t, m, key, bulky)
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			waits := fillQueue(ctx, t, m, key, 10, bulky)
			waitQueue(t, other, key, len(waits))
			empty := fillRecord(t, s, key, bulkyMeta)
			if g := receive(t, acquireAsync(ctx, other, key, bulky)); !errors.Is(g.err, fabric.ErrQueueFull) {
				t.Errorf("acquire on a full record: %v", g.err)
			}
			expectRoom(t, s, key, holder, waits, cancel, empty)
		}},
		{"as many holders as are allowed, then they queue", func(t *testing.T, s *site) {
			key, m := s.key(t), s.manager(t)
			most := record.DefaultLimits().MaxHolders
			var locks []*fabric.Lock
			for _, c := range fillQueue(waitContext(t), t, m, key, most, shared) {
				locks = append(locks, granted(t, c))
			}
			wait := queue(t, waitContext(t), m, key, shared)
			release(t, locks[0])
			release(t, granted(t, wait))
			var wg sync.WaitGroup
			for _, l := range locks[1:] {
				wg.Go(func() {
					if err := l.Release(waitContext(t)); err != nil {
						t.Error(err)
					}
				})
			}
			wg.Wait()
			expectFree(t, m, key)
		}},
	} {
		t.Run(b.name, func(t *testing.T) {
			onSite(t, singleSite, func(t *testing.T, s *site) {
				t.Parallel()
				b.run(t, s)
			})
		})
	}
}

func fillQueue(ctx context.Context, t *testing.T, m *fabric.Manager, key string, n int, opts ...fabric.AcquireOption) []<-chan grant {
	t.Helper()
	var out []<-chan grant
	for range n {
		out = append(out, acquireAsync(ctx, m, key, opts...))
	}
	return out
}

// fillRecord has as many processes as fit queue for the lock, one waiter each with the given
// metadata. empty takes them out again.
func fillRecord(t *testing.T, s *site, key string, meta map[string]string) (empty func()) {
	t.Helper()
	enc, err := kv.EncodeName(key)
	if err != nil {
		t.Fatal(err)
	}
	locks := s.locks(t, enc)
	change := func(ops []record.Op) {
		eventually(t, "a write of others", func() bool {
			e, err := locks.Get(waitContext(t), enc)
			if err != nil {
				t.Fatal(err)
			}
			rec, err := record.Decode(e.Value())
			if err != nil {
				t.Fatal(err)
			}
			next, _, _ := record.Apply(rec, e.Revision(), ops, record.Limits{})
			_, err = locks.Update(waitContext(t), enc, next.Append(nil), e.Revision())
			return err == nil
		})
	}
	most := record.DefaultLimits().MaxWaiters
	ins, outs := make([]record.Op, most), make([]record.Op, most)
	for i := range most {
		id := fmt.Sprintf("P%d.1", i)
		ins[i] = record.Op{Kind: record.KindLock, Verb: record.OpAcquire, ID: id, Lease: record.LeaseOf(id), Mode: record.X, TTL: time.Hour, Meta: meta}
		outs[i] = record.Op{Verb: record.OpRelease, ID: id}
	}
	change(ins)
	return func() { change(outs) }
}

func expectFull(t *testing.T, m *fabric.Manager, key string) {
	t.Helper()
	if _, err := m.Acquire(waitContext(t), key); !errors.Is(err, fabric.ErrQueueFull) || !errors.Is(err, fabric.ErrNotAcquired) {
		t.Errorf("acquire on a full record: %v", err)
	}
	if _, err := m.TryAcquire(waitContext(t), key, fabric.WithoutTakeover()); !errors.Is(err, fabric.ErrHeld) {
		t.Errorf("try on a full record: %v", err)
	}
}

// expectRoom does to a full record all that must always fit.
func expectRoom(t *testing.T, s *site, key string, holder *fabric.Lock, waits []<-chan grant, cancel, empty func()) {
	t.Helper()
	op := s.manager(t)
	if n, err := op.ForceRelease(waitContext(t), key); n != 1 || err != nil { // a mark, and the holder's release
		t.Errorf("ForceRelease: %d, %v", n, err)
	}
	waitLost(t, holder)
	first := make(chan *fabric.Lock, 1)
	for _, c := range waits {
		go func() {
			if g := <-c; g.err == nil {
				first <- g.lock
			}
		}()
	}
	l := receive(t, first)
	if err := l.Release(waitContext(t)); err != nil {
		t.Errorf("release: %v", err)
	}
	l = receive(t, first)
	cancel()
	eventually(t, "those that gave up have left", func() bool {
		for _, w := range inspect(t, op, key).Waiters {
			if w.Lease.ID == leaseOf(l.ID()) {
				return false
			}
		}
		return true
	})
	empty()
	waitQueue(t, op, key, 0)
	release(t, l)
	eventually(t, "everybody has left", func() bool {
		info := inspect(t, op, key)
		return len(info.Holders)+len(info.Waiters) == 0
	})
}

// setMaxBytes does to a bucket what an operator should not.
func setMaxBytes(t *testing.T, s *site, name string, n int64) {
	t.Helper()
	js := s.jetStream(t)
	info, err := js.Stream(waitContext(t), "KV_"+name+"-locks")
	if err != nil {
		t.Fatal(err)
	}
	cfg := info.CachedInfo().Config
	cfg.MaxBytes = n
	if _, err := js.UpdateStream(waitContext(t), cfg); err != nil {
		t.Fatal(err)
	}
}

func expectNoRoom(t *testing.T, m *fabric.Manager, key string) {
	t.Helper()
	for name, op := range map[string]func(context.Context, string, ...fabric.AcquireOption) (*fabric.Lock, error){
		"Acquire": m.Acquire, "TryAcquire": m.TryAcquire,
	} {
		if _, err := op(waitContext(t), key); !errors.Is(err, kv.ErrFull) || !errors.Is(err, fabric.ErrNotAcquired) {
			t.Errorf("%s in a full bucket: %v", name, err)
		}
	}
}

func TestRule14_ReleaseFitsInAFullBucket(t *testing.T) {
	t.Parallel()
	onSite(t, singleSite, func(t *testing.T, s *site) {
		t.Parallel()
		name := s.fabric(t)
		m, other := s.manager(t, fabric.WithFabric(name)), s.manager(t, fabric.WithFabric(name))
		var locks []*fabric.Lock
		for i := range 20 {
			locks = append(locks, acquire(t, m, fmt.Sprint("k", i)))
		}
		wait := queue(t, waitContext(t), other, "k0")
		ctx, cancel := context.WithCancel(context.Background())
		gone := queue(t, ctx, other, "k0")
		setMaxBytes(t, s, name, 64)
		expectNoRoom(t, m, "new")
		cancel()
		receive(t, gone)
		waitQueue(t, other, "k0", 1)
		for _, l := range locks {
			release(t, l)
		}
		release(t, granted(t, wait))
		for i := range locks {
			expectFree(t, m, fmt.Sprint("k", i))
		}
	})
	// A cluster refuses every write to a full stream, also one that shrinks it. A
	// release goes on until there is room.
	onSite(t, clusterSite, func(t *testing.T, s *site) {
		t.Parallel()
		name := s.fabric(t)
		m, w := s.wired(t, fabric.WithFabric(name))
		l := acquire(t, m, "k")
		setMaxBytes(t, s, name, 64)
		expectNoRoom(t, m, "new")
		if err := l.Release(waitContext(t)); !errors.Is(err, fabric.ErrUnconfirmed) || !errors.Is(l.Err(), fabric.ErrReleased) {
			t.Errorf("release: %v, the handle says %v", err, l.Err())
		}
		later := w.fault(-1, about(t, "k", lockPurge), seen(func(*nats.Msg) {}))
		receive(t, later.hit)
		receive(t, later.hit)
		setMaxBytes(t, s, name, -1)
		eventually(t, "the release", func() bool { return len(inspect(t, m, "k").Holders) == 0 })
		release(t, acquire(t, m, "new"))
	})
}

func TestRule15_ReplacedBucketGrantsNothingForAWhile(t *testing.T) {
	t.Parallel()
	onBothSites(t, func(t *testing.T, s *site) {
		t.Parallel()
		const ttl = 2 * time.Second
		name := s.fabric(t)
		named := fabric.WithFabric(name)
		m := s.manager(t, named, fabric.WithTTL(ttl))
		// Its buckets are gone, and it neither hears of it nor can ask.
		deaf, w := s.wired(t, named, fabric.WithTTL(ttl))
		l := acquire(t, m, "k")
		cut := acquire(t, deaf, "k2")
		w.fault(-1, anything, vanish)
		if err := s.jetStream(t).DeleteStream(waitContext(t), "KV_"+name+"-locks"); err != nil {
			t.Fatal(err)
		}
		opened := time.Now()
		next := s.manager(t, named)
		if _, err := next.TryAcquire(waitContext(t), "k", fabric.WithFailFast()); !errors.Is(err, fabric.ErrUnavailable) {
			t.Errorf("a try with fail-fast: %v", err)
		}
		if _, err := next.Acquire(waitContext(t), "k", fabric.WithWaitLimit(50*time.Millisecond)); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("an acquire in the quarantine: %v", err)
		}
		waiting := acquireAsync(waitContext(t), next, "k2")
		succ := acquire(t, next, "k")
		if took := time.Since(opened); took < ttl*105/100 {
			t.Errorf("granted %v after the bucket was replaced, with leases of %v", took, ttl)
		}
		if reason := waitLost(t, l); !errors.Is(reason, fabric.ErrBucketGone) && !errors.Is(reason, fabric.ErrExpired) {
			t.Errorf("lost because of %v", reason)
		}
		succ2 := granted(t, waiting)
		if err := cut.Err(); !errors.Is(err, fabric.ErrLost) {
			t.Errorf("the holder that was cut off says %v", err)
		}
		if succ.Token() <= l.Token() || succ2.Token() <= cut.Token() {
			t.Errorf("tokens %d and %d before, %d and %d after", l.Token(), cut.Token(), succ.Token(), succ2.Token())
		}
		// Who comes later does not wait again.
		later := s.manager(t, named)
		inAHurry(t, later, func() error { return second(later.TryAcquire(waitContext(t), "k3", fabric.WithFailFast())) })
	})
}
