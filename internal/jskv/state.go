package jskv

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"

	"github.com/lockfabric/lockfabric/internal/pause"
	"github.com/lockfabric/lockfabric/kv"
)

// State is what one request tells of all keys of a bucket.
type State struct {
	Entries uint64    // stored: values and delete markers
	First   uint64    // revision of the oldest of them
	Last    uint64    // newest revision that was ever written
	Created time.Time // when the bucket was created
	Now     time.Time // the server's wall clock
}

// State asks the stream's leader for the state of the bucket. Errors are those of Get.
func (b *Bucket) State(ctx context.Context) (State, error) {
	reply, err := b.trip(ctx, &nats.Msg{Subject: apiStreamInfo + b.stream})
	if err != nil {
		return State{}, fmt.Errorf("%w: state of %s: %w", kv.ErrUnavailable, b.name, err)
	}
	var resp struct {
		Error   *jetstream.APIError `json:"error"`
		Created time.Time           `json:"created"`
		Now     time.Time           `json:"ts"`
		State   struct {
			Messages uint64 `json:"messages"`
			First    uint64 `json:"first_seq"`
			Last     uint64 `json:"last_seq"`
		} `json:"state"`
	}
	if err := b.answerError(json.Unmarshal(reply.Data, &resp), resp.Error); err != nil {
		return State{}, fmt.Errorf("%w: state of %s", err, b.name)
	}
	return State{
		Entries: resp.State.Messages, First: resp.State.First, Last: resp.State.Last,
		Created: resp.Created, Now: resp.Now,
	}, nil
}

const (
	// fewKeys is how many keys are simply read, each by itself: the state of the stream would be one request more.
	fewKeys = 2

	// Watchers are opened anew, to read the keys that they follow, at most once in this many rest intervals on
	// average. Each hundredth of refreshPart keys that one delivers counts as a hundredth of a rest interval more.
	refreshEvery = 2
	refreshPart  = 3000
)

// mark is by what a hub knows a state of the stream again. While it stays the same
// nothing was written, and nothing was removed, with or without a marker.
type mark struct {
	entries, first, last uint64
	created              int64
}

func (s *State) mark() mark { return mark{s.Entries, s.First, s.Last, s.Created.UnixNano()} }

func (m mark) known() bool { return m != mark{} }

// look asks for the state of the stream and has read what may have changed.
func (h *Hub) look(ctx context.Context, answered func()) {
	rctx, cancel := context.WithTimeout(ctx, h.readTimeout())
	s, err := h.bucket.State(rctx)
	cancel()
	answered()

	h.mu.Lock()
	h.stats.Looks++
	h.looking = false
	every := h.rest
	if h.hot > fewKeys {
		every = h.interval
	}
	h.lookIn(every)
	setBack := err == nil && !h.closed && h.compare(s.mark(), time.Now())
	h.mu.Unlock()
	switch {
	case errors.Is(err, ErrBucketGone):
		h.bucketGone()
	case setBack:
		h.doubt()
	}
}

// lookIn has the state looked at in about d. Lock held.
func (h *Hub) lookIn(d time.Duration) {
	h.nextLook = time.Now().Add(pause.Near(d))
	pause.Wake(h.wakePoller)
}

// lookWithin has it looked at in about d, or sooner if it is to be already. Lock held.
func (h *Hub) lookWithin(d time.Duration) {
	if time.Until(h.nextLook) > d {
		h.lookIn(d)
	}
}

// compare takes in the state of the stream. It reports whether that is another
// stream, or was set back, or the leader is behind. Lock held.
func (h *Hub) compare(s mark, now time.Time) (setBack bool) {
	before := h.state
	h.state = s
	if h.hot > fewKeys {
		for _, k := range h.keys {
			if k.hot > 0 && k.checked != s && k.due.Sub(now) > h.interval {
				h.schedule(k, 0)
			}
		}
	}
	h.refresh(s, s.entries < before.entries, now)
	return before.known() && (s.created != before.created || s.last < before.last)
}

// refresh opens those watchers anew that follow keys and were opened at another
// state, the oldest first, as far as can be afforded. removed says that something
// was removed from the stream, and then the credit is used, too. Lock held.
func (h *Hub) refresh(s mark, removed bool, now time.Time) {
	var due []*group
	for _, g := range h.groups {
		if g.checked != s && !g.broken && !g.retiring && h.follows(g) {
			due = append(due, g)
		}
	}
	slices.SortFunc(due, func(a, b *group) int { return cmp.Compare(a.opened.UnixNano(), b.opened.UnixNano()) })
	for _, g := range due {
		delivers := uint64(g.live)
		if g.wholeBucket() {
			delivers = s.entries
		}
		if !h.afford(delivers, removed, now) {
			return
		}
		h.stats.Refreshed++
		h.breakGroup(g, 0)
	}
}

// follows reports whether a watcher has keys that nobody waits for. Lock held.
func (h *Hub) follows(g *group) bool {
	for k := range h.keysOf(g) {
		if k.hot == 0 {
			return true
		}
	}
	return false
}

// afford reports whether a watcher that delivers so many first values may be opened
// anew, and if so takes its price. What is not spent adds up to one opening of
// every watcher. Without credit nothing is done that would use it up. Lock held.
func (h *Hub) afford(values uint64, credit bool, now time.Time) bool {
	price := func(values uint64) time.Duration {
		return refreshEvery*h.rest + time.Duration(values)*h.rest/refreshPart
	}
	full := now.Add(-maxGroups * price(groupKeys))
	limit := full
	if credit {
		limit = now
	}
	if h.spent.After(limit) {
		return false
	}
	if h.spent.Before(full) {
		h.spent = full
	}
	h.spent = h.spent.Add(price(values))
	return true
}

// gap is how far above all that were seen the revisions of a locks bucket begin that replaces another. So a revision
// says whether it may be another bucket's: see [MaxStep]. The clock has passed it, half a second in microseconds,
// when the quarantine is over: revisions go on rising when all that was noted is lost, too.
const gap = 1 << 19

// MaxStep is how far above a revision of this bucket another one can lie and need no look: see [Buckets.Verify]. It
// is below gap, and more than is written between two acquires of one process as a rule.
const MaxStep = 1 << 17

// probeKey is the key of the marker that Verify and Open write to find out where the
// bucket's revisions stand. No lock's name is encoded so.
const (
	probeKey       = "=position"
	probeMarkerTTL = 10 * time.Second
)

// setBack is the incarnation noted between the discovery that revisions were set
// back and the end of the quarantine. No bucket has it.
const setBack = "set-back"

// errMoved says that a bucket is not as the request before said: by a leader that was
// behind, or it was moved up meanwhile.
var errMoved = fmt.Errorf("%w: the bucket has moved", kv.ErrUnavailable)

// position returns a revision that was committed after the call began. Unlike a
// read, it can't come from a leader that was deposed.
func (b *Bucket) position(ctx context.Context) (uint64, error) {
	return retryUnanswered(ctx, b.link, func(ctx context.Context) (uint64, error) {
		m := newPurge(probeMarkerTTL)
		delete(m.Header, headerExpectedRevision)
		return b.write(ctx, m, nil, probeKey, nil, 0)
	})
}

// Verify looks whether the buckets are those that were opened, and returns the last revision of each locks bucket: it
// and all before are certainly this bucket's. seen is the highest revision that was seen of each before the call.
//
// Errors: ErrBucketGone when a bucket is another one, does not exist any more, or
// was set back to before seen; kv.ErrUnavailable when nothing was found out.
func (b *Buckets) Verify(ctx context.Context, seen []uint64) (last []uint64, err error) {
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	if _, err := b.Leases.verify(ctx); err != nil {
		return nil, err
	}
	for _, locks := range b.Locks {
		rev, err := locks.verify(ctx)
		if err != nil {
			return nil, err
		}
		last = append(last, rev)
	}
	for s, locks := range b.Locks {
		if last[s] >= seen[s] {
			continue
		}
		// Set back, or said by a leader that is behind. Only a write decides.
		at, err := locks.position(ctx)
		switch {
		case err != nil:
			return nil, fmt.Errorf("%w: %s: %w", kv.ErrUnavailable, locks.name, err)
		case at <= seen[s]:
			return nil, fmt.Errorf("%w: %s was set back to revision %d, %d was seen", ErrBucketGone, locks.name, at, seen[s])
		}
		return nil, fmt.Errorf("%w: %s: its leader is behind", kv.ErrUnavailable, locks.name)
	}
	return last, nil
}

// verify looks whether the bucket is the one that was opened, and returns its last revision.
func (b *Bucket) verify(ctx context.Context) (last uint64, err error) {
	s, err := retryUnanswered(ctx, b.link, func(ctx context.Context) (jetstream.Stream, error) { return b.js.Stream(ctx, b.stream) })
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return 0, fmt.Errorf("%w: %s", ErrBucketGone, b.name)
	}
	if err != nil {
		return 0, fmt.Errorf("%w: %s: %w", kv.ErrUnavailable, b.name, err)
	}
	info := s.CachedInfo()
	if info.Config.Metadata[metaIncarnation] != b.incarnation {
		return 0, fmt.Errorf("%w: %s was created again", ErrBucketGone, b.name)
	}
	return info.State.LastSeq, nil
}

// raise moves the revisions of a shard's bucket above seen, or returns errMoved if
// they are there. It removes all records in it. That is another incarnation, which all sessions notice.
//
// Several may do this at once, or one after the other: how far up is noted first, so
// that nobody removes what was written later.
func (b *Buckets) raise(ctx context.Context, s int, seen uint64) error {
	locks := b.Locks[s]
	at, err := locks.position(ctx)
	if err != nil {
		return err
	}
	if at > seen {
		return errMoved
	}
	m, _, err := b.note(ctx, func(m *meta) bool {
		o := m.shard(s)
		changed := o.Incarnation != setBack || o.HighWater <= seen
		o.Incarnation = setBack
		if o.HighWater <= seen {
			o.HighWater = seen + gap
		}
		return changed
	})
	if err != nil {
		return err
	}
	info, err := locks.moveUp(ctx, m.shard(s).HighWater)
	if err != nil {
		return fmt.Errorf("%w: bucket %s was set back to revision %d, and %d was seen; these credentials can't move it up, so use others "+
			"or do what 'lockfabric doctor' says: %w", kv.ErrUnavailable, locks.name, at, seen, err)
	}
	locks.incarnation, locks.last = info.Config.Metadata[metaIncarnation], info.State.LastSeq
	return nil
}

// moveUp gives a locks bucket another incarnation and revisions above floor.
func (b *Bucket) moveUp(ctx context.Context, floor uint64) (*jetstream.StreamInfo, error) {
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	incarnation := nuid.Next()
	// Each step can be repeated.
	info, err := retryUnanswered(ctx, b.link, func(ctx context.Context) (*jetstream.StreamInfo, error) {
		s, err := b.js.Stream(ctx, b.stream)
		if err != nil {
			return nil, err
		}
		cfg := s.CachedInfo().Config
		cfg.Metadata = maps.Clone(cfg.Metadata)
		cfg.Metadata[metaIncarnation] = incarnation
		if s, err = b.js.UpdateStream(ctx, cfg); err != nil {
			return nil, err
		}
		if err := s.Purge(ctx, jetstream.WithPurgeSequence(floor+1)); err != nil {
			return nil, err
		}
		return s.Info(ctx)
	})
	if err != nil {
		return nil, err
	}
	if info.State.LastSeq < floor {
		return nil, fmt.Errorf("it stands at %d after the purge", info.State.LastSeq)
	}
	return info, nil
}
