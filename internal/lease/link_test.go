package lease_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lockfabric/lockfabric/internal/jskv"
	"github.com/lockfabric/lockfabric/internal/lease"
	"github.com/lockfabric/lockfabric/kv"
)

// wire is a connection to a bucket. Each direction takes half of the trip time and
// keeps its order, as TCP does; a request that was given up arrives all the same.
type wire struct {
	*bucket
	mu       sync.Mutex
	trip     func() time.Duration
	up, down time.Time // when the last message of each direction arrives
}

// arrival returns when a message that is sent now arrives.
func (w *wire) arrival(last *time.Time) time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	at := time.Now().Add(w.trip() / 2)
	if at.Before(*last) {
		at = *last
	}
	*last = at
	return time.Until(at)
}

func (w *wire) Update(ctx context.Context, key string, value []byte, rev uint64, _ time.Duration) (uint64, error) {
	type answer struct {
		rev uint64
		err error
	}
	c := make(chan answer, 1)
	up := w.arrival(&w.up)
	go func() {
		time.Sleep(up)
		info, _ := lease.Decode(key, value)
		rev, err := w.commit(write{Key: key, Value: value, Base: rev, Info: info})
		time.Sleep(w.arrival(&w.down))
		c <- answer{rev, err}
	}()
	select {
	case a := <-c:
		return a.rev, a.err
	case <-ctx.Done():
		return 0, timeout(ctx)
	}
}

func (w *wire) Get(ctx context.Context, key string) (jskv.Entry, error) {
	c := make(chan jskv.Entry, 1)
	up := w.arrival(&w.up)
	go func() {
		time.Sleep(up)
		e := w.get(key)
		time.Sleep(w.arrival(&w.down))
		c <- e
	}()
	select {
	case e := <-c:
		return e, nil
	case <-ctx.Done():
		return jskv.Entry{}, fmt.Errorf("%w: %w", kv.ErrUnavailable, ctx.Err())
	}
}

// watch passes the entries of its key to the lease, over the same connection.
func (w *wire) watch(l *lease.Lease) (stop func()) {
	return w.Watch(l.ID(), func(e jskv.Entry) {
		time.Sleep(w.arrival(&w.down))
		l.Saw(e)
	})
}

// weather changes the round-trip time at random, up to most: it
// is about the same for some twenty messages, with or without jitter.
func weather(rng *rand.Rand, most time.Duration) func() time.Duration {
	var level, jitter time.Duration
	left := 0
	return func() time.Duration {
		if left--; left < 0 {
			left = rng.IntN(40)
			level = time.Duration(rng.Int64N(int64(most)))
			jitter = most - level
			switch rng.IntN(4) {
			case 0:
				level = most / 1000
			case 1:
				jitter = time.Duration(rng.Int64N(int64(jitter) + 1))
			case 2:
				jitter /= 20
			}
		}
		return level + time.Duration(rng.Int64N(int64(jitter)+1))
	}
}

// One slow answer, after a stopped process or an election, raises
// the expected time above the remaining one. If the next renewal is lost, the lease must not
// wait for it to the end: another one would be answered at once.
func TestLostRenewalAfterASlowAnswer(t *testing.T) {
	for _, c := range []struct{ ttl, slow time.Duration }{
		{30 * sec, 5 * sec}, {30 * sec, 10 * sec}, {3 * sec, sec}, {3 * sec, 5 * sec}, {300 * ms, 500 * ms},
	} {
		t.Run(fmt.Sprint(c.ttl, " after ", c.slow), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBucket()
				link := measured(ms)
				l := create(t, b, lease.Config{TTL: c.ttl, AutoRenew: true, RTT: link})
				time.Sleep(5 * c.ttl)
				link.Observe(c.slow)
				b.hooks(func(n int, _ write) fault { return fault{lost: n == 1} }, nil)
				time.Sleep(5 * c.ttl)
				if !l.Valid() || link.Timeouts() != 1 {
					t.Errorf("%v, %d timeouts", l.Err(), link.Timeouts())
				}
			})
		})
	}
}

// A lease lasts on any link with round trips of less than a third of its TTL
// and less than ten seconds; with a TTL of up to six seconds also without a watch.
func TestNoLossInAnyWeather(t *testing.T) {
	for n, ttl := range []time.Duration{100 * ms, 300 * ms, 900 * ms, 3 * sec, 6 * sec, 15 * sec, 30 * sec, time.Minute} {
		t.Run(ttl.String(), func(t *testing.T) {
			t.Parallel()
			for seed := uint64(n); seed < 80; seed += 8 {
				synctest.Test(t, func(t *testing.T) { inWeather(t, ttl, seed) })
			}
		})
	}
}

func inWeather(t *testing.T, ttl time.Duration, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 7))
	every := []time.Duration{ttl / 3, ttl / 3, ttl / 10, ttl / 2}[rng.IntN(4)]
	w := &wire{bucket: newBucket(), trip: weather(rng, min(ttl/3, 10*sec)-ms)}
	l, err := lease.Create(t.Context(), w, lease.Config{TTL: ttl, RenewEvery: every, AutoRenew: true, Clock: newClock(1)})
	if err != nil {
		t.Fatal(err)
	}
	if ttl > 6*sec {
		defer w.watch(l)()
	}
	time.Sleep(200 * ttl)
	if !l.Valid() {
		t.Errorf("seed %d, TTL %v, renewed every %v: %v after %d renewals", seed, ttl, every, l.Err(), l.Renewals())
	}
	_ = l.Close(context.Background()) // may fail before others have observed the end
	time.Sleep(time.Minute)           // requests under way arrive
}
