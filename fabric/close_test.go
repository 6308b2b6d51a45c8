package fabric_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/lockfabric/lockfabric/fabric"
	"github.com/lockfabric/lockfabric/internal/jskv"
	"github.com/lockfabric/lockfabric/internal/test/faultproxy"
)

var (
	closeRounds = flag.Int("close.rounds", 24, "how many managers TestCloseAtRandomMoments closes")
	closeSeed   = flag.Uint64("close.seed", 1, "seed of TestCloseAtRandomMoments; 0 is a new one")
	closeHolds  = flag.Int("close.holds", 300, "how many holds TestCloseReleasesWhatItHolds closes")
)

// closeTakes is what Close promises, and room for a machine that is busy. It is less than a lease takes to end.
const closeTakes = 4*time.Second + 11*time.Second

// ended is how a call in the background ended.
type ended struct {
	call string
	err  error
}

// underWay has calls in the background, with contexts that never end.
type underWay struct {
	n   int
	out chan ended
}

func (u *underWay) call(name string, fn func(context.Context) error) {
	if u.out == nil {
		u.out = make(chan ended, 100)
	}
	u.n++
	go func() { u.out <- ended{name, fn(context.Background())} }()
}

// all waits until every call has returned, and not longer than limit.
func (u *underWay) all(limit time.Duration) (got []ended, err error) {
	late := time.After(limit)
	for len(got) < u.n {
		select {
		case e := <-u.out:
			got = append(got, e)
		case <-late:
			return got, fmt.Errorf("%d of %d calls never end; those that did: %v", u.n-len(got), u.n, got)
		}
	}
	return got, nil
}

// everyCall makes every call of m that waits, each under way when it returns: what
// waits for others stands in its queue before the link is broken, what only waits for
// an answer begins after that.
func everyCall(t *testing.T, s *site, m *fabric.Manager, breakLink func()) (u *underWay, held *fabric.Lock) {
	t.Helper()
	other, taken, shared := s.manager(t), s.key(t), s.key(t)
	acquire(t, other, taken)
	acquire(t, other, shared, fabric.WithMode(fabric.Shared))
	both := acquire(t, m, shared, fabric.WithMode(fabric.Shared))
	held = acquire(t, m, s.key(t))
	let, byHand := acquire(t, m, s.key(t)), acquire(t, m, s.key(t), fabric.WithTTL(time.Minute), fabric.WithAutoRenew(false))
	u = new(underWay)
	u.call("Acquire", func(ctx context.Context) error { _, err := m.Acquire(ctx, taken); return err })
	u.call("Acquire under a lease of its own", func(ctx context.Context) error {
		_, err := m.Acquire(ctx, taken, fabric.WithMaxRenewals(3))
		return err
	})
	u.call("Convert", func(ctx context.Context) error { return both.Convert(ctx, fabric.Exclusive) })
	u.call("Watch", func(ctx context.Context) error {
		for _, err := range m.Watch(ctx, taken) {
			if err != nil {
				return err
			}
		}
		return nil
	})
	waitQueue(t, other, taken, 2)
	eventually(t, "a conversion that waits", func() bool {
		return inspect(t, other, shared).Holders[0].Converting != "" || inspect(t, other, shared).Holders[1].Converting != ""
	})
	breakLink()
	free, more := s.key(t), s.key(t)
	u.call("Acquire of a lease of its own", func(ctx context.Context) error {
		_, err := m.Acquire(ctx, free, fabric.WithTTL(time.Minute), fabric.WithAutoRenew(false))
		return err
	})
	u.call("Acquire of a free lock", func(ctx context.Context) error { _, err := m.Acquire(ctx, more); return err })
	u.call("TryAcquire", func(ctx context.Context) error { _, err := m.TryAcquire(ctx, taken); return err })
	u.call("Inspect", func(ctx context.Context) error { _, err := m.Inspect(ctx, taken); return err })
	u.call("List", func(ctx context.Context) error { _, err := m.List(ctx, ""); return err })
	u.call("ForceRelease", func(ctx context.Context) error { _, err := m.ForceRelease(ctx, taken); return err })
	u.call("Release", let.Release)
	u.call("Renew", byHand.Renew)
	u.call("IsValid", func(ctx context.Context) error { held.IsValid(ctx); return nil })
	return u, held
}

// onBothConnections runs fn with a manager that owns its connection and with one that
// was given it, each behind a proxy.
func onBothConnections(t *testing.T, fn func(t *testing.T, s *site, m *fabric.Manager, p *faultproxy.Proxy)) {
	onSite(t, singleSite, func(t *testing.T, s *site) {
		for _, name := range []string{"own", "borrowed"} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				p := faultproxy.New(t, s.server.ClientURL())
				fn(t, s, behind(t, p, name == "own"), p)
			})
		}
	})
}

func behind(t testing.TB, p *faultproxy.Proxy, own bool, opts ...fabric.Option) *fabric.Manager {
	t.Helper()
	if own {
		m, err := fabric.Connect(waitContext(t), p.URL(), opts...)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = m.Close() })
		return m
	}
	nc, err := nats.Connect(p.URL(), nats.ReconnectBufSize(-1), nats.MaxReconnects(-1))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return newManager(t, nc, opts...)
}

// On a link that has gone silent Close, and every call that it meets, end within what
// it promises.
func TestCloseOnASilentLink(t *testing.T) {
	onBothConnections(t, func(t *testing.T, s *site, m *fabric.Manager, p *faultproxy.Proxy) {
		u, held := everyCall(t, s, m, func() { p.Stall(true) })
		defer p.Stall(false)
		<-time.After(200 * time.Millisecond) // all of them ask, and nothing answers
		start := time.Now()
		if err := m.Close(); err != nil {
			t.Error(err)
		}
		took := time.Since(start)
		if took > closeTakes {
			t.Errorf("Close took %v", took)
		}
		got, err := u.all(closeTakes - took)
		if err != nil {
			t.Error(err)
		}
		for _, e := range got {
			if e.call != "IsValid" && !errors.Is(e.err, fabric.ErrClosed) && !errors.Is(e.err, fabric.ErrUnconfirmed) {
				t.Errorf("%s: %v", e.call, e.err)
			}
		}
		if err := held.Err(); !errors.Is(err, fabric.ErrLost) || !errors.Is(err, fabric.ErrClosed) {
			t.Errorf("a hold after Close: %v", err)
		}
		t.Logf("closed in %v, the last call ended after %v", took, time.Since(start))
	})
}

// The creation of a lease is tried again through every error, but not longer than there
// is a manager.
func TestAcquireEndsWithItsManager(t *testing.T) {
	t.Parallel()
	onSite(t, singleSite, func(t *testing.T, s *site) {
		m, w := s.wired(t)
		f := w.fault(-1, func(msg *nats.Msg) bool {
			return leaseWrite(msg) && msg.Header.Get("Nats-Expected-Last-Subject-Sequence") == "0"
		}, notSent)
		waits := acquireAsync(context.Background(), m, s.key(t), fabric.WithTTL(time.Minute), fabric.WithAutoRenew(false))
		receive(t, f.hit)
		if err := m.Close(); err != nil {
			t.Error(err)
		}
		if g := receive(t, waits); !errors.Is(g.err, fabric.ErrClosed) {
			t.Errorf("%+v", g)
		}
	})
}

// TestCloseAtRandomMoments closes managers whose calls are at any point, on links that
// are well, silent or cut. Everything has to end within what Close promises. A round
// that fails is found again by its seed and number.
func TestCloseAtRandomMoments(t *testing.T) {
	onSite(t, singleSite, func(t *testing.T, s *site) {
		seed := *closeSeed
		if seed == 0 {
			seed = rand.Uint64()
		}
		var next atomic.Int64
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				for n := next.Add(1); n <= int64(*closeRounds) && !t.Failed(); n = next.Add(1) {
					if err := closeRound(t, s, rand.New(rand.NewPCG(seed, uint64(n)))); err != nil {
						t.Errorf("seed %d, round %d: %v", seed, n, err)
					}
				}
			})
		}
		wg.Wait()
	})
}

func closeRound(t *testing.T, s *site, rng *rand.Rand) error {
	p, err := faultproxy.Start(s.server.ClientURL())
	if err != nil {
		return err
	}
	defer p.Close()
	opts := []fabric.Option{fabric.WithTTL(time.Duration(1+rng.IntN(20)) * time.Second)}
	var m *fabric.Manager
	if rng.IntN(2) == 0 {
		m, err = fabric.Connect(waitContext(t), p.URL(), opts...)
	} else {
		var nc *nats.Conn
		if nc, err = nats.Connect(p.URL(), nats.ReconnectBufSize(-1), nats.MaxReconnects(-1)); err != nil {
			return err
		}
		defer nc.Close()
		m, err = fabric.New(waitContext(t), nc, opts...)
	}
	if err != nil {
		return err
	}
	keys := []string{s.key(t), s.key(t)} // few, so that calls meet each other
	u := new(underWay)
	for range 2 + rng.IntN(8) {
		key, what, limited := keys[rng.IntN(len(keys))], rng.IntN(6), rng.IntN(2) == 0
		u.call("", func(ctx context.Context) error { return anyCall(ctx, m, key, what, limited) })
	}
	moment := func() { <-time.After(time.Duration(rng.IntN(30_000)) * time.Microsecond) }
	moment()
	switch rng.IntN(12) {
	case 0:
		p.Stall(true)
		moment()
	case 1, 2:
		p.Cut()
		moment()
	case 3:
		p.Cut()
		p.Heal()
		moment()
	}
	start := time.Now()
	for range 1 + rng.IntN(2) {
		u.call("Close", func(context.Context) error { return m.Close() })
	}
	if _, err := u.all(closeTakes); err != nil {
		return fmt.Errorf("%v after Close: %w", time.Since(start), err)
	}
	_, err = m.Acquire(context.Background(), keys[0])
	if !errors.Is(err, fabric.ErrClosed) {
		return fmt.Errorf("after Close: %w", err)
	}
	return nil
}

// anyCall makes one call, and those that it leads to, until the manager ends.
func anyCall(ctx context.Context, m *fabric.Manager, key string, what int, limited bool) error {
	var opts []fabric.AcquireOption
	if limited {
		opts = append(opts, fabric.WithTTL(30*time.Second), fabric.WithAutoRenew(false))
	}
	for {
		var err error
		switch what {
		case 0, 1:
			var l *fabric.Lock
			if l, err = m.Acquire(ctx, key, opts...); err == nil {
				_ = l.Release(ctx)
			}
		case 2:
			var l *fabric.Lock
			if l, err = m.Acquire(ctx, key, append(opts, fabric.WithMode(fabric.Shared))...); err == nil {
				_ = l.Convert(ctx, fabric.Exclusive)
				_ = l.Renew(ctx)
				l.IsValid(ctx)
				_ = l.Release(ctx)
			}
		case 3:
			_, err = m.TryAcquire(ctx, key, opts...) // and keeps it
		case 4:
			for _, err = range m.Watch(ctx, key) { // the last error is what counts
			}
		case 5:
			if _, err = m.Inspect(ctx, key); err == nil {
				_, err = m.List(ctx, "")
			}
		}
		if errors.Is(err, fabric.ErrClosed) {
			return err
		}
		if errors.Is(err, fabric.ErrHeld) {
			what = 4
		}
	}
}

// Close removes its holds from their records itself, so many at a time, and its
// tombstone comes first.
func TestCloseReleasesWhatItHolds(t *testing.T) {
	onSite(t, singleSite, func(t *testing.T, s *site) {
		own := s.fabric(t)
		m, w := s.wired(t, fabric.WithFabric(own))
		next := make(chan int)
		var wg sync.WaitGroup
		var first atomic.Pointer[fabric.Lock]
		for range 64 {
			wg.Go(func() {
				for i := range next {
					l, err := m.Acquire(context.Background(), fmt.Sprintf("k/%d", i))
					if err != nil {
						t.Error(err)
						continue
					}
					first.CompareAndSwap(nil, l)
				}
			})
		}
		for i := range *closeHolds {
			next <- i
		}
		close(next)
		wg.Wait()
		var now, most, early atomic.Int64
		var buried atomic.Bool
		many := make(chan struct{}) // closed when more than 64 requests are under way at a time
		open := sync.OnceFunc(func() { close(many) })
		w.fault(-1, func(msg *nats.Msg) bool { return leaseWrite(msg) || lockWrite(msg) },
			func(ctx context.Context, msg *nats.Msg, send jskv.Requester) (*nats.Msg, error) {
				n := now.Add(1)
				defer now.Add(-1)
				for old := most.Load(); n > old && !most.CompareAndSwap(old, n); old = most.Load() {
				}
				tombstone := strings.Contains(string(msg.Data), `"state":"dead"`)
				if lockWrite(msg) && !buried.Load() {
					early.Add(1)
				}
				if n > 64 {
					open()
				}
				if !tombstone {
					select {
					case <-many:
					case <-ctx.Done():
					}
				}
				reply, err := send(ctx, msg)
				if tombstone {
					buried.Store(true)
				}
				return reply, err
			})
		start := time.Now()
		if err := m.Close(); err != nil {
			t.Error(err)
		}
		took := time.Since(start)
		if took > closeTakes {
			t.Errorf("Close took %v", took)
		}
		left := len(listAll(t, s, own))
		t.Logf("%d holds closed in %v, %d records left, at most %d requests at a time", *closeHolds, took, left, most.Load())
		if n := most.Load(); n > 256 || n <= 64 {
			t.Errorf("%d requests at a time", n)
		}
		if n := early.Load(); n > 0 {
			t.Errorf("%d releases were sent before the tombstone", n)
		}
		if left > 0 && *closeHolds <= 300 {
			t.Errorf("%d records left", left)
		}
	})
}

// listAll lists the locks of a fabric.
func listAll(t *testing.T, s *site, own string) []fabric.Info {
	t.Helper()
	all, err := s.manager(t, fabric.WithFabric(own)).List(waitContext(t), "")
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// What Close can't release is freed by its tombstone.
func TestCloseThatCanNotReleaseHandsOn(t *testing.T) {
	t.Parallel()
	onSite(t, singleSite, func(t *testing.T, s *site) {
		t.Parallel()
		m, w := s.wired(t)
		key := s.key(t)
		l := acquire(t, m, key)
		waits := queue(t, waitContext(t), s.manager(t), key)
		w.fault(-1, lockWrite, func(ctx context.Context, _ *nats.Msg, _ jskv.Requester) (*nats.Msg, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		})
		if err := m.Close(); err != nil {
			t.Error(err)
		}
		if !leaseState(t, s, leaseOf(l.ID())) {
			t.Error("no tombstone")
		}
		granted(t, waits)
	})
}
