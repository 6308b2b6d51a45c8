package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lockfabric/lockfabric/internal/jskv"
	"github.com/lockfabric/lockfabric/internal/record"
)

// errStale says that a read showed less than this process has seen already.
var errStale = fmt.Errorf("%w: read is older than what was seen", ErrUnavailable)

// resource is what this process knows of one key, and what its goroutines want
// of it. At most one goroutine, the runner, writes at a time.
type resource struct {
	e     *Engine
	key   string
	users int // callers inside; guarded by e.mu

	mu      sync.Mutex
	closed  bool
	running bool
	pending []*call                 // for the next round
	waiting map[string]*call        // acquires and conversions that wait in the committed record, by id
	holds   map[string]*watchedHold // watched holds, by id

	// The newest committed state that is known: rec at revision rev. rec is nil
	// when there is no record; rev is then the delete marker's, or 0. Records
	// are never modified once they are here.
	known bool
	rec   *record.Record
	rev   uint64
	// newestRev is the newest revision this process has seen for the key. rev is
	// below it only when a read found the key absent, which may be the truth
	// (the marker expired) or the view of a deposed leader: good to write upon,
	// since the write decides, but no proof. An idle resource can be forgotten, so
	// whoever knows of a revision says so (Options.Known).
	newestRev uint64
	// uncertain are the expected revisions of writes whose outcome is unknown.
	// Such a write can still be committed while its revision is the newest.
	uncertain []uint64
	inFlight  []byte // the value that is being written
	// holdTime is how long a hold lasts, smoothed, as the newest record with holds said; 0 = not known.
	// It outlives the record.
	holdTime time.Duration

	silent silence

	stopWatch func()
	stopHurry func() // of the watch for those who wait
	lastUse   time.Time
	observed  map[string]func() // leases ahead of our waiters, and how to stop observing
	dead      map[string]bool   // leases whose tombstone is committed
	absence   bool              // a second look at an absent key is under way
}

// watchedHold is a granted entry whose disappearance somebody wants to know.
type watchedHold struct {
	lost func(error)
}

// trusted reports whether the known state is at least as new as everything seen.
func (r *resource) trusted() bool { return r.known && r.rev >= r.newestRev }

// learn takes over a committed state if it is not older than what is known.
// Called with r.mu held.
func (r *resource) learn(rec *record.Record, rev uint64) bool {
	if rev < r.newestRev || r.known && rev < r.rev {
		return false
	}
	r.known, r.rec, r.rev, r.newestRev = true, rec, rev, rev
	if rec != nil && rec.Hold > 0 {
		r.holdTime = rec.Hold
	}
	r.e.saw(rev)
	// A write that expected an older revision can't be committed any more.
	r.uncertain = slices.DeleteFunc(r.uncertain, func(base uint64) bool { return base < rev })
	return true
}

// learnAbsent takes over that a read or a conflict showed no entry at all.
// Called with r.mu held.
func (r *resource) learnAbsent() {
	if r.newestRev > 0 && r.known && r.rec != nil {
		// A live record never expires.
		r.e.cfg.Suspect()
	}
	r.known, r.rec, r.rev = true, nil, 0
}

// silence counts requests in a row that nobody answered, by what they were: a
// leader that answers reads at once may still need long for a write.
type silence struct{ reads, writes atomic.Int32 }

// limit returns how long to wait for the next answer, for calls of whom one may fail
// fast, and the count that it follows from: hardly longer than answers take on this
// link, since a leader that resigns forgets what it was asked and the next one answers
// soon; then twice as long each time that nobody does.
func (r *resource) limit(silent *atomic.Int32, failFast bool) (time.Duration, int32) {
	n := silent.Load()
	limit := r.e.cfg.RTT.Backoff(int(n))
	if failFast {
		limit = max(limit, failFastAttempt)
	}
	return limit, n
}

// noteSilence counts a request that was not answered within its time. after is the
// count when it was sent: requests that were out together are one silence.
func (r *resource) noteSilence(silent *atomic.Int32, after int32) {
	silent.CompareAndSwap(after, after+1)
	r.e.cfg.RTT.TimedOut()
}

// unanswered reports whether a request under ctx, which is the caller's, ended
// because its own time was up.
func unanswered(ctx context.Context, err error) bool {
	return ctx.Err() == nil && errors.Is(err, context.DeadlineExceeded)
}

// read asks the leader and learns the answer.
func (r *resource) read(ctx context.Context, failFast bool) error {
	r.e.reads.Add(1)
	limit, before := r.limit(&r.silent.reads, failFast)
	actx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	sent := time.Now()
	entry, err := r.e.cfg.Store.Get(actx, r.key)
	switch {
	case err == nil:
		r.silent.reads.Store(0)
		r.e.cfg.RTT.ObserveQuick(time.Since(sent))
	case unanswered(ctx, err):
		r.noteSilence(&r.silent.reads, before)
	}
	if errors.Is(err, jskv.ErrBucketGone) {
		r.e.cfg.Suspect()
	}
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.absorb(entry)
}

// absorb learns a committed entry and wakes whom it concerns. Called with r.mu
// held.
func (r *resource) absorb(entry jskv.Entry) error {
	if entry.Revision == 0 {
		r.learnAbsent()
		return nil
	}
	if entry.Revision == r.rev && r.known {
		return nil
	}
	if entry.Revision < r.newestRev {
		r.e.cfg.Suspect()
		return errStale
	}
	var rec *record.Record
	if !entry.Deleted {
		var err error
		if rec, err = record.Decode(entry.Value); err != nil {
			r.known = false
			return err
		}
		rec.Resolve(entry.Revision)
	}
	if r.learn(rec, entry.Revision) {
		r.settle()
	}
	return nil
}

// notify is the watch's callback.
func (r *resource) notify(entry jskv.Entry) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed || r.stopWatch == nil {
		return
	}
	if entry.Revision == 0 {
		r.noticeAbsence()
		return
	}
	if len(r.inFlight) > 0 && bytes.Equal(entry.Value, r.inFlight) {
		return // our own write: its acknowledgement, or the read after it was lost, tells the rest
	}
	if entry.Revision < r.newestRev {
		return // the watch is behind our own writes and reads
	}
	if err := r.absorb(entry); err != nil && !errors.Is(err, errStale) {
		for _, c := range r.waiting {
			r.cleanup(c, err) // somebody may restore the record with the entry in it
		}
	}
}

// noticeAbsence looks a second time at a key that was seen absent while
// somebody holds or waits on it: one read may be that of a deposed leader.
// Called with r.mu held.
func (r *resource) noticeAbsence() {
	if r.absence || len(r.waiting)+len(r.holds) == 0 {
		return
	}
	r.absence = true
	started := r.e.goIfOpen(func() {
		r.e.sleep(r.e.ctx, 150*time.Millisecond) // what a new leader is behind, whatever the link
		// Not repeated before the watch's next poll.
		actx, cancel := context.WithTimeout(r.e.ctx, r.e.cfg.RTT.Patience())
		defer cancel()
		entry, err := r.e.cfg.Store.Get(actx, r.key)
		r.mu.Lock()
		defer r.mu.Unlock()
		r.absence = false
		if err != nil || r.closed {
			return
		}
		if entry.Revision != 0 {
			_ = r.absorb(entry)
			return
		}
		r.learnAbsent()
		r.settle()
	})
	if !started {
		r.absence = false
	}
}

// settle reads the outcomes of waiting operations and watched holds off the newest
// committed record. Called with r.mu held.
func (r *resource) settle() {
	r.settleWaiting()
	for id, h := range r.holds {
		entry, ok := holder(r.rec, id)
		switch {
		case !ok:
			delete(r.holds, id)
			go1(r.e, h.lost, ErrRemoved)
		case entry.Revoked:
			delete(r.holds, id)
			go1(r.e, h.lost, ErrRevoked)
		}
	}
	r.observe()
	r.adjustWatch()
}

// settleWaiting resolves the operations that don't wait any more. It looks at
// each entry once, since there can be many of both. Called with r.mu held.
func (r *resource) settleWaiting() {
	waiting := 0
	for id, st := range r.rec.States() {
		switch c := r.waiting[id]; {
		case c == nil:
		case st.Standing == record.Waiting:
			waiting++
		default:
			c.stands(st, r.rec, r.rev)
		}
	}
	if waiting == len(r.waiting) {
		return
	}
	for _, c := range r.waiting {
		if st := r.rec.Standing(&c.op); st.Standing != record.Waiting {
			c.stands(st, r.rec, r.rev)
		}
	}
}

// stands ends a call whose operation doesn't wait, as the record at rev says. Called with r.mu held.
func (c *call) stands(st record.State, rec *record.Record, rev uint64) {
	switch st.Standing {
	case record.Granted:
		out := Outcome{Revision: rev, Existed: true, Record: rec}
		if st.Entry != nil {
			out.Entry = *st.Entry
		}
		c.resolve(out, nil)
	case record.Refused:
		c.resolve(Outcome{}, &RefusedError{Result: record.Result{Verdict: st.Why}, Record: rec})
		// Its entry may still stand, and blocks nobody; it is taken away.
		if undo, ok := c.op.Undo(); ok && rec.Has(c.op.ID) {
			c.r.carryOut(undo)
		}
	default:
		c.resolve(Outcome{}, ErrGone)
	}
}

// go1 calls fn in a goroutine of the engine: fn may call back into it.
func go1(e *Engine, fn func(error), err error) {
	e.goIfOpen(func() { fn(err) })
}

func holder(rec *record.Record, id string) (record.Entry, bool) {
	if rec == nil {
		return record.Entry{}, false
	}
	return rec.Holder(id)
}

// adjustWatch opens the watch when somebody waits or watches a hold. It is
// closed by sweep, later. Called with r.mu held.
func (r *resource) adjustWatch() {
	if len(r.waiting)+len(r.holds) == 0 {
		return
	}
	r.lastUse = time.Now()
	if len(r.waiting) > 0 && r.stopHurry == nil && !r.closed {
		r.stopHurry = r.e.cfg.Watcher.Watch(r.key, func(jskv.Entry) {}) // notify is called by the other
	}
	if r.stopWatch != nil || r.closed {
		return
	}
	r.stopWatch = func() {}
	r.e.goIfOpen(func() {
		// Outside r.mu: the watcher may call notify at once.
		stop := r.e.cfg.Watcher.Follow(r.key, r.notify)
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.closed {
			stop()
			return
		}
		r.stopWatch = stop
		r.e.mu.Lock()
		r.e.watched[r] = struct{}{}
		r.e.mu.Unlock()
	})
}

// sweep closes the watch once nobody has needed it for a while.
func (r *resource) sweep() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.stopHurry != nil && len(r.waiting) == 0 {
		r.stopHurry()
		r.stopHurry = nil
	}
	if r.stopWatch == nil || len(r.waiting)+len(r.holds) > 0 || time.Since(r.lastUse) < linger {
		return
	}
	r.dropWatch()
}

// dropWatch ends the watch. Called with r.mu held.
func (r *resource) dropWatch() {
	if r.stopWatch == nil {
		return
	}
	r.stopWatch()
	r.stopWatch = nil
	if r.stopHurry != nil {
		r.stopHurry()
		r.stopHurry = nil
	}
	r.e.mu.Lock()
	delete(r.e.watched, r)
	r.e.mu.Unlock()
}

// idle reports whether the resource can be forgotten. Called with e.mu held, so
// it does not wait for r.mu.
func (r *resource) idle() bool {
	if !r.mu.TryLock() {
		return false
	}
	defer r.mu.Unlock()
	return !r.running && len(r.pending)+len(r.waiting)+len(r.holds) == 0 && r.stopWatch == nil && !r.absence
}

// close ends everything on the resource with ErrClosed.
func (r *resource) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
	for _, c := range r.pending {
		c.resolve(Outcome{}, ErrClosed)
	}
	r.pending = nil
	for _, c := range r.waiting {
		c.resolve(Outcome{}, ErrClosed)
	}
	clear(r.holds)
	r.observe()
	r.dropWatch()
}

// WatchHold calls lost once, from a goroutine of the engine, when the entry with
// this id is revoked or gone from the key's record. It costs a share of a
// watcher, so it is for holds that last. stop ends it; a call in progress may
// still finish.
func (e *Engine) WatchHold(key, id string, token uint64, lost func(error)) (stop func()) {
	r := e.resource(key)
	defer e.done(r)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return func() {}
	}
	if r.holds == nil {
		r.holds = map[string]*watchedHold{}
	}
	h := &watchedHold{lost: lost}
	r.holds[id] = h
	r.newestRev = max(r.newestRev, token)
	if r.trusted() {
		r.settle()
	} else {
		r.adjustWatch() // the watch looks twice at what one read may have got wrong
	}
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.holds[id] == h {
			delete(r.holds, id)
		}
	}
}
