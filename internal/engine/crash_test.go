package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lockfabric/lockfabric/internal/jskv"
	"github.com/lockfabric/lockfabric/internal/record"
)

// A crash at every step: each scenario runs once for each of its writes and dies before that write,
// and once and dies after it. The process that writes is gone then; its lease is found dead later.

// crashTTL is how long it takes until a dead process's lease is found dead.
const crashTTL = 30 * time.Second

// immortal are the processes with this lease and later ones: they complete what others have left.
const immortal = "D"

// crashWorld is a key with several processes, one of which crashes.
type crashWorld struct {
	t     *testing.T
	store *bucket
	check func(before, after *record.Record) string // what is wrong with a change; nil for an absent record

	mu     sync.Mutex
	n      int            // writes that were sent
	at     int            // the one at which its process crashes; 0: none
	after  bool           // it is committed
	died   string         // the lease of the process that has crashed
	stood  *record.Record // with its entry at that time, if it had one
	when   time.Time      // that was
	buried map[string]bool
	asked  map[string][]*question
}

// question is an engine's call of Observe.
type question struct{ dead func(string) }

// mortal is one process of a crashWorld.
type mortal struct {
	*Engine
	w      *crashWorld
	lease  string
	ctx    context.Context
	cancel context.CancelFunc
	next   uint64
	seen   uint64 // revision of the last read
}

// mortalStore is the store as one process sees it.
type mortalStore struct {
	*bucket
	p *mortal
}

func (s mortalStore) Get(ctx context.Context, key string) (jskv.Entry, error) {
	if s.p.ctx.Err() != nil {
		return jskv.Entry{}, silent(ctx)
	}
	return s.bucket.Get(ctx, key)
}

func (s mortalStore) Update(ctx context.Context, key string, value []byte, rev uint64, ttl time.Duration) (uint64, error) {
	return s.p.write(ctx, func() (uint64, error) { return s.bucket.Update(ctx, key, value, rev, ttl) })
}

func (s mortalStore) Purge(ctx context.Context, key string, rev uint64, markerTTL time.Duration) (uint64, error) {
	return s.p.write(ctx, func() (uint64, error) { return s.bucket.Purge(ctx, key, rev, markerTTL) })
}

// silent makes a dead process get no answer.
func silent(ctx context.Context) error {
	<-ctx.Done()
	return fmt.Errorf("%w: %w", jskv.ErrUnknown, ctx.Err())
}

func (p *mortal) write(ctx context.Context, commit func() (uint64, error)) (uint64, error) {
	w := p.w
	w.mu.Lock()
	defer w.mu.Unlock()
	if p.ctx.Err() != nil {
		w.mu.Unlock()
		defer w.mu.Lock()
		return 0, silent(ctx)
	}
	w.n++
	crashes := w.n == w.at && p.lease < immortal
	if !crashes || w.after {
		before := w.read()
		rev, err := commit()
		if bad := w.check(before, w.read()); err == nil && bad != "" {
			w.t.Errorf("write %d, of %s: %s", w.n, p.lease, bad)
		}
		if !crashes {
			return rev, err
		}
	}
	p.cancel()
	w.died, w.when = p.lease, time.Now()
	if rec := w.read(); rec.HasLease(p.lease) {
		w.stood = rec
	}
	time.AfterFunc(crashTTL, func() { w.bury(p.lease) })
	w.mu.Unlock()
	defer w.mu.Lock()
	return 0, silent(ctx)
}

// read returns the record as it is stored, nil for none.
func (w *crashWorld) read() *record.Record {
	if w.store.peek("k").Deleted {
		return nil
	}
	return w.store.record("k")
}

// Observe implements Observer, for all processes.
func (w *crashWorld) Observe(id string, _ time.Duration, _ bool, dead func(string)) func() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.buried[id] {
		go dead(id)
		return func() {}
	}
	q := &question{dead}
	w.asked[id] = append(w.asked[id], q)
	return func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.asked[id] = slices.DeleteFunc(w.asked[id], func(x *question) bool { return x == q })
	}
}

func (w *crashWorld) bury(id string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.buried[id] = true
	for _, q := range w.asked[id] {
		go q.dead(id)
	}
	delete(w.asked, id)
}

// crashed returns the lease of the process that has crashed.
func (w *crashWorld) crashed() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.died
}

// crashedIn returns the record with the entry of the process that crashed so long ago.
func (w *crashWorld) crashedIn(ago time.Duration) *record.Record {
	w.mu.Lock()
	defer w.mu.Unlock()
	if time.Since(w.when) < ago {
		return nil
	}
	return w.stood
}

// process starts one more process.
func (w *crashWorld) process(lease string) *mortal {
	p := &mortal{w: w, lease: lease}
	p.ctx, p.cancel = context.WithTimeout(context.Background(), time.Hour) // nothing takes as long
	p.Engine = New(Config{Store: mortalStore{w.store, p}, Watcher: w.store, Observer: w})
	return p
}

// dead reports whether the process has crashed.
func (p *mortal) dead() bool { return errors.Is(context.Cause(p.ctx), context.Canceled) }

// op completes an operation of this process.
func (p *mortal) op(op record.Op) record.Op {
	p.next++
	op.ID, op.Lease, op.TTL = record.ID(p.lease, p.next), p.lease, crashTTL
	return op
}

// do does an operation.
func (p *mortal) do(op record.Op) (Outcome, error) {
	return Do(p.ctx, p.Engine, "k", p.op(op), Options{})
}

// look reads the record; life is the Life for an operation on it.
func (p *mortal) look() (f record.Facts, life uint64, err error) {
	rec, rev, err := p.Engine.Read(p.ctx, "k")
	p.seen = rev
	if err != nil || rec == nil {
		return f, rev, err
	}
	return rec.Facts(), rec.Life, nil
}

// scenario is a program for some processes on one key, run once.
type scenario struct {
	processes map[string]func(p *mortal) error // by lease
	// check checks each change, and rest the record when all live processes have ended. p is one more process.
	check func(before, after *record.Record) string
	rest  func(t *testing.T, w *crashWorld, p *mortal)
}

// crash runs a scenario with a crash before or after the at-th write, and returns how many there were.
func crash(t *testing.T, begin func() *scenario, at int, after bool) (writes int) {
	synctest.Test(t, func(t *testing.T) {
		s := begin()
		w := &crashWorld{
			t: t, store: newBucket(t), check: s.check, at: at, after: after,
			buried: map[string]bool{}, asked: map[string][]*question{},
		}
		var all []*mortal
		var wg sync.WaitGroup
		for lease, program := range s.processes {
			p := w.process(lease)
			all = append(all, p)
			wg.Go(func() {
				if err := program(p); err != nil && !p.dead() {
					t.Errorf("%s: %v", lease, err)
				}
			})
		}
		wg.Wait()
		last := w.process("Z")
		s.rest(t, w, last)
		writes = w.n
		for _, p := range append(all, last) {
			p.cancel()
			p.Close()
		}
	})
	return writes
}

func TestCrashAtEveryStep(t *testing.T) {
	for name, begin := range map[string]func() *scenario{
		"semaphore": semaphoreCrash, "election": electionCrash, "condition": condCrash, "barrier": barrierCrash,
		"barrier without a party": missingPartyCrash, "latch": latchCrash, "once": onceCrash,
	} {
		t.Run(name, func(t *testing.T) {
			points := 0
			for at, writes := 1, 1; at <= writes; at++ { // a crash more than there are writes is none
				for _, after := range []bool{false, true} {
					points++
					if writes = crash(t, begin, at, after); t.Failed() {
						t.Fatalf("with a crash at write %d, committed: %v", at, after)
					}
				}
			}
			t.Logf("%d fault points", points)
		})
	}
}
