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

// State is the state of a whole bucket, by one request.
type State struct {
	Entries uint64    // number stored: values and delete markers
	First   uint64    // revision of the oldest of them
	Last    uint64    // newest revision that was ever written
	Created time.Time // when the bucket was created
	Now     time.Time // the server's wall clock

	incarnation string
}

// State asks the stream's leader for the state of the bucket. Errors are those of Get.
func (b *Bucket) State(ctx context.Context) (State, error) {
	reply, err := b.request(ctx, &nats.Msg{Subject: apiStreamInfo + b.stream})
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
		Config struct {
			Metadata map[string]string `json:"metadata"`
		} `json:"config"`
	}
	if err := b.answerError(json.Unmarshal(reply.Data, &resp), resp.Error); err != nil {
		return State{}, err
	}
	return State{
		Entries: resp.State.Messages, First: resp.State.First, Last: resp.State.Last,
		Created: resp.Created, Now: resp.Now, incarnation: resp.Config.Metadata[metaIncarnation],
	}, nil
}

const (
	// fewKeys is up to how many keys are read one by one: the state of the stream would be one request more.
	fewKeys = 2

	// To read followed keys, watchers are opened again at most once in refreshEvery rest intervals on
	// average. Each refreshPart keys that a watcher delivers count as one more rest interval.
	refreshEvery = 2
	refreshPart  = 3000
)

// streamMark identifies a state of the stream. While it stays the same,
// nothing was written and nothing was removed, with or without a marker.
type streamMark struct {
	entries, first, last uint64
	created              int64
}

func (s *State) mark() streamMark {
	return streamMark{s.Entries, s.First, s.Last, s.Created.UnixNano()}
}

func (m streamMark) known() bool { return m != streamMark{} }

// checkStream asks for the state of the stream and has the keys read that may have changed.
func (h *Hub) checkStream(ctx context.Context, answered func()) {
	s, err := pause.Within(ctx, h.readTimeout(), h.bucket.State)
	answered()

	h.mu.Lock()
	h.checkingStream = false
	every := h.restInterval
	switch {
	case h.waitedKeys > fewKeys:
		every = h.interval
	case err == nil && s.mark() == h.streamState && time.Since(h.purgeAsked) > h.restInterval:
		every *= quietFactor
	}
	h.checkStreamIn(every)
	setBack := err == nil && !h.closed && h.applyStreamState(s.mark(), time.Now())
	h.mu.Unlock()
	switch {
	case errors.Is(err, ErrBucketGone):
		h.bucketGone()
	case setBack:
		h.onDoubt()
	}
}

// purgeRequested is called when somebody asks to purge the stream. That may take the server a while.
func (h *Hub) purgeRequested() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.purgeAsked = time.Now()
	h.checkStreamWithin(watchGrace)
	if len(h.keys) <= fewKeys {
		for _, k := range h.keys {
			if time.Until(k.due) > watchGrace {
				h.schedule(k, watchGrace)
			}
		}
	}
}

// checkStreamIn schedules the next checkStream in about d.
func (h *Hub) checkStreamIn(d time.Duration) {
	h.nextStreamCheck = time.Now().Add(pause.Near(d))
	pause.Wake(h.wakePoller)
}

// checkStreamWithin schedules it in about d, unless it is scheduled earlier.
func (h *Hub) checkStreamWithin(d time.Duration) {
	if time.Until(h.nextStreamCheck) > d {
		h.checkStreamIn(d)
	}
}

// applyStreamState handles the state of the stream. setBack is whether that is another
// stream, or was set back, or the leader is behind.
func (h *Hub) applyStreamState(s streamMark, now time.Time) (setBack bool) {
	before := h.streamState
	h.streamState = s
	if h.waitedKeys > fewKeys {
		for _, k := range h.keys {
			if k.waiters > 0 && k.checked != s && k.due.Sub(now) > h.interval {
				h.schedule(k, 0)
			}
		}
	}
	h.refresh(s, s.entries < before.entries || now.Sub(h.purgeAsked) < h.restInterval, now)
	return before.known() && (s.created != before.created || s.last < before.last)
}

// refresh opens watchers again that follow keys and were opened at another
// state, the oldest first, as far as the credit allows. removed says that an entry
// was or may have been removed from the stream; only then the saved credit is used, too.
func (h *Hub) refresh(s streamMark, removed bool, now time.Time) {
	var due []*group
	for _, g := range h.groups {
		if g.checked != s && !g.broken && !g.retiring && h.hasFollowedKeys(g) {
			due = append(due, g)
		}
	}
	slices.SortFunc(due, func(a, b *group) int { return cmp.Compare(a.opened.UnixNano(), b.opened.UnixNano()) })
	for _, g := range due {
		delivers := uint64(g.keyCount)
		if g.wholeBucket() {
			delivers = s.entries
		}
		if !h.takeCredit(delivers, removed, now) {
			return
		}
		h.breakGroup(g, 0)
	}
}

// hasFollowedKeys reports whether a watcher has keys without waiters.
func (h *Hub) hasFollowedKeys(g *group) bool {
	for k := range h.keysOf(g) {
		if k.waiters == 0 {
			return true
		}
	}
	return false
}

// takeCredit reports whether a watcher that delivers so many first values may be opened
// again, and if so takes its price. Unused credit adds up to one opening of
// every watcher. If credit is false, the saved credit must not be used up.
func (h *Hub) takeCredit(values uint64, credit bool, now time.Time) bool {
	price := func(values uint64) time.Duration {
		return refreshEvery*h.restInterval + time.Duration(values)*h.restInterval/refreshPart
	}
	full := now.Add(-maxGroups * price(groupKeys))
	limit := full
	if credit {
		limit = now
	}
	if h.creditUsed.After(limit) {
		return false
	}
	if h.creditUsed.Before(full) {
		h.creditUsed = full
	}
	h.creditUsed = h.creditUsed.Add(price(values))
	return true
}

// revisionGap is how far the revisions of a new locks bucket begin above all revisions that were seen. So a revision
// shows that it may belong to another bucket: see [MaxStep]. It is half a second in microseconds, so the clock has passed it
// when the quarantine is over: revisions go on rising even if everything that was noted is lost.
const revisionGap = 1 << 19

// MaxStep is how far a revision may be above the last known one and still certainly belong to this bucket, without a
// check: see [Buckets.Verify]. It is below revisionGap, and usually more than is written between two acquires of a process.
const MaxStep = 1 << 17

const (
	// probeKey is the key of the marker that Verify and Open write to find out the present
	// revision of the bucket. No lock's name is encoded to it.
	probeKey       = "=position"
	probeMarkerTTL = 10 * time.Second
)

// setBackIncarnation is the noted incarnation between the discovery that a bucket was set
// back and the end of the quarantine. No bucket has it.
const setBackIncarnation = "set-back"

// errMoved says that a bucket is not in the state that an earlier answer showed: the answer came from a leader
// that was behind, or the revisions were moved up meanwhile.
var errMoved = fmt.Errorf("%w: the bucket has moved", kv.ErrUnavailable)

// probeRevision returns a revision that was committed after the call began. Unlike a
// read, it can't come from a deposed leader.
func (b *Bucket) probeRevision(ctx context.Context) (uint64, error) {
	return retryUnanswered(ctx, b.link, func(ctx context.Context) (uint64, error) {
		m := newPurge(probeMarkerTTL)
		delete(m.Header, headerExpectedRevision)
		return b.write(ctx, m, nil, probeKey, nil, 0)
	})
}

// Verify checks whether the buckets are those that were opened. It returns the last revision of each locks bucket: all
// revisions up to it certainly belong to this bucket. seen is the highest revision that was seen of each before the call.
//
// Errors: ErrBucketGone if a bucket is another one, does not exist any more, or
// was set back to before seen; kv.ErrUnavailable if nothing was found out.
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
		// It was set back, or its leader is behind. Only a write decides.
		at, err := locks.probeRevision(ctx)
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

// verify checks whether the bucket is the one that was opened, and returns its last revision.
func (b *Bucket) verify(ctx context.Context) (last uint64, err error) {
	s, err := retryUnanswered(ctx, b.link, b.State)
	if err == nil && s.incarnation != b.incarnation {
		err = fmt.Errorf("%w: %s was created again", ErrBucketGone, b.name)
	}
	return s.Last, err
}

// moveAbove moves the revisions of a shard's bucket above seen, or returns errMoved if
// they are there already. It removes all records in it. The bucket gets another incarnation, which all sessions notice.
//
// Several processes may do this at once, or one after the other. So the target is noted first:
// then none of them removes what was written later.
func (b *Buckets) moveAbove(ctx context.Context, s int, seen uint64) error {
	locks := b.Locks[s]
	at, err := locks.probeRevision(ctx)
	if err != nil {
		return err
	}
	if at > seen {
		return errMoved
	}
	m, _, err := b.note(ctx, func(m *meta) bool {
		o := m.shard(s)
		changed := o.Incarnation != setBackIncarnation || o.HighWater <= seen
		o.Incarnation = setBackIncarnation
		if o.HighWater <= seen {
			o.HighWater = seen + revisionGap
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
