package lease_test

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/lockfabric/lockfabric/internal/clock"
	"github.com/lockfabric/lockfabric/internal/jskv"
	"github.com/lockfabric/lockfabric/internal/lease"
	"github.com/lockfabric/lockfabric/kv"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// The fakes stand for these types.
var (
	_ lease.Bucket    = (*jskv.Bucket)(nil)
	_ lease.WatchFunc = (*jskv.Hub)(nil).Watch
)

// fault is the fault of one request.
type fault struct {
	err    error         // fail with it at once, without effect
	delay  time.Duration // before the request arrives
	lost   bool          // it never arrives; the answer is a timeout
	mute   bool          // it arrives, its answer is lost
	late   time.Duration // it arrives this much later than the timeout is reported
	slow   time.Duration // the answer takes this long
	forced bool          // slow, even past the end of the context
	stale  *jskv.Entry   // reads only: the answer
}

// write is a request to write.
type write struct {
	Key   string
	Value []byte
	Base  uint64
	TTL   time.Duration
	Info  lease.Info // decoded
	At    time.Time  // when it arrived
}

// bucket is a KV bucket in memory, with the faults of a real one.
type bucket struct {
	mu       sync.Mutex
	seq      uint64
	keys     map[string]jskv.Entry
	commits  []write
	watches  map[string]map[*watch]struct{}
	lag      time.Duration              // of watches; set before the first
	onWrite  func(n int, w write) fault // n counts from 1; called without locks
	onRead   func(n int, key string) fault
	onCommit func(w write) // called without locks, right after the commit
	nWrites  int
	nReads   int
}

func newBucket() *bucket {
	return &bucket{seq: 1_790_000_000_000_000, keys: map[string]jskv.Entry{}, watches: map[string]map[*watch]struct{}{}}
}

func (b *bucket) Update(ctx context.Context, key string, value []byte, rev uint64, ttl time.Duration) (uint64, error) {
	w := write{Key: key, Value: value, Base: rev, TTL: ttl}
	w.Info, _ = lease.Decode(key, value)
	var f fault
	b.mu.Lock()
	b.nWrites++
	n, hook := b.nWrites, b.onWrite
	b.mu.Unlock()
	if hook != nil {
		f = hook(n, w)
	}
	switch {
	case f.err != nil:
		return 0, f.err
	case f.lost:
		return 0, timeout(ctx)
	case f.late > 0:
		err := timeout(ctx)
		time.AfterFunc(f.late, func() { _, _ = b.commit(w) })
		return 0, err
	}
	if !sleep(ctx, f.delay) {
		return 0, timeout(ctx)
	}
	newRev, err := b.commit(w)
	if f.mute {
		return 0, timeout(ctx)
	}
	if f.forced {
		time.Sleep(f.slow)
	} else if !sleep(ctx, f.slow) {
		return 0, timeout(ctx)
	}
	return newRev, err
}

func (b *bucket) Get(ctx context.Context, key string) (jskv.Entry, error) {
	var f fault
	b.mu.Lock()
	b.nReads++
	n, hook := b.nReads, b.onRead
	b.mu.Unlock()
	if hook != nil {
		f = hook(n, key)
	}
	switch {
	case f.err != nil:
		return jskv.Entry{}, f.err
	case f.stale != nil:
		return *f.stale, nil
	case f.lost:
		<-ctx.Done()
		return jskv.Entry{}, fmt.Errorf("%w: %w", kv.ErrUnavailable, ctx.Err())
	}
	if !sleep(ctx, f.delay) {
		return jskv.Entry{}, fmt.Errorf("%w: %w", kv.ErrUnavailable, ctx.Err())
	}
	e := b.get(key)
	if !sleep(ctx, f.slow) {
		return jskv.Entry{}, fmt.Errorf("%w: %w", kv.ErrUnavailable, ctx.Err())
	}
	return e, nil
}

func timeout(ctx context.Context) error {
	<-ctx.Done()
	return fmt.Errorf("%w: %w", jskv.ErrUnknown, ctx.Err())
}

func sleep(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

func (b *bucket) get(key string) jskv.Entry {
	b.mu.Lock()
	defer b.mu.Unlock()
	if e, ok := b.keys[key]; ok {
		return e
	}
	return jskv.Entry{Key: key, Deleted: true}
}

func (b *bucket) commit(w write) (uint64, error) {
	b.mu.Lock()
	w.At = time.Now()
	if actual := b.keys[w.Key].Revision; actual != w.Base {
		b.mu.Unlock()
		return 0, &jskv.ConflictError{Key: w.Key, Expected: w.Base, Actual: actual}
	}
	rev := b.storeLocked(jskv.Entry{Key: w.Key, Value: w.Value})
	b.commits = append(b.commits, w)
	hook := b.onCommit
	b.mu.Unlock()
	if hook != nil {
		hook(w)
	}
	return rev, nil
}

func (b *bucket) storeLocked(e jskv.Entry) uint64 {
	b.seq++
	e.Revision, e.Created = b.seq, time.Now()
	b.keys[e.Key] = e
	for w := range b.watches[e.Key] {
		w.poke()
	}
	return e.Revision
}

// put stores a value as an operator would, whatever the revision.
func (b *bucket) put(key string, value []byte) uint64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.storeLocked(jskv.Entry{Key: key, Value: value})
}

// purge leaves a marker in place of the key.
func (b *bucket) purge(key string) uint64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.storeLocked(jskv.Entry{Key: key, Deleted: true})
}

// forget removes the key without a marker.
func (b *bucket) forget(key string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.keys, key)
	for w := range b.watches[key] {
		w.poke()
	}
}

func (b *bucket) committed() []write {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]write(nil), b.commits...)
}

func (b *bucket) reads() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.nReads
}

func (b *bucket) hooks(onWrite func(int, write) fault, onRead func(int, string) fault) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.onWrite, b.onRead = onWrite, onRead
	b.nWrites, b.nReads = 0, 0
}

// info decodes the value of the key.
func (b *bucket) info(t *testing.T, key string) lease.Info {
	t.Helper()
	i, err := lease.Decode(key, b.get(key).Value)
	if err != nil {
		t.Fatalf("lease %s: %v", key, err)
	}
	return i
}

func (b *bucket) dead(key string) bool {
	i, err := lease.Decode(key, b.get(key).Value)
	return err == nil && i.Dead
}

// watch is one registration of a key.
type watch struct {
	fn    func(jskv.Entry)
	again chan struct{}
	quit  chan struct{}
}

func (w *watch) poke() {
	select {
	case w.again <- struct{}{}:
	default:
	}
}

// wait waits for d, unless the watch ends before. It makes no timer that is due at
// once: in a bubble of synctest, the goroutine that makes such a timer runs it. With the race
// detector (Go 1.26) it runs together with other timers, in a context that they
// share and corrupt, until the detector crashes.
func (w *watch) wait(d time.Duration) bool {
	if d <= 0 {
		return true
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-w.quit:
		return false
	}
}

// Watch does what jskv.Hub does: the latest entry soon, and again when it changes.
func (b *bucket) Watch(key string, fn func(jskv.Entry)) (stop func()) {
	w := &watch{fn: fn, again: make(chan struct{}, 1), quit: make(chan struct{})}
	w.poke()
	b.mu.Lock()
	if b.watches[key] == nil {
		b.watches[key] = map[*watch]struct{}{}
	}
	b.watches[key][w] = struct{}{}
	b.mu.Unlock()
	go func() {
		for {
			select {
			case <-w.again:
				if !w.wait(b.lag) {
					return
				}
				w.fn(b.get(key))
			case <-w.quit:
				return
			}
		}
	}()
	var once sync.Once
	return func() {
		once.Do(func() {
			b.mu.Lock()
			delete(b.watches[key], w)
			b.mu.Unlock()
			close(w.quit)
		})
	}
}

func (b *bucket) watching() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := 0
	for _, ws := range b.watches {
		n += len(ws)
	}
	return n
}

// testClock is a clock with a rate that can jump.
type testClock struct {
	start time.Time
	rate  float64
	jump  atomic.Int64
}

func newClock(rate float64) *testClock { return &testClock{start: time.Now(), rate: rate} }

func (c *testClock) Now() time.Duration {
	return time.Duration(float64(time.Since(c.start))*c.rate) + time.Duration(c.jump.Load())
}

var _ clock.Clock = (*testClock)(nil)

// create makes a lease by the bubble's clock and closes it at the end.
func create(t *testing.T, b *bucket, cfg lease.Config) *lease.Lease {
	t.Helper()
	if cfg.TTL == 0 {
		cfg.TTL = 30 * time.Second
	}
	if cfg.Clock == nil {
		cfg.Clock = newClock(1)
	}
	l, err := lease.Create(t.Context(), b, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		b.hooks(nil, nil)
		if err := l.Close(context.Background()); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return l
}

func observe(t *testing.T, b *bucket) *lease.Observer {
	t.Helper()
	o := lease.NewObserver(b, b.Watch, newClock(1), "other:7", nil, nil)
	t.Cleanup(o.Close)
	return o
}

// untilLost waits for the loss and returns when it came.
func untilLost(t *testing.T, l *lease.Lease) time.Duration {
	t.Helper()
	start := time.Now()
	<-l.Lost()
	if l.Valid() {
		t.Fatal("valid after Lost was closed")
	}
	return time.Since(start)
}

const (
	sec = time.Second
	ms  = time.Millisecond
)
