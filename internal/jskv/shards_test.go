package jskv_test

import (
	"errors"
	"testing"
	"time"

	"github.com/lockfabric/lockfabric/internal/jskv"
	"github.com/lockfabric/lockfabric/kv"
)

// What happens to one of several locks buckets is known of that one, and nothing is done to the others.
func TestOneShardIsSetBackOrReplaced(t *testing.T) {
	nc := dial(t, startServer(t))
	js := jetStream(t, nc)
	b := open(t, nc, jskv.Config{Shards: 3})
	if names := kv.LocksBuckets("f", 3); len(b.Locks) != 3 || b.Locks[2].Name() != names[2] || b.Quarantine != 0 {
		t.Fatalf("%d buckets, %v", len(b.Locks), b.Quarantine)
	}
	var seen []uint64
	for s, l := range b.Locks {
		for range 10 * s { // so that they stand apart
			update(t, l, "other", "v", last(t, l, "other"))
		}
		seen = append(seen, update(t, l, "k", "v", 0))
	}
	seen[2] += 1 << 30 // far above what the others have
	if err := b.NoteTTL(testContext(t), time.Minute, seen); err != nil {
		t.Fatal(err)
	}
	there := func(b *jskv.Buckets, shards ...int) {
		t.Helper()
		for _, s := range shards {
			if e, err := b.Locks[s].Get(testContext(t), "k"); err != nil || e.Deleted {
				t.Errorf("the record in shard %d: %+v, %v", s, e, err)
			}
		}
	}
	// The third is below what was noted of it: it alone is moved up.
	next := open(t, nc, jskv.Config{})
	if next.Quarantine == 0 || next.Locks[2].Last() <= seen[2] || next.Locks[0].Incarnation() != b.Locks[0].Incarnation() {
		t.Errorf("quarantine of %v, last revision %d of %d that were seen", next.Quarantine, next.Locks[2].Last(), seen[2])
	}
	there(next, 0, 1)
	if _, err := b.Verify(testContext(t), seen); !errors.Is(err, jskv.ErrBucketGone) {
		t.Errorf("verified one that was moved up: %v", err)
	}
	if err := next.ConfirmIncarnation(testContext(t)); err != nil {
		t.Fatal(err)
	}
	if q := open(t, nc, jskv.Config{}).Quarantine; q != 0 {
		t.Errorf("quarantine of %v afterwards", q)
	}
	if err := js.DeleteStream(testContext(t), next.Locks[1].Stream()); err != nil {
		t.Fatal(err)
	}
	if _, err := next.Verify(testContext(t), make([]uint64, 3)); !errors.Is(err, jskv.ErrBucketGone) {
		t.Errorf("verified one that is gone: %v", err)
	}
	again := open(t, nc, jskv.Config{Seen: seen})
	if again.Quarantine == 0 || again.Locks[1].Last() <= seen[1] {
		t.Errorf("quarantine of %v, revisions after %d; %d was seen", again.Quarantine, again.Locks[1].Last(), seen[1])
	}
	there(again, 0)
	if err := again.NoteSeen(testContext(t), 1, again.Locks[1].Last()+1<<20); err != nil {
		t.Fatal(err)
	}
	if err := again.ConfirmIncarnation(testContext(t)); err != nil {
		t.Fatal(err)
	}
	if q := open(t, nc, jskv.Config{}).Quarantine; q != 0 {
		t.Errorf("quarantine of %v after both", q)
	}
}

// last returns the key's revision.
func last(t *testing.T, b *jskv.Bucket, key string) uint64 {
	t.Helper()
	e, err := b.Get(testContext(t), key)
	if err != nil {
		t.Fatal(err)
	}
	return e.Revision
}

func TestNumberOfShards(t *testing.T) {
	nc := dial(t, startServer(t))
	js := jetStream(t, nc)
	open(t, nc, jskv.Config{Fabric: "one"})
	open(t, nc, jskv.Config{Shards: 2})
	for _, wrong := range []jskv.Config{{Fabric: "f", Shards: 1}, {Fabric: "f", Shards: 3}, {Fabric: "one", Shards: 2}} {
		if _, err := jskv.Open(testContext(t), nc, wrong); !errors.Is(err, kv.ErrShards) {
			t.Errorf("%+v: %v", wrong, err)
		}
	}
	if b := open(t, nc, jskv.Config{Again: 5}); len(b.Locks) != 2 {
		t.Errorf("%d shards", len(b.Locks))
	}
	// A bucket of another division, and one that says nonsense.
	for _, says := range []string{"3", "many", "1000000"} {
		s, err := js.Stream(testContext(t), "KV_f-locks-1")
		if err != nil {
			t.Fatal(err)
		}
		cfg := s.CachedInfo().Config
		if cfg.Metadata["lockfabric.schema"] != "2" {
			t.Errorf("schema %s: a program that knows no shards would take it", cfg.Metadata["lockfabric.schema"])
		}
		cfg.Metadata["lockfabric.shards"] = says
		if _, err := js.UpdateStream(testContext(t), cfg); err != nil {
			t.Fatal(err)
		}
		if _, err := jskv.Open(testContext(t), nc, jskv.Config{Fabric: "f"}); !errors.Is(err, kv.ErrShards) {
			t.Errorf("a bucket of %s shards: %v", says, err)
		}
	}
	for _, name := range []string{"KV_f-leases", "KV_f-locks-0", "KV_f-locks-1", "KV_f-waits"} {
		if err := js.DeleteStream(testContext(t), name); err != nil {
			t.Fatal(err)
		}
	}
	if b := open(t, nc, jskv.Config{Again: 3}); len(b.Locks) != 3 {
		t.Errorf("%d shards where there were 3 before", len(b.Locks))
	}
}
