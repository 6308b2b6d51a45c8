package jskv

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"

	"github.com/lockfabric/lockfabric/kv"
)

// gap is how far above all that were seen the revisions of a locks bucket begin that
// replaces another. So a revision says whether it may be another bucket's: see
// [MaxStep]. The clock has passed it, half a second in microseconds, when the
// quarantine is over: revisions go on rising when all that was noted is lost, too.
const gap = 1 << 19

// MaxStep is how far above a revision of this bucket another one can lie and need
// no look: see [Buckets.Verify]. It is below gap, and more than is written
// between two acquires of one process as a rule.
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
	return insist(ctx, b.link, func(ctx context.Context) (uint64, error) {
		return b.publish(ctx, probeKey, nil, 0, nats.Header{
			headerOperation: {"PURGE"},
			headerRollup:    {"sub"},
			headerTTL:       {ttlSeconds(probeMarkerTTL)},
		})
	})
}

// Verify looks whether the buckets are those that were opened, and returns the last
// revision of the locks bucket: it and all before are certainly this bucket's. seen
// is the highest revision that was seen of it before the call.
//
// Errors: ErrBucketGone when a bucket is another one, does not exist any more, or
// was set back to before seen; kv.ErrUnavailable when nothing was found out.
func (b *Buckets) Verify(ctx context.Context, seen uint64) (last uint64, err error) {
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	for _, bucket := range []*Bucket{b.Leases, b.Locks} {
		s, err := insist(ctx, bucket.link, func(ctx context.Context) (jetstream.Stream, error) { return bucket.js.Stream(ctx, bucket.stream) })
		if errors.Is(err, jetstream.ErrStreamNotFound) {
			return 0, fmt.Errorf("%w: %s", ErrBucketGone, bucket.name)
		}
		if err != nil {
			return 0, fmt.Errorf("%w: %s: %w", kv.ErrUnavailable, bucket.name, err)
		}
		info := s.CachedInfo()
		if info.Config.Metadata[metaIncarnation] != bucket.incarnation {
			return 0, fmt.Errorf("%w: %s was created again", ErrBucketGone, bucket.name)
		}
		last = info.State.LastSeq
	}
	if last >= seen {
		return last, nil
	}
	// Set back, or said by a leader that is behind. Only a write decides.
	at, err := b.Locks.position(ctx)
	switch {
	case err != nil:
		return 0, fmt.Errorf("%w: %s: %w", kv.ErrUnavailable, b.Locks.name, err)
	case at <= seen:
		return 0, fmt.Errorf("%w: %s was set back to revision %d, %d was seen", ErrBucketGone, b.Locks.name, at, seen)
	}
	return 0, fmt.Errorf("%w: %s: its leader is behind", kv.ErrUnavailable, b.Locks.name)
}

// raise moves the revisions of the locks bucket above seen, or returns errMoved if
// they are there. It removes all records in it. That is another incarnation, which all sessions notice.
//
// Several may do this at once, or one after the other: how far up is noted first, so
// that nobody removes what was written later.
func (b *Buckets) raise(ctx context.Context, seen uint64) error {
	at, err := b.Locks.position(ctx)
	if err != nil {
		return err
	}
	if at > seen {
		return errMoved
	}
	m, _, err := b.note(ctx, func(m *meta) bool {
		changed := m.Incarnation != setBack || m.HighWater <= seen
		m.Incarnation = setBack
		if m.HighWater <= seen {
			m.HighWater = seen + gap
		}
		return changed
	})
	if err != nil {
		return err
	}
	info, err := b.moveUp(ctx, m.HighWater)
	if err != nil {
		return fmt.Errorf("%w: bucket %s was set back to revision %d, and %d was seen; these credentials can't move it up, so use others "+
			"or do what 'lockfabric doctor' says: %w", kv.ErrUnavailable, b.Locks.name, at, seen, err)
	}
	b.Locks.incarnation, b.Last = info.Config.Metadata[metaIncarnation], info.State.LastSeq
	return nil
}

// moveUp gives the locks bucket another incarnation and revisions above floor.
func (b *Buckets) moveUp(ctx context.Context, floor uint64) (*jetstream.StreamInfo, error) {
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	incarnation := nuid.Next()
	// Each step can be repeated.
	info, err := insist(ctx, b.Locks.link, func(ctx context.Context) (*jetstream.StreamInfo, error) {
		s, err := b.Locks.js.Stream(ctx, b.Locks.stream)
		if err != nil {
			return nil, err
		}
		cfg := s.CachedInfo().Config
		cfg.Metadata = maps.Clone(cfg.Metadata)
		cfg.Metadata[metaIncarnation] = incarnation
		if s, err = b.Locks.js.UpdateStream(ctx, cfg); err != nil {
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
