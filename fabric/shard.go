package fabric

import (
	"context"
	"sync/atomic"

	"github.com/lockfabric/lockfabric/coalesce"
	"github.com/lockfabric/lockfabric/internal/engine"
	"github.com/lockfabric/lockfabric/internal/jskv"
	"github.com/lockfabric/lockfabric/internal/record"
)

// shard is what a session has for the locks of one bucket.
type shard struct {
	s         *session
	bucket    *jskv.Bucket
	hub       *jskv.Hub
	engine    *engine.Engine
	doer      doer             // what claims, posts and releases are given to
	router    *coalesce.Router // the doer, unless that is the engine alone
	crowd     crowd
	confirmed atomic.Uint64 // up to here all revisions are certainly the opened bucket's
	noted     uint64        // revision that the fabric's note has at least; of housekeep
}

// newShard begins to work on a bucket of locks.
func (s *session) newShard(b *jskv.Bucket, last uint64, hub []jskv.HubOption) (*shard, error) {
	m := s.m
	sh := &shard{s: s, bucket: b, hub: jskv.NewHub(b, hub...), noted: last}
	sh.confirmed.Store(last)
	sh.crowd.unserved = make(chan struct{}, 1)
	sh.engine = engine.New(engine.Config{
		Store: b, Watcher: sh.hub, Observer: s.observer,
		Suspect: s.suspect,
		Evicted: s.evicted,
		RTT:     &m.rtt,
		Hints:   m.hints, Contended: sh.contended,
		MaxKept: m.cfg.maxKept, KeepWait: m.cfg.detectAfter,
		Logger: m.cfg.logger,
	})
	return sh, sh.route()
}

// close is for a shard whose hub is closed, or of a session that does not begin.
func (sh *shard) close() {
	if sh.router != nil {
		sh.router.Close()
	}
	sh.engine.Close()
}

// shard is that of a lock, by its encoded name.
func (s *session) shard(string) *shard { return s.shards[0] }

// doAll is engine.DoAll.
func (s *session) doAll(ctx context.Context, calls []*engine.Call, opt engine.Options) {
	engine.DoAll(ctx, s.shards[0].doer, calls, opt)
}

// engineStats sums the counters of the shards up.
func (s *session) engineStats() (st engine.Stats) {
	for _, sh := range s.shards {
		st = st.Plus(sh.engine.Stats())
		st.Batched += sh.bucket.Batched()
	}
	return st
}

// seen returns the highest revision of the locks bucket that this session knows of.
func (sh *shard) seen() uint64 { return max(sh.engine.Seen(), sh.confirmed.Load()) }

// noteSeen notes how far the locks bucket has come, after many writes.
func (sh *shard) noteSeen() {
	seen := sh.seen()
	if seen < sh.noted+seenEvery {
		return
	}
	ctx, cancel := context.WithTimeout(sh.s.ctx, closeTimeout)
	defer cancel()
	if sh.s.buckets.NoteSeen(ctx, seen) == nil {
		sh.noted = seen
	}
}

// confirm returns nil once it is certain that a grant was written into the bucket that this session opened, after all
// that the session had seen before it asked. A write that expects no record fits any bucket, so the grant's revision
// decides: far above what is known, it may be that of a bucket which was made since. That takes a look, and so does a
// doubt that nobody has looked into yet.
func (sh *shard) confirm(ctx context.Context, out engine.Outcome, before uint64) error {
	s := sh.s
	for {
		known, low := sh.confirmed.Load(), out.Entry != nil && record.RevisionOf(out.Entry.Token) <= before
		if !low && (out.Revision <= known || out.Revision <= known+jskv.MaxStep && !s.doubts.pending()) {
			raiseTo(&sh.confirmed, out.Revision)
			return nil
		}
		n := s.doubts.raise()
		wctx, done := both(ctx, s.ctx)
		err := s.doubts.wait(wctx, n)
		done()
		switch {
		case s.ctx.Err() != nil || s.why() != nil:
			return s.why()
		case err != nil:
			return ctx.Err()
		case low:
			return errAgain // others have brought the revisions up meanwhile
		}
	}
}

// raiseTo makes v at least n.
func raiseTo(v *atomic.Uint64, n uint64) {
	for {
		old := v.Load()
		if n <= old || v.CompareAndSwap(old, n) {
			return
		}
	}
}
