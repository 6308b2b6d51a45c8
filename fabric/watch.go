package fabric

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"strings"
	"sync/atomic"
	"time"

	"github.com/lockfabric/lockfabric/internal/jskv"
	"github.com/lockfabric/lockfabric/internal/pause"
	"github.com/lockfabric/lockfabric/internal/record"
	"github.com/lockfabric/lockfabric/kv"
)

const (
	// lookAgain is the pause after a read that a deposed leader may have answered.
	lookAgain = 150 * time.Millisecond
	// watchAttempt limits one attempt to open the buckets again. watchPause is the time between two attempts.
	watchAttempt = 10 * time.Second
	watchPause   = 250 * time.Millisecond
)

// Watch returns the state of the lock, like Inspect: first the present state, and then the state after each change,
// until ctx ends or the loop is left:
//
//	for info, err := range m.Watch(ctx, "orders/42") {
//		if err != nil {
//			return err
//		}
//		…
//	}
//
// Every state was read from the stream's leader, so it is committed, and none is followed by an older one. If changes
// come faster than the loop takes them, states in between may be skipped, but never the last one. Only changes of the
// lock's record count, not the renewal or death of a lease. Watch continues through lost connections, elections and
// deleted buckets. A lock whose buckets were deleted is free, with revision 0.
//
// The last pair has an error, unless the loop was left: the context's, ErrInvalidName, ErrMalformedRecord,
// ErrNewerSchema, ErrClosed, or the reason why the buckets can't be opened again, as from New. All work is done in the
// caller's goroutine, while it waits for the next pair.
func (m *Manager) Watch(ctx context.Context, key string) iter.Seq2[Info, error] {
	return func(yield func(Info, error) bool) {
		enc, err := kv.EncodeName(key)
		if err != nil {
			yield(Info{}, err)
			return
		}
		w := &lockWatch{key: key, enc: enc, yield: yield}
		if err := m.onSessions(ctx, w.follow); err != nil {
			yield(Info{}, fmt.Errorf("watch %q: %w", key, translate(err)))
		}
	}
}

// errLeft ends a watch whose loop was left.
var errLeft = errors.New("fabric: the loop was left")

// lockWatch is one loop over Watch. It may use several sessions.
type lockWatch struct {
	key, enc string
	yield    func(Info, error) bool
	last     *Info // that was reported; nil before the first
}

// onSessions calls follow with one session after another, until there is a reason to end other than errLeft.
func (m *Manager) onSessions(caller context.Context, follow func(ctx context.Context, s *session) error) error {
	ctx, done := m.callContext(caller)
	defer done()
	for {
		sctx, cancel := context.WithTimeout(ctx, watchAttempt)
		s, err := m.session(sctx)
		cancel()
		if err == nil {
			err = follow(ctx, s)
		}
		switch {
		case errors.Is(err, errLeft):
			return nil
		case ctx.Err() != nil:
			return m.explain(caller, ctx.Err())
		case err != nil && !errors.Is(translate(err), ErrUnavailable) && !errors.Is(err, context.DeadlineExceeded):
			return err // retrying does not help
		case err != nil:
			pause.For(ctx, watchPause)
		}
	}
}

// follow reports changes of the lock until the session ends. The hub says when to read, and how new the answer must be.
// The watch is opened before the first read, so a change after this read is noticed.
func (w *lockWatch) follow(ctx context.Context, s *session) error {
	var least atomic.Uint64 // newest revision that the hub has seen; 0 = absent or unknown
	changed := make(chan struct{}, 1)
	changed <- struct{}{} // read at once
	stop := s.shard(w.enc).hub.Watch(w.enc, func(e jskv.Entry) {
		least.Store(e.Revision)
		pause.Wake(changed)
	})
	defer stop()
	var newest uint64 // newest revision reported on this session
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-s.ctx.Done():
			return nil
		case <-changed:
		}
		rec, rev, err := w.read(ctx, s, &least, newest)
		if s.ctx.Err() != nil && ctx.Err() == nil {
			return nil
		}
		if errors.Is(err, jskv.ErrBucketGone) {
			s.suspect() // ends the session if the bucket is gone
		}
		if err != nil {
			return err
		}
		newest = max(newest, rev)
		if err := w.tell(ctx, s, rec, rev); err != nil {
			return err
		}
	}
}

// read returns the leader's record. It must be as new as what the hub has seen and what was reported, because a deposed
// leader can answer. If the lock was in use before, two reads must show that it is absent.
func (w *lockWatch) read(ctx context.Context, s *session, least *atomic.Uint64, newest uint64) (*record.Record, uint64, error) {
	for absent := false; ; {
		rec, rev, err := s.shard(w.enc).engine.Read(ctx, w.enc)
		if err != nil {
			return nil, 0, err
		}
		known := least.Load()
		if rev > 0 && rev >= max(known, newest) || rev == 0 && known == 0 && (absent || !w.used()) {
			return rec, rev, nil
		}
		absent = rev == 0
		if !pause.For(ctx, lookAgain) || s.ctx.Err() != nil {
			return nil, 0, errors.Join(ctx.Err(), s.ctx.Err())
		}
	}
}

// used reports whether anything was stored in the last reported state.
func (w *lockWatch) used() bool { return w.last != nil && w.last.Kind != "" }

// tell passes a state to the loop, if it differs. The end of a delete marker does not count.
func (w *lockWatch) tell(ctx context.Context, s *session, rec *record.Record, rev uint64) error {
	if w.last != nil && (rev == w.last.Revision || rev == 0 && !w.used()) {
		return nil
	}
	info := newInfo(w.key, rec, rev)
	s.identify(ctx, []Info{info})
	if ctx.Err() != nil {
		return ctx.Err() // leases may be missing because ctx has ended
	}
	w.last = &info
	if !w.yield(info, nil) {
		return errLeft
	}
	return nil
}

// followFor is how long one watcher is trusted. Then a new one shows what it has missed.
const followFor = time.Minute

// WatchAll returns all names in use that start with prefix, like List, and then the names that have changed, until ctx
// ends or the loop is left. The first list is complete, and may be empty. A name that is no longer in use has the kind
// "". Of several changes of a name that come together, only the last is returned.
//
// One watcher follows all names, or one for each shard. Its states are committed, but a change that it has missed shows
// up to a minute late. If something depends on a single lock, use Watch. As in List, leases contain only the id and the
// TTL; Identify adds the rest.
//
// WatchAll continues like Watch, and its errors are the same, but an unreadable record is listed as in List.
func (m *Manager) WatchAll(ctx context.Context, prefix string) iter.Seq2[[]Info, error] {
	return func(yield func([]Info, error) bool) {
		filter, err := kv.EncodePrefix(prefix)
		if err != nil {
			yield(nil, err)
			return
		}
		w := &prefixWatch{prefix: prefix, filter: filter, yield: yield, trust: followFor, told: map[string]uint64{}}
		if err := m.onSessions(ctx, w.follow); err != nil {
			yield(nil, fmt.Errorf("watch all of %q: %w", prefix, translate(err)))
		}
	}
}

// prefixWatch is one loop over WatchAll. It may use several sessions.
type prefixWatch struct {
	prefix, filter string
	yield          func([]Info, error) bool
	trust          time.Duration // how long one watcher is trusted

	s      *session          // session of the revisions
	begun  bool              // the first list was returned
	told   map[string]uint64 // names reported to be in use, with their revisions
	freed  map[string]uint64 // names that were freed since the watcher started, with their revisions
	newest map[*shard]uint64 // highest revision seen on this session
}

// follow reports changes until the session ends, and then returns nil.
func (w *prefixWatch) follow(ctx context.Context, s *session) error {
	if w.s != s { // the revisions of another bucket may be lower
		w.s, w.newest = s, map[*shard]uint64{}
		for name := range w.told {
			w.told[name] = 0
		}
	}
	ctx, done := both(ctx, s.ctx)
	defer done()
	for {
		err := w.once(ctx, s)
		switch {
		case errors.Is(err, errTrusted):
		case s.ctx.Err() != nil && !errors.Is(err, errLeft):
			return nil
		case errors.Is(err, jskv.ErrBucketGone):
			s.suspect()
			return err
		default:
			return err
		}
	}
}

// errTrusted ends a watcher that was trusted for long enough.
var errTrusted = errors.New("fabric: time for another watcher")

// once follows one watcher for as long as it is trusted.
func (w *prefixWatch) once(ctx context.Context, s *session) error {
	w.freed = map[string]uint64{}
	missing := maps.Clone(w.told) // names reported to be in use that the watcher has not shown yet
	before := maps.Clone(w.newest)
	var first []Info // the initial values
	begun := false   // all initial values have arrived
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	err := s.followAll(ctx, w.filter, func(sh *shard, entries []jskv.Entry, complete bool) error {
		changed := first
		for _, e := range entries {
			name, err := kv.DecodeKey(e.Key)
			if err != nil || !strings.HasPrefix(name, w.prefix) {
				continue
			}
			delete(missing, name)
			// A replica that is behind has older entries, including entries that were deleted since.
			if _, known := w.told[name]; !known && !e.Deleted && e.Revision <= before[sh] {
				missing[name] = 0
				continue
			}
			changed = w.change(sh, changed, entryInfo(name, e))
		}
		if !complete {
			first = changed
			return nil
		}
		changed, err := w.ask(ctx, s, missing, changed)
		if err != nil {
			return err
		}
		clear(missing)
		if !begun {
			begun, first = true, nil
			end := time.AfterFunc(w.trust, func() { cancel(errTrusted) })
			context.AfterFunc(ctx, func() { end.Stop() })
		}
		return w.tell(changed)
	})
	if cause := context.Cause(ctx); errors.Is(cause, errTrusted) && !errors.Is(err, errLeft) {
		return errTrusted
	}
	return err
}

// ask adds the leader's state of names for which the watcher has nothing new.
func (w *prefixWatch) ask(ctx context.Context, s *session, names map[string]uint64, list []Info) ([]Info, error) {
	for name := range names {
		enc, err := kv.EncodeName(name)
		if err != nil {
			return nil, err // not possible, because the name was reported before
		}
		sh := s.shard(enc)
		e, err := sh.bucket.Get(ctx, enc)
		if err != nil {
			return nil, err
		}
		list = w.change(sh, list, entryInfo(name, e))
	}
	return list, nil
}

// change adds a changed state to the list.
func (w *prefixWatch) change(sh *shard, list []Info, info Info) []Info {
	w.newest[sh] = max(w.newest[sh], info.Revision)
	rev, known := w.told[info.Key]
	gone := info.Kind == ""
	switch {
	case gone && !known, !gone && info.Revision <= max(rev, w.freed[info.Key]), gone && info.Revision != 0 && info.Revision <= rev:
		return list // nothing new
	case gone:
		delete(w.told, info.Key)
		w.freed[info.Key] = max(rev, info.Revision)
	default:
		w.told[info.Key] = info.Revision
	}
	return append(list, info)
}

// tell passes a list to the loop, with the newest state of each name.
func (w *prefixWatch) tell(list []Info) error {
	if len(list) == 0 && w.begun {
		return nil
	}
	w.begun = true
	if !w.yield(newest(list), nil) {
		return errLeft
	}
	return nil
}

// newest returns the last state of each name, in the place of its first one.
func newest(list []Info) (kept []Info) {
	places := make(map[string]int, len(list))
	for _, info := range list {
		if i, again := places[info.Key]; again {
			kept[i] = info
			continue
		}
		places[info.Key] = len(kept)
		kept = append(kept, info)
	}
	return kept
}
