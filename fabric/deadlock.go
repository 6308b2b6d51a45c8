package fabric

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lockfabric/lockfabric/internal/deadlock"
	"github.com/lockfabric/lockfabric/internal/engine"
	"github.com/lockfabric/lockfabric/internal/jskv"
	"github.com/lockfabric/lockfabric/internal/pause"
	"github.com/lockfabric/lockfabric/internal/record"
	"github.com/lockfabric/lockfabric/kv"
)

// DefaultDeadlockDelay is how long a unit of work waits, by default, before it searches for deadlocks.
const DefaultDeadlockDelay = time.Second

const (
	// settleLeast is the shortest time between the two reads of a cycle.
	settleLeast = 50 * time.Millisecond
	// waitsAgain is the time until a bucket of waits that could not be opened is tried again. It doubles, up to waitsRarely,
	// which is for those without the permission: an election is over soon.
	waitsAgain       = 2 * time.Second
	waitsRarely      = time.Minute
	openWaitsTimeout = 5 * time.Second
	// docMarkerTTL is how long the delete marker of a removed document stays.
	docMarkerTTL = time.Minute
	proofTries   = 8
)

// detection connects the session with its deadlock detector; it implements deadlock.Place.
type detection struct {
	s *session
	d *deadlock.Detector

	mu     sync.Mutex
	bucket *jskv.Bucket // bucket of waits; nil while there is none
	failed int          // tries in a row to open it
	retry  time.Time    // not tried again before
	told   bool         // it was logged that there is none
}

// detect starts detection for the session, unless it is off.
func (s *session) detect() {
	if s.m.cfg.noDetection {
		return
	}
	s.detection = &detection{s: s}
	s.detection.d = deadlock.New(s.detection, s.m.cfg.detectAfter)
	s.goUnlessEnded(func() { s.detection.d.Run(s.ctx) })
}

type waiting struct {
	deadlock.Waiter
	in     *detection
	begun  bool
	victim atomic.Pointer[DeadlockError] // set before the wait is stopped
}

// waiting prepares for a wait of the unit. It returns nil if detection does not need to know about the wait.
func (s *session) waiting(u *unit, sl *leaseShare, enc string, op *record.Op) *waiting {
	if u == nil || s.detection == nil || op.Kind != record.KindLock || op.Verb != record.OpAcquire && op.Verb != record.OpConvert {
		return nil
	}
	w := &waiting{in: s.detection}
	w.Waiter = deadlock.Waiter{Key: enc, ID: op.ID, Lease: sl.id, Mode: op.Mode, Holder: op.Holder, Unit: member{u, s}, Data: w}
	return w
}

// queued returns the function that the engine calls when the operation must wait. It calls also as well.
func (w *waiting) queued(also func(record.Place)) func(record.Place) {
	if w == nil {
		return also
	}
	return func(p record.Place) {
		if also != nil {
			also(p)
		}
		if !w.begun { // otherwise the operation was sent again
			w.begun = true
			w.in.d.Begin(&w.Waiter)
			w.in.checkOwn(w)
		}
	}
}

// end reports the end of the wait, with err. It returns the *DeadlockError that ended it, or nil.
func (w *waiting) end(err error) error {
	if w == nil || !w.begun {
		return nil
	}
	w.in.d.End(&w.Waiter)
	return w.stopped(err)
}

// stopped returns the *DeadlockError that ended the wait with err, or nil.
func (w *waiting) stopped(err error) error {
	if w == nil || !errors.Is(err, engine.ErrGone) {
		return nil
	}
	v := w.victim.Load()
	if v == nil {
		return nil
	}
	w.Unit.(member).deaths.Add(1)
	w.in.d.Ended()
	return v
}

// checkOwn checks whether the unit waits for itself, which needs no documents.
func (d *detection) checkOwn(w *waiting) {
	rec, _, ok := d.s.shard(w.Key).engine.Known(w.Key)
	if !ok || rec == nil {
		return
	}
	blockers := rec.BlockersOfNext(w.Mode)
	if _, there := rec.Waiting(w.ID); there {
		blockers = rec.Blockers(w.ID)
	}
	all := w.Unit.(member).all()
	for _, e := range blockers {
		_, waits := rec.Waiting(e.ID)
		if waits && record.Compatible(e.FinalMode(), w.Mode) || !slices.ContainsFunc(all, func(h *Hold) bool { return h.id == e.ID }) {
			continue
		}
		u := w.Unit.Describe()
		c := deadlock.Cycle{{Key: w.Key, ID: w.ID, Mode: w.Mode, Entry: e, Lease: w.Lease, Unit: &u}}
		d.s.goUnlessEnded(func() { d.Abort(d.s.ctx, &w.Waiter, c) })
		return
	}
}

// changed reports that the holds of a unit have changed.
func (d *detection) changed() {
	if d != nil {
		d.d.Changed()
	}
}

// waits returns the bucket of waits. Without this bucket, detection is off.
func (d *detection) waits(ctx context.Context) (*jskv.Bucket, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.bucket != nil {
		return d.bucket, nil
	}
	if time.Now().Before(d.retry) {
		return nil, kv.ErrNoBucket
	}
	octx, cancel := context.WithTimeout(ctx, openWaitsTimeout) // without the permission to ask, no answer comes
	defer cancel()
	b, err := d.s.buckets.Waits(octx)
	if err != nil {
		d.retry = time.Now().Add(pause.Near(pause.Doubled(waitsAgain, d.failed, waitsRarely)))
		d.failed++
		if !d.told && ctx.Err() == nil {
			d.told = true
			d.s.m.cfg.logger.Warn("deadlocks are not detected: there is no bucket for it", "bucket", kv.WaitsBucket(d.s.m.cfg.buckets.Fabric), "error", err)
		}
		return nil, err
	}
	d.bucket, d.failed, d.told = b, 0, false
	return b, nil
}

// The following methods implement deadlock.Place.

func (d *detection) Own(id string) (*deadlock.Doc, bool) {
	if d.s.leaseShareOf(id) == nil {
		return nil, false
	}
	return d.d.Own(id), true
}

func (d *detection) Cached(key string) (*record.Record, uint64, bool) {
	return d.s.shard(key).engine.Known(key)
}

func (d *detection) Record(ctx context.Context, key string) (*record.Record, uint64, error) {
	return d.s.shard(key).engine.Read(ctx, key)
}

func (d *detection) Doc(ctx context.Context, id string) (*deadlock.Doc, error) {
	b, err := d.waits(ctx)
	if err != nil {
		return nil, err
	}
	rctx, cancel := context.WithTimeout(ctx, d.s.m.rtt.Patience()) // an answer can get lost
	defer cancel()
	e, err := b.Get(rctx, id)
	if err != nil || e.Deleted {
		return nil, err
	}
	return deadlock.DecodeDoc(e.Value)
}

func (d *detection) Alive(ctx context.Context, id string) bool {
	if live, over := d.s.leaseState(id); live || over {
		return live
	}
	state := d.s.lookUp(ctx, Lease{ID: id}).State
	return state == "live" || state == "stale"
}

func (d *detection) Prove(ctx context.Context, key string, rev uint64) (at bool, err error) {
	for n := range proofTries {
		rctx, cancel := context.WithTimeout(ctx, d.s.m.rtt.Patience())
		_, err = d.s.shard(key).bucket.CheckAt(rctx, key, rev)
		cancel()
		switch {
		case err == nil:
			return true, nil
		case errors.Is(err, jskv.ErrConflict):
			return false, nil
		case !pause.For(ctx, pause.Doubled(2*time.Millisecond, n, 100*time.Millisecond)):
			return false, err
		}
	}
	return false, err
}

func (d *detection) Settle() time.Duration {
	rtt, _ := d.s.m.rtt.RTT()
	return max(settleLeast, 2*rtt)
}

func (d *detection) Publish(ctx context.Context, id string, value []byte, rev uint64) (uint64, error) {
	b, err := d.waits(ctx)
	if err != nil {
		return rev, err
	}
	rctx, cancel := context.WithTimeout(ctx, d.s.m.rtt.Patience())
	defer cancel()
	var next uint64
	if value == nil {
		next, err = b.Purge(rctx, id, rev, docMarkerTTL)
	} else {
		next, err = b.Update(rctx, id, value, rev, deadlock.DocTTL)
	}
	var conflict *jskv.ConflictError
	switch {
	case err == nil:
		return next, nil
	case errors.As(err, &conflict):
		return conflict.Actual, err
	case !errors.Is(err, jskv.ErrBusy):
		d.mu.Lock() // the bucket may be created again: its content is in memory and is lost with its servers
		d.bucket = nil
		d.mu.Unlock()
	}
	return rev, err
}

// Abort stops the wait because of the cycle, if it still waits.
func (d *detection) Abort(ctx context.Context, dw *deadlock.Waiter, c deadlock.Cycle) {
	w := dw.Data.(*waiting)
	e := d.s.explain(ctx, c)
	w.victim.Store(e)
	op := record.Op{Kind: record.KindLock, Verb: record.OpStopWaiting, ID: w.ID, Lease: w.Lease}
	out, err := engine.Do(ctx, d.s.shard(w.Key).doer, w.Key, op, engine.Options{Bound: releaseTimeout, Stop: d.s.m.gone})
	switch {
	case err != nil: // the engine completes the stop later
		d.s.m.cfg.logger.Debug("a wait in a deadlock is not stopped yet", "key", e.Key, "error", err)
	case !out.Record.Granted(w.ID, w.Holder):
		d.s.m.cfg.logger.Info("stopped waiting: deadlock", "key", e.Key, "id", w.ID, "error", e)
	}
}

func (d *detection) Poke(id string) { d.s.m.hints.poke(id) }

// poked makes the detector of the current session search at once.
func (m *Manager) poked() {
	if s, _ := m.running(false); s != nil && s.detection != nil {
		s.detection.d.Poke()
	}
}
