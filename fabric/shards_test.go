package fabric_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/lockfabric/lockfabric/coalesce"
	"github.com/lockfabric/lockfabric/fabric"
	"github.com/lockfabric/lockfabric/kv"
)

// inShard returns a key of that shard among n.
func inShard(shard, n int) string {
	for i := 0; ; i++ {
		if key := fmt.Sprint("k", i); kv.Shard(key, n) == shard {
			return key
		}
	}
}

func TestShards_TheNumberIsFixed(t *testing.T) {
	t.Parallel()
	onSite(t, singleSite, func(t *testing.T, s *site) {
		t.Parallel()
		own := s.fabric(t)
		for _, n := range []int{0, -1, kv.MaxShards + 1} {
			if _, err := fabric.New(waitContext(t), s.conn(t), fabric.WithShards(n)); !errors.Is(err, fabric.ErrInvalidOption) {
				t.Errorf("%d shards: %v", n, err)
			}
		}
		// All make it at once: one number counts.
		var all sync.WaitGroup
		for i := range 6 {
			nc := s.conn(t)
			all.Go(func() {
				m, err := fabric.New(waitContext(t), nc, fabric.WithFabric(own), fabric.WithShards(2+i%2))
				switch {
				case err == nil:
					if m.Shards() != 2+i%2 {
						t.Errorf("%d shards, asked for %d", m.Shards(), 2+i%2)
					}
					_ = m.Close()
				case !errors.Is(err, kv.ErrShards):
					t.Error(err)
				}
			})
		}
		all.Wait()
		m := s.manager(t, fabric.WithFabric(own))
		n := m.Shards()
		if n != 2 && n != 3 {
			t.Errorf("%d shards", n)
		}
		for _, wrong := range []int{1, 5 - n, 64} {
			if _, err := fabric.New(waitContext(t), s.conn(t), fabric.WithFabric(own), fabric.WithShards(wrong)); !errors.Is(err, kv.ErrShards) {
				t.Errorf("%d shards instead of %d: %v", wrong, n, err)
			}
		}
		if _, err := fabric.New(waitContext(t), s.conn(t), fabric.WithShards(2)); !errors.Is(err, kv.ErrShards) {
			t.Errorf("2 shards of a fabric with one: %v", err)
		}
		js := s.jetStream(t)
		for i, name := range []string{own + "-locks", kv.LocksBuckets(own, n)[n-1]} {
			if _, err := js.Stream(waitContext(t), "KV_"+name); errors.Is(err, jetstream.ErrStreamNotFound) != (i == 0) {
				t.Errorf("%s: %v", name, err)
			}
		}
		for _, name := range append(kv.LocksBuckets(own, n), kv.LeasesBucket(own)) {
			_ = js.DeleteStream(waitContext(t), "KV_"+name)
		}
	})
}

// A set's members are where their names say, a path is in one shard, and all of it is found again.
func TestShards_WhereLocksAre(t *testing.T) {
	t.Parallel()
	onSite(t, shardedSite, func(t *testing.T, s *site) {
		t.Parallel()
		own := s.fabric(t)
		m := s.manager(t, fabric.WithFabric(own))
		var wants []fabric.Want
		var names []string
		for shard := range s.shards {
			path := inShard(shard, s.shards) + "/a/b"
			wants = append(wants, fabric.Want{Key: path, Path: true})
			names = append(names, path, path[:len(path)-2], path[:len(path)-4])
		}
		set := acquireAll(t, m, wants)
		for shard, name := range kv.LocksBuckets(own, s.shards) {
			for _, want := range wants {
				_, err := s.bucket(t, name).Get(waitContext(t), encoded(t, want.Key))
				if there := err == nil; there != (kv.Shard(encoded(t, want.Key), s.shards) == shard) {
					t.Errorf("%s in %s: %v", want.Key, name, err)
				}
			}
			keys, err := s.bucket(t, name).Keys(waitContext(t))
			if err != nil || len(keys) != 3 {
				t.Errorf("%s has %q, %v", name, keys, err)
			}
		}
		list, err := m.List(waitContext(t), "")
		var found []string
		for _, info := range list {
			found = append(found, info.Key)
		}
		slices.Sort(found)
		slices.Sort(names)
		if err != nil || !slices.Equal(found, names) {
			t.Errorf("listed %q, %v", found, err)
		}
		got, err := m.Collect(waitContext(t), "")
		if err != nil || got.Locks != len(names) || got.Dead != 0 {
			t.Errorf("%+v, %v", got, err)
		}
		releaseSet(t, set)
		h := fabric.NewHierarchy(inShard(0, s.shards), inShard(1, s.shards))
		if _, err := m.AcquireHierarchy(waitContext(t), h, fabric.Exclusive); !errors.Is(err, fabric.ErrInvalidOption) {
			t.Errorf("a hierarchy in two shards: %v", err)
		}
	})
}

// With one bucket of several gone all holds are lost, and nothing is granted before those of before have ended.
func TestShards_OneBucketIsReplaced(t *testing.T) {
	t.Parallel()
	onSite(t, shardedSite, func(t *testing.T, s *site) {
		t.Parallel()
		own, key, other := s.fabric(t), inShard(1, s.shards), inShard(2, s.shards)
		opts := append([]fabric.Option{fabric.WithFabric(own), fabric.WithTTL(2 * time.Second)}, s.options...)
		cutOff, cut := s.cutOff(t, opts...)
		m := s.manager(t, opts...)
		held, kept := acquire(t, cutOff, key), acquire(t, m, other)
		before := acquire(t, m, inShard(0, s.shards))
		cut()
		if err := s.jetStream(t).DeleteStream(waitContext(t), "KV_"+kv.LocksBuckets(own, s.shards)[1]); err != nil {
			t.Fatal(err)
		}
		next := acquire(t, s.manager(t, opts...), key) // makes the bucket again, and waits
		if err := held.Err(); !errors.Is(err, fabric.ErrLost) {
			t.Errorf("granted in the new bucket while the holder of before says %v", err)
		}
		if next.Token() <= held.Token() {
			t.Errorf("token %d after %d", next.Token(), held.Token())
		}
		if reason := waitLost(t, kept); !errors.Is(reason, fabric.ErrBucketGone) && !errors.Is(reason, fabric.ErrExpired) {
			t.Errorf("lost because of %v", reason)
		}
		release(t, next)
		again := acquire(t, m, inShard(0, s.shards))
		if again.Token() <= before.Token() {
			t.Errorf("token %d after %d", again.Token(), before.Token())
		}
		release(t, again)
		// That one was raised says nothing of the others.
		release(t, acquire(t, s.manager(t, opts...), other))
	})
}

// C20: each shard has an owner of its own, and each has it carry out what is its own.
func TestC20_EachShardHasAnOwner(t *testing.T) {
	t.Parallel()
	onSite(t, shardedSite, func(t *testing.T, s *site) {
		t.Parallel()
		own := s.fabric(t)
		opts := []fabric.Option{fabric.WithFabric(own)}
		one := s.manager(t, append(opts, fabric.WithCoalescer(), fabric.WithLeisure(time.Hour))...)
		m := s.manager(t, append(opts, fabric.WithRoad(fabric.RoadCoalesced))...)
		ask := func(shard int) {
			if err := s.conn(t).Publish(coalesce.HelloSubject(own, shard), nil); err != nil {
				t.Fatal(err)
			}
		}
		owner := func(shard int) (id string) {
			info, err := m.CoalescerOf(waitContext(t), shard)
			if err == nil && len(info.Holders) > 0 {
				id = info.Holders[0].ID
			}
			return id
		}
		for shard := range s.shards {
			eventually(t, fmt.Sprint("an owner of shard ", shard), func() bool { ask(shard); return owner(shard) != "" })
			key := inShard(shard, s.shards)
			eventually(t, fmt.Sprintf("an operation of shard %d goes to its owner", shard), func() bool {
				before := m.Stats().Coalesced
				release(t, acquire(t, m, key))
				return m.Stats().Coalesced >= before+2
			})
		}
		// The sets of several shards are in several hands.
		set := acquireAll(t, m, []fabric.Want{{Key: inShard(0, s.shards)}, {Key: inShard(1, s.shards)}, {Key: inShard(2, s.shards)}})
		releaseSet(t, set)
		_ = one.Close()
		for shard := range s.shards { // directly, or over the StandBy of another test
			release(t, acquire(t, m, inShard(shard, s.shards)))
		}
	})
}

// What is in use in all shards, and what changes there, is told by one watch, in the caller's goroutine, and its end ends it.
func TestShards_WatchAll(t *testing.T) {
	t.Parallel()
	onSite(t, shardedSite, func(t *testing.T, s *site) {
		t.Parallel()
		m := s.manager(t, fabric.WithFabric(s.fabric(t)))
		ctx, cancel := context.WithCancel(waitContext(t))
		defer cancel()
		later := func(shard int) string { return inShard(shard, s.shards) + "/later" }
		for shard := range s.shards {
			acquire(t, m, inShard(shard, s.shards))
		}
		seen, begun := map[string]bool{}, false
		for list, err := range m.WatchAll(ctx, "") {
			if err != nil {
				t.Errorf("before all was told: %v", err)
				break
			}
			for _, info := range list {
				seen[info.Key] = info.Kind != ""
			}
			if !begun {
				begun = true
				if len(seen) != s.shards {
					t.Errorf("the first list has %v", seen)
				}
				for shard := range s.shards {
					acquire(t, m, later(shard))
				}
			}
			if len(seen) == 2*s.shards {
				break
			}
		}
		for shard := range s.shards {
			if !seen[later(shard)] {
				t.Errorf("%s was not told of: %v", later(shard), seen)
			}
		}
	})
}

// BenchmarkShards has 64 clients, each with a connection and a lock of its own, in fabrics of one and of four shards,
// in turns: seconds of one divided by those of four.
func BenchmarkShards(b *testing.B) {
	singleSite.once.Do(singleSite.start)
	const clients, turns, each = 64, 5, 100
	group := func(shards int) []*fabric.Manager {
		all := make([]*fabric.Manager, clients)
		for i := range all {
			all[i] = singleSite.manager(b, fabric.WithFabric(fmt.Sprint("shards-", shards)), fabric.WithShards(shards))
		}
		return all
	}
	one, four := group(1), group(4)
	pairs := func(all []*fabric.Manager) time.Duration {
		began := time.Now()
		var wg sync.WaitGroup
		for i, m := range all {
			wg.Go(func() {
				for range each {
					l, err := m.Acquire(b.Context(), fmt.Sprint("k", i))
					if err == nil {
						err = l.Release(b.Context())
					}
					if err != nil {
						b.Error(err)
						return
					}
				}
			})
		}
		wg.Wait()
		return time.Since(began)
	}
	pairs(one)
	pairs(four)
	for b.Loop() {
		var ratios []float64
		for range turns {
			o, f := pairs(one), pairs(four)
			ratios = append(ratios, o.Seconds()/f.Seconds())
			b.ReportMetric(clients*each/o.Seconds(), "one-pairs/s")
		}
		slices.Sort(ratios)
		b.ReportMetric(ratios[0], "least")
		b.ReportMetric(ratios[turns/2], "median")
		b.ReportMetric(ratios[turns-1], "largest")
	}
}
