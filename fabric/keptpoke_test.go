package fabric_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/lockfabric/lockfabric/fabric"
	"github.com/lockfabric/lockfabric/kv"
)

// keeper returns a manager that keeps locks.
func (s *site) keeper(t *testing.T, opts ...fabric.Option) *fabric.Manager {
	t.Helper()
	return s.manager(t, append(opts, fabric.WithRoad(fabric.RoadDirect), fabric.WithKeep(time.Hour))...)
}

// attempts are the ways to ask for a lock without waiting for it.
var attempts = map[string]func(ctx context.Context, m *fabric.Manager, key string) error{
	"try": func(ctx context.Context, m *fabric.Manager, key string) error {
		l, err := m.TryAcquire(ctx, key)
		return released(ctx, l, err)
	},
	"shared": func(ctx context.Context, m *fabric.Manager, key string) error {
		l, err := m.TryAcquire(ctx, key, fabric.WithMode(fabric.Shared))
		return released(ctx, l, err)
	},
	"set": func(ctx context.Context, m *fabric.Manager, key string) error {
		set, err := m.TryAcquireAll(ctx, fabric.Names(key))
		if err != nil {
			return err
		}
		return set.Release(ctx)
	},
	"stamp": func(ctx context.Context, m *fabric.Manager, key string) error {
		st, err := m.Optimistic(ctx, key)
		if err != nil {
			return err
		}
		if valid, err := m.Validate(ctx, st); !valid || err != nil {
			return errors.Join(errors.New("not valid"), err)
		}
		return nil
	},
}

func released(ctx context.Context, l *fabric.Lock, err error) error {
	if err != nil {
		return err
	}
	return l.Release(ctx)
}

// Who does not wait is granted what nobody uses, and refused what is used, which stays as it is.
func TestK5_WhoDoesNotWaitGetsWhatNobodyUses(t *testing.T) {
	for _, s := range []*site{singleSite, coalescedSite} {
		onSite(t, s, func(t *testing.T, s *site) {
			m, other := s.keeper(t), s.manager(t)
			for name, attempt := range attempts {
				ctx := waitContext(t)
				var key string
				// On a busy machine the process may not answer in time. Then its lock is used for all that the other one knows, and
				// a request that comes late may find it unused.
				eventually(t, name+": it stays, and its process says that nobody uses it", func() bool {
					key = s.keptAlready(t, m)
					l := acquire(t, m, key)
					if err := attempt(ctx, other, key); !errors.Is(err, fabric.ErrHeld) {
						t.Errorf("%s of a used one: %v", name, err)
					}
					release(t, l)
					h := inspect(t, other, key).Holders
					if len(h) > 0 && (len(h) > 1 || h[0].ID != l.ID() || h[0].Kept == fabric.KeptUsed) {
						t.Fatalf("%s: held by %+v", name, h)
					}
					return len(h) > 0 && h[0].Kept == fabric.KeptIdle
				})
				eventually(t, name+" is granted", func() bool {
					err := attempt(ctx, other, key)
					if err != nil && !errors.Is(err, fabric.ErrHeld) {
						t.Fatalf("%s: %v", name, err)
					}
					return err == nil
				})
				expectFree(t, other, key)
			}
		})
	}
}

// A process that does not answer keeps its entry, and its lock is refused in the end.
func TestK5_NoAnswer(t *testing.T) {
	onSite(t, singleSite, func(t *testing.T, s *site) {
		nc := s.conn(t)
		key := s.keptAlready(t, newManager(t, nc, fabric.WithKeep(time.Hour)))
		nc.Close()
		other := s.manager(t)
		if h := inspect(t, other, key).Holders; len(h) != 1 || h[0].Kept != fabric.KeptUnknown {
			t.Errorf("held by %+v", h)
		}
		if _, err := other.TryAcquire(waitContext(t), key, fabric.WithoutTakeover()); !errors.Is(err, fabric.ErrHeld) {
			t.Errorf("try: %v", err)
		}
	})
}

// Messages that are malformed, about something else or forged neither release nor write anything, and answer nobody
// but a process that has asked.
func TestK5_ForgedPokesChangeNothing(t *testing.T) {
	onSite(t, singleSite, func(t *testing.T, s *site) {
		m, nc := s.keeper(t), s.conn(t)
		key, another := s.keptAlready(t, m), s.keptAlready(t, m)
		l := acquire(t, m, key)
		id := l.ID()
		lease := leaseOf(id)
		process, _, _ := strings.Cut(lease, "-")
		hints := "lf." + fabric.Name(m) + ".p."
		enc, _ := kv.EncodeName(key)
		other, _ := kv.EncodeName(another)
		sub, err := nc.SubscribeSync(hints + "asker")
		if err != nil {
			t.Fatal(err)
		}
		revision := inspect(t, m, another).Revision
		send := func(text, reply string) {
			if err := nc.PublishMsg(&nats.Msg{Subject: hints + process, Reply: reply, Data: []byte(text)}); err != nil {
				t.Fatal(err)
			}
		}
		for _, text := range []string{
			enc + " give up ", enc + " give up " + id + "0", other + " give up " + id, "x give up " + id, enc + " give up nobody-1.1",
			enc + " give up \x00", enc + " give", " unused ", " unused nobody-1", " answer ", " answer " + id + " released", " answer " + lease + " .1.2.",
			enc + " 99999999999999999999", enc + " -1", enc + " " + strings.Repeat("x", 1<<16), " ", "",
		} {
			send(text, hints+"asker")
		}
		for _, reply := range []string{"$KV." + fabric.Name(m) + "-locks." + other, hints + "asker.more", "asker", ""} {
			send(enc+" give up "+id, reply)
			send(" unused "+lease, reply)
		}
		send(enc+" give up "+id, hints+"asker") // the last one, and the only one that is answered
		if msg, err := sub.NextMsgWithContext(waitContext(t)); err != nil || string(msg.Data) != " answer "+id+" used" {
			t.Errorf("%q, %v", msg.Data, err)
		}
		if n, _, _ := sub.Pending(); n > 0 {
			t.Errorf("%d answers more", n)
		}
		release(t, l)
		if now := inspect(t, m, another); now.Revision != revision || now.Kind != fabric.KindLock {
			t.Errorf("written: %+v", now)
		}
		for _, key := range []string{key, another} {
			joins := m.Stats().KeptJoins
			release(t, acquire(t, m, key))
			if m.Stats().KeptJoins != joins+1 {
				t.Errorf("%s is not kept any more", key)
			}
		}
	})
}

// Beside goroutines that take a lock again and again, with a pause between, a try of another process comes through.
func TestK5_ATryBesideAHammer(t *testing.T) {
	for _, s := range []*site{singleSite, coalescedSite} {
		onSite(t, s, func(t *testing.T, s *site) {
			m, other := s.keeper(t), s.manager(t)
			key := s.keptAlready(t, m)
			ctx, cancel := context.WithCancel(waitContext(t))
			var holders atomic.Int32
			var all sync.WaitGroup
			use := func(l *fabric.Lock) error {
				if holders.Add(1) != 1 {
					t.Error("two hold")
				}
				holders.Add(-1)
				return l.Release(ctx)
			}
			for range 2 {
				all.Go(func() {
					for ctx.Err() == nil {
						if l, err := m.Acquire(ctx, key); err == nil {
							_ = use(l)
						}
						time.Sleep(time.Millisecond)
					}
				})
			}
			for range 10 {
				eventually(t, "the try is granted", func() bool {
					l, err := other.TryAcquire(ctx, key)
					if err != nil && !errors.Is(err, fabric.ErrHeld) {
						t.Fatal(err)
					}
					return err == nil && use(l) == nil
				})
			}
			cancel()
			all.Wait()
		})
	}
}

// BenchmarkKeptGoesToAnother measures the first acquire, or try, of another process of a lock that is kept unused: with
// its process's watch open, and a moment after it was used. Beside that of one that its last user released, and of a new one.
func BenchmarkKeptGoesToAnother(b *testing.B) {
	srv := benchServer(b)
	var managers [3]*fabric.Manager
	for i, opts := range [][]fabric.Option{{fabric.WithKeep(time.Hour)}, nil, nil} {
		nc, err := srv.Connect()
		if err != nil {
			b.Fatal(err)
		}
		defer nc.Close()
		managers[i] = benchManager(b, nc, opts...)
	}
	m, plain, other := managers[0], managers[1], managers[2]
	for name, take := range map[string]func(context.Context, string, ...fabric.AcquireOption) (*fabric.Lock, error){"acquire": other.Acquire, "try": other.TryAcquire} {
		for _, of := range []struct {
			name  string
			user  *fabric.Manager
			round int // keys that are used together
			pause time.Duration
		}{{"kept", m, 200, time.Second}, {"just kept", m, 1, 0}, {"released", plain, 200, time.Second}, {"new", nil, 200, time.Second}} {
			b.Run(name+", "+of.name, func(b *testing.B) {
				var took []time.Duration
				for n := 0; b.Loop(); n++ {
					if n%of.round == 0 {
						b.StopTimer()
						for i := range 3 * of.round {
							if of.user != nil {
								release(b, acquire(b, of.user, fmt.Sprint(b.Name(), b.N, "/", n+i/3)))
							}
						}
						time.Sleep(of.pause) // until all are watched
						b.StartTimer()
					}
					begun := time.Now()
					l, err := take(b.Context(), fmt.Sprint(b.Name(), b.N, "/", n))
					took = append(took, time.Since(begun))
					if err != nil {
						b.Fatal(err)
					}
					release(b, l)
				}
				slices.Sort(took)
				b.ReportMetric(float64(took[len(took)/2].Microseconds()), "µs-median")
				b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "µs-p99")
			})
		}
	}
}
