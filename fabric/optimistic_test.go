package fabric_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/lockfabric/lockfabric/fabric"
	"github.com/lockfabric/lockfabric/internal/jskv"
	"github.com/lockfabric/lockfabric/internal/test/testserver"
	"github.com/lockfabric/lockfabric/kv"
)

func stampOf(t *testing.T, m *fabric.Manager, key string) fabric.Stamp {
	t.Helper()
	st, err := m.Optimistic(waitContext(t), key)
	if err != nil {
		t.Fatal(err)
	}
	return st
}

func expectValid(t *testing.T, m *fabric.Manager, st fabric.Stamp, want bool) {
	t.Helper()
	if valid, err := m.Validate(waitContext(t), st); err != nil || valid != want {
		t.Errorf("a stamp of %q: %v, %v, want %v", st.Key(), valid, err, want)
	}
}

// validStamp takes a stamp that is valid, also after what is done meanwhile. Where somebody serves as the coalescer it may take
// several: an owner that is behind may write once more what is over.
func (s *site) validStamp(t *testing.T, m *fabric.Manager, take func() (fabric.Stamp, error), meanwhile func()) (st fabric.Stamp) {
	t.Helper()
	eventually(t, "a valid stamp", func() bool {
		var valid bool
		var err error
		if st, err = take(); err == nil {
			meanwhile()
			valid, err = m.Validate(waitContext(t), st)
		}
		if err != nil && !errors.Is(err, fabric.ErrHeld) || !valid && !s.coalesced {
			t.Fatalf("a stamp of %q: %v, %v", st.Key(), valid, err)
		}
		return valid
	})
	return st
}

// checks are the scratch writes of validations.
func checks(msg *nats.Msg) bool { return strings.HasSuffix(msg.Subject, "-locks.=v") }

func goesThrough(ctx context.Context, msg *nats.Msg, send jskv.Requester) (*nats.Msg, error) {
	return send(ctx, msg)
}

func TestOptimistic(t *testing.T) {
	runBehaviours(t, []behaviour{
		{"valid until somebody holds", func(t *testing.T, s *site) {
			m, other, key := s.manager(t), s.manager(t), s.key(t)
			st := stampOf(t, m, key)
			expectValid(t, m, st, true)
			expectValid(t, m, st, true)
			expectFree(t, m, key)
			l := acquire(t, other, key)
			expectValid(t, m, st, false)
			release(t, l)
			expectValid(t, m, st, false)
			again := s.validStamp(t, m, func() (fabric.Stamp, error) { return m.Optimistic(waitContext(t), key) }, func() {})
			release(t, acquire(t, m, key))
			expectValid(t, m, again, false)
			expectValid(t, m, fabric.Stamp{}, false)
		}},
		{"who is in the way", func(t *testing.T, s *site) {
			m, other := s.manager(t), s.manager(t)
			for mode, free := range map[fabric.Mode]bool{
				fabric.Shared: true, fabric.Update: true, fabric.IntentShared: true,
				fabric.Exclusive: false, fabric.IntentExclusive: false, fabric.SharedIntentExclusive: false,
			} {
				key := s.key(t)
				l := acquire(t, other, key, fabric.WithMode(mode), fabric.WithOwner("o"))
				_, err := m.Optimistic(waitContext(t), key)
				var held *fabric.HeldError
				switch {
				case free && err != nil:
					t.Errorf("%s: %v", mode, err)
				case free:
					s.validStamp(t, m, func() (fabric.Stamp, error) { return m.Optimistic(waitContext(t), key) }, func() {})
				case !errors.As(err, &held) || !errors.Is(err, fabric.ErrHeld) || held.Owner != "o" || held.Mode != mode || held.Token != l.Token():
					t.Errorf("%s: %v", mode, err)
				}
				release(t, l)
			}
		}},
		{"what is asked for wrongly", func(t *testing.T, s *site) {
			m, key := s.manager(t), s.key(t)
			if _, err := m.Optimistic(waitContext(t), ""); !errors.Is(err, fabric.ErrInvalidName) {
				t.Error(err)
			}
			if _, err := m.OptimisticPath(waitContext(t), "/a"); !errors.Is(err, fabric.ErrInvalidName) {
				t.Error(err)
			}
			st := stampOf(t, m, key)
			if _, err := s.manager(t).Validate(waitContext(t), st); !errors.Is(err, fabric.ErrInvalidOption) {
				t.Errorf("another manager's: %v", err)
			}
			sem, err := m.Claim(waitContext(t), key, fabric.Claim{Kind: fabric.KindSemaphore, Permits: 1, Limit: 2})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := m.Optimistic(waitContext(t), key); !errors.Is(err, fabric.ErrKindMismatch) {
				t.Errorf("a semaphore: %v", err)
			}
			_ = sem.Release(waitContext(t))
			for name, err := range map[string]error{
				"no tries":  m.ReadOptimistic(waitContext(t), key, nil, fabric.WithTries(0)),
				"no option": m.ReadOptimistic(waitContext(t), key, nil, nil),
			} {
				if !errors.Is(err, fabric.ErrInvalidOption) {
					t.Errorf("%s: %v", name, err)
				}
			}
			ended, cancel := context.WithCancel(context.Background())
			cancel()
			if _, err := m.Validate(ended, stampOf(t, m, key)); !errors.Is(err, context.Canceled) {
				t.Errorf("a context that has ended: %v", err)
			}
			_ = m.Close()
			if _, err := m.Validate(waitContext(t), st); !errors.Is(err, fabric.ErrClosed) {
				t.Errorf("a closed manager: %v", err)
			}
		}},
		{"a path", func(t *testing.T, s *site) {
			m, other, root := s.manager(t), s.manager(t), s.key(t)
			take := func() (fabric.Stamp, error) { return m.OptimisticPath(waitContext(t), root+"/b/c") }
			intent := acquire(t, other, root, fabric.WithMode(fabric.IntentExclusive))
			st := s.validStamp(t, m, take, func() {})
			release(t, intent)
			expectValid(t, m, st, false)
			for _, level := range []string{root, root + "/b", root + "/b/c"} {
				st := s.validStamp(t, m, take, func() {})
				l := acquire(t, other, level)
				expectValid(t, m, st, false)
				if _, err := m.OptimisticPath(waitContext(t), root+"/b/c"); !errors.Is(err, fabric.ErrHeld) {
					t.Errorf("held at %s: %v", level, err)
				}
				release(t, l)
			}
			st = s.validStamp(t, m, take, func() { release(t, acquire(t, other, root+"/b/d")) }) // beside it
			if _, err := m.TryAcquire(waitContext(t), root+"/b/c", fabric.WithStamp(st)); !errors.Is(err, fabric.ErrInvalidOption) {
				t.Errorf("acquired by the stamp of a path: %v", err)
			}
		}},
		{"read", readOptimistic},
	}, coalescedSite, beltSite)
}

func readOptimistic(t *testing.T, s *site) {
	m, other, key := s.manager(t), s.manager(t, fabric.WithKeep(0)), s.key(t) // what it releases is free
	calls, failed := 0, errors.New("fn's own")
	read := func(fn func(ctx context.Context) error, opts ...fabric.OptimisticOption) error {
		calls = 0
		return m.ReadOptimistic(waitContext(t), key, func(ctx context.Context) error { calls++; return fn(ctx) }, opts...)
	}
	if err := read(func(context.Context) error { return nil }); err != nil || calls != 1 {
		t.Errorf("undisturbed: %v, %d calls", err, calls)
	}
	if err := read(func(context.Context) error { return failed }); !errors.Is(err, failed) || calls != 1 {
		t.Errorf("an error: %v, %d calls", err, calls)
	}
	err := read(func(context.Context) error {
		if calls == 1 {
			release(t, acquire(t, other, key))
			return failed // of torn data
		}
		return nil
	})
	if err != nil || calls != 2 {
		t.Errorf("written once: %v, %d calls", err, calls)
	}
	shared := func() bool {
		info := inspect(t, other, key)
		return len(info.Holders) == 1 && info.Holders[0].Mode == fabric.Shared
	}
	for _, tries := range []int{1, 3} {
		err = read(func(context.Context) error {
			if !shared() {
				release(t, acquire(t, other, key))
				return failed
			}
			return nil
		}, fabric.WithTries(tries))
		if err != nil || calls != tries+1 {
			t.Errorf("written again and again: %v, %d calls for %d tries", err, calls, tries)
		}
	}
	l := acquire(t, other, key)
	eventually(t, "the reader knows of it", func() bool {
		_, err := m.Optimistic(waitContext(t), key)
		return errors.Is(err, fabric.ErrHeld)
	})
	done := make(chan error, 1)
	go func() {
		done <- read(func(context.Context) error {
			if !shared() {
				t.Error("read beside a writer")
			}
			return nil
		})
	}()
	waitQueue(t, other, key, 1)
	release(t, l)
	if err := receive(t, done); err != nil || calls != 1 {
		t.Errorf("held: %v, %d calls", err, calls)
	}
	expectFree(t, m, key)
	if st := m.Stats(); st.OptimisticReads != 8 || st.OptimisticHits != 3 || st.OptimisticFallbacks != 3 {
		t.Errorf("%d reads, %d hits, %d fallbacks", st.OptimisticReads, st.OptimisticHits, st.OptimisticFallbacks)
	}
}

// TestOptimisticCosts counts the requests of stamps, validations and what is built of them.
func TestOptimisticCosts(t *testing.T) {
	onSite(t, singleSite, func(t *testing.T, s *site) {
		m, w := s.wired(t)
		other, key := s.manager(t), s.key(t)
		var reads, writes *fault
		cost := func(what string, r, wr int, do func()) {
			t.Helper()
			w.heal()
			before := m.Stats().Timeouts
			reads, writes = w.fault(-1, lockRead, goesThrough), w.fault(-1, lockWrite, goesThrough)
			do()
			if (reads.count() != r || writes.count() != wr) && m.Stats().Timeouts == before { // an answer that is late costs more
				t.Errorf("%s: %d reads and %d writes, want %d and %d", what, reads.count(), writes.count(), r, wr)
			}
		}
		read := func() {
			if err := m.ReadOptimistic(waitContext(t), key, func(context.Context) error { return nil }); err != nil {
				t.Error(err)
			}
		}
		var st fabric.Stamp
		cost("a stamp of what was never used", 1, 1, func() { st = stampOf(t, m, key) })
		cost("a validation", 0, 1, func() { expectValid(t, m, st, true) })
		cost("the next stamp", 0, 0, func() { st = stampOf(t, m, key) })
		cost("a read that hits", 0, 1, read)
		cost("a lock by a stamp", 0, 1, func() {
			l, err := m.TryAcquire(waitContext(t), key, fabric.WithStamp(st))
			if err != nil {
				t.Fatal(err)
			}
			release(t, l)
			writes.w.mu.Lock()
			writes.hits-- // the release
			writes.w.mu.Unlock()
		})
		release(t, acquire(t, other, key))
		cost("a stamp of what others use", 1, 0, func() {
			w.heal()
			_, _ = m.Validate(waitContext(t), st)
			reads, writes = w.fault(-1, lockRead, goesThrough), w.fault(-1, lockWrite, goesThrough)
			st = stampOf(t, m, key)
		})
		held := acquire(t, other, key)
		release(t, held)
		cost("a validation that fails", 0, 1, func() { expectValid(t, m, st, false) })
		cost("another one", 0, 1, func() { expectValid(t, m, st, false) })
		cost("a path of three", 3, 3, func() {
			if _, err := m.OptimisticPath(waitContext(t), strings.ReplaceAll(s.key(t), "/", "-")+"/b/c"); err != nil {
				t.Error(err)
			}
		})
	})
}

// M42: markers expire, and the key looks then as it did before anybody held it.
func TestM42_AStampOutlivesNoMarker(t *testing.T) {
	onSite(t, singleSite, func(t *testing.T, s *site) {
		t.Parallel()
		m, other, key := s.manager(t), s.manager(t), s.key(t)
		st := stampOf(t, m, key)
		release(t, acquire(t, other, key))
		stream, err := s.jetStream(t).Stream(waitContext(t), "KV_"+fabric.DefaultFabric+"-locks")
		if err != nil {
			t.Fatal(err)
		}
		enc, err := kv.EncodeName(key)
		if err != nil {
			t.Fatal(err)
		}
		if err := stream.Purge(waitContext(t), jetstream.WithPurgeSubject("$KV."+fabric.DefaultFabric+"-locks."+enc)); err != nil {
			t.Fatal(err)
		}
		expectValid(t, m, st, false)
		if _, err := m.TryAcquire(waitContext(t), key, fabric.WithStamp(st)); !errors.Is(err, fabric.ErrStale) {
			t.Errorf("acquired by it: %v", err)
		}
	})
}

// M43: a stamp ends with the buckets that it was taken of, also where the record stands again at its very revision.
func TestM43_AStampEndsWithItsBuckets(t *testing.T) {
	onSite(t, singleSite, func(t *testing.T, s *site) {
		for name, replace := range map[string]func(t *testing.T, own, key string){
			"made again": func(t *testing.T, own, key string) {
				if err := s.jetStream(t).DeleteStream(waitContext(t), "KV_"+own+"-locks"); err != nil {
					t.Fatal(err)
				}
				s.manager(t, fabric.WithFabric(own), fabric.WithTTL(time.Second))
			},
			"restored": func(t *testing.T, own, key string) { restoreAtItsRevision(t, s, own, key) },
		} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				own, key := s.fabric(t), "k"
				opts := []fabric.Option{fabric.WithFabric(own), fabric.WithTTL(time.Second)}
				m := s.manager(t, opts...)
				other, cut := s.cutOff(t, opts...)
				st := stampOf(t, m, key)
				acquire(t, other, key)
				cut() // so that m has to find out by itself
				replace(t, own, key)
				expectValid(t, m, st, false)
				if _, err := m.TryAcquire(waitContext(t), key, fabric.WithStamp(st)); !errors.Is(err, fabric.ErrStale) {
					t.Errorf("acquired by it: %v", err)
				}
				eventually(t, "a new stamp is valid", func() bool { // when nothing more is noticed of the buckets
					valid, err := m.Validate(waitContext(t), stampOf(t, m, key))
					return valid && err == nil
				})
			})
		}
	})
}

// restoreAtItsRevision restores the locks bucket as it was before anybody held the key, with its marker at the
// revision that it had. Everything else is gone.
func restoreAtItsRevision(t *testing.T, s *site, own, key string) {
	t.Helper()
	js, ctx := s.jetStream(t), waitContext(t)
	stream, err := js.Stream(ctx, "KV_"+own+"-locks")
	if err != nil {
		t.Fatal(err)
	}
	cfg := stream.CachedInfo().Config
	now, err := stream.GetLastMsgForSubject(ctx, "$KV."+own+"-locks."+key)
	if err != nil {
		t.Fatal(err)
	}
	cfg.FirstSeq = now.Sequence - 1 // the hold's: the marker was the one before
	testserver.Replace(t, js, cfg)
	if err := s.bucket(t, own+"-locks").Purge(ctx, key); err != nil {
		t.Fatal(err)
	}
}

// M45: a lock that is acquired by a stamp is granted over the state of the stamp, or not at all.
func TestM45_WithStampGrantsOverItsRevisionOnly(t *testing.T) {
	onBothSites(t, func(t *testing.T, s *site) {
		t.Parallel()
		m, w := s.wired(t)
		other, key := s.manager(t), s.key(t)
		try := func(st fabric.Stamp, opts ...fabric.AcquireOption) (*fabric.Lock, error) {
			return m.TryAcquire(waitContext(t), key, append(opts, fabric.WithStamp(st))...)
		}
		st := stampOf(t, m, key)
		release(t, acquire(t, other, key)) // changed, and changed back
		if l, err := try(st); !errors.Is(err, fabric.ErrStale) || !errors.Is(err, fabric.ErrNotAcquired) {
			t.Errorf("changed and changed back: %v, %v", l, err)
		}
		expectFree(t, m, key)

		// It changes while the write is on its way.
		st = stampOf(t, m, key)
		f := w.fault(1, lockPut, func(ctx context.Context, msg *nats.Msg, send jskv.Requester) (*nats.Msg, error) {
			release(t, acquire(t, other, key))
			return send(ctx, msg)
		})
		if l, err := try(st); !errors.Is(err, fabric.ErrStale) {
			t.Errorf("changed on the way: %v, %v", l, err)
		}
		f.end()

		reader := acquire(t, other, key, fabric.WithMode(fabric.Shared))
		st = stampOf(t, m, key)
		if _, err := try(st); !errors.Is(err, fabric.ErrHeld) {
			t.Errorf("beside a reader: %v", err)
		}
		l, err := try(st, fabric.WithMode(fabric.Update))
		if err != nil {
			t.Fatal(err)
		}
		release(t, l)
		release(t, reader)

		// The answer to the grant is lost.
		st = stampOf(t, m, key)
		f = w.fault(1, lockPut, deaf)
		if l, err = try(st); err != nil {
			t.Fatalf("granted without an answer: %v", err)
		}
		expectHolder(t, other, key, l)
		f.end()
		release(t, l)

		for what, err := range map[string]error{
			"the zero stamp":  second(try(fabric.Stamp{})),
			"another's":       second(other.TryAcquire(waitContext(t), key, fabric.WithStamp(st))),
			"of another name": second(m.TryAcquire(waitContext(t), s.key(t), fabric.WithStamp(st))),
			"a wait":          second(m.Acquire(waitContext(t), key, fabric.WithStamp(st))),
		} {
			if what == "the zero stamp" && !errors.Is(err, fabric.ErrStale) || what != "the zero stamp" && !errors.Is(err, fabric.ErrInvalidOption) {
				t.Errorf("%s: %v", what, err)
			}
		}
		expectFree(t, m, key)
	})
}

func second[T any](_ T, err error) error { return err }

// M39: a check that others keep from being made gives way, and a read holds instead.
func TestM39_AReadThatIsPutOffHolds(t *testing.T) {
	onSite(t, singleSite, func(t *testing.T, s *site) {
		t.Parallel()
		m, w := s.wired(t)
		key := s.key(t)
		f := w.fault(-1, checks, func(context.Context, *nats.Msg, jskv.Requester) (*nats.Msg, error) {
			return &nats.Msg{Data: []byte(`{"error":{"code":400,"err_code":10164,"description":"wrong last sequence"},"stream":"KV","seq":0}`)}, nil
		})
		calls := 0
		if err := m.ReadOptimistic(waitContext(t), key, func(context.Context) error { calls++; return nil }); err != nil || calls != 2 {
			t.Errorf("%v, %d calls", err, calls)
		}
		if f.count() != 5 || m.Stats().OptimisticFallbacks != 1 {
			t.Errorf("%d checks, %d fallbacks", f.count(), m.Stats().OptimisticFallbacks)
		}
	})
}
