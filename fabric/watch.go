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
	// lookAgain is the pause after a read that may be that of a deposed leader.
	lookAgain = 150 * time.Millisecond
	// watchAttempt bounds one try to open the buckets again, watchPause is the time between two.
	watchAttempt = 10 * time.Second
	watchPause   = 250 * time.Millisecond
)

// Watch tells of the lock as Inspect does, first as it is now and then after
// each change, until ctx ends or the loop over it is left:
//
//	for info, err := range m.Watch(ctx, "orders/42") {
//		if err != nil {
//			return err
//		}
//		…
//	}
//
// Everything it tells was read from the stream's leader, so it is committed, and no state is followed by an older
// one. Changes that come faster than the loop takes them are told together: states in between may be skipped, the
// last one never is. A change of the lock's record counts, not the renewal or death of a lease behind it.
//
// It goes on through lost connections, elections and deleted buckets, and then tells what has changed meanwhile. A
// lock whose buckets were deleted is told of as free; revision 0 means then, as always, that nothing is stored.
//
// The last pair has an error, unless the loop was left: the context's, ErrInvalidName, ErrMalformedRecord,
// ErrNewerSchema, ErrClosed, or the reason why the buckets can't be opened again, as from New. All the work is done
// in the caller's goroutine, while it waits for the next pair.
func (m *Manager) Watch(ctx context.Context, key string) iter.Seq2[Info, error] {
	return func(yield func(Info, error) bool) {
		enc, err := kv.EncodeName(key)
		if err != nil {
			yield(Info{}, err)
			return
		}
		w := &lockWatch{m: m, key: key, enc: enc, yield: yield}
		if err := m.onSessions(ctx, w.follow); err != nil {
			yield(Info{}, fmt.Errorf("watch %q: %w", key, translate(err)))
		}
	}
}

// errLeft ends a watch whose loop was left.
var errLeft = errors.New("fabric: the loop was left")

// lockWatch is one loop over Watch, on as many sessions as it takes.
type lockWatch struct {
	m        *Manager
	key, enc string
	yield    func(Info, error) bool

	told bool // whether last was set
	last Info
}

// onSessions calls follow with one session after the other until there is a reason to
// end, nil if follow ended with errLeft.
func (m *Manager) onSessions(caller context.Context, follow func(ctx context.Context, s *session) error) error {
	ctx, done := m.callContext(caller)
	defer done()
	for {
		s, err := m.sessionSoon(ctx)
		if err == nil {
			err = follow(ctx, s)
		}
		switch {
		case errors.Is(err, errLeft):
			return nil
		case ctx.Err() != nil:
			return m.explain(caller, ctx.Err())
		case err != nil && !errors.Is(translate(err), ErrUnavailable) && !errors.Is(err, context.DeadlineExceeded):
			return err // it does not pass by itself
		case err != nil:
			pause.For(ctx, watchPause)
		}
	}
}

func (m *Manager) sessionSoon(ctx context.Context) (*session, error) {
	ctx, cancel := context.WithTimeout(ctx, watchAttempt)
	defer cancel()
	return m.session(ctx)
}

// follow tells of the lock until the session ends, and returns nil then. The hub
// says when to look and how new at least the answer has to be, the leader what
// there is. The hub is asked first: what changes after the read is announced.
func (w *lockWatch) follow(ctx context.Context, s *session) error {
	var least atomic.Uint64 // revision that the hub has seen; 0 = absent, or nothing known
	changed := make(chan struct{}, 1)
	changed <- struct{}{} // look at once
	stop := s.shard(w.enc).hub.Watch(w.enc, func(e jskv.Entry) {
		least.Store(e.Revision)
		pause.Wake(changed)
	})
	defer stop()
	var newest uint64 // told on this session
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
			s.suspect() // ends the session, if so
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

// read returns what the leader has, at least as new as what the hub has seen and what was told before: a leader that
// was deposed answers for a while, with less. An absence is believed when the hub knows of nothing else, and of a
// lock that was in use when it is seen twice.
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

// used says whether anything was stored when it was last told of.
func (w *lockWatch) used() bool { return w.last.Kind != "" }

// tell hands a state to the loop, if it is another one than the last. A delete
// marker that runs out leaves a free lock as free as it was.
func (w *lockWatch) tell(ctx context.Context, s *session, rec *record.Record, rev uint64) error {
	if w.told && (rev == w.last.Revision || rev == 0 && !w.used()) {
		return nil
	}
	info := newInfo(w.key, rec, rev)
	s.identify(ctx, []Info{info})
	if ctx.Err() != nil {
		return ctx.Err() // the leases may be missing for no other reason
	}
	w.told, w.last = true, info
	if !w.yield(info, nil) {
		return errLeft
	}
	return nil
}

// followFor is how long one watcher is trusted. Then another one tells from the start,
// and what the first has missed comes out.
const followFor = time.Minute

// WatchAll tells of all names that begin with prefix and are in use, as List does, and then of those that have
// changed, until ctx ends or the loop over it is left. The first list is complete, and empty if nothing is in use. A
// name that is in use no more comes with the kind "". Several changes of one name that come together are told as one.
//
// One watcher follows all names, in a fabric with shards one of each, however many there are. It shows what is committed, but a change may show late: by
// up to a minute if the watcher has missed it. Use Watch for a single lock on which something depends. Leases are as
// in List: Identify looks up who is behind them.
//
// It goes on through lost connections, elections and deleted buckets. The last pair has an
// error, unless the loop was left: those of Watch, but a record that can't be read
// is told of as in List. All the work is done in the caller's goroutine.
func (m *Manager) WatchAll(ctx context.Context, prefix string) iter.Seq2[[]Info, error] {
	return func(yield func([]Info, error) bool) {
		filter, err := kv.EncodePrefix(prefix)
		if err != nil {
			yield(nil, err)
			return
		}
		w := &prefixWatch{m: m, prefix: prefix, filter: filter, yield: yield, trust: followFor, told: map[string]uint64{}}
		if err := m.onSessions(ctx, w.follow); err != nil {
			yield(nil, fmt.Errorf("watch all of %q: %w", prefix, translate(err)))
		}
	}
}

// prefixWatch is one loop over WatchAll, on as many sessions as it takes.
type prefixWatch struct {
	m              *Manager
	prefix, filter string
	yield          func([]Info, error) bool
	trust          time.Duration // in one watcher

	s      *session          // that the revisions are of
	begun  bool              // the first list was told
	told   map[string]uint64 // names that were told to be in use, and their revisions
	freed  map[string]uint64 // names that went since the watcher began, likewise
	newest map[*shard]uint64 // highest revision that was met on this session
}

// follow tells of changes until the session ends, and returns nil then.
func (w *prefixWatch) follow(ctx context.Context, s *session) error {
	if w.s != s { // another bucket's revisions may be lower
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
	missing := map[string]struct{}{} // to be asked for: told to be in use, and not met yet
	for name := range w.told {
		missing[name] = struct{}{}
	}
	before := maps.Clone(w.newest)
	var first []Info // of the first values
	begun := false   // they are complete
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
			// A replica that is behind has older entries, also of what was deleted since.
			if _, known := w.told[name]; !known && !e.Deleted && e.Revision <= before[sh] {
				missing[name] = struct{}{}
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

// ask adds what the leader has under names of which the watcher has nothing new.
func (w *prefixWatch) ask(ctx context.Context, s *session, names map[string]struct{}, list []Info) ([]Info, error) {
	for name := range names {
		enc, err := kv.EncodeName(name)
		if err != nil {
			return nil, err // not possible: it was told of
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

// change adds what is news to the list.
func (w *prefixWatch) change(sh *shard, list []Info, info Info) []Info {
	w.newest[sh] = max(w.newest[sh], info.Revision)
	rev, known := w.told[info.Key]
	gone := info.Kind == ""
	switch {
	case gone && !known, !gone && info.Revision <= max(rev, w.freed[info.Key]), gone && info.Revision != 0 && info.Revision <= rev:
		return list // no news
	case gone:
		delete(w.told, info.Key)
		w.freed[info.Key] = max(rev, info.Revision)
	default:
		w.told[info.Key] = info.Revision
	}
	return append(list, info)
}

// tell hands a list to the loop, with the newest of each name.
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

// newest returns the last one of each name, where the first one stood.
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
