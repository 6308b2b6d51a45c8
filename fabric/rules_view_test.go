package fabric_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/lockfabric/lockfabric/fabric"
	"github.com/lockfabric/lockfabric/internal/jskv"
)

// What a reader may believe, and what a busy server means.

// answerWith answers every request with this reply.
func answerWith(reply *nats.Msg) action {
	return func(context.Context, *nats.Msg, jskv.Requester) (*nats.Msg, error) { return reply, nil }
}

// readNow asks the leader for the lock's entry, as a manager does, and returns
// the answer.
func readNow(t *testing.T, s *site, m *fabric.Manager, w *wire, key string) *nats.Msg {
	t.Helper()
	var reply *nats.Msg
	f := w.fault(1, about(t, key, lockRead), func(ctx context.Context, msg *nats.Msg, send jskv.Requester) (*nats.Msg, error) {
		var err error
		reply, err = surely(ctx, msg, send)
		return reply, err
	})
	inspect(t, m, key)
	f.end()
	if reply == nil {
		t.Fatal("nothing was read")
	}
	return reply
}

func TestRule4_OldRecordsAreIgnored(t *testing.T) {
	t.Parallel()
	// hold returns a lock that is held, and an answer from before it was.
	hold := func(t *testing.T, s *site, m *fabric.Manager, w *wire, key string, used bool) (*fabric.Lock, *nats.Msg) {
		if used {
			release(t, acquire(t, m, key))
		}
		old := readNow(t, s, m, w, key)
		return acquire(t, m, key), old
	}
	for _, b := range []behaviour{
		{"a read older than the hold does not end it", func(t *testing.T, s *site) {
			m, w := s.wired(t)
			key := s.key(t)
			l, old := hold(t, s, m, w, key, true)
			f := w.fault(-1, about(t, key, lockRead), answerWith(old))
			ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
			defer cancel()
			if !l.IsValid(ctx) {
				t.Error("IsValid believes it")
			}
			if info, err := m.Inspect(ctx, key); !errors.Is(err, fabric.ErrUnavailable) && !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("Inspect returns %+v, %v", info, err)
			}
			// Neither does the poll of the hold's watch.
			n := f.count()
			eventually(t, "polls of the watch", func() bool { return f.count() > n+1 }) // each after 11 s
			if err := l.Err(); err != nil {
				t.Errorf("the watch believes it: %v", err)
			}
			w.heal()
			expectHolder(t, m, key, l)
			release(t, l)
		}},
		{"one read that finds nothing does not end it", func(t *testing.T, s *site) {
			m, w := s.wired(t)
			key := s.key(t)
			l, absent := hold(t, s, m, w, key, false)
			f := w.fault(1, about(t, key, lockRead), answerWith(absent))
			if !l.IsValid(waitContext(t)) {
				t.Error("IsValid believes it")
			}
			if f.count() != 1 {
				t.Fatal("IsValid did not read")
			}
			expectHolder(t, m, key, l)
			release(t, l)
		}},
		{"a hold lost to a false absence leaves no ghost", func(t *testing.T, s *site) {
			m, w := s.wired(t)
			key, other := s.key(t), s.manager(t)
			l, absent := hold(t, s, m, w, key, false)
			w.fault(-1, about(t, key, lockRead), answerWith(absent))
			waitLost(t, l)
			w.heal()
			release(t, acquire(t, other, key)) // long before the lease could end
		}},
		{"a waiter that seems to be gone leaves no ghost", func(t *testing.T, s *site) {
			m, w := s.wired(t)
			key, other := s.key(t), s.manager(t)
			absent := readNow(t, s, m, w, key)
			holder := acquire(t, other, key)
			wait := queue(t, waitContext(t), m, key)
			first := inspect(t, other, key).Waiters[0].ID
			f := w.fault(-1, about(t, key, lockRead), answerWith(absent))
			eventually(t, "the waiter believes it and queues again", func() bool { return m.Stats().Operations > 1 })
			f.end()
			eventually(t, "one entry, a new one", func() bool {
				q := inspect(t, other, key).Waiters
				return len(q) == 1 && q[0].ID != first
			})
			release(t, holder)
			release(t, granted(t, wait))
			expectFree(t, other, key)
		}},
		{"a try refused on an old record is decided on a new one", func(t *testing.T, s *site) {
			m, w := s.wired(t)
			key, other := s.key(t), s.manager(t)
			l := acquire(t, other, key)
			old := readNow(t, s, m, w, key) // shows the other's hold
			release(t, l)
			expectFree(t, m, key) // this process has seen newer
			f := w.fault(3, about(t, key, lockRead), answerWith(old))
			mine, err := m.TryAcquire(waitContext(t), key)
			if err != nil {
				t.Fatalf("try: %v after %d old answers", err, f.count())
			}
			expectHolder(t, other, key, mine)
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

func TestRule5_BusyIsRetried(t *testing.T) {
	t.Parallel()
	for _, b := range []behaviour{
		{"until it works", func(t *testing.T, s *site) {
			m, w := s.wired(t)
			key, other := s.key(t), s.manager(t)
			const n = 20
			for range 2 {
				before := m.Stats().Busy
				w.fault(n, about(t, key, lockWrite), busy)
				l := acquire(t, m, key)
				expectHolder(t, other, key, l)
				if got := m.Stats().Busy - before; got < n {
					t.Errorf("%d busy answers counted, %d were given", got, n)
				}
				w.fault(n, about(t, key, lockWrite), busy)
				release(t, l)
				expectFree(t, other, key)
			}
			w.fault(n, about(t, key, lockWrite), busy)
			l, err := m.TryAcquire(waitContext(t), key)
			if err != nil {
				t.Fatalf("a try on a free lock: %v", err)
			}
			release(t, l)
		}},
		{"also with fail-fast", func(t *testing.T, s *site) {
			m, w := s.wired(t, fabric.WithFailFast())
			key := s.key(t)
			w.fault(20, about(t, key, lockWrite), busy)
			inAHurry(t, m, func() error {
				l, err := m.Acquire(waitContext(t), key)
				if err == nil {
					_ = l.Release(waitContext(t))
				}
				return err
			})
		}},
		{"until the context ends, then it is unknown", func(t *testing.T, s *site) {
			m, w := s.wired(t)
			key, other := s.key(t), s.manager(t)
			f := w.fault(-1, about(t, key, lockWrite), busy)
			ctx, cancel := context.WithCancel(waitContext(t))
			waits := acquireAsync(ctx, m, key)
			for range 5 {
				receive(t, f.hit)
			}
			cancel()
			if err := receive(t, waits).err; !errors.Is(err, context.Canceled) || !errors.Is(err, fabric.ErrNotAcquired) {
				t.Errorf("acquire: %v", err)
			}
			w.heal()
			release(t, acquire(t, other, key))
			expectFree(t, other, key)
		}},
	} {
		t.Run(b.name, func(t *testing.T) {
			onBothSites(t, func(t *testing.T, s *site) {
				t.Parallel()
				b.run(t, s)
			})
		})
	}
}

// inAHurry does what fails fast, again where an answer was late or an election was on, as on a busy machine.
func inAHurry(t *testing.T, m *fabric.Manager, fn func() error) {
	t.Helper()
	eventually(t, "done in a hurry", func() bool {
		before := m.Stats().Timeouts
		err := fn()
		if late := m.Stats().Timeouts > before || errors.Is(err, nats.ErrNoResponders); err != nil && (!late || !errors.Is(err, fabric.ErrUnavailable)) {
			t.Fatal(err)
		}
		return err == nil
	})
}

// Not every code that nats.go maps to the same error is one.
func TestRule5_ConflictIsNotBusy(t *testing.T) {
	t.Parallel()
	onSite(t, singleSite, func(t *testing.T, s *site) {
		m, w := s.wired(t)
		key := s.key(t)
		l := acquire(t, s.manager(t), key)
		f := w.fault(-1, about(t, key, lockWrite), func(ctx context.Context, msg *nats.Msg, send jskv.Requester) (*nats.Msg, error) {
			return send(ctx, msg)
		})
		_, err := m.TryAcquire(waitContext(t), key)
		if !errors.Is(err, fabric.ErrHeld) {
			t.Errorf("try: %v", err)
		}
		if st := m.Stats(); (st.Conflicts != 1 || st.Busy != 0 || f.count() != 1) && st.Timeouts == 0 {
			t.Errorf("%+v, %d writes", st, f.count())
		}
		release(t, l)
	})
}
