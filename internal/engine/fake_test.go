package engine

import (
	"bytes"
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/lockfabric/lockfabric/internal/jskv"
	"github.com/lockfabric/lockfabric/internal/record"
	"github.com/lockfabric/lockfabric/kv"
)

// fault says what happens to one write.
type fault int

const (
	pass      fault = iota
	loseReply       // committed, but the answer is lost
	lose            // never arrives
	late            // arrives when bucket.deliverLate is called
	busy            // refused with code 10164
	notSent         // refused by the client
	rejected        // refused for good
	slow            // arrives when bucket.release is closed, unless it is given up before
)

// bucket is a KV bucket in memory with faults, and a watcher on top.
type bucket struct {
	t            *testing.T
	mu           sync.Mutex
	seq          uint64
	entries      map[string]jskv.Entry
	watches      map[string]map[int]func(jskv.Entry)
	nextID       int
	fault        func(n int) fault // for the n-th write, from 1
	stale        *jskv.Entry       // what reads answer with, if set
	writes       int
	commits      int
	reads        int
	replies      chan struct{} // answers to checks wait for it, if set
	checks       int           // of these writes
	checking     int           // under way
	mostChecking int           // at a time
	held         []func()
	release      chan struct{}
	block        chan struct{} // writes wait for it, if set
	arrived      chan struct{} // gets an element for each write that arrives, if set
	maxValue     int           // what a larger value is rejected for, if set
	mute         bool          // watches deliver nothing
}

func newBucket(t *testing.T) *bucket {
	return &bucket{t: t, seq: 1000, entries: map[string]jskv.Entry{}, watches: map[string]map[int]func(jskv.Entry){}}
}

func (b *bucket) Get(ctx context.Context, key string) (jskv.Entry, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.reads++
	if b.stale != nil {
		return *b.stale, nil
	}
	return b.get(key), nil
}

func (b *bucket) MaxValue() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.maxValue == 0 {
		return 1 << 20
	}
	return b.maxValue
}

func (b *bucket) get(key string) jskv.Entry {
	if e, ok := b.entries[key]; ok {
		return e
	}
	return jskv.Entry{Key: key, Deleted: true}
}

func (b *bucket) Update(ctx context.Context, key string, value []byte, rev uint64, _ time.Duration) (uint64, error) {
	return b.write(ctx, jskv.Entry{Key: key, Value: bytes.Clone(value)}, rev)
}

func (b *bucket) Purge(ctx context.Context, key string, rev uint64, markerTTL time.Duration) (uint64, error) {
	if markerTTL < 10*time.Minute {
		b.t.Errorf("purge of %s with a marker that lives %v", key, markerTTL)
	}
	return b.write(ctx, jskv.Entry{Key: key, Deleted: true}, rev)
}

// CheckAt has the faults of writes, and counts with them.
func (b *bucket) CheckAt(ctx context.Context, key string, rev uint64) (uint64, error) {
	if rev == 0 {
		b.t.Errorf("check of the absence of %s", key)
	}
	b.mu.Lock()
	b.checks++
	b.checking++
	b.mostChecking = max(b.mostChecking, b.checking)
	b.mu.Unlock()
	defer func() {
		if b.replies != nil {
			<-b.replies
		}
		b.mu.Lock()
		b.checking--
		b.mu.Unlock()
	}()
	return b.attempt(ctx, func() (uint64, error) {
		b.mu.Lock()
		defer b.mu.Unlock()
		if is := b.get(key).Revision; is != rev {
			return 0, &jskv.ConflictError{Key: key, Expected: rev, Actual: is}
		}
		b.seq++
		return b.seq, nil
	})
}

func (b *bucket) write(ctx context.Context, e jskv.Entry, rev uint64) (uint64, error) {
	if len(e.Value) > b.MaxValue() {
		return b.attempt(ctx, func() (uint64, error) { return 0, fmt.Errorf("%w: injected", kv.ErrRejected) })
	}
	return b.attempt(ctx, func() (uint64, error) { return b.commit(e, rev) })
}

// attempt commits, or not, as the fault says.
func (b *bucket) attempt(ctx context.Context, commit func() (uint64, error)) (uint64, error) {
	b.mu.Lock()
	b.writes++
	f := pass
	if b.fault != nil {
		f = b.fault(b.writes)
	}
	block, arrived := b.block, b.arrived
	b.mu.Unlock()
	if arrived != nil {
		arrived <- struct{}{}
	}
	if block != nil {
		<-block
	}
	switch f {
	case busy:
		return 0, fmt.Errorf("%w: injected", jskv.ErrBusy)
	case notSent:
		return 0, fmt.Errorf("%w: injected", jskv.ErrNotSent)
	case slow:
		select {
		case <-b.release:
		case <-ctx.Done():
			return 0, fmt.Errorf("%w: %w", jskv.ErrUnknown, ctx.Err())
		}
	case rejected:
		return 0, fmt.Errorf("%w: injected", kv.ErrRejected)
	case lose, late:
		if f == late {
			b.mu.Lock()
			b.held = append(b.held, func() { _, _ = commit() })
			b.mu.Unlock()
		}
		<-ctx.Done()
		return 0, fmt.Errorf("%w: %w", jskv.ErrUnknown, ctx.Err())
	case loseReply:
		_, _ = commit()
		<-ctx.Done()
		return 0, fmt.Errorf("%w: %w", jskv.ErrUnknown, ctx.Err())
	}
	return commit()
}

// deliverLate lets the writes arrive that were held back.
func (b *bucket) deliverLate() {
	b.mu.Lock()
	held := b.held
	b.held = nil
	b.mu.Unlock()
	for _, f := range held {
		f()
	}
}

func (b *bucket) commit(e jskv.Entry, rev uint64) (uint64, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if is := b.get(e.Key).Revision; is != rev {
		return 0, &jskv.ConflictError{Key: e.Key, Expected: rev, Actual: is}
	}
	b.seq++
	b.commits++
	e.Revision = b.seq
	b.entries[e.Key] = e
	for _, fn := range b.watches[e.Key] {
		if b.mute {
			break
		}
		go fn(e)
	}
	return e.Revision, nil
}

// put writes as another process would.
func (b *bucket) put(key string, value []byte) uint64 {
	b.t.Helper()
	rev, err := b.commit(jskv.Entry{Key: key, Value: value, Deleted: value == nil}, b.peek(key).Revision)
	if err != nil {
		b.t.Fatal(err)
	}
	return rev
}

func (b *bucket) peek(key string) jskv.Entry {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.get(key)
}

// record returns the stored record with its tokens resolved.
func (b *bucket) record(key string) *record.Record {
	b.t.Helper()
	e := b.peek(key)
	if e.Deleted {
		return &record.Record{Kind: record.KindLock}
	}
	rec, err := record.Decode(e.Value)
	if err != nil {
		b.t.Fatal(err)
	}
	rec.Resolve(e.Revision)
	return rec
}

// apply has another process apply an operation.
func (b *bucket) apply(key string, ops ...record.Op) *record.Record {
	b.t.Helper()
	e := b.peek(key)
	var rec *record.Record
	if !e.Deleted {
		rec = b.record(key)
	}
	next, _, _ := record.Apply(rec, e.Revision, ops, record.DefaultLimits())
	if next.Idle() {
		b.put(key, nil)
	} else {
		b.put(key, next.Append(nil))
	}
	return b.record(key)
}

func (b *bucket) Follow(key string, fn func(jskv.Entry)) func() { return b.Watch(key, fn) }

func (b *bucket) Watch(key string, fn func(jskv.Entry)) func() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.nextID++
	id := b.nextID
	if b.watches[key] == nil {
		b.watches[key] = map[int]func(jskv.Entry){}
	}
	b.watches[key][id] = fn
	go fn(b.get(key))
	return func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		delete(b.watches[key], id)
	}
}

func (b *bucket) counts() (writes, commits, reads int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.writes, b.commits, b.reads
}

// observer is an Observer; the test says which leases are dead.
type observer struct {
	mu   sync.Mutex
	dead map[string]*leaseAsked
}

// leaseAsked is a call of Observe.
type leaseAsked struct {
	urgent bool
	dead   func(string)
}

func (o *observer) Observe(id string, _ time.Duration, urgent bool, dead func(string)) func() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.dead == nil {
		o.dead = map[string]*leaseAsked{}
	}
	a := &leaseAsked{urgent, dead}
	o.dead[id] = a
	return func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		if o.dead[id] == a {
			delete(o.dead, id)
		}
	}
}

func (o *observer) observed() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.dead)
}

func (o *observer) urgent(id string) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.dead[id] != nil && o.dead[id].urgent
}

func (o *observer) kill(id string) {
	o.mu.Lock()
	a := o.dead[id]
	delete(o.dead, id)
	o.mu.Unlock()
	if a != nil {
		go a.dead(id)
	}
}

// newEngine returns an engine on b that the test closes.
func newEngine(t *testing.T, b *bucket, o *observer) *Engine {
	t.Helper()
	if o == nil {
		o = &observer{}
	}
	return New(Config{Store: b, Watcher: b, Observer: o})
}

func acquireOp(id string) record.Op {
	return record.Op{Kind: record.KindLock, Verb: record.OpAcquire, ID: id, Lease: record.LeaseOf(id), Mode: record.X, TTL: 30 * time.Second}
}

func tryOp(id string) record.Op {
	op := acquireOp(id)
	op.Verb = record.OpTry
	return op
}

func releaseOp(id string) record.Op {
	return record.Op{Kind: record.KindLock, Verb: record.OpRelease, ID: id, Lease: record.LeaseOf(id)}
}
