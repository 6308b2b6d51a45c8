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

func TestWatch(t *testing.T) {
	runBehaviours(t, []behaviour{
		{"every change", watchChanges},
		{"a slow loop gets the last state", watchSlowly},
		{"key deleted by another tool", watchDeleted},
		{"reconnect and election", watchDisturbed},
		{"buckets deleted", watchBucketsGone},
		{"how it ends", watchEnds},
	}, shardedSite)
}

// told is what a watch in the background tells.
type told struct {
	info fabric.Info
	err  error
}

// watching watches in the background, and keeps all that is told in order.
func watching(t *testing.T, ctx context.Context, m *fabric.Manager, key string) <-chan told {
	t.Helper()
	out := make(chan told, 1000)
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	t.Cleanup(func() { cancel(); <-done })
	go func() {
		defer close(done)
		defer close(out)
		for info, err := range m.Watch(ctx, key) {
			out <- told{info, err}
		}
	}()
	return out
}

// until takes what is told until it is as wanted, and holds it against the rule
// that nothing older comes later.
func until(t *testing.T, c <-chan told, last *fabric.Info, what string, so func(fabric.Info) bool) {
	t.Helper()
	for {
		next := receive(t, c)
		if next.err != nil {
			t.Fatalf("%s: %v", what, next.err)
		}
		if r := next.info.Revision; r != 0 && r <= last.Revision {
			t.Fatalf("%s: revision %d after %d", what, r, last.Revision)
		}
		*last = next.info
		if so(next.info) {
			return
		}
	}
}

func heldBy(l *fabric.Lock) func(fabric.Info) bool {
	return func(i fabric.Info) bool {
		return len(i.Holders) == 1 && i.Holders[0].ID == l.ID() && i.Holders[0].Token == l.Token() && i.Holders[0].Lease.PID != 0
	}
}

func isFree(i fabric.Info) bool { return len(i.Holders)+len(i.Waiters) == 0 }

func watchChanges(t *testing.T, s *site) {
	key, m, observer := s.key(t), s.manager(t), s.manager(t)
	c := watching(t, waitContext(t), observer, key)
	var last fabric.Info
	until(t, c, &last, "a lock that nobody used", isFree)
	l := acquire(t, m, key)
	until(t, c, &last, "grant", heldBy(l))
	if last.Holders[0].Own {
		t.Error("somebody else's hold is called the observer's own")
	}
	first := queue(t, waitContext(t), m, key)
	until(t, c, &last, "one waiter", func(i fabric.Info) bool { return len(i.Waiters) == 1 })
	ctx, cancel := context.WithCancel(waitContext(t))
	second := queue(t, ctx, observer, key)
	until(t, c, &last, "two waiters", func(i fabric.Info) bool { return len(i.Waiters) == 2 && i.Waiters[1].Own && !i.Waiters[0].Own })
	cancel()
	if g := receive(t, second); !errors.Is(g.err, context.Canceled) {
		t.Errorf("given up with %v", g.err)
	}
	until(t, c, &last, "one waiter left", func(i fabric.Info) bool { return len(i.Waiters) == 1 })
	release(t, l)
	next := granted(t, first)
	until(t, c, &last, "the next one", heldBy(next))
	release(t, next)
	until(t, c, &last, "release", isFree)
}

// Whatever the loop's body takes, and whatever happens meanwhile, the newest
// state is told.
func watchSlowly(t *testing.T, s *site) {
	key, m := s.key(t), s.manager(t, fabric.WithKeep(0)) // each acquire is a change
	ctx, cancel := context.WithCancel(waitContext(t))
	defer cancel()
	var held *fabric.Lock
	rounds, states := 0, 0
	for info, err := range s.manager(t).Watch(ctx, key) {
		if err != nil {
			t.Fatalf("after %d rounds: %v", rounds, err)
		}
		states++
		if held != nil && !heldBy(held)(info) {
			continue
		}
		if rounds++; rounds > 20 {
			break
		}
		// The watch hears of these while its loop is busy here.
		for range 5 {
			if held != nil {
				release(t, held)
			}
			held = acquire(t, m, key)
		}
	}
	if rounds != 21 || states > 21+20*9 {
		t.Errorf("%d rounds, %d states", rounds, states)
	}
}

func watchDeleted(t *testing.T, s *site) {
	key, m := s.key(t), s.manager(t)
	enc, err := kv.EncodeName(key)
	if err != nil {
		t.Fatal(err)
	}
	l := acquire(t, m, key)
	c := watching(t, waitContext(t), s.manager(t), key)
	var last fabric.Info
	until(t, c, &last, "held", heldBy(l))
	if err := s.locks(t, enc).Delete(waitContext(t), enc); err != nil {
		t.Fatal(err)
	}
	until(t, c, &last, "deleted", isFree)
	l = acquire(t, m, key)
	until(t, c, &last, "held again", heldBy(l))
	// Without a marker of the tool's own; the server writes one a moment later.
	name := s.locks(t, enc).Bucket()
	stream, err := s.jetStream(t).Stream(waitContext(t), "KV_"+name)
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Purge(waitContext(t), jetstream.WithPurgeSubject("$KV."+name+"."+enc)); err != nil {
		t.Fatal(err)
	}
	until(t, c, &last, "erased", isFree)
	l = acquire(t, m, key)
	until(t, c, &last, "held once more", heldBy(l))
	release(t, l)
}

func watchDisturbed(t *testing.T, s *site) {
	name := s.fabric(t)
	named := fabric.WithFabric(name)
	nc, m := s.conn(t), s.manager(t, named)
	c := watching(t, waitContext(t), newManager(t, nc, named), "k")
	var last fabric.Info
	until(t, c, &last, "free", isFree)
	for range 3 {
		if err := nc.ForceReconnect(); err != nil {
			t.Fatal(err)
		}
		l := acquire(t, m, "k")
		until(t, c, &last, "grant after a reconnect", heldBy(l))
		if s.cluster != nil {
			if err := s.cluster.StepDown(waitContext(t), "KV_"+kv.LocksBuckets(name, s.shards)[kv.Shard("k", s.shards)]); err != nil {
				t.Fatal(err)
			}
		}
		release(t, l)
		until(t, c, &last, "release after an election", isFree)
	}
}

func watchBucketsGone(t *testing.T, s *site) {
	name := s.fabric(t)
	named := []fabric.Option{fabric.WithFabric(name), fabric.WithTTL(3 * time.Second)}
	m := s.manager(t, named...)
	l := acquire(t, m, "k")
	c := watching(t, waitContext(t), s.manager(t, named...), "k")
	var last fabric.Info
	until(t, c, &last, "held", heldBy(l))
	s.deleteBuckets(t, name)
	until(t, c, &last, "free on new buckets", isFree)
	l = acquire(t, m, "k")
	until(t, c, &last, "held on new buckets", heldBy(l))
	release(t, l)
	until(t, c, &last, "release on new buckets", isFree)
}

func watchEnds(t *testing.T, s *site) {
	m, key := s.manager(t), s.key(t)
	ctx, cancel := context.WithCancel(waitContext(t))
	c := watching(t, ctx, m, key)
	if first := receive(t, c); first.err != nil {
		t.Fatal(first.err)
	}
	cancel()
	if end := receive(t, c); !errors.Is(end.err, context.Canceled) {
		t.Errorf("cancelled: %v", end.err)
	}
	if more, ok := <-c; ok {
		t.Errorf("told after the end: %+v", more)
	}
	if end := receive(t, watching(t, ctx, m, "a\nb")); !errors.Is(end.err, fabric.ErrInvalidName) {
		t.Errorf("bad name: %v", end.err)
	}
	bad := s.key(t)
	enc, err := kv.EncodeName(bad)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.locks(t, enc).Put(waitContext(t), enc, []byte("no record")); err != nil {
		t.Fatal(err)
	}
	if end := receive(t, watching(t, waitContext(t), m, bad)); !errors.Is(end.err, fabric.ErrMalformedRecord) {
		t.Errorf("unreadable: %v", end.err)
	}
	c = watching(t, waitContext(t), m, key)
	if first := receive(t, c); first.err != nil {
		t.Fatal(first.err)
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	if end := receive(t, c); !errors.Is(end.err, fabric.ErrClosed) {
		t.Errorf("closed: %v", end.err)
	}
}
