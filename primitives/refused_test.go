package primitives_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/lockfabric/lockfabric/fabric"
	"github.com/lockfabric/lockfabric/primitives"
)

// untouched stores a record as another version would, and returns what looks whether it is still there.
func untouched(t *testing.T, bucket jetstream.KeyValue, key, value string) (check func(what string)) {
	t.Helper()
	rev, err := bucket.PutString(waitContext(t), key, value)
	if err != nil {
		t.Fatal(err)
	}
	return func(what string) {
		t.Helper()
		if e, err := bucket.Get(waitContext(t), key); err != nil || e.Revision() != rev || string(e.Value()) != value {
			t.Errorf("%s has touched it: %v, %v", what, e, err)
		}
	}
}

// everyOperation are those that begin without a hold.
func everyOperation(m *fabric.Manager, key string) map[string]func(ctx context.Context) error {
	mu, rw, sem := primitives.NewMutex(m, key), primitives.NewRWMutex(m, key), primitives.NewSemaphore(m, key, 3)
	b, d, la := primitives.NewBarrier(m, key, 1), primitives.NewDoubleBarrier(m, key, 1), primitives.NewLatch(m, key, 1)
	e, o := primitives.NewElection(m, key), primitives.NewOnce(m, key)
	return map[string]func(ctx context.Context) error{
		"Lock":                func(ctx context.Context) error { return second(mu.Lock(ctx)) },
		"TryLock":             func(ctx context.Context) error { return second(mu.TryLock(ctx)) },
		"RLock":               func(ctx context.Context) error { return second(rw.RLock(ctx)) },
		"ULock":               func(ctx context.Context) error { return second(rw.ULock(ctx)) },
		"Acquire":             func(ctx context.Context) error { return second(sem.Acquire(ctx)) },
		"TryAcquire":          func(ctx context.Context) error { return second(sem.TryAcquireN(ctx, 2)) },
		"Drain":               func(ctx context.Context) error { return second(sem.Drain(ctx)) },
		"Resize":              func(ctx context.Context) error { return sem.Resize(ctx, 5) },
		"State":               func(ctx context.Context) error { return second(sem.State(ctx)) },
		"Delete":              sem.Delete,
		"Wait":                func(ctx context.Context) error { return second(b.Wait(ctx)) },
		"Reset":               b.Reset,
		"Delete of a barrier": b.Delete,
		"Enter":               func(ctx context.Context) error { return second(d.Enter(ctx)) },
		"CountDown":           la.CountDown,
		"Add":                 func(ctx context.Context) error { return la.Add(ctx, 1) },
		"Wait for a latch":    la.Wait,
		"Count":               func(ctx context.Context) error { return second(la.Count(ctx)) },
		"Delete of a latch":   la.Delete,
		"Campaign":            func(ctx context.Context) error { return second(e.Campaign(ctx, nil)) },
		"Leader":              func(ctx context.Context) error { return second(e.Leader(ctx)) },
		"Candidates":          func(ctx context.Context) error { return second(e.Candidates(ctx)) },
		"Observe": func(ctx context.Context) error {
			for _, err := range e.Observe(ctx) {
				return err
			}
			return nil
		},
		"Do":     func(ctx context.Context) error { return second(o.Do(ctx, gives("x"))) },
		"Result": func(ctx context.Context) error { _, _, err := o.Result(ctx); return err },
		"Forget": o.Forget,
	}
}

// P21: a record that another version wrote is refused with a typed error, by every operation, and stays as it is.
func TestP21_RecordsOfOtherVersions(t *testing.T) {
	t.Parallel()
	onSite(t, singleSite, func(t *testing.T, s *site) {
		m, locks := s.manager(t), s.locks(t)
		for name, c := range map[string]struct {
			value string
			err   error
		}{
			"newer": {`{"v":9,"kind":"lock","holders":[{"id":"new"}]}`, fabric.ErrNewerSchema},
			"kind":  {`{"v":3,"kind":"orchard","trees":3}`, fabric.ErrNewerSchema},
			// As commit 62afb6d wrote it.
			"older": {`{"v":1,"kind":"lock","holders":[{"id":"KEhK9WKlOk6gjeKTNQeWme.1","mode":"X","token":"00001795695529503789","ttl":30000,"since":1795695529503}]}`, fabric.ErrMalformedRecord},
		} {
			t.Run(name, func(t *testing.T) {
				for what := range everyOperation(m, "") {
					key := fmt.Sprint("p21-", s.numbers.Add(1)) // stored under itself
					check := untouched(t, locks, key, c.value)
					if err := everyOperation(m, key)[what](waitContext(t)); !errors.Is(err, c.err) {
						t.Errorf("%s: %v", what, err)
					}
					if _, err := m.Collect(waitContext(t), key); err != nil {
						t.Errorf("collect: %v", err)
					}
					check(what)
				}
			})
		}
	})
}

// P21, where a newer version comes to write a record in which this one holds: what it can't read it leaves alone.
func TestP21_ANewerVersionTakesOver(t *testing.T) {
	t.Parallel()
	onSite(t, singleSite, func(t *testing.T, s *site) {
		locks := s.locks(t)
		ok := func(err error) {
			if err != nil {
				t.Fatal(err)
			}
		}
		for name, prepare := range map[string]func(m *fabric.Manager, key string) func(ctx context.Context) error{
			"release": func(m *fabric.Manager, key string) func(ctx context.Context) error {
				return lock(t, primitives.NewMutex(m, key)).Release
			},
			"upgrade": func(m *fabric.Manager, key string) func(ctx context.Context) error {
				l, err := primitives.NewRWMutex(m, key).ULock(waitContext(t))
				ok(err)
				return l.Upgrade
			},
			"queued": func(m *fabric.Manager, key string) func(ctx context.Context) error {
				mu := primitives.NewMutex(m, key)
				lock(t, mu)
				next := async(func() (*primitives.Lock, error) { return mu.Lock(waitContext(t)) })
				waitQueue(t, m, key, 1)
				return func(context.Context) error { return receive(t, next).err }
			},
			"signal": func(m *fabric.Manager, key string) func(ctx context.Context) error {
				mu := primitives.NewMutex(m, key)
				l := lock(t, mu)
				return func(ctx context.Context) error { return primitives.NewCond(mu, "c").Signal(ctx, l) }
			},
			"proclaim": func(m *fabric.Manager, key string) func(ctx context.Context) error {
				l, err := primitives.NewElection(m, key).Campaign(waitContext(t), nil)
				ok(err)
				return func(ctx context.Context) error { return l.Proclaim(ctx, nil) }
			},
			"give one back": func(m *fabric.Manager, key string) func(ctx context.Context) error {
				p, err := primitives.NewSemaphore(m, key, 2).AcquireN(waitContext(t), 2)
				ok(err)
				return func(ctx context.Context) error { return p.ReleaseN(ctx, 1) }
			},
			"leave": func(m *fabric.Manager, key string) func(ctx context.Context) error {
				member, err := primitives.NewDoubleBarrier(m, key, 1).Enter(waitContext(t))
				ok(err)
				return member.Leave
			},
		} {
			t.Run(name, func(t *testing.T) {
				m, key := s.manager(t), fmt.Sprint("p21-", s.numbers.Add(1))
				op := prepare(m, key)
				check := untouched(t, locks, key, `{"v":9,"kind":"lock","turns":[]}`)
				if err := op(waitContext(t)); !errors.Is(err, fabric.ErrNewerSchema) {
					t.Error(err)
				}
				check(name)
			})
		}
	})
}

// Every operation says what is wrong with its call, and leaves nothing.
func TestEveryOperationBadlyCalled(t *testing.T) {
	t.Parallel()
	onSite(t, singleSite, func(t *testing.T, s *site) {
		m, closed, key := s.manager(t), s.manager(t), s.key(t)
		if err := closed.Close(); err != nil {
			t.Fatal(err)
		}
		ended, cancel := context.WithCancel(context.Background())
		cancel()
		late, cancel := context.WithDeadline(context.Background(), time.Now().Add(-time.Hour))
		defer cancel()
		for why, c := range map[string]struct {
			m   *fabric.Manager
			key string
			ctx context.Context
			err error
		}{
			"ended context": {m, key, ended, context.Canceled},
			"late context":  {m, key, late, context.DeadlineExceeded},
			"closed":        {closed, key, waitContext(t), fabric.ErrClosed},
			"no name":       {m, "", waitContext(t), fabric.ErrInvalidName},
			"bad name":      {m, "a\nb", waitContext(t), fabric.ErrInvalidName},
		} {
			for what, op := range everyOperation(c.m, c.key) {
				if err := op(c.ctx); !errors.Is(err, c.err) {
					t.Errorf("%s, %s: %v", why, what, err)
				}
			}
		}
		for what, op := range everyOperation(m, key) {
			func() {
				defer func() {
					if recover() == nil {
						t.Errorf("%s without a context: no panic", what)
					}
				}()
				_ = op(nil)
			}()
		}
		expectFree(t, m, key)
	})
}

func TestNilFunctions(t *testing.T) {
	t.Parallel()
	onSite(t, singleSite, func(t *testing.T, s *site) {
		m, ctx := s.manager(t), waitContext(t)
		mu := primitives.NewMutex(m, "nothing-to-call")
		doErr := mu.Do(ctx, nil)
		runErr := primitives.NewElection(m, "no-leader").Run(ctx, nil, nil)
		_, onceErr := primitives.NewOnce(m, "never").Do(ctx, nil)
		held, err := mu.Lock(ctx)
		if err != nil {
			t.Fatal(err)
		}
		l, untilErr := primitives.NewCond(mu, "changed").WaitUntil(ctx, held, nil)
		for what, err := range map[string]error{"Mutex.Do": doErr, "Election.Run": runErr, "Once.Do": onceErr, "Cond.WaitUntil": untilErr} {
			if !errors.Is(err, fabric.ErrInvalidOption) || !strings.Contains(err.Error(), "function") {
				t.Errorf("%s without a function: %v", what, err)
			}
		}
		if l != held || l.Err() != nil {
			t.Errorf("the mutex is not held after WaitUntil without a function: %v", l)
		}
		if st := m.Stats(); st.Operations != 1 {
			t.Errorf("%d operations beside the Lock, without a function to call", st.Operations-1)
		}
	})
}

// What reads a name that is something else says so, and takes nobody for a leader.
func TestReadsOfAnotherKind(t *testing.T) {
	t.Parallel()
	onSite(t, singleSite, func(t *testing.T, s *site) {
		m, key := s.manager(t), s.key(t)
		p, err := primitives.NewSemaphore(m, key, 2).Acquire(waitContext(t))
		if err != nil {
			t.Fatal(err)
		}
		defer release(t, p)
		e := primitives.NewElection(m, key)
		for what, err := range map[string]error{
			"leader":               second(e.Leader(waitContext(t))),
			"candidates":           second(e.Candidates(waitContext(t))),
			"state of a barrier":   second(primitives.NewBarrier(m, key, 2).State(waitContext(t))),
			"state of a gate":      second(primitives.NewDoubleBarrier(m, key, 2).State(waitContext(t))),
			"count of a latch":     second(primitives.NewLatch(m, key, 2).Count(waitContext(t))),
			"state of a semaphore": second(primitives.NewSemaphore(m, s.lockOf(t, m), 2).State(waitContext(t))),
		} {
			if !errors.Is(err, fabric.ErrKindMismatch) {
				t.Errorf("%s: %v", what, err)
			}
		}
		for l, err := range e.Observe(waitContext(t)) {
			if !errors.Is(err, fabric.ErrKindMismatch) {
				t.Errorf("observed %+v, %v", l, err)
			}
			break
		}
	})
}

// lockOf returns a name that a lock has.
func (s *site) lockOf(t *testing.T, m *fabric.Manager) string {
	t.Helper()
	key := s.key(t)
	l, err := m.Acquire(waitContext(t), key)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { release(t, l) })
	return key
}

// What is refused for a number, a length or a kind says which there is, and what is counted.
func TestRefusalsSayWhatThereIs(t *testing.T) {
	t.Parallel()
	onSite(t, singleSite, func(t *testing.T, s *site) {
		m, long := s.manager(t), make([]byte, 64<<10+1)
		ctx := waitContext(t)
		ok := func(err error) {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
		}
		permits, parties, members, opened, leads := s.key(t), s.key(t), s.key(t), s.key(t), s.key(t)
		_, err := primitives.NewSemaphore(m, permits, 2).Acquire(ctx)
		ok(err)
		party := async(func() (int, error) { return primitives.NewBarrier(m, parties, 2).Wait(ctx) })
		member := async(func() (*primitives.Member, error) { return primitives.NewDoubleBarrier(m, members, 2).Enter(ctx) })
		ok(primitives.NewLatch(m, opened, 1).CountDown(ctx))
		leader, err := primitives.NewElection(m, leads).Campaign(ctx, nil)
		ok(err)
		waitQueue(t, m, parties, 1)
		waitInfo(t, m, members, "a member", func(i fabric.Info) bool { return i.Arrived == 1 })
		latch := primitives.NewLatch(m, s.key(t), 1<<31-1)
		for want, err := range map[string]error{
			`semaphore "` + permits + `" has 2 permits, not 3`:                        second(primitives.NewSemaphore(m, permits, 3).Acquire(ctx)),
			`semaphore "` + permits + `" has 2 permits, 5 were asked for`:             second(primitives.NewSemaphore(m, permits, 2).AcquireN(ctx, 5)),
			`barrier "` + parties + `" has 2 parties, not 3`:                          second(primitives.NewBarrier(m, parties, 3).Wait(ctx)),
			`gate "` + members + `" has 2 parties, not 4`:                             second(primitives.NewDoubleBarrier(m, members, 4).Enter(ctx)),
			`latch "` + opened + `" has 1 counts, not 2`:                              primitives.NewLatch(m, opened, 2).CountDown(ctx),
			`latch "` + opened + `" is open already`:                                  primitives.NewLatch(m, opened, 1).Add(ctx, 1),
			`can take 0 counts more, not 1`:                                           latch.Add(ctx, 1),
			`"` + permits + `" is of kind semaphore, not lock`:                        second(primitives.NewMutex(m, permits).Lock(ctx)),
			`"` + permits + `" is of kind semaphore, not barrier`:                     second(primitives.NewBarrier(m, permits, 2).State(ctx)),
			`"` + leads + `" is of kind lock, not latch`:                              primitives.NewLatch(m, leads, 2).Wait(ctx),
			`a value of 65537 bytes for "` + leads + `": 65536 are the most; keep it`: leader.Proclaim(ctx, long),
			`a value of 1025 bytes for`:                                               second(primitives.NewElection(m, s.key(t)).Campaign(ctx, long[:1025])),
			`65537 bytes`:                                                             second(primitives.NewOnce(m, s.key(t)).Do(ctx, gives(string(long)))),
			`, fewer where they have to be escaped; keep it elsewhere`:                second(primitives.NewOnce(m, s.key(t)).Do(ctx, gives(strings.Repeat("\x01", 64<<10)))),
		} {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%v; want %s", err, want)
			}
		}
		ok(primitives.NewBarrier(m, parties, 2).Reset(ctx))
		receive(t, party)
		_, err = primitives.NewDoubleBarrier(m, members, 2).Enter(ctx)
		ok(err)
		must(t, member)
	})
}
