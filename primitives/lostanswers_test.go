package primitives_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/lockfabric/lockfabric/fabric"
	"github.com/lockfabric/lockfabric/internal/test/faultproxy"
	"github.com/lockfabric/lockfabric/primitives"
)

// lossy is one name, used over a connection that loses messages, and looked at over another one.
type lossy struct {
	t    *testing.T
	m    *fabric.Manager // over the proxy
	look *fabric.Manager
	key  string
}

// is checks what the record says.
func (l *lossy) is(what string, as func(i fabric.Info) bool) {
	l.t.Helper()
	if i := read(l.t, l.look, l.key); !as(i) {
		l.t.Errorf("not %s: %+v", what, i)
	}
}

func (l *lossy) free() { l.t.Helper(); expectFree(l.t, l.look, l.key) }

func (l *lossy) ok(err error) {
	l.t.Helper()
	if err != nil {
		l.t.Errorf("%v", err)
	}
}

// change is one that an operation makes. prepare returns the operation, whose write is going to be lost or
// unanswered, and what has to be true when it has returned nil.
type change struct {
	name    string
	writes  uint64 // that it costs
	reads   uint64
	prepare func(l *lossy) (do func(ctx context.Context) error, made func())
}

var changes = []change{
	{"Mutex.Lock", 1, 0, func(l *lossy) (func(context.Context) error, func()) {
		var held *primitives.Lock
		return func(ctx context.Context) (err error) {
				held, err = primitives.NewMutex(l.m, l.key).Lock(ctx)
				return err
			},
			func() {
				l.is("one holder", func(i fabric.Info) bool { return len(i.Holders) == 1 && i.Holders[0].Token == held.Token() })
				release(l.t, held)
				l.free()
			}
	}},
	{"Mutex.TryLock", 1, 0, func(l *lossy) (func(context.Context) error, func()) {
		var held *primitives.Lock
		return func(ctx context.Context) (err error) {
				held, err = primitives.NewMutex(l.m, l.key).TryLock(ctx)
				return err
			},
			func() { release(l.t, held); l.free() }
	}},
	{"Lock.Release", 1, 0, func(l *lossy) (func(context.Context) error, func()) {
		return lock(l.t, primitives.NewMutex(l.m, l.key)).Release, l.free
	}},
	{"Lock.Upgrade", 1, 0, func(l *lossy) (func(context.Context) error, func()) {
		held, err := primitives.NewRWMutex(l.m, l.key).ULock(waitContext(l.t))
		l.ok(err)
		return held.Upgrade, func() {
			l.is("exclusive", func(i fabric.Info) bool { return len(i.Holders) == 1 && i.Holders[0].Mode == fabric.Exclusive })
			release(l.t, held)
			l.free()
		}
	}},
	{"Lock.Downgrade", 1, 0, func(l *lossy) (func(context.Context) error, func()) {
		held, err := primitives.NewRWMutex(l.m, l.key).Lock(waitContext(l.t))
		l.ok(err)
		return held.Downgrade, func() {
			l.is("shared", func(i fabric.Info) bool { return len(i.Holders) == 1 && i.Holders[0].Mode == fabric.Shared })
			release(l.t, held)
			l.free()
		}
	}},
	{"Semaphore.AcquireN", 1, 0, func(l *lossy) (func(context.Context) error, func()) {
		var p *primitives.Permit
		return func(ctx context.Context) (err error) {
				p, err = primitives.NewSemaphore(l.m, l.key, 3).AcquireN(ctx, 2)
				return err
			},
			func() { taken(l.t, l.look, l.key, 2); release(l.t, p); l.free() }
	}},
	{"Semaphore.Drain", 1, 0, func(l *lossy) (func(context.Context) error, func()) {
		var p *primitives.Permit
		return func(ctx context.Context) (err error) {
				p, err = primitives.NewSemaphore(l.m, l.key, 3).Drain(ctx)
				return err
			},
			func() { taken(l.t, l.look, l.key, 3); release(l.t, p); l.free() }
	}},
	{"Semaphore.Resize", 1, 1, func(l *lossy) (func(context.Context) error, func()) {
		s := primitives.NewSemaphore(l.m, l.key, 3)
		return func(ctx context.Context) error { return s.Resize(ctx, 5) },
			func() {
				l.is("of 5", func(i fabric.Info) bool { return i.Size == 5 })
				l.ok(s.Delete(waitContext(l.t)))
			}
	}},
	{"Semaphore.Delete", 1, 1, func(l *lossy) (func(context.Context) error, func()) {
		s := primitives.NewSemaphore(l.m, l.key, 3)
		l.ok(s.Resize(waitContext(l.t), 5))
		return s.Delete, l.free
	}},
	{"Permit.ReleaseN", 1, 0, func(l *lossy) (func(context.Context) error, func()) {
		p := permits(l.t, primitives.NewSemaphore(l.m, l.key, 3), 3)
		return func(ctx context.Context) error { return p.ReleaseN(ctx, 1) },
			func() { taken(l.t, l.look, l.key, 2); release(l.t, p); l.free() }
	}},
	{"Permit.Release", 1, 0, func(l *lossy) (func(context.Context) error, func()) {
		return permits(l.t, primitives.NewSemaphore(l.m, l.key, 3), 3).Release, l.free
	}},
	{"Barrier.Wait, the last one", 1, 1, func(l *lossy) (func(context.Context) error, func()) {
		first := async(func() (int, error) { return primitives.NewBarrier(l.look, l.key, 2).Wait(waitContext(l.t)) })
		waitQueue(l.t, l.look, l.key, 1)
		b := primitives.NewBarrier(l.m, l.key, 2)
		return func(ctx context.Context) error { _, err := b.Wait(ctx); return err }, func() {
			must(l.t, first)
			l.is("in the second generation, with nobody there", func(i fabric.Info) bool { return i.Generation == 2 && i.Arrived == 0 })
		}
	}},
	{"Barrier.Wait with an action", 2, 1, func(l *lossy) (func(context.Context) error, func()) {
		ran := 0
		b := primitives.NewBarrier(l.m, l.key, 1).WithAction(func(context.Context, uint64) error { ran++; return nil })
		return func(ctx context.Context) error { _, err := b.Wait(ctx); return err }, func() {
			l.is("in the second generation", func(i fabric.Info) bool { return i.Generation == 2 && !i.Acting })
			if ran != 1 {
				l.t.Errorf("the action ran %d times", ran)
			}
		}
	}},
	{"Barrier.Reset", 1, 1, func(l *lossy) (func(context.Context) error, func()) {
		first := async(func() (int, error) { return primitives.NewBarrier(l.look, l.key, 2).Wait(waitContext(l.t)) })
		waitQueue(l.t, l.look, l.key, 1)
		return primitives.NewBarrier(l.m, l.key, 2).Reset, func() {
			if r := receive(l.t, first); !errors.Is(r.err, fabric.ErrBroken) {
				l.t.Errorf("%v", r.err)
			}
			l.is("in the second generation", func(i fabric.Info) bool { return i.Generation == 2 })
		}
	}},
	{"Barrier.Delete", 1, 1, func(l *lossy) (func(context.Context) error, func()) {
		b := primitives.NewBarrier(l.m, l.key, 1)
		_, err := b.Wait(waitContext(l.t))
		l.ok(err)
		return b.Delete, l.free
	}},
	{"DoubleBarrier.Enter", 1, 1, func(l *lossy) (func(context.Context) error, func()) {
		var in *primitives.Member
		return func(ctx context.Context) (err error) {
				in, err = primitives.NewDoubleBarrier(l.m, l.key, 1).Enter(ctx)
				return err
			},
			func() {
				l.is("open for one", func(i fabric.Info) bool { return i.Open && len(i.Holders) == 1 })
				l.ok(in.Leave(waitContext(l.t)))
				l.free()
			}
	}},
	{"Member.Leave", 1, 0, func(l *lossy) (func(context.Context) error, func()) {
		in, err := primitives.NewDoubleBarrier(l.m, l.key, 1).Enter(waitContext(l.t))
		l.ok(err)
		return in.Leave, l.free
	}},
	{"Latch.CountDown", 1, 1, func(l *lossy) (func(context.Context) error, func()) {
		return primitives.NewLatch(l.m, l.key, 3).CountDown, func() { l.is("at 2", func(i fabric.Info) bool { return i.Count == 2 }) }
	}},
	{"Latch.Add", 1, 1, func(l *lossy) (func(context.Context) error, func()) {
		la := primitives.NewLatch(l.m, l.key, 3)
		l.ok(la.CountDown(waitContext(l.t)))
		return func(ctx context.Context) error { return la.Add(ctx, 2) }, func() { l.is("at 4", func(i fabric.Info) bool { return i.Count == 4 }) }
	}},
	{"Latch.Wait", 1, 2, func(l *lossy) (func(context.Context) error, func()) {
		la := primitives.NewLatch(l.look, l.key, 2)
		l.ok(la.CountDown(waitContext(l.t)))
		counted := async(func() (bool, error) {
			waitQueue(l.t, l.look, l.key, 1)
			return true, la.CountDown(waitContext(l.t))
		})
		return primitives.NewLatch(l.m, l.key, 2).Wait, func() {
			must(l.t, counted)
			l.is("open, with nobody there", func(i fabric.Info) bool { return i.Open && len(i.Waiters) == 0 })
		}
	}},
	{"Latch.Delete", 1, 1, func(l *lossy) (func(context.Context) error, func()) {
		la := primitives.NewLatch(l.m, l.key, 1)
		l.ok(la.CountDown(waitContext(l.t)))
		return la.Delete, l.free
	}},
	{"Cond.Wait", 1, 1, func(l *lossy) (func(context.Context) error, func()) {
		held := lock(l.t, primitives.NewMutex(l.m, l.key))
		mu := primitives.NewMutex(l.look, l.key)
		signalled := async(func() (bool, error) {
			waitInfo(l.t, l.look, l.key, "one who waits", func(i fabric.Info) bool { return len(i.Conditions) == 1 })
			other := lock(l.t, mu)
			err := primitives.NewCond(mu, "c").Signal(waitContext(l.t), other)
			release(l.t, other)
			return true, err
		})
		return func(ctx context.Context) (err error) {
			held, err = primitives.NewCond(primitives.NewMutex(l.m, l.key), "c").Wait(ctx, held)
			return err
		}, func() { must(l.t, signalled); release(l.t, held); l.free() }
	}},
	{"Cond.Signal", 1, 0, func(l *lossy) (func(context.Context) error, func()) { return signals(l, false) }},
	{"Cond.Broadcast", 1, 0, func(l *lossy) (func(context.Context) error, func()) { return signals(l, true) }},
	{"Election.Campaign", 1, 0, func(l *lossy) (func(context.Context) error, func()) {
		var lead *primitives.Leadership
		return func(ctx context.Context) (err error) {
				lead, err = primitives.NewElection(l.m, l.key).Campaign(ctx, []byte("me"))
				return err
			}, func() {
				l.is("led by one", func(i fabric.Info) bool { return len(i.Holders) == 1 && i.Holders[0].Token == lead.Term() })
				l.ok(lead.Resign(waitContext(l.t)))
				l.free()
			}
	}},
	{"Leadership.Proclaim", 1, 0, func(l *lossy) (func(context.Context) error, func()) {
		lead, err := primitives.NewElection(l.m, l.key).Campaign(waitContext(l.t), []byte("me"))
		l.ok(err)
		return func(ctx context.Context) error { return lead.Proclaim(ctx, []byte("you")) }, func() {
			now, err := primitives.NewElection(l.look, l.key).Leader(waitContext(l.t))
			if l.ok(err); string(now.Value) != "you" || now.Term != lead.Term() {
				l.t.Errorf("%+v", now)
			}
			l.ok(lead.Resign(waitContext(l.t)))
		}
	}},
	{"Leadership.Resign", 1, 0, func(l *lossy) (func(context.Context) error, func()) {
		lead, err := primitives.NewElection(l.m, l.key).Campaign(waitContext(l.t), nil)
		l.ok(err)
		return lead.Resign, l.free
	}},
	{"Once.Do, to begin", 2, 1, func(l *lossy) (func(context.Context) error, func()) { return once(l, false) }},
	{"Once.Do, to finish", 1, 0, func(l *lossy) (func(context.Context) error, func()) { return once(l, true) }},
	{"Once.Forget", 1, 1, func(l *lossy) (func(context.Context) error, func()) {
		o := primitives.NewOnce(l.m, l.key)
		_, err := o.Do(waitContext(l.t), func(context.Context, uint64) ([]byte, error) { return nil, nil })
		l.ok(err)
		return o.Forget, l.free
	}},
}

// signals wakes one of two, or both.
func signals(l *lossy, all bool) (do func(context.Context) error, made func()) {
	mu := primitives.NewMutex(l.look, l.key)
	ctx, cancel := context.WithCancel(waitContext(l.t))
	var waits []<-chan result[*primitives.Lock]
	for n := range 2 {
		held := lock(l.t, mu)
		waits = append(waits, async(func() (*primitives.Lock, error) { return primitives.NewCond(mu, "c").Wait(ctx, held) }))
		waitInfo(l.t, l.look, l.key, "those who wait", func(i fabric.Info) bool { return len(i.Conditions) == 1 && len(i.Conditions[0].Waiters) == n+1 })
	}
	lossyMu := primitives.NewMutex(l.m, l.key)
	held := lock(l.t, lossyMu)
	c := primitives.NewCond(lossyMu, "c")
	do, want := func(ctx context.Context) error { return c.Signal(ctx, held) }, 1
	if all {
		do, want = func(ctx context.Context) error { return c.Broadcast(ctx, held) }, 2
	}
	return do, func() {
		l.is(fmt.Sprintf("%d awake", want), func(i fabric.Info) bool { return len(i.Waiters) == want })
		release(l.t, held)
		for range want {
			release(l.t, must(l.t, waits[0]))
			waits = waits[1:]
		}
		cancel()
		for _, w := range waits {
			if r := receive(l.t, w); !errors.Is(r.err, context.Canceled) || r.value == nil {
				l.t.Errorf("%+v", r)
			} else {
				release(l.t, r.value)
			}
		}
		l.free()
	}
}

// once runs something once, and loses what begins it or what stores its result.
func once(l *lossy, finish bool) (do func(context.Context) error, made func()) {
	runs, begun, end := 0, make(chan struct{}), make(chan struct{})
	run := func(ctx context.Context) error {
		_, err := primitives.NewOnce(l.m, l.key).Do(ctx, func(context.Context, uint64) ([]byte, error) {
			runs++
			close(begun)
			<-end
			return []byte("result"), nil
		})
		return err
	}
	do = run
	if finish {
		ran := async(func() (bool, error) { return true, run(waitContext(l.t)) })
		receive(l.t, begun)
		do = func(context.Context) error {
			close(end)
			return receive(l.t, ran).err
		}
	} else {
		close(end)
	}
	return do, func() {
		got, done, err := primitives.NewOnce(l.look, l.key).Result(waitContext(l.t))
		if err != nil || !done || string(got) != "result" || runs != 1 {
			l.t.Errorf("%q, %v, %v after %d runs", got, done, err, runs)
		}
	}
}

// Every change that a primitive makes, once with its request lost and once with the answer to it: the call
// succeeds, and has changed what it says once.
func TestLostAnswers(t *testing.T) {
	t.Parallel()
	onSite(t, singleSite, func(t *testing.T, s *site) {
		proxy, nc := s.behindProxy(t)
		m, look := newManager(t, nc), s.manager(t)
		for lost, lose := range map[string]func(faultproxy.Match) *faultproxy.Rule{"answer": proxy.DropRepliesTo, "request": proxy.DropRequests} {
			for _, c := range changes {
				t.Run(c.name+", "+lost+" lost", func(t *testing.T) {
					t.Parallel()
					l := &lossy{t: t, m: m, look: look, key: fmt.Sprintf("lost/%d", s.numbers.Add(1))}
					do, made := c.prepare(l)
					subject := "$KV." + fabric.DefaultFabric + "-locks." + strings.ReplaceAll(l.key, "/", ".")
					rule := lose(faultproxy.Times(1, faultproxy.Subject(subject)))
					defer rule.Remove()
					if err := do(waitContext(t)); err != nil {
						t.Fatal(err)
					}
					if rule.Count() != 1 {
						t.Fatalf("%d lost", rule.Count())
					}
					made()
				})
			}
		}
	})
}

// Who waits at a barrier, is cut off, and comes back when the barrier has tripped and was deleted: nobody can say
// any more what became of its generation.
func TestBarrierDeletedUnseen(t *testing.T) {
	t.Parallel()
	onSite(t, singleSite, func(t *testing.T, s *site) {
		proxy, nc := s.behindProxy(t, nats.MaxReconnects(-1), nats.ReconnectWait(10*time.Millisecond))
		key, look := s.key(t), s.manager(t)
		away, here := primitives.NewBarrier(newManager(t, nc), key, 2), primitives.NewBarrier(look, key, 2)
		wait := async(func() (int, error) { return away.Wait(waitContext(t)) })
		waitQueue(t, look, key, 1)
		proxy.Cut()
		if _, err := here.Wait(waitContext(t)); err != nil {
			t.Fatal(err)
		}
		if err := here.Delete(waitContext(t)); err != nil {
			t.Fatal(err)
		}
		proxy.Heal()
		if r := receive(t, wait); !errors.Is(r.err, fabric.ErrUncertain) || errors.Is(r.err, fabric.ErrLost) {
			t.Errorf("%v", r.err)
		}
	})
}
